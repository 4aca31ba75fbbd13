"""Noise that is correlated over rounds: DP-FTRL with trees, and banded matrix factorisation."""

from .band import banded
from .coefficients import best_coefficients
from .stage import correlated_noise
from .strategy import Strategy
from .tree import tree

__all__ = ["Strategy", "banded", "best_coefficients", "correlated_noise", "tree"]
