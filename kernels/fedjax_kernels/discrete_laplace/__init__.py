"""Draws from the discrete Laplace distribution by exact tables."""

from __future__ import annotations

from fedjax_kernels.discrete_laplace.api import MAX_SCALE, MIN_SCALE, sampler
from fedjax_kernels.inversion import Sampler, Sum, Table, draw, sample

__all__ = ["MAX_SCALE", "MIN_SCALE", "Sampler", "Sum", "Table", "draw", "sample", "sampler"]
