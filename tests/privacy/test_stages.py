"""Clipping, quantising and noise: the figures that the accountant relies on."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.core import SeededSource, Spec, SpecError, Stream
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.privacy.clipping.layers import layer_sizes
from fedjax_secure.privacy.quantise import norm_within, rounded_l2_bound, stochastic_round

LARGEST_NORM = 53_000


@given(st.lists(st.integers(-70_000, 70_000) | st.sampled_from([-(2**31), 2**31 - 1, 2**16]),
                min_size=1, max_size=40), st.integers(-3, 3))
def test_norm_check_is_exact_integer_arithmetic(values, off):
    exact = sum(v * v for v in values)
    bound = min(max(exact + off, 0), LARGEST_NORM**2)
    assert bool(norm_within(jnp.array(values, jnp.int32), bound)) == (exact <= bound)


@pytest.mark.parametrize("dim", [32_767, 200_000, 2**21, 2**21 + 1])
def test_norm_check_is_exact_in_many_dimensions(dim):
    values = np.full(dim, 30, np.int32)
    exact = dim * 900
    assert bool(norm_within(values, exact)) and not bool(norm_within(values, exact - 1))
    values[::2] = 65_535
    assert not bool(norm_within(values, LARGEST_NORM**2))
    values[:] = np.iinfo(np.int32).min
    assert not bool(norm_within(values, LARGEST_NORM**2))


@pytest.mark.parametrize("squares", [[2**16], [2**15] * 4, [2**15] * 4 + [1], [2**16, 2**16, 5],
                                     [53_001], [37_477, 37_477]])
def test_sums_that_wrap_around_are_not_taken_for_small_ones(squares):
    """Their sums are 0 or little modulo 2^32, or just above the largest bound."""
    values = np.zeros(4096, np.int32)
    values[: len(squares)] = squares
    assert not bool(norm_within(values, LARGEST_NORM**2))


def test_rounding_is_unbiased_and_lands_on_neighbours():
    words = np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32)
    values = np.tile(np.array([0.25, -0.25, 3.0, -7.75], np.float32), 100_000)
    rounded = np.asarray(stochastic_round(words, values))
    assert np.all((rounded == np.floor(values)) | (rounded == np.ceil(values)))
    # Hoeffding: |mean error| > 0.009 of 100,000 draws in [0, 1] has probability < 2 exp(-2 n t^2)
    # = 1.9e-7 for each of four.
    errors = np.abs((rounded - values).reshape(-1, 4).mean(axis=0))
    assert errors.max() < 0.009
    assert errors[2] == 0.0


def _quantised(dim, l2_bound, bits, vectors, records=100):
    spec = Spec(dim=dim, num_clients=2, num_records=records, denominator=1.0)
    _, spec = fs.privacy.clip(l2_bound, unit="record").init(spec)
    stage = fs.privacy.quantise(bits=bits)
    state, spec = stage.init(spec)
    key = device_keys([SeededSource(1).key("x")])[0]

    def one(slot, vector):
        clipped = fs.privacy.clip(l2_bound).client((), None, vector)
        return stage.client(state, Stream(key, 0, slot), clipped)

    slots = np.arange(len(vectors), dtype=np.uint32)
    return np.asarray(jax.jit(jax.vmap(one))(slots, vectors)), spec


@pytest.mark.parametrize("dim, bits", [(3, 12), (30, 24), (1000, 20), (5000, 16)])
def test_no_rounded_vector_is_longer_than_the_sensitivity(dim, bits):
    rng = np.random.default_rng(dim)
    vectors = rng.normal(size=(300, dim)).astype(np.float32) * 100.0
    vectors[:50] = 0.5 / math.sqrt(dim)  # worst for rounding: all coordinates small
    integers, spec = _quantised(dim, 1.0, bits, vectors)
    norms = np.sqrt((integers.astype(np.int64) ** 2).sum(axis=1))
    assert norms.max() <= spec.unit_l2 == rounded_l2_bound(spec.scale, dim)
    assert np.abs(integers).max() <= spec.linf_bound
    assert norms[50:].min() > 0.5 * spec.scale or spec.scale < math.sqrt(dim)


def test_the_bound_is_never_above_rounding_every_coordinate_up():
    for dim in (1, 10, 10_000):
        for length in (1.0, 64.0, 4096.0):
            bound = rounded_l2_bound(length, dim)
            assert length < bound <= length + math.sqrt(dim)


def test_gradients_at_rest_stay_zero_and_huge_ones_are_clipped():
    vectors = np.zeros((3, 8), np.float32)
    vectors[1] = 1e30
    vectors[2, 0] = 1e-30
    integers, spec = _quantised(8, 1.0, 20, vectors)
    assert integers[0].tolist() == [0] * 8 and integers[2, 1:].tolist() == [0] * 7
    assert np.linalg.norm(integers[1]) <= spec.unit_l2


def test_summed_shares_have_the_stated_spread():
    spec = Spec(dim=20_000, num_clients=4, num_records=4, denominator=1.0)
    aggregation = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=24),
                           fs.privacy.discrete_gaussian(0.8, missing_shares=1))
    states, spec = aggregation.init(spec)
    keys = device_keys([SeededSource(5).key("x", client=str(c)) for c in range(4)])
    elements, _ = jax.jit(aggregation.encode)(states, keys, np.zeros((4, spec.dim), np.float32))
    modulus = spec.modulus
    signed = np.asarray(elements).astype(np.int64)
    signed = (signed + modulus // 2) % modulus - modulus // 2
    for share in signed:
        # A sample variance of 20,000 draws lies within 5 standard deviations (5 sqrt(2/n)) of the
        # true one, except with probability below 1e-6.
        assert share.var() == pytest.approx(spec.mechanism.share_stddev**2, rel=5 * 0.01)
        assert abs(share.mean()) < 5 * spec.mechanism.share_stddev / math.sqrt(spec.dim)
    total = signed.sum(axis=0)
    assert total.var() == pytest.approx(spec.noise_stddev**2, rel=5 * 0.01)
    assert np.abs(total).max() <= spec.noise_tail()
    correlations = np.corrcoef(signed)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(spec.dim)


def _wide_noise(noise_multiplier, dim=20_000, clients=4, bits=31):
    aggregation = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=bits, scale=4096.0),
                           fs.privacy.discrete_gaussian(noise_multiplier, missing_shares=1))
    spec = Spec(dim=dim, num_clients=clients, num_records=100, denominator=1.0)
    return aggregation, *aggregation.init(spec)


def test_shares_wider_than_the_table_are_sums_of_parts():
    aggregation, states, spec = _wide_noise(12.0)
    share = spec.mechanism.share_stddev
    assert share > 20_000  # two tables' worth and more
    keys = device_keys([SeededSource(6).key("x", client=str(c)) for c in range(4)])
    elements, _ = jax.jit(aggregation.encode)(states, keys, np.zeros((4, spec.dim), np.float32))
    modulus = spec.modulus
    signed = (np.asarray(elements).astype(np.int64) + modulus // 2) % modulus - modulus // 2
    for noise in signed:
        # As above: five standard deviations of a sample variance, false alarms below 1e-6. Parts
        # that shared a keystream would add up to several times the variance.
        assert noise.var() == pytest.approx(share**2, rel=5 * 0.01)
    assert signed.sum(axis=0).var() == pytest.approx(spec.noise_stddev**2, rel=5 * 0.01)
    assert spec.mechanism.num_shares == 3
    assert spec.mechanism.noise_multiplier >= 12.0


def test_noise_too_wide_is_refused_with_the_fix():
    with pytest.raises(SpecError, match="Lower quantise"):
        _wide_noise(3000.0)


@pytest.mark.parametrize("l2_bound", [1e-13, 1e-24, 1e13, 1e30, math.inf, math.nan, -1.0, 0])
def test_a_clipping_norm_whose_float_squares_vanish_is_refused(l2_bound):
    # At 1e-24 the squares of float32 are zero, and a vector a hundred times longer passed.
    with pytest.raises(SpecError, match="l2_bound from"):
        fs.privacy.clip(l2_bound)


@pytest.mark.parametrize("l2_bound", [1e-12, 1e12])
@pytest.mark.parametrize("times", [1e-3, 1.0, 1e3, 1e6])
def test_the_smallest_and_the_largest_clipping_norm_hold(l2_bound, times):
    vector = jnp.full(1000, l2_bound * times / math.sqrt(1000), jnp.float32)
    clipped = np.asarray(fs.privacy.clip(l2_bound).client((), None, vector), np.float64)
    assert np.linalg.norm(clipped) <= l2_bound * (1 + 1007 / 2**25)
    assert np.linalg.norm(clipped) >= min(times, 1.0) * l2_bound * (1 - 1e-5)


def test_a_layer_whose_values_another_lies_between_is_clipped_as_one():
    class Wrapped:
        def init(self, key):
            return {"alpha": jnp.zeros(2), "dense": {"kernel": jnp.zeros(3)}, "omega": jnp.zeros(1)}

    assert layer_sizes(Wrapped()) == {"model": 3, "dense": 3}
    stage = fs.privacy.clip_layers(Wrapped(), bounds={"model": 1.0, "dense": 5.0})
    state, _ = stage.init(Spec(dim=6, num_clients=2, num_records=2, denominator=2.0))
    found = stage.client(state, None, jnp.array([2.0, 1.0, 0.0, 30.0, 40.0, 2.0]))
    np.testing.assert_allclose(found, [2 / 3, 1 / 3, 0.0, 3.0, 4.0, 2 / 3], rtol=1e-3)


@pytest.mark.parametrize(("stages", "message"), [
    ([fs.privacy.rotate(), fs.privacy.randomised_response(2.0)], "rotated vector.*Leave rotate"),
    ([fs.privacy.clip(1.0), fs.privacy.clip(1.0)], "Keep one `clip` in the chain")])
def test_stages_that_would_mix_or_repeat_are_refused(stages, message):
    with pytest.raises(SpecError, match=message):
        fs.chain(*stages).init(Spec(dim=4, num_clients=2, num_records=2, denominator=2.0))
