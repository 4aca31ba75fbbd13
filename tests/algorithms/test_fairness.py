"""q-FedAvg, agnostic and tilted averaging: rounds by hand, limits, and more even service."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.algorithms.fairness.agnostic import exponentiated, projected
from fedjax_secure.core import SpecError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.selection import uniform_clients

RATE = 0.3


def dataset(sizes, classes=3, seed=0, rule=None) -> FederatedDataset:
    """Gaussian records; ``rule(client, x)`` gives the labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(sizes), 4)).astype(np.float32)
    client = np.repeat(np.arange(len(sizes)), sizes)
    if rule is None:
        y = rng.integers(0, classes, len(x))
    else:
        y = np.array([rule(c, row) for c, row in zip(client, x, strict=True)])
    offsets = np.cumsum([0, *sizes])
    return FederatedDataset(
        name="made up", clients=tuple(f"c{i}" for i in range(len(sizes))), x=x, y=y,
        offsets=offsets, test_x=x, test_y=y, test_offsets=offsets,
        feature_names=("p", "q", "r", "s"), classes=tuple(map(str, range(classes))))


SMALL = dataset((6, 10, 3))
MODEL = fs.models.logistic_regression(SMALL)


# -- plain numpy ---------------------------------------------------------------------------------


def losses_of(w, b, x, y):
    logits = x @ w + b
    logits = logits - logits.max(1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(y)), y]), p


def steps(w, b, x, y, number):
    """Gradient steps on all of a client's records."""
    for _ in range(number):
        _, p = losses_of(w, b, x, y)
        p = p.copy()
        p[np.arange(len(y)), y] -= 1
        w, b = w - RATE * x.T @ p / len(y), b - RATE * p.mean(0)
    return w, b


def clients_of(data):
    for c in range(len(data.clients)):
        rows = slice(data.offsets[c], data.offsets[c + 1])
        yield data.x[rows].astype(np.float64), data.y[rows]


def start(seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 3)), rng.normal(size=3)


def as_params(w, b):
    flat = MODEL.ravel(MODEL.init(jax.random.key(0)))
    assert flat.shape == (15,)
    leaves, tree = jax.tree.flatten(MODEL.init(jax.random.key(0)))
    named = {(4, 3): w, (3,): b}
    return jax.tree.unflatten(tree, [jnp.asarray(named[leaf.shape], jnp.float32)
                                     for leaf in leaves])


def weights_of(params):
    by_shape = {leaf.shape: np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)}
    return by_shape[(4, 3)], by_shape[(3,)]


def play(algorithm, rounds=1, first=None, data=SMALL, **options):
    """Rounds of full batches from given weights; returns the states."""
    made = fs.Simulation(MODEL, data, algorithm, **options)
    state = made.init()
    if first is not None:
        params = as_params(*first)
        made.rounds.open_states(params)
        state = made.rounds.fresh(params, {})
    states = [state]
    for state, _ in made.run(state, rounds=rounds):
        states.append(state)
    return states


def looked(w, b, data=SMALL, local=2):
    """Each client's count, loss at the global model, and change after its local steps."""
    for x, y in clients_of(data):
        after = steps(w, b, x, y, local)
        yield len(y), losses_of(w, b, x, y)[0].mean(), (after[0] - w, after[1] - b)


# -- q-FedAvg ------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_a_round_of_q_fed_avg_by_hand(q):
    """Algorithm 2 as it is written: Delta_k and h_k with L = 1 / learning rate."""
    w, b = start()
    total_w, total_b, total_h, lipschitz = 0.0, 0.0, 0.0, 1 / RATE
    for n, loss, (dw, db) in looked(w, b):
        gw, gb = -lipschitz * dw, -lipschitz * db  # the paper's L (w - w_k)
        h = q * loss ** (q - 1) * (np.sum(gw**2) + np.sum(gb**2)) + lipschitz * loss**q
        total_w, total_b = total_w + n * loss**q * gw, total_b + n * loss**q * gb
        total_h += n * h
    expected = w - total_w / total_h, b - total_b / total_h
    algorithm = fs.algorithms.q_fed_avg(RATE, q=q, local_epochs=2, batch_size=16)
    found = weights_of(play(algorithm, first=(w, b))[1].params)
    for here, there in zip(found, expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("fair", [
    lambda **o: fs.algorithms.q_fed_avg(RATE, q=0.0, **o),
    lambda **o: fs.algorithms.tilted_fed_avg(RATE, t=0.0, **o)])
@pytest.mark.parametrize("weighted", [True, False])
def test_without_fairness_it_is_fed_avg(fair, weighted):
    settings = {"local_epochs": 2, "batch_size": 4, "weighted": weighted}
    one = play(fair(**settings), rounds=4)
    other = play(fs.algorithms.fed_avg(RATE, **settings), rounds=4)
    for here, there in zip(one, other, strict=True):
        np.testing.assert_allclose(MODEL.ravel(here.params), MODEL.ravel(there.params), atol=2e-6)


# -- TERM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [-2.0, 0.5, 4.0])
def test_rounds_of_tilted_averaging_by_hand(t):
    """The running estimate of the tilted loss in the paper's form, without any offset."""
    w, b = start()
    estimate = None  # of the mean of exp(t F)
    for _ in range(3):
        clients = list(looked(w, b))
        total = sum(n for n, _, _ in clients)
        now = sum(n * np.exp(t * loss) for n, loss, _ in clients) / total
        estimate = now if estimate is None else 0.3 * now + 0.7 * estimate
        scale = [n / total * np.exp(t * loss) / estimate for n, loss, _ in clients]
        w = w + sum(s * dw for s, (_, _, (dw, _)) in zip(scale, clients, strict=True))
        b = b + sum(s * db for s, (_, _, (_, db)) in zip(scale, clients, strict=True))
    algorithm = fs.algorithms.tilted_fed_avg(
        RATE, t=t, estimate_rate=0.3, local_epochs=2, batch_size=16)
    last = play(algorithm, rounds=3, first=start())[-1]
    for here, there in zip(weights_of(last.params), (w, b), strict=True):
        np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-5)
    assert float(last.opt_state["offset"]) == pytest.approx(np.log(estimate), abs=1e-4)


def test_a_large_tilt_stays_finite_and_takes_the_worst_client():
    w, b = start()
    for t in (200.0, -200.0):
        algorithm = fs.algorithms.tilted_fed_avg(
            RATE, t=t, estimate_rate=1.0, local_epochs=2, batch_size=16)
        states = play(algorithm, rounds=12, first=(w, b))
        assert all(np.isfinite(MODEL.ravel(state.params)).all() for state in states)
        # the offset climbs to the tilted loss, from where only one client counts
        before, after = weights_of(states[-2].params), weights_of(states[-1].params)
        clients = list(looked(*before))
        best = max(clients, key=lambda client: np.sign(t) * client[1])
        gap = sorted(abs(loss - best[1]) for _, loss, _ in clients)[1]
        if gap * 200 > 20:
            np.testing.assert_allclose(after[0] - before[0], best[2][0], atol=1e-4)


def test_a_round_with_fewer_clients_than_expected_still_estimates_a_mean():
    states = play(fs.algorithms.tilted_fed_avg(RATE, t=3.0, estimate_rate=1.0, batch_size=16),
                  denominator=30.0, first=start())
    offset = float(states[1].opt_state["offset"])
    clients = list(looked(*start()))
    total = sum(n for n, _, _ in clients)
    truth = np.log(sum(n * np.exp(3.0 * loss) for n, loss, _ in clients) / total)
    assert offset == pytest.approx(truth, abs=1e-4)


# -- agnostic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascent", ["exponentiated", "projected"])
def test_rounds_of_agnostic_averaging_by_hand(ascent):
    """Two domains of which one has two clients; weights start even."""
    domains, rate = np.array([0, 1, 0]), 0.4
    (w, b), lam = start(), np.array([0.5, 0.5])
    for _ in range(3):
        clients = list(looked(w, b))
        examples = [sum(n for d, (n, _, _) in zip(domains, clients, strict=True) if d == k)
                    for k in (0, 1)]
        losses, move_w, move_b = np.zeros(2), 0.0, 0.0
        for d, (n, loss, (dw, db)) in zip(domains, clients, strict=True):
            losses[d] += n / examples[d] * loss
            move_w, move_b = (move_w + lam[d] * n / examples[d] * dw,
                              move_b + lam[d] * n / examples[d] * db)
        w, b = w + move_w, b + move_b
        if ascent == "exponentiated":
            lam = lam * np.exp(rate * losses)
            lam = lam / lam.sum()
        else:  # on two numbers the projection has a closed form
            first = np.clip(0.5 + (lam + rate * losses) @ [0.5, -0.5], 0, 1)
            lam = np.array([first, 1 - first])
    algorithm = fs.algorithms.agnostic_fed_avg(
        RATE, domain_learning_rate=rate, domains=domains, ascent=ascent, local_epochs=2,
        batch_size=16)
    last = play(algorithm, rounds=3, first=start())[-1]
    np.testing.assert_allclose(last.opt_state["domain_weights"], lam, rtol=1e-4)
    for here, there in zip(weights_of(last.params), (w, b), strict=True):
        np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-5)


def test_the_exponentiated_step_is_that_of_fedjax():
    """Published vector: fedjax 0.0.17, algorithms/agnostic_fed_avg_test.py, update of weights."""
    found = exponentiated(jnp.array([0.1, 0.2, 0.3, 0.4]), 0.1 * jnp.array([10.0, 0.0, 5.0, 0.0]))
    np.testing.assert_allclose(found, [0.198931, 0.14636526, 0.36197326, 0.2927305], rtol=1e-5)


_projected = jax.jit(projected)


@given(st.sampled_from([1, 2, 5, 12]).flatmap(  # each size compiles its own
    lambda size: st.lists(st.floats(-3, 3, width=32), min_size=size, max_size=size)))
def test_the_projection_is_on_the_simplex_and_nearest(values):
    """Optimality: what is kept was lowered by one same amount, and the rest is below it."""
    values = np.array(values, np.float32)
    point = np.asarray(_projected(values))
    assert abs(point.sum() - 1) < 1e-5 and (point >= 0).all()
    lowered = (values - point)[point > 1e-6]
    assert np.ptp(lowered) < 1e-5
    assert (values[point <= 1e-6] <= lowered.max() + 1e-5).all()


def test_a_domain_that_is_not_heard_keeps_its_loss_and_never_moves_the_model():
    algorithm = fs.algorithms.agnostic_fed_avg(
        RATE, domain_learning_rate=0.2, batch_size=16).for_federation(3, 1.0)
    params = MODEL.init(jax.random.key(0))
    state = algorithm.init(MODEL, params)
    mean = jnp.zeros(15 + 6).at[15 + 1].set(0.7).at[15 + 3 + 1].set(1.0).at[0].set(1.0)
    moved, state = algorithm.step(MODEL, params, state, mean)
    np.testing.assert_allclose(state["domain_weights"], [1 / 3] * 3, rtol=1e-6)
    assert state["known"].tolist() == [0, 1, 0]
    assert float(MODEL.ravel(moved)[0]) == pytest.approx(1.0)  # divided by 3 x 1/3
    other = jnp.zeros(15 + 6).at[15].set(1.7).at[15 + 3].set(1.0)
    _, state = algorithm.step(MODEL, moved, state, other)
    assert state["losses"].tolist() == pytest.approx([1.7, 0.7, 0.0])
    weights = np.exp(0.2 * np.array([1.7, 0.7, 1.2]))
    np.testing.assert_allclose(state["domain_weights"], weights / weights.sum(), rtol=1e-5)
    same, unchanged = algorithm.step(MODEL, moved, state, jnp.zeros(15 + 6))
    np.testing.assert_array_equal(MODEL.ravel(same), MODEL.ravel(moved))
    np.testing.assert_array_equal(unchanged["domain_weights"], state["domain_weights"])


def test_domains_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match="a domain for each of 3 clients, got 2"):
        fs.Simulation(MODEL, SMALL, fs.algorithms.agnostic_fed_avg(0.1, domains=[0, 1]))
    for domains in ([0, 2], [0.5, 1.0], [], [[0]], [-1, 0]):
        with pytest.raises(SpecError, match="without gaps"):
            fs.algorithms.agnostic_fed_avg(0.1, domains=domains)
    with pytest.raises(SpecError, match="for_federation"):
        fs.algorithms.agnostic_fed_avg(0.1).work(MODEL, fs.chain())


# -- what it is for ------------------------------------------------------------------------------

#: Twenty clients; on the last three the label turns the other way round in one feature.
SKEWED = dataset((40,) * 20, classes=2, seed=5, rule=lambda c, x: int(
    x[0] + (x[1] if c < 17 else -2.0 * x[1]) > 0))
LINEAR = fs.models.logistic_regression(SKEWED)


def spread(algorithm, rounds=60, **options):
    made = fs.Simulation(LINEAR, SKEWED, algorithm, **options)
    state = made.init()
    for state, _ in made.run(state, rounds=rounds):
        pass
    losses = made.rounds.losses(state.params, range(20))
    accuracy = np.sort(np.asarray(made.evaluate(state).accuracy))
    return losses, accuracy


@pytest.fixture(scope="module")
def plain():
    return spread(fs.algorithms.fed_avg(0.2, batch_size=20))


@pytest.mark.parametrize("algorithm, rounds", [
    (fs.algorithms.q_fed_avg(0.2, q=4.0, batch_size=20), 150),
    (fs.algorithms.tilted_fed_avg(0.2, t=4.0, batch_size=20), 60),
    (fs.algorithms.agnostic_fed_avg(0.2, domain_learning_rate=0.1, batch_size=20), 60),
    (fs.algorithms.agnostic_fed_avg(0.2, domain_learning_rate=0.02, ascent="projected",
                                    domains=[0] * 17 + [1] * 3, batch_size=20), 60),
], ids=["q", "tilted", "agnostic by client", "agnostic by domain"])
def test_the_worst_served_are_served_better_and_more_evenly(plain, algorithm, rounds):
    losses, accuracy = spread(algorithm, rounds)
    assert losses.var() < 0.6 * plain[0].var()
    assert losses.max() < 0.9 * plain[0].max()
    assert accuracy[:2].mean() > plain[1][:2].mean() + 0.03  # the worst tenth of the clients
    assert accuracy.var() < plain[1].var()


def test_a_negative_tilt_gives_up_on_the_few(plain):
    losses, _ = spread(fs.algorithms.tilted_fed_avg(0.2, t=-4.0, batch_size=20))
    assert losses[:17].mean() < plain[0][:17].mean() and losses[17:].min() > plain[0][17:].mean()


def test_fairness_with_a_part_of_the_clients_each_round(plain):
    losses, accuracy = spread(fs.algorithms.tilted_fed_avg(0.2, t=4.0, batch_size=20),
                              rounds=100, selection=uniform_clients(8))
    assert losses.var() < plain[0].var() and accuracy[:2].mean() > plain[1][:2].mean()
