"""Samplers of the discrete Gaussian: one table, or two for a wide one."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from fedjax_kernels.discrete_gaussian.weights import weights
from fedjax_kernels.inversion import Sampler, Sum, Table, build
from fedjax_kernels.inversion.table import real_number

MIN_SIGMA = 0.1
#: The widest single table.
MAX_SIGMA = 10_000.0
#: The widest convolution: two tables of some 55,000 thresholds each.
MAX_WIDE_SIGMA = float(1 << 22)
#: From here on two tables, which fit the cache, are faster than one, or sooner built.
_WIDE_SIGMA = 2_048.0
#: How much wider than the step between the multiples of the second part the first one is.
_SMOOTHING = 4


def sampler(sigma: float) -> Sampler:
    """The fastest sampler of the discrete Gaussian N_Z(0, sigma^2).

    The distribution puts mass proportional to exp(-z^2 / (2 sigma^2)) on each integer z. It is
    the noise of integer differential privacy: unlike rounded or floating-point Gaussian noise, its
    privacy proof holds for what the machine really draws. Make the sampler once, outside compiled
    code, and give it to `sample` or `draw`.

    Guarantees: a draw from uniform words is within `total_variation` of a distribution whose
      logarithm is everywhere within `log_ratio` of the discrete Gaussian's. Both are proved: see
      `table` and `convolution`. `log_ratio` is 0 up to sigma 2,048 and below 1e-130 above;
      `total_variation` is below 2^-112.

    Args:
      sigma: the parameter, in integer units, between 0.1 and 4,194,304 (2^22); it is taken as
        exactly the rational number that the float holds.

    Returns:
      A `Table` up to sigma 2,048, a `Sum` of two above.

    Raises:
      ValueError: if sigma is not a number within the limits.

    Example:
      >>> from fedjax_kernels import discrete_gaussian
      >>> wide = discrete_gaussian.sampler(1e6)
      >>> wide.words_per_draw, wide.total_variation < 2**-112, wide.log_ratio < 1e-130
      (8, True, True)

    Source: Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy"
      (arXiv 2004.00010), Definition 1.
    """
    sigma = _checked("sampler", sigma, MIN_SIGMA, MAX_WIDE_SIGMA)
    return _table(Fraction(sigma) ** 2) if sigma <= _WIDE_SIGMA else convolution(sigma)


def table(sigma: float) -> Table:
    """One table of the discrete Gaussian N_Z(0, sigma^2).

    Build the table once, outside compiled code; it takes about 0.1 ms per unit of sigma.

    Guarantees: every threshold is 2^127 * P(|z| <= k) rounded to the nearest integer, proved by
      interval arithmetic; so the table is the same on every platform. The tail that is cut has a
      mass below 2^-128. `total_variation` is computed from the table, about 2^-126 at sigma 1 and
      2^-119 at sigma 100; distances of many draws add up.

    Args:
      sigma: the parameter, in integer units, between 0.1 and 10,000; it is taken as exactly the
        rational number that the float holds. For sigma of about 1 and more it is the standard
        deviation; below, the standard deviation is smaller.

    Returns:
      A `Table`, with NumPy arrays.

    Raises:
      ValueError: if sigma is not a number within the limits; `sampler` goes further.

    Example:
      >>> from fedjax_kernels import discrete_gaussian
      >>> small = discrete_gaussian.table(2.0)
      >>> small.max_magnitude, small.total_variation < 2**-124
      (26, True)

    Source: as for `sampler`.
    """
    return _table(Fraction(_checked("table", sigma, MIN_SIGMA, MAX_SIGMA)) ** 2)


def convolution(sigma: float) -> Sum:
    """The discrete Gaussian N_Z(0, sigma^2) as x + k y of two narrower ones.

    With x of variance s^2 and y of variance t^2, where s^2 + k^2 t^2 = sigma^2 holds exactly, k is
    near sqrt(sigma) / 2 and s is at least 4 k. Each of the two tables then has about
    26 sqrt(sigma) thresholds instead of 13 sigma.

    Guarantees: with exact x and y, the probability of every integer is within a factor
      exp(+-log_ratio) of the discrete Gaussian's. Proof:
      (1) Let r_u(v) = exp(-v^2 / (2 u^2)). The probability of z is the sum over y of
      r_s(z - k y) r_t(y), over a constant.
      (2) Completing the square, r_s(z - k y) r_t(y) = r_sigma(z) r_w(y - c z), with
      1 / w^2 = k^2 / s^2 + 1 / t^2 and c = k w^2 / s^2.
      (3) So it is r_sigma(z) f(c z) over a constant, with f(a) the sum over all integers y of
      r_w(y - a). By Poisson's summation formula f(a) is sqrt(2 pi) w times
      1 + 2 (q cos(2 pi a) + q^4 cos(4 pi a) + q^9 cos(6 pi a) + ...), q = exp(-2 pi^2 w^2).
      (4) All those terms together are at most e = 2 q / (1 - q^3), as j^2 >= 1 + 3 (j - 1). So f
      is within a factor (1 + e) / (1 - e) of itself at any two places.
      (5) The probability of z over the discrete Gaussian's is f(c z) over the mean of f(c .)
      under the discrete Gaussian, which lies between f's extremes. Hence
      log_ratio = log((1 + e) / (1 - e)).
      As w is about 4, e is near 1e-136. The tables' total variations are charged beside it.

    Args:
      sigma: the parameter, between 16 and 4,194,304 (2^22).

    Returns:
      A `Sum` of two tables.

    Raises:
      ValueError: if sigma is not a number within the limits.

    Example:
      >>> from fedjax_kernels import discrete_gaussian
      >>> discrete_gaussian.convolution(1000.0).scales
      (1, 15)

    Source: Peikert, CRYPTO 2010 (ePrint 2010/088), theorem 3.1; the scaled form and the closeness
      of all probabilities as in Micciancio, Walter, CRYPTO 2017 (ePrint 2017/259), section 4.
    """
    sigma = _checked("convolution", sigma, 16.0, MAX_WIDE_SIGMA)
    whole = Fraction(sigma) ** 2
    step = math.isqrt(math.floor(sigma)) // 2
    outer = (math.floor(whole) // step**2) - _SMOOTHING**2
    inner = whole - step**2 * outer
    ripple = 1 / (step**2 / inner + Fraction(1, outer))  # w^2
    # The float is within 1e-15 of the fraction, and exp and pi within a few units in the last
    # place: the exponent is lowered by more than all of that.
    q = math.exp(-2 * math.pi**2 * float(ripple) * (1 - 1e-12))
    e = 2 * q / (1 - q**3)
    log_ratio = 2 * e / (1 - e) * (1 + 1e-12)  # log((1 + e) / (1 - e)) <= 2 e / (1 - e)
    return Sum((_table(inner), _table(Fraction(outer))), (1, step), (1, 1), _law(sigma), log_ratio)


def _law(sigma: float) -> str:
    return f"discrete Gaussian, sigma {sigma:g}"


@functools.lru_cache(maxsize=16)
def _table(variance: Fraction) -> Table:
    return build(_law(math.sqrt(variance)), functools.partial(weights, variance))


def _checked(where: str, sigma: object, low: float, high: float) -> float:
    number, found = real_number(sigma)
    if low <= number <= high:
        return number
    raise ValueError(
        f"discrete_gaussian.{where}: `sigma` needs a number from {low:g} to {high:.0f}, "
        f"got {found}. "
        + (
            "sampler(...) takes a wider one."
            if where == "table"
            else "Change the scale of the integers so that the noise fits."
        )
    )
