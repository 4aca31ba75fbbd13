"""Accounting: what rounds cost, composed, calibrated and explained."""

from .calibrate import calibrate, epsilon
from .compose import Total, compose, total
from .discrete_gaussian import DiscreteGaussianSum, calibrate_shares, share_stddev_for
from .losses import ORDERS, Renyi, loss_of, renyi_of
from .spend import Adjacency, Sampling, Spend

__all__ = [
    "ORDERS", "Adjacency", "DiscreteGaussianSum", "Renyi", "Sampling", "Spend", "Total",
    "calibrate", "calibrate_shares", "compose", "epsilon", "loss_of", "renyi_of",
    "share_stddev_for", "total",
]
