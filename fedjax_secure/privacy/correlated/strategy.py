r"""Noise that is correlated over the rounds of a run: what is released, and what it costs.

Let :math:`x_t` be the sum of round t, integer vectors, and C an integer matrix whose row r is
released in round :math:`\rho(r)` and takes nothing of later rounds. A *strategy* is such a matrix.
What protects a client is the noise Z on its rows,

.. math:: w = C x + Z,\qquad Z_r \sim N_{\mathbb Z}(0, \sigma^2)^d \text{ independent},

and everything that is published, round by round, is computed from w: good sums of rounds, whose
noise partly cancels in the running totals that a model is made of.

**Cost.** Let S be the sensitivity: the largest :math:`\sqrt{\sum_r |\sum_t C_{rt} g_t|^2}` over all
vectors :math:`|g_t| \le 1` that are zero outside of a set of rounds that one client may take part
in. *All releases together are as private as one Gaussian of stddev* :math:`\sigma` *on a value of
sensitivity* :math:`S\Delta`, with :math:`\Delta` the L2 bound of one client's integers, although
clients answer models that depend on earlier releases:

1. Fix everything random but Z and the client's presence: the other clients' coins, and who is drawn
   (drawn without looking at data). Then each round's sum is a function of what was released before,
   with the client and without; they differ by a vector :math:`g_t` that is also a function of it,
   zero where the client takes no part. So given the past, row r is noise around one of two integer
   vectors that differ by :math:`\delta_r = \sum_t C_{rt} g_t`. On every path
   :math:`\sum_r|\delta_r|^2 \le S^2\Delta^2`.
2. For *continuous* noise, release one more coordinate whose two means differ by what is left, the
   root of :math:`S^2\Delta^2 - \sum_r|\delta_r|^2`; that can only help an attacker. Now the privacy
   loss is :math:`\sum_r (|\delta_r|^2/2 + \langle\delta_r, Z_r\rangle)/\sigma^2`, where the first
   part is the constant :math:`S^2\Delta^2/2\sigma^2`. Given the past,
   :math:`E\,e^{i\lambda\langle\delta_r,Z_r\rangle} = e^{-\lambda^2\sigma^2|\delta_r|^2/2}`, so
   :math:`\prod_r e^{i\lambda\langle\delta_r,Z_r\rangle + \lambda^2\sigma^2|\delta_r|^2/2}` is a
   martingale of mean 1, and since the squares add up to a constant,
   :math:`\sum_r\langle\delta_r,Z_r\rangle` has the characteristic function of
   :math:`N(0, \sigma^2S^2\Delta^2)`. That is the loss distribution of one Gaussian release of
   sensitivity :math:`S\Delta`; the other direction is alike. (Denisov et al. 2022, arXiv
   2202.08312, Theorem 2.1, by another way.)
3. For *discrete* noise each row's distribution, given the past, lies within a stated log-ratio of a
   post-processing of a Gaussian of slightly less variance, whatever its integer mean is
   (`DiscreteGaussianSum`, step 1). The joint probabilities are products over rows, so log-ratios
   add up over the rows, and so do the sampler's distances.

**Each round's part.** What was released by round t is the same mechanism with fewer rows: it costs
a Gaussian of sensitivity :math:`S_t\Delta`, :math:`S_t` that of the rows so far. Squared
sensitivities over variances add up when Gaussians are composed, so charging round t the difference
:math:`S_t^2 - S_{t-1}^2` charges exactly what was released by then: never less, and a run that
stops early has paid for no more.

**Integers throughout.** What each strategy publishes is :math:`x_t + u_t`, where the integer noise
:math:`u_t` is computed of Z alone, and of earlier u. It is built so that the same number comes out
if the same steps are applied to w: each is a function of w that moves by k where its sum moves by
k. So it is post-processing of w, bit for bit, and there is no floating-point noise anywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .separation import Schema

#: ``draw(i)``: the i-th noise vector of the round, int32 [dim]; i may be traced.
Draw = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Strategy:
    """How noise is correlated over the rounds of a run, for `correlated_noise`.

    Make one with `tree` or `banded`.

    Attributes:
        name: for records and texts.
        settings: what else it depends on, as text.
        rounds: the rounds of the run that it is made for.
        rows_by_round: int [rounds], how many noise vectors are drawn by the end of each round.
        rows_per_round: so many times the rounds is never less than ``rows_by_round``.
        least_separation: how far apart rounds of one client must be for it to be accounted.
        memory: ``dim -> pytree``: what the noise remembers before the first round.
        noise: ``(memory, draw) -> (noise int32 [dim], memory)``: one round's; pure and jittable.
        squared_sensitivity: ``Schema -> int64 [rounds]``: of what is released by each round.
        prefix_variance: float64 [rounds], variance of the noise in the running total after each
            round, for noise vectors of variance 1.
        round_variance: the largest variance of the noise in one round's sum, likewise.
        largest_noise: ``largest draw -> largest intermediate value``: what has to fit 32 bits.
    """

    name: str
    settings: str
    rounds: int
    rows_by_round: np.ndarray
    rows_per_round: int
    least_separation: int
    memory: Callable[[int], Any]
    noise: Callable[[Any, Draw], tuple[jax.Array, Any]]
    squared_sensitivity: Callable[[Schema], np.ndarray]
    prefix_variance: np.ndarray
    round_variance: float
    largest_noise: Callable[[float], float]

    def sensitivity(self, *, separation: int = 1, most: int | None = None) -> float:
        """S: how far one client of norm 1 moves the whole run's rows.

        Args:
            separation: rounds of one client are at least this far apart.
            most: it takes part in at most so many; None for as many as the separation allows.

        Example:
            >>> from fedjax_secure.privacy.correlated import tree
            >>> round(tree(rounds=4).sensitivity(most=1) ** 2)  # the nodes on one path
            3
        """
        schema = Schema.of(self.rounds, separation, most)
        return math.sqrt(int(self.squared_sensitivity(schema)[-1]))

    def error(self, *, separation: int = 1, most: int | None = None) -> float:
        """Root mean square of the noise in the running totals, for equal privacy.

        In units of the noise that one release of one client's vector would need: the figure by
        which strategies are compared. What is published is rounded to integers, which adds errors
        of the size of one integer unit.

        Example:
            >>> from fedjax_secure.privacy.correlated import banded, tree
            >>> alike = {"separation": 16, "most": 1}
            >>> [round(made.error(**alike), 1) for made in (
            ...     banded(rounds=64, bands=1), tree(rounds=64), banded(rounds=64, bands=16))]
            [5.7, 3.7, 2.4]
        """
        return self.sensitivity(separation=separation, most=most) * math.sqrt(
            float(np.mean(self.prefix_variance)))

    def __repr__(self) -> str:
        return f"{self.name}({self.settings})"
