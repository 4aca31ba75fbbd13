"""What clients keep from round to round: one row of numbers each, in memory or on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...core import ResumeError, SpecError
from ...core.opening import write_durably

_IN_MEMORY_BYTES = 1 << 30
_FILES = ("rows.float32", "known.bool", "initial.float32")


class ClientStates:
    """A row of float32 for each client of a population: O(population x size), on the host.

    A round reads the rows of the clients that take part, and stages their new rows; they become
    the clients' states when the round is finished (`commit`). A round that is interrupted leaves
    every state as it was.

    Args:
        num_clients: of the population.
        initial: ``[size] float32``, the row of a client that has never taken part.
        folder: where the rows are kept, so that a run can be resumed; None keeps them for as long
            as the object lives: in memory, or in a temporary folder where they need more than
            1 GiB.

    Raises:
        ResumeError: the folder holds rows of another size, or has lost some of its files.

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
        self._staged: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        if folder is None and 4 * num_clients * len(self._initial) > _IN_MEMORY_BYTES:
            folder = Path(tempfile.mkdtemp(prefix="client-states-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        if folder is None:
            self._rows, self._known = np.zeros(self.shape, np.float32), np.zeros(num_clients, bool)
        else:
            self._open(folder)

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows, known, initial = (folder / name for name in _FILES)
        sizes = (4 * self.shape[0] * self.shape[1], self.shape[0], 4 * self.shape[1])
        if not initial.exists():  # it is written last: without it, nothing was ever kept here
            temporary = rows.with_name(rows.name + ".tmp")
            with open(temporary, "wb", opener=_private) as file:
                file.truncate(sizes[0])  # a sparse file: rows that were never written take no room
            os.replace(temporary, rows)
            write_durably(known, bytes(sizes[1]))
            write_durably(initial, self._initial.astype("<f4").tobytes())
        found = [path.stat().st_size if path.exists() else None for path in (rows, known, initial)]
        if found != list(sizes):
            raise ResumeError(
                "the clients' states", need=f"{self.shape[0]} rows of {self.shape[1]} numbers",
                found="files of another size, or not all of them",
                fix="Build the federation as before, or choose another folder.")
        # The run's own first row, whatever the object that goes on with it was made from.
        self._initial = np.frombuffer(initial.read_bytes(), "<f4")
        self._rows = np.memmap(rows, np.float32, "r+", shape=self.shape)
        self._known = np.memmap(known, bool, "r+", shape=self.shape[:1])

    def read(self, clients: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of some clients, ``[clients, size] float32``, as the last round left them."""
        clients = np.asarray(clients, np.int64)
        rows = np.asarray(self._rows[clients])  # a copy: these are chosen rows
        rows[~self._known[clients]] = self._initial
        return rows

    def known(self, client: int) -> bool:
        """Whether the client has taken part in a finished round."""
        return bool(self._known[client])

    def begin(self, round: int) -> None:
        """Drop what an interrupted attempt of this round may have staged."""
        self._staged.pop(round, None)
        if self._folder is not None:
            self._stage_path(round).unlink(missing_ok=True)

    def stage(self, round: int, clients: Sequence[int] | np.ndarray, rows: np.ndarray) -> None:
        """Add clients' new rows to those that `commit` will keep.

        Args:
            round: which they belong to.
            clients: their numbers.
            rows: ``[clients, size] float32``.

        Raises:
            SpecError: rows of another shape.
        """
        clients, rows = np.asarray(clients, np.int64), np.asarray(rows, np.float32)
        if rows.shape != (len(clients), self.shape[1]):
            raise SpecError(
                "the clients' states", need=f"rows of shape [{len(clients)}, {self.shape[1]}]",
                found=f"{list(rows.shape)}", fix="Give one row for each of these clients.")
        if self._folder is None:
            self._staged.setdefault(round, []).append((clients, rows))
            return
        with open(self._stage_path(round), "ab", opener=_private) as file:
            file.write(len(clients).to_bytes(8, "little"))
            file.write(clients.astype("<i8").tobytes())
            file.write(rows.astype("<f4").tobytes())

    def sync(self, round: int) -> None:
        """Return when what was staged is on disk, its name in the folder included."""
        if self._folder is not None and self._stage_path(round).exists():
            for path in (self._stage_path(round), self._folder):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def commit(self, round: int) -> None:
        """Make a round's staged rows the clients' states; again, after a crash, changes nothing.

        Raises:
            ResumeError: the file of staged rows is damaged.
        """
        if self._folder is None:
            for clients, rows in self._staged.pop(round, []):
                self._write(clients, rows)
            return
        path = self._stage_path(round)
        if path.exists():
            with open(path, "rb") as file:
                while head := file.read(8):
                    self._write(*self._chunk(file, int.from_bytes(head, "little")))
            for part in (self._rows, self._known):
                if isinstance(part, np.memmap):
                    part.flush()
            path.unlink()

    def _chunk(self, file: BinaryIO, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next staged clients, and their rows."""
        size = self.shape[1]
        clients, rows = file.read(8 * count), file.read(4 * count * size)
        numbers = np.frombuffer(clients[: len(clients) // 8 * 8], "<i8")
        if len(rows) != 4 * count * size or np.any((numbers < 0) | (numbers >= self.shape[0])):
            raise ResumeError(
                "the clients' states", need="all rows that a round staged", found="a damaged file",
                fix="Restore the run's folder from a backup, or start a new run in another.")
        return numbers, np.frombuffer(rows, "<f4").reshape(count, size)

    def _write(self, clients: np.ndarray, rows: np.ndarray) -> None:
        self._rows[clients] = rows
        self._known[clients] = True

    def _stage_path(self, round: int) -> Path:
        assert self._folder is not None
        return self._folder / f"staged-{round:06d}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
