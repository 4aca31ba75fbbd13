"""Differential privacy: stages that make updates private, accounting, and the budget."""

from . import audit
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
from .clipping import adaptive_clip, clip, clip_layers
from .noise import discrete_gaussian, gaussian, randomised_response
from .quantise import quantise, rounded_l2_bound
from .reporting import PrivacyReport, RunFacts, report
from .rotate import rotate

__all__ = [
    "Budget", "DiscreteGaussianSum", "PrivacyReport", "RunFacts", "Spend", "adaptive_clip", "audit",
    "calibrate", "calibrate_shares", "clip", "clip_layers", "compose", "discrete_gaussian",
    "epsilon", "gaussian", "quantise", "randomised_response", "report", "rotate",
    "rounded_l2_bound", "share_stddev_for",
]
