"""Who takes part in a round."""

from .records import all_records, poisson_records
from .selection import Selection

__all__ = ["Selection", "all_records", "poisson_records"]
