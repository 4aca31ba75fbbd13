"""Sizes that tests and benchmarks of the encryption share."""

from __future__ import annotations

from typing import NamedTuple

from fedjax_kernels.rlwe.parameters import Encoding


class Case(NamedTuple):
    """One use: a named set, a batch, how many summands, and the lanes."""

    name: str
    batch: int
    num_summands: int
    encoding: Encoding


CASES = (
    Case("rlwe-1024-26", 3, 4, Encoding(lane_bits=10, num_lanes=1, noise_bits=15)),
    Case("rlwe-2048-52", 1, 8, Encoding(lane_bits=17, num_lanes=2, noise_bits=16)),
    Case("rlwe-4096-90", 1, 1000, Encoding(lane_bits=35, num_lanes=2, noise_bits=18)),
)
