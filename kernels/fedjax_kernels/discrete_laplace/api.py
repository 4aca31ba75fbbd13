"""Samplers of the discrete Laplace distribution: one table, or two for a wide one."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from fedjax_kernels.discrete_laplace.weights import geometric, truncated_difference
from fedjax_kernels.inversion import Sampler, Sum, Table, build
from fedjax_kernels.inversion.table import real_number

MIN_SCALE = 0.01
#: The widest; the largest draw fits 31 bits.
MAX_SCALE = float(1 << 24)
#: From here on two tables, which fit the cache, take the place of one.
_WIDE_SCALE = 256.0


def sampler(scale: float) -> Sampler:
    """The fastest sampler of the discrete Laplace distribution: probability ~ exp(-|z| / scale).

    Added to an integer that one unit can move by at most `sensitivity`, it is epsilon-DP with
    scale = sensitivity / epsilon, with no dp_delta: also called the two-sided geometric mechanism.

    Guarantees: a draw from uniform words is within `total_variation` (below 2^-107) of the exact
      distribution, and `log_ratio` is 0. A wide one is x + m y with independent x and y, exactly:
      (1) Z = G - H for independent geometric G and H, P(g) ~ q^g, q = exp(-1 / scale): the sum over
      h of q^(|z| + h) q^h is q^|z| over a constant.
      (2) As q^g = q^(g mod m) (q^m)^(g div m), the remainder and the quotient of G by m are
      independent, the remainder with probability ~ q^j for j < m, and the quotient geometric
      with q^m.
      (3) So Z = (G mod m - H mod m) + m (G div m - H div m): x is the difference of two
      remainders, and y, by (1), discrete Laplace of scale / m.

    Args:
      scale: in integer units, 0.01 to 16,777,216 (2^24); it is taken as exactly the rational number
        that the float holds.

    Returns:
      A `Table` up to a scale of 256, a `Sum` of two above.

    Raises:
      ValueError: the scale is not a number within the limits.

    Example:
      >>> from fedjax_kernels import discrete_laplace
      >>> noise = discrete_laplace.sampler(1 / 0.5)  # epsilon 0.5 for a count
      >>> noise.max_magnitude, noise.total_variation < 2**-120
      (177, True)

    Source: Ghosh, Roughgarden, Sundararajan 2009, "Universally Utility-Maximizing Privacy
      Mechanisms" (the mechanism); Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Algorithm 2
      (the same split into a remainder and a quotient).
    """
    number, found = real_number(scale)
    if not MIN_SCALE <= number <= MAX_SCALE:
        raise ValueError(
            f"discrete_laplace.sampler: `scale` needs a number from {MIN_SCALE:g} to "
            f"{MAX_SCALE:.0f}, got {found}. "
            "Change the scale of the integers so that the noise fits."
        )
    exact = Fraction(number)
    if number <= _WIDE_SCALE:
        return _outer(exact)
    size = math.isqrt(89 * math.ceil(number))  # a table has 88 thresholds a unit of its scale
    return Sum((_inner(exact, size), _outer(exact / size)), (1, size), (1, 1), _law(number), 0.0)


def _law(scale: float) -> str:
    return f"discrete Laplace, scale {float(scale):g}"


@functools.lru_cache(maxsize=16)
def _outer(scale: Fraction) -> Table:
    return build(_law(float(scale)), functools.partial(geometric, 1 / scale))


@functools.lru_cache(maxsize=16)
def _inner(scale: Fraction, size: int) -> Table:
    law = f"difference of two remainders by {size} of geometric variables, scale {float(scale):g}"
    return build(law, functools.partial(truncated_difference, 1 / scale, size))
