"""The discrete Gaussian sampler: exact against its definition, and by statistics.

Every statistical check has a false-alarm rate of 1e-6 and fixed keys, so it repeats.
"""

from __future__ import annotations

import decimal
import math
import random
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_kernels import chacha
from fedjax_kernels.discrete_gaussian import (
    MAX_SIGMA,
    WORDS_PER_DRAW,
    Table,
    reference,
    sample,
    table,
)
from fedjax_kernels.discrete_gaussian.cases import TEST_CASES
from fedjax_kernels.discrete_laplace.reference import bernoulli_exp, by_rejection
from fedjax_kernels.inversion.reference import sample as reference_sample

FALSE_ALARM = 1e-6
SIGMAS = (0.5, 2.0, 10.0, 300.0)


def keystream_words(draws: int, stream: int = 0) -> jax.Array:
    key = chacha.key_from_bytes(bytes(range(32)))
    nonce = np.array([stream, 0, 0], np.uint32)
    return chacha.keystream(key, nonce, WORDS_PER_DRAW * draws).reshape(WORDS_PER_DRAW, draws)


def as_words(values: list[int]) -> np.ndarray:
    packed = b"".join(value.to_bytes(16, "big") for value in values)
    return np.frombuffer(packed, ">u4").reshape(-1, 4).T.astype(np.uint32)


def as_integers(columns: np.ndarray) -> list[int]:
    return [int.from_bytes(column.astype(">u4").tobytes(), "big") for column in columns.T]


def thresholds_of(made: Table) -> list[int]:
    return as_integers(made.thresholds[:, : made.max_magnitude])


def drawn_masses(made: Table) -> list[int]:
    """P(|z| = k) as the table draws it, in units of 2^-127."""
    edges = [0, *thresholds_of(made), 2**127]
    return [high - low for low, high in zip(edges[:-1], edges[1:], strict=True)]


def direct_pmf(sigma: float, reach: int) -> np.ndarray:
    """P(z) for z = -reach, ..., reach, by the formula of Definition 1."""
    weights = [math.exp(-(z * z) / (2 * sigma * sigma)) for z in range(-reach, reach + 1)]
    return np.array(weights) / math.fsum(weights)


@pytest.mark.parametrize("sigma", [0.1, 1 / 3, 0.5, 1.0, 2.0, 10.0, 100.0])
def test_thresholds_equal_their_definition(sigma):
    made = table(sigma)
    assert thresholds_of(made) == reference.thresholds(sigma)
    padding = made.thresholds[:, made.max_magnitude :]
    assert padding.size and (padding == 0xFFFFFFFF).all()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 10.0, 100.0])
def test_total_variation_is_the_true_distance(sigma):
    made = table(sigma)
    with decimal.localcontext() as context:
        context.prec = 120
        context.Emin = decimal.MIN_EMIN
        exponent = -1 / (2 * decimal.Decimal(sigma) ** 2)
        reach = 2 * made.max_magnitude + 10
        weights = [decimal.Decimal(1)]
        weights += [2 * (exponent * k * k).exp() for k in range(1, reach)]
        mass = sum(weights)
        drawn = drawn_masses(made) + [0] * (reach - made.max_magnitude - 1)
        scale = decimal.Decimal(2) ** 127
        distance = sum(abs(d / scale - w / mass) for d, w in zip(drawn, weights, strict=True)) / 2
        tail = sum(weights[made.max_magnitude + 1 :]) / mass
    assert tail < decimal.Decimal(2) ** -128
    assert distance <= decimal.Decimal(made.total_variation) <= distance * decimal.Decimal(1.000001)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_masses_follow_the_formula(sigma):
    made = table(sigma)
    masses = np.array([mass / 2**127 for mass in drawn_masses(made)])
    direct = direct_pmf(sigma, made.max_magnitude + 20)[made.max_magnitude + 20 :]
    direct[1:] *= 2
    np.testing.assert_allclose(masses, direct[: len(masses)], rtol=1e-12, atol=2.0**-127)


def test_a_large_sigma_is_built_and_drawn():
    made, words = table(3_000.0), keystream_words(2_000)
    assert 2**-120 < made.total_variation < 2**-110
    np.testing.assert_array_equal(
        sample(made, words), sample(made, words, implementation="reference")
    )


@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_xla_equals_the_reference(case):
    made, words = table(case.sigma), keystream_words(case.draws)
    drawn = sample(made, words)
    assert drawn.shape == (case.draws,) and drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, sample(made, words, implementation="reference"))


def edge_values(made: Table) -> list[int]:
    steps = thresholds_of(made)
    near = {step + shift for step in steps for shift in (-1, 0, 1, -(2**32), 2**32, 2**96)}
    near |= {0, 1, 2**127 - 1, 2**96 - 1, 2**96}
    inside = sorted(value for value in near if 0 <= value < 2**127)
    return inside + [value + 2**127 for value in inside]


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 300.0])
def test_words_on_and_beside_every_threshold(sigma, x64):
    made = table(sigma)
    values = edge_values(made)
    with jax.enable_x64(x64):
        drawn = np.asarray(sample(made, as_words(values)))
    assert drawn.dtype == np.int32
    expected = reference_sample(made.thresholds, as_words(values), made.max_magnitude)
    np.testing.assert_array_equal(drawn, expected)
    # Said once without the reference: a threshold itself belongs to the value above it.
    place = {value: int(draw) for value, draw in zip(values, drawn, strict=True)}
    # Far in the tail of a wide distribution, neighbouring thresholds may be equal.
    edges = [-1, *thresholds_of(made), 2**127]
    for k in range(made.max_magnitude):
        before, step, after = edges[k : k + 3]
        if before < step < after:
            assert place[step] == k + 1 and place[step - 1] == k
            assert place[step + 2**127] == -(k + 1)
    assert place[0] == place[2**127] == 0
    assert place[2**127 - 1] == made.max_magnitude == -place[2**128 - 1]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_words_that_share_a_top_word_with_a_threshold(data):
    made = table(10.0)
    tops = made.thresholds[0, : made.max_magnitude].tolist()
    low_words = st.one_of(st.integers(0, 2**96 - 1), st.sampled_from(range(4)))
    value = st.builds(
        lambda sign, top, low: (sign << 127) | (top << 96) | low,
        st.integers(0, 1),
        st.sampled_from(tops),
        low_words,
    )
    words = as_words(data.draw(st.lists(value, min_size=8, max_size=8)))
    np.testing.assert_array_equal(
        sample(made, words), sample(made, words, implementation="reference")
    )


def test_a_tie_in_one_chunk_changes_no_other_draw():
    made, draws = table(10.0), 50_001
    words = np.array(keystream_words(draws))
    plain = np.array(sample(made, words))
    words[:, 20_000] = as_words([thresholds_of(made)[3]])[:, 0]
    words[:, -1] = as_words([thresholds_of(made)[5] - 1 + 2**127])[:, 0]
    plain[[20_000, -1]] = 4, -5
    np.testing.assert_array_equal(sample(made, words), plain)


def test_no_draws():
    for implementation in ("xla", "reference"):
        drawn = sample(table(2.0), np.zeros((4, 0), np.uint32), implementation=implementation)
        assert drawn.shape == (0,) and drawn.dtype == jnp.int32


def test_a_table_passes_through_jit_vmap_and_shard_map():
    made, words = table(2.0), keystream_words(3 * 17_000).reshape(4, 3, 17_000)
    expected = [np.asarray(sample(made, words[:, i])) for i in range(3)]
    over_clients = jax.jit(jax.vmap(sample, in_axes=(None, 1)))(made, words)
    np.testing.assert_array_equal(over_clients, expected)

    # A table of its own for each client, of one size: sigma 2.0 and 2.1 both fit 32 columns.
    other = table(2.1)
    assert (made.guide_bits, made.guide_steps) == (other.guide_bits, other.guide_steps)
    pair = [jnp.stack(p) for p in ((made.thresholds, other.thresholds), (made.guide, other.guide))]
    of_each = jax.vmap(lambda thresholds, guide: sample(
        replace(made, thresholds=thresholds, guide=guide), words[:, 0]))  # fmt: skip
    np.testing.assert_array_equal(of_each(*pair), [expected[0], sample(other, words[:, 0])])

    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("clients")
    sharded = jax.shard_map(
        lambda words: jax.vmap(lambda one: sample(made, one))(words),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    np.testing.assert_array_equal(jax.jit(sharded)(jnp.moveaxis(words, 1, 0)), expected)
    with pytest.raises(ValueError, match="concrete arrays, got traced ones"):
        jax.jit(lambda words: sample(made, words, implementation="reference"))(words[:, 0])


def pooled(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joins neighbouring cells until each expects at least 20 draws."""
    cells, seen, due = [], 0.0, 0.0
    for o, e in zip(observed, expected, strict=True):
        seen, due = seen + o, due + e
        if due >= 20:
            cells.append([seen, due])
            seen = due = 0.0
    cells[-1][0] += seen
    cells[-1][1] += due
    joined = np.array(cells)
    return joined[:, 0], joined[:, 1]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_chi_square_and_moments(sigma):
    draws, made = 200_000, table(sigma)
    drawn = np.asarray(sample(made, keystream_words(draws, stream=1))).astype(np.int64)
    reach = made.max_magnitude
    pmf = direct_pmf(sigma, reach)
    observed, expected = pooled(np.bincount(drawn + reach, minlength=2 * reach + 1), pmf * draws)
    assert len(observed) >= 5
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, len(observed) - 1) > FALSE_ALARM

    support = np.arange(-reach, reach + 1)
    limit = stats.norm.isf(FALSE_ALARM / 2)
    for power in (1, 2, 3, 4):
        mean = (pmf * support**power).sum()
        spread = math.sqrt((pmf * support ** (2.0 * power)).sum() - mean**2)
        assert abs((drawn**power).mean() - mean) < limit * spread / math.sqrt(draws)


def test_the_chi_square_check_can_fail():
    draws = 400_000
    drawn = np.asarray(sample(table(2.05), keystream_words(draws, stream=1)))
    pmf = direct_pmf(2.0, 30)
    observed, expected = pooled(np.bincount(drawn + 30, minlength=61), pmf * draws)
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, len(observed) - 1) < FALSE_ALARM


def canonne_kamath_steinke(sigma: Fraction, coins: random.Random) -> int:
    """Algorithm 3: a discrete Laplace that is accepted by an exact coin."""
    scale = math.floor(sigma) + 1
    while True:
        drawn = by_rejection(scale, coins)
        if bernoulli_exp((abs(drawn) - sigma**2 / scale) ** 2 / (2 * sigma**2), coins):
            return drawn


@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_agrees_with_an_independent_sampler(sigma):
    coins, draws = random.Random(2020), 15_000
    theirs = np.array([canonne_kamath_steinke(Fraction(sigma), coins) for _ in range(draws)])
    ours = np.asarray(sample(table(sigma), keystream_words(draws, stream=2)))
    reach = int(max(abs(theirs).max(), abs(ours).max()))
    counts = np.array([np.bincount(z + reach, minlength=2 * reach + 1) for z in (theirs, ours)])
    together = counts.sum(0).astype(float)
    first, both = pooled(counts[0], together)
    second = both - first
    statistic = ((first - second) ** 2 / both).sum()
    assert stats.chi2.sf(statistic, len(both) - 1) > FALSE_ALARM


@pytest.mark.parametrize("sigma", [0.0, -1.0, 0.05, MAX_SIGMA * 2, math.nan, math.inf, "2", True])
def test_table_refuses(sigma):
    with pytest.raises(ValueError, match="`sigma` needs a number from 0.1 to 10000, got"):
        table(sigma)


@pytest.mark.parametrize(
    "words, message",
    [
        (np.zeros((5, 4), np.uint32), r"got uint32\[5, 4\]"),
        (np.zeros(8, np.uint32), r"got uint32\[8\]"),
        (np.zeros((4, 2), np.int32), r"got int32\[4, 2\]"),
        ([[0], [0], [0], [0]], "got list"),
    ],
)
def test_sample_refuses_words(words, message):
    with pytest.raises(ValueError, match=r"`words` needs uint32\[4, n\], " + message):
        sample(table(2.0), words)


def test_sample_refuses_other_arguments():
    words = np.zeros((4, 1), np.uint32)
    with pytest.raises(ValueError, match="`table` needs an inversion.Table or Sum, got float"):
        sample(2.0, words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'triton'"):
        sample(table(2.0), words, implementation="triton")  # type: ignore[arg-type]
