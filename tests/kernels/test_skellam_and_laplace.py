"""Skellam, discrete Laplace and wide discrete Gaussian samplers: tables, sums, ties and statistics.

Every statistical check has a false-alarm rate of 1e-6 or less and fixed keys, so it repeats.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy import stats

from fedjax_kernels import chacha, discrete_gaussian, discrete_laplace, inversion, skellam
from fedjax_kernels.discrete_gaussian.cases import WIDE_CASES as GAUSSIAN_CASES
from fedjax_kernels.discrete_laplace import reference as laplace_reference
from fedjax_kernels.discrete_laplace.cases import TEST_CASES as LAPLACE_CASES
from fedjax_kernels.discrete_laplace.cases import WIDE_CASES as WIDE_LAPLACE_CASES
from fedjax_kernels.inversion.table import guide_place
from fedjax_kernels.skellam import reference as skellam_reference
from fedjax_kernels.skellam.cases import TEST_CASES as SKELLAM_CASES
from fedjax_kernels.skellam.cases import WIDE_CASES as WIDE_SKELLAM_CASES

FALSE_ALARM = 1e-6
KEY = chacha.key_from_bytes(bytes(range(32)))
NONCE = np.array([7, 0, 0], np.uint32)

SAMPLERS = [
    *[(discrete_gaussian.sampler, case) for case in GAUSSIAN_CASES],
    *[(skellam.sampler, case) for case in (*SKELLAM_CASES, *WIDE_SKELLAM_CASES)],
    *[(discrete_laplace.sampler, case) for case in (*LAPLACE_CASES, *WIDE_LAPLACE_CASES)],
]
#: Of one table, of two added up, and of more draws than a block has; each takes seconds to compile.
COMPILED_ALWAYS = {(discrete_gaussian.sampler, 3_000.0), (skellam.sampler, 4.0),
                   (skellam.sampler, 1e7), (discrete_laplace.sampler, 2.0),
                   (discrete_laplace.sampler, 1e6)}  # fmt: skip


def keystream_words(table, draws: int) -> jax.Array:
    rows = table.words_per_draw
    return chacha.keystream(KEY, NONCE, rows * draws).reshape(rows, draws)


def thresholds_of(table: inversion.Table) -> list[int]:
    columns = np.asarray(table.thresholds)[:, : table.max_magnitude].T
    return [int.from_bytes(column.astype(">u4").tobytes(), "big") for column in columns]


def masses_of(table: inversion.Table) -> np.ndarray:
    """P(z) for z = -max_magnitude, ..., max_magnitude, as the table draws it."""
    edges = [0, *thresholds_of(table), 2**127]
    half = [(b - a) / 2**128 for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.array([*half[:0:-1], 2 * half[0], *half[1:]])


@pytest.mark.parametrize("make, case", [
    pytest.param(make, case, id=f"{make.__module__}-{case}",
                 marks=[] if (make, case[0]) in COMPILED_ALWAYS else [pytest.mark.slow])
    for make, case in SAMPLERS])  # fmt: skip
def test_draws_of_words_of_a_key_and_of_the_reference_agree(make, case):
    table = make(case[0])
    words = keystream_words(table, case.draws)
    drawn = np.asarray(inversion.sample(table, words))
    assert drawn.dtype == np.int32 and abs(drawn).max() <= table.max_magnitude < 2**31
    np.testing.assert_array_equal(drawn, inversion.draw(table, KEY, NONCE, case.draws))
    some = np.asarray(words)[:, :2_000]
    expected = inversion.sample(table, some, implementation="reference")
    np.testing.assert_array_equal(drawn[:2_000], expected)


@pytest.mark.parametrize("variance", [0.01, 1 / 3, 4.0, 100.0])
def test_skellam_thresholds_equal_the_series_of_bessel_functions(variance):
    assert thresholds_of(skellam.table(variance)) == skellam_reference.thresholds(variance)


@pytest.mark.parametrize("scale", [0.01, 1 / 3, 2.0, 20.0])
def test_laplace_thresholds_equal_their_definition(scale):
    made = discrete_laplace.sampler(scale)
    assert thresholds_of(made) == laplace_reference.thresholds(scale)


def test_skellam_is_the_difference_of_two_poissons():
    """All probabilities of a small one, in rationals but for one common factor."""
    rate = Fraction(3, 2)  # of each Poisson; the factor exp(-2 rate) cancels
    terms = [rate**k / math.factorial(k) for k in range(120)]
    weights = [
        sum(terms[i + z] * terms[i] for i in range(60)) for z in range(51)
    ]
    total = weights[0] + 2 * sum(weights[1:])
    made = skellam.table(3.0)
    masses = masses_of(made)[made.max_magnitude :]
    for z, mass in enumerate(masses):
        assert abs(float(weights[z] / total) - mass) <= 1e-15 * mass + 2.0**-126


def test_a_wide_laplace_is_exactly_the_laplace_it_stands_for():
    """Every probability of x + m y, added up from the tables' integers."""
    made = discrete_laplace.sampler(300.0)
    (inner, outer), (_, size) = made.tables, made.scales
    spread = np.zeros((2 * outer.max_magnitude) * size + 1)
    spread[::size] = masses_of(outer)
    sums = np.convolve(spread, masses_of(inner))
    middle = len(sums) // 2
    z = np.arange(-middle, middle + 1)
    q = math.exp(-1 / 300)
    exact = (1 - q) / (1 + q) * q ** abs(z).astype(float)
    near = abs(z) < 5_000
    np.testing.assert_allclose(sums[near], exact[near], rtol=1e-11)
    assert abs(sums - exact).sum() < 1e-11
    assert made.log_ratio == 0 and made.total_variation < 2**-110


@pytest.mark.parametrize("sigma", [16.0, 20.5, 40.0])
def test_a_convolution_is_the_discrete_gaussian_within_its_log_ratio(sigma):
    made = discrete_gaussian.convolution(sigma)
    (inner, outer), (_, step) = made.tables, made.scales
    spread = np.zeros(2 * outer.max_magnitude * step + 1)
    spread[::step] = masses_of(outer)
    sums = np.convolve(spread, masses_of(inner))
    middle = len(sums) // 2
    z = np.arange(-middle, middle + 1)
    exact = np.exp(-(z**2) / (2 * sigma**2))
    exact /= exact.sum()
    near = abs(z) < 7 * sigma
    np.testing.assert_allclose(sums[near], exact[near], rtol=1e-10)
    assert 0 < made.log_ratio < 1e-90 and made.total_variation < 2**-115


@pytest.mark.parametrize("sigma", [2_049.0, 1e4 / 3, 1e6, 2.0**22])
def test_wide_gaussians_add_up_to_their_variance_exactly(sigma):
    made = discrete_gaussian.sampler(sigma)
    step = made.scales[1]
    outer = Fraction(sigma) ** 2 // step**2 - 16
    inner = Fraction(sigma) ** 2 - step**2 * outer
    laws = [float(table.law.split()[-1]) for table in made.tables]
    np.testing.assert_allclose(laws, [math.sqrt(inner), math.sqrt(outer)], rtol=1e-5)
    assert 16 * step**2 <= inner < 17 * step**2 + 1
    assert made.log_ratio < 1e-130 and made.total_variation < 2**-112
    assert made.max_magnitude > 13 * sigma


@pytest.mark.parametrize("sigma", [0.3, 5.0, 700.0, 2_000.0])
def test_the_guide_finds_every_place(sigma):
    """Top words on, beside and between thresholds, and the two ends, against a plain search."""
    made = discrete_gaussian.table(sigma)
    tops = made.thresholds[0, : made.max_magnitude].astype(np.int64)
    near = np.concatenate([tops - 1, tops, tops + 1, tops // 2, [0, 1, 2**31 - 2, 2**31 - 1]])
    near = np.unique(near[(near >= 0) & (near < 2**31)]).astype(np.uint32)
    words = np.stack([near, *(np.full_like(near, low) for low in (0, 5, 2**32 - 1))])
    np.testing.assert_array_equal(
        inversion.sample(made, words), inversion.sample(made, words, implementation="reference")
    )
    places = guide_place(near, made.guide_bits)
    assert (np.diff(places) <= 0).all() and 0 <= places.min() and places.max() < len(made.guide)


def test_ties_in_a_draw_of_a_key_are_settled_by_its_further_words():
    """The trap: a draw whose first word is a threshold's, taken from a real keystream."""
    made, draws = discrete_gaussian.sampler(2_000.0), 1 << 20
    words = np.asarray(keystream_words(made, draws))
    tops = np.unique(made.thresholds[0, : made.max_magnitude])
    tied = np.flatnonzero(np.isin(words[0] & 0x7FFFFFFF, tops))
    assert len(tied) >= 3  # about nine are expected
    drawn = np.asarray(inversion.draw(made, KEY, NONCE, draws))
    expected = inversion.sample(made, words[:, tied], implementation="reference")
    np.testing.assert_array_equal(drawn[tied], expected)
    # Settled by the top word alone, some of them would have been another number.
    low = words[:, tied].copy()
    low[1:] = 0
    wrong = inversion.sample(made, low, implementation="reference")
    assert (np.asarray(wrong) != np.asarray(expected)).any()


def test_draws_of_keys_under_jit_vmap_and_shard_map():
    made, draws = discrete_gaussian.sampler(3_000.0), 5_001
    keys = np.stack([KEY, KEY + np.uint32(1), KEY + np.uint32(2)])
    expected = [np.asarray(inversion.draw(made, key, NONCE, draws)) for key in keys]
    assert (expected[0] != expected[1]).any()

    def of(table, key):
        return inversion.draw(table, key, NONCE, draws)

    many = jax.jit(jax.vmap(of, in_axes=(None, 0)))(made, keys)
    np.testing.assert_array_equal(many, expected)
    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("clients")
    sharded = jax.shard_map(
        jax.vmap(lambda key: of(made, key)), mesh=mesh, in_specs=spec, out_specs=spec
    )
    np.testing.assert_array_equal(jax.jit(sharded)(keys), expected)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(inversion.draw(made, KEY, NONCE, draws), expected[0])


def test_no_draws():
    for made in (skellam.sampler(1e7), discrete_laplace.sampler(2.0)):
        assert inversion.draw(made, KEY, NONCE, 0).shape == (0,)
        words = np.zeros((made.words_per_draw, 0), np.uint32)
        assert inversion.sample(made, words).shape == (0,)


# -- statistics ------------------------------------------------------------------------------------


def laplace_pmf(scale, z):
    q = math.exp(-1 / scale)
    return (1 - q) / (1 + q) * q ** abs(z).astype(float)


def gaussian_pmf(sigma, z):
    far = np.arange(-math.ceil(14 * sigma), math.ceil(14 * sigma) + 1, dtype=float)
    return np.exp(-(z.astype(float) ** 2) / (2 * sigma**2)) / np.exp(
        -(far**2) / (2 * sigma**2)
    ).sum()


LAWS = {
    "gaussian": (discrete_gaussian.sampler, gaussian_pmf, lambda sigma: sigma),
    "skellam": (
        skellam.sampler,
        lambda variance, z: stats.skellam.pmf(z, variance / 2, variance / 2),
        math.sqrt,
    ),
    "laplace": (discrete_laplace.sampler, laplace_pmf, lambda scale: scale * math.sqrt(2)),
}


def statistics_hold(counts: np.ndarray, low: int, pmf: np.ndarray) -> tuple[float, list[float]]:
    """Chi-square tail probability, and four standardised moments, of counts of low, low + 1, ...

    Cells are joined from the left until each expects 50 draws; what lies outside is the last cell.
    """
    draws = counts.sum()
    cells = np.minimum(np.cumsum(pmf) * draws // 50, max(draws // 50 - 1, 0)).astype(int)
    observed = np.bincount(cells, counts)
    expected = np.bincount(cells, pmf * draws)
    used = expected > 0
    observed, expected = observed[used], expected[used]
    observed[-2] += observed[-1]
    expected[-2] += draws - expected[:-1].sum() + 0.0
    observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    support = low + np.arange(len(counts)).astype(float)
    scores = []
    for power in (1, 2, 3, 4):
        mean = (pmf * support**power).sum()
        spread = math.sqrt((pmf * support ** (2 * power)).sum() - mean**2)
        found = (counts * support**power).sum() / draws
        scores.append((found - mean) / spread * math.sqrt(draws))
    return float(stats.chi2.sf(statistic, len(observed) - 1)), scores


def counted(make, parameter, draws: int, low: int, size: int, nonces: int = 1) -> np.ndarray:
    """How often each of low, ..., low + size - 1 is drawn; what lies outside counts at the ends."""
    table = make(parameter)
    drawing = jax.jit(lambda nonce: inversion.draw(table, KEY, nonce, draws))
    counts = np.zeros(size, np.int64)
    for number in range(nonces):
        drawn = np.asarray(drawing(np.array([number, 1, 2], np.uint32))).astype(np.int64)
        counts += np.bincount(np.clip(drawn - low, 0, size - 1), minlength=size)
    return counts


def check_law(name: str, parameter: float, draws: int, nonces: int) -> tuple[float, list[float]]:
    make, pmf_of, deviation = LAWS[name]
    reach = math.ceil(14 * deviation(parameter) + 30) * (3 if name == "laplace" else 1)
    reach = min(reach, make(parameter).max_magnitude)
    pmf = pmf_of(parameter, np.arange(-reach, reach + 1))
    counts = counted(make, parameter, draws, -reach, 2 * reach + 1, nonces)
    return statistics_hold(counts, -reach, pmf)


SMALL = [("gaussian", 1.0), ("gaussian", 3_000.0), ("skellam", 1e4), ("laplace", 0.7),
         pytest.param("skellam", 0.5, marks=pytest.mark.slow),
         pytest.param("laplace", 1_000.0, marks=pytest.mark.slow)]  # fmt: skip


@pytest.mark.parametrize("name, parameter", SMALL)
def test_chi_square_and_moments(name, parameter):
    tail, scores = check_law(name, parameter, 1 << 19, 1)
    assert tail > FALSE_ALARM
    limit = stats.norm.isf(FALSE_ALARM / 2)
    assert max(map(abs, scores)) < limit, scores


def test_the_checks_can_fail():
    pmf = stats.skellam.pmf(np.arange(-60, 61), 2.1, 2.1)
    counts = counted(skellam.sampler, 4.0, 1 << 18, -60, 121)
    tail, scores = statistics_hold(counts, -60, pmf)
    assert tail < FALSE_ALARM and abs(scores[1]) > stats.norm.isf(FALSE_ALARM / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name, parameter", [
    ("gaussian", 1.0), ("gaussian", 100.0), ("gaussian", 1e4), ("skellam", 100.0),
    ("laplace", 10.0), ("laplace", 1_000.0)])  # fmt: skip
def test_chi_square_and_moments_of_a_hundred_million_draws(name, parameter):
    """6 laws x (1 chi-square + 4 moments) at 1e-6 / 30 each: 1e-6 for all of them together."""
    alarm = FALSE_ALARM / 30
    tail, scores = check_law(name, parameter, 1 << 22, 25)  # 104,857,600 draws
    print(f"{name} {parameter:g}: chi-square tail {tail:.3g}, moments {np.round(scores, 2)}")
    assert tail > alarm
    assert max(map(abs, scores)) < stats.norm.isf(alarm / 2)


# -- an independent implementation: Canonne, Kamath, Steinke 2020, in rationals --------------------


@pytest.mark.parametrize("scale", [1, 300])
def test_laplace_agrees_with_an_independent_sampler(scale):
    coins, draws = random.Random(2020), 15_000
    theirs = np.array([laplace_reference.by_rejection(scale, coins) for _ in range(draws)])
    ours = np.asarray(inversion.draw(discrete_laplace.sampler(scale), KEY, NONCE, draws))
    assert stats.ks_2samp(theirs, ours).pvalue > FALSE_ALARM


def test_skellam_agrees_with_numpy_poissons():
    random_ = np.random.default_rng(5)
    theirs = random_.poisson(8.0, 100_000) - random_.poisson(8.0, 100_000)
    ours = np.asarray(inversion.draw(skellam.sampler(16.0), KEY, NONCE, 100_000))
    assert stats.ks_2samp(theirs, ours).pvalue > FALSE_ALARM
    assert abs(ours.var() - 16) < 0.5


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "2", True, 2.0**40])
def test_samplers_refuse(value):
    for make, name in (
        (skellam.sampler, "variance"), (skellam.table, "variance"),
        (discrete_laplace.sampler, "scale"), (discrete_gaussian.sampler, "sigma"),
        (discrete_gaussian.convolution, "sigma"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}` needs a number from"):
            make(value)


def test_draw_refuses():
    made = skellam.sampler(4.0)
    with pytest.raises(ValueError, match="`table` needs an inversion.Table or Sum, got float"):
        inversion.draw(4.0, KEY, NONCE, 3)
    with pytest.raises(ValueError, match="`num_draws` needs a Python integer from 0 to"):
        inversion.draw(made, KEY, NONCE, 1 << 31)
    with pytest.raises(ValueError, match="`key` needs"):
        inversion.draw(made, KEY[:4], NONCE, 3)
    with pytest.raises(ValueError, match="'triton'"):
        inversion.draw(made, KEY, NONCE, 3, implementation="triton")
    with pytest.raises(ValueError, match=r"`words` needs uint32\[12, n\], got uint32\[4, 2\]"):
        inversion.sample(skellam.sampler(1e7), np.zeros((4, 2), np.uint32))


@pytest.mark.parametrize("law", [discrete_gaussian, skellam, discrete_laplace])
def test_parameters_that_no_float_holds_and_short_floats(law):
    for value in (10**400, -(10**400)):
        with pytest.raises(ValueError, match="needs a number from .*got -?inf"):
            law.sampler(value)
    assert law.sampler(np.float16(2)).max_magnitude == law.sampler(2.0).max_magnitude
