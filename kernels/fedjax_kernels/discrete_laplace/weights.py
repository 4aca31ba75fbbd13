"""Bounds on the weights of the discrete Laplace distribution and of its low part."""

from __future__ import annotations

from fractions import Fraction

from fedjax_kernels.inversion.table import GUARD_BITS, Weights, ceil_div, exp_of_minus


def geometric(exponent: Fraction, precision: int) -> Weights:
    """Bounds on 2^precision * q^k for k = 0, 1, ..., with q = exp(-exponent), and on the rest."""
    one = 1 << precision
    low_q, high_q = exp_of_minus(exponent, precision)
    low, high = [one], [one]
    while high[-1] >> GUARD_BITS:
        low.append(low[-1] * low_q >> precision)
        high.append((high[-1] * high_q >> precision) + 1)
    return Weights(low, high, ceil_div(high[-1] * high_q, one - high_q))


def truncated_difference(exponent: Fraction, size: int, precision: int) -> Weights:
    """Bounds on 2^precision * (q^k - q^(2 size - k)) / (1 - q^(2 size)) for k = 0, ..., size - 1.

    They are the weights of x - y at k, with x and y each j < size with probability proportional to
    q^j: the sum over y of q^(y + k) q^y for y < size - k is q^k (1 - q^(2 (size - k))) / (1 - q^2).
    """
    one = 1 << precision
    low_q, high_q = exp_of_minus(exponent, precision)
    low, high = [one], [one]
    for _ in range(2 * size):
        low.append(low[-1] * low_q >> precision)
        high.append((high[-1] * high_q >> precision) + 1)
    low_whole, high_whole = one - high[2 * size], one - low[2 * size]
    return Weights(
        [((low[k] - high[2 * size - k]) << precision) // high_whole for k in range(size)],
        [ceil_div((high[k] - low[2 * size - k]) << precision, low_whole) for k in range(size)],
        0,
    )
