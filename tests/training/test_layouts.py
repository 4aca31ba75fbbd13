"""Lanes give what the ragged loop gives, with any number of lanes, devices, clients and sinks.

What holds: integers that do not come from floats, steps and who is counted as not finite are equal;
floats agree to rounding, because XLA computes one step of many lanes in another order than one step
alone. `record_sums` rounds floats to integers, so there a lane may differ by one unit where a value
lies at the border between two; with gradients that are exact in float32 the sums are equal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_secure.core.errors import SpecError
from fedjax_secure.data import from_arrays
from fedjax_secure.models import logistic_regression, mlp
from fedjax_secure.training import (
    ClientResult,
    ClientWork,
    Engine,
    Phase,
    Rows,
    Total,
    descend,
    mean_loss,
)

SIZES = (13, 1, 29, 5, 8, 2, 41, 1)
CLIENTS, BATCH = len(SIZES), 4
KEYS = np.random.default_rng(2).integers(0, 2**32, (CLIENTS, 8), dtype=np.uint32)
_random = np.random.default_rng(6)
# Records on a grid of eighths: gradients at zero are exact in float32.
DATA = from_arrays(
    _random.integers(-8, 9, (sum(SIZES), 3)) / 8, _random.integers(0, 2, sum(SIZES)),
    np.repeat(list("abcdefgh"), SIZES), name="made", test_fraction=0.0)
LINEAR = logistic_regression(DATA)
NETWORK = mlp(DATA, hidden=(6,))
#: One lane is the ragged loop in other words; there may be more lanes than clients.
LANES = [(1, 1), (3, 2), (16, 1), (16, 2), (2 * CLIENTS + 1, 1)]
TRAINED = [(3, 2), (2 * CLIENTS + 1, 1)]  # compiling two layouts of a network takes seconds


def records(counts=SIZES, passes=None, seed=0):
    random = np.random.default_rng(seed)
    chosen = [random.permutation(DATA.rows(c))[:n] for c, n in enumerate(counts)]
    if passes is None:
        return [rows.astype(np.int32) for rows in chosen]
    return [np.stack([random.permutation(rows) for _ in range(passes)]) for rows in chosen]


DRAWS = {
    "all": SIZES,
    "some": (13, 0, 4, 0, 8, 1, 17, 0),
    "one client": (0, 0, 29, 0, 0, 0, 0, 0),
    "one record each": (1,) * CLIENTS,
    "one record": (0, 0, 0, 0, 1, 0, 0, 0),
    "nobody": (0,) * CLIENTS,
}


def engines(model, num_lanes, num_devices):
    make = {"batch_size": BATCH, "devices": jax.devices()[:num_devices]}
    return (Engine(model, DATA, layout="ragged", **make),
            Engine(model, DATA, layout="lanes", num_lanes=num_lanes, **make))


def same_work(one, two):
    np.testing.assert_array_equal(one.steps, two.steps)
    np.testing.assert_array_equal(one.nonfinite, two.nonfinite)
    for name, values in one.metrics.items():
        np.testing.assert_allclose(values, two.metrics[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_lanes, num_devices", [
    pytest.param(*pair, marks=[] if pair in TRAINED else [pytest.mark.slow]) for pair in LANES])
def test_local_training_agrees(num_lanes, num_devices):
    pair = engines(NETWORK, num_lanes, num_devices)
    params, adam = NETWORK.init(jax.random.key(0)), optax.adam(0.05)
    into = Total(tuple(range(CLIENTS)), KEYS, {})
    for number, counts in enumerate(DRAWS.values()):
        indices = records(counts, passes=2, seed=number)
        rows = [e.local_sgd(params, indices, optimizer=adam) for e in pair]
        same_work(*rows)
        np.testing.assert_allclose(rows[0].values, rows[1].values, rtol=1e-4, atol=1e-6)
        totals = [e.local_sgd(params, indices, optimizer=adam, into=into) for e in pair]
        same_work(*totals)
        np.testing.assert_allclose(totals[0].values, totals[1].values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            totals[1].values, np.asarray(rows[1].values).sum(axis=0), rtol=1e-4, atol=1e-5)
    assert pair[1].traces == {"local_sgd": 2}


def _encode(key, slot, gradient):
    """Integers that depend on the gradient, the client's key and the record's slot."""
    return jnp.round(gradient * 256).astype(jnp.int32) * (slot + key[0] % 5).astype(jnp.int32)


@pytest.mark.parametrize("num_lanes, num_devices", LANES[1:])
def test_record_sums_of_exact_gradients_are_equal(num_lanes, num_devices):
    pair = engines(LINEAR, num_lanes, num_devices)
    zeros = jax.tree.map(jnp.zeros_like, LINEAR.init(jax.random.key(0)))
    for number, counts in enumerate(DRAWS.values()):
        out = [e.record_sums(zeros, records(counts, seed=number), KEYS, _encode) for e in pair]
        same_work(*out)
        np.testing.assert_array_equal(out[0].values, out[1].values)
    assert np.any(pair[0].record_sums(zeros, records(), KEYS, _encode).values)


def test_record_sums_of_other_gradients_differ_by_rounding_at_most():
    pair = engines(NETWORK, 5, 2)
    params = NETWORK.init(jax.random.key(1))

    def rounded(key, slot, gradient):
        return jnp.round(gradient * 2.0**20).astype(jnp.int32)

    out = [np.asarray(e.record_sums(params, records(), KEYS, rounded).values, np.int64)
           for e in pair]
    # A gradient of order 1 in float32 has a last bit of 2^-23: 2^-3 of a unit, so a unit a record.
    assert (abs(out[0] - out[1]) <= np.array(SIZES)[:, None]).all() and np.any(out[0])


def _stateful(model):
    """Trains from what the client kept, with a look at all records first, and counts visits."""

    def start(shared, own, state):
        return model.unravel(shared["w"] + state[:-1]), jnp.float32(0)

    def look(shared, own, carry, batch):
        return carry[0], carry[1] + jnp.sum(batch.valid)

    def step(shared, own, carry, batch):
        gradient = jax.grad(lambda p: mean_loss(model, p, batch))(carry[0])
        return descend(carry[0], gradient, own["rate"]), carry[1]

    def finish(shared, own, state, carry, done):
        flat = model.ravel(carry[0])
        kept = (0.5 * (flat - shared["w"]), state[-1:] + 1)
        return ClientResult((flat, carry[1]), kept, {"looked": carry[1]})

    return ClientWork("stateful", model.dim + 1, start,
                      (Phase(look, partial=False), Phase(step, 2)), finish, model.dim + 1)


@pytest.mark.parametrize("num_lanes, num_devices", LANES[1:])
def test_states_and_shares_agree_over_rounds(num_lanes, num_devices):
    pair = engines(LINEAR, num_lanes, num_devices)
    work, random = _stateful(LINEAR), np.random.default_rng(4)
    shared = {"w": np.asarray(LINEAR.ravel(LINEAR.init(jax.random.key(3))))}
    own = {"rate": random.uniform(0.05, 0.3, CLIENTS).astype(np.float32)}
    share = random.uniform(0.1, 1.0, CLIENTS).astype(np.float32)
    kept = [np.zeros((CLIENTS, work.state_size), np.float32) for _ in pair]
    for number, counts in enumerate((SIZES, DRAWS["some"], SIZES)):
        chunk = [6, 0, 3, 7, 2] if number == 1 else list(range(CLIENTS))
        out = []
        for engine, states in zip(pair, kept, strict=True):
            found = engine.train(
                work, shared, records(counts, passes=2, seed=number), own=own, share=share,
                states=states[chunk], into=Rows.of(chunk, CLIENTS))
            states[chunk] = found.states
            out.append(found)
        same_work(*out)
        np.testing.assert_array_equal(out[0].metrics["looked"], out[1].metrics["looked"])
        np.testing.assert_allclose(out[0].values, out[1].values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*kept, rtol=1e-5, atol=1e-5)
    assert kept[0][:, -1].tolist() == [3, 2, 3, 3, 2, 2, 3, 3]


def test_a_client_that_is_not_finite_spoils_no_other_in_its_lane():
    x = DATA.x.copy()
    x[DATA.rows(2)[4]] = 3e38
    data = from_arrays(x, DATA.y, np.repeat(list("abcdefgh"), SIZES), test_fraction=0.0)
    model = mlp(data, hidden=(2,))
    params = model.unravel(jnp.array([0, 0] + [10] * 6 + [0] + [1, -1], jnp.float32))
    for num_lanes in (1, 2):
        engine = Engine(model, data, batch_size=BATCH, layout="lanes", num_lanes=num_lanes)
        rows = [data.rows(c) for c in range(CLIENTS)]
        out = engine.local_sgd(params, rows, learning_rate=0.1)
        assert out.nonfinite.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
        assert np.isfinite(np.asarray(out.values)[[0, 1, 3, 4, 5, 6, 7]]).all()


@pytest.mark.parametrize("wrong", [{"layout": "padded"}, {"num_lanes": 0}, {"num_lanes": True}])
def test_unknown_layouts_are_refused(wrong):
    with pytest.raises(SpecError, match="layout|num_lanes") as error:
        Engine(LINEAR, DATA, batch_size=BATCH, **wrong)
    assert error.value.fix


def test_cpus_get_the_ragged_loop():
    assert Engine(LINEAR, DATA, batch_size=BATCH).layout == "ragged"
