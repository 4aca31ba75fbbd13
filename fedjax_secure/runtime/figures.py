"""Figures of a round for its record: on held-out records, of clients' work, and of time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..core import Cohort
from ..data import FederatedDataset
from ..models import Model
from ..training import evaluate
from .storage import Sent


def held_out(model: Model, params: Any, data: FederatedDataset) -> dict[str, Any]:
    """Held-out figures per client; a figure that does not exist (one class) is None."""
    scores = evaluate(model, params, data)
    if not len(data.test_y):
        return {}

    def by_client(values: np.ndarray) -> dict[str, float | None]:
        return {client: float(value) if np.isfinite(value) else None
                for client, value in zip(scores.clients, values, strict=True)}

    held = scores.counts > 0
    mean = np.average(scores.accuracy[held], weights=scores.counts[held])
    return {"accuracy": by_client(scores.accuracy), "auc": by_client(scores.auc),
            "loss": by_client(scores.loss), "mean_accuracy": float(mean)}


def reported(data: FederatedDataset, sent: Sent, number: int
             ) -> tuple[Cohort, dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """What clients reported of their work in a round.

    Args:
        data: whose clients they are.
        sent: what they sent, with their notes.
        number: the round.

    Returns:
        Who took part; each metric by client, NaN where there is none; ``[clients]`` steps; and the
        means over steps, for the round's record.
    """
    clients = data.num_clients
    work = sent.notes.get("work", {"clients": [], "steps": [], "metrics": {}})
    took = np.asarray(work["clients"], np.int64)
    steps, found, means = np.zeros(clients, np.int64), {}, {}
    steps[took] = work["steps"]
    for name, values in work["metrics"].items():
        found[name] = np.full(clients, np.nan)
        found[name][took] = values
        known = np.isfinite(found[name]) & (steps > 0)
        if known.any():
            means[f"training {name}"] = float(
                np.average(found[name][known], weights=steps[known]))
    alive = np.zeros(clients, bool)
    alive[took] = True
    nothing = (np.zeros(0, np.int32),) * clients
    if work.get("seconds") is not None:
        means["simulated seconds"] = float(work["seconds"])
    cohort = Cohort(number, data.clients, nothing, alive, seconds=work.get("seconds"))
    return cohort, found, steps, means


class Clock:
    """Seconds since the last lap, added up under names."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Ends a lap and returns its seconds."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        return elapsed
