"""Clipping: no row above its bound in exact arithmetic, and nothing lost to overflow."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import clip
from fedjax_kernels.clip.cases import TEST_CASES


def rows_of(case, seed=0):
    random = np.random.default_rng(seed)
    lengths = case.l2_bound * np.exp(random.normal(size=(case.rows, 1)) * 2)
    values = random.normal(size=(case.rows, case.dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True) * lengths).astype(np.float32)


def exact_square(row) -> Fraction:
    return sum(Fraction(float(value)) ** 2 for value in row)


@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_rows_are_clipped_as_defined_and_none_is_above_its_bound(case):
    values = rows_of(case)
    found = clip.clip_rows(values, case.l2_bound)
    expected = clip.clip_rows(values, case.l2_bound, implementation="reference")
    slack = clip.norm_slack(case.dim)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=2 * slack, atol=0)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=2 * slack)
    bound = Fraction(float(np.float32(case.l2_bound)))
    assert all(exact_square(row) <= bound**2 for row in np.asarray(found.rows))
    short = np.asarray(expected.norms) < case.l2_bound * (1 - 2 * slack)
    np.testing.assert_array_equal(np.asarray(found.rows)[short], values[short])


@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_the_sum_is_that_of_the_clipped_rows(case):
    values = rows_of(case)
    found = clip.clip_and_sum(values, case.l2_bound)
    rows = np.asarray(clip.clip_rows(values, case.l2_bound).rows).astype(np.float64)
    error = np.linalg.norm(np.asarray(found.total) - rows.sum(axis=0))
    assert error <= clip.summation_error(case.rows, case.l2_bound) + 2.0**-24 * case.l2_bound
    expected = clip.clip_and_sum(values, case.l2_bound, implementation="reference")
    np.testing.assert_array_equal(
        np.isfinite(found.norms), np.isfinite(np.asarray(expected.norms))
    )
    difference = np.linalg.norm(np.asarray(found.total) - np.asarray(expected.total))
    assert difference <= (clip.norm_slack(case.dim) + 1e-6) * case.rows * case.l2_bound * 2


HUGE = (1e19, 3e19, 1e25, 3.4e38)


@pytest.mark.parametrize("size", HUGE)
def test_a_row_whose_square_overflows_is_clipped_and_not_lost(size):
    values = np.zeros((3, 1000), np.float32)
    values[0] = size
    values[1, :2] = [3.0, 4.0]
    values[2, 5] = -size
    assert 1000 * size**2 > float(np.finfo(np.float32).max)
    rows = np.asarray(clip.clip_rows(values, 1.0).rows)
    np.testing.assert_allclose(rows[0], 1000**-0.5, rtol=1e-4)
    np.testing.assert_allclose(rows[1, :3], [0.6, 0.8, 0], rtol=1e-5)
    np.testing.assert_allclose(rows[2, 5], -1, rtol=1e-5)
    assert all(exact_square(row) <= 1 for row in rows)
    found = clip.clip_and_sum(values, 1.0)
    np.testing.assert_allclose(found.total, rows.sum(axis=0), atol=1e-6)
    norm = size * 1000**0.5
    expected = norm if norm < 3.4028e38 else np.inf
    np.testing.assert_allclose(float(found.norms[0]), expected, rtol=1e-4)


def test_rows_that_are_no_numbers_count_zero_and_are_reported():
    values = rows_of(TEST_CASES[2])
    broken = values.copy()
    broken[2, 3], broken[5, 0], broken[7] = np.nan, -np.inf, np.inf
    found = clip.clip_and_sum(broken, 3.0)
    assert np.isnan(found.norms)[[2, 5, 7]].all() and np.isnan(found.norms).sum() == 3
    whole = np.delete(values, [2, 5, 7], axis=0)
    np.testing.assert_allclose(found.total, clip.clip_and_sum(whole, 3.0).total, atol=1e-5)
    assert not np.asarray(clip.clip_rows(broken, 3.0).rows)[[2, 5, 7]].any()


def test_rows_of_nothing_and_no_rows():
    found = clip.clip_and_sum(np.zeros((4, 6), np.float32), 1.0)
    assert not found.total.any() and not found.norms.any()
    none = clip.clip_and_sum(np.zeros((0, 6), np.float32), 1.0)
    assert none.total.shape == (6,) and not none.total.any() and none.norms.shape == (0,)
    assert clip.clip_rows(np.zeros((0, 6), np.float32), 1.0).rows.shape == (0, 6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 2, 31, 64]),
    bound=st.floats(1e-12, 1e12),
    spread=st.integers(-60, 60),
)
def test_no_row_exceeds_any_bound(seed, dim, bound, spread):
    random = np.random.default_rng(seed)
    values = (random.normal(size=(8, dim)) * bound * 2.0**spread).astype(np.float32)
    rows = np.asarray(clip.clip_rows(values, bound).rows)
    limit = Fraction(float(np.float32(bound))) ** 2
    assert all(exact_square(row) <= limit for row in rows)


def test_under_jit_vmap_and_a_traced_bound():
    values = np.stack([rows_of(TEST_CASES[2], seed) for seed in range(3)])
    values[1, 4, 0] = 3e38  # one of the batches has a row that overflows
    bounds = jnp.float32([1.0, 2.0, 3.0])
    many = jax.jit(jax.vmap(clip.clip_and_sum))(values, bounds)
    vectors = jax.jit(jax.vmap(clip.clip_rows, in_axes=(0, None)))(values[:, 0], 0.5)
    for i, bound in enumerate((1.0, 2.0, 3.0)):
        one = clip.clip_and_sum(values[i], bound)
        np.testing.assert_allclose(many.total[i], one.total, atol=1e-5)
        np.testing.assert_allclose(many.norms[i], one.norms, rtol=1e-5)
        alone = clip.clip_rows(values[i, 0], 0.5)
        assert alone.norms.shape == ()
        np.testing.assert_allclose(vectors.rows[i], alone.rows, rtol=1e-5)
    with pytest.raises(ValueError, match="needs concrete arrays"):
        jax.jit(lambda x: clip.clip_rows(x, 1.0, implementation="reference"))(values[0])


@pytest.mark.parametrize("dim, most", [(1, 2e-6), (1_000, 4e-6), (100_000, 2.5e-5), (65_537, 4e-3)])
def test_slack_is_small_and_covers_the_float_error_seen(dim, most):
    """Equal values make every addition round the same way: the error is as large as it gets."""
    slack = clip.norm_slack(dim)
    assert 0 < slack < most
    random = np.random.default_rng(1)
    sizes = np.float32([*random.uniform(1, 2, 14), 1.7e19, 3e25]).reshape(-1, 1)
    values = np.broadcast_to(sizes, (16, dim)).copy()
    values[0] = random.normal(size=dim)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    found = clip.clip_rows(values, 1.0)
    for computed in (found.norms, clip.clip_and_sum(values, 1.0).norms):
        assert (np.abs(np.asarray(computed) / norms - 1) <= slack).all()
    usual = clip.clip_and_sum(values[:14], 1.0).norms
    assert (np.abs(np.asarray(usual) / norms[:14] - 1) <= slack).all()
    assert all(np.linalg.norm(row.astype(np.float64)) <= 1 for row in np.asarray(found.rows))


@pytest.mark.parametrize(
    "values, bound, message",
    [
        (np.zeros((2, 3)), 1.0, r"needs float32\[n, dim\], got float64\[2, 3\]"),
        (np.zeros(3, np.float32), 1.0, r"got float32\[3\]"),
        ([[1.0]], 1.0, "got list"),
        (np.zeros((2, 3), np.float32), 0.0, "`l2_bound` needs a number from 1e-12 to 1e\\+12"),
        (np.zeros((2, 3), np.float32), float("nan"), "got nan"),
        (np.zeros((2, 3), np.float32), True, "got True"),
    ],
)
def test_wrong_arguments_are_refused(values, bound, message):
    with pytest.raises(ValueError, match=message):
        clip.clip_and_sum(values, bound)
    with pytest.raises(ValueError, match="'pallas'"):
        clip.clip_and_sum(np.zeros((2, 3), np.float32), 1.0, implementation="pallas")


def test_bounds_of_which_nothing_is_proved_are_refused_or_let_nothing_out():
    values = np.float32([[3, 4], [1, 1], [0, 0]])
    for bound in (0.0, -1.0, np.nan, 1e30, [1.0, 2.0, 3.0], True):
        with pytest.raises(ValueError, match="`l2_bound` needs a number from 1e-12"):
            clip.clip_rows(values, jnp.asarray(bound))
    traced = jax.jit(clip.clip_and_sum)
    for bound in (0.0, -1.0, np.nan):
        assert not np.asarray(traced(values, bound).total).any()
    np.testing.assert_array_equal(traced(values, 1e30).total, [4, 5])
    assert clip.clip_rows(values, np.float16(1)).rows.shape == (3, 2)


def test_lengths_and_numbers_of_rows_without_a_proof():
    with pytest.raises(ValueError, match="divisor near its root.*got 4194319"):
        clip.clip_rows(np.zeros(4_194_319, np.float32), 1.0)
    assert clip.summation_error(2**25, 1.0) == np.inf
