"""Variances of the Skellam sampler that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: the variance and the number of draws."""

    variance: float
    draws: int


TEST_CASES = (Case(0.01, 5), Case(1 / 3, 300), Case(4.0, 16_385), Case(1e4, 3_000))
#: A sum of parts.
WIDE_CASES = (Case(1e7, 1_000),)
