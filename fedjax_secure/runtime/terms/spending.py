"""What a round of a federation costs its budget, and what its record says of it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import BudgetError, Mechanism, ResumeError, Spec, SpecError
from ...data import FederatedDataset
from ...privacy import Budget, LargeDeltaWarning, Spend, compose
from ...privacy.individual import IndividualBudget
from .individual import individual_figures


def spend_of(spec: Spec, data: FederatedDataset, budget: Budget | None) -> Spend | None:
    """The spend of one round; None where the chain adds no noise.

    Of a run that is planned as a whole (`Mechanism.schedule`), the noise multiplier is that of the
    run, and the slack that of one round: see `cost_of`.

    Warns:
        LargeDeltaWarning: the budget's delta is not below one over the number of units.

    Raises:
        SpecError: noise without a budget.
        BudgetError: the budget belongs to other data, another unit or another adjacency, or a
            simulation would spend from the data's own.
    """
    mechanism = spec.mechanism
    if budget is not None and not isinstance(budget, Budget | IndividualBudget):
        raise SpecError("a federation", need="a budget, as fs.privacy.Budget.open(...) gives it",
                        found=repr(budget), fix="Open one, or leave budget= out.")
    if mechanism is None:
        if budget is not None:
            raise SpecError(
                "a federation with a budget", need="a chain that adds noise: without it nothing "
                "bounds what its models tell", found="a chain without a noise stage",
                fix="Add fs.privacy.discrete_gaussian(...), or leave budget= out to train without "
                "privacy.")
        return None
    unit = data.unit if spec.unit == "record" else data.client_unit
    other = "" if spec.adjacency == "add_remove" else f", adjacency={spec.adjacency!r}"
    how = (f"Budget.open(data.population_fingerprint, {unit!r}, epsilon=..., dp_delta=...{other})")
    if spec.sampling is None or budget is None:
        raise SpecError("a federation that adds noise", need="a budget to spend from",
                        found="none", fix=f"Pass budget=fs.privacy.{how}.")
    if spec.mode == "seeded" and budget.label is None:
        raise BudgetError(
            "a seeded federation", need="a budget of its own, with a label",
            found="the data's own budget", fix='Open it with Budget.open(..., '
            'label="simulation"), or leave the seed out.')
    found = (budget.fingerprint, budget.unit)
    if found != (data.population_fingerprint, unit):
        raise BudgetError(
            "the federation", need=f"the budget of this dataset's {unit}s",
            found=f"one of {'other data' if found[1] == unit else repr(found[1])}",
            fix=f"Open it with {how}.")
    if budget.adjacency != spec.adjacency:
        raise BudgetError(
            "the federation", need=f"a budget of adjacency {spec.adjacency!r}, which this chain's "
            "guarantee is of", found=repr(budget.adjacency), fix=f"Open it with {how}.")
    _warn_of_delta(unit, len(data.y) if spec.unit == "record" else data.num_clients,
                   budget.dp_delta if isinstance(budget, Budget) else budget.plan.dp_delta)
    # A Gaussian needs no parameters besides.
    kind = {} if mechanism.kind == "gaussian" else {
        "kind": mechanism.kind, "parameters": mechanism.parameters}
    return Spend(
        noise_multiplier=mechanism.noise_multiplier, sampling_rate=spec.sampling_rate, unit=unit,
        adjacency=spec.adjacency, log_ratio=mechanism.log_ratio,
        total_variation=mechanism.total_variation, **kind)


def _warn_of_delta(unit: str, people: int, dp_delta: float) -> None:
    if dp_delta * people >= 1.0:
        warnings.warn(
            f"dp_delta {dp_delta:g} is not below 1/{people}, one over the number of {unit}s: a "
            f"mechanism that publishes the data of one {unit}, drawn at random, has such a delta. "
            f"Open the budget with dp_delta={0.1 / people:.0e}, for example.", LargeDeltaWarning,
            stacklevel=4)


def cost_of(spend: Spend, mechanism: Mechanism, rounds: Sequence[int]) -> tuple[Spend, int]:
    """What some rounds of a run cost together: a spend, and how often it is spent.

    Where a run is planned as a whole, each round costs its share of the plan, and Gaussians'
    shares add up: rounds 1 to t come to exactly what was released by then.

    Args:
        spend: as `spend_of` gives it.
        mechanism: of the chain.
        rounds: their numbers, from 1.

    Raises:
        SpecError: a round that the plan does not have.
    """
    if not mechanism.schedule:
        return spend, len(rounds)
    planned = len(mechanism.schedule)
    if max(rounds) > planned:
        raise SpecError("run", need=f"up to {planned} rounds, for which the noise was planned",
                        found=f"round {max(rounds)}", fix="Plan a new run for more rounds.")
    share = math.fsum(mechanism.schedule[round - 1] for round in rounds)
    assert spend.noise_multiplier is not None
    return dataclasses.replace(
        spend, noise_multiplier=spend.noise_multiplier / math.sqrt(share),
        log_ratio=len(rounds) * spend.log_ratio,
        total_variation=len(rounds) * spend.total_variation), 1


def require_first_release(mechanism: Mechanism, budget: Budget, run_id: str, round: int,
                          attempt: int) -> None:
    """Refuse to release a round of a planned run a second time, with other values.

    Its noise belongs to one sequence of sums; a second sum of one round is not in the plan.

    Raises:
        ResumeError: the budget holds the round under another attempt.
    """
    if not mechanism.schedule:
        return
    for entry in budget.entries():
        if (entry.run_id, entry.round) == (run_id, round) and entry.attempt != attempt:
            raise ResumeError(
                f"round {round}", need="a round that was not released before, since its noise is "
                "correlated with that of the other rounds", found="one that was paid for, of which "
                "the clients' messages are lost",
                fix="Restore the run's folder from a backup, or begin a new run in another folder.")


def spent_rounds(budget: Budget, run_id: str) -> list[int | None]:
    """Rounds of a run that its budget holds, since it was last reset, one entry a spend."""
    spent: list[int | None] = []
    for entry in budget.entries():
        if entry.kind == "reset":
            spent.clear()
        elif entry.run_id == run_id:
            spent.append(entry.round)
    return spent


def require_paid(budget: Budget | IndividualBudget, run_id: str, finished: int) -> None:
    """Refuse to go on with a run whose finished rounds another budget has paid for.

    Raises:
        BudgetError: some of them are in no entry of this one.
    """
    paid = {entry.round for entry in budget.entries() if entry.run_id == run_id}
    missing = [number for number in range(1, finished + 1) if number not in paid]
    if missing:
        raise BudgetError(
            "a federation that goes on", need="the budget that paid for its finished rounds",
            found=f"one that does not know {len(missing)} of {finished}", fix="Open the budget of "
            "the earlier rounds, with the same label and folder.")


def figures_of(spec: Spec, spend: Spend, budget: Budget, *, rounds: int, answered: int,
               ) -> Mapping[str, Any]:
    """What a round's record says of its privacy.

    Args:
        spec: of the chain.
        spend: of one round, or of a planned run as a whole.
        budget: it was spent from.
        rounds: how many such rounds the run has paid for.
        answered: how many clients' values are in the round's sum.
    """
    mechanism = spec.mechanism
    assert mechanism is not None
    one, count = cost_of(spend, mechanism, range(1, rounds + 1))
    run = dataclasses.replace(one, count=count)
    last, _ = cost_of(spend, mechanism, [rounds])
    planned = {"planned_rounds": len(mechanism.schedule),
               "planned_noise_multiplier": spend.noise_multiplier} if mechanism.schedule else {}
    return {
        "unit": spend.unit, "adjacency": spend.adjacency, "trust": mechanism.trust,
        "mechanism": mechanism.kind, "parameters": dict(mechanism.parameters),
        "arithmetic": mechanism.arithmetic, "sampling_rate": spend.sampling_rate,
        "noise_multiplier": last.noise_multiplier, **planned,
        # For fs.privacy.spent: the round's own spend, and how many were paid for so far.
        "spend": last.to_dict(), "releases": rounds,
        # Integer units: what epsilon counts on, and what the round's sum really has.
        "noise_stddev_accounted": mechanism.share_stddev * math.sqrt(mechanism.num_shares),
        "noise_stddev_in_sum": spec.stddev_in_sum(answered),
        "noise_shares_accounted": mechanism.num_shares,
        "epsilon": compose([run], budget.dp_delta), "dp_delta": budget.dp_delta,
        "budget_epsilon": budget.epsilon, "budget_spent": budget.spent,
        "label": budget.label or "", "mode": "simulation" if spec.mode == "seeded" else "secure",
        "assumes": _assumed(spec, mechanism), **individual_figures(budget),
    }


def _assumed(spec: Spec, mechanism: Mechanism) -> str:
    if mechanism.trust == "central":
        return "whoever opens the sum adds all of the noise, and is trusted with the sum"
    if mechanism.trust == "local":
        return "nobody: each message has all of its noise"
    missing = spec.num_clients - mechanism.num_shares
    if not missing:
        return "every noise share added and none known"
    return f"at most {missing} noise share{'s' if missing > 1 else ''} missing or known"
