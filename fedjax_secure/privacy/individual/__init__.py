"""Each person their own privacy: epsilons by group, and accounts of what each contributed.

Example:
    >>> from fedjax_secure.privacy.individual import sample
    >>> plan = sample({"older": 0.3, "younger": 3.0}, shares={"older": 0.3, "younger": 0.7},
    ...               sampling_rate=0.2, rounds=5, dp_delta=1e-4)
    >>> {name: round(rate, 3) for name, rate in zip(plan.names, plan.sampling_rates)}
    {'older': 0.025, 'younger': 0.275}
"""

from .budget import IndividualBudget
from .filtered_sum import FilteredSum
from .groups import assign
from .plan import Group, IndividualPlan, sample, scale
from .renyi_filter import RenyiFilter, RoundCost, best_order, concentration_for

__all__ = [
    "FilteredSum", "Group", "IndividualBudget", "IndividualPlan", "RenyiFilter", "RoundCost",
    "assign", "best_order", "concentration_for", "sample", "scale",
]
