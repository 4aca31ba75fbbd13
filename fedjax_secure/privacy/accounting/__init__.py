"""Accounting: what rounds cost, composed, calibrated and explained."""

from .calibrate import UnitEpsilons, calibrate, epsilon, epsilon_by_unit, most_rounds
from .compose import Total, compose, total
from .discrete_gaussian import DiscreteGaussianSum, calibrate_shares, share_stddev_for
from .losses import ORDERS, Renyi, loss_of, renyi_of
from .spend import Adjacency, Sampling, Spend

__all__ = [
    "ORDERS", "Adjacency", "DiscreteGaussianSum", "Renyi", "Sampling", "Spend", "Total",
    "UnitEpsilons", "calibrate", "calibrate_shares", "compose", "epsilon", "epsilon_by_unit",
    "loss_of", "most_rounds", "renyi_of", "share_stddev_for", "total",
]
