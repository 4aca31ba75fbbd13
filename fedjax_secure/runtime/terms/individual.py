"""Budgets for individuals: that rounds draw and clip the people whom they charge."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core import Spec
from ...privacy.individual import IndividualBudget
from ...selection import Selection


def require_individual(spec: Spec, record_bounds: np.ndarray | None, selection: Selection,
                       budget: Any) -> None:
    """Refuse a federation whose rounds treat people otherwise than its budget charges them.

    Any other budget charges everyone for the largest rate and the widest bound, which covers all.

    Args:
        spec: of the chain.
        record_bounds: to which each record's gradient is clipped before the chain has it.
        selection: who is drawn.
        budget: of the federation.

    Raises:
        BudgetError: other groups, rates or clipping bounds than the budget's plan.
    """
    if spec.mechanism is not None and isinstance(budget, IndividualBudget):
        drawn = selection.by_group
        # Nobody's own bound holds where sums are floats, or where what an integer stands for moves.
        covered = spec.float_sum_error == 0 and not spec.moving_bound
        budget.require_drawn_by(
            None if drawn is None else drawn.groups, None if drawn is None else drawn.rates,
            record_bounds=record_bounds if covered else None,
            unit_l2=spec.unit_l2, scale=spec.scale, dim=spec.dim)


def individual_figures(budget: Any) -> dict[str, Any]:
    """What a round's record says of each group's privacy; nothing for a budget of all alike."""
    if not isinstance(budget, IndividualBudget):
        return {}
    return {"groups": {
        group.name: {"epsilon": spent, "epsilon_allowed": group.target_epsilon,
                     "sampling_rate": group.sampling_rate, "l2_share": group.l2_share}
        for group, spent in zip(budget.plan.groups, budget.spent_by_group.values(), strict=True)}}
