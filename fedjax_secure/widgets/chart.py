"""Accuracy and AUC by round, a line for every client and one for their mean, live."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import anywidget
import traitlets

from ..core import RoundRecord

_ESM = resources.files(__package__ or "fedjax_secure.widgets").joinpath("esm")
METRICS = {"accuracy": "Accuracy", "auc": "AUC"}
MAX_LINES = 8


class AccuracyChart(anywidget.AnyWidget):
    """One line a client and the mean, drawn in the browser without any library.

    Hovering, or the arrow keys, read the values of one round. Lines differ by colour and by dashes.
    Of more than eight clients only the mean is drawn.

    Example:
        >>> chart = AccuracyChart()
        >>> chart.show([RoundRecord(run="00", round=1, mode="secure", clients=("a",),
        ...     model_before="", model_after="", sum_digest="",
        ...     metrics={"accuracy": {"a": 0.75}})], total_rounds=3)
        >>> [line["name"] for line in chart.figures["accuracy"]["lines"]]
        ['a', 'mean']
    """

    _esm = _ESM.joinpath("chart.js").read_text("utf-8")
    _css = _ESM.joinpath("style.css").read_text("utf-8")

    figures = traitlets.Dict().tag(sync=True)
    metric = traitlets.Unicode("accuracy").tag(sync=True)
    rounds_done = traitlets.List().tag(sync=True)
    total_rounds = traitlets.Int(1).tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self.show([], total_rounds=1)

    def show(self, records: Sequence[RoundRecord], *, total_rounds: int) -> None:
        """Draw these rounds.

        Args:
            records: finished rounds, oldest first.
            total_rounds: where the round axis ends.
        """
        figures: dict[str, Any] = {}
        for name, label in METRICS.items():
            lines = curves(records, name)
            clients = len(lines) - 1
            notes = ["outside the guarantee"] if is_outside(records, label) else []
            if clients > MAX_LINES:
                lines, notes = lines[-1:], [*notes, f"mean of {clients} clients"]
            figures[name] = {"label": label, "lines": lines, "note": "; ".join(notes)}
        with self.hold_sync():
            self.figures = figures
            self.rounds_done = [record.round for record in records]
            self.total_rounds = total_rounds


def curves(records: Sequence[RoundRecord], metric: str) -> list[dict[str, Any]]:
    """The lines of one metric: every client's, then the mean.

    The mean is the record's own (``mean_accuracy``, weighted by clients' records) where it has one,
    else the unweighted mean over clients.

    Args:
        records: finished rounds, oldest first.
        metric: a name in ``record.metrics`` whose value maps clients to numbers.

    Returns:
        A list of ``{"name", "values", "mean"}``; a value that a round lacks is None. Empty where
        no round has the metric.
    """
    rows: list[Mapping[str, Any]] = [record.metrics.get(metric) or {} for record in records]
    clients = list(dict.fromkeys(client for row in rows for client in row))
    if not clients:
        return []
    values = {client: [_finite(row.get(client)) for row in rows] for client in clients}
    means = []
    for record, column in zip(records, zip(*values.values(), strict=True), strict=True):
        known = [value for value in column if value is not None]
        plain = sum(known) / len(known) if known else None
        means.append(_finite(record.metrics.get(f"mean_{metric}", plain)))
    lines = [{"name": client, "values": values[client], "mean": False} for client in clients]
    return [*lines, {"name": "mean", "values": means, "mean": True}]


def is_outside(records: Sequence[RoundRecord], label: str) -> bool:
    """Whether the records list this figure as outside the guarantee."""
    return any(label.lower() in text.lower() for record in records[-1:]
               for text in record.outside_guarantee)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
