"""Running a federation: simulations, rounds, resuming, plans, notebooks."""

from .comparison import baselines, comparison_table, fairness_table
from .federation import Federation
from .plan import FederationPlan
from .simulation import RoundReport, Simulation

__all__ = ["Federation", "FederationPlan", "RoundReport", "Simulation", "baselines",
           "comparison_table", "fairness_table"]
