"""Who takes part in a round."""

from .clients import importance_clients, poisson_clients, uniform_clients
from .records import all_records, poisson_records
from .selection import Candidates, Observed, Selection

__all__ = [
    "Candidates", "Observed", "Selection", "all_records", "importance_clients", "poisson_clients",
    "poisson_records", "uniform_clients",
]
