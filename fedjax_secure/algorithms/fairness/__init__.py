"""Algorithms that serve the worst-served clients better than the mean would."""

from .agnostic import agnostic_fed_avg
from .q_fed_avg import q_fed_avg
from .tilted import tilted_fed_avg

__all__ = ["agnostic_fed_avg", "q_fed_avg", "tilted_fed_avg"]
