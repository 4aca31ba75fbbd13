"""Sums of records' clipped gradients, without making the gradients one by one."""

from __future__ import annotations

from fedjax_secure.training.ghost.clipped import (
    ClippedSum,
    GhostNotice,
    clipped_sum,
    coverage,
    gradient_of_one,
    norm_margin,
)
from fedjax_secure.training.ghost.work import ghost_sums

__all__ = [
    "ClippedSum",
    "GhostNotice",
    "clipped_sum",
    "coverage",
    "ghost_sums",
    "gradient_of_one",
    "norm_margin",
]
