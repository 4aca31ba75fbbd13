"""Secure federated learning on JAX, from Jupyter: ``import fedjax_secure as fs``.

Rooms are imported when they are first used: ``fs.data``, ``fs.models``, ``fs.privacy``, ``fs.he``,
``fs.ledger``, ``fs.algorithms``, ``fs.selection``, ``fs.training``, ``fs.runtime``, ``fs.widgets``.
"""

from __future__ import annotations

import importlib
from typing import Any

from .training.devices import use_all_cores

__version__ = "0.1.0"

use_all_cores()

_ROOMS = ("algorithms", "core", "data", "he", "ledger", "models", "privacy", "runtime",
          "selection", "training", "widgets")
_NAMES = {
    "chain": "core", "source": "core", "Spec": "core", "Stage": "core",
    "RoundRecord": "core", "SecureFederationError": "core",
    "Federation": "runtime", "FederationPlan": "runtime", "Simulation": "runtime",
    "audit": "runtime", "audit_chain": "runtime",
}

__all__ = ["__version__", *_ROOMS, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
