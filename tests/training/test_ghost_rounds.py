"""The ghost path in the engine and in rounds: draws, sums, bounds, labels and refusals."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Sampling, Spec, SpecError
from fedjax_secure.core.stage import chain
from fedjax_secure.privacy.clipping.float_sums import (
    SUM_FAILURE,
    float_sum_error,
    most_drawn,
    rounded_sum_l2_bound,
)
from fedjax_secure.privacy.quantise import stochastic_round
from fedjax_secure.training import Engine, clipped_sum
from fedjax_secure.training.ghost.work import _two_sum

DATA = fs.data.heart_disease()
MODEL = fs.models.mlp(DATA, hidden=(6,))
PARAMS = MODEL.init(jax.random.key(0))
ENGINE = Engine(MODEL, DATA, batch_size=16)
KEYS = np.arange(8 * len(DATA.clients), dtype=np.uint32).reshape(-1, 8)
NOBODY = [np.zeros(0, np.int32)] * len(DATA.clients)


def draws(seed, rate):
    rng = np.random.default_rng(seed)
    rows = [DATA.rows(c) for c in range(len(DATA.clients))]
    return [own[rng.random(len(own)) < rate].astype(np.int32) for own in rows]


@jax.jit
def clipped_rows(params, x, y, bounds):
    """Each record's clipped gradient, made by itself."""

    def one(x, y, bound):
        found = clipped_sum(MODEL, params, x[None], y[None], bound, method="vmap")
        return MODEL.ravel(found.total)

    return jax.vmap(one)(x, y, bounds)


def expected(indices, bounds):
    found = []
    for rows in indices:
        each = clipped_rows(PARAMS, DATA.x[rows], DATA.y[rows], bounds[rows])
        found.append(np.asarray(each, np.float64).sum(0))
    return np.stack(found)


def test_sums_are_those_of_all_drawn_records_however_many_were_drawn():
    """No Poisson batch is cut short or filled up: other batches would be another epsilon."""
    bounds = np.full(len(DATA.y), 0.3, np.float32)
    for seed, rate in ((0, 0.3), (1, 1.0), (2, 0.02)):
        indices = draws(seed, rate)
        out = ENGINE.ghost_sums(PARAMS, indices, l2_bound=0.3)
        np.testing.assert_allclose(out.values, expected(indices, bounds), atol=1e-4)
        assert out.steps.tolist() == [math.ceil(len(rows) / 16) for rows in indices]
        assert not np.any(out.nonfinite)
    assert ENGINE.traces["ghost_sums"] == 1
    out = ENGINE.ghost_sums(PARAMS, NOBODY, l2_bound=0.3)
    assert not np.any(out.values) and not np.any(out.steps)


def test_each_record_may_have_a_bound_on_both_paths():
    rng = np.random.default_rng(4)
    bounds = rng.uniform(0, 0.5, len(DATA.y)).astype(np.float32)
    bounds[::7] = 0
    indices = draws(3, 0.5)
    want = expected(indices, np.minimum(bounds, 0.3))
    ghost = ENGINE.ghost_sums(PARAMS, indices, l2_bound=0.3, record_bounds=bounds)
    np.testing.assert_allclose(ghost.values, want, atol=1e-4)

    def rounded(key, slot, gradient):
        norm = jnp.linalg.norm(gradient)
        gradient = gradient * jnp.minimum(1, 0.3 / jnp.maximum(norm, 1e-9))
        return jnp.round(gradient * 2**20).astype(jnp.int32)

    exact = ENGINE.record_sums(PARAMS, indices, KEYS, rounded, record_bounds=bounds)
    np.testing.assert_allclose(np.asarray(exact.values) / 2**20, want, atol=1e-4)
    for bad in (bounds[:-1], -bounds, np.full(len(bounds), np.nan), bounds.astype(str)):
        with pytest.raises(SpecError, match="record_bounds"):
            ENGINE.ghost_sums(PARAMS, indices, l2_bound=0.3, record_bounds=bad)


def test_one_record_moves_a_float_sum_by_its_bound_and_the_stated_error_at_most():
    """Taking a record away moves all later ones to other places and batches."""
    bound, rows = 0.01, DATA.rows(0)
    indices = [rows, *NOBODY[1:]]
    whole = np.asarray(ENGINE.ghost_sums(PARAMS, indices, l2_bound=bound).values[0], np.float64)
    error = float_sum_error(len(rows), 16)
    longest = 0.0
    for out in range(0, len(rows), 20):
        less = [np.delete(rows, out), *NOBODY[1:]]
        rest = ENGINE.ghost_sums(PARAMS, less, l2_bound=bound).values[0]
        longest = max(longest, np.linalg.norm(whole - np.asarray(rest, np.float64)))
    assert 0.99 * bound < longest <= bound * (1 + 2 * error)


def test_two_sum_keeps_what_an_addition_loses():
    rng = np.random.default_rng(0)
    a = (rng.normal(size=4096) * 10.0 ** rng.integers(-8, 8, 4096)).astype(np.float32)
    b = (rng.normal(size=4096) * 10.0 ** rng.integers(-8, 8, 4096)).astype(np.float32)
    total, error = (np.asarray(part, np.longdouble) for part in jax.jit(_two_sum)(a, b))
    np.testing.assert_array_equal(total + error, a.astype(np.longdouble) + b)
    assert np.any(error)


def test_a_record_that_is_not_finite_adds_zero_and_its_client_is_named():
    import dataclasses

    x = DATA.x.copy()
    x[DATA.rows(1)[3]] = 3e38  # its hidden layer is infinite
    data = dataclasses.replace(DATA, x=x)
    engine = Engine(MODEL, data, batch_size=16)
    rows = [data.rows(c) for c in range(len(data.clients))]
    params = jax.tree.map(lambda p: 40 * p, PARAMS)
    out = engine.ghost_sums(params, rows, l2_bound=0.3)
    assert out.nonfinite.tolist() == [0, 1, 0, 0]
    without = [rows[0], np.delete(rows[1], 3), *rows[2:]]
    clean = ENGINE.ghost_sums(params, without, l2_bound=0.3)
    np.testing.assert_allclose(out.values, clean.values, atol=1e-5)


# -- what is charged -------------------------------------------------------------------------------


def test_two_sums_rounded_with_the_same_words_differ_by_a_rounding_of_their_difference():
    """What one record does to the integers: at most the bound, which roundings come close to.

    By the bound's own statement one draw exceeds it with probability 2^-64.
    """
    rng = np.random.default_rng(1)
    dim, c = 20_000, 300.0
    x = rng.normal(size=dim) * 1000
    step = rng.normal(size=dim)
    step *= c / np.linalg.norm(step)
    bound = rounded_sum_l2_bound(c * (1 + 1e-4), dim)
    rounded = jax.jit(stochastic_round)
    norms = []
    for seed in range(50):
        words = np.random.default_rng(seed).integers(0, 2**32, dim, dtype=np.uint32)
        pair = [np.asarray(rounded(words, (x + k * step).astype(np.float32)), np.int64)
                for k in (0, 1)]  # fmt: skip
        moved = pair[1] - pair[0]
        assert np.all((moved == np.floor(moved)) & (np.abs(moved - step) < 1.01))
        norms.append(np.linalg.norm(moved))
    assert max(norms) <= bound and np.mean(norms) > c


def test_how_many_records_are_drawn_at_most():
    scipy = pytest.importorskip("scipy.stats")
    for records, rate in ((1000, 0.05), (60_000, 0.001), (50, 0.9)):
        most = most_drawn(records, rate)
        assert records * rate < most <= records
        if most < records:
            assert scipy.binom.sf(most - 1, records, rate) <= SUM_FAILURE
            assert scipy.binom.sf(most // 2, records, rate) > SUM_FAILURE
    assert most_drawn(10, 1.0) == 10


def ghost_chain(**clip):
    settings = {"unit": "record", "method": "ghost", "batch_size": 16, **clip}
    return fs.chain(
        fs.privacy.clip(1.0, **settings),
        fs.privacy.quantise(bits=22),
        fs.privacy.discrete_gaussian(noise_multiplier=1.0),
    )


def spec_of(**changes):
    fields = {"dim": 50, "num_clients": 4, "num_records": 700, "denominator": 100.0,
              "sampling": Sampling("poisson", 0.2, "record"), **changes}  # fmt: skip
    return Spec(**fields)


def test_the_error_of_float_sums_is_charged_and_labelled():
    _, ghost = ghost_chain().init(spec_of())
    _, exact = chain(
        fs.privacy.clip(1.0, unit="record"),
        fs.privacy.quantise(bits=22),
        fs.privacy.discrete_gaussian(noise_multiplier=1.0),
    ).init(spec_of())
    error = float_sum_error(most_drawn(700, 0.2), 16)
    assert ghost.float_sum_error == error > 0 and exact.float_sum_error == 0
    assert ghost.unit_l2 >= ghost.scale * (1 + 2 * error) and ghost.unit_l2 > exact.unit_l2
    assert ghost.noise_stddev > exact.noise_stddev  # the same multiplier of a larger sensitivity
    assert ghost.mechanism.arithmetic == "float sums" and exact.mechanism.arithmetic == "integer"
    assert ghost.mechanism.total_variation >= 2 * SUM_FAILURE > exact.mechanism.total_variation
    assert "float sums" in str(ghost.threat_model())
    assert "float sums" not in str(exact.threat_model())
    _, one = ghost_chain().init(spec_of(client_records=60))
    assert one.float_sum_error < error  # a sum is one client's


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ghost_chain(unit="client"), "unit='record' with method='ghost'"),
        (lambda: fs.privacy.clip(1.0, unit="record", method="fast"), "method='exact' or 'ghost'"),
        (lambda: fs.privacy.clip(1e-6, unit="record", method="ghost"), "1e-3 or more"),
        (lambda: ghost_chain(batch_size=0), "batch_size of 1 or more"),
        (lambda: fs.chain(fs.privacy.clip(1.0, unit="record", method="ghost")), "right behind it"),
        (lambda: ghost_chain().init(spec_of(num_records=10**7)), "float error is at most"),
    ],
)
def test_what_ghost_clipping_cannot_do_is_refused(make, words):
    with pytest.raises(SpecError, match=words):
        make()


@pytest.mark.parametrize("run", [fs.Simulation, fs.Federation])
def test_an_algorithm_of_several_steps_is_refused(run, tmp_path):
    """Its updates would pass as clipped without being it."""
    settings = {} if run is fs.Simulation else {"folder": tmp_path}
    with pytest.raises(SpecError, match="one step a round"):
        run(MODEL, DATA, fs.algorithms.fed_avg(0.1), ghost_chain(), seed=1, **settings)


def test_rounds_of_both_paths_agree_and_divide_by_a_public_constant():
    """The mean is over the expected batch: over the drawn one it would tell how many were drawn."""
    ends = {}
    selection = fs.selection.poisson_records(0.3)
    for method in ("exact", "ghost"):
        aggregation = fs.chain(
            fs.privacy.clip(1.0, unit="record", method=method), fs.privacy.quantise(bits=22)
        )
        simulation = fs.Simulation(
            MODEL, DATA, fs.algorithms.fed_sgd(optax.sgd(1.0)), aggregation,
            selection=selection, seed=3,
        )  # fmt: skip
        state = simulation.init()
        first = np.asarray(MODEL.ravel(state.params))
        assert simulation.spec.denominator == 0.3 * len(DATA.y)
        for state, _ in simulation.run(state, rounds=1):
            pass
        ends[method] = np.asarray(MODEL.ravel(state.params)) - first
    np.testing.assert_allclose(ends["ghost"], ends["exact"], atol=2e-3)
    assert np.abs(ends["exact"]).max() > 0.02
