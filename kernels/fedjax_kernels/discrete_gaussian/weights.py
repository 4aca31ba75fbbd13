"""Bounds on the weights of the discrete Gaussian, in interval arithmetic on integers."""

from __future__ import annotations

from fractions import Fraction

from fedjax_kernels.inversion.table import GUARD_BITS, Weights, ceil_div, exp_of_minus


def weights(variance: Fraction, precision: int) -> Weights:
    """Bounds on 2^precision * exp(-k^2 / (2 variance)) for k = 0, 1, ..., and on the sum beyond."""
    one = 1 << precision
    low_q, high_q = exp_of_minus(1 / (2 * variance), precision)
    low_step, high_step = low_q * low_q >> precision, (high_q * high_q >> precision) + 1
    low_ratio, high_ratio = low_q, high_q  # q^(2k + 1), the ratio of weight k + 1 to weight k
    low, high = [one], [one]
    while high[-1] >> GUARD_BITS:
        low.append(low[-1] * low_ratio >> precision)
        high.append((high[-1] * high_ratio >> precision) + 1)
        low_ratio = low_ratio * low_step >> precision
        high_ratio = (high_ratio * high_step >> precision) + 1
    # From here each weight is at most high_ratio times the one before it.
    return Weights(low, high, ceil_div(high[-1] * high_ratio, one - high_ratio))
