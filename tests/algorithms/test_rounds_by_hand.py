"""Rounds of each algorithm against plain numpy, written from the papers' formulas; and where
algorithms end on quadratic clients, whose optima are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Cohort, Sampling, SpecError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.selection import Selection

A = fs.algorithms
CURVATURE = (0.5, 2.0)  # of a record's loss, by its class
FIRST = np.array([0.5, -1.0])


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Each record's loss is curvature / 2 * ||w - x||^2: the optima are known."""

    name: str = "quadratic"
    num_features: int = 2
    num_classes: int = 2
    dim: int = 2

    def init(self, key):
        return {"w": jnp.asarray(FIRST, jnp.float32)}

    def apply(self, params, x):
        return x @ params["w"][:, None]

    def loss(self, params, x, y):
        return jnp.asarray(CURVATURE)[y] / 2 * jnp.sum((params["w"] - x) ** 2, axis=1)

    def probabilities(self, logits):
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=1)

    def ravel(self, params):
        return params["w"]

    def unravel(self, flat):
        return {"w": flat}


def dataset(x, y, sizes) -> FederatedDataset:
    none = np.zeros((0, 2)), np.zeros(0, int), np.zeros(len(sizes) + 1, int)
    return FederatedDataset(
        name="quadratics", clients=tuple(map(str, range(len(sizes)))), x=x, y=y,
        offsets=np.cumsum([0, *sizes]), test_x=none[0], test_y=none[1], test_offsets=none[2],
        feature_names=("p", "q"), classes=("0", "1"))


def simulate(data, algorithm, rounds, cohorts=None, share=None):
    """The last state, and the simulation; each client's records in their order."""
    clients = data.num_clients
    cohorts = [range(clients)] if cohorts is None else cohorts

    def draw(source, round, candidates, state):
        alive = np.isin(np.arange(clients), cohorts[(round - 1) % len(cohorts)])
        indices = tuple(data.rows(c) if alive[c] else np.zeros(0, np.int32)
                        for c in range(clients))
        return Cohort(round, candidates.clients, indices, alive, share=share)

    selection = Selection("scripted", Sampling("all", 1.0, "client"), draw,
                          expected_clients=lambda n, available=None: float(len(cohorts[0])))
    simulation = fs.Simulation(Quadratic(), data, algorithm, selection=selection)
    state = simulation.init()
    for state, _ in simulation.run(state, rounds=rounds):
        pass
    return state, simulation


# -- rounds by hand -------------------------------------------------------------------------------

SIZES = (5, 8, 3, 7)
COHORTS = ((0, 2), (1, 2), (3, 0), (2, 1))  # two of four clients each round
RATE = 0.1


class Hand:
    """Plain numpy in float64: a client's batches, and gradients of their mean loss."""

    def __init__(self, batch_size, epochs):
        random = np.random.default_rng(11)
        self.x = random.normal(size=(sum(SIZES), 2)).astype(np.float32).astype(np.float64)
        self.y = random.integers(0, 2, sum(SIZES))
        self.h = np.array(CURVATURE)[self.y]
        self.batch_size, self.epochs = batch_size, epochs
        self.ends = np.cumsum([0, *SIZES])

    def data(self):
        return dataset(self.x, self.y, SIZES)

    def rows(self, k):
        return np.arange(self.ends[k], self.ends[k + 1])

    def batches(self, k):
        rows = self.rows(k)
        one = [rows[i: i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return one * self.epochs

    def gradient(self, w, rows):
        return (self.h[rows, None] * (w - self.x[rows])).mean(axis=0)

    def weights(self, cohort):
        return {k: SIZES[k] * len(cohort) / sum(SIZES[j] for j in cohort) for k in cohort}


def hand_fed_prox(hand, mu):
    x = FIRST
    for cohort in COHORTS:
        total, weight = 0, hand.weights(cohort)
        for k in cohort:
            w = x
            for batch in hand.batches(k):
                w = w - RATE * (hand.gradient(w, batch) + mu * (w - x))
            total = total + weight[k] * (w - x)
        x = x + total / len(cohort)
    return x


def hand_scaffold(hand, option, server_rate):
    x, c, c_of = FIRST, np.zeros(2), np.zeros((4, 2))
    for cohort in COHORTS:
        moved, renewed = 0, 0
        for k in cohort:
            y = x
            batches = hand.batches(k)
            for batch in batches:
                y = y - RATE * (hand.gradient(y, batch) - c_of[k] + c)
            new = (hand.gradient(x, hand.rows(k)) if option == 1
                   else c_of[k] - c + (x - y) / (len(batches) * RATE))
            moved, renewed = moved + (y - x), renewed + (new - c_of[k])
            c_of[k] = new
        x = x + server_rate * moved / len(cohort)
        c = c + len(cohort) / 4 * (renewed / len(cohort))
    np.testing.assert_allclose(c, c_of.mean(axis=0), atol=1e-12)  # the paper's invariant
    return x, c, c_of


def hand_fed_dyn(hand, alpha):
    x, h, kept = FIRST, np.zeros(2), np.zeros((4, 2))
    for cohort in COHORTS:
        models = []
        for k in cohort:
            w = x
            for batch in hand.batches(k):
                w = w - RATE * (hand.gradient(w, batch) - kept[k] + alpha * (w - x))
            kept[k] = kept[k] - alpha * (w - x)
            models.append(w)
        h = h - alpha / 4 * sum(w - x for w in models)
        x = sum(models) / len(cohort) - h / alpha
    return x, h, kept


def hand_fed_nova(hand, momentum):
    x = FIRST
    for cohort in COHORTS:
        weight = {k: share / len(cohort) for k, share in hand.weights(cohort).items()}
        direction, effective = 0, 0
        for k in cohort:
            w, buffer = x, 0
            batches = hand.batches(k)
            for batch in batches:
                buffer = momentum * buffer + hand.gradient(w, batch)
                w = w - RATE * buffer
            t = len(batches)
            a = sum((1 - momentum ** (t - j)) / (1 - momentum) for j in range(t))
            direction = direction + weight[k] * (x - w) / a
            effective += weight[k] * a
        x = x - effective * direction
    return x


def hand_mime_lite(hand, momentum):
    x, s = FIRST, np.zeros(2)
    for cohort in COHORTS:
        moved, gradient, weight = 0, 0, hand.weights(cohort)
        for k in cohort:
            y = x
            for batch in hand.batches(k):
                y = y - RATE * (hand.gradient(y, batch) + momentum * s)
            moved = moved + weight[k] * (y - x) / len(cohort)
            gradient = gradient + weight[k] * hand.gradient(x, hand.rows(k)) / len(cohort)
        x, s = x + moved, gradient + momentum * s
    return x, s


def hand_ditto(hand, lam, personal_rate):
    x, v = FIRST, np.tile(FIRST, (4, 1))
    for cohort in COHORTS:
        moved, weight = 0, hand.weights(cohort)
        for k in cohort:
            w = x
            for batch in hand.batches(k):
                w = w - RATE * hand.gradient(w, batch)
                v[k] = v[k] - personal_rate * (hand.gradient(v[k], batch) + lam * (v[k] - x))
            moved = moved + weight[k] * (w - x) / len(cohort)
        x = x + moved
    return x, v


def hand_apfl(hand, alpha, adaptive):
    x, v, a = FIRST, np.tile(FIRST, (4, 1)), np.full(4, alpha)
    for cohort in COHORTS:
        moved, weight = 0, hand.weights(cohort)
        for k in cohort:
            w = x
            for batch in hand.batches(k):
                at_mixture = hand.gradient(a[k] * v[k] + (1 - a[k]) * w, batch)
                slope = (v[k] - w) @ at_mixture
                v[k] = v[k] - RATE * a[k] * at_mixture
                w = w - RATE * hand.gradient(w, batch)
                if adaptive:
                    a[k] = np.clip(a[k] - RATE * slope, 0, 1)
            moved = moved + weight[k] * (w - x) / len(cohort)
        x = x + moved
    return x, np.column_stack([v, a]), a[:, None] * v + (1 - a[:, None]) * x


@pytest.fixture(scope="module", params=[(3, 1), (100, 3)], ids=["batches", "epochs"])
def hand(request):
    return Hand(*request.param)


def compare(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5, atol=2e-6)


def trained(hand, make, **settings):
    settings = {"batch_size": hand.batch_size, "local_epochs": hand.epochs, **settings}
    state, simulation = simulate(hand.data(), make(**settings), len(COHORTS), COHORTS)
    assert all(count == 1 for count in simulation.traces.values()), simulation.traces
    return state, simulation


def rows(simulation):
    return simulation.rounds.states.read(np.arange(4))


def test_fed_prox_by_hand(hand):
    state, _ = trained(hand, A.fed_prox, learning_rate=RATE, mu=0.7)
    compare(state.params["w"], hand_fed_prox(hand, 0.7))


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_by_hand(hand, option):
    state, simulation = trained(
        hand, A.scaffold, learning_rate=RATE, option=option, server_learning_rate=0.8)
    x, c, c_of = hand_scaffold(hand, option, 0.8)
    compare(state.params["w"], x)
    compare(state.opt_state["control"], c)
    compare(rows(simulation), c_of)


def test_fed_dyn_by_hand(hand):
    state, simulation = trained(hand, A.fed_dyn, learning_rate=RATE, alpha=0.4)
    x, h, kept = hand_fed_dyn(hand, 0.4)
    compare(state.params["w"], x)
    compare(state.opt_state["h"], h)
    compare(rows(simulation), kept)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fed_nova_by_hand(hand, momentum):
    state, _ = trained(
        hand, A.fed_nova, learning_rate=RATE, momentum=momentum, typical_steps=3.0)
    compare(state.params["w"], hand_fed_nova(hand, momentum))


def test_mime_lite_by_hand(hand):
    state, _ = trained(hand, A.mime_lite, base=optax.sgd(RATE, momentum=0.5))
    x, s = hand_mime_lite(hand, 0.5)
    compare(state.params["w"], x)
    compare(jax.tree.leaves(state.opt_state)[0], s)


def test_ditto_by_hand(hand):
    state, simulation = trained(
        hand, A.ditto, learning_rate=RATE, lam=0.3, personal_learning_rate=0.2)
    x, v = hand_ditto(hand, 0.3, 0.2)
    compare(state.params["w"], x)
    compare(rows(simulation), v)
    compare(simulation.personal(state)([3, 1]), v[[3, 1]])


@pytest.mark.parametrize("adaptive", [False, True])
def test_apfl_by_hand(hand, adaptive):
    state, simulation = trained(
        hand, A.apfl, learning_rate=RATE, alpha=0.3, adaptive=adaptive)
    x, kept, mixtures = hand_apfl(hand, 0.3, adaptive)
    assert (np.ptp(kept[:, 2]) > 1e-3) == adaptive
    compare(state.params["w"], x)
    compare(rows(simulation), kept)
    compare(simulation.personal(state)(range(4)), mixtures)


# -- where algorithms end ------------------------------------------------------------------------

#: Two clients with optima far apart and curvatures of 0.5 and 2; each has one record.
CENTRES = np.array([[0.0, 0.0], [4.0, -2.0]])
TWO = dataset(CENTRES, [0, 1], (1, 1))
OPTIMUM = np.average(CENTRES, axis=0, weights=CURVATURE)
ETA, STEPS = 0.2, 10


def fed_avg_end(steps):
    """Where FedAvg's changes cancel: client k moves by (1 - (1 - eta h_k)^steps)(c_k - w)."""
    pull = 1 - (1 - ETA * np.array(CURVATURE)) ** np.asarray(steps)
    return np.average(CENTRES, axis=0, weights=pull)


def end(algorithm, rounds, **options):
    return np.asarray(simulate(TWO, algorithm, rounds, **options)[0].params["w"])


def test_fed_avg_drifts_to_another_point():
    drifted = fed_avg_end(STEPS)
    assert np.linalg.norm(drifted - OPTIMUM) > 0.8
    np.testing.assert_allclose(end(A.fed_avg(ETA, local_epochs=STEPS), 40), drifted, atol=1e-5)
    # with one local step there is no drift
    np.testing.assert_allclose(end(A.fed_avg(ETA), 80), OPTIMUM, atol=1e-5)


@pytest.mark.parametrize(("algorithm", "rounds"), [
    (A.scaffold(ETA, local_epochs=STEPS), 120),
    (A.scaffold(ETA, local_epochs=STEPS, option=1), 120),
    (A.fed_dyn(ETA, alpha=0.5, local_epochs=STEPS), 200),
], ids=["scaffold", "scaffold option 1", "fed_dyn"])
def test_drift_is_removed(algorithm, rounds):
    np.testing.assert_allclose(end(algorithm, rounds), OPTIMUM, atol=1e-4)


def test_drift_is_removed_where_one_client_takes_part_at_a_time():
    alternating = [(0,), (1,)]
    found = end(A.scaffold(0.05, local_epochs=STEPS, server_learning_rate=0.5), 299,
                cohorts=alternating)
    plain = end(A.fed_avg(0.05, local_epochs=STEPS, server=optax.sgd(0.5)), 299,
                cohorts=alternating)
    # FedAvg swings between the clients; both control variates have found the common gradient
    assert np.linalg.norm(found - OPTIMUM) < 1e-3 < 0.2 < np.linalg.norm(plain - OPTIMUM)


def test_fed_prox_drifts_less():
    """Stationary: client k moves by (1 - (1 - eta(h_k + mu))^steps) h_k/(h_k + mu) (c_k - w)."""
    mu, h = 2.0, np.array(CURVATURE)
    pull = (1 - (1 - ETA * (h + mu)) ** STEPS) * h / (h + mu)
    expected = np.average(CENTRES, axis=0, weights=pull)
    np.testing.assert_allclose(
        end(A.fed_prox(ETA, mu=mu, local_epochs=STEPS), 60), expected, atol=1e-5)
    drift = np.linalg.norm(fed_avg_end(STEPS) - OPTIMUM)
    assert np.linalg.norm(expected - OPTIMUM) < 0.6 * drift


def test_fed_nova_ends_at_the_optimum_of_the_mean_loss():
    """Stragglers: one client completes 30% of its steps. Both curvatures are made equal."""
    data, rate, share = dataset(CENTRES, [0, 0], (1, 1)), 0.02, np.array([1.0, 0.3], np.float32)
    middle = CENTRES.mean(axis=0)
    options = {"local_epochs": 10, "batch_size": 4}

    def ends(algorithm):
        return np.asarray(simulate(data, algorithm, 150, share=share)[0].params["w"])

    normalised, plain = ends(A.fed_nova(rate, **options)), ends(A.fed_avg(rate, **options))
    pull = (1 - (1 - rate * CURVATURE[0]) ** np.array([10, 3])) / np.array([10, 3])
    np.testing.assert_allclose(normalised, np.average(CENTRES, axis=0, weights=pull), atol=1e-4)
    assert np.linalg.norm(normalised - middle) < 0.1 * np.linalg.norm(plain - middle)


def test_ditto_ends_between_the_own_and_the_global_optimum():
    """The personal optimum is (h_k c_k + lam w) / (h_k + lam), w the global model."""
    lam, h = 0.5, np.array(CURVATURE)[:, None]
    state, simulation = simulate(TWO, A.ditto(ETA, lam=lam, personal_epochs=10), 80)
    w = np.asarray(state.params["w"])
    np.testing.assert_allclose(w, OPTIMUM, atol=1e-5)
    np.testing.assert_allclose(simulation.personal(state)([0, 1]),
                               (h * CENTRES + lam * w) / (h + lam), atol=1e-4)


def test_an_algorithm_that_needs_its_federations_size_says_so():
    for algorithm in (A.scaffold(0.1), A.fed_dyn(0.1)):
        with pytest.raises(SpecError, match="for_federation"):
            algorithm.init(Quadratic(), Quadratic().init(None))
        with pytest.raises(SpecError, match="denominator"):
            algorithm.for_federation(4, 0.0)
        assert algorithm.for_federation(4, 2.0).settings == algorithm.settings
