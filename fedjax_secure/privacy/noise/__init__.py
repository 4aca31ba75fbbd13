"""Noise that hides one unit: a stage for each mechanism."""

from .discrete_gaussian import discrete_gaussian
from .float_gaussian import gaussian
from .randomised_response import randomised_response

__all__ = ["discrete_gaussian", "gaussian", "randomised_response"]
