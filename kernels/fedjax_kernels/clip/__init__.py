"""Rows scaled down to an L2 bound that none exceeds, and their sum without forming them."""

from __future__ import annotations

from fedjax_kernels.clip.api import ClippedRows, ClippedSum, clip_and_sum, clip_rows
from fedjax_kernels.clip.bounds import norm_slack, summation_error

__all__ = [
    "ClippedRows",
    "ClippedSum",
    "clip_and_sum",
    "clip_rows",
    "norm_slack",
    "summation_error",
]
