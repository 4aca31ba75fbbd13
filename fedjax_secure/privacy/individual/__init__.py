"""Each person their own privacy: epsilons by group, and accounts of what each contributed."""

from .budget import IndividualBudget
from .filtered_sum import FilteredSum
from .groups import assign
from .plan import Group, IndividualPlan, sample, scale
from .renyi_filter import RenyiFilter, RoundCost, best_order, concentration_for

__all__ = [
    "FilteredSum", "Group", "IndividualBudget", "IndividualPlan", "RenyiFilter", "RoundCost",
    "assign", "best_order", "concentration_for", "sample", "scale",
]
