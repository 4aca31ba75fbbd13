"""Running a federation: rounds, resuming, plans, notebooks."""

from .comparison import baselines, comparison_table
from .federation import Federation
from .plan import FederationPlan

__all__ = ["Federation", "FederationPlan", "baselines", "comparison_table"]
