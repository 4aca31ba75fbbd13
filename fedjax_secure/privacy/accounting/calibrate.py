"""Epsilon of equal rounds, and the noise that reaches a given epsilon."""

from __future__ import annotations

import math
from typing import Literal

from dp_accounting.rdp import RdpAccountant

from .arguments import is_positive, require, require_dp_delta
from .compose import compose
from .spend import RELATIONS, Adjacency, Spend

_MULTIPLIER_RANGE = (0.02, 1e6)


def epsilon(
    *, noise_multiplier: float, sampling_rate: float, rounds: int, dp_delta: float,
    accountant: Literal["pld", "rdp"] = "pld", adjacency: Adjacency = "add_remove",
) -> float:
    """Epsilon of `rounds` rounds of the Poisson-subsampled Gaussian.

    Guarantees:
        The rounds are (result, dp_delta)-differentially private for a Gaussian of this noise; for
        summed discrete noise use the spend of :class:`DiscreteGaussianSum` and :func:`compose`.

    Args:
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        rounds: number of rounds.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: ``"pld"`` (tight) or ``"rdp"`` (looser; what older papers report).
        adjacency: ``"add_remove"`` or ``"replace_one"``.

    Returns:
        epsilon.

    Raises:
        SpecError: a value out of range; ``"rdp"`` with ``"replace_one"``, which dp-accounting's
            accountant ignores for a Gaussian (it would report half the sensitivity).

    Example:
        >>> round(epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=30, dp_delta=1e-5), 2)
        4.18

    Source:
        Abadi et al. 2016; Mironov, Talwar, Zhang 2019 (RDP); see :func:`compose` for PLD.
    """
    where = "epsilon"
    spend = Spend(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, count=rounds,
                  unit="unit", adjacency=adjacency)
    require(accountant in ("pld", "rdp"), where, "accountant 'pld' or 'rdp'", repr(accountant),
          'Use "pld" for the tight bound.')
    if accountant == "pld":
        return compose([spend], dp_delta)
    require_dp_delta(where, dp_delta)
    require(adjacency == "add_remove", where, 'adjacency "add_remove" with the RDP accountant',
          repr(adjacency), 'Use accountant="pld" for "replace_one".')
    rdp = RdpAccountant(neighboring_relation=RELATIONS[adjacency]).compose(spend.dp_event)
    return float(rdp.get_epsilon(dp_delta))


def calibrate(
    *, target_epsilon: float, dp_delta: float, rounds: int, sampling_rate: float,
    adjacency: Adjacency = "add_remove", log_ratio: float = 0.0, total_variation: float = 0.0,
) -> float:
    """The smallest noise multiplier whose rounds cost at most `target_epsilon`.

    Guarantees:
        ``compose`` of the rounds with the result is at most ``target_epsilon * (1 - 1e-5)``: the
        answer always lies on the safe side, with room for the last digits of a float sum.

    Args:
        target_epsilon: epsilon that the whole run may cost.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        rounds: number of equal rounds.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        adjacency: ``"add_remove"`` or ``"replace_one"``.
        log_ratio: as in :class:`Spend`, per round.
        total_variation: as in :class:`Spend`, per round.

    Returns:
        The noise multiplier; no multiplier smaller by a part in a thousand would do.

    Raises:
        SpecError: a value out of range, or a target that no noise reaches (the slack alone costs
            more) or that next to no noise reaches.

    Example:
        >>> round(calibrate(target_epsilon=3.0, dp_delta=1e-3, rounds=30, sampling_rate=0.1), 3)
        0.927
    """
    where = "calibrate"
    require_dp_delta(where, dp_delta)
    require(is_positive(target_epsilon), where, "target_epsilon > 0",
          f"target_epsilon={target_epsilon!r}", "Give the epsilon that the whole run may cost.")
    goal = math.log(target_epsilon) - 5e-5  # hits within 4e-5 of it: always below the target

    def excess(log_multiplier: float) -> float:
        spend = Spend(math.exp(log_multiplier), sampling_rate, "unit", rounds, adjacency,
                      log_ratio, total_variation)
        return math.log(max(compose([spend], dp_delta), 1e-300)) - goal

    smallest, largest = (math.log(value) for value in _MULTIPLIER_RANGE)
    low = high = 0.0
    f_low = f_high = excess(0.0)
    while f_high > 0:
        low, f_low = high, f_high
        require(high < largest, where, "a target that some noise reaches",
              f"target_epsilon={target_epsilon:g} with slack {2 * rounds * log_ratio:.3g} in "
              f"epsilon and total variation {rounds * total_variation:.3g} against "
              f"dp_delta={dp_delta:g}",
              "Raise target_epsilon or dp_delta, run fewer rounds, or use a finer sampler.")
        high += math.log(2.0)
        f_high = excess(high)
    while f_low <= 0:
        high, f_high = low, f_low
        require(low > smallest, where,
                f"a target that needs a multiplier above {math.exp(smallest)}",
                f"target_epsilon={target_epsilon:g}",
              "So large an epsilon protects nobody: lower target_epsilon.")
        low -= math.log(2.0)
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
            return math.exp(middle)  # above the inner goal, below the target
        if value > 0:
            low, weight_low, weight_high = middle, value, weight_high / 2
        else:
            high, f_high, weight_high, weight_low = middle, value, value, weight_low / 2
    return math.exp(high)
