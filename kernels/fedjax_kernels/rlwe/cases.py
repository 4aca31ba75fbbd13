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

#: Batches past one block of columns, odd, where blocks overlap, are wider than usual, or go
#: through the transforms in two or four parts.
BLOCK_CASES = (
    Case("rlwe-4096-60", 19, 1, Encoding(lane_bits=20, num_lanes=1, noise_bits=20)),
    Case("rlwe-4096-60", 37, 1, Encoding(lane_bits=20, num_lanes=1, noise_bits=20)),
    Case("rlwe-8192-180", 3, 1, Encoding(lane_bits=26, num_lanes=6, noise_bits=20)),
    Case("rlwe-8192-201", 17, 1, Encoding(lane_bits=26, num_lanes=7, noise_bits=18)),
    Case("rlwe-16384-408", 17, 1, Encoding(lane_bits=26, num_lanes=15, noise_bits=17)),
)

#: The secret-key form, and sets whose ciphertexts lose a prime before they travel.
SECRET_CASES = (
    Case("rlwe-1024-26", 3, 4, Encoding(lane_bits=14, num_lanes=1, noise_bits=9)),
    Case("rlwe-2048-52", 1, 4, Encoding(lane_bits=20, num_lanes=2, noise_bits=9)),
)
SWITCH_SETS = ("rlwe-8192-212", "rlwe-8192-213")
