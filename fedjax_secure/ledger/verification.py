"""Offline verification: replays a log and says what holds, or names the first bad entry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.chain import Chain
from fedjax_secure.ledger.contracts.registry import Event, Value
from fedjax_secure.ledger.embedded_ledger import origin
from fedjax_secure.ledger.log import DamagedEntry, checkpoint_path, read_checkpoint, scan


@dataclass(frozen=True)
class Verification:
    """The outcome of verifying a log.

    Attributes:
        path: the log.
        ok: whether everything that was checked holds.
        entries: how many entries hold, from the first.
        rounds_confirmed: the last confirmed round among them.
        clients: how many clients are registered.
        coordinator: the coordinator's address; empty if the first entry is bad.
        head: the Merkle root over the entries that hold, 64 hexadecimal digits.
        state_digest: the digest of the registry's final state, 64 hexadecimal digits.
        events_digest: the digest of all events, 64 hexadecimal digits.
        complete_to: how many entries a known head or the signed checkpoint vouches for; zero
            where neither was at hand, so entries missing at the end would go unnoticed.
        first_bad: the first bad entry, or None. Where entries are missing at the end, it is the
            first missing one. None also where only the checkpoint is wrong.
        reason: what is wrong with it, or empty.
    """

    path: str
    ok: bool
    entries: int = 0
    rounds_confirmed: int = 0
    clients: int = 0
    coordinator: str = ""
    head: str = ""
    state_digest: str = ""
    events_digest: str = ""
    complete_to: int = 0
    first_bad: int | None = None
    reason: str = ""

    def summary(self) -> str:
        """The outcome in a few lines of plain text."""
        if not self.ok:
            bad = "none: every entry replays" if self.first_bad is None else self.first_bad
            return f"FAILED {self.path}\n  first bad entry: {bad}\n  reason: {self.reason}"
        if self.complete_to:
            complete = f"vouched for up to entry {self.complete_to - 1}"
            rest = self.entries - self.complete_to
            complete += f"; {rest} newer entries are not" if rest else ", the last"
        else:
            complete = "unknown: give --head, or keep the checkpoint beside the log"
        return "\n".join(
            (
                f"history verified: {self.path}",
                f"  entries: {self.entries} (signatures, nonces, chain id, execution, roots)",
                f"  rounds confirmed: {self.rounds_confirmed} by coordinator {self.coordinator}",
                f"  clients: {self.clients}",
                f"  head: {self.head}",
                f"  final state: {self.state_digest}",
                f"  events: {self.events_digest}",
                f"  completeness: {complete}",
            )
        )


def verify(
    path: str | os.PathLike[str],
    *,
    head: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Verification:
    """Replays a log from its first byte and checks everything in it.

    Checked are: each frame and Merkle root; each signature (low s), nonce and chain id; that the
    first entry deploys this registry; that the EVM accepts each call and emits the events whose
    digest the entry holds; and that the registry's final state is what the events say. A known
    head, and the checkpoint that the coordinator signed, show that nothing was cut off at the end.

    Guarantees:
        A log that a head or the checkpoint vouches for does not verify with any of its bytes
        changed. Without a head from elsewhere, whoever holds the log may put an older log and its
        older checkpoint in place of both, or a log of other accounts: compare `coordinator` with
        the one that you know. With neither head nor checkpoint (``complete_to`` is 0) no signature
        covers the order of entries: whoever computes the Merkle roots anew may leave out a
        sender's last transactions, or reorder those of several senders, where the registry takes
        what is left.

    Args:
        path: the log. It is only read; no key is needed.
        head: a head that you know, 64 hexadecimal digits. The log may have grown since.
        checkpoint: the checkpoint; by default ``PATH.checkpoint`` where it exists.

    Returns:
        What holds, or the first bad entry and the reason.

    Raises:
        LedgerError: the log, or the checkpoint that was named, cannot be read, or the head is no
            head.

    Example:
        >>> import tempfile
        >>> from fedjax_secure.ledger import Account, embedded
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with embedded(f"{folder}/ledger") as ledger:
        ...         ledger.open(Account.generate(), min_clients=2)
        ...     outcome = verify(f"{folder}/ledger", head=ledger.head)
        >>> outcome.ok, outcome.entries, outcome.complete_to
        (True, 1, 1)
    """
    path = Path(path)
    data = _read(path, "the log")
    digits = set("0123456789abcdef")
    if head is not None and not (
        isinstance(head, str) and len(head) == 64 and set(head.lower()) <= digits
    ):
        raise LedgerError(
            "verify",
            need="a head of 64 hexadecimal digits",
            found=repr(head),
            fix="Pass what ledger.head said.",
        )
    beside = checkpoint_path(path)
    note_path = Path(checkpoint) if checkpoint is not None else beside
    note = _read(note_path, "the checkpoint") if checkpoint or beside.exists() else None
    return _Replay(str(path)).run(data, head.lower() if head else None, note)


class _Replay:
    def __init__(self, path: str):
        self.path = path
        self.chain = Chain()
        self.events: list[Event] = []
        self.roots: list[str] = []
        self.events_digest = hashlib.sha256(b"fedjax_secure/ledger/history/v1")

    def run(self, data: bytes, head: str | None, note: bytes | None) -> Verification:
        try:
            for entry in scan(data):
                applied = self.chain.apply(entry.raw)
                if applied.events_digest != entry.events_digest:
                    return self.failed(entry.index, "its events are not those that were recorded")
                self.events += applied.events
                self.events_digest.update(applied.events_digest)
                self.roots.append(entry.root.hex())
        except DamagedEntry as damage:
            return self.failed(damage.index, damage.reason)
        except LedgerError as error:
            return self.failed(len(self.roots), str(error))
        if not self.roots:
            return self.failed(0, "the log holds no entries")
        state, bad = _check_state(self.chain, self.events)
        if bad is not None:
            return self.failed(bad.index, f"the registry's state is not what its {bad.name} says")
        return self.check_complete(head, note, state)

    def check_complete(self, head: str | None, note: bytes | None, state: str) -> Verification:
        complete_to, size = 0, len(self.roots)
        if note is not None:
            key: bytes = self.chain.view("CHECKPOINT_KEY")  # type: ignore[assignment]
            try:
                checkpoint = read_checkpoint(note, origin(self.chain), key)
            except ValueError as error:
                return self.failed(None, f"the checkpoint is bad: {error}")
            if checkpoint.size > size:
                missing = f"missing: the signed checkpoint has {checkpoint.size} entries"
                return self.failed(size, missing)
            if not checkpoint.size or self.roots[checkpoint.size - 1] != checkpoint.root.hex():
                signed = f"the first {checkpoint.size} entries are not those that were signed"
                return self.failed(None, signed)
            complete_to = checkpoint.size
        if head is not None:
            if head not in self.roots:
                missing = "missing, or the history was rewritten: the known head is never reached"
                return self.failed(size, missing)
            complete_to = max(complete_to, self.roots.index(head) + 1)
        return Verification(ok=True, complete_to=complete_to, state_digest=state, **self.facts())

    def failed(self, index: int | None, reason: str) -> Verification:
        return Verification(ok=False, first_bad=index, reason=reason, **self.facts())

    def facts(self) -> dict:
        deployed = self.chain.size > 0
        view = self.chain.view
        return {
            "path": self.path,
            "entries": len(self.roots),
            "rounds_confirmed": view("confirmed_rounds") if deployed else 0,
            "clients": view("num_clients") if deployed else 0,
            "coordinator": view("COORDINATOR") if deployed else "",
            "head": self.roots[-1] if self.roots else "",
            "events_digest": self.events_digest.hexdigest(),
        }


def _check_state(chain: Chain, events: Sequence[Event]) -> tuple[str, Event | None]:
    """Folds the events into the state they imply and compares it with the registry's own.

    Returns the digest of the state, and the event that set the first value that differs.
    """
    expected: dict[tuple[Value, ...], tuple[Value, Event]] = {}
    for event in events:
        a = event.args
        round, client = a.get("round", 0), a.get("client", "")
        match event.name:
            case "Registered":
                expected["submission_key", client] = (a["submission_key"], event)
                expected["key_owner", a["submission_key"]] = (client, event)
                _count(expected, ("num_clients",), event)
            case "UpdateSubmitted":
                expected["commitment", round, client] = (a["commitment"], event)
                _count(expected, ("num_submissions", round), event)
            case "RoundReopened":
                for key in expected:
                    if key[:2] == ("commitment", round):
                        expected[key] = (bytes(32), event)
                expected["num_submissions", round] = (0, event)
                _count(expected, ("reopened", round), event)
            case "RoundConfirmed":
                expected["model_digest", round] = (a["model_digest"], event)
                expected["confirmed_rounds",] = (round, event)
    digest = hashlib.sha256(b"fedjax_secure/ledger/state/v1")
    for name in ("COORDINATOR", "MIN_CLIENTS", "CHECKPOINT_KEY"):
        digest.update(_line((name,), chain.view(name)))
    for key in sorted(expected, key=repr):
        value, event = expected[key]
        if chain.view(*key) != value:  # type: ignore[arg-type]
            return "", event
        digest.update(_line(key, value))
    return digest.hexdigest(), None


def _count(expected: dict, key: tuple[Value, ...], event: Event) -> None:
    expected[key] = (expected.get(key, (0, event))[0] + 1, event)


def _line(key: tuple[Value, ...], value: Value) -> bytes:
    words = (item.hex() if isinstance(item, bytes) else str(item) for item in (*key, value))
    return (" ".join(words) + "\n").encode()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(
            "verify",
            need=f"{what} at {path}",
            found=error.strerror or "an error",
            fix="Give the path of a file that can be read.",
        ) from None
