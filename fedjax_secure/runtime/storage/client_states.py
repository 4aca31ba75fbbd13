"""What clients keep from round to round: one row of numbers each, in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core import ResumeError
from ...core.opening import write_durably

_IN_MEMORY_BYTES = 1 << 30


class ClientStates:
    """A row of float32 for each client of a population: O(population x size), on the host.

    A round reads the rows of the clients that take part, and stages their new rows; they become
    the clients' states when the round is finished (`commit`). A round that is interrupted leaves
    every state as it was.

    Args:
        num_clients: of the population.
        initial: ``[size] float32``, the row of a client that has never taken part.
        folder: where the rows are kept, so that a run can be resumed; None keeps them for as long
            as the object lives: in memory, or in a temporary file where they need more than 1 GiB.

    Raises:
        ResumeError: the folder holds rows of another size.

    Example:
        >>> import numpy as np
        >>> states = ClientStates(3, np.zeros(2, np.float32))
        >>> states.stage(1, [2], np.ones((1, 2), np.float32))
        >>> states.read([2]).tolist()
        [[0.0, 0.0]]
        >>> states.commit(1)
        >>> states.read([1, 2]).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(self, num_clients: int, initial: np.ndarray, folder: Path | None = None):
        self._initial = np.asarray(initial, np.float32)
        self.shape = (num_clients, len(self._initial))
        self._folder = folder
        self._staged: tuple[int, np.ndarray, np.ndarray] | None = None
        self._known = np.zeros(num_clients, bool)
        nbytes = 4 * num_clients * len(self._initial)
        if folder is None and nbytes <= _IN_MEMORY_BYTES:
            self._rows = np.zeros(self.shape, np.float32)
            return
        if folder is None:
            import tempfile

            self._temporary = tempfile.NamedTemporaryFile(prefix="client-states-")
            path = Path(self._temporary.name)
        else:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / "rows.float32"
            known = folder / "known.bool"
            if path.exists() and (path.stat().st_size != nbytes
                                  or known.stat().st_size != num_clients):
                raise ResumeError(
                    "the clients' states", need=f"{num_clients} rows of {self.shape[1]} numbers",
                    found="a file of another size",
                    fix="Build the federation as before, or choose another folder.")
            if not known.exists():
                write_durably(known, bytes(num_clients))
            self._known = np.memmap(known, bool, "r+", shape=(num_clients,))
        if not path.exists() or path.stat().st_size != nbytes:
            with open(path, "wb", opener=_private) as file:
                file.truncate(nbytes)  # a sparse file: rows that were never written take no room
        self._rows = np.memmap(path, np.float32, "r+", shape=self.shape)

    def read(self, clients: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of some clients, ``[clients, size] float32``, as the last round left them."""
        clients = np.asarray(clients, np.int64)
        rows = np.array(self._rows[clients])
        rows[~self._known[clients]] = self._initial
        return rows

    def known(self, client: int) -> bool:
        """Whether the client has taken part in a finished round."""
        return bool(self._known[client])

    def begin(self, round: int) -> None:
        """Drop what an interrupted attempt of this round may have staged."""
        self._staged = None
        self._stage_path(round).unlink(missing_ok=True) if self._folder else None

    def stage(self, round: int, clients: Sequence[int] | np.ndarray, rows: np.ndarray) -> None:
        """Add clients' new rows to those that `commit` will keep.

        Args:
            round: which they belong to.
            clients: their numbers.
            rows: ``[clients, size] float32``.
        """
        clients, rows = np.asarray(clients, np.int64), np.asarray(rows, np.float32)
        if self._folder is not None:
            with open(self._stage_path(round), "ab", opener=_private) as file:
                file.write(len(clients).to_bytes(8, "little"))
                file.write(clients.astype("<i8").tobytes())
                file.write(rows.astype("<f4").tobytes())
        elif self._staged is None:
            self._staged = (round, clients, rows)
        else:
            _, before, kept = self._staged
            self._staged = (round, np.concatenate([before, clients]), np.concatenate([kept, rows]))

    def sync(self, round: int) -> None:
        """Return when what was staged is on disk."""
        if self._folder is not None and self._stage_path(round).exists():
            with open(self._stage_path(round), "rb") as file:
                os.fsync(file.fileno())

    def commit(self, round: int) -> None:
        """Make a round's staged rows the clients' states; again, after a crash, changes nothing."""
        if self._folder is None:
            if self._staged is not None and self._staged[0] == round:
                self._write(*self._staged[1:])
            self._staged = None
            return
        path = self._stage_path(round)
        if path.exists():
            size = self.shape[1]
            with open(path, "rb") as file:
                while head := file.read(8):
                    count = int.from_bytes(head, "little")
                    clients = np.frombuffer(file.read(8 * count), "<i8")
                    rows = np.frombuffer(file.read(4 * count * size), "<f4")
                    self._write(clients, rows.reshape(count, size))
            for part in (self._rows, self._known):
                if isinstance(part, np.memmap):
                    part.flush()
            path.unlink()

    def _write(self, clients: np.ndarray, rows: np.ndarray) -> None:
        self._rows[clients] = rows
        self._known[clients] = True

    def _stage_path(self, round: int) -> Path:
        assert self._folder is not None
        return self._folder / f"staged-{round:06d}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
