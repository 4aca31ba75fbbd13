"""A budget's file: read whole, replaced whole, and written by one process at a time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_secure.core.errors import BudgetError

from .history import Damaged, History, parse

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_LOCK_POLL_SECONDS = 0.02


class HistoryFile:
    """The file that holds one budget's history.

    Args:
        path: where it lies; the lock lies beside it.
        header: what the budget was opened with, which the file's must equal.
        where: what messages call the budget.
        lock_timeout_seconds: how long to wait for another process that is writing.
    """

    def __init__(self, path: Path, header: dict[str, Any], where: str, lock_timeout_seconds: float):
        self.path = path
        self._header = header
        self._where = where
        self._lock_timeout_seconds = lock_timeout_seconds
        self._known: History | None = None  # what the file held when it was last read

    @contextmanager
    def locked(self, holder: str) -> Iterator[None]:
        """Holds the lock file, or says who does. The system frees it when a process dies."""
        if fcntl is None:
            raise BudgetError(self._where, need="file locks of a POSIX system", found=os.name,
                              fix="Run on Linux or macOS, or in WSL on Windows.")
        path = self.path.with_suffix(".lock")
        deadline = time.monotonic() + self._lock_timeout_seconds
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BudgetError(
                self._where, need=f"to write in {path.parent}", found=str(error.strerror),
                fix="Set FEDJAX_SECURE_HOME or folder= to a folder you may write to.") from error
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        text = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip()
                        raise BudgetError(
                            self._where, need=f"to be free within "
                            f"{self._lock_timeout_seconds:g} seconds",
                            found=f"a lock held by {text or 'a process that gave no name'}",
                            fix="Wait for that spend to end or end that process, then try again.",
                        ) from None
                    time.sleep(_LOCK_POLL_SECONDS)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} ({holder})".encode(), 0)
            yield
            os.ftruncate(handle, 0)
        finally:
            os.close(handle)  # frees the lock

    def read(self) -> History:
        """The history on disk; it is parsed only where it is another than the last one known."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            raise BudgetError(
                self._where, need=f"its file {self.path}", found="no such file",
                fix="Restore it from a backup: without it, what was spent is not known.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(f"{type(error).__name__} on reading") from error
        if self._known is not None and text == self._known.text:
            return self._known
        try:
            history = parse(text)
        except Damaged as damage:
            raise self._damaged(str(damage)) from damage.__cause__
        header = history.header
        for name in ("fingerprint", "unit", "label"):
            if header.get(name) != self._header[name]:
                raise self._damaged(f"{name} {header.get(name)!r} in the file of "
                                    f"{self._header[name]!r}")
        for name in ("adjacency", "epsilon", "dp_delta"):
            if header.get(name) != self._header[name]:
                raise BudgetError(
                    self._where, need=f"{name}={header.get(name)!r}, as it was created",
                    found=f"{name}={self._header[name]!r}",
                    fix=f"Open it with {name}={header.get(name)!r}. A budget cannot be widened "
                    "after the fact; one with another label= is another budget, for simulations "
                    "and public data.")
        self._known = history
        return history

    def write(self, history: History) -> None:
        """Replaces the file as a whole: temporary file, sync, rename, sync of the folder."""
        temporary = None
        try:
            for left_over in self.path.parent.glob(f"{self.path.stem}*.tmp"):
                left_over.unlink()  # of a writer that was killed: we hold the lock
            handle, temporary = tempfile.mkstemp(
                dir=self.path.parent, prefix=self.path.stem, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(history.text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            temporary = None
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise BudgetError(
                self._where, need=f"to write {self.path}", found=str(error.strerror),
                fix="Free space or mend the folder's permissions; decrypt nothing until the "
                "spend is on disk.") from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        self._known = history

    def _damaged(self, found: str) -> BudgetError:
        return BudgetError(
            self._where, need=f"an intact file at {self.path}", found=found,
            fix="Restore it from a backup. Nothing can be spent while it is not known what was.")
