"""The discrete Gaussian, drawn by exact tables, up to a sigma of four million."""

from __future__ import annotations

from fedjax_kernels.discrete_gaussian.api import (
    MAX_SIGMA,
    MAX_WIDE_SIGMA,
    MIN_SIGMA,
    convolution,
    sampler,
    table,
)
from fedjax_kernels.inversion import WORDS_PER_DRAW, Sampler, Sum, Table, draw, sample

__all__ = [
    "MAX_SIGMA",
    "MAX_WIDE_SIGMA",
    "MIN_SIGMA",
    "WORDS_PER_DRAW",
    "Sampler",
    "Sum",
    "Table",
    "convolution",
    "draw",
    "sample",
    "sampler",
    "table",
]
