"""Attacking a federation on purpose: what an auditor can tell about who was in it."""

from .chain_runs import CanaryScores, audit_chain, canary_scores
from .training_run import audit

__all__ = ["CanaryScores", "audit", "audit_chain", "canary_scores"]
