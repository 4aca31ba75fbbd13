"""Kinds of round that are known by a guarantee, and not by their noise.

- ``"concentrated"``: any rho-zero-concentrated DP mechanism; its Renyi divergence of each order a
  is at most a rho (Bun and Steinke 2016, "Concentrated differential privacy", Definition 1.1).
  What a Renyi filter over unsampled Gaussian noise keeps.
- ``"renyi"``: any mechanism of which the divergence of one order is bounded. Renyi divergences do
  not fall as the order rises (van Erven and Harremoes 2014, Theorem 3), so the bound serves lower
  orders too, and says nothing about higher ones. What a Renyi filter over sampled rounds keeps.
- ``"shuffled"``: reports of an epsilon-DP local randomiser, shuffled. The whole profile
  delta(epsilon) of a pair of distributions that dominates them is known (see
  :mod:`fedjax_secure.privacy.shuffle`), and such pairs compose (Zhu, Dong, Wang 2022), so several
  rounds cost far less than their (epsilon, dp_delta) added up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..shuffle import loss_reach, loss_stddev, profile
from .spend import Spend

Curve = NDArray[np.float64]


def concentrated_divergence(step: Spend, orders: Curve) -> Curve:
    """At each order a, a rho."""
    return orders * step.parameter("rho")


def single_order_divergence(step: Spend, orders: Curve) -> Curve:
    """The bound up to its own order, and infinity above."""
    return np.where(orders <= step.parameter("order"), step.parameter("divergence"), np.inf)


def shuffled_profile(step: Spend) -> tuple[Callable[[Curve], Curve], float]:
    """delta at each epsilon of 0 or more, and an epsilon beyond which it is below 1e-15."""
    local_epsilon, reports = _shuffled(step)
    return (lambda epsilon: profile(epsilon, local_epsilon=local_epsilon, reports=reports),
            loss_reach(local_epsilon, reports))


def shuffled_variance(step: Spend) -> float:
    """About the variance of the privacy loss."""
    return loss_stddev(*_shuffled(step)) ** 2


def _shuffled(step: Spend) -> tuple[float, int]:
    return step.parameter("epsilon"), int(step.parameter("reports"))
