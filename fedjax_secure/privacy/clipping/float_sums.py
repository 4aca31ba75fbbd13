"""What one record can change where records are clipped and summed in floating point.

On the exact path each record's gradient is rounded to integers and its norm is checked on them, so
its sensitivity is exact. Ghost clipping makes no record's gradient, so there is nothing to check:
a client's records are clipped and added up in float32, and the sum is rounded to integers once.
This file bounds how far the integers of one more record can then differ.
"""

from __future__ import annotations

import math

from ...core import Spec
from ...core.stage import need

#: Probability a round with which a bound on a random rounding, or on how many records are drawn,
#: does not hold. Each of the two is charged.
SUM_FAILURE = 2.0**-64
_ROUNDOFF = 2.0**-24
_MOST_ERROR = 0.25


def float_sum_error(most_records: int, batch_size: int) -> float:
    """How far a client's float sum may be from the exact sum, over each record's bound.

    Args:
        most_records: records in the sum, at most; m.
        batch_size: records whose gradients are added up in one product; B.

    Returns:
        ``m (gamma_B + 3 u + 2 (m u / B)^2)``, u = 2^-24, gamma_B = B u / (1 - B u): what
        `fedjax_secure.training.ghost_sums` promises, and u for the product with a scale.

    Example:
        >>> f"{float_sum_error(100, 64):.1e}"
        '4.0e-04'
    """
    gamma = batch_size * _ROUNDOFF / (1.0 - batch_size * _ROUNDOFF)
    kept = 2.0 * (max(most_records, batch_size) * _ROUNDOFF / batch_size) ** 2
    return most_records * (gamma + 3.0 * _ROUNDOFF + kept)


def sum_sensitivity(l2_bound: float, error: float) -> float:
    """How far one record more or less moves a client's float sum, in L2 norm.

    Guarantees:
        Let D have one record more than D', all coins for other records being equal. The record
        belongs to one client; every other client's sum is the same. In that client's, the other
        records move to other places and batches, but what each of them adds, V_i, is the same to
        the last bit (assumed; see `fedjax_secure.training.ghost_sums`). So the exact sums differ by
        the record's own V_j, ``|V_j| <= l2_bound``, and each float sum is within
        ``error * l2_bound`` of its exact sum. By the triangle inequality the float sums differ by
        at most ``l2_bound (1 + 2 error)``.

    Example:
        >>> round(sum_sensitivity(2.0, 0.01), 3)
        2.04
    """
    return l2_bound * (1.0 + 2.0 * error)


def rounded_sum_l2_bound(l2_bound: float, dim: int) -> float:
    """How far one record more or less moves the stochastically rounded sum, in integer units.

    Guarantees:
        Except with probability `SUM_FAILURE` over the rounding, for every fixed pair of sums. Step
        by step:

        1. Both sums x and x' are rounded with the same random words: the words come from a key
           that no data changes. A value is rounded to ``floor(x) + [w < frac(x)]``, w uniform on
           multiples of 2^-24 in [0, 1): that is ``floor(y + v)`` for v uniform in [0, 1) and a y
           with ``0 <= y - x < 2^-24``.
        2. ``floor(y + v) - floor(y' + v)`` is one of the two integers around ``y - y'``, with mean
           ``y - y'``: a stochastic rounding of the difference, independent in each value.
        3. ``|y - y'| <= |x - x'| + 2^-24 sqrt(dim)``.
        4. The norm of a stochastic rounding of a vector of norm c exceeds the bound of Kairouz, Liu
           and Steinke with probability at most b; here b = 2^-64, and nothing is drawn again.
        5. So for the pair, the integers' distribution is within b, in total variation, of one for
           which the difference never exceeds the bound: b is added to the mechanism's.

    Args:
        l2_bound: how far the sums differ, in integer units.
        dim: number of values.

    Example:
        >>> 4096 < rounded_sum_l2_bound(4096.0, 30) < 4110
        True

    Source:
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Algorithm 1 (the norm of a rounding).
    """
    c, root = l2_bound + 2.0**-24 * math.sqrt(dim), math.sqrt(dim)
    spread = math.sqrt(2.0 * math.log(1.0 / SUM_FAILURE)) * (c + root / 2.0)
    return min(c + root, math.sqrt(c**2 + dim / 4.0 + spread))


def most_drawn(records: int, rate: float) -> int:
    """How many of some records are drawn at most, except with probability `SUM_FAILURE`.

    Args:
        records: each of which is drawn with its own coin.
        rate: of the coins, at most.

    Returns:
        The least t for which Chernoff's bound ``exp(-n KL(t / n, rate))`` on t or more is at most
        2^-64; never above ``records``.

    Example:
        >>> most_drawn(60_000, 0.001), most_drawn(50, 1.0), most_drawn(50, 0.9)
        (147, 50, 50)
    """
    if rate >= 1.0 or records == 0:
        return records
    low, high = math.ceil(records * rate), records

    def unlikely(count: int) -> bool:
        share = count / records
        other = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
        exponent = share * math.log(share / rate) + other if share > rate else 0.0
        return records * exponent >= math.log(1.0 / SUM_FAILURE)

    while low < high:  # `unlikely` is monotone above the mean
        middle = (low + high) // 2
        low, high = (low, middle) if unlikely(middle) else (middle + 1, high)
    return low


def with_float_sums(spec: Spec, l2_bound: float, batch_size: int) -> Spec:
    """The specification behind records that the engine clips to a bound and sums.

    Raises:
        SpecError: sums of so many records that their error is a quarter of the bound or more.
    """
    records = spec.client_records or spec.num_records
    drawn = spec.sampling
    if drawn is not None and drawn.kind == "poisson" and drawn.unit == "record":
        records = most_drawn(records, drawn.rate)
    error = float_sum_error(records, batch_size)
    need(error <= _MOST_ERROR, "clip", f"sums whose float error is at most {_MOST_ERROR} of a "
         "record's bound", f"{error:.2g} for up to {records} records of one client in a round",
         "Lower the sampling rate or batch_size, or use method='exact'.")
    bound = sum_sensitivity(l2_bound, error)
    return spec.replace(unit="record", l2_bound=bound, linf_bound=bound, float_sum_error=error)
