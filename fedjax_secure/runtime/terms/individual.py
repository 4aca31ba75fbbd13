"""Budgets for individuals: that rounds draw and clip the people whom they charge."""

from __future__ import annotations

import math
from typing import Any

from ...algorithms import Algorithm
from ...core import BudgetError, Spec
from ...privacy.individual import IndividualBudget
from ...selection import Selection


def require_individual(spec: Spec, algorithm: Algorithm, selection: Selection,
                       budget: Any) -> None:
    """Refuse a federation whose rounds treat people otherwise than its budget charges them.

    Any other budget charges everyone for the largest rate and the widest bound, which covers all.

    Args:
        spec: of the chain.
        algorithm: of the federation; to what each unit's own vector is clipped before the chain
            has it.
        selection: who is drawn.
        budget: of the federation.

    Raises:
        BudgetError: other groups, rates or clipping bounds than the budget's plan; rates from which
            nothing is gained, as messages tell who was drawn.
    """
    if spec.mechanism is None or not isinstance(budget, IndividualBudget):
        return
    drawn, rates = selection.by_group, budget.plan.sampling_rates
    hidden = "Use fs.selection.poisson_clients_by_group(..., everyone_answers=True)"
    if drawn is not None and (spec.sampling is None or spec.sampling.kind != "poisson"
                              or spec.sampling.unit != spec.unit):
        raise BudgetError(
            "an individual budget", need="coins that nobody learns, for the unit that is clipped: "
            "smaller rates gain privacy by nothing else",
            found="rounds whose messages tell who was drawn, which count as if everyone took part"
            if spec.unit == "client" else f"coins for another unit than each {spec.unit_name}",
            fix=f"{hidden}, or a plan of fs.privacy.individual.scale(...)."
            if spec.unit == "client" else "Use fs.selection.poisson_records_by_group(...).")
    # Nobody's own bound holds where sums are floats, or where what an integer stands for moves.
    covered = spec.float_sum_error == 0 and not spec.moving_bound
    bounds = algorithm.record_bounds if spec.unit == "record" else algorithm.client_bounds
    budget.require_drawn_by(
        None if drawn is None else drawn.groups, None if drawn is None else drawn.rates,
        own_bounds=bounds if covered else None, unit_l2=spec.unit_l2, scale=spec.scale,
        dim=spec.dim)
    if not math.isclose(spec.sampling_rate, max(rates), rel_tol=1e-12):
        raise BudgetError(
            "an individual budget", need=f"a largest sampling rate of {max(rates):.6g}, as the "
            f"plan has it", found=f"{spec.sampling_rate:.6g}, as this selection is accounted",
            fix="Draw by secret coins of that rate: poisson_records(...), or "
            "poisson_clients(..., everyone_answers=True).")


def individual_figures(budget: Any) -> dict[str, Any]:
    """What a round's record says of each group's privacy; nothing for a budget of all alike."""
    if not isinstance(budget, IndividualBudget):
        return {}
    return {"groups": {
        group.name: {"epsilon": spent, "epsilon_allowed": group.target_epsilon,
                     "sampling_rate": group.sampling_rate, "l2_share": group.l2_share}
        for group, spent in zip(budget.plan.groups, budget.spent_by_group.values(), strict=True)}}
