"""Noise that hides one unit: a stage for each mechanism."""

from .discrete_gaussian import discrete_gaussian
from .discrete_laplace import discrete_laplace
from .float_gaussian import FloatNoiseWarning, gaussian
from .randomised_response import randomised_response
from .skellam import skellam

__all__ = [
    "FloatNoiseWarning", "discrete_gaussian", "discrete_laplace", "gaussian", "randomised_response",
    "skellam",
]
