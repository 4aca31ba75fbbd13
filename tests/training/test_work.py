"""`Engine.train` runs any client's work as a plain loop would: phases, passes, states, metrics."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import source
from fedjax_secure.core.errors import SpecError
from fedjax_secure.data import from_arrays
from fedjax_secure.models import logistic_regression
from fedjax_secure.selection import Candidates, poisson_clients, poisson_records
from fedjax_secure.training import ClientResult, ClientWork, Engine, Phase, Rows, Total

SIZES = (13, 1, 29, 5, 8, 2)
CLIENTS, BATCH = len(SIZES), 4
KEYS = np.arange(8 * CLIENTS, dtype=np.uint32).reshape(CLIENTS, 8)
_random = np.random.default_rng(5)
DATA = from_arrays(
    _random.normal(size=(sum(SIZES), 3)), _random.integers(0, 2, sum(SIZES)),
    np.repeat(list("abcdef"), SIZES), name="made", test_fraction=0.0)
MODEL = logistic_regression(DATA)
OWN = {
    "weight": _random.normal(size=CLIENTS).astype(np.float32),
    "bias": _random.normal(size=(CLIENTS, 2)).astype(np.float32),
}
STATES = _random.normal(size=(CLIENTS, 4)).astype(np.float32)
SHARED = {"w": np.array([0.5, -1.0, 2.0], np.float32), "scale": np.float32(0.25)}


# -- a work with everything in it, and the same as a loop ----------------------------------------


def _start(shared, own, state):
    return {"w": shared["w"] + own["bias"].sum() + state[:3], "seen": jnp.zeros(3),
            "trail": jnp.int32(1)}


def _look(shared, own, carry, batch):
    x = jnp.where(batch.valid[:, None], batch.x, 0)
    return {**carry, "seen": carry["seen"] + x.sum(axis=0)}


def _move(shared, own, carry, batch):
    # Neither commutative nor blind to where a batch stands: any other order gives other results.
    mean = jnp.where(batch.valid[:, None], batch.x, 0).sum(axis=0) / batch.valid.sum()
    return {**carry, "w": 0.9 * carry["w"] + shared["scale"] * mean}


def _trace(shared, own, carry, batch):
    labels = jnp.sum(jnp.where(batch.valid, batch.y * jnp.arange(1, BATCH + 1), 0))
    trail = carry["trail"] * 31 + batch.first * 7 + batch.number * 3 + labels.astype(jnp.int32)
    return {**carry, "trail": trail}


def _finish(shared, own, state, carry, done):
    value = (carry["w"] * own["weight"], carry["seen"].reshape(1, 3))
    kept = {"a": carry["w"], "b": state[3:] + done.count}
    steps = sum(k * part for k, part in zip((1, 100, 10000), done.steps, strict=True))
    return ClientResult(value, kept, {"trail": carry["trail"], "steps": steps,
                                      "norm": jnp.sum(carry["w"] ** 2)})


WORK = ClientWork("everything", 6, _start,
                  (Phase(_look, partial=False), Phase(_move, 2), Phase(_trace, 3)), _finish, 4)


def loop(c, rows, share=1.0):
    """What `WORK` does with one client, in NumPy: value, state, metrics and steps."""
    rows = np.atleast_2d(rows)
    w = SHARED["w"] + OWN["bias"][c].sum() + STATES[c, :3]
    seen, trail, count, done = np.zeros(3), np.int64(1), rows.shape[1], []
    per_pass = -(-count // BATCH)
    for passes, partial in ((1, False), (2, True), (3, True)):
        trips = passes * per_pass
        if partial and share < 1:
            trips = int(np.ceil(np.float32(trips) * np.float32(share)))
        done.append(trips)
        for t in range(trips):
            first = t % per_pass * BATCH
            batch = rows[t // per_pass][first : first + BATCH]
            x, y = DATA.x[batch].astype(np.float64), DATA.y[batch]
            if len(done) == 1:
                seen += x.sum(axis=0)
            elif len(done) == 2:
                w = 0.9 * w + 0.25 * x.mean(axis=0)
            else:
                labels = int((y * np.arange(1, len(y) + 1)).sum())
                trail = trail * 31 + first * 7 + t * 3 + labels
                trail = (trail + 2**31) % 2**32 - 2**31  # int32 wraps
    value = np.concatenate([w * OWN["weight"][c], seen])
    state = np.concatenate([w, STATES[c, 3:] + count])
    steps = done[0] + 100 * done[1] + 10000 * done[2]
    return value, state, (trail, steps, float((w**2).sum())), sum(done)


def orders(seed, counts, passes=3):
    """Each client's own records in an order for each pass, as many as it is said."""
    random = np.random.default_rng(seed)
    found = []
    for c, count in enumerate(counts):
        chosen = random.permutation(DATA.rows(c))[:count]
        found.append(np.stack([random.permutation(chosen) for _ in range(passes)]))
    return [rows.astype(np.int32) for rows in found]


DRAWS = [SIZES, (0, 1, 29, 0, 8, 1), (0, 0, 0, 5, 0, 0), (1, 1, 1, 1, 1, 1), (0,) * 6]


def _check(found, places, clients, indices, share):
    for place, c in zip(places, clients, strict=True):
        value, state, metrics, steps = loop(c, indices[c], 1.0 if share is None else share[c])
        taken = np.asarray(found.values)[place]
        np.testing.assert_allclose(taken, value, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.states[place], state, rtol=1e-5, atol=1e-5)
        assert (int(found.metrics["trail"][c]), int(found.metrics["steps"][c])) == metrics[:2]
        np.testing.assert_allclose(found.metrics["norm"][c], metrics[2], rtol=1e-4)
        assert int(found.steps[c]) == steps


ENGINES = [("ragged", 1, 1), ("ragged", 1, 2), ("lanes", 3, 2)]


@pytest.mark.parametrize("layout, num_lanes, num_devices", ENGINES)
def test_a_work_with_everything_equals_a_loop(layout, num_lanes, num_devices):
    devices = jax.devices()[:num_devices]
    engine = Engine(MODEL, DATA, batch_size=BATCH, layout=layout, num_lanes=num_lanes,
                    devices=devices)
    shares = np.array([0.5, 1.0, 0.01, 0.3, 0.999, 1.0], np.float32)
    for seed, counts in enumerate(DRAWS):
        indices = orders(seed, counts)
        for share in (None, shares):
            # A client without records still begins and finishes: it keeps a state.
            out = engine.train(WORK, SHARED, indices, own=OWN, share=share, states=STATES)
            _check(out, range(CLIENTS), range(CLIENTS), indices, share)
            assert not np.any(out.nonfinite)
        chunk = (4, 0, 2)
        out = engine.train(WORK, SHARED, indices, own=OWN, states=STATES[list(chunk)],
                           into=Rows.of(chunk, 4))
        _check(out, range(3), chunk, indices, None)
        assert not np.any(np.asarray(out.values)[3:])  # a free row
        assert not np.any(np.asarray(out.steps)[[1, 3, 5]])  # who is not asked does nothing
    # One program of all rows without shares, one with, one of four rows.
    assert engine.traces == {"everything": 3}


def _payload(states, key, value):
    finite = jnp.all(jnp.isfinite(value))
    return {"sum": jnp.round(value * states["scale"]).astype(jnp.int32), "key": key,
            "clients": jnp.int32(1)}, finite


def _add(states, one, other):
    return jax.tree.map(jnp.add, one, other)


@pytest.mark.parametrize("layout, num_lanes, num_devices", ENGINES)
def test_a_total_is_the_sum_of_the_rows(layout, num_lanes, num_devices):
    engine = Engine(MODEL, DATA, batch_size=BATCH, layout=layout, num_lanes=num_lanes,
                    devices=jax.devices()[:num_devices])
    for clients in (tuple(range(CLIENTS)), (3,), (5, 0), ()):
        chosen = list(clients)
        for seed, counts in enumerate(DRAWS[:3]):
            indices = orders(seed, counts)
            wanted = [loop(c, indices[c]) for c in clients]
            total = np.sum([value for value, *_ in wanted], axis=0) if wanted else np.zeros(6)
            kept = STATES[chosen]
            plain = engine.train(WORK, SHARED, indices, own=OWN, states=kept,
                                 into=Total(clients, KEYS, {}))
            np.testing.assert_allclose(plain.values, total, rtol=1e-5, atol=2e-5)
            sealed = engine.train(WORK, SHARED, indices, own=OWN, states=kept, into=Total(
                clients, KEYS, {"scale": np.float32(1000)}, _payload, _add)).values
            assert abs(np.asarray(sealed["sum"]) - 1000 * total).max() <= len(clients) + 1
            np.testing.assert_array_equal(sealed["key"], KEYS[chosen].sum(axis=0, dtype=np.uint32))
            assert int(sealed["clients"]) == len(clients)
            for place, (_, state, _, steps) in enumerate(wanted):
                np.testing.assert_allclose(plain.states[place], state, rtol=1e-5, atol=1e-5)
                assert int(plain.steps[clients[place]]) == steps
    assert engine.traces == {"everything": 2}


def test_two_devices_give_what_one_gives_whatever_is_dealt_where():
    """Each client's own results to the last bit; a sum of floats to rounding."""
    engines = [Engine(MODEL, DATA, batch_size=BATCH, devices=jax.devices()[:n]) for n in (1, 2)]
    indices = orders(7, SIZES)
    rows = [e.train(WORK, SHARED, indices, own=OWN, states=STATES) for e in engines]
    for one, two in zip(jax.tree.leaves(rows[0]), jax.tree.leaves(rows[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    into = Total(tuple(range(CLIENTS)), KEYS, {})
    totals = [e.train(WORK, SHARED, indices, own=OWN, states=STATES, into=into) for e in engines]
    np.testing.assert_allclose(totals[0].values, totals[1].values, rtol=1e-6, atol=1e-6)


# -- one compile, no truncation, flat memory ---------------------------------------------------


def _counted(name="count", state_size=0):
    """Each client sends how many records it went through, and how many of them are of class 1."""
    return ClientWork(
        name, 2, lambda shared, own, state: jnp.zeros(2),
        (Phase(lambda shared, own, carry, batch: carry + jnp.stack(
            [jnp.sum(batch.valid), jnp.sum(batch.valid & (batch.y == 1))])),),
        lambda shared, own, state, carry, done: ClientResult(
            carry, state + 1 if state_size else None, {"count": done.count}), state_size)


@pytest.mark.parametrize("layout", ["ragged", "lanes"])
def test_cohorts_of_any_size_run_one_program(layout, caplog):
    engine = Engine(MODEL, DATA, batch_size=BATCH, layout=layout, num_lanes=3)
    plain, stateful = _counted(), _counted("stateful", 1)
    into = (lambda c: Rows.of(c, CLIENTS), lambda c: Total(c, KEYS, {}))

    def compiled(clients, seed):
        caplog.clear()
        indices = [rows[0] for rows in orders(seed, [n if c in clients else 0
                                                     for c, n in enumerate(SIZES)])]
        with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
            for sink in into:
                out = engine.train(plain, {}, indices, into=sink(clients))
                kept = engine.train(stateful, {}, indices, into=sink(clients),
                                    states=np.zeros((len(clients), 1), np.float32))
                jax.block_until_ready((out.values, kept.values))
                assert np.asarray(out.values).sum(axis=0 if out.values.ndim > 1 else None).max() \
                    >= sum(SIZES[c] for c in clients)
        return [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]

    assert compiled((0, 2), 0)
    for size in (0, 1, 3, 4, 5, CLIENTS):
        assert compiled(tuple(range(size)), size) == []
    assert engine.traces == {"count": 2, "stateful": 2}


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.01, 0.3, 0.9, 0.9999]),
       layout=st.sampled_from(["ragged", "lanes"]))
def test_a_poisson_draw_is_never_truncated(seed, rate, layout):
    engine, work = _poisson_engines[layout]
    for selection in (poisson_clients(rate), poisson_records(rate)):
        cohort = selection.draw(source(seed), 1, Candidates(DATA.clients, DATA.offsets), ())
        out = engine.train(work, {}, cohort.indices)
        wanted = [[len(rows), int(DATA.y[rows].sum())] for rows in cohort.indices]
        np.testing.assert_array_equal(out.values, wanted)
        np.testing.assert_array_equal(out.metrics["count"], np.asarray(wanted)[:, 0])
    assert engine.traces == {"count": 1}


_poisson_engines = {
    layout: (Engine(MODEL, DATA, batch_size=BATCH, layout=layout), _counted())
    for layout in ("ragged", "lanes")
}

_MEMORY = """
import resource, sys
import numpy as np
import fedjax_secure as fs

clients, features = 2000, 4
random = np.random.default_rng(0)
data = fs.data.from_arrays(
    random.normal(size=(clients, features)), random.integers(0, 2, clients),
    np.arange(clients).astype(str), name="many", test_fraction=0.0)
model = fs.models.mlp(data, hidden=(220, 220))
assert model.dim * clients * 4 > 300e6

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024)

for aggregation in (fs.chain(), fs.chain(fs.privacy.clip(1.0))):
    peaks = []
    for cohort in (10, clients):
        simulation = fs.Simulation(model, data, fs.algorithms.fed_avg(0.1, batch_size=1),
                                   aggregation,
                                   selection=fs.selection.uniform_clients(cohort))
        for state, report in simulation.run(simulation.init(), rounds=1):
            assert report.clients == cohort == report.steps
        peaks.append(peak_bytes())
    print(int(peaks[1] - peaks[0]))
"""


def test_memory_does_not_grow_with_the_cohort():
    """2,000 clients of 50,000 parameters: one row for each would need 390 MB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_NUM_CPU_DEVICES": "2"})
    assert done.returncode == 0, done.stderr
    grown = [int(line) for line in done.stdout.split()]
    assert len(grown) == 2 and max(grown) < 120e6, grown


# -- what is refused, and what is not finite -----------------------------------------------------


def _engine():
    return Engine(MODEL, DATA, batch_size=BATCH)


GOOD = {"work": WORK, "shared": SHARED, "indices": orders(0, SIZES), "own": OWN, "states": STATES}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"own": {**OWN, "weight": np.ones(2)}}, r"own\['weight'\] with a row for each of 6"),
        ({"share": np.ones(3)}, "6 shares above 0"),
        ({"share": np.array([0, 1, 1, 1, 1, 1])}, "6 shares above 0"),
        ({"share": np.array([np.nan, 1, 1, 1, 1, 1])}, "6 shares above 0"),
        ({"share": np.array([1.5, 1, 1, 1, 1, 1])}, "6 shares above 0"),
        ({"states": None}, r"states of shape \[6, 4\] for work `everything`, got none"),
        ({"states": STATES[:, :2]}, r"states of shape \[6, 4\]"),
        ({"states": STATES[:2]}, r"states of shape \[6, 4\]"),
        ({"states": STATES[:2], "into": Rows.of((1,), 2)}, r"states of shape \[1, 4\]"),
        ({"indices": orders(0, SIZES, 2)}, "3 passes over each client's records"),
        ({"work": WORK._replace(width=5)}, "5 values to send of work `everything`, got 6"),
        ({"work": _counted()._replace(state_size=2), "states": STATES[:, :2]},
         "2 values to keep of work `count`, got 0"),
        ({"work": _counted()}, "no states for work `count`, which keeps none"),
    ],
)
def test_wrong_arguments_are_refused(changes, words):
    with pytest.raises(SpecError, match=words) as error:
        _engine().train(**{**GOOD, **changes})
    assert error.value.fix


def test_a_value_that_is_not_finite_is_counted_for_its_client_only():
    def work(told):
        def finish(shared, own, state, carry, done):
            value = jnp.where(own["bad"], jnp.nan, 1.0)[None]
            if told:
                return ClientResult(jnp.nan_to_num(value), nonfinite=3 * own["bad"])
            return ClientResult(value)

        name = "told" if told else "looked"
        return ClientWork(name, 1, lambda shared, own, state: (), (), finish)

    engine, own = _engine(), {"bad": np.array([0, 0, 1, 0, 1, 0], np.int32)}
    indices = [DATA.rows(c) for c in range(CLIENTS)]
    looked = engine.train(work(False), {}, indices, own=own)
    told = engine.train(work(True), {}, indices, own=own)
    assert looked.nonfinite.tolist() == own["bad"].tolist()
    assert told.nonfinite.tolist() == (3 * own["bad"]).tolist()
    sealed = engine.train(work(False), {}, indices, own=own, into=Total(
        tuple(range(CLIENTS)), KEYS, {"scale": np.float32(1)}, _payload, _add))
    assert sealed.nonfinite.tolist() == own["bad"].tolist()
