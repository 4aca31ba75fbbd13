"""Each group its own epsilon: rates ("Sample") or clipping bounds ("Scale") solved from targets."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import brentq

from ..accounting import Spend, calibrate, compose
from ..accounting.arguments import is_count, is_positive, require, require_dp_delta
from ..quantise import rounded_l2_bound

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["sample", "scale"]

_MOST_GROUPS = 64
_SLACK = 1e-9  # above what the noise of summed integer shares adds to epsilon in a round
_GOAL = 1.0 - 5e-5  # targets are met within a part in ten thousand, always from below
_LOWEST_LOG_RATE = math.log(1e-7)
_FLOAT_SLACK = 1 + 2e-5  # by which float32 may leave a gradient longer than its bound
_LEAST_SHARE = 0.05  # of a planned rate: who could only be drawn more seldom has nothing left


@dataclasses.dataclass(frozen=True)
class Group:
    """People of one sensitivity, and what a plan settled for them.

    Attributes:
        name: of the group; public.
        target_epsilon: what the whole run may cost each of its people.
        epsilon: what the whole run costs each of them; at most the target.
        share: the group's public share of all people, from 0 to 1.
        sampling_rate: probability that one of them takes part in a round; 0 for a group whose
            budget is used up.
        l2_share: their clipping bound over the widest group's, above 0 and up to 1.
    """

    name: str
    target_epsilon: float
    epsilon: float
    share: float
    sampling_rate: float
    l2_share: float


@dataclasses.dataclass(frozen=True)
class IndividualPlan:
    """What a run does so that every group ends at its own epsilon.

    Made by :func:`sample` or :func:`scale`. Everything in it is public: it is computed from
    targets and public shares, never from records.

    Attributes:
        method: ``"sample"`` or ``"scale"``.
        groups: what was settled for each group.
        noise_multiplier: for ``fs.privacy.discrete_gaussian(...)``: standard deviation of the
            noise over the widest clipping bound.
        rounds: how many rounds the run takes.
        dp_delta: the delta of everyone's guarantee.
    """

    method: Method
    groups: tuple[Group, ...]
    noise_multiplier: float
    rounds: int
    dp_delta: float

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names, in the order of their numbers."""
        return tuple(group.name for group in self.groups)

    @property
    def sampling_rates(self) -> tuple[float, ...]:
        """Each group's sampling rate, in the order of their numbers."""
        return tuple(group.sampling_rate for group in self.groups)

    @property
    def mean_rate(self) -> float:
        """The sampling rate in the mean over all people, by their public shares."""
        return math.fsum(group.share * group.sampling_rate for group in self.groups)

    def l2_bounds(self, mean: float) -> dict[str, float]:
        """Each group's clipping bound, so that their mean over all people is ``mean``.

        Args:
            mean: of the bounds over all people, by the groups' shares, in model units.
        """
        require(is_positive(mean), "l2_bounds", "a positive mean bound", repr(mean),
                "Give the norm that a uniform run would clip to.")
        scale = mean / math.fsum(group.share * group.l2_share for group in self.groups)
        return {group.name: scale * group.l2_share for group in self.groups}

    def record_bounds(self, groups: Sequence[int] | np.ndarray, *, l2_bound: float, scale: float,
                      dim: int) -> np.ndarray:
        """The norm to which each record's gradient is clipped, for ``fed_sgd(record_bounds=...)``.

        Guarantees:
            A gradient of this norm, rounded to integers, is no longer than the group's share of
            the norm that the widest group's integers keep: rounding moves each of ``dim`` values
            by less than one unit, so the norm by less than sqrt(dim).

        Args:
            groups: ``[records]``, the number of each record's group.
            l2_bound: of the chain's ``clip(...)``: the widest group's, in model units.
            scale: of the chain's ``quantise(..., scale=...)``.
            dim: values of an update, ``model.dim``.

        Returns:
            float32 [records].

        Raises:
            SpecError: a group's bound vanishes beside the rounding.
        """
        return self._own_bounds("record_bounds", groups, l2_bound, scale, dim)

    def client_bounds(self, groups: Sequence[int] | np.ndarray, *, l2_bound: float, scale: float,
                      dim: int) -> np.ndarray:
        """The norm to which each client clips its update, for ``with_client_bounds(...)``.

        Guarantees:
            As :meth:`record_bounds`, of an update.

        Args:
            groups: ``[clients]``, the number of each client's group.
            l2_bound: of the chain's ``clip(..., unit="client")``: the widest group's.
            scale: of the chain's ``quantise(..., scale=...)``.
            dim: values of an update as the chain rounds it: ``model.dim`` for `fed_avg`, the next
                power of two after ``rotate()``.

        Returns:
            float32 [clients].

        Raises:
            SpecError: a group's bound vanishes beside the rounding.
        """
        return self._own_bounds("client_bounds", groups, l2_bound, scale, dim)

    def _own_bounds(self, where: str, groups: Sequence[int] | np.ndarray, l2_bound: float,
                    scale: float, dim: int) -> np.ndarray:
        widest, bounds = rounded_l2_bound(l2_bound * scale, dim), []
        for group in self.groups:
            norm = (group.l2_share * widest - math.sqrt(dim)) / (scale * _FLOAT_SLACK)
            bound = l2_bound if group.l2_share == 1 else min(norm, l2_bound)
            require(bound > 0, where, "bounds above the rounding's own length",
                    f"none for {group.name!r}", "Raise quantise(scale=...).")
            bounds.append(np.nextafter(np.float32(bound), np.float32(0)))
        return np.array(bounds, np.float32)[np.asarray(groups)]

    def spends(self, round_spend: Spend) -> dict[str, Spend]:
        """What a round costs each group, from what it costs the one that it costs most.

        Args:
            round_spend: of one round, of the widest bound and the largest sampling rate, as a
                federation accounts its chain.

        Returns:
            A spend for the name of each group that is drawn at all.

        Raises:
            SpecError: less noise than planned, another rate, or another kind of mechanism.
        """
        require(round_spend.kind == "gaussian" and round_spend.adjacency == "add_remove"
                and round_spend.sampling == "poisson", "an individual plan",
                "Gaussian noise with Poisson sampling, one unit added or removed",
                f"{round_spend.kind} noise, {round_spend.sampling}, {round_spend.adjacency}",
                "Use fs.privacy.discrete_gaussian(plan.noise_multiplier).")
        assert round_spend.noise_multiplier is not None
        require(round_spend.noise_multiplier >= self.noise_multiplier * (1 - 1e-9),
                "an individual plan", f"a noise multiplier of {self.noise_multiplier:.6g}",
                f"{round_spend.noise_multiplier:.6g}",
                "Use fs.privacy.discrete_gaussian(plan.noise_multiplier).")
        largest = max(self.sampling_rates)
        require(math.isclose(round_spend.sampling_rate, largest, rel_tol=1e-12),
                "an individual plan", f"a largest sampling rate of {largest:.6g}",
                f"{round_spend.sampling_rate:.6g}",
                "Draw by fs.selection.poisson_records_by_group(groups, plan.sampling_rates), or "
                "poisson_clients_by_group(..., everyone_answers=True).")
        return {group.name: dataclasses.replace(
            round_spend, sampling_rate=group.sampling_rate,
            noise_multiplier=round_spend.noise_multiplier / group.l2_share)
            for group in self.groups if group.sampling_rate > 0}

    def limited(self, spent: Mapping[str, Sequence[Spend]]) -> IndividualPlan:
        """The same run for people who have spent some of their budgets already.

        Each group's rate is lowered so that what is left of its budget lasts for the run; a group
        that would have to be drawn at less than a twentieth of the planned rate has used its budget
        up: it gets rate 0 and is drawn no more. Only public spends decide that,
        never records. Bounds and noise stay.

        Args:
            spent: for each group's name, what its people have spent.

        Returns:
            The plan; itself where all budgets hold it.

        Raises:
            SpecError: no group has anything left.
        """
        groups = []
        for group in self.groups:
            before, multiplier = tuple(spent[group.name]), self.noise_multiplier / group.l2_share
            rate = _rate_within(multiplier, group, self.rounds, self.dp_delta, before)
            total = _cost(multiplier, rate, self.rounds, self.dp_delta, before)
            groups.append(dataclasses.replace(group, sampling_rate=rate, epsilon=total))
        require(any(group.sampling_rate > 0 for group in groups), "an individual plan",
                "a group that has some of its budget left", "none",
                "Nothing more may be learned about these people.")
        return dataclasses.replace(self, groups=tuple(groups))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for a file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> IndividualPlan:
        """The plan that :meth:`to_dict` wrote."""
        return cls(**{**fields, "groups": tuple(Group(**group) for group in fields["groups"])})

    def to_dataframe(self) -> pd.DataFrame:
        """One row a group."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(group) for group in self.groups]).set_index("name")

    def _repr_html_(self) -> str:
        title = (f"{self.method}: noise multiplier {self.noise_multiplier:.4g}, {self.rounds} "
                 f"rounds, dp_delta {self.dp_delta:g}")
        return f"<p>{html.escape(title)}</p>{self.to_dataframe().round(4).to_html()}"


def sample(
    target_epsilons: Mapping[str, float], *, shares: Mapping[str, float], sampling_rate: float,
    rounds: int, dp_delta: float,
) -> IndividualPlan:
    """Everyone the same clipping and noise; who wants more privacy is drawn more seldom.

    Guarantees:
        For each group, the rounds' Poisson-subsampled Gaussian with its own rate costs at most its
        target, less by no more than a part in a thousand, unless even a rate of 1 costs less. The
        guarantee of one person depends on that person's own rate alone: each has a coin of its
        own, and the others' coins are independent of it.

    Args:
        target_epsilons: for each group's name, what the run may cost each of its people.
        shares: for each name, the group's public share of all people, by which rates are averaged.
        sampling_rate: the rate in the mean over all people; it settles the expected batch.
        rounds: how many rounds the run takes.
        dp_delta: the delta of everyone's guarantee.

    Returns:
        The plan. Draw by ``fs.selection.poisson_records_by_group(groups, plan.sampling_rates,
        ...)``, or ``poisson_clients_by_group(..., everyone_answers=True)`` where each client is one
        of the people.

    Raises:
        SpecError: a value out of range, or targets that no noise reaches.

    Example:
        >>> plan = sample({"careful": 1.0, "others": 3.0}, shares={"careful": 0.3, "others": 0.7},
        ...               sampling_rate=0.1, rounds=20, dp_delta=1e-4)
        >>> [round(group.epsilon, 3) for group in plan.groups]
        [1.0, 3.0]
        >>> plan.sampling_rates[0] < 0.1 < plan.sampling_rates[1]
        True

    Source:
        Boenisch, Muehl, Dziedzic, Rinberg, Papernot 2023, "Have it your way: Individualized
        Privacy Assignment for DP-SGD", arXiv 2303.17046, the method Sample.
    """
    names, weights = _checked("sample", target_epsilons, shares, rounds, dp_delta)
    require(is_positive(sampling_rate) and sampling_rate <= 1, "sample", "a mean sampling_rate in "
            "(0, 1]", repr(sampling_rate), "Give expected batch / number of records.")
    require(sampling_rate < 1 or len(set(target_epsilons.values())) == 1, "sample",
            "a mean sampling rate below 1, for rates to differ", "1", "Use scale(...) instead.")

    near = [float(sampling_rate)] * len(names)

    def rates(multiplier: float) -> list[float]:
        near[:] = [_largest_rate(multiplier, target_epsilons[name], rounds, dp_delta, start)
                   for name, start in zip(names, near, strict=True)]
        return list(near)

    def excess(log_multiplier: float) -> float:
        found = rates(math.exp(log_multiplier))
        return math.log(math.fsum(w * q for w, q in zip(weights, found, strict=True))
                        / sampling_rate)

    # The strictest group alone needs more noise than the mixture, the laxest less.
    bounds = [math.log(calibrate(target_epsilon=target, dp_delta=dp_delta, rounds=rounds,
                                 sampling_rate=sampling_rate, log_ratio=_SLACK))
              for target in (max(target_epsilons.values()), min(target_epsilons.values()))]
    multiplier = math.exp(_crossing(excess, math.fsum(bounds) / 2, *bounds, tolerance=3e-4))
    return _plan("sample", names, target_epsilons, weights, rates(multiplier),
                 [1.0] * len(names), multiplier, rounds, dp_delta)


def scale(
    target_epsilons: Mapping[str, float], *, shares: Mapping[str, float], sampling_rate: float,
    rounds: int, dp_delta: float,
) -> IndividualPlan:
    """Everyone the same rate and noise; who wants more privacy is clipped to a smaller norm.

    Guarantees:
        As :func:`sample`, with the group's own clipping bound in place of its own rate. The bound
        that counts is that of the rounded integers.

    Args:
        target_epsilons, shares, rounds, dp_delta: as for :func:`sample`.
        sampling_rate: everyone's; 1 is full participation.

    Returns:
        The plan; :meth:`IndividualPlan.l2_bounds` has the bounds.

    Raises:
        SpecError: a value out of range, or targets that no noise reaches.

    Example:
        >>> plan = scale({"careful": 1.0, "others": 3.0}, shares={"careful": 0.5, "others": 0.5},
        ...              sampling_rate=0.1, rounds=20, dp_delta=1e-4)
        >>> [round(group.epsilon, 3) for group in plan.groups]
        [1.0, 3.0]
        >>> bounds = plan.l2_bounds(mean=1.0)
        >>> bounds["careful"] < 1.0 < bounds["others"]
        True

    Source:
        Boenisch, Muehl, Dziedzic, Rinberg, Papernot 2023, arXiv 2303.17046, the method Scale.
    """
    names, weights = _checked("scale", target_epsilons, shares, rounds, dp_delta)
    multipliers = [calibrate(target_epsilon=target_epsilons[name], dp_delta=dp_delta,
                             rounds=rounds, sampling_rate=sampling_rate, log_ratio=_SLACK)
                   for name in names]
    least = min(multipliers)
    return _plan("scale", names, target_epsilons, weights, [float(sampling_rate)] * len(names),
                 [least / multiplier for multiplier in multipliers], least, rounds, dp_delta)


def integer_norm(bound: float, scale: float, dim: int) -> float:
    """The longest that a gradient clipped to ``bound`` in float32 can be on the integers."""
    return bound * scale * _FLOAT_SLACK + math.sqrt(dim)


def _plan(method: Method, names: list[str], targets: Mapping[str, float], weights: list[float],
          rates: list[float], l2_shares: list[float], multiplier: float, rounds: int,
          dp_delta: float) -> IndividualPlan:
    groups = tuple(
        Group(name, float(targets[name]), _cost(multiplier / l2_share, rate, rounds, dp_delta),
              weight, rate, l2_share)
        for name, weight, rate, l2_share in zip(names, weights, rates, l2_shares, strict=True))
    for group in groups:  # what the solvers promise
        assert group.epsilon <= group.target_epsilon
    return IndividualPlan(method, groups, multiplier, int(rounds), float(dp_delta))


def _cost(multiplier: float, rate: float, rounds: int, dp_delta: float,
          before: tuple[Spend, ...] = ()) -> float:
    now = [Spend(multiplier, rate, "unit", rounds, log_ratio=_SLACK)] if rate > 0 else []
    earlier = [dataclasses.replace(spend, unit="unit") for spend in before]
    return compose([*earlier, *now], dp_delta)


def _rate_within(multiplier: float, group: Group, rounds: int, dp_delta: float,
                 before: tuple[Spend, ...]) -> float:
    """The largest rate, up to the planned one, that what is left of a budget holds."""
    def fits(rate: float) -> bool:
        return _cost(multiplier, rate, rounds, dp_delta, before) <= group.target_epsilon

    if not before or group.sampling_rate == 0 or fits(group.sampling_rate):
        return group.sampling_rate
    high = math.log(group.sampling_rate)
    low = high + math.log(_LEAST_SHARE)
    if not fits(math.exp(low)):
        return 0.0
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(math.exp(middle)) else (low, middle)
    return math.exp(low)


def _largest_rate(multiplier: float, target: float, rounds: int, dp_delta: float,
                  near: float) -> float:
    """The largest sampling rate whose rounds cost at most the target, looked for near a guess."""
    goal = target * _GOAL

    def excess(log_rate: float) -> float:
        return math.log(max(_cost(multiplier, math.exp(log_rate), rounds, dp_delta), 1e-300) / goal)

    if excess(0.0) <= 0:
        return 1.0
    found = _crossing(excess, math.log(near), _LOWEST_LOG_RATE, 0.0, tolerance=2e-5)
    require(found > _LOWEST_LOG_RATE, "sample", "targets that some sampling rate reaches",
            f"epsilon {target:g} with a noise multiplier of {multiplier:.3g}",
            "Bring the groups' targets closer together, or take fewer rounds.")
    while excess(found) > math.log1p(5e-5):  # the room that the goal leaves
        found -= 2e-5
    return math.exp(found)


def _crossing(function: Callable[[float], float], start: float, low: float, high: float, *,
              tolerance: float) -> float:
    """Where a rising function with a slope of about 1 is 0; the end it lies beyond, if any."""
    here = min(max(start, low), high)
    at_here, slope = function(here), 1.0
    for _ in range(8):
        if abs(at_here) < tolerance:
            return here
        there = min(max(here - at_here / slope, low), high)
        if there == here:
            return here
        at_there = function(there)
        slope = min(max((at_there - at_here) / (there - here), 0.2), 20.0)
        here, at_here = there, at_there
    at_low, at_high = function(low), function(high)
    if at_low >= 0 or at_high <= 0:
        return low if at_low >= 0 else high
    return float(brentq(function, low, high, xtol=tolerance, rtol=1e-12))


def _checked(where: str, targets: Mapping[str, float], shares: Mapping[str, float], rounds: int,
             dp_delta: float) -> tuple[list[str], list[float]]:
    names = list(targets)
    require(1 <= len(names) <= _MOST_GROUPS and all(
        isinstance(name, str) and name.strip() and name.isprintable() for name in names), where,
        f"1 to {_MOST_GROUPS} groups, each with a name", f"{names!r}"[:100],
        'Give for example {"older": 1.0, "younger": 3.0}.')
    for name, target in targets.items():
        require(is_positive(target), where, "a positive target epsilon for each group",
                f"{target!r} for {name!r}", "Give the epsilon that the run may cost a person.")
    require(set(shares) == set(names), where, f"a share for each of {names}",
            f"{list(shares)}"[:100], "Give both the same names.")
    require(all(
        isinstance(share, int | float | np.number) and 0 <= share <= 1
        for share in shares.values()) and abs(math.fsum(shares.values()) - 1) < 1e-6, where,
        "a share from 0 to 1 for each group, adding up to 1", f"{dict(shares)!r}"[:100],
        "Give public shares, such as those of a census.")
    require(is_count(rounds), where, "rounds, a whole number of 1 or more", repr(rounds),
            "Give the number of rounds.")
    require_dp_delta(where, dp_delta)
    return names, [float(shares[name]) for name in names]
