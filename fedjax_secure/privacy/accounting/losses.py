r"""Privacy loss of one round, by kind of mechanism and sampling: distribution and Renyi curve.

One table, :data:`KINDS`, maps a kind to two functions of a :class:`Spend`:

- ``loss(step, interval)``: its privacy loss distribution (PLD) for dp-accounting, a pessimistic
  one on a grid; None where no dominating pair of distributions is known (Skellam noise in many
  dimensions).
- ``renyi(step, orders)``: its Renyi divergences, a vectorised function of the orders, with the
  probability `failure` that is set aside. Filters and per-person accounts compose these.

Sampling. Let M be the mechanism of a round, R the released value where the unit of interest is not
in the cohort, and q the probability that it is.

*Poisson, add or remove one*: the pair is (mixture (1-q) Q + q P, Q) and its reverse, (P, Q) a pair
that dominates M (Zhu, Dong, Wang 2022, Theorem 11; Mironov, Talwar, Zhang 2019 for the Gaussian).

*Fixed size, without replacement*: the cohorts without the unit and those with it can be coupled so
that they differ in ONE REPLACED unit: given the unit is drawn, remove it and draw another. So the
pair (P, Q) is that of M under **replacement**, whose Gaussian has twice the sensitivity, even where
the neighbouring datasets differ by an added unit. With q = m / n:

- add or remove one: (mixture (1-q) Q + q P, Q) and its reverse (Zhu, Dong, Wang 2022, Theorem 11).
- replace one: both outputs are mixtures, U = (1-q) R + q M_1 and V = (1-q) R + q M_2. For a >= 1,
  with b = 1 + (a-1)/q, advanced joint convexity (Balle, Barthe, Gaboardi 2018, Theorem 2) gives
  H_a(U||V) = q H_b(M_1 || (1-w) R + w M_2), w = a/b; by the coupling and by convexity this is at
  most q H_b(P||Q) = H_a((1-q) Q + q P || Q). For a < 1, H_a(U||V) = 1 - a + a H_{1/a}(V||U), to
  which the same bound applies. This profile is convex (its slopes at a = 1 are
  -[(1-q)(1-p) + q p] on the left and -p on the right, p = Q(P > Q) <= 1/2), so it belongs to a pair
  of distributions, and bounds on hockey-stick divergences at every a compose (Zhu et al. 2022).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import dp_accounting
import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant, rdp_privacy_accountant
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fedjax_secure.core.errors import SpecError

from .guarantees import (
    concentrated_divergence,
    shuffled_profile,
    shuffled_variance,
    single_order_divergence,
)
from .spend import PARAMETERS, RELATIONS, Spend

Pld = privacy_loss_distribution.PrivacyLossDistribution
Curve = NDArray[np.float64]

#: Orders at which Renyi divergences are composed: those of dp-accounting.
ORDERS: tuple[float, ...] = tuple(rdp_privacy_accountant.DEFAULT_RDP_ORDERS)

_FARTHEST_STDDEVS = 10.2  # a Gaussian lies farther out with probability below exp(-50)


class Renyi(NamedTuple):
    """Renyi divergences of one round, in both directions.

    Attributes:
        divergence: upper bounds, at each order; they add up over rounds.
        failure: probability outside of which the divergences hold; 1 - failure multiplies.
    """

    divergence: Curve
    failure: float = 0.0


class Kind(NamedTuple):
    """What accountants know of one kind of mechanism; the functions take one round's spend."""

    loss: Callable[[Spend, float], Pld] | None
    renyi: Callable[[Spend, Curve], Renyi] | None
    variance: Callable[[Spend], float]


def loss_of(step: Spend, interval: float) -> Pld | None:
    """The privacy loss distribution of one round; None where none is known."""
    loss = KINDS[step.kind].loss
    return None if loss is None else loss(step, interval)


def renyi_of(step: Spend, orders: ArrayLike = ORDERS) -> Renyi:
    """The Renyi divergences of one round, at all orders > 1 asked for.

    Raises:
        SpecError: sampling whose Renyi divergence has no accepted bound.
    """
    renyi = KINDS[step.kind].renyi
    if renyi is None:
        raise SpecError(f"Renyi divergence of kind {step.kind!r}", need="an accepted bound",
                        found="none here", fix='Use accountant="pld".')
    return renyi(step, np.asarray(orders, np.float64))


def has_loss(step: Spend) -> bool:
    """Whether a privacy loss distribution is known for it."""
    return KINDS[step.kind].loss is not None


def has_renyi(step: Spend) -> bool:
    """Whether Renyi divergences are known for it."""
    if KINDS[step.kind].renyi is None:
        return False
    sampled = step.kind == "gaussian" and step.sampling_rate < 1
    return not sampled or (step.sampling != "truncated_poisson"
                           and (step.sampling, step.adjacency) != ("poisson", "replace_one"))


def loss_variance(step: Spend) -> float:
    """About the variance of one round's privacy loss."""
    return KINDS[step.kind].variance(step)


# Gaussian noise


def _gaussian_loss(step: Spend, interval: float) -> Pld:
    assert step.noise_multiplier is not None
    rate, multiplier = step.sampling_rate, step.noise_multiplier
    if rate == 1 or step.sampling == "poisson":
        return privacy_loss_distribution.from_gaussian_mechanism(
            multiplier, sampling_prob=rate, neighboring_relation=RELATIONS[step.adjacency],
            value_discretization_interval=interval)
    if step.sampling == "truncated_poisson":
        assert step.population is not None and step.largest_cohort is not None
        return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
            step.population, rate, step.largest_cohort, multiplier,
            neighboring_relation=RELATIONS[step.adjacency],
            value_discretization_interval=interval)
    if step.adjacency == "add_remove":
        return privacy_loss_distribution.from_gaussian_mechanism(
            multiplier / 2, sampling_prob=rate, value_discretization_interval=interval)
    return _symmetric_loss(
        lambda epsilon: _mixture_profile(epsilon, rate, 2 / multiplier),
        _mixture_loss(rate, 2 / multiplier), interval)


def _mixture_profile(epsilon: Curve, rate: float, shift: float) -> Curve:
    """H of (1-q) N(0,1) + q N(shift,1) against N(0,1), at epsilon >= 0."""
    large = epsilon > 30.0
    inner = np.where(
        large, epsilon - math.log(rate) + np.log1p(-(1 - rate) * np.exp(-epsilon)),
        np.log1p(np.expm1(np.where(large, 0.0, epsilon)) / rate))
    first = special.log_ndtr(shift / 2 - inner / shift)
    second = inner + special.log_ndtr(-shift / 2 - inner / shift)
    gap = -np.expm1(np.minimum(second - first, 0.0))
    return np.asarray(rate * np.exp(first) * np.maximum(gap, 0.0), np.float64)


def _mixture_loss(rate: float, shift: float) -> float:
    """The privacy loss of that pair where a tail of exp(-50) begins."""
    far = shift * _FARTHEST_STDDEVS + 1.5 * shift**2
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + far))


def _symmetric_loss(profile: Callable[[Curve], Curve], largest: float, interval: float) -> Pld:
    """The distribution of a profile given at epsilon >= 0, mirrored below (see the module)."""
    reach = math.ceil(largest / interval)
    above = profile(np.arange(reach + 1, dtype=np.float64) * interval)
    negative = -np.arange(reach, 0, -1) * interval
    below = -np.expm1(negative) + np.exp(negative) * above[:0:-1]
    return Pld(pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, -reach, reach, np.clip(np.concatenate([below, above]), 0.0, 1.0)))


def _gaussian_renyi(step: Spend, orders: Curve) -> Renyi:
    assert step.noise_multiplier is not None
    if not has_renyi(step):
        raise SpecError(
            f"Renyi divergence of {step.sampling} sampling under {step.adjacency}",
            need='an accepted bound: "poisson" under "add_remove", "fixed_size", or no sampling',
            found="none", fix='Use accountant="pld".')
    rate, multiplier = step.sampling_rate, step.noise_multiplier
    replaced = step.adjacency == "replace_one" or (step.sampling == "fixed_size" and rate < 1)
    # dp-accounting's RDP takes the multiplier over the sensitivity of the relation accounted.
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(
        multiplier / 2 if replaced else multiplier)
    relation = "add_remove"
    if rate < 1 and step.adjacency == "replace_one":
        # Wang, Balle, Kasiviswanathan 2019, Theorem 27: only the ratio of the sizes matters.
        sizes = Fraction(rate)  # exactly
        event = dp_accounting.SampledWithoutReplacementDpEvent(
            sizes.denominator, sizes.numerator, event)
        relation = "replace_one"
    elif rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountant = RdpAccountant(orders.tolist(), RELATIONS[relation])
    with _quietly():
        return Renyi(accountant.compose(event).rdp)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps dp-accounting from warning of orders whose series diverges: it skips them, rightly."""
    log = logging.getLogger("absl")

    def other(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _gaussian_variance(step: Spend) -> float:
    assert step.noise_multiplier is not None
    halved = step.sampling == "fixed_size" and step.sampling_rate < 1
    inverse = (2.0 if halved else 1.0) ** 2 / step.noise_multiplier**2
    return min(inverse, step.sampling_rate**2 * math.expm1(min(inverse, 700.0)))


# Skellam noise


def _skellam_renyi(step: Spend, orders: Curve) -> Renyi:
    """Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995), the bound for vectors by l1 and l2.

    For integer orders a > 1: a l2^2 / (2 v) + min(((2a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v)),
    v the variance of the summed noise. Renyi divergences do not fall as the order rises, so a
    fractional order is bounded by the next integer.
    """
    doubled = step.adjacency == "replace_one" or (
        step.sampling == "fixed_size" and step.sampling_rate < 1)
    scale = 2.0 if doubled else 1.0
    l1, l2 = scale * step.parameter("l1"), scale * step.parameter("l2")
    variance = step.parameter("variance")

    def whole(order: Curve) -> Curve:
        fine = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
        return order * l2**2 / (2 * variance) + np.minimum(fine, 1.5 * l1 / variance)

    up = np.maximum(np.ceil(orders), 2.0)
    if step.sampling_rate == 1:
        return Renyi(whole(up))
    if step.adjacency == "replace_one":
        amplified = fixed_size_renyi
    else:
        amplified = poisson_renyi
    at = {order: amplified(whole, int(order), step.sampling_rate) for order in np.unique(up)}
    return Renyi(np.array([at[order] for order in up]))


def poisson_renyi(curve: Callable[[Curve], Curve], order: int, rate: float) -> float:
    r"""Poisson sampling of a mechanism with the Renyi curve `curve`, add or remove one.

    :math:`\frac{1}{a-1}\log\big[(1-q)^{a-1}(1+(a-1)q) + \sum_{k=2}^{a} \binom ak (1-q)^{a-k} q^k
    e^{(k-1)\varepsilon(k)}\big]`, exact for the pair (mixture, Q) by the binomial theorem. For
    noise that is symmetric around 0 the reverse direction is no larger: x -> shift - x swaps P and
    Q (Mironov, Talwar, Zhang 2019, Theorem 5).

    Args:
        curve: bounds of the unsampled divergences at integer orders, for symmetric noise.
        order: an integer of at least 2.
        rate: probability with which the unit takes part.

    Source:
        Zhu and Wang 2019, "Poisson subsampled Renyi differential privacy", Theorem 6; Steinke
        2022, "Composition of differential privacy and privacy amplification by subsampling".
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    terms = (_log_binomial(order, k) + (order - k) * math.log1p(-rate) + k * math.log(rate)
             + (k - 1) * curve(k))
    first = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
    return float(np.logaddexp(first, special.logsumexp(terms))) / (order - 1)


def fixed_size_renyi(curve: Callable[[Curve], Curve], order: int, rate: float) -> float:
    r"""Sampling without replacement of a mechanism with the Renyi curve `curve`, replace one.

    :math:`\frac{1}{a-1}\log\big[1 + q^2\binom a2 \min(4(e^{\varepsilon(2)}-1), 2e^{\varepsilon(2)})
    + \sum_{k=3}^a 2 q^k \binom ak e^{(k-1)\varepsilon(k)}\big]`.

    Args:
        curve: bounds of the unsampled divergences at integer orders, **for a replaced unit**.
        order: an integer of at least 2.
        rate: size of the cohort over that of the population.

    Source:
        Wang, Balle, Kasiviswanathan 2019, "Subsampled Renyi differential privacy and analytical
        moments accountant", Theorem 9 with an unbounded divergence at order infinity.
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    terms = math.log(2) + _log_binomial(order, k) + k * math.log(rate) + (k - 1) * curve(k)
    second = float(curve(np.array([2.0]))[0])
    terms[0] += min(0.0, math.log(2) + math.log(-math.expm1(-second)))
    return float(np.logaddexp(0.0, special.logsumexp(terms))) / (order - 1)


def _log_binomial(n: float, k: Curve) -> Curve:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


# Mechanisms of which only (epsilon, dp_delta) is known. The dominating pair is randomised response
# that fails openly with probability dp_delta (Kairouz, Oh, Viswanath 2015): with it,
# P shows "P", Q shows "Q"; else both answer one bit, P rightly with odds e^epsilon.


class _Atoms(NamedTuple):
    """A pair of distributions with finitely many outcomes, as the losses seen from the first."""

    losses: tuple[float, ...]
    masses: tuple[float, ...]
    infinite: float

    def loss(self, interval: float) -> pld_pmf.PLDPmf:
        losses, masses = np.array(self.losses), np.array(self.masses)
        near = np.concatenate([np.floor(losses / interval), np.ceil(losses / interval)])
        grid = np.unique(near).astype(int)
        gain = -np.expm1(np.minimum(np.subtract.outer(grid * interval, losses), 0.0))
        return pld_pmf.create_pmf_pessimistic_connect_dots(
            interval, grid, np.minimum(gain @ masses + self.infinite, 1.0))

    def divergence(self, orders: Curve) -> Curve:
        """Renyi divergences given that the infinite outcome is not seen by either."""
        powers = np.multiply.outer(orders - 1, np.array(self.losses))
        return np.maximum(special.logsumexp(powers, b=np.array(self.masses), axis=1), 0.0) / (
            orders - 1)


def _bounded_pair(step: Spend) -> tuple[_Atoms, _Atoms | None]:
    """Both directions of the dominating pair; None for the second where it is like the first."""
    epsilon = step.parameter("epsilon")
    fails = step.parameter("dp_delta") if step.kind == "approximate" else 0.0
    right, wrong = special.expit(epsilon) * (1 - fails), special.expit(-epsilon) * (1 - fails)
    rate = step.sampling_rate
    if rate == 1:
        return _Atoms((epsilon, -epsilon), (right, wrong), fails), None
    up = math.log1p(rate * math.expm1(epsilon))
    if step.sampling == "fixed_size":  # replace one; see the module
        # The profile q H(b), b = 1 + (a-1)/q, has its kinks at a = exp(+-up) and 1.
        middle = 1 - rate * fails - wrong * (1 + math.exp(up))
        return _Atoms((up, 0.0, -up), (wrong * math.exp(up), max(middle, 0.0), wrong),
                      rate * fails), None
    down = math.log1p(rate * math.expm1(-epsilon))
    unseen = math.log1p(-rate)  # of the outcome "Q"
    removed = _Atoms((up, down, unseen),
                     (wrong * math.exp(up), right * math.exp(down), fails * (1 - rate)),
                     rate * fails)
    added = _Atoms((-up, -down, -unseen), (wrong, right, fails), 0.0)
    return removed, added


def _bounded_loss(step: Spend, interval: float) -> Pld:
    one, other = _bounded_pair(step)
    return Pld(one.loss(interval), None if other is None else other.loss(interval))


def _bounded_renyi(step: Spend, orders: Curve) -> Renyi:
    """Those of the amplified pure part; the amplified dp_delta is set aside as `failure`.

    An (epsilon, dp_delta)-DP mechanism is a post-processing of the dominating pair, which is
    epsilon-DP unless it fails; sampling makes of it a (log(1 + q (e^epsilon - 1)), q dp_delta)-DP
    one (Balle, Barthe, Gaboardi 2018), to which the same applies.
    """
    if step.kind == "approximate":
        amplified = math.log1p(step.sampling_rate * math.expm1(step.parameter("epsilon")))
        answer = _Atoms((amplified, -amplified),
                        (special.expit(amplified), special.expit(-amplified)), 0.0)
        return Renyi(answer.divergence(orders), step.sampling_rate * step.parameter("dp_delta"))
    one, other = _bounded_pair(step)
    divergence = one.divergence(orders)
    if other is not None:
        divergence = np.maximum(divergence, other.divergence(orders))
    return Renyi(divergence)


def _bounded_variance(step: Spend) -> float:
    amplified = math.log1p(step.sampling_rate * math.expm1(step.parameter("epsilon")))
    return min(amplified**2, amplified * step.sampling_rate * step.parameter("epsilon"))


KINDS: dict[str, Kind] = {
    "gaussian": Kind(_gaussian_loss, _gaussian_renyi, _gaussian_variance),
    "skellam": Kind(None, _skellam_renyi,
                    lambda step: step.parameter("l2")**2 / step.parameter("variance")),
    "pure": Kind(_bounded_loss, _bounded_renyi, _bounded_variance),
    "approximate": Kind(_bounded_loss, _bounded_renyi, _bounded_variance),
    "concentrated": Kind(None, lambda step, orders: Renyi(concentrated_divergence(step, orders)),
                         lambda step: 2 * step.parameter("rho")),
    "renyi": Kind(None, lambda step, orders: Renyi(single_order_divergence(step, orders)),
                  lambda step: 2 * step.parameter("divergence")),
    "shuffled": Kind(lambda step, interval: _symmetric_loss(*shuffled_profile(step), interval),
                     None, shuffled_variance),
}
assert KINDS.keys() == PARAMETERS.keys()


@lru_cache(maxsize=32)
def remembered_loss(step: Spend, interval: float) -> Pld | None:
    """:func:`loss_of`, remembered for the last few steps."""
    return loss_of(step, interval)


@lru_cache(maxsize=256)
def remembered_renyi(step: Spend, orders: Sequence[float] = ORDERS) -> Renyi:
    """:func:`renyi_of`, remembered for the last few steps."""
    return renyi_of(step, orders)
