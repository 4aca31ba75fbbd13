"""The engine against plain loops: equal results, one compile, no padding, clear refusals."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_kernels import chacha
from fedjax_secure.core.errors import DataError, SpecError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.models import logistic_regression, mlp
from fedjax_secure.training import Engine

SIZES = (13, 1, 29, 5, 8)
CLIENTS = len(SIZES)


def dataset(classes=2, **changes):
    """Records on a grid of eighths, so that gradients at zero are exact in float32."""
    rng = np.random.default_rng(5)
    total = sum(SIZES)
    parts = {
        "name": "grid",
        "clients": tuple("abcde"),
        "x": rng.integers(-8, 9, (total, 3)) / 8,
        "y": rng.integers(0, classes, total),
        "offsets": np.cumsum([0, *SIZES]),
        "test_x": np.zeros((0, 3)),
        "test_y": np.zeros(0, int),
        "test_offsets": np.zeros(CLIENTS + 1, int),
        "feature_names": ("p", "q", "r"),
        "classes": tuple(map(str, range(classes))),
    }
    return FederatedDataset(**{**parts, **changes})


def draws(data, seed, rate=0.5):
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(data.rows(c)[rng.random(SIZES[c]) < rate]) for c in range(CLIENTS)]
    return [rows.astype(np.int32) for rows in drawn]


def keys(seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (CLIENTS, 8), dtype=np.uint32)


def encode(key, slot, gradient):
    """Rounds at random with bits that depend on the key, the slot and the place."""
    words = jnp.arange(gradient.shape[0], dtype=jnp.uint32) * jnp.uint32(2654435761)
    words = (words ^ key[0]) * (slot * jnp.uint32(2246822519) + jnp.uint32(3266489917)) + key[7]
    uniform = (words >> jnp.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)
    return jnp.floor(gradient * jnp.float32(3) + uniform).astype(jnp.int32)


jitted_encode = jax.jit(encode)


@functools.cache
def gradient_of_one(model):
    return jax.jit(
        lambda p, x, y: model.ravel(jax.grad(lambda q: model.loss(q, x[None], y[None])[0])(p))
    )


def loop_of_record_sums(model, data, params, indices, keys):
    one = gradient_of_one(model)
    sums = np.zeros((CLIENTS, model.dim), np.int64)
    for c, rows in enumerate(indices):
        for slot, row in enumerate(rows):
            gradient = one(params, data.x[row], data.y[row])
            sums[c] += np.asarray(jitted_encode(keys[c], np.uint32(slot), gradient))
    return sums


def loop_of_local_sgd(model, data, params, indices, batch_size, optimizer):
    @jax.jit
    def step(params, state, x, y):
        gradient = jax.grad(lambda p: model.loss(p, x, y).mean())(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    deltas = []
    for rows in indices:
        local, state = params, optimizer.init(params)
        for order in np.atleast_2d(rows):
            for first in range(0, len(order), batch_size):
                batch = order[first : first + batch_size]
                local, state = step(local, state, data.x[batch], data.y[batch])
        deltas.append(np.asarray(model.ravel(local)) - np.asarray(model.ravel(params)))
    return np.stack(deltas)


DATA = dataset()
LINEAR = logistic_regression(DATA)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_record_sums_equal_a_loop_over_records_exactly(batch_size):
    data, model = DATA, LINEAR
    params = model.init(jax.random.key(0))
    engine = Engine(model, data, batch_size=batch_size)
    for seed, rate in ((0, 0.5), (1, 1.0), (2, 0.1)):
        indices = draws(data, seed, rate)
        out = engine.record_sums(params, indices, keys(seed), encode, jnp.int32)
        want = loop_of_record_sums(model, data, params, indices, keys(seed))
        assert out.values.dtype == jnp.int32
        np.testing.assert_array_equal(out.values, want)
        assert not np.any(out.nonfinite)
        assert int(out.steps.sum()) == sum(len(rows) for rows in indices)


def bits(key, slot, gradient):
    return jax.lax.bitcast_convert_type(gradient, jnp.int32)


def test_a_record_adds_the_same_bits_whoever_else_was_drawn():
    # What the privacy of one record rests on: without it, its term is gone and nothing else moves.
    rng = np.random.default_rng(1)
    data = dataset(x=rng.normal(size=(sum(SIZES), 3)))
    model = mlp(data, hidden=(9,))
    params = model.init(jax.random.key(3))
    engine = Engine(model, data, batch_size=4)
    everyone = [data.rows(c) for c in range(CLIENTS)]
    whole = np.asarray(engine.record_sums(params, everyone, keys(), bits, jnp.int32).values)
    for c, out in ((0, 0), (0, 7), (2, 3), (2, 28), (4, 4)):
        row = data.rows(c)[out]
        alone = [np.array([row]) if k == c else np.array([], int) for k in range(CLIENTS)]
        others = [rows[rows != row] for rows in everyone]
        own = np.asarray(engine.record_sums(params, alone, keys(), bits, jnp.int32).values)
        rest = np.asarray(engine.record_sums(params, others, keys(), bits, jnp.int32).values)
        np.testing.assert_array_equal(whole, own + rest)
    assert engine.traces == {"record_sums": 1}


def test_every_record_has_the_keystream_of_its_client_and_slot():
    data = dataset()
    model = logistic_regression(data)
    engine = Engine(model, data, batch_size=4)

    def keystream(key, slot, gradient):
        nonce = jnp.stack([jnp.uint32(7), slot, jnp.uint32(0)])
        return chacha.keystream(key, nonce, gradient.shape[0])

    indices = draws(data, 3)
    out = engine.record_sums(model.init(jax.random.key(0)), indices, keys(), keystream, jnp.uint32)
    for c, rows in enumerate(indices):
        want = np.zeros(model.dim, np.uint32)
        for slot in range(len(rows)):
            nonce = np.array([7, slot, 0], np.uint32)
            want += np.asarray(chacha.keystream(keys()[c], nonce, model.dim))
        np.testing.assert_array_equal(out.values[c], want)


def test_states_are_data_and_not_part_of_the_program():
    data = dataset()
    model = logistic_regression(data)
    engine = Engine(model, data, batch_size=4)

    def scaled(states, key, slot, gradient):
        return jnp.round(gradient * states["scale"]).astype(jnp.int32)

    params, indices = model.init(jax.random.key(0)), draws(data, 0)
    sums = [
        engine.record_sums(params, indices, keys(), scaled, states={"scale": np.float32(s)})
        for s in (16, 32)
    ]
    assert engine.traces == {"record_sums": 1}
    np.testing.assert_array_equal(sums[0].values * 2, sums[1].values)
    assert np.any(sums[0].values)


@pytest.mark.parametrize(
    "classes, epochs, optimizer",
    [(2, 1, optax.sgd(0.3)), (3, 3, optax.sgd(0.3)), (2, 3, optax.adam(0.05))],
    ids=["one epoch", "three classes, three epochs", "adam"],
)
def test_local_sgd_equals_a_loop_over_clients(classes, epochs, optimizer):
    data = dataset(classes)
    model = mlp(data, hidden=(5,))
    params = model.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    indices = [np.stack([rng.permutation(data.rows(c)) for _ in range(epochs)]) for c in range(5)]
    indices[3] = np.zeros(0, np.int32)
    engine = Engine(model, data, batch_size=4)
    out = engine.local_sgd(params, indices, optimizer=optimizer)
    want = loop_of_local_sgd(model, data, params, indices, 4, optimizer)
    assert out.values.dtype == jnp.float32
    np.testing.assert_allclose(out.values, want, atol=1e-5)
    assert not np.any(out.values[3]) and not np.any(out.nonfinite)
    assert int(out.steps.sum()) == epochs * sum(-(-n // 4) for n in (13, 1, 29, 0, 8))


def test_a_learning_rate_is_plain_sgd():
    data = dataset()
    model = logistic_regression(data)
    params = model.init(jax.random.key(0))
    engine = Engine(model, data, batch_size=4)
    for rate in (0.1, 0.5):
        out = engine.local_sgd(params, draws(data, 0), learning_rate=rate)
        want = loop_of_local_sgd(model, data, params, draws(data, 0), 4, optax.sgd(rate))
        np.testing.assert_allclose(out.values, want, atol=1e-5)
    assert engine.traces == {"local_sgd": 1}


def test_one_compile_an_experiment(caplog):
    data = dataset()
    model = mlp(data, hidden=(4,))
    params = model.init(jax.random.key(0))
    engine = Engine(model, data, batch_size=4)

    def compiles(seed, rate):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
            sums = engine.record_sums(params, draws(data, seed, rate), keys(seed), encode)
            deltas = engine.local_sgd(params, draws(data, seed, rate), learning_rate=0.1)
            jax.block_until_ready((sums, deltas))
        return [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]

    assert len(compiles(0, 0.5)) >= 2
    for seed, rate in ((1, 0.3), (2, 1.0), (3, 0.02), (4, 0.0)):
        assert compiles(seed, rate) == []
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    compiles(5, 0.5)  # the addition above; not the engine
    assert engine.traces == {"record_sums": 1, "local_sgd": 1}


def test_an_empty_draw_executes_nothing():
    data = dataset()
    model = logistic_regression(data)
    engine = Engine(model, data, batch_size=4)
    nobody = [np.zeros(0, np.int32)] * CLIENTS
    params = model.init(jax.random.key(0))
    out = engine.record_sums(params, nobody, keys(), encode)
    delta = engine.local_sgd(params, nobody, learning_rate=0.1)
    assert out.steps.tolist() == delta.steps.tolist() == [0] * CLIENTS
    assert not np.any(out.values) and not np.any(delta.values)


def _with_a_bad_record(row):
    """One record drives two hidden units to infinity; their difference is not a number."""
    x = dataset().x.copy()
    x[row] = 3e38
    data = dataset(x=x)
    model = mlp(data, hidden=(2,))
    flat = [0, 0] + [10] * 6 + [0] + [1, -1]
    return data, model, model.unravel(jnp.array(flat, jnp.float32))


def _ones(key, slot, gradient):
    return jnp.ones(gradient.shape, jnp.int32)


def test_a_gradient_that_is_not_finite_is_counted_and_adds_zero():
    data, model, params = _with_a_bad_record(20)
    engine = Engine(model, data, batch_size=4)
    out = engine.record_sums(params, [data.rows(c) for c in range(5)], keys(), _ones)
    assert out.nonfinite.tolist() == [0, 0, 1, 0, 0]
    assert out.values[:, 0].tolist() == [13, 1, 28, 5, 8]


def test_unused_places_of_a_batch_read_no_other_client():
    """Row 0, of client a, has no finite gradient: nobody else may notice."""
    data, model, params = _with_a_bad_record(0)
    engine = Engine(model, data, batch_size=64)
    rows = [data.rows(c) for c in range(5)]
    out = engine.local_sgd(params, rows, learning_rate=0.1)
    assert out.nonfinite.tolist() == [1, 0, 0, 0, 0]
    assert np.all(np.isfinite(out.values[1:]))
    sums = engine.record_sums(params, rows, keys(), _ones)
    assert sums.nonfinite.tolist() == [1, 0, 0, 0, 0]


def test_clients_are_dealt_longest_first():
    data = dataset()
    model = logistic_regression(data)
    engine = Engine(model, data, batch_size=4)
    draw = engine.pack([data.rows(c) for c in range(5)])
    ends = draw.first
    dealt = [draw.client[ends[d] : ends[d + 1]].tolist() for d in range(len(engine.devices))]
    assert sorted(c for part in dealt for c in part) == [0, 1, 2, 3, 4]
    if len(engine.devices) == 2:
        assert dealt == [[2, 1], [0, 3, 4]]  # 8 + 1 batches; 4 + 2 + 2
    for place, c in enumerate(draw.client):
        first, count = draw.start[place], draw.count[place]
        np.testing.assert_array_equal(draw.rows[first : first + count], data.rows(c))


def rounds_on_one_and_two_devices():
    """Three rounds on one device and on two; run here, and by a process with 64-bit JAX."""
    model = mlp(DATA, hidden=(6,))
    params = model.init(jax.random.key(2))
    engines = [Engine(model, DATA, batch_size=4, devices=jax.devices()[:n]) for n in (1, 2)]
    assert [len(engine.devices) for engine in engines] == [1, 2]
    for seed in range(3):
        drawn = draws(DATA, seed)
        sums = [engine.record_sums(params, drawn, keys(seed), encode) for engine in engines]
        deltas = [engine.local_sgd(params, drawn, learning_rate=0.2) for engine in engines]
        assert [out.values.dtype for out in sums] == [jnp.int32] * 2
        assert [out.values.dtype for out in deltas] == [jnp.float32] * 2
        np.testing.assert_array_equal(sums[0].values, sums[1].values)
        np.testing.assert_allclose(deltas[0].values, deltas[1].values, atol=1e-6)
        assert np.any(sums[0].values) and np.any(deltas[0].values)
        records, batches = sum(map(len, drawn)), sum(-(-len(rows) // 4) for rows in drawn)
        for (one, two), steps in ((sums, records), (deltas, batches)):
            assert int(one.steps.sum()) == steps
            np.testing.assert_array_equal(one.steps, two.steps)
        draw = engines[1].pack(drawn)
        loads = [-(-draw.count[draw.first[d] : draw.first[d + 1]] // 4).sum() for d in range(2)]
        assert min(loads) > 0  # both work, and longest first is within 4/3 of the best
        assert 3 * (max(loads) - min(loads)) <= batches
    assert engines[1].traces == {"record_sums": 1, "local_sgd": 1}


def test_two_devices_share_the_work_and_change_nothing():
    if len(jax.devices()) < 2:
        pytest.skip("JAX was started with one device; the next test starts another with two")
    rounds_on_one_and_two_devices()


def test_two_devices_with_64_bit_jax():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import jax, test_engine\n"
        "assert jax.config.jax_enable_x64\n"
        "test_engine.rounds_on_one_and_two_devices()\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_ENABLE_X64": "1",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, os.path.dirname(__file__)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _engine():
    return Engine(LINEAR, DATA, batch_size=4), DATA, LINEAR.init(jax.random.key(0))


def _rows(c, rows):
    def change(data):
        indices = [data.rows(k) for k in range(CLIENTS)]
        indices[c] = np.asarray(rows)
        return indices

    return change


@pytest.mark.parametrize(
    "indices, words",
    [
        (lambda data: [data.rows(0)], "one index array for each of 5 clients"),
        (_rows(1, [0]), r"row numbers of 'b' in \[13, 14\)"),
        (_rows(1, [-1]), "row numbers of 'b'"),
        (_rows(1, [13, 13]), "at most 1 rows of 'b'"),
        (_rows(0, [3, 3]), "every record of 'a' at most once"),
        (_rows(0, [[1, 2], [2, 1]]), "same number of epochs|one pass"),
        (_rows(0, [0.5]), "as integers"),
        (_rows(0, [True, False]), "as integers"),
        (_rows(0, [[[1]]]), "as integers"),
    ],
)
def test_bad_draws_are_refused(indices, words):
    engine, data, params = _engine()
    with pytest.raises(DataError, match=words) as error:
        engine.record_sums(params, indices(data), keys(), encode)
    assert error.value.fix


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keys": keys()[:2]}, r"keys of shape \[5, 8\]"),
        ({"keys": keys().astype(np.int32)}, "dtype uint32"),
        ({"out_dtype": jnp.float16}, "out_dtype"),
        ({"encode_record": lambda k, s, g: g}, "encode_record to return int32"),
        ({"encode_record": lambda k, s, g: jnp.int32(1)}, "encode_record to return int32"),
        ({"params": {"w": np.zeros(3)}}, "its own parameters"),
    ],
)
def test_bad_arguments_of_record_sums_are_refused(changes, words):
    engine, data, params = _engine()
    arguments = {"params": params, "keys": keys(), "encode_record": encode, **changes}
    with pytest.raises(SpecError, match=words):
        engine.record_sums(indices=draws(data, 0), **arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rate": 0.1, "optimizer": optax.sgd(0.1)},
        {"learning_rate": float("nan")},
    ],
)
def test_bad_arguments_of_local_sgd_are_refused(changes):
    engine, data, params = _engine()
    with pytest.raises(SpecError, match="learning_rate"):
        engine.local_sgd(params, draws(data, 0), **changes)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: Engine(logistic_regression(d), d, batch_size=0), "batch_size"),
        (lambda d: Engine(logistic_regression(d), d, batch_size=2.0), "batch_size"),
        (lambda d: Engine(logistic_regression(4, 2), d, batch_size=2), "3 and 2"),
        (lambda d: Engine(logistic_regression(3, 3), d, batch_size=2), "3 and 2"),
        (lambda d: Engine(logistic_regression(d), d, batch_size=2, devices=[]), "device"),
    ],
)
def test_bad_engines_are_refused(make, words):
    with pytest.raises(SpecError, match=words):
        make(dataset())


def test_unequal_epochs_are_refused():
    engine, data, params = _engine()
    indices = [np.stack([data.rows(c)] * (1 + c % 2)) for c in range(CLIENTS)]
    with pytest.raises(DataError, match="same number of epochs"):
        engine.local_sgd(params, indices, learning_rate=0.1)
