"""How well models do on every client's records: accuracy, AUC, calibration, spread, groups."""

from __future__ import annotations

from fedjax_secure.training.evaluation.metrics import area_under_curve
from fedjax_secure.training.evaluation.per_client import evaluate
from fedjax_secure.training.evaluation.result import Evaluation

__all__ = ["Evaluation", "area_under_curve", "evaluate"]
