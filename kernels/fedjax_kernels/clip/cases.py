"""Shapes of clipping that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """A number of rows, their length, and the bound."""

    rows: int
    dim: int
    l2_bound: float


# One row and many, lengths that are prime and not, bounds far from one.
TEST_CASES = (
    Case(1, 1, 1.0),
    Case(3, 7, 0.5),
    Case(16, 1_000, 3.0),
    Case(5, 1_009, 1e-12),
    Case(40, 4_096, 1e12),
)
