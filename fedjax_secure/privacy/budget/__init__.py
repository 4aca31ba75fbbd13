"""A privacy budget on disk: what it decides, its history, the history's file, and its place."""

from .budget import Budget, LargeDeltaWarning
from .history import BudgetEntry, since_reset
from .places import file_name, settled_groups_path

__all__ = [
    "Budget", "BudgetEntry", "LargeDeltaWarning", "file_name", "settled_groups_path", "since_reset",
]
