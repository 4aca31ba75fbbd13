"""Who sees what, where the time goes, the ledger, what no guarantee covers, and the code."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any

import anywidget
import traitlets

from ..core import RoundRecord, ThreatModel

_ESM = resources.files(__package__ or "fedjax_secure.widgets").joinpath("esm")


class FactsPanel(anywidget.AnyWidget):
    """Five panels of text and tables about a run.

    Example:
        >>> facts = FactsPanel()
        >>> facts.show([], None, code="import fedjax_secure as fs")
        >>> facts.threat
        [('Not built yet', 'Press Run: the text comes from the stages that really run.')]
    """

    _esm = _ESM.joinpath("facts.js").read_text("utf-8")
    _css = _ESM.joinpath("style.css").read_text("utf-8")

    threat = traitlets.List(help="pairs of who and what").tag(sync=True)
    timings = traitlets.List(help="part, median and total seconds").tag(sync=True)
    ledger = traitlets.List(help="term, text, and whether the text is a digest").tag(sync=True)
    outside = traitlets.List(traitlets.Unicode()).tag(sync=True)
    outside_note = traitlets.Unicode("").tag(sync=True)
    code = traitlets.Unicode("").tag(sync=True)

    def show(self, records: Sequence[RoundRecord], threat_model: ThreatModel | None, *,
             code: str) -> None:
        """Show the facts of these rounds.

        Args:
            records: finished rounds, oldest first.
            threat_model: from ``federation.threat_model()``; None before it is built.
            code: the equivalent Python code.
        """
        with self.hold_sync():
            self.threat = sentences(threat_model)
            self.timings = timings(records)
            self.ledger = _ledger(records)
            self.outside = list(outside(records, threat_model))
            self.outside_note = (
                "Computed from records, and covered by no guarantee:" if self.outside else
                "Listed here once the federation is built." if threat_model is None else "Nothing.")
            self.code = code


def sentences(threat_model: ThreatModel | None) -> list[tuple[str, str]]:
    """The threat model as pairs of who and what, without what is outside the guarantee."""
    if threat_model is None:
        return [("Not built yet", "Press Run: the text comes from the stages that really run.")]
    pairs = [("Here", threat_model.opens), ("The server sees", threat_model.server),
             (f"A {threat_model.client_name} sees", threat_model.client),
             ("An eavesdropper sees", threat_model.eavesdropper),
             ("The sum is opened by", threat_model.opener),
             ("Guarantee", threat_model.guarantee)]
    pairs += [("Assumed", text) for text in threat_model.assumptions]
    return [(who, text[:1].upper() + text[1:]) for who, text in pairs if text]


def timings(records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """Seconds of each part of a round: the median over rounds, and the total."""
    parts = dict.fromkeys(part for record in records for part in record.timings_seconds)
    rows = []
    for part in parts:
        seconds = [float(record.timings_seconds.get(part, 0.0)) for record in records]
        rows.append({"part": part, "median": statistics.median(seconds), "total": sum(seconds)})
    return rows


def outside(records: Sequence[RoundRecord], threat_model: ThreatModel | None) -> tuple[str, ...]:
    """The figures that no guarantee covers, from the last record or else the threat model."""
    if records:
        return tuple(records[-1].outside_guarantee)
    return tuple(threat_model.outside) if threat_model is not None else ()


def size(num_bytes: float) -> str:
    """A number of bytes for people.

    Example:
        >>> size(999), size(86_016)
        ('999 B', '86.0 kB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"


def _ledger(records: Sequence[RoundRecord]) -> list[tuple[str, str, bool]]:
    if not records:
        return [("Ledger head", "no round has finished yet", False)]
    last = records[-1]
    rows = [("Ledger head", last.ledger_head or "no ledger is kept", bool(last.ledger_head)),
            ("Model digest", last.model_after, True),
            ("Run", last.run, True)]
    if last.bytes_per_client:
        rows.append(("Each client sends", f"{size(last.bytes_per_client)} a round", False))
    return rows
