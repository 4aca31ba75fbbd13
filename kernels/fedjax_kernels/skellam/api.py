"""Samplers of the symmetric Skellam distribution: one table, or equal parts for a wide one."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from fedjax_kernels.inversion import Sampler, Sum, Table, build
from fedjax_kernels.inversion.table import real_number
from fedjax_kernels.skellam.weights import weights

MIN_VARIANCE = 0.01
#: The largest variance of one table, whose standard deviation is 2,048.
MAX_TABLE_VARIANCE = float(1 << 22)
#: The largest variance of a sum of 1,024 draws.
MAX_VARIANCE = float(1 << 32)


def sampler(variance: float) -> Sampler:
    """A sampler of the symmetric Skellam distribution: the difference of two equal Poissons.

    Sums of Skellam variables are Skellam again, exactly: the noise of a sum of clients' shares has
    a known distribution, which the discrete Gaussian has only nearly.

    Guarantees: a draw from uniform words is within `total_variation` of the exact distribution,
      and `log_ratio` is 0: a wide variance is a sum of equal independent parts, which is exact.

    Args:
      variance: of the difference, twice the rate of each Poisson; 0.01 to 2^32. It is taken as
        exactly the rational number that the float holds.

    Returns:
      A `Table` up to a variance of 2^22, whose standard deviation is 2,048, and a `Sum` above,
      with a draw for each 2^22: the cost grows with the variance.

    Raises:
      ValueError: the variance is not a number within the limits.

    Example:
      >>> from fedjax_kernels import skellam
      >>> skellam.sampler(100.0).words_per_draw, skellam.sampler(1e7).words_per_draw
      (4, 12)

    Source: Skellam 1946; Agarwal, Kairouz, Liu 2021, "The Skellam Mechanism for Differentially
      Private Federated Learning" (arXiv 2110.04995), section 3.
    """
    variance = _checked("sampler", variance, MAX_VARIANCE)
    parts = math.ceil(variance / MAX_TABLE_VARIANCE)
    one = _table(Fraction(variance) / parts)
    return one if parts == 1 else Sum((one,), (1,), (parts,), _law(variance), 0.0)


def table(variance: float) -> Table:
    """One table of the symmetric Skellam distribution.

    Build it once, outside compiled code; it takes about 0.2 ms per unit of standard deviation.

    Guarantees: every threshold is 2^127 * P(|z| <= k) rounded to the nearest integer, proved by
      interval arithmetic on the recurrence of Bessel functions; the tail that is cut has a mass
      below 2^-128.

    Args:
      variance: as for `sampler`, at most 2^22.

    Returns:
      A `Table`, with NumPy arrays.

    Raises:
      ValueError: the variance is not a number within the limits.

    Example:
      >>> from fedjax_kernels import skellam
      >>> small = skellam.table(4.0)
      >>> small.max_magnitude, small.total_variation < 2**-124
      (40, True)

    Source: Abramowitz, Stegun 1964, 9.6.26 (the recurrence); Amos 1974, "Computation of Modified
      Bessel Functions and Their Ratios" (ratios decrease in the order).
    """
    return _table(Fraction(_checked("table", variance, MAX_TABLE_VARIANCE)))


def _law(variance: float) -> str:
    return f"Skellam, variance {variance:g}"


@functools.lru_cache(maxsize=16)
def _table(variance: Fraction) -> Table:
    return build(_law(float(variance)), functools.partial(weights, variance))


def _checked(where: str, variance: object, most: float) -> float:
    number, found = real_number(variance)
    if MIN_VARIANCE <= number <= most:
        return number
    raise ValueError(
        f"skellam.{where}: `variance` needs a number from {MIN_VARIANCE:g} to {most:.0f}, "
        f"got {found}. Change the scale of the integers so that the noise fits."
    )
