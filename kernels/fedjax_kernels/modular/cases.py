"""Shapes and extreme values that tests and benchmarks of the modular kernel share."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: `prime_bits` has one entry per limb."""

    ring_degree: int
    prime_bits: tuple[int, ...]
    batch: int


CASES = (
    Case(8, (5,), 1),
    Case(1024, (27,), 3),
    Case(2048, (27, 27), 1),
    Case(4096, (30, 30, 30), 5),
    Case(8192, (30,) * 7, 2),
)


def extreme_residues(q: int) -> tuple[int, ...]:
    """Residues at which lazy arithmetic is likely to fail."""
    edges = (0, 1, 2, q // 2, q // 2 + 1, (1 << 16) - 1, 1 << 16, q - 2, q - 1)
    return tuple(sorted({edge for edge in edges if 0 <= edge < q}))


EXTREME_WORDS = (0, 1, (1 << 16) - 1, 1 << 16, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)
