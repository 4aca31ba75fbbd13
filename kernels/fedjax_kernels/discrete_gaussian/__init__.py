"""Draws from the discrete Gaussian by an exact table, given random words."""

from __future__ import annotations

from fedjax_kernels.discrete_gaussian.api import sample
from fedjax_kernels.discrete_gaussian.table import (
    MAX_SIGMA,
    MIN_SIGMA,
    WORDS_PER_DRAW,
    Table,
    table,
)

__all__ = ["MAX_SIGMA", "MIN_SIGMA", "WORDS_PER_DRAW", "Table", "sample", "table"]
