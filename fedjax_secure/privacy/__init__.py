"""Differential privacy: stages that make updates private, accounting, and the budget."""

from .accounting import (
    DiscreteGaussianSum,
    Spend,
    calibrate,
    calibrate_shares,
    compose,
    epsilon,
    share_stddev_for,
)
from .budget import Budget
from .clip import clip
from .noise import discrete_gaussian
from .quantise import quantise, rounded_l2_bound

__all__ = [
    "Budget", "DiscreteGaussianSum", "Spend", "calibrate", "calibrate_shares", "clip", "compose",
    "discrete_gaussian", "epsilon", "quantise", "rounded_l2_bound", "share_stddev_for",
]
