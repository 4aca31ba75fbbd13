"""The table of the discrete Gaussian, built on the host in interval arithmetic on integers.

Every quantity is held as two integers, a lower and an upper bound, in units of 2^-precision. The
thresholds are then rounded correctly, or the precision is raised until they can be.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import numpy as np

WORDS_PER_DRAW = 4
MIN_SIGMA = 0.1
MAX_SIGMA = 10_000.0

_MAGNITUDE_BITS = 127  # of the 128 bits of a draw, the top one is the sign
_GUARD_BITS = 64


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["thresholds"],
    meta_fields=["sigma", "total_variation", "max_magnitude"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Inverse-CDF table of one discrete Gaussian, made by `table`.

    It is a pytree: `thresholds` is its only leaf, the rest is static, so that it may be passed
    through `jax.jit` or closed over.

    Attributes:
      thresholds: `[4, size] uint32`, columns of 128-bit integers with the most significant word
        first. Column k < max_magnitude holds 2^127 * P(|z| <= k), rounded to the nearest integer.
        The columns after it are all ones, which no draw reaches; size is a power of two.
      sigma: the parameter of the distribution.
      total_variation: an upper bound on the statistical distance between one draw from uniform
        words and the exact distribution, from the rounding of every threshold and the cut tail.
      max_magnitude: the largest |z| that can be drawn.
    """

    thresholds: jax.Array | np.ndarray
    sigma: float
    total_variation: float
    max_magnitude: int


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _exp_of_minus(x: Fraction, precision: int) -> tuple[int, int]:
    """Bounds on 2^precision * exp(-x) for x > 0: one over the Taylor series of exp(x)."""
    low_term = high_term = low = high = 1 << precision
    index = 0
    while high_term > 1 or index <= 2 * x:
        index += 1
        divisor = x.denominator * index
        low_term = low_term * x.numerator // divisor
        high_term = _ceil_div(high_term * x.numerator, divisor)
        low, high = low + low_term, high + high_term
    high += 2  # the terms left out are below 1, 1/2, 1/4, ... units
    return (1 << 2 * precision) // high, _ceil_div(1 << 2 * precision, low)


def _weights(sigma: Fraction, precision: int) -> tuple[list[int], list[int], int]:
    """Bounds on 2^precision * exp(-k^2 / (2 sigma^2)) for k = 0, 1, ..., and on the sum beyond."""
    one = 1 << precision
    low_q, high_q = _exp_of_minus(1 / (2 * sigma * sigma), precision)
    low_step, high_step = low_q * low_q >> precision, (high_q * high_q >> precision) + 1
    low_ratio, high_ratio = low_q, high_q  # q^(2k + 1), the ratio of weight k + 1 to weight k
    low, high = [one], [one]
    while high[-1] >> _GUARD_BITS:
        low.append(low[-1] * low_ratio >> precision)
        high.append((high[-1] * high_ratio >> precision) + 1)
        low_ratio = low_ratio * low_step >> precision
        high_ratio = (high_ratio * high_step >> precision) + 1
    # From here each weight is at most high_ratio times the one before it.
    beyond = _ceil_div(high[-1] * high_ratio, one - high_ratio)
    return low, high, beyond


def _thresholds(sigma: Fraction, precision: int) -> tuple[list[int], Fraction] | None:
    """The thresholds and the bound on the distance, or None if the precision is too low."""
    low_weights, high_weights, beyond = _weights(sigma, precision)
    low_mass = 2 * sum(low_weights) - low_weights[0]
    high_mass = 2 * (sum(high_weights) + beyond) - high_weights[0]
    scale = _MAGNITUDE_BITS + _GUARD_BITS
    half, whole = 1 << (_GUARD_BITS - 1), 1 << _MAGNITUDE_BITS
    thresholds: list[int] = []
    low_sum = high_sum = -(1 << precision)  # weight 0 counts once, the others twice
    distance = low_error = high_error = 0  # in units of 2^-scale
    for low_weight, high_weight in zip(low_weights, high_weights, strict=True):
        low_sum += 2 * low_weight
        high_sum += 2 * high_weight
        low_cdf = (low_sum << scale) // high_mass
        high_cdf = min(_ceil_div(high_sum << scale, low_mass), 1 << scale)
        threshold = (low_cdf + half) >> _GUARD_BITS
        if threshold != (high_cdf + half) >> _GUARD_BITS:
            return None
        low, high = (threshold << _GUARD_BITS) - high_cdf, (threshold << _GUARD_BITS) - low_cdf
        distance += max(abs(high - low_error), abs(low - high_error))
        low_error, high_error = low, high
        if threshold == whole:
            # The largest magnitude takes what is left, and `high_error` is the mass of the tail.
            return thresholds, Fraction(distance + high_error, 1 << (scale + 1))
        thresholds.append(threshold)
    return None


def table(sigma: float) -> Table:
    """Builds the table of the discrete Gaussian N_Z(0, sigma^2).

    The distribution puts mass proportional to exp(-z^2 / (2 sigma^2)) on each integer z. It is
    the noise of integer differential privacy: unlike rounded or floating-point Gaussian noise, its
    privacy proof holds for what the machine really draws. Build the table once, outside compiled
    code; it takes about 0.2 ms per unit of sigma.

    Guarantees: every threshold is 2^127 * P(|z| <= k) rounded to the nearest integer, proved by
      interval arithmetic; so the table is the same on every platform. The tail that is cut has a
      mass below 2^-128. `total_variation` is computed from the table, about 2^-126 at sigma 1 and
      2^-119 at sigma 100; distances of many draws add up.

    Args:
      sigma: the parameter, in integer units, between 0.1 and 10,000; it is taken as exactly the
        rational number that the float holds. For sigma of about 1 and more it is the standard
        deviation; below, the standard deviation is smaller.

    Returns:
      A `Table`, with NumPy thresholds.

    Raises:
      ValueError: if sigma is not a number within the limits. A wider distribution can be had as a
        sum of narrower ones.

    Example:
      >>> from fedjax_kernels import discrete_gaussian
      >>> small = discrete_gaussian.table(2.0)
      >>> small.max_magnitude, small.total_variation < 2**-124
      (26, True)

    Source: Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy"
      (arXiv 2004.00010), Definition 1. Sampling by inversion: Devroye 1986, "Non-Uniform Random
      Variate Generation", section III.2.
    """
    if isinstance(sigma, bool) or not isinstance(sigma, int | float | np.integer | np.floating):
        found = type(sigma).__name__
    elif not MIN_SIGMA <= sigma <= MAX_SIGMA:
        found = repr(float(sigma))
    else:
        return _build(float(sigma))
    raise ValueError(
        f"discrete_gaussian.table: `sigma` needs a number from {MIN_SIGMA} to {MAX_SIGMA:.0f}, "
        f"got {found}. Change the scale of the integers so that the noise fits."
    )


@functools.lru_cache(maxsize=16)
def _build(sigma: float) -> Table:
    precision = 256
    while (found := _thresholds(Fraction(sigma), precision)) is None:
        precision += 64
    thresholds, distance = found
    count = len(thresholds)
    columns = np.full((WORDS_PER_DRAW, 1 << count.bit_length()), 0xFFFFFFFF, np.uint32)
    packed = b"".join(threshold.to_bytes(16, "big") for threshold in thresholds)
    columns[:, :count] = np.frombuffer(packed, ">u4").reshape(count, WORDS_PER_DRAW).T
    columns.flags.writeable = False
    bound = math.nextafter(distance.numerator / distance.denominator, math.inf)
    return Table(columns, sigma=sigma, total_variation=bound, max_magnitude=count)
