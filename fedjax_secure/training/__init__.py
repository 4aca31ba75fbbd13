"""One client's work, and the engine that runs it for many clients at once."""

from __future__ import annotations

from fedjax_secure.training.baselines import epoch_orders, train_alone, train_pooled
from fedjax_secure.training.contracts import (
    Batch,
    ClientRecords,
    ClientResult,
    ClientWork,
    Done,
    Phase,
    Rows,
    Sink,
    Total,
    TrainableModel,
)
from fedjax_secure.training.devices import use_all_cores

# `import fedjax_secure` calls use_all_cores() before anything may start JAX's backend.
from fedjax_secure.training.engine import ClientValues, Engine
from fedjax_secure.training.evaluation import Evaluation, area_under_curve, evaluate
from fedjax_secure.training.ghost import ClippedSum, GhostNotice, clipped_sum, ghost_sums
from fedjax_secure.training.local import (
    descend,
    difference,
    local_loss,
    local_sgd,
    mean_loss,
    mean_over_steps,
    record_sums,
    sum_loss,
)
from fedjax_secure.training.packing import Draw

__all__ = [
    "Batch",
    "ClientRecords",
    "ClientResult",
    "ClientValues",
    "ClientWork",
    "ClippedSum",
    "Done",
    "Draw",
    "Engine",
    "Evaluation",
    "GhostNotice",
    "Phase",
    "Rows",
    "Sink",
    "Total",
    "TrainableModel",
    "area_under_curve",
    "clipped_sum",
    "descend",
    "difference",
    "epoch_orders",
    "evaluate",
    "ghost_sums",
    "local_loss",
    "local_sgd",
    "mean_loss",
    "mean_over_steps",
    "record_sums",
    "sum_loss",
    "train_alone",
    "train_pooled",
    "use_all_cores",
]
