"""Clipping from its definition, in exact sums of double precision."""

from __future__ import annotations

import math

import numpy as np


def clip_rows(values: np.ndarray, l2_bound: float) -> tuple[np.ndarray, np.ndarray]:
    """`[n, dim] float64` rows times min(1, l2_bound / norm), and their norms; others are zero."""
    clipped, norms = np.zeros(values.shape), np.full(len(values), np.nan)
    for row, value in enumerate(values.astype(np.float64)):
        if np.isfinite(value).all():
            norms[row] = math.hypot(*value)
            clipped[row] = value * min(1.0, l2_bound / norms[row]) if norms[row] else value
    return clipped, norms


def clip_and_sum(values: np.ndarray, l2_bound: float) -> tuple[np.ndarray, np.ndarray]:
    """`[dim] float64`, each coordinate's sum rounded once, and the norms."""
    clipped, norms = clip_rows(values, l2_bound)
    return np.array([math.fsum(column) for column in clipped.T]), norms
