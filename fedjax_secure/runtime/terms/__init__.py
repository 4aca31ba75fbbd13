"""What is settled before a federation's first round: its chain, and what a round costs."""

from .chain import check_private, planned_chain
from .individual import require_individual
from .manifest import manifest_of
from .spending import (
    cost_of,
    figures_of,
    require_first_release,
    require_paid,
    spend_of,
    spent_rounds,
)

__all__ = ["check_private", "cost_of", "figures_of", "manifest_of", "planned_chain",
           "require_first_release", "require_individual", "require_paid", "spend_of",
           "spent_rounds"]
