"""A joint key of n share holders of which any t open a sum: scheme, holders, combiner, messages."""

from .holder import ShareHolder
from .key_generation import run_key_generation
from .opener import ThresholdOpener
from .plan import ThresholdNoise, ThresholdPlan
from .scheme import ThresholdScheme, threshold

__all__ = [
    "ShareHolder",
    "ThresholdNoise",
    "ThresholdOpener",
    "ThresholdPlan",
    "ThresholdScheme",
    "run_key_generation",
    "threshold",
]
