"""Inverse-CDF tables of symmetric distributions on the integers, built in interval arithmetic.

The distributions give bounds on the weights of 0, 1, 2, ...: two integers each, a lower and an
upper bound in units of 2^-precision. The thresholds are then rounded correctly, or the precision
is raised until they can be.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

WORDS_PER_DRAW = 4

_MAGNITUDE_BITS = 127  # of the 128 bits of a draw, the top one is the sign
_TOP = (1 << 31) - 1  # the largest top word of a magnitude
GUARD_BITS = 64
#: Parts of an octave in the guide: more make the search shorter and the guide longer.
MAX_GUIDE_BITS = 10
#: Octaves 0 to 31 of the distance from the top, and one below them.
_OCTAVES = 33
_LOWEST_EXPONENT = 126


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["thresholds", "guide"],
    meta_fields=["law", "total_variation", "max_magnitude", "guide_bits", "guide_steps"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Inverse-CDF table of one symmetric distribution on the integers.

    It is a pytree: `thresholds` and `guide` are its leaves, the rest is static, so that it may be
    passed through `jax.jit` or closed over.

    Attributes:
      thresholds: `[4, size] uint32`, columns of 128-bit integers with the most significant word
        first. Column k < max_magnitude holds 2^127 * P(|z| <= k), rounded to the nearest integer.
        The columns after it are all ones, which no draw reaches; size is a power of two.
      guide: `[33 * 2^guide_bits] int32`: how many thresholds lie below all draws whose top words
        have one leading part; `guide_steps` halvings then find the place.
      law: the distribution, in words.
      total_variation: an upper bound on the statistical distance between one draw from uniform
        words and the exact distribution, from the rounding of every threshold and the cut tail.
      max_magnitude: the largest |z| that can be drawn.
      guide_bits: how many bits of the mantissa of a top word choose a place of the guide.
      guide_steps: halvings of the search from there.
    """

    thresholds: jax.Array | np.ndarray
    guide: jax.Array | np.ndarray
    law: str
    total_variation: float
    max_magnitude: int
    guide_bits: int
    guide_steps: int

    @property
    def words_per_draw(self) -> int:
        """How many random words a draw takes."""
        return WORDS_PER_DRAW

    @property
    def log_ratio(self) -> float:
        """0: the table is of the distribution itself."""
        return 0.0

    @property
    def terms(self) -> tuple[tuple[Table, int, int], ...]:
        """(table, scale, count): the draw is the sum of count draws of each table times scale."""
        return ((self, 1, 1),)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables"],
    meta_fields=["scales", "counts", "law", "log_ratio"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
    """A wide distribution as a sum of independent draws from tables, each times a whole number.

    It is a pytree, like `Table`, and is sampled by the same functions.

    Attributes:
      tables: the parts.
      scales: what each part's draws are multiplied by.
      counts: how many draws of each part are added.
      law: the distribution that the sum stands for, in words.
      log_ratio: the sum of exact parts has at every integer a probability within a factor
        exp(+-log_ratio) of that distribution's; 0 where it is that distribution.
    """

    tables: tuple[Table, ...]
    scales: tuple[int, ...]
    counts: tuple[int, ...]
    law: str
    log_ratio: float

    @property
    def words_per_draw(self) -> int:
        """How many random words a draw takes."""
        return WORDS_PER_DRAW * sum(self.counts)

    @property
    def total_variation(self) -> float:
        """Bounds the statistical distance between a draw and the sum of exact parts.

        A function of independent draws is no further from its ideal than they are together.
        """
        pairs = zip(self.tables, self.counts, strict=True)
        return math.nextafter(sum(t.total_variation * n for t, n in pairs), math.inf)

    @property
    def max_magnitude(self) -> int:
        """No larger magnitude can be drawn."""
        return sum(table.max_magnitude * abs(scale) * n for table, scale, n in self.terms)

    @property
    def terms(self) -> tuple[tuple[Table, int, int], ...]:
        """(table, scale, count): the draw is the sum of count draws of each table times scale."""
        return tuple(zip(self.tables, self.scales, self.counts, strict=True))


#: What `sample` and `draw` take.
Sampler: TypeAlias = Table | Sum


class Weights(NamedTuple):
    """Bounds on weights, proportional to the probabilities of 0, 1, 2, ..., in units.

    Attributes:
      low, high: of each weight; none increases by much, and the last are small.
      beyond: an upper bound on the sum of all that follow.
    """

    low: list[int]
    high: list[int]
    beyond: int


def real_number(value: object) -> tuple[float, str]:
    """A law's parameter as a float, NaN where it is no real number; and what to call it in a text.

    It is compared as a float: NumPy would round limits to the type of a shorter float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan, type(value).__name__
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    return number, repr(number)


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def exp_of_minus(x: Fraction, precision: int) -> tuple[int, int]:
    """Bounds on 2^precision * exp(-x) for x > 0: one over the Taylor series of exp(x)."""
    low_term = high_term = low = high = 1 << precision
    index = 0
    while high_term > 1 or index <= 2 * x:
        index += 1
        divisor = x.denominator * index
        low_term = low_term * x.numerator // divisor
        high_term = ceil_div(high_term * x.numerator, divisor)
        low, high = low + low_term, high + high_term
    high += 2  # the terms left out are below 1, 1/2, 1/4, ... units
    return (1 << 2 * precision) // high, ceil_div(1 << 2 * precision, low)


def _thresholds(weights: Weights, precision: int) -> tuple[list[int], Fraction] | None:
    """The thresholds and the bound on the distance, or None if the precision is too low."""
    low_mass = 2 * sum(weights.low) - weights.low[0]
    high_mass = 2 * (sum(weights.high) + weights.beyond) - weights.high[0]
    scale = _MAGNITUDE_BITS + GUARD_BITS
    half, whole = 1 << (GUARD_BITS - 1), 1 << _MAGNITUDE_BITS
    # One over the mass, below and above, with which each sum is multiplied.
    shift = 2 * precision
    low_inverse, high_inverse = (
        (1 << shift + scale) // high_mass,
        ceil_div(1 << shift + scale, low_mass),
    )
    thresholds: list[int] = []
    low_sum, high_sum = -weights.low[0], -weights.high[0]  # weight 0 counts once, others twice
    distance = low_error = high_error = 0  # in units of 2^-scale
    for low_weight, high_weight in zip(weights.low, weights.high, strict=True):
        low_sum += 2 * low_weight
        high_sum += 2 * high_weight
        low_cdf = low_sum * low_inverse >> shift
        high_cdf = min((high_sum * high_inverse >> shift) + 1, 1 << scale)
        threshold = (low_cdf + half) >> GUARD_BITS
        if threshold != (high_cdf + half) >> GUARD_BITS:
            return None
        low, high = (threshold << GUARD_BITS) - high_cdf, (threshold << GUARD_BITS) - low_cdf
        distance += max(abs(high - low_error), abs(low - high_error))
        low_error, high_error = low, high
        if threshold == whole:
            # The largest magnitude takes what is left, and `high_error` is the mass of the tail.
            return thresholds, Fraction(distance + high_error, 1 << (scale + 1))
        thresholds.append(threshold)
    return None


def build(law: str, weights: Callable[[int], Weights]) -> Table:
    """Builds the table of a distribution from bounds on its weights.

    Args:
      law: the distribution, in words.
      weights: takes the precision, a number of bits, and returns bounds on the weights in units of
        2^-precision, weight 0 near 1; tighter for a higher precision. They end where less than
        2^-130 of the mass is left.

    Returns:
      A `Table`, with NumPy arrays.
    """
    precision = 256
    while (found := _thresholds(weights(precision), precision)) is None:
        precision += 64
    thresholds, distance = found
    count = len(thresholds)
    columns = np.full((WORDS_PER_DRAW, 1 << count.bit_length()), 0xFFFFFFFF, np.uint32)
    packed = b"".join(threshold.to_bytes(16, "big") for threshold in thresholds)
    columns[:, :count] = np.frombuffer(packed, ">u4").reshape(count, WORDS_PER_DRAW).T
    bits = min(max((count >> 3).bit_length(), 2), MAX_GUIDE_BITS)
    guide, steps = _guide(columns[0, :count], columns.shape[1], bits)
    for array in (columns, guide):
        array.flags.writeable = False
    bound = math.nextafter(distance.numerator / distance.denominator, math.inf)
    return Table(columns, guide, law, bound, count, bits, steps)


def guide_place(top: np.ndarray, bits: int) -> np.ndarray:
    """Where the guide is read for top words: floating-point exponent and `bits` of the mantissa.

    It grows with the distance of the top word from its largest value, which is the probability of
    the tail. So the parts are as fine, for their mass, in the tail as in the middle.
    """
    distance = np.float32(_TOP - top.astype(np.int64))
    place = (distance.view(np.int32) >> (23 - bits)) - (_LOWEST_EXPONENT << bits)
    return np.maximum(place, 0)


def _guide(tops: np.ndarray, size: int, bits: int) -> tuple[np.ndarray, int]:
    """The guide, and the halvings that find every place from it.

    A search of `steps` halvings tells the places of 2^steps - 1 thresholds in a row apart.
    """
    per_place = np.bincount(guide_place(tops, bits), minlength=_OCTAVES << bits)
    # Larger places hold smaller top words: what lies below a place is in the places after it.
    below = per_place.sum() - np.cumsum(per_place)
    # Within 2^(bits + 1) of the top, a place is one top word: a threshold there is a tie.
    single = guide_place(np.array([_TOP - (2 << bits)]), bits)[0]
    steps = int(per_place[single:].max(initial=1)).bit_length()
    # A search window that would leave the table begins earlier; it still ends behind the last.
    return np.minimum(below, max(size - (1 << steps), 0)).astype(np.int32), steps
