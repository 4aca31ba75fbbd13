"""Draws from the symmetric Skellam distribution by exact tables."""

from __future__ import annotations

from fedjax_kernels.inversion import Sampler, Sum, Table, draw, sample
from fedjax_kernels.skellam.api import (
    MAX_TABLE_VARIANCE,
    MAX_VARIANCE,
    MIN_VARIANCE,
    sampler,
    table,
)

__all__ = [
    "MAX_TABLE_VARIANCE",
    "MAX_VARIANCE",
    "MIN_VARIANCE",
    "Sampler",
    "Sum",
    "Table",
    "draw",
    "sample",
    "sampler",
    "table",
]
