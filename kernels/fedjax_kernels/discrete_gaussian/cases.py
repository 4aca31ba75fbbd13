"""Shapes of the discrete Gaussian sampler that every implementation is tested on."""

from __future__ import annotations

from fedjax_kernels.inversion.cases import TEST_CASES, Case

#: Sums of two tables.
WIDE_CASES = (Case(16.0, 1_000), Case(3_000.0, 5_001), Case(1e6, 700))

__all__ = ["TEST_CASES", "WIDE_CASES", "Case"]
