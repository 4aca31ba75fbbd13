"""Inversion on big integers."""

from __future__ import annotations

import bisect
import decimal
from collections.abc import Iterable

import numpy as np


def thresholds(weights: Iterable[decimal.Decimal], *, digits: int = 120) -> list[int]:
    """2^127 * P(|z| <= k) rounded to the nearest integer, for k = 0, 1, ... until it is 2^127.

    Args:
      weights: proportional to the probabilities of |z| = 0, 1, ..., until they no longer matter.
      digits: of the decimal arithmetic.
    """
    with decimal.localcontext() as context:
        context.prec = digits
        context.Emin = decimal.MIN_EMIN
        masses = list(weights)
        mass, total, found = sum(masses), decimal.Decimal(0), []
        for weight in masses:
            total += weight
            value = int((2**127 * total / mass).to_integral_value(decimal.ROUND_HALF_UP))
            if value >= 2**127:
                break
            found.append(value)
    return found


def sample(columns: np.ndarray, words: np.ndarray, max_magnitude: int) -> np.ndarray:
    """`[n] int32` from the table's `[4, size]` and the random `[4, n]` words."""

    def integers(rows: np.ndarray) -> list[int]:
        return [int.from_bytes(column.astype(">u4").tobytes(), "big") for column in rows.T]

    steps = integers(np.asarray(columns)[:, :max_magnitude])
    draws = []
    for value in integers(np.asarray(words)):
        negative, remainder = divmod(value, 2**127)
        magnitude = bisect.bisect_right(steps, remainder)
        draws.append(-magnitude if negative else magnitude)
    return np.array(draws, dtype=np.int32)
