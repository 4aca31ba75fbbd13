"""Running a federation: simulations, rounds, resuming, plans, notebooks, audits."""

from .auditing import audit, audit_chain
from .comparison import baselines, comparison_table, fairness_table
from .federation import Federation
from .plan import FederationPlan
from .simulation import RoundReport, Simulation

__all__ = ["Federation", "FederationPlan", "RoundReport", "Simulation", "audit", "audit_chain",
           "baselines", "comparison_table", "fairness_table"]
