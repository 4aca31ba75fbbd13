"""Shapes of the inversion sampler that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: the parameter of a discrete Gaussian and the number of draws."""

    sigma: float
    draws: int


# Narrower than one integer up to wide, and lengths on both sides of a row and a chunk.
TEST_CASES = (
    Case(0.1, 5),
    Case(0.5, 1),
    Case(2.0, 16_384),
    Case(1 / 3, 16_385),
    Case(10.0, 257),
    Case(300.0, 33_333),
)
