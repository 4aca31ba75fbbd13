"""What is settled before a federation's first round: its chain, and what a round costs."""

from .chain import planned_chain
from .individual import require_individual
from .spending import figures_of, spend_of, spent_rounds

__all__ = ["figures_of", "planned_chain", "require_individual", "spend_of", "spent_rounds"]
