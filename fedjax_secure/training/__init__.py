"""One client's work, and the engine that runs it for many clients at once."""

from __future__ import annotations

from fedjax_secure.training.devices import use_all_cores

# `import fedjax_secure` calls use_all_cores() before anything may start JAX's backend.
from fedjax_secure.training.engine import ClientValues, Engine
from fedjax_secure.training.evaluation import Evaluation, area_under_curve, evaluate
from fedjax_secure.training.local import epoch_orders, train_alone, train_pooled
from fedjax_secure.training.packing import Draw
from fedjax_secure.training.sinks import Rows, Sink, Total

__all__ = [
    "ClientValues",
    "Draw",
    "Engine",
    "Evaluation",
    "Rows",
    "Sink",
    "Total",
    "area_under_curve",
    "epoch_orders",
    "evaluate",
    "train_alone",
    "train_pooled",
    "use_all_cores",
]
