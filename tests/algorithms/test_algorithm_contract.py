"""What every algorithm keeps to. A new one is tested by being listed in MEMBERS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Cohort, Sampling, SpecError, UpdateError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.selection import Selection
from fedjax_secure.training import Rows

A = fs.algorithms
SIZES = (9, 14, 4, 21, 6)
CLIENTS = len(SIZES)
EMPTY = 2  # takes part without a record
#: Who takes part: any subset, one client alone, and nobody. The last client never does.
SUBSETS = ((0, 3, 2), (1,), (), (2,), (1, 0))


class Member(NamedTuple):
    """One algorithm, and how it is listed.

    Attributes:
        make: the factory.
        settings: arguments with which the loss falls in the suite's rounds.
        others: other values, each of which is another run; for optax objects, which have no text,
            the server's program tells them apart.
        bad: arguments that are refused.
        selection: what a selection for it adds to each cohort, if anything.
        slow: its rounds run in the slow suite: another member's clients do the same work.
    """

    make: Callable[..., fs.algorithms.Algorithm]
    settings: dict[str, Any]
    others: dict[str, Any] = {}
    bad: dict[str, tuple[Any, ...]] = {}
    selection: Callable[[Cohort], Cohort] = lambda cohort: cohort
    slow: bool = False


LOCAL = {"learning_rate": 0.1, "batch_size": 4}
LOCALS = {"learning_rate": 0.2, "local_epochs": 3, "batch_size": 5}
BAD = {"learning_rate": (0, -1.0, float("nan"), "0.1"), "local_epochs": (0, 1.5, True),
       "batch_size": (0, 2.5)}
ADAPTIVE = {"server_learning_rate": (0.0, float("inf")), "beta_1": (1.0, -0.1), "tau": (0.0,)}

MEMBERS = {
    "fed_avg": Member(A.fed_avg, LOCAL, {**LOCALS, "weighted": False}, BAD),
    "fed_sgd": Member(A.fed_sgd, {"server": optax.sgd(0.3)}),
    "fed_avg_m": Member(
        A.fed_avg_m, {**LOCAL, "momentum": 0.5},
        {**LOCALS, "momentum": 0.9, "server_learning_rate": 0.3},
        {**BAD, "momentum": (1.0, -0.5), "server_learning_rate": (0, None)}, slow=True),
    "fed_adam": Member(
        A.fed_adam, {**LOCAL, "server_learning_rate": 0.05},
        {**LOCALS, "server_learning_rate": 0.01, "beta_1": 0.5, "beta_2": 0.9, "tau": 0.1},
        {**BAD, **ADAPTIVE, "beta_2": (1.0,)}, slow=True),
    "fed_yogi": Member(
        A.fed_yogi, {**LOCAL, "server_learning_rate": 0.05},
        {**LOCALS, "server_learning_rate": 0.01, "beta_1": 0.5, "beta_2": 0.9, "tau": 0.1},
        {**BAD, **ADAPTIVE, "beta_2": (1.0,)}, slow=True),
    "fed_adagrad": Member(
        A.fed_adagrad, {**LOCAL, "server_learning_rate": 0.1},
        {**LOCALS, "server_learning_rate": 0.01, "beta_1": 0.5, "tau": 0.1,
         "initial_variance": 2.0},
        {**BAD, **ADAPTIVE, "initial_variance": (1e-7,)}, slow=True),
    "fed_prox": Member(
        A.fed_prox, {**LOCAL, "mu": 0.3, "local_epochs": 2}, {**LOCALS, "mu": 0.0},
        {**BAD, "mu": (-0.1, float("nan"))}),
    "scaffold": Member(
        A.scaffold, {**LOCAL, "local_epochs": 2},
        {**LOCALS, "server_learning_rate": 0.5, "option": 1},
        {**BAD, "server_learning_rate": (0,), "option": (3, "2")}),
    "scaffold option 1": Member(A.scaffold, {**LOCAL, "option": 1}, slow=True),
    "fed_dyn": Member(
        A.fed_dyn, {**LOCAL, "alpha": 0.5, "local_epochs": 2}, {**LOCALS, "alpha": 0.1},
        {**BAD, "alpha": (0,)}),
    "fed_nova": Member(
        A.fed_nova, {**LOCAL, "momentum": 0.5, "typical_steps": 4.0},
        {**LOCALS, "momentum": 0.0, "typical_steps": 1.0, "weighted": False},
        {**BAD, "momentum": (1.0,), "typical_steps": (0,)}),
    "mime_lite": Member(
        A.mime_lite, {"base": optax.sgd(0.1, momentum=0.5), "batch_size": 4},
        {"server_learning_rate": 0.5, "local_epochs": 3, "batch_size": 5, "weighted": False},
        {"base": (0.1, None), "server_learning_rate": (0,), "local_epochs": (0,)}),
    "ditto": Member(
        A.ditto, {**LOCAL, "lam": 0.5, "personal_epochs": 2},
        {**LOCALS, "lam": 0.0, "personal_learning_rate": 0.5, "personal_epochs": 1},
        {**BAD, "lam": (-1.0,), "personal_learning_rate": (0,), "personal_epochs": (0,)}),
    "apfl": Member(
        A.apfl, {**LOCAL, "alpha": 0.25, "adaptive": True},
        {**LOCALS, "alpha": 0.75, "adaptive": False}, {**BAD, "alpha": (-0.1, 1.1)}),
    "q_fed_avg": Member(
        A.q_fed_avg, {**LOCAL, "q": 0.5, "local_epochs": 2},
        {**LOCALS, "q": 0.0, "weighted": False}, {**BAD, "q": (-1.0, float("inf"))}),
    "agnostic_fed_avg": Member(
        A.agnostic_fed_avg, {**LOCAL, "domains": [0, 1, 0, 2, 1]},
        {**LOCALS, "domains": None, "domain_learning_rate": 0.5, "ascent": "projected"},
        {**BAD, "domain_learning_rate": (-1.0,), "ascent": ("steepest",),
         "domains": ([0, 2, 0, 2, 2], [])}),
    "agnostic_fed_avg by client": Member(
        A.agnostic_fed_avg, {**LOCAL, "ascent": "projected"}),
    "tilted_fed_avg": Member(
        A.tilted_fed_avg, {**LOCAL, "t": 2.0},
        {**LOCALS, "t": -1.0, "estimate_rate": 1.0, "weighted": False},
        {**BAD, "t": (float("nan"),), "estimate_rate": (0.0, 1.5)}),
    "fed_buff": Member(
        A.fed_buff, {**LOCAL, "max_staleness": 2, "local_epochs": 2},
        {**LOCALS, "server_learning_rate": 0.5, "staleness": "hinge", "a": 1.0, "b": 2.0,
         "max_staleness": 3, "weighted": True},
        {**BAD, "server_learning_rate": (0,), "staleness": ("old",), "a": (-1.0,), "b": (-1.0,),
         "max_staleness": (0, 1.5)}, selection=lambda cohort: stale(cohort)),
    "fed_async": Member(
        A.fed_async, {**LOCAL, "max_staleness": 2, "local_epochs": 2},
        {**LOCALS, "mixing": 0.9, "rho": 0.0, "staleness": "constant", "a": 1.0, "b": 2.0,
         "max_staleness": 3},
        {**BAD, "mixing": (0, 1.1), "rho": (-1.0,), "staleness": ("old",), "a": (-1.0,),
         "b": (-1.0,), "max_staleness": (0, True)}, selection=lambda cohort: stale(cohort)),
    "with_client_bounds": Member(
        A.with_client_bounds,
        {"algorithm": A.fed_avg(**LOCAL), "client_bounds": np.geomspace(0.2, 2.0, 5)},
        {"algorithm": A.scaffold(**LOCAL)},
        {"algorithm": (None, A.with_client_bounds(A.fed_avg(**LOCAL), [1.0] * 5)),
         "client_bounds": ([], [0.0] * 5, [float("nan")] * 5)}),
}


def dataset(sizes=SIZES) -> FederatedDataset:
    """Three classes around centres of their own; each client has two of them for the most part."""
    random = np.random.default_rng(3)
    y = np.concatenate([(c + (random.random(size) < 0.4)) % 3 for c, size in enumerate(sizes)])
    x = 1.5 * np.eye(3)[y] + random.normal(size=(len(y), 3))
    return FederatedDataset(
        name="three centres", clients=tuple("abcde"[: len(sizes)]), x=x, y=y,
        offsets=np.cumsum([0, *sizes]), test_x=x, test_y=y, test_offsets=np.cumsum([0, *sizes]),
        feature_names=("p", "q", "r"), classes=("0", "1", "2"))


def stale(cohort: Cohort) -> Cohort:
    """Clients that start from models of up to two rounds ago."""
    ages = np.minimum(np.arange(CLIENTS) % 3, cohort.round - 1)
    return cohort._replace(staleness=ages.astype(np.int32))


DATA = dataset()
_LINEAR = fs.models.logistic_regression(DATA)
#: Begins away from zero, where "the first model" and "zeros" are not the same thing.
MODEL = replace(_LINEAR, init=lambda key: jax.tree.map(
    lambda part: 0.3 * jax.random.normal(key, part.shape), _LINEAR.init(key)))


class Script:
    """A selection that follows a script: round r takes the clients of subsets[r - 1]."""

    def __init__(self, change=lambda cohort: cohort):
        self.change = change
        self.subsets, self.empty, self.share = SUBSETS, (EMPTY,), 1.0

    def draw(self, source, round, candidates, state) -> Cohort:
        subset = self.subsets[(round - 1) % len(self.subsets)]
        share = np.full(CLIENTS, self.share, np.float32)
        cohort = cohort_of(subset, self.empty)._replace(round=round, share=share)
        return self.change(cohort)

    def selection(self) -> Selection:
        sampling = Sampling("all", 1.0, "client")
        return Selection("scripted", sampling, self.draw, most_clients=lambda n: n)


def cohort_of(subset, empty=()) -> Cohort:
    """These clients, each with all of its records in their order or without any."""
    alive = np.isin(np.arange(CLIENTS), subset)
    indices = tuple(DATA.rows(c) if alive[c] and c not in empty else np.zeros(0, np.int32)
                    for c in range(CLIENTS))
    return Cohort(1, DATA.clients, indices, alive)


class Run(NamedTuple):
    """What a simulated run went through: index r is after round r."""

    states: list[Any]
    rows: list[np.ndarray]
    reports: list[Any]


class Player:
    """A simulation of one algorithm, compiled once and played with several scripts."""

    def __init__(self, member: Member, **options):
        self.script = Script(member.selection)
        algorithm = member.make(**member.settings)
        self.simulation = fs.Simulation(
            MODEL, options.pop("data", DATA), algorithm, selection=self.script.selection(),
            **options)
        self.traces: dict[str, int] = {}  # after the reference rounds
        self.work, self.algorithm = self.simulation.rounds.work, self.simulation.algorithm

    def play(self, subsets=SUBSETS, *, rounds=None, empty=(EMPTY,), share=1.0) -> Run:
        self.script.subsets, self.script.empty, self.script.share = subsets, empty, share
        state = self.simulation.init(jax.random.key(1))
        out = Run([state], [self.rows()], [])
        for state, report in self.simulation.run(state, rounds=rounds or len(subsets)):
            out.states.append(state)
            out.rows.append(self.rows())
            out.reports.append(report)
        return out

    def rows(self) -> np.ndarray:
        kept = self.simulation.rounds.states
        return np.zeros((CLIENTS, 0)) if kept is None else kept.read(np.arange(CLIENTS)).copy()


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=pytest.mark.slow if member.slow else ())
    for name, member in MEMBERS.items()])
def member(request) -> Member:
    return MEMBERS[request.param]


@pytest.fixture(scope="module")
def player(member) -> Player:
    """Ragged, on two devices, as a CPU runs it."""
    return Player(member)


@pytest.fixture(scope="module")
def reference(player) -> Run:
    out = player.play()
    player.traces = player.simulation.traces
    return out


def numbers(state) -> list[np.ndarray]:
    leaves = jax.tree.leaves((state.params, state.opt_state))
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def assert_same(one: Run, other: Run, tolerance: float):
    for state, state_there in zip(one.states, other.states, strict=True):
        for here, there in zip(numbers(state), numbers(state_there), strict=True):
            np.testing.assert_allclose(here, there, rtol=tolerance, atol=tolerance)
    for here, there in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(here, there, rtol=tolerance, atol=tolerance)
    assert [report.steps for report in one.reports] == [report.steps for report in other.reports]


# -- running -------------------------------------------------------------------------------------


def test_every_exported_algorithm_is_listed():
    made = {member.make for member in MEMBERS.values()}
    functions = {getattr(A, name) for name in A.__all__} - {
        A.Algorithm, A.adaptive_server, A.example_weights, A.fine_tune, A.staleness_weights}
    assert functions == made


def test_one_compile_whoever_takes_part(player, reference):
    assert set(player.traces.values()) == {1}, player.traces
    assert [report.clients for report in reference.reports] == [len(s) for s in SUBSETS]


@pytest.mark.slow
def test_lanes_give_the_same(member, reference):
    assert_same(reference, Player(member, layout="lanes", num_lanes=2).play(), 2e-5)


@pytest.mark.slow
def test_one_device_gives_the_same(member, player, reference):
    assert len(player.simulation.rounds.engine.devices) == 2
    assert_same(reference, Player(member, devices=jax.devices()[:1]).play(), 2e-6)


@pytest.mark.slow
def test_chunks_of_clients_give_the_same(member, reference):
    assert_same(reference, Player(member, chunk_clients=2).play(), 2e-6)


def test_rounds_move_the_model_and_stay_finite(reference):
    for state in reference.states:
        assert all(np.isfinite(leaf).all() for leaf in numbers(state))
    first, last = (np.asarray(MODEL.ravel(reference.states[r].params)) for r in (0, 1))
    assert np.abs(first - last).max() > 1e-4


def test_the_server_state_keeps_its_shapes(reference):
    def shapes(state):
        leaves, tree = jax.tree.flatten((state.params, state.opt_state))
        return tree, [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]

    assert all(shapes(state) == shapes(reference.states[0]) for state in reference.states)


def test_the_loss_falls(player):
    out = player.play([range(CLIENTS)], rounds=12, empty=())

    def loss(state):
        return float(jnp.mean(MODEL.loss(state.params, jnp.asarray(DATA.x), jnp.asarray(DATA.y))))

    first, last = loss(out.states[0]), loss(out.states[-1])
    assert last < first - 0.2, (first, last)
    reported = [report.loss for report in out.reports]
    assert np.isnan(reported).all() or reported[-1] < reported[0] - 0.2


def test_a_share_of_the_work_is_that_share_of_its_steps(player):
    out = player.play([(0, 1, 3)], share=0.4)
    size = player.work.batch_size or player.algorithm.batch_size
    steps = 0
    for c in (0, 1, 3):
        for phase in player.work.phases:
            whole = phase.passes * -(-SIZES[c] // size)
            steps += int(np.ceil(np.float32(whole) * np.float32(0.4))) if phase.partial else whole
    assert out.reports[0].steps == steps
    assert all(np.isfinite(leaf).all() for leaf in numbers(out.states[-1]))


@pytest.mark.slow
def test_a_diverging_client_is_named_and_loses_nothing(member):
    x = np.array(DATA.x)
    x[DATA.rows(1)] = 3e38
    simulation = Player(member, data=replace(DATA, x=x)).simulation
    rounds = simulation.run(simulation.init(jax.random.key(1)), rounds=len(SUBSETS))
    state, _ = next(rounds)
    assert SUBSETS[0] == (0, 3, 2) and 1 in SUBSETS[1]
    with pytest.raises(UpdateError, match="round 2.* from b"):
        next(rounds)
    assert all(np.isfinite(leaf).all() for leaf in numbers(state))


# -- what clients keep ---------------------------------------------------------------------------


def test_states_change_for_those_who_take_part_only(player, reference):
    """Those without a record keep what they had, and the last client never takes part."""
    rows, size = reference.rows, player.work.state_size
    assert (player.algorithm.client_state is None) == (size == 0)
    assert rows[0].shape == (CLIENTS, size)
    if size == 0:
        return
    first = player.algorithm.client_state(MODEL, reference.states[0].params)
    assert np.asarray(first).dtype == np.float32
    for row in rows[0]:
        np.testing.assert_array_equal(row, first)
    for subset, before, after in zip(SUBSETS, rows[:-1], rows[1:], strict=True):
        changed = np.flatnonzero((before != after).any(axis=1))
        assert changed.tolist() == sorted(set(subset) - {EMPTY})
    np.testing.assert_array_equal(rows[-1][CLIENTS - 1], first)


def test_personal_models_where_there_are_any(player):
    out = player.play([(0, 1, 3)])
    state = out.states[-1]
    if player.algorithm.personal is None:
        with pytest.raises(SpecError, match="own model"):
            player.simulation.personal(state)
        return
    personal = player.simulation.personal(state)
    models = np.asarray(personal([3, 0]))
    assert models.shape == (2, MODEL.dim) and np.isfinite(models).all()
    assert np.abs(models[0] - models[1]).max() > 1e-4
    np.testing.assert_array_equal(np.asarray(personal([0]))[0], models[1])


# -- the chain -----------------------------------------------------------------------------------


def sent_by_each(player: Player, empty=()) -> np.ndarray:
    """What each client sends in the first round, straight from the engine: [clients, width]."""
    simulation, algorithm = player.simulation, player.algorithm
    player.script.subsets, player.script.empty, player.script.share = [range(CLIENTS)], empty, 1.0
    state = simulation.init(jax.random.key(1))
    cohort = simulation.rounds.draw(1, state)
    if simulation.rounds.states is not None:
        simulation.rounds.states.begin(1)
    keys = np.ones((CLIENTS, 8), np.uint32)
    out = simulation.rounds.train(
        cohort, state, keys, simulation._states, Rows.of(range(CLIENTS), CLIENTS))
    assert algorithm is simulation.algorithm
    return np.asarray(out.values)


def test_a_client_without_records_sends_zeros(player):
    sent = sent_by_each(player, empty=(EMPTY,))
    assert sent.shape == (CLIENTS, player.work.width)
    np.testing.assert_array_equal(sent[EMPTY], 0)
    assert (np.abs(np.delete(sent, EMPTY, axis=0)).max(axis=1) > 0).all()


def test_clipping_covers_everything_that_is_sent(member, player):
    values = sent_by_each(player).astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    bound = float(np.median(norms))
    chain = fs.chain(fs.privacy.clip(bound))
    clipped = fs.Simulation(MODEL, DATA, member.make(**member.settings), chain,
                            selection=Script(member.selection).selection())
    assert clipped.spec.dim == player.work.width == values.shape[1]
    keys = np.ones((CLIENTS, 8), np.uint32)
    sent, _ = chain.encode(clipped._states, keys, jnp.asarray(values, jnp.float32))
    expected = values * np.minimum(1, bound / norms)[:, None]
    np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-7)
    assert (norms > 1.001 * bound).any()


@pytest.mark.slow
def test_encrypted_rounds_give_the_plain_result(member, player, tmp_path):
    """Up to rounding, which moves each coordinate of each client by less than one unit."""
    bound = 1.1 * float(np.linalg.norm(sent_by_each(player), axis=1).max())
    chain = fs.chain(fs.privacy.clip(bound), fs.privacy.quantise(bits=31),
                     fs.he.encrypt(fs.he.public_key()))
    script = Script(member.selection)
    script.subsets, script.empty = [range(CLIENTS)], ()
    with fs.Federation(MODEL, DATA, member.make(**member.settings), chain, seed=0,
                       selection=script.selection(), folder=tmp_path / "run",
                       aggregator="semi-honest") as made:
        for state, _ in made.run(made.init(jax.random.key(1)), rounds=1):
            encrypted = numbers(state)
        unit = CLIENTS / made.spec.scale / made.spec.denominator
    out = player.play([range(CLIENTS)], empty=())
    first, mean = out.states[0], sent_by_each(player).sum(axis=0) / made.spec.denominator

    def step(mean):
        leaves = jax.tree.leaves(player.algorithm.step(MODEL, first.params, first.opt_state, mean))
        return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])

    slopes = np.abs(jax.jacobian(step)(jnp.asarray(mean))).sum(axis=1)
    here = np.concatenate([leaf.ravel() for leaf in encrypted])
    there = np.concatenate([leaf.ravel() for leaf in numbers(out.states[1])])
    assert here.shape == there.shape == slopes.shape and unit < 1e-3
    excess = np.abs(here - there) - 1.1 * slopes * unit
    assert excess.max() < 2e-6 * max(1, np.abs(there).max())


# -- what a run is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMBERS)
def test_other_settings_are_another_run(name):
    member = MEMBERS[name]
    made = member.make(**member.settings)
    assert made.settings == member.make(**member.settings).settings
    for argument, value in member.others.items():
        other = member.make(**{**member.settings, argument: value})
        assert (other.name, other.settings) != (made.name, made.settings), argument
        assert other.batch_size == (value if argument == "batch_size" else made.batch_size)


@pytest.mark.parametrize("name", MEMBERS)
def test_bad_settings_are_refused(name):
    member = MEMBERS[name]
    for argument, values in member.bad.items():
        for value in values:
            with pytest.raises(SpecError) as refused:
                member.make(**{**member.settings, argument: value})
            assert argument in str(refused.value) or repr(value) in str(refused.value)
