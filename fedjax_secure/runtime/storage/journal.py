"""A run on disk: what must survive a kill at any moment, and in which order it is written.

A run's folder holds

- ``run.json``: what the run is (never changes);
- ``secrets.msgpack``: the clients' signing keys and ledger keys, readable by the owner only;
- ``sent-NNNNNN.msgpack``: the signed submissions of a round, or the one sum of a round whose
  aggregator is trusted, written before anything leaves a client, so that a resumed round sends the
  same bytes and nothing is released twice; the submissions' payloads lie in
  ``sent-NNNNNN.payloads``, which is written first;
- ``state-NNNNNN.msgpack``: the finished round's state and record in one file;
- ``records.jsonl`` and ``commitments.jsonl``: the records so far, and what opens each client's
  commitment on the ledger (the salt, and the digest of its signed statement), for that client; a
  round that was interrupted at its very end may stand there twice;
- ``opener/``: the key holder's own folder, which the journal never reads.

Every file is written to a temporary name, synced and renamed: whole or absent, never half.
Numbers are stored as raw buffers in msgpack; nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np

from ...core import ResumeError, RoundRecord, RoundState, StoredPayload, Submission
from ...core.opening import write_durably

FORMAT = 3


@dataclass(frozen=True)
class Sent:
    """What the clients of one round sent, as it lies on disk.

    Attributes:
        submissions: signed, each with the salt of its commitment; empty where the aggregator
            made the sum.
        notes: what else the round has to remember.
        total: the aggregator's sum; None where there are submissions.
        clients: whose values are in it.
        key_ids: SHA-256 of the public keys under which they were encrypted.
        models: SHA-256 of the models that the values answer.
        largest_bytes: the largest message of a client.
    """

    submissions: tuple[tuple[Submission, bytes], ...] = field(repr=False)  # salts are secret
    notes: Mapping[str, Any]
    total: bytes | None = field(repr=False)
    clients: tuple[str, ...]
    key_ids: frozenset[bytes]
    models: frozenset[bytes]
    largest_bytes: int


class Outbox:
    """A round's submissions while they are made; see :meth:`Journal.sending`."""

    def __init__(self, path: Path):
        self._file = open(path, "wb", opener=_open_private)
        self._path, self._end = path, 0
        self.rows: list[tuple[Submission, bytes]] = []

    def add(self, submission: Submission, salt: bytes) -> None:
        """Put a signed submission's payload on disk; keep the rest in memory."""
        payload = bytes(submission.payload)
        self._file.write(payload)
        stored = StoredPayload(self._path, self._end, len(payload), submission.payload_digest)
        self._end += len(payload)
        self.rows.append((replace(submission, payload=stored), salt))

    def sync(self) -> None:
        """Return when the payloads are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Journal:
    """One run's files.

    Args:
        folder: where they are; None keeps them in a temporary folder that goes with the object,
            so that such a run cannot be resumed.

    Raises:
        ResumeError: another process has the folder open.

    Example:
        >>> journal = Journal(None)
        >>> journal.last_round()
        0
        >>> journal.close()
    """

    def __init__(self, folder: str | Path | None):
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        # Absolute, so that a change of the working directory does not lead to another folder.
        self.folder = Path(self._temporary.name if self._temporary else folder).absolute()  # type: ignore[arg-type]
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ResumeError("the run's folder", need="to be used by one process at a time",
                              found=f"{self.folder} open in another federation",
                              fix="Close the other one, or choose another folder.") from None

    # -- what the run is ---------------------------------------------------------------------

    def settle(self, manifest: Mapping[str, Any]) -> bool:
        """Record what the run is, or check that the folder holds this very run.

        Returns:
            True if the folder already held it.

        Raises:
            ResumeError: the folder holds another run; names what differs.
        """
        path = self.folder / "run.json"
        wanted = json.loads(json.dumps({"format": FORMAT, **manifest}))
        if not path.exists():
            write_durably(path, json.dumps(wanted, indent=1, sort_keys=True).encode())
            return False
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise self._damaged(path) from error
        if found.get("format") != FORMAT:
            raise ResumeError(
                "resuming", need=f"a run's folder of format {FORMAT}",
                found=f"one of format {found.get('format')!r}, which release "
                f"{found.get('release')!r} wrote", fix="Finish that run with the release that "
                "began it, or choose another folder for a new run.")
        names = sorted({*wanted, *found})
        changed = [name for name in names if wanted.get(name) != found.get(name)]
        if changed:
            raise ResumeError(
                "resuming", need="the settings that the run began with: "
                + _listed(changed, found), found=_listed(changed, wanted),
                fix="Build the federation as before, or choose another folder for a new run.")
        return True

    def secrets(self, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
        """The run's secrets: made once, then read back."""
        path = self.folder / "secrets.msgpack"
        if not path.exists():
            write_durably(path, msgpack.packb(make()))
        return self._read(path)

    @property
    def opener_folder(self) -> Path:
        """The key holder's own folder."""
        return self.folder / "opener"

    # -- what a round sent -------------------------------------------------------------------

    @contextmanager
    def sending(self, round: int) -> Iterator[Outbox]:
        """Take a round's submissions one by one; whoever leaves with an error has sent nothing.

        They are sent once :meth:`store_sent` has been called with what the outbox holds.
        """
        outbox = Outbox(self._payloads(round))
        try:
            yield outbox
            outbox.sync()
        except BaseException:
            with suppress(OSError):  # a full disk fails again
                outbox.close()
            self._payloads(round).unlink(missing_ok=True)
            raise
        outbox.close()

    def store_sent(self, round: int, sent: Sequence[tuple[Submission, bytes]],
                   notes: Mapping[str, Any]) -> Sent:
        """Keep a round's submissions and the salts of their commitments, before they are sent."""
        rows = [[s.client, s.run, s.round, s.model_digest, s.key_id,
                 [s.payload.start, len(s.payload), s.payload.digest], s.signature, salt]
                for s, salt in sent if isinstance(s.payload, StoredPayload)]
        return self._store_sent(round, {"sent": rows, "notes": dict(notes)})

    def store_total(self, round: int, total: bytes, clients: Sequence[str], key_id: bytes,
                    model_digest: bytes, notes: Mapping[str, Any]) -> Sent:
        """Keep the sum that the aggregator made of a round, before it is opened."""
        return self._store_sent(round, {
            "total": total, "clients": list(clients), "key_id": key_id, "model": model_digest,
            "notes": dict(notes)})

    def _store_sent(self, round: int, content: dict[str, Any]) -> Sent:
        write_durably(self._sent(round), msgpack.packb({"round": round, **content}))
        return self._as_sent(round, content)

    def sent(self, round: int) -> Sent | None:
        """What a round stored before it was interrupted; None if nothing was sent yet."""
        path = self._sent(round)
        if not path.exists():
            return None
        content = self._read(path)
        try:
            if content["round"] != round:
                raise ValueError  # a sum does not say itself which round it is of
            return self._as_sent(round, content)
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(path) from error

    def _as_sent(self, round: int, content: Mapping[str, Any]) -> Sent:
        notes = content["notes"]
        if "total" in content:
            total = content["total"]
            return Sent((), notes, total, tuple(content["clients"]),
                        frozenset((content["key_id"],)), frozenset((content["model"],)),
                        len(total))
        submissions = []
        for *fields, (start, size, digest), signature, salt in content["sent"]:
            payload = StoredPayload(self._payloads(round), start, size, digest)
            submissions.append((Submission(*fields, payload, signature), salt))
        made = [submission for submission, _ in submissions]
        return Sent(tuple(submissions), notes, None, tuple(s.client for s in made),
                    frozenset(s.key_id for s in made), frozenset(s.model_digest for s in made),
                    max(s.num_bytes for s in made))

    def forget_sent(self, round: int) -> None:
        """Drop what a round stored: nobody can open it any more, or the round is finished."""
        self._sent(round).unlink(missing_ok=True)
        self._payloads(round).unlink(missing_ok=True)

    # -- what a round left -------------------------------------------------------------------

    def finish(self, state: RoundState, record: RoundRecord,
               sent: Sequence[tuple[Submission, bytes]] = ()) -> None:
        """Keep a finished round; its submissions and the state before the last go."""
        with open(self.folder / "commitments.jsonl", "a", opener=_open_private) as file:
            for submission, salt in sent:
                file.write(json.dumps({
                    "round": state.round, "client": submission.client, "salt": salt.hex(),
                    "statement": submission.statement_digest.hex()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        leaves = [_pack_array(leaf) for leaf in jax.tree.leaves(state._replace(round=0))]
        content = {"leaves": leaves, "round": state.round, "record": record.to_json()}
        write_durably(self._state(state.round), msgpack.packb(content))
        with open(self.folder / "records.jsonl", "a", opener=_open_private) as file:
            file.write(record.to_json() + "\n")
        self.forget_sent(state.round)
        self._state(state.round - 2).unlink(missing_ok=True)

    def last_round(self) -> int:
        """The last finished round; 0 if none is."""
        names = [path.stem.rpartition("-")[2] for path in self.folder.glob("state-*.msgpack")]
        return max((int(name) for name in names), default=0)

    def load(self, like: RoundState) -> tuple[RoundState, list[RoundRecord]]:
        """The last finished round's state, shaped as ``like``, and the records so far."""
        last = self.last_round()
        if last == 0:
            return like, []
        self.forget_sent(last)  # left by a kill right after the state was kept
        stored = self._read(self._state(last))
        leaves, treedef = jax.tree.flatten(like._replace(round=0))
        arrays = [_unpack_array(row) for row in stored["leaves"]]
        shapes = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]
        if [(array.shape, array.dtype) for array in arrays] != shapes:
            raise ResumeError("resuming", need="the same model and optimiser as when the run began",
                              found="a state of other shapes",
                              fix="Build the federation as before.")
        state = jax.tree.unflatten(treedef, arrays)._replace(round=int(stored["round"]))
        return state, self._records(stored["record"], last)

    def records(self) -> list[RoundRecord]:
        """Those of all finished rounds."""
        last = self.last_round()
        return self._records(self._read(self._state(last))["record"], last) if last else []

    def _records(self, newest: str, last: int) -> list[RoundRecord]:
        # The list of records is written after the state: a kill in between loses its last line,
        # which the state's own file still has, or leaves half of one.
        path = self.folder / "records.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept: dict[int, RoundRecord] = {}
        for line in lines:
            try:
                record = RoundRecord.from_json(line)
            except ResumeError:
                continue
            kept[record.round] = record
        kept[last] = RoundRecord.from_json(newest)
        records = [kept[round] for round in sorted(kept) if round <= last]
        write_durably(path, "".join(record.to_json() + "\n" for record in records).encode())
        return records

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _sent(self, round: int) -> Path:
        return self.folder / f"sent-{round:06d}.msgpack"

    def _payloads(self, round: int) -> Path:
        return self._sent(round).with_suffix(".payloads")

    def _state(self, round: int) -> Path:
        return self.folder / f"state-{round:06d}.msgpack"

    def _read(self, path: Path) -> Any:
        try:
            return msgpack.unpackb(path.read_bytes())
        except (ValueError, msgpack.UnpackException) as error:
            raise self._damaged(path) from error

    def _damaged(self, path: Path) -> ResumeError:
        return ResumeError("resuming", need=f"a readable {path.name}", found="a damaged file",
                           fix=f"Restore it from a backup, or start a new run outside "
                               f"{os.fspath(self.folder)}.")


#: Digests of compiled programs, which say nothing to a reader: what goes into them does.
_PROGRAMS = {
    "server optimiser": "certain settings of the server's step (its optimiser, learning rate and "
                        "what the chain makes of sums)",
    "clients' work": "certain settings of the clients' work (their optimiser, learning rate, "
                     "epochs, batches)",
    "groups": "certain groups",
    "client bounds": "certain bounds for clients",
    "record bounds": "certain bounds for records",
}


def _listed(names: Sequence[str], values: Mapping[str, Any]) -> str:
    # A digest of private records is not for messages, which end up in notebooks.
    hidden = {"data": "certain data", **_PROGRAMS}
    parts = [hidden.get(name, f"{name}={values.get(name)!r}") for name in names]
    return ", ".join(part if len(part) <= 130 else part[:127] + "..." for part in parts)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _pack_array(leaf: Any) -> list:
    array = np.ascontiguousarray(leaf)
    return [array.dtype.name, list(np.shape(leaf)), array.tobytes()]


def _unpack_array(row: list) -> np.ndarray:
    dtype, shape, content = row
    return np.frombuffer(content, dtype).reshape(shape).copy()
