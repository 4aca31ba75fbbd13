"""A budget's history: entries that are never changed, as lines chained by SHA-256."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from ..accounting import Spend

FORMAT = "fedjax-secure privacy budget 1"


class Damaged(Exception):
    """What was found in place of a whole history."""


@dataclass(frozen=True)
class BudgetEntry:
    """One line of a budget's history. Entries are never changed or removed.

    Attributes:
        kind: ``"spend"`` or ``"reset"``.
        index: position in the history, from 0.
        time: when it was written, UTC, ISO 8601.
        run_id, round, attempt, spend: what was spent on (spends only).
        reason, by: why the history before this entry stopped counting, and who said so (resets).
        epsilon: epsilon spent since the last reset, this entry included.
    """

    kind: Literal["spend", "reset"]
    index: int
    time: str
    epsilon: float
    run_id: str | None = None
    round: int | None = None
    attempt: int | None = None
    spend: Spend | None = None
    reason: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class History:
    """What a budget's file holds: a header and entries, one JSON line each, chained by SHA-256.

    Each line carries the digest of the line before it (as bytes) and of its own document; a last
    line repeats the number of entries and the digest, so that a file cut short is noticed.
    """

    body: str  # all lines but the last
    digest: bytes
    header: dict[str, Any]
    entries: tuple[BudgetEntry, ...]

    @classmethod
    def begun(cls, header: dict[str, Any]) -> History:
        """A history without a line: its header becomes the first."""
        return cls("", hashlib.sha256().digest(), header, ())

    def extended(self, document: dict[str, Any], entry: BudgetEntry | None) -> History:
        """This history and one line more; the header is a line without an entry."""
        text = json.dumps(document, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(self.digest + text.encode()).digest()
        line = json.dumps({**document, "digest": digest.hex()}, sort_keys=True)
        entries = self.entries if entry is None else (*self.entries, entry)
        return History(f"{self.body}{line}\n", digest, self.header, entries)

    @property
    def text(self) -> str:
        """The whole file."""
        last = {"digest": self.digest.hex(), "entries": len(self.entries)}
        return f"{self.body}{json.dumps(last)}\n"


def parse(text: str) -> History:
    """The history that a file's text holds.

    Raises:
        Damaged: it is not one; says what was found.
    """
    lines = text.split("\n")
    if len(lines) < 3 or lines[-1] != "":
        raise Damaged("a file that ends in the middle of a line")
    try:
        documents = [json.loads(line) for line in lines[:-1]]
        if documents[0]["format"] != FORMAT:
            raise Damaged(f"format {documents[0]['format']!r}, not {FORMAT!r}")
        claimed = [document.pop("digest") for document in documents]
        history = History.begun(documents[0])
        for number, document in enumerate(documents[:-1], start=1):
            entry = _entry(document) if number > 1 else None
            history = history.extended(document, entry)
            if history.digest.hex() != claimed[number - 1]:
                raise Damaged(f"line {number}, whose digest does not match")
        if history.text != text:
            raise Damaged("a last line that does not match the entries before it")
        if [entry.index for entry in history.entries] != list(range(len(history.entries))):
            raise Damaged("entries out of order")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"lines that are no entries ({type(error).__name__})") from error
    return history


def since_reset(entries: tuple[BudgetEntry, ...]) -> tuple[BudgetEntry, ...]:
    """The entries after the last reset."""
    last = max((i for i, entry in enumerate(entries) if entry.kind == "reset"), default=-1)
    return entries[last + 1:]


def counted_spends(entries: tuple[BudgetEntry, ...]) -> list[Spend]:
    """The spends since the last reset, which are those that count."""
    return [entry.spend for entry in since_reset(entries) if entry.spend is not None]


def document_of(entry: BudgetEntry) -> dict[str, Any]:
    """An entry as its line of the file has it."""
    fields = {name: value for name, value in vars(entry).items() if value is not None}
    return {**fields, "spend": entry.spend.to_dict()} if entry.spend is not None else fields


def _entry(document: dict[str, Any]) -> BudgetEntry:
    fields = dict(document)
    if fields["kind"] == "spend":
        fields["spend"] = Spend(**fields["spend"])
    elif fields["kind"] != "reset":
        raise ValueError("kind")
    return BudgetEntry(**fields)
