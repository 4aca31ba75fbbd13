"""Sizes that tests and benchmarks of threshold decryption share."""

from __future__ import annotations

from typing import NamedTuple

from fedjax_kernels.threshold.noise import Flooding


class Case(NamedTuple):
    """One use: a named set, a batch, t of n holders, and a flood."""

    name: str
    batch: int
    threshold: int
    num_parties: int
    flooding: Flooding


# Floods of one part and of several, batches of one and an odd number, all holders and some.
CASES = (
    Case("rlwe-1024-26", 1, 2, 3, Flooding(num_parts=1, top_sigma=100)),
    Case("rlwe-1024-26", 3, 3, 3, Flooding(num_parts=2, top_sigma=9)),
    Case("rlwe-2048-52", 1, 2, 3, Flooding(num_parts=4, top_sigma=600)),
)
