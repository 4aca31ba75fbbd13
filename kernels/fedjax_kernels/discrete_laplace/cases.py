"""Scales of the discrete Laplace sampler that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: the scale and the number of draws."""

    scale: float
    draws: int


TEST_CASES = (Case(0.01, 5), Case(1 / 3, 300), Case(2.0, 16_385), Case(100.0, 3_000))
#: Sums of two tables.
WIDE_CASES = (Case(300.0, 1_000), Case(1e6, 700))
