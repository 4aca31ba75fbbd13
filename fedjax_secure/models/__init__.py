"""Models that the engine can train: pure functions over a pytree of parameters."""

from __future__ import annotations

from fedjax_secure.models.linear import logistic_regression
from fedjax_secure.models.mlp import mlp
from fedjax_secure.models.model import Model, from_flax

__all__ = ["Model", "from_flax", "logistic_regression", "mlp"]
