"""Simulations: repeatable, equal to federations, clear about what diverges and what is refused."""

from __future__ import annotations

import dataclasses
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import DataError, ParameterError, SpecError, UpdateError, source
from fedjax_secure.selection import Candidates

DATA = fs.data.heart_disease()
LINEAR = fs.models.logistic_regression(DATA)
ALGORITHMS = fs.algorithms


def simulated(algorithm, rounds, aggregation=None, *, model=LINEAR, data=DATA, key=None, **more):
    simulation = fs.Simulation(model, data, algorithm, aggregation, **more)
    state, reports = simulation.init(key), []
    for state, report in simulation.run(state, rounds=rounds):
        reports.append(report)
    return simulation, state, reports


def flat(model, state):
    return np.asarray(model.ravel(state.params))


def test_a_seed_gives_the_same_run_to_the_last_bit():
    half = fs.selection.poisson_clients(0.5)
    runs = [simulated(ALGORITHMS.fed_avg(0.1, local_epochs=2), 3, selection=half, seed=seed)
            for seed in (4, 4, 5)]
    models = [flat(LINEAR, state) for _, state, _ in runs]
    np.testing.assert_array_equal(models[0], models[1])
    assert np.any(models[0] != models[2])
    same = [[report[:4] for report in reports] for _, _, reports in runs]
    assert str(same[0]) == str(same[1])
    assert runs[0][0].traces == {"local_sgd": 1, "step": 1}


@pytest.mark.parametrize("algorithm", [ALGORITHMS.fed_avg(0.1), ALGORITHMS.fed_avg_m(0.1)])
def test_only_the_first_round_compiles_anything(algorithm, caplog):
    simulation = fs.Simulation(LINEAR, DATA, algorithm, _integers(), seed=0)
    run = simulation.run(simulation.init(), rounds=3)

    def compiled():
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
            next(run)
        return sum("Compiling" in record.message for record in caplog.records)

    assert compiled() > 0
    assert compiled() == compiled() == 0


def test_every_round_of_a_run_can_be_run_again_from_its_state():
    simulation = fs.Simulation(LINEAR, DATA, ALGORITHMS.fed_avg_m(0.1),
                               selection=fs.selection.uniform_clients(2), seed=1)
    states = [simulation.init()]
    states += [state for state, _ in simulation.run(states[0], rounds=4)]
    for state in reversed(states[:-1]):
        for again, _ in simulation.run(state, rounds=4):
            np.testing.assert_array_equal(flat(LINEAR, again), flat(LINEAR, states[again.round]))


# -- a federation of the same parts -------------------------------------------------------------


def federated(algorithm, rounds, aggregation, **more):
    with fs.Federation(LINEAR, DATA, algorithm, aggregation, seed=3, **more) as federation:
        state = federation.init()
        for state, record in federation.run(state, rounds=rounds):
            pass
        rows = federation.personal(state)(range(4)) if algorithm.personal else np.zeros(0)
        return flat(LINEAR, state), rows, record


def _integers():
    return fs.chain(fs.privacy.clip(0.5), fs.privacy.quantise(bits=24))


@pytest.mark.parametrize(
    "algorithm, aggregation, aggregator, equal",
    [
        (ALGORITHMS.fed_avg(0.1, local_epochs=2), fs.chain, "untrusted", False),
        (ALGORITHMS.fed_avg(0.1, local_epochs=2), fs.chain, "semi-honest", True),
        (ALGORITHMS.fed_adam(0.1, server_learning_rate=0.01), _integers, "untrusted", True),
        (ALGORITHMS.ditto(0.1, lam=0.5), _integers, "untrusted", True),
        (ALGORITHMS.scaffold(0.05), fs.chain, "semi-honest", True),
    ],
    ids=["floats of messages", "floats of a total", "integers", "personal models", "scaffold"],
)
def test_a_federation_of_the_same_seed_ends_with_the_same_model(
        algorithm, aggregation, aggregator, equal):
    """Bit for bit, but where floats are added up in another order: messages one by one."""
    chosen = {"selection": fs.selection.uniform_clients(3)}
    wanted, rows, record = federated(algorithm, 3, aggregation(), aggregator=aggregator, **chosen)
    simulation, state, reports = simulated(algorithm, 3, aggregation(), seed=3, **chosen)
    if equal:
        np.testing.assert_array_equal(flat(LINEAR, state), wanted)
    np.testing.assert_allclose(flat(LINEAR, state), wanted, rtol=1e-5, atol=1e-6)
    assert np.any(wanted)
    if algorithm.personal:
        np.testing.assert_array_equal(simulation.personal(state)(range(4)), rows)
    assert record.metrics["training loss"] == pytest.approx(reports[-1].loss, rel=1e-5)


# -- cohorts of any size -------------------------------------------------------------------------


def _alone():
    """A selection, and a round in which it draws nobody after one in which it drew somebody."""
    selection = fs.selection.poisson_clients(0.3)
    people = Candidates(DATA.clients, DATA.offsets)
    sizes = [int(selection.draw(source(0), n, people, ()).alive.sum()) for n in range(1, 12)]
    (first, *_) = [n for n in range(2, 12) if sizes[n - 1] == 0 and sizes[n - 2] > 0]
    return selection, first


def test_a_round_of_nobody_adds_nothing_and_lets_the_servers_momentum_go_on():
    selection, nobody = _alone()
    for algorithm in (ALGORITHMS.ditto(0.1), ALGORITHMS.fed_avg_m(0.1)):
        simulation = fs.Simulation(LINEAR, DATA, algorithm, selection=selection)
        before, kept = simulation.init(), None
        for state, report in simulation.run(before, rounds=nobody):
            if report.round < nobody:
                before = state
                kept = simulation.personal(state)(range(4)) if algorithm.personal else None
        assert (report.clients, report.steps) == (0, 0) and np.isnan(report.loss)
        if algorithm.personal:
            np.testing.assert_array_equal(flat(LINEAR, state), flat(LINEAR, before))
            np.testing.assert_array_equal(simulation.personal(state)(range(4)), kept)
        else:  # the mean change is zero, and momentum takes it as a gradient of zero
            assert np.any(flat(LINEAR, state) != flat(LINEAR, before))
        assert set(simulation.traces.values()) == {1}


@pytest.fixture(scope="module")
def many():
    """10,000 clients of one record each."""
    random = np.random.default_rng(0)
    x = random.normal(size=(10_000, 3)).astype(np.float32)
    return fs.data.from_arrays(x, (x @ [1, 2, -1] > 0).astype(int), np.arange(10_000),
                               test_fraction=0.0)


def test_one_to_ten_thousand_clients_of_one_record(many):
    """With one record and one step each, FedAvg is a gradient step on the mean loss of all."""
    model = fs.models.logistic_regression(many)
    for cohort in (1, 2, 999, 10_000):
        simulation, state, reports = simulated(
            ALGORITHMS.fed_avg(0.5, batch_size=8), 2, model=model, data=many,
            selection=fs.selection.uniform_clients(cohort))
        assert [report[:3] for report in reports] == [(1, cohort, cohort), (2, cohort, cohort)]
        assert set(simulation.traces.values()) == {1}
    params = model.init(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda p: model.loss(p, many.x, many.y).mean()))
    for report in reports:
        value, gradient = loss(params)
        assert report.loss == pytest.approx(float(value), rel=1e-5)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    np.testing.assert_allclose(flat(model, state), model.ravel(params), atol=1e-5)


def test_clients_that_drew_no_record_send_nothing_and_keep_their_state():
    random = np.random.default_rng(2)
    data = fs.data.from_arrays(random.normal(size=(12, 3)), np.arange(12) % 2,
                               [*"abcdef", *"gggggg"], test_fraction=0.0)
    model, selection = fs.models.logistic_regression(data), fs.selection.poisson_records(0.5)
    drawn = selection.draw(source(0), 1, Candidates(data.clients, data.offsets), ()).counts
    assert (drawn == 0).any() and (drawn == 1).any()
    for algorithm in (ALGORITHMS.ditto(0.3, batch_size=2), ALGORITHMS.scaffold(0.3, batch_size=2)):
        simulation, state, (report,) = simulated(
            algorithm, 1, model=model, data=data, selection=selection)
        first = algorithm.client_state(model, model.init(jax.random.key(0)))
        rows = simulation.rounds.states.read(range(7))
        assert np.array_equal((rows != first).any(axis=1), drawn > 0)
        assert report.clients == 7 and np.isfinite(report.loss)
        assert report.steps == len(simulation.rounds.work.phases) * (-(-drawn // 2)).sum()


def test_clients_without_records_never_become_a_dataset():
    with pytest.raises(DataError, match="empty"):
        fs.data.FederatedDataset(
            name="gaps", clients=("full", "empty"), x=np.zeros((2, 3)), y=[0, 1],
            offsets=[0, 2, 2], test_x=np.zeros((0, 3)), test_y=[], test_offsets=[0, 0, 0],
            feature_names=("a", "b", "c"), classes=("no", "yes"))


def test_more_clients_than_exist_are_refused():
    with pytest.raises(SpecError, match=r"at least 5 clients .* got 4") as error:
        fs.Simulation(LINEAR, DATA, ALGORITHMS.fed_avg(0.1),
                      selection=fs.selection.uniform_clients(5))
    assert "4 or fewer" in error.value.fix


# -- reports, evaluation, personal models ----------------------------------------------------------


def test_reports_are_evaluated_when_asked():
    _, state, reports = simulated(ALGORITHMS.fed_avg(0.1), 5, evaluate_every=2)
    assert [report.round for report in reports if report.evaluation] == [2, 4]
    assert [report.round for report in reports] == [1, 2, 3, 4, 5]
    assert all(report.seconds > 0 for report in reports)
    again, state, _ = simulated(ALGORITHMS.fed_avg(0.1), 4)
    np.testing.assert_array_equal(again.evaluate(state).loss, reports[3].evaluation.loss)


def test_personal_models_are_evaluated_for_their_clients():
    simulation, state, _ = simulated(ALGORITHMS.ditto(0.1, lam=0.01, local_epochs=3), 4)
    personal = fs.training.evaluate(LINEAR, simulation.personal(state), DATA)
    rows = simulation.personal(state)([2, 0])
    assert rows.shape == (2, LINEAR.dim) and np.any(rows[0] != rows[1])
    alone = fs.training.evaluate(LINEAR, LINEAR.unravel(jnp.asarray(rows[0])), DATA)
    assert personal.loss[2] == pytest.approx(alone.loss[2], rel=1e-5)
    simulation, state, _ = simulated(ALGORITHMS.fed_avg(0.1), 1)
    with pytest.raises(SpecError, match="a client's own model needs .* got fed_avg"):
        simulation.personal(state)


def test_losses_are_means_over_steps():
    """One step a client at the first model: the mean of the clients' mean losses."""
    _, _, reports = simulated(ALGORITHMS.fed_avg(0.1, batch_size=1000), 1)
    params = LINEAR.init(jax.random.key(0))
    losses = [float(LINEAR.loss(params, DATA.x[DATA.rows(c)], DATA.y[DATA.rows(c)]).mean())
              for c in range(4)]
    assert reports[0].loss == pytest.approx(np.mean(losses), rel=1e-5)


# -- runs that diverge -----------------------------------------------------------------------------


def _squared(logits, y):
    return jnp.sum((logits - jax.nn.one_hot(y, 2)) ** 2, axis=-1)


@pytest.mark.parametrize("aggregation, batch_size", [
    (None, 1000),  # one step a round: each round is some 1e10 times worse
    (fs.chain(fs.privacy.clip(1.0)), 16),  # infinite within a round, and what is clipped is that
])
def test_a_learning_rate_that_is_too_high_names_the_round_and_the_clients(aggregation, batch_size):
    model = fs.models.from_flax(nn.Dense(2), DATA, loss=_squared)
    simulation = fs.Simulation(model, DATA, ALGORITHMS.fed_avg(1e9, batch_size=batch_size),
                               aggregation)
    state, kept = simulation.init(), []
    with pytest.raises(UpdateError, match=r"round \d+ .*NaN or infinity from \w+") as error:
        for state, _ in simulation.run(state, rounds=20):
            kept.append(state)
    assert any(client in str(error.value) for client in DATA.clients) and error.value.fix
    assert f"round {state.round + 1} " in str(error.value)
    assert len(kept) == state.round and (aggregation is not None or state.round > 0)
    assert np.isfinite(flat(model, state)).all()
    # A good state is good: another simulation goes on from it.
    good = kept[0]._replace(round=0) if kept else state
    calmer = fs.Simulation(model, DATA, ALGORITHMS.fed_avg(1e-3), fs.chain(fs.privacy.clip(1.0)))
    for after, report in calmer.run(good, rounds=2):
        assert np.isfinite(report.loss)
    assert after.round == 2


def test_a_server_that_diverges_by_itself_stops_before_it_makes_a_state(tmp_path):
    algorithm = ALGORITHMS.fed_avg(0.1, server=optax.sgd(1e38))
    simulation = fs.Simulation(LINEAR, DATA, algorithm, denominator=1e-3)
    state = simulation.init()
    with pytest.raises(UpdateError, match="round 1 needs a finite model after the server's step"):
        for state, _ in simulation.run(state, rounds=3):
            pass
    assert state.round == 0
    ledger = fs.ledger.embedded(tmp_path / "ledger.log")
    with fs.Federation(LINEAR, DATA, algorithm, fs.chain(), seed=0, denominator=1e-3,
                       folder=tmp_path / "run", ledger=ledger) as federation:
        for _ in range(2):  # the second time from what the clients sent already
            with pytest.raises(UpdateError, match="round 1 needs a finite model"):
                next(federation.run(federation.init(), rounds=1))
        assert federation.records == [] and ledger.confirmed_rounds() == 0


def _with_bad_client():
    """Client "wild" has records of 1e30: whoever trains on them is infinite at once."""
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 3)).astype(np.float32)
    x[40:] *= 1e30
    y = np.where(np.arange(60) < 40, x[:, 0] > 0, np.arange(60) % 2)  # a half is told wrongly
    return fs.data.from_arrays(x, y.astype(int),
                               np.repeat(["calm", "even", "wild"], 20), test_fraction=0.0)


class Sparing:
    """All clients in each round, but "wild" only in round 3, and not then if spared."""

    def __init__(self):
        self.spared = False
        everyone = fs.selection.all_records()

        def draw(source, round, candidates, state):
            cohort = everyone.draw(source, round, candidates, state)
            if round == 3 and not self.spared:
                return cohort
            alive, indices = cohort.alive.copy(), list(cohort.indices)
            alive[2], indices[2] = False, indices[2][:0]
            return cohort._replace(alive=alive, indices=tuple(indices))

        self.selection = everyone._replace(draw=draw)


@pytest.mark.parametrize(
    "algorithm, aggregation",
    [
        (ALGORITHMS.fed_avg(1e10), None),
        (ALGORITHMS.fed_avg(1e10), fs.chain(fs.privacy.clip(1.0))),
        (ALGORITHMS.scaffold(1e10), None),
        # The global model is fine; the personal one alone is not.
        (ALGORITHMS.ditto(1e-3, personal_learning_rate=1e10, lam=0.0), None),
    ],
    ids=["floats", "clipped", "scaffold", "personal model alone"],
)
def test_after_a_client_diverged_the_run_goes_on_as_if_nothing_had_happened(algorithm, aggregation):
    data = _with_bad_client()
    model, sparing = fs.models.logistic_regression(data), Sparing()
    simulation = fs.Simulation(model, data, algorithm, aggregation, selection=sparing.selection,
                               chunk_clients=2)
    state = simulation.init()
    for _ in range(2):  # it fails alike again
        with pytest.raises(UpdateError, match=r"round 3 .* infinity from wild\b") as error:
            for state, _ in simulation.run(state, rounds=4):
                pass
        assert "calm" not in str(error.value) and state.round == 2
        assert "after round 2 is unharmed" in error.value.fix
    sparing.spared = True
    for state, report in simulation.run(state, rounds=4):
        assert report.clients == 2
    whole, calm, _ = simulated(algorithm, 4, aggregation, model=model, data=data,
                               selection=sparing.selection, chunk_clients=2)
    np.testing.assert_array_equal(flat(model, state), flat(model, calm))
    if simulation.rounds.states is not None:
        np.testing.assert_array_equal(simulation.rounds.states.read(range(3)),
                                      whole.rounds.states.read(range(3)))
    assert set(simulation.traces.values()) <= {1, 2}  # naming the client is a program of its own


def test_a_loss_that_is_no_number_shows_and_a_finite_model_goes_on():
    def loss(params, x, y):
        return LINEAR.loss(params, x, y) + jnp.where(x[:, 0] > 0, jnp.nan, 0.0)

    model = dataclasses.replace(LINEAR, loss=loss)
    _, state, reports = simulated(ALGORITHMS.fed_avg(0.1), 2, model=model)
    _, wanted, _ = simulated(ALGORITHMS.fed_avg(0.1), 2)
    assert all(np.isnan(report.loss) for report in reports)
    np.testing.assert_allclose(flat(LINEAR, state), flat(LINEAR, wanted), atol=1e-6)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"evaluate_every": -1}, "evaluate_every"),
        ({"evaluate_every": 0.5}, "evaluate_every"),
        ({"chunk_clients": 0}, "chunk_clients"),
        ({"layout": "padded"}, "layout"),
        ({"num_lanes": 0, "layout": "lanes"}, "num_lanes"),
        ({"devices": []}, "device"),
        ({"denominator": 0}, "denominator"),
        ({"denominator": "all"}, "denominator"),
        ({"seed": "x"}, "seed"),
        ({"model": fs.models.logistic_regression(4, 2)}, "a dataset of 4 features"),
        ({"aggregation": fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=24),
                                  fs.he.encrypt(fs.he.threshold(2, 2)))}, "without encryption"),
        ({"selection": fs.selection.importance_clients(2, by=[1.0, 2.0])}, "importance_clients"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_compiled(wrong, words):
    parts = {"model": LINEAR, "data": DATA, "algorithm": ALGORITHMS.fed_avg(0.1), **wrong}
    with pytest.raises((SpecError, ParameterError), match=words) as error:
        fs.Simulation(**parts)
    assert error.value.fix


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "3"])
def test_a_number_of_rounds_is_one(rounds):
    simulation = fs.Simulation(LINEAR, DATA, ALGORITHMS.fed_avg(0.1))
    with pytest.raises(SpecError, match="a number of rounds, at least 1"):
        simulation.run(simulation.init(), rounds=rounds)


def test_clients_that_keep_a_state_go_on_from_the_last_round_only():
    simulation = fs.Simulation(LINEAR, DATA, ALGORITHMS.ditto(0.1))
    start = simulation.init()
    ((state, _),) = simulation.run(start, rounds=1)
    with pytest.raises(SpecError, match="the state after round 1, of which the clients' own"):
        next(simulation.run(start, rounds=1))
    ((again, _),) = simulation.run(simulation.init(), rounds=1)  # everyone afresh
    np.testing.assert_array_equal(flat(LINEAR, again), flat(LINEAR, state))
    fresh = fs.Simulation(LINEAR, DATA, ALGORITHMS.ditto(0.1))
    with pytest.raises(SpecError, match=r"Begin with init\(\)"):
        next(fresh.run(start, rounds=1))


def test_labels_out_of_range_never_become_a_dataset():
    for labels in ([0, 2], [0, -1]):
        with pytest.raises(DataError, match="label|class"):
            fs.data.from_arrays(np.zeros((2, 3)), labels, ["a", "b"], classes=2, test_fraction=0.0)
