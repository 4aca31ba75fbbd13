"""Shapes of randomised response that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: the epsilon of an answer, the number of values, and of answers."""

    epsilon: float
    num_values: int
    answers: int


TEST_CASES = (
    Case(1e-6, 2, 100),
    Case(1.0, 2, 5_000),
    Case(0.5, 3, 5_000),
    Case(3.0, 62, 5_000),
    Case(30.0, 65_536, 1_000),
)
