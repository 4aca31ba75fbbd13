"""Differential privacy: stages that make updates private, accounting, and the budget."""

from . import audit, individual, local, shuffle
from .accounting import (
    DiscreteGaussianSum,
    Explanation,
    Spend,
    Spent,
    Total,
    UnitEpsilons,
    calibrate,
    calibrate_shares,
    compose,
    epsilon,
    epsilon_by_unit,
    explain,
    share_stddev_for,
    spent,
    total,
)
from .budget import Budget, LargeDeltaWarning
from .clipping import adaptive_clip, clip, clip_layers
from .correlated import banded, correlated_noise, tree
from .noise import (
    FloatNoiseWarning,
    discrete_gaussian,
    discrete_laplace,
    gaussian,
    randomised_response,
    skellam,
)
from .quantise import quantise, rounded_l2_bound
from .reporting import PrivacyReport, RunFacts, report
from .rotate import rotate

__all__ = [
    "Budget", "DiscreteGaussianSum", "Explanation", "FloatNoiseWarning", "LargeDeltaWarning",
    "PrivacyReport", "RunFacts", "Spend", "Spent", "Total", "UnitEpsilons", "adaptive_clip",
    "audit", "banded", "calibrate", "calibrate_shares", "clip", "clip_layers", "compose",
    "correlated_noise", "discrete_gaussian", "discrete_laplace", "epsilon", "epsilon_by_unit",
    "explain", "gaussian", "individual", "local", "quantise", "randomised_response", "report",
    "rotate", "rounded_l2_bound", "share_stddev_for", "shuffle", "skellam", "spent", "total",
    "tree",
]
