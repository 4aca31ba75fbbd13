"""Running a federation: rounds, resuming, plans, notebooks."""

from .federation import Federation
from .plan import FederationPlan

__all__ = ["Federation", "FederationPlan"]
