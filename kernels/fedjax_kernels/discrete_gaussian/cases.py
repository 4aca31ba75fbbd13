"""Shapes of the discrete Gaussian sampler that the tests and the benchmarks share."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: the parameter of the distribution and the number of draws."""

    sigma: float
    draws: int


# Narrower than one integer up to wide, and lengths on both sides of a chunk of 16,384 draws.
TEST_CASES = (
    Case(0.1, 5),
    Case(0.5, 1),
    Case(2.0, 16_384),
    Case(1 / 3, 16_385),
    Case(300.0, 33_333),
)

BENCH_CASES = (Case(2.0, 1_000_000), Case(100.0, 1_000_000), Case(3_000.0, 1_000_000))
