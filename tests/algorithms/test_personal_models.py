"""Personal models on clients with skewed labels, and local fine-tuning on its own."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import SpecError, UpdateError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.training import evaluate, train_alone

A = fs.algorithms
CLIENTS, TRAIN, TEST, CLASSES = 8, 30, 60, 6


def skewed() -> FederatedDataset:
    """Six overlapping classes; a client has two of them, so that its own labels are worth much."""
    random = np.random.default_rng(8)

    def part(count):
        y = np.concatenate([random.choice([k % CLASSES, (k + 2) % CLASSES], count)
                            for k in range(CLIENTS)])
        return 1.2 * np.eye(CLASSES)[y] + random.normal(size=(len(y), CLASSES)), y

    x, y = part(TRAIN)
    test_x, test_y = part(TEST)
    return FederatedDataset(
        name="skewed", clients=tuple("abcdefgh"), x=x, y=y, offsets=TRAIN * np.arange(CLIENTS + 1),
        test_x=test_x, test_y=test_y, test_offsets=TEST * np.arange(CLIENTS + 1),
        feature_names=tuple("pqrstu"), classes=tuple("012345"))


DATA = skewed()
MODEL = fs.models.logistic_regression(DATA)
ROUNDS = 30


def trained(algorithm):
    simulation = fs.Simulation(MODEL, DATA, algorithm, seed=2)
    state = simulation.init()
    for state, _ in simulation.run(state, rounds=ROUNDS):
        pass
    return state, simulation


@pytest.fixture(scope="module")
def fed_avg_params():
    return trained(A.fed_avg(0.1, batch_size=10))[0].params


def accuracy(params) -> float:
    return float(evaluate(MODEL, params, DATA).accuracy.mean())


@pytest.mark.parametrize("algorithm", [
    A.ditto(0.1, lam=0.1, batch_size=10),
    A.apfl(0.1, alpha=0.5, batch_size=10),
    A.apfl(0.1, alpha=0.5, adaptive=True, batch_size=10),
], ids=["ditto", "apfl", "apfl adaptive"])
def test_personal_models_beat_the_global_one(algorithm, fed_avg_params):
    state, simulation = trained(algorithm)
    # what the personal models change of the global one: nothing
    np.testing.assert_allclose(
        MODEL.ravel(state.params), MODEL.ravel(fed_avg_params), rtol=1e-5, atol=1e-6)
    own, everyone = accuracy(simulation.personal(state)), accuracy(state.params)
    assert own > everyone + 0.1, (own, everyone)


def test_fine_tuned_models_beat_the_global_one(fed_avg_params):
    tuned = A.fine_tune(MODEL, fed_avg_params, DATA, learning_rate=0.1, epochs=10, batch_size=10)
    own, everyone = accuracy(tuned), accuracy(fed_avg_params)
    assert own > everyone + 0.1, (own, everyone)


def test_fine_tuning_is_training_alone_from_the_global_model(fed_avg_params):
    settings = {"epochs": 2, "batch_size": 7, "seed": 5}
    expected = train_alone(MODEL, DATA, fed_avg_params, learning_rate=0.2, **settings)
    tuned = A.fine_tune(MODEL, fed_avg_params, DATA, learning_rate=0.2, chunk_clients=3, **settings)
    np.testing.assert_allclose(tuned(range(CLIENTS)), expected, rtol=1e-6, atol=1e-6)
    # any clients, in any order and company
    np.testing.assert_array_equal(tuned([6, 1, 6]), tuned(range(CLIENTS))[[6, 1, 6]])
    assert tuned([]).shape == (0, MODEL.dim)


def test_fine_tuning_takes_any_optimiser(fed_avg_params):
    """Its state starts anew at every client: the same client alone gets the same model."""
    tuned = A.fine_tune(MODEL, fed_avg_params, DATA, optimizer=optax.adam(0.05), batch_size=10)
    together = tuned([2, 5])
    np.testing.assert_array_equal(tuned([5])[0], together[1])
    assert np.abs(together - np.asarray(MODEL.ravel(fed_avg_params))).max() > 0.01


@pytest.mark.parametrize(("settings", "text"), [
    ({}, "neither"), ({"learning_rate": 0.1, "optimizer": optax.sgd(0.1)}, "both"),
    ({"learning_rate": -1.0}, "learning_rate"), ({"learning_rate": 0.1, "epochs": 0}, "epochs"),
    ({"learning_rate": 0.1, "chunk_clients": 0}, "chunk_clients"),
    ({"learning_rate": 0.1, "seed": -1}, "seed")])
def test_fine_tuning_refuses_what_makes_no_sense(settings, text):
    with pytest.raises(SpecError, match=text):
        A.fine_tune(MODEL, MODEL.init(jax.random.key(0)), DATA, **settings)


def test_fine_tuning_refuses_unknown_clients_and_diverging_ones():
    params = MODEL.init(jax.random.key(0))
    tuned = A.fine_tune(MODEL, params, DATA, learning_rate=0.1)
    with pytest.raises(SpecError, match="from 0 to 7, got 0 to 8"):
        tuned([0, 8])
    wild = A.fine_tune(MODEL, params, DATA, learning_rate=3e38, epochs=3)
    with pytest.raises(UpdateError, match="'b'"):
        wild([1])
