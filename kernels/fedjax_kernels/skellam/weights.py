"""Bounds on the Skellam distribution's weights: ratios of Bessel functions by recurrence.

P(z) is exp(-v) I_z(v) at variance v. Only ratios are needed, r_k = I_{k+1}(v) / I_k(v), which lie
between 0 and 1. From I_{k-1} - I_{k+1} = (2 k / v) I_k follows r_{k-1} = 1 / (2 k / v + r_k). Run
downwards from r_K in [0, 1] this is a contraction: the width of the interval shrinks by about
r_{k-1}^2 in each step, by exp(-(K^2 - k^2) / v) or more in all.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fedjax_kernels.inversion.table import GUARD_BITS, Weights, ceil_div


def weights(variance: Fraction, precision: int) -> Weights:
    """Bounds on 2^precision * I_k(v) / I_0(v) for k = 0, 1, ..., and on the sum beyond."""
    one = 1 << precision
    ratios = _ratios(variance, precision)
    low, high = [one], [one]
    for low_ratio, high_ratio in ratios:
        if not high[-1] >> GUARD_BITS:
            # Ratios decrease in k (Amos 1974), so each weight is at most this times the last.
            return Weights(low, high, ceil_div(high[-1] * high_ratio, one - high_ratio))
        low.append(low[-1] * low_ratio >> precision)
        high.append((high[-1] * high_ratio >> precision) + 1)
    raise AssertionError("the recurrence begins behind all weights that matter")


def _ratios(variance: Fraction, precision: int) -> list[tuple[int, int]]:
    """Bounds on 2^precision * r_k for k = 0, 1, ..., K - 1."""
    # From the weights' end, where they are 2^-(precision - GUARD_BITS), the interval has to shrink
    # by as much again: in the Gaussian range both take sigma sqrt(2 bits ln 2), and beyond it
    # ratios are smaller than that.
    nats = precision * math.log(2)
    v = float(variance)
    start = math.ceil(2 * (math.sqrt(2 * nats * v) + nats)) + 16
    numerator, denominator = variance.numerator, variance.denominator
    one, unit = 1 << precision, 1 << 2 * precision
    low, high = 0, one
    ratios = []
    for k in range(start, 0, -1):
        scaled = (2 * k * denominator) << precision
        low, high = (
            unit // (ceil_div(scaled, numerator) + high),
            min(ceil_div(unit, scaled // numerator + low), one),
        )
        ratios.append((low, high))
    ratios.reverse()
    return ratios
