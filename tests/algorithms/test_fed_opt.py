"""Adaptive servers against the paper's formulas in numpy; FedOpt, FedProx and MimeLite against
FedJAX 0.0.17."""

from __future__ import annotations

import json
from pathlib import Path

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
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "fedjax_rounds.json").read_text())


def by_the_paper(rule, deltas, *, rate, beta_1, beta_2, tau, first):
    """Reddi et al. 2021, algorithm 2, in float64: the models after each round, from zero."""
    x, m, v = np.zeros_like(deltas[0]), np.zeros_like(deltas[0]), np.full_like(deltas[0], first)
    out = []
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * delta
        if rule == "adagrad":
            v = v + delta**2
        elif rule == "yogi":
            v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta_2 * v + (1 - beta_2) * delta**2
        x = x + rate * m / (np.sqrt(v) + tau)
        out.append(x)
    return out


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
@pytest.mark.parametrize(("rate", "beta_1", "beta_2", "tau", "first"), [
    (0.1, 0.9, 0.99, 1e-3, None), (1.0, 0.0, 0.5, 0.1, 0.04), (0.03, 0.5, 0.0, 1e-8, 1.0)])
def test_the_server_steps_as_the_paper_says(rule, rate, beta_1, beta_2, tau, first):
    random = np.random.default_rng(1)
    deltas = [random.normal(size=5) * 10.0 ** random.integers(-3, 2, 5) for _ in range(6)]
    server = A.adaptive_server(rule, rate, beta_1=beta_1, beta_2=beta_2, tau=tau,
                               initial_variance=first)
    params = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    state = server.init(params)
    expected = by_the_paper(rule, deltas, rate=rate, beta_1=beta_1, beta_2=beta_2, tau=tau,
                            first=tau**2 if first is None else first)
    for delta, x in zip(deltas, expected, strict=True):
        gradient = {"w": jnp.asarray(-delta[:3], jnp.float32),
                    "b": jnp.asarray(-delta[3:], jnp.float32)}
        updates, state = jax.jit(server.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found = np.concatenate([params["w"], params["b"]])
        np.testing.assert_allclose(found, x, rtol=2e-5, atol=1e-6)


def test_an_adaptive_server_differs_from_optax_adam():
    """The first step of Adam is the learning rate for any gradient; here tau tempers it."""
    gradient = jnp.array([1e-3])
    ours = A.adaptive_server("adam", 0.1, tau=1e-2)
    step, _ = ours.update(gradient, ours.init(gradient))
    optaxs = optax.adam(0.1, b2=0.99)
    other, _ = optaxs.update(gradient, optaxs.init(gradient))
    assert abs(float(other[0])) == pytest.approx(0.1, rel=1e-3)
    assert abs(float(step[0])) < 0.001


def test_an_unknown_rule_is_refused():
    with pytest.raises(SpecError, match="rule"):
        A.adaptive_server("rmsprop", 0.1)


# -- against FedJAX --------------------------------------------------------------------------------

RATE, BATCH = VECTORS["learning_rate"], VECTORS["batch_size"]
LOCAL = {"learning_rate": RATE, "batch_size": BATCH}
OURS = {
    "fed_avg": A.fed_avg(**LOCAL),
    "fed_avg, server sgd(0.7, momentum=0.8)": A.fed_avg_m(
        **LOCAL, momentum=0.8, server_learning_rate=0.7),
    "fed_avg, server adam(0.05)": A.fed_avg(**LOCAL, server=optax.adam(0.05)),
    "fed_avg, server yogi(0.05)": A.fed_avg(**LOCAL, server=optax.yogi(0.05)),
    # With a variance far above tau^2 their two ways to add a small number come to the same.
    "fed_avg, server adagrad(0.3, initial_accumulator_value=0.1, eps=1e-12)": A.fed_adagrad(
        **LOCAL, server_learning_rate=0.3, initial_variance=0.1, tau=1e-8),
    "fed_prox, proximal_weight=0.5": A.fed_prox(**LOCAL, mu=0.5),
    "mime_lite, base sgd(0.1, momentum=0.9)": A.mime_lite(
        optax.sgd(0.1, momentum=0.9), batch_size=BATCH),
    "mime_lite, base adam(0.02), server_learning_rate 0.6": A.mime_lite(
        optax.adam(0.02), batch_size=BATCH, server_learning_rate=0.6),
}


@pytest.fixture(scope="module")
def data() -> FederatedDataset:
    offsets = np.cumsum([0, *VECTORS["sizes"]])
    none = np.zeros((0, 4)), np.zeros(0, int), np.zeros(len(offsets), int)
    return FederatedDataset(
        name="vectors", clients=tuple("abcdef"), x=np.array(VECTORS["x"]), y=VECTORS["y"],
        offsets=offsets, test_x=none[0], test_y=none[1], test_offsets=none[2],
        feature_names=tuple("pqrs"), classes=("0", "1", "2"))


def rounds_of(data, algorithm):
    """The same cohorts on the same records in the same order."""
    model = fs.models.logistic_regression(data)
    tree = jax.tree.structure(model.init(jax.random.key(0)))
    params = jax.tree.unflatten(
        tree, [jnp.asarray(VECTORS["first"][key], jnp.float32) for key in ("bias", "kernel")])

    def draw(source, round, candidates, state):
        alive = np.isin(np.arange(6), VECTORS["cohorts"][round - 1])
        indices = tuple(data.rows(c) if alive[c] else np.zeros(0, np.int32) for c in range(6))
        return Cohort(round, candidates.clients, indices, alive)

    selection = Selection("vectors", Sampling("all", 1.0, "client"), draw,
                          expected_clients=lambda num_clients, available=None: 4.0)
    simulation = fs.Simulation(model, data, algorithm, selection=selection)
    state = simulation.init()._replace(params=params)
    for state, _ in simulation.run(state, rounds=len(VECTORS["cohorts"])):
        pass
    return model.ravel(state.params)


@pytest.mark.parametrize("name", VECTORS["after"])
def test_the_same_parameters_as_fedjax(data, name):
    after = VECTORS["after"][name]
    expected = np.concatenate([np.ravel(after["bias"]), np.ravel(after["kernel"])])
    first = np.concatenate([np.ravel(VECTORS["first"][key]) for key in ("bias", "kernel")])
    assert np.abs(expected - first).max() > 0.05
    np.testing.assert_allclose(rounds_of(data, OURS[name]), expected, atol=1e-5, rtol=0)


def test_every_vector_is_used():
    assert set(OURS) == set(VECTORS["after"]) and "FedJAX 0.0.17" in VECTORS["source"]
