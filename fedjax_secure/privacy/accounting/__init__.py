"""Accounting: what rounds cost, composed, calibrated and explained."""

from .calibrate import UnitEpsilons, calibrate, epsilon, epsilon_by_unit, most_rounds
from .compose import Total, compose, delta_profile, total
from .discrete_gaussian import DiscreteGaussianSum, calibrate_shares, share_stddev_for
from .explain import Explanation, explain
from .history import Spent, spent
from .losses import ORDERS, Renyi, loss_of, renyi_of
from .spend import Adjacency, Sampling, Spend

__all__ = [
    "ORDERS", "Adjacency", "DiscreteGaussianSum", "Explanation", "Renyi", "Sampling", "Spend",
    "Spent", "Total", "UnitEpsilons", "calibrate", "calibrate_shares", "compose", "delta_profile",
    "epsilon", "epsilon_by_unit", "explain", "loss_of", "most_rounds", "renyi_of",
    "share_stddev_for", "spent", "total",
]
