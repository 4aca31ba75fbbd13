"""Shapes of the ChaCha20 kernel that every implementation is tested on."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One shape: how many streams are expanded together, and the 32-bit words of each."""

    streams: int
    num_words: int


# One stream: below a block, whole blocks, just past a block, and on both sides of a chunk.
TEST_CASES = (
    Case(1, 1),
    Case(1, 15),
    Case(1, 16),
    Case(1, 17),
    Case(1, 1_001),
    Case(1, 4_096),
    Case(1, 4_097),
    Case(1, 65_536),
    Case(1, 65_537),
    Case(1, 200_003),
    Case(5, 33),
    Case(3, 65_537),
    Case(700, 100),
)
