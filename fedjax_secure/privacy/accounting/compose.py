"""Epsilon of many rounds together.

All curves come from dp-accounting (privacy loss distributions) or from Renyi divergences; see
:mod:`~fedjax_secure.privacy.accounting.losses` for what each round contributes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, cast

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant
from numpy.typing import ArrayLike, NDArray

from fedjax_secure.core.errors import SpecError

from .arguments import as_tuple, require, require_dp_delta
from .losses import (
    ORDERS,
    Pld,
    has_loss,
    has_renyi,
    loss_variance,
    remembered_loss,
    remembered_renyi,
)
from .spend import Adjacency, Spend

Accountant = Literal["pld", "rdp"]

_LADDER = tuple(m * 10.0**e for e in range(-7, 0) for m in (1, 2, 5))
_GRID_ERROR = 1e-3
#: What one round is charged in delta for rounding in double precision: an FFT of losses, raised to
#: the number of rounds, was found wrong by 1e-17 a round against exact binomial sums.
_FLOAT_ERROR = 2.0**-53
_MOST_COMPOSED = 10_000_000

_Group = tuple[Spend, int]  # one round, and how many of them


@dataclasses.dataclass(frozen=True)
class Total:
    """What many rounds cost together, and how that was computed.

    Attributes:
        epsilon: the guarantee at `dp_delta`; infinite where there is none.
        dp_delta: the delta of the guarantee.
        accountant: ``"pld"`` (privacy loss distributions) or ``"rdp"`` (Renyi divergences).
        unit: whose privacy it is; empty where nothing was spent.
        adjacency: which neighbouring datasets the guarantee compares; empty likewise.
        spends: what was composed.

    Example:
        >>> cost = total([Spend(1.0, 0.1, "patient", count=30)], dp_delta=1e-5)
        >>> round(cost.epsilon, 2), cost.unit, cost.accountant
        (4.18, 'patient', 'pld')
    """

    epsilon: float
    dp_delta: float
    accountant: Accountant
    unit: str
    adjacency: Adjacency | Literal[""]
    spends: tuple[Spend, ...]


def _interval(groups: tuple[_Group, ...]) -> float:
    """Grid step of the losses. Any step gives a true upper bound; this one is tight and fast.

    A grid of step h adds at most h^2/4 to the variance of each round's loss, so that h^2 =
    4 * _GRID_ERROR * (mean variance of a round) moves epsilon by less than a part in a thousand.
    Few steps suffice where a round's loss is wide; 2e-3 is fine enough for all others.
    """
    rounds = sum(count for _, count in groups)
    variance = math.fsum(count * loss_variance(step) for step, count in groups) / rounds
    wanted = min(2.0 * math.sqrt(_GRID_ERROR * variance), 2e-3 * max(1.0, math.sqrt(variance)))
    return max((step for step in _LADDER if step <= wanted), default=_LADDER[0])


_PREFIXES: OrderedDict[tuple, Pld] = OrderedDict()  # losses of the groups but the last


def _composed_loss(groups: tuple[_Group, ...], interval: float) -> Pld:
    """Composes the groups in order; everything but the last group is remembered."""

    def one(group: _Group) -> Pld:
        step, count = group
        loss = remembered_loss(step, interval)
        assert loss is not None
        return loss.self_compose(count) if count > 1 else loss

    total, done = None, 0
    for size in range(len(groups), 0, -1):
        total = _PREFIXES.get((groups[:size], interval))
        if total is not None:
            done = size
            break
    for size in range(done + 1, len(groups) + 1):
        last = one(groups[size - 1])
        total = last if total is None else total.compose(last)
        if size >= len(groups) - 1:
            _PREFIXES[groups[:size], interval] = total
            while len(_PREFIXES) > 6:
                _PREFIXES.popitem(last=False)
    assert total is not None
    return total


def _summed_renyi(groups: tuple[_Group, ...]) -> tuple[np.ndarray, float]:
    """The divergences of all rounds at all orders, and the probability that one of them fails."""
    divergence = np.zeros(len(ORDERS))
    log_success = 0.0
    for step, count in groups:
        one = remembered_renyi(step)
        divergence = divergence + count * one.divergence
        log_success += count * math.log1p(-one.failure)
    return divergence, -math.expm1(log_success)


def _composed_renyi(groups: tuple[_Group, ...]) -> Callable[[float], float]:
    """epsilon as a function of dp_delta, by the sum of the rounds' Renyi divergences."""
    divergence, failure = _summed_renyi(groups)

    def epsilon(dp_delta: float) -> float:
        # Unless one fails, all hold: delta <= failure + (1 - failure) * delta of the rest.
        left = (dp_delta - failure) / (1.0 - failure)
        if left <= 0:
            return math.inf
        return float(rdp_privacy_accountant.compute_epsilon(
            ORDERS, divergence.tolist(), left)[0])

    return epsilon


def _epsilon_with_slack(
    exact_epsilon: Callable[[float], float], dp_delta: float, log_ratio: float,
    total_variation: float,
) -> float:
    """Epsilon of the true mechanism from that of the accounted one; see DiscreteGaussianSum."""
    shrink, extra = math.exp(-log_ratio), 2.0 * log_ratio
    result = exact_epsilon(dp_delta * shrink) + extra
    for _ in range(40 if total_variation > 0 else 0):
        # For any guess: epsilon <= guess makes (epsilon, dp_delta) a guarantee.
        guess = result * (1 + 1e-6) + 1e-9
        if guess > 700:
            return math.inf
        left = dp_delta - (1.0 + math.exp(guess)) * total_variation
        if left <= 0:
            return math.inf
        result = exact_epsilon(left * shrink) + extra
        if result <= guess:
            return result
    return result if total_variation == 0 else math.inf


@lru_cache(maxsize=256)
def _epsilon_of_groups(
    groups: tuple[_Group, ...], accountant: Accountant, log_ratio: float, total_variation: float,
    dp_delta: float,
) -> float:
    if accountant == "rdp":
        exact = _composed_renyi(groups)
    else:
        loss, error = _composed_loss(groups, _interval(groups)), _float_error(groups)

        def exact(left: float) -> float:
            return loss.get_epsilon_for_delta(left - error) if left > error else math.inf

    return _epsilon_with_slack(exact, dp_delta, log_ratio, total_variation)


def _float_error(groups: tuple[_Group, ...]) -> float:
    """What rounding in double precision may have taken from delta."""
    rounds = sum(count for _, count in groups)
    return _FLOAT_ERROR * rounds if rounds > 1 else 0.0


@contextmanager
def _in_range(where: str) -> Iterator[None]:
    """Says so where numbers are beyond what can be computed with."""
    try:
        yield
    except (ArithmeticError, MemoryError, ValueError, TypeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(
            where, need="noise, rates and parameters that double precision can compute with",
            found=f"numbers that end in {type(error).__name__}",
            fix="Give noise multipliers from 0.01 to 1e9, sampling rates above 1e-9, epsilons "
            "below 700.") from error


def _grouped(spends: tuple[Spend, ...]) -> tuple[_Group, ...]:
    """Equal rounds together; unsampled Gaussians compose to one Gaussian."""
    counts: dict[Spend, int] = {}
    inverse_variance, example = [], None
    for spend in spends:
        step = spend.step
        if step.kind == "gaussian" and step.sampling_rate == 1:
            assert step.noise_multiplier is not None
            inverse_variance.append(spend.count / step.noise_multiplier**2)
            example = dataclasses.replace(
                step, sampling="poisson", population=None, largest_cohort=None)
        else:
            counts[step] = counts.get(step, 0) + spend.count
    groups = tuple(counts.items())
    if example is not None:
        groups += ((dataclasses.replace(
            example, noise_multiplier=math.fsum(inverse_variance) ** -0.5), 1),)
    return groups


def _chosen(groups: tuple[_Group, ...], asked: Accountant | None, where: str) -> Accountant:
    steps = [step for step, _ in groups]
    without_loss = [step for step in steps if not has_loss(step)]
    without_renyi = [step for step in steps if not has_renyi(step)]
    require(asked in (None, "pld", "rdp"), where, "accountant 'pld' or 'rdp', or None",
            repr(asked), 'Use "pld" for the tight bound.')
    require(not (asked != "rdp" and without_loss and (asked == "pld" or without_renyi)), where,
            "privacy loss distributions of all rounds",
            f"none of ({(without_loss or [''])[0]})"
            + (f", and no Renyi divergences of ({without_renyi[0]})" if without_renyi else ""),
            'Use accountant="rdp", or leave it out to take what serves all.'
            if not without_renyi else "Account these rounds in budgets of their own, or account "
            "the sampled ones as full participation (sampling_rate=1).")
    require(not (asked == "rdp" and without_renyi), where, "Renyi divergences of all rounds",
            f"none of ({(without_renyi or [''])[0]}) under "
            f"{steps[0].adjacency if steps else ''}",
            'Use accountant="pld", or leave it out to take what serves all.')
    return asked or ("rdp" if without_loss else "pld")


def total(spends: Iterable[Spend], dp_delta: float, *, accountant: Accountant | None = None,
          where: str = "total") -> Total:
    """What many rounds cost together, with the accountant that computed it.

    Use it where one must say how an epsilon was computed; :func:`compose` returns epsilon alone.

    Guarantees:
        The rounds, adaptively composed, are (``epsilon``, dp_delta)-differentially private for
        the spends' unit and adjacency. Privacy loss distributions are pessimistic: epsilon lies
        above the truth, by about a part in a thousand. Rounding of the computation is charged to
        delta,
        1.1e-16 a round. The slack of discrete noise is included.

    Assumes:
        Which rounds are run, and with what noise and sampling, does not depend on what was
        released before (stopping early may). Fully adaptive choices need a filter: Rogers, Roth,
        Ullman, Vadhan 2016; Feldman and Zrnic 2021.

    Args:
        spends: what was or will be spent; nothing costs 0.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: ``"pld"`` or ``"rdp"``; None takes privacy loss distributions where every kind
            has one and double precision suffices (9,000 sampled rounds at a dp_delta of 1e-12),
            and Renyi divergences else.
        where: what to call this computation in an error.

    Returns:
        The total.

    Raises:
        SpecError: mixed adjacencies or units, a dp_delta out of range, or an accountant that
            cannot serve all the rounds.

    Example:
        >>> skellam = Spend(None, 0.1, "client", kind="skellam",
        ...                 parameters={"l1": 900.0, "l2": 100.0, "variance": 10_000.0})
        >>> result = total([skellam] * 5, dp_delta=1e-5)
        >>> result.accountant, result.unit
        ('rdp', 'client')
    """
    require_dp_delta(where, dp_delta)
    spends = as_tuple(where, spends)
    for spend in spends:
        require(isinstance(spend, Spend), where, "spends", type(spend).__name__,
                "Give fs.privacy.Spend objects, or records to fs.privacy.spent(...).")
    for name in ("adjacency", "unit"):
        found = sorted({getattr(spend, name) for spend in spends})
        require(len(found) <= 1, where, f"spends of one {name}", " and ".join(found),
                f"Account each {name} in a budget of its own; their epsilons do not add.")
    with _in_range(where):
        groups = _grouped(spends)
        rounds = sum(count for _, count in groups)
        require(rounds <= _MOST_COMPOSED, where, f"at most {_MOST_COMPOSED:,} sampled rounds",
                f"{rounds:,}", "Take fewer, or account them as full participation.")
        chosen = _chosen(groups, accountant, where)
        slack = (math.fsum(spend.count * spend.log_ratio for spend in spends),
                 math.fsum(spend.count * spend.total_variation for spend in spends))
        epsilon = 0.0 if not spends else _epsilon_of_groups(
            groups, chosen, *slack, float(dp_delta))
        if (math.isinf(epsilon) and accountant is None and chosen == "pld"
                and all(has_renyi(step) for step, _ in groups)):
            # So many rounds at so small a delta are beyond FFTs; Renyi divergences need none.
            chosen, epsilon = "rdp", _epsilon_of_groups(groups, "rdp", *slack, float(dp_delta))
    return Total(epsilon, float(dp_delta), chosen, spends[0].unit if spends else "",
                 spends[0].adjacency if spends else "", spends)


def compose(
    spends: Iterable[Spend], dp_delta: float, *, accountant: Accountant | None = None,
) -> float:
    """Epsilon of many spends together, at `dp_delta`.

    Use it for the whole history of a budget: rounds of different kinds, noise or sampling may be
    mixed. Equal rounds are grouped, and results are remembered, so that a call each round is
    cheap.

    Guarantees:
        The rounds, adaptively composed, are (result, dp_delta)-differentially private for the
        spends' unit and adjacency. The result is an upper bound (pessimistic privacy loss
        distributions) that lies within about a part in a thousand of dp-accounting's at its
        finest useful grid. The slack of discrete noise is included.

    Args:
        spends: what was or will be spent; an empty list costs 0.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: see :func:`total`, which also tells which one it was.

    Returns:
        epsilon, or infinity where no finite epsilon holds at this dp_delta.

    Raises:
        SpecError: mixed adjacencies or units, a dp_delta out of range, or an accountant that
            cannot serve all the rounds.

    Example:
        >>> a = Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient", count=20)
        >>> b = Spend(noise_multiplier=2.0, sampling_rate=0.1, unit="patient", count=10)
        >>> round(compose([a, b], dp_delta=1e-3), 2)
        2.19

    Source:
        Koskela, Jalko, Honkela 2020 (privacy loss distributions); Doroshenko et al. 2022,
        "Connect the dots" (the pessimistic grid); both as implemented by dp-accounting. Mironov
        2017 (Renyi); Canonne, Kamath, Steinke 2020, Proposition 12 (its conversion).
    """
    return total(spends, dp_delta, accountant=accountant, where="compose").epsilon


def delta_profile(
    spends: Iterable[Spend], epsilons: ArrayLike, *, accountant: Accountant | None = None,
) -> NDArray[np.float64]:
    """delta at each of many epsilons: the whole guarantee, not one point of it.

    Guarantees:
        The rounds, adaptively composed, are (epsilon, delta)-differentially private for every
        pair. The slack of discrete noise is included (:class:`DiscreteGaussianSum`, steps 4 and
        5: delta is e^g delta'(epsilon - 2g) + (1 + e^epsilon) T).

    Args:
        spends: what was or will be spent, at least one.
        epsilons: at 0 and above.
        accountant: see :func:`total`.

    Returns:
        delta at each epsilon, in [0, 1].

    Raises:
        SpecError: as :func:`total` does.

    Example:
        >>> one = Spend(noise_multiplier=1.0, sampling_rate=1.0, unit="patient")
        >>> delta_profile([one], [0.0, 1.0]).round(3)
        array([0.383, 0.127])
    """
    spends = as_tuple("delta_profile", spends)
    chosen = total(spends, 0.5, accountant=accountant, where="delta_profile").accountant
    try:
        epsilons = np.asarray(epsilons, np.float64)
    except (TypeError, ValueError):
        epsilons = np.array(math.nan)
    require(bool(np.all(epsilons >= 0)), "delta_profile", "epsilons of 0 and above",
            "others", "Give numbers of 0 and above.")
    require(bool(spends), "delta_profile", "at least one spend", "none", "Give the rounds.")
    groups = _grouped(spends)
    log_ratio = math.fsum(spend.count * spend.log_ratio for spend in spends)
    variation = math.fsum(spend.count * spend.total_variation for spend in spends)
    inner = epsilons - 2.0 * log_ratio
    # Each once and in order, as dp-accounting needs them.
    ordered, places = np.unique(np.maximum(inner, 0.0), return_inverse=True)
    if chosen == "pld":
        loss = _composed_loss(groups, _interval(groups))
        exact = np.asarray(loss.get_delta_for_epsilon(cast("Sequence[float]", ordered)))
        exact = exact + _float_error(groups)
    else:
        divergence, failure = _summed_renyi(groups)
        curve = divergence.tolist()
        exact = np.array([rdp_privacy_accountant.compute_delta(ORDERS, curve, value)[0]
                          for value in ordered])
        exact = failure + (1.0 - failure) * exact
    exact = np.where(inner < 0, 1.0, np.reshape(exact[places], epsilons.shape))
    with np.errstate(over="ignore"):
        slack = (1.0 + np.exp(epsilons)) * variation if variation else 0.0
    return np.clip(math.exp(min(log_ratio, 700.0)) * exact + slack, 0.0, 1.0)
