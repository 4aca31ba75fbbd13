"""Draws from symmetric distributions on the integers by inversion, given random words or a key."""

from __future__ import annotations

from fedjax_kernels.inversion.api import draw, sample
from fedjax_kernels.inversion.table import WORDS_PER_DRAW, Sampler, Sum, Table, build

__all__ = ["WORDS_PER_DRAW", "Sampler", "Sum", "Table", "build", "draw", "sample"]
