"""Epsilon of equal rounds, and what to change to reach a given epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .arguments import as_tuple, is_count, is_positive, require, require_dp_delta
from .compose import Accountant, compose
from .spend import Adjacency, Sampling, Spend

MOST_ROUNDS = 1_000_000

_MULTIPLIER_RANGE = (0.02, 1e6)
_SMALLEST_RATE = 1e-9


def epsilon(
    *, noise_multiplier: float, sampling_rate: float, rounds: int, dp_delta: float,
    accountant: Accountant = "pld", adjacency: Adjacency = "add_remove",
    sampling: Sampling = "poisson", population: int | None = None,
    largest_cohort: int | None = None,
) -> float:
    """Epsilon of `rounds` rounds of the Gaussian mechanism on sampled units.

    Use it to look at one setting quickly; :func:`calibrate` goes the other way, and
    :func:`compose` takes other mechanisms and mixtures.

    Guarantees:
        The rounds are (result, dp_delta)-differentially private for a Gaussian of this noise; for
        summed discrete noise use the spend of :class:`DiscreteGaussianSum` and :func:`compose`.

    Args:
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1]; 1 is
            full participation.
        rounds: number of rounds.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: ``"pld"`` (tight) or ``"rdp"`` (looser; what older papers report).
        adjacency: ``"add_remove"`` or ``"replace_one"``, which doubles the sensitivity.
        sampling: ``"poisson"``, ``"fixed_size"`` or ``"truncated_poisson"``; see :class:`Spend`.
        population: number of units that are drawn from; for ``"truncated_poisson"`` only.
        largest_cohort: where a Poisson cohort is cut; for ``"truncated_poisson"`` only.

    Returns:
        epsilon.

    Raises:
        SpecError: a value out of range, or a sampling for which the RDP accountant has no bound
            (Poisson under ``"replace_one"``; truncated cohorts).

    Example:
        >>> round(epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=30, dp_delta=1e-5), 2)
        4.18
        >>> fixed = epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=30, dp_delta=1e-5,
        ...                 sampling="fixed_size", adjacency="replace_one")
        >>> round(fixed, 1)  # a cohort of fixed size is no Poisson cohort
        19.0

    Source:
        Abadi et al. 2016; Mironov, Talwar, Zhang 2019 (RDP); see :func:`compose` for PLD.
    """
    require(accountant in ("pld", "rdp"), "epsilon", "accountant 'pld' or 'rdp'", repr(accountant),
            'Use "pld" for the tight bound.')
    spend = Spend(noise_multiplier, sampling_rate, "unit", rounds, adjacency, sampling=sampling,
                  population=population, largest_cohort=largest_cohort)
    return compose([spend], dp_delta, accountant=accountant)


def calibrate(
    *, dp_delta: float, target_epsilon: float | None = None,
    noise_multiplier: float | None = None, rounds: int | None = None,
    sampling_rate: float | None = None, adjacency: Adjacency = "add_remove",
    sampling: Sampling = "poisson", accountant: Accountant = "pld", log_ratio: float = 0.0,
    total_variation: float = 0.0,
) -> float:
    """Solves for the one of noise, rounds, sampling rate and epsilon that is left out.

    Guarantees:
        The answer lies on the safe side: :func:`compose` of the rounds with it is at most
        `target_epsilon` (for noise and sampling rate, ``target_epsilon * (1 - 1e-5)``, with room
        for the last digits of a float sum). It is the best to a part in a thousand of epsilon: the
        smallest noise, the most rounds (at most 1,000,000), the largest sampling rate.

    Args:
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        target_epsilon: epsilon that the whole run may cost.
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound.
        rounds: number of equal rounds.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        adjacency: ``"add_remove"`` or ``"replace_one"``.
        sampling: ``"poisson"`` or ``"fixed_size"``; see :class:`Spend`.
        accountant: ``"pld"`` or ``"rdp"``.
        log_ratio: as in :class:`Spend`, per round.
        total_variation: as in :class:`Spend`, per round.

    Returns:
        What was left out: a noise multiplier, a number of rounds (an int), a sampling rate or an
        epsilon.

    Raises:
        SpecError: not exactly one left out, a value out of range, or a target that nothing
            reaches (the slack alone costs more) or that next to no noise reaches.

    Example:
        >>> run = {"dp_delta": 1e-3, "target_epsilon": 3.0}
        >>> round(calibrate(**run, rounds=30, sampling_rate=0.1), 3)
        0.927
        >>> calibrate(**run, noise_multiplier=1.0, sampling_rate=0.1)
        41
        >>> round(calibrate(**run, noise_multiplier=1.0, rounds=30), 3)
        0.116
        >>> round(calibrate(dp_delta=1e-3, noise_multiplier=1.0, rounds=30, sampling_rate=0.1), 2)
        2.57
    """
    where = "calibrate"
    given = {"target_epsilon": target_epsilon, "noise_multiplier": noise_multiplier,
             "rounds": rounds, "sampling_rate": sampling_rate}
    absent = [name for name, value in given.items() if value is None]
    require(len(absent) == 1, where, f"all but one of {', '.join(given)}",
            f"without {', '.join(absent)}" if absent else "all of them",
            "Leave out the one to solve for.")
    require_dp_delta(where, dp_delta)
    require(sampling != "truncated_poisson", where, "sampling without truncation",
            repr(sampling), "Look at single settings with epsilon(...).")
    if target_epsilon is not None:
        require(is_positive(target_epsilon), where, "target_epsilon > 0",
                f"target_epsilon={target_epsilon!r}",
                "Give the epsilon that the whole run may cost.")
    require(rounds is None or is_count(rounds), where, "rounds >= 1, an integer",
            f"rounds={rounds!r}", "Give the number of equal rounds.")
    # What was left out starts at a value that is always allowed.
    one = Spend(1.0 if noise_multiplier is None else noise_multiplier,
                1.0 if sampling_rate is None else sampling_rate, "unit",
                1 if rounds is None else rounds, adjacency, log_ratio, total_variation,
                sampling=sampling)

    def cost(**changes: float) -> float:
        return compose([replace(one, **changes)], dp_delta, accountant=accountant)

    if target_epsilon is None:
        return cost()
    if rounds is None:
        fitting = most_rounds(lambda count: cost(count=count), target_epsilon)
        require(fitting >= 1, where, "a target that one round meets",
                f"target_epsilon={target_epsilon:g}, and one round costs {cost():.6g}",
                "Raise target_epsilon, add noise or lower the sampling rate.")
        return fitting
    goal = math.log(target_epsilon) - 5e-5  # hits within 4e-5 of it: always below the target

    def excess(changed: dict[str, float]) -> float:
        return math.log(max(cost(**changed), 1e-300)) - goal

    slack = (f"target_epsilon={target_epsilon:g} with slack {2 * rounds * log_ratio:.3g} in "
             f"epsilon and total variation {rounds * total_variation:.3g} against "
             f"dp_delta={dp_delta:g}")
    slackens = log_ratio > 0 or total_variation > 0  # without slack, every target is in reach
    if sampling_rate is None:
        if excess({"sampling_rate": 1.0}) <= 0:
            return 1.0
        require(not slackens or excess({"sampling_rate": _SMALLEST_RATE}) <= 0, where,
                f"a target that some sampling rate above {_SMALLEST_RATE:g} reaches", slack,
                "Raise target_epsilon or dp_delta, or run fewer rounds.")
        found = _first_met(lambda x: excess({"sampling_rate": math.exp(-x)}), 1.0, 0.0,
                           -math.log(_SMALLEST_RATE))
        require(found is not None, where,
                f"a target that some sampling rate above {_SMALLEST_RATE:g} reaches", slack,
                "Raise target_epsilon or dp_delta, add noise or run fewer rounds.")
        assert found is not None
        return math.exp(-found)
    smallest, largest = (math.log(value) for value in _MULTIPLIER_RANGE)
    require(not slackens or excess({"noise_multiplier": _MULTIPLIER_RANGE[1]}) <= 0, where,
            "a target that some noise reaches", slack,
            "Raise target_epsilon or dp_delta, run fewer rounds, or use a finer sampler.")
    found = _first_met(lambda x: excess({"noise_multiplier": math.exp(x)}), 0.0, smallest, largest)
    require(found is not None, where, "a target that some noise reaches", slack,
            "Raise target_epsilon or dp_delta, run fewer rounds, or use a finer sampler.")
    assert found is not None
    require(found > smallest, where,
            f"a target that needs a multiplier above {math.exp(smallest):g}",
            f"target_epsilon={target_epsilon:g}",
            "So large an epsilon protects nobody: lower target_epsilon.")
    return math.exp(found)


def _first_met(excess: Callable[[float], float], start: float, lowest: float, highest: float,
               ) -> float | None:
    """About the smallest x with excess(x) <= 0, where excess falls; None where none is up to
    `highest`, and `lowest` where it is met there already. Never above the target."""
    low = high = start
    f_low = f_high = excess(start)
    while f_high > 0:
        if high >= highest:
            return None
        low, f_low = high, f_high
        high = min(high + math.log(2.0), highest)
        f_high = excess(high)
    while f_low <= 0:
        if low <= lowest:
            return lowest
        high, f_high = low, f_low
        low = max(low - math.log(2.0), lowest)
        f_low = excess(low)
    # Regula falsi (Illinois) between f_low > 0 >= f_high, with bisection where it stalls.
    weight_low, weight_high = f_low, f_high
    for step in range(100):
        if f_high >= -4e-5 or high - low < 1e-6:
            break
        usable = math.isfinite(weight_low) and weight_high > -50 and step % 4 != 3
        middle = ((low * weight_high - high * weight_low) / (weight_high - weight_low)
                  if usable else 0.5 * (low + high))
        value = excess(middle)
        if 0 < value < 4e-5:
            return middle  # above the inner goal, below the target
        if value > 0:
            low, weight_low, weight_high = middle, value, weight_high / 2
        else:
            high, f_high, weight_high, weight_low = middle, value, value, weight_low / 2
    return high


def most_rounds(cost: Callable[[int], float], target_epsilon: float) -> int:
    """The largest number of rounds, at most 1,000,000, whose cost is at most the target.

    Args:
        cost: epsilon of a number of rounds of at least 1; it must not fall as they grow.
        target_epsilon: what they may cost.

    Returns:
        The number; 0 where one round costs too much.
    """
    low, at_low = 1, cost(1)
    if at_low > target_epsilon:
        return 0
    high, at_high = 2, at_low
    while high <= MOST_ROUNDS and (at_high := cost(high)) <= target_epsilon:
        low, at_low, high = high, at_high, 4 * high
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        # Where the cost, taken as a power of the rounds, crosses the target; then, since the
        # crossing is close to one end, steps of a sixteenth of what is left.
        slope = (math.log(at_high / at_low) / math.log(high / low)
                 if 0 < at_low < at_high < math.inf else 1.0)
        guess = int(low * (target_epsilon / max(at_low, 1e-9)) ** (1 / slope))
        margin = max(1, (high - low) // 16)
        guess = min(max(guess, low + margin), high - margin)
        at = cost(guess)
        if at <= target_epsilon:
            low, at_low = guess, at
        else:
            high, at_high = guess, at
    return low


@dataclass(frozen=True)
class UnitEpsilons:
    """What each of several units has spent, where they took part unequally.

    Attributes:
        largest: the guarantee that holds for every unit: the largest of all.
        unit: the name of a unit that has it.
        by_unit: each unit's own epsilon.
        dp_delta: the delta of all of them.

    Example:
        >>> rates = {"large": 0.30, "small": 0.05}
        >>> result = epsilon_by_unit(
        ...     {name: [Spend(2.0, rate, "client", count=50)] for name, rate in rates.items()},
        ...     dp_delta=1e-5)
        >>> result.unit, round(result.largest, 2)
        ('large', 5.41)
    """

    largest: float
    unit: str
    by_unit: Mapping[str, float]
    dp_delta: float


def epsilon_by_unit(participation: Mapping[str, Iterable[Spend]], dp_delta: float, *,
                    accountant: Accountant | None = None) -> UnitEpsilons:
    """Epsilon of each unit, where units take part at unequal rates or in unequal rounds.

    Use it where hospitals, devices or persons are drawn with different probabilities, or join
    late. Units with equal histories are computed once.

    Guarantees:
        Each unit's number is its own guarantee, and the largest is everybody's.

    Assumes:
        The rates and who is offered which rounds do not depend on anybody's data: they are public
        numbers. A unit's own number protects it as far as that unit's rate is public.

    Args:
        participation: for each unit, what its rounds cost it: spends with its own sampling rates
            and counts. Rounds in which a unit had no chance to take part are left out.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: see :func:`compose`.

    Returns:
        The epsilons.

    Raises:
        SpecError: no units, or mixed units of privacy or adjacencies over all of them.

    Example:
        >>> often = Spend(1.0, 0.5, "client", count=10)
        >>> seldom = Spend(1.0, 0.05, "client", count=10)
        >>> result = epsilon_by_unit({"a": [often], "b": [seldom]}, dp_delta=1e-5)
        >>> result.unit, result.by_unit["b"] < 0.5 * result.largest
        ('a', True)
    """
    where = "epsilon_by_unit"
    require(isinstance(participation, Mapping), where, "a mapping from units to their spends",
            type(participation).__name__, 'Give {"a": [Spend(...)], "b": [Spend(...)]}.')
    spends = {name: as_tuple(where, history) for name, history in participation.items()}
    require(bool(spends), where, "at least one unit", "none", "Name the units and their spends.")
    for name in ("unit", "adjacency"):
        found = sorted({getattr(spend, name) for history in spends.values() for spend in history})
        require(len(found) <= 1, where, f"spends of one {name}", " and ".join(found),
                f"Account each {name} on its own; their epsilons do not compare.")
    cost = {history: compose(history, dp_delta, accountant=accountant)
            for history in dict.fromkeys(spends.values())}
    by_unit = {name: cost[history] for name, history in spends.items()}
    most = max(by_unit, key=lambda name: by_unit[name])
    return UnitEpsilons(by_unit[most], most, by_unit, float(dp_delta))
