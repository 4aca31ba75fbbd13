"""Widgets for notebooks: a dashboard that runs a federation, and its static picture."""

from __future__ import annotations

from .dashboard import Dashboard
from .form import PlanForm
from .picture import picture
from .runner import Runner

__all__ = ["Dashboard", "PlanForm", "Runner", "picture"]
