"""A privacy budget that outlives the notebook: spent on disk before a sum is opened.

A budget belongs to a dataset and a unit, not to a run. All runs, notebooks and sweeps on one
machine (or one shared folder) that touch the same data draw on the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedjax_secure.core.errors import BudgetError, SpecError
from fedjax_secure.privacy.accounting import Adjacency, Spend, compose, most_rounds
from fedjax_secure.privacy.accounting.arguments import require_dp_delta, rounded_up

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_FORMAT = "fedjax-secure privacy budget 1"
_LOCK_POLL_SECONDS = 0.02


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
class _History:
    """What a budget's file holds: a header and entries, one JSON line each, chained by SHA-256.

    Each line carries the digest of the line before it (as bytes) and of its own document; a last
    line repeats the number of entries and the digest, so that a file cut short is noticed.
    """

    body: str  # all lines but the last
    digest: bytes
    header: dict[str, Any]
    entries: tuple[BudgetEntry, ...]

    def extended(self, document: dict[str, Any], entry: BudgetEntry | None) -> _History:
        text = json.dumps(document, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(self.digest + text.encode()).digest()
        line = json.dumps({**document, "digest": digest.hex()}, sort_keys=True)
        entries = self.entries if entry is None else (*self.entries, entry)
        return _History(f"{self.body}{line}\n", digest, self.header, entries)

    @property
    def text(self) -> str:
        last = {"digest": self.digest.hex(), "entries": len(self.entries)}
        return f"{self.body}{json.dumps(last)}\n"


class Budget:
    """What may still be learned about one dataset's units, kept on disk.

    Open it with :meth:`open`; call :meth:`check` before a run begins and :meth:`spend` for each
    round, before anything of that round is decrypted.

    Guarantees:
        - The spends since the last reset, all runs together, are (`epsilon`, `dp_delta`)-DP for
          one unit: the round that would break this is refused and nothing is written. This
          assumes that noise and sampling rates are chosen without looking at what was released;
          stopping early is always free. (Choosing them by earlier results is fully adaptive
          composition, proved for Renyi filters, Feldman and Zrnic 2021, not for this account.)
        - When :meth:`spend` returns, the spend is on disk (file and folder synced). A process
          that is killed at any moment leaves either the history before its spend or after it.
        - Two processes never spend on the same history at once.
        - Nothing is deleted: a reset is an entry of its own, and what came before it stays.
        - A torn or edited file is refused: the entries form a chain of SHA-256 digests. This finds
          accidents and casual edits. It is not a defence against someone who may write to the
          folder: they can delete the file or compute the digests anew.

    Example:
        >>> import tempfile
        >>> from fedjax_secure.privacy.accounting import Spend
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     budget = Budget.open("sha256:12ab", "patient", epsilon=3.0, dp_delta=1e-3,
        ...                          folder=folder, label="demo")
        ...     round_0 = Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient")
        ...     entry = budget.spend("run-1", 0, round_0)
        ...     again = budget.spend("run-1", 0, round_0)  # the same release: counted once
        ...     round(budget.spent, 2), len(budget.entries()), budget.label
        (0.65, 1, 'demo')
    """

    def __init__(self, path: Path, header: dict[str, Any], lock_timeout_seconds: float):
        self._path = path
        self._header = header
        self._lock_timeout_seconds = lock_timeout_seconds
        self._known: _History | None = None  # what the file held when it was last read

    @classmethod
    def open(
        cls, fingerprint: str, unit: str, *, epsilon: float, dp_delta: float,
        adjacency: Adjacency = "add_remove", label: str | None = None,
        folder: str | os.PathLike[str] | None = None, lock_timeout_seconds: float = 10.0,
    ) -> Budget:
        """Opens the budget of a dataset and a unit, and creates it where there is none.

        Args:
            fingerprint: digest of the dataset; the same data must give the same text.
            unit: whose privacy it is: ``"patient"``, ``"record"``, ``"client"`` or any word.
            epsilon: what may be spent in all; fixed when the budget is created.
            dp_delta: the delta that epsilon is stated at, for all rounds together; fixed too.
            adjacency: ``"add_remove"`` or ``"replace_one"``; fixed too.
            label: opens a budget of its own beside the real one, for what does not touch real
                secrets, for example ``"simulation"`` or ``"demo"``. It shows in every text.
            folder: where budgets lie; by default ``budgets`` in ``$FEDJAX_SECURE_HOME``, else in
                ``$XDG_DATA_HOME/fedjax_secure``, else in ``~/.local/share/fedjax_secure``.
            lock_timeout_seconds: how long to wait for another process that is spending.

        Returns:
            The budget.

        Raises:
            BudgetError: it exists with another epsilon, dp_delta or adjacency; its file is
                damaged; another process holds it for too long.
            SpecError: a value out of range.
        """
        where = "Budget.open"
        for name, text in (("fingerprint", fingerprint), ("unit", unit), ("label", label)):
            if (text is not None or name != "label") and not (
                    isinstance(text, str) and text.strip() and text.isprintable()):
                raise SpecError(where, need=f"{name}, a word", found=f"{name}={text!r}",
                                fix="Give data.population_fingerprint of your dataset."
                                if name == "fingerprint" else f"Give {name} as non-empty text.")
        if not (isinstance(epsilon, (int, float)) and math.isfinite(epsilon) and epsilon > 0):
            raise SpecError(where, need="epsilon > 0", found=f"epsilon={epsilon!r}",
                            fix="Give the epsilon that all runs together may cost.")
        require_dp_delta(where, dp_delta)
        # Refuses a bad adjacency in the accountant's own words.
        Spend(1.0, 1.0, unit, adjacency=adjacency)
        header = {"format": _FORMAT, "fingerprint": fingerprint, "unit": unit, "label": label,
                  "adjacency": adjacency, "epsilon": float(epsilon), "dp_delta": float(dp_delta)}
        path = _folder(folder) / _file_name(fingerprint, unit, label)
        budget = cls(path, header, lock_timeout_seconds)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BudgetError(where, need="a folder it can write to",
                              found=f"{error.strerror} at {path.parent}",
                              fix="Set FEDJAX_SECURE_HOME or folder= to one.") from error
        if not path.exists():
            with budget._locked("open"):
                if not path.exists():
                    start = _History("", hashlib.sha256().digest(), header, ())
                    budget._write(start.extended(header, None))
        budget._read()
        return budget

    # What it is

    @property
    def epsilon(self) -> float:
        """Epsilon that all rounds together may cost."""
        return self._header["epsilon"]

    @property
    def dp_delta(self) -> float:
        """The delta of the guarantee, for all rounds together."""
        return self._header["dp_delta"]

    @property
    def fingerprint(self) -> str:
        """Digest of the dataset it belongs to."""
        return self._header["fingerprint"]

    @property
    def unit(self) -> str:
        """Whose privacy it is."""
        return self._header["unit"]

    @property
    def adjacency(self) -> Adjacency:
        """Which neighbouring datasets the guarantee compares."""
        return self._header["adjacency"]

    @property
    def label(self) -> str | None:
        """None for the real budget; else the name of the one beside it."""
        return self._header["label"]

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self._path

    @property
    def spent(self) -> float:
        """Epsilon spent since the last reset, at ``dp_delta``; read from disk each time."""
        return compose(_counted(self._read().entries), self.dp_delta)

    def entries(self) -> tuple[BudgetEntry, ...]:
        """The whole history, resets included, oldest first; read from disk each time."""
        return self._read().entries

    def remaining_rounds(self, spend: Spend) -> int:
        """How many more rounds like `spend` fit (at most 1,000,000 are counted).

        Args:
            spend: the cost of one round; its own `count` is taken as one step.

        Returns:
            The number of such steps.

        Raises:
            BudgetError: another unit or adjacency, or a damaged file.
        """
        self._check_kind(spend)
        return self._fitting(_counted(self._read().entries), spend)

    def check(self, spend: Spend, rounds: int) -> None:
        """Refuses, before a run begins, a run whose rounds would not all fit.

        Args:
            spend: the cost of one round.
            rounds: how many of them the run will take.

        Raises:
            BudgetError: they do not fit, or another unit or adjacency.
            SpecError: `rounds` is not a positive integer.
        """
        self._check_kind(spend)
        counted = _counted(self._read().entries)
        self._check_fits(counted, spend, rounds, "this run")

    # What changes it

    def spend(self, run_id: str, round: int, spend: Spend, *, attempt: int = 0) -> BudgetEntry:
        """Spends on one round. Call it before anything of the round is decrypted.

        The release is named by (`run_id`, `round`, `attempt`). Repeating one with the same spend
        returns the entry already on disk and costs nothing: a resumed round that opens the very
        same ciphertexts is one release. Where a round is encrypted anew after its sum was opened,
        give another `attempt`: it is a second release and counts.

        Args:
            run_id: the run, unique among all runs on this data.
            round: the round in the run, from 0.
            spend: what the round costs.
            attempt: which release of this round it is.

        Returns:
            The entry, which is on disk.

        Raises:
            BudgetError: it would overspend; the release is on file with another cost; another
                unit or adjacency; another process holds the budget; the file is damaged or
                cannot be written. Then nothing of the round may be decrypted.
            SpecError: an empty `run_id`, or a negative `round` or `attempt`.
        """
        where = self._where
        if not (isinstance(run_id, str) and run_id):
            raise SpecError(where, need="a run_id", found=repr(run_id),
                            fix="Give a text that no other run on this data has.")
        for name, value in (("round", round), ("attempt", attempt)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SpecError(where, need=f"{name} >= 0, an integer", found=f"{name}={value!r}",
                                fix="Count rounds and attempts from 0.")
        self._check_kind(spend)
        with self._locked(f"run {run_id!r}, round {round}"):
            if settled_groups_path(
                    self._path.parent, self.fingerprint, self.unit, self.label).exists():
                raise BudgetError(
                    where, need="people whose privacy was not spent by groups",
                    found="an individual budget that was spent from", fix="Go on with "
                    "IndividualBudget.open(...); the two do not add up by themselves.")
            history = self._read()
            entries = history.entries
            for entry in _since_reset(entries):
                if (entry.run_id, entry.round, entry.attempt) == (run_id, round, attempt):
                    if entry.spend == spend:
                        return entry
                    raise BudgetError(
                        where, need=f"the spend on file for run {run_id!r}, round {round}, "
                        f"attempt {attempt}: {_text(entry.spend)}", found=_text(spend),
                        fix="A round released again with other noise or sampling is a second "
                        "release: give it another attempt=.")
            total = self._check_fits(
                _counted(entries), spend, 1, f"round {round} of run {run_id!r}")
            entry = BudgetEntry("spend", len(entries), _now(), total, run_id=run_id, round=round,
                                attempt=attempt, spend=spend)
            self._write(history.extended(_document(entry), entry))
            return entry

    def reset(self, *, reason: str, by: str) -> BudgetEntry:
        """Starts counting from zero again. The history stays, with this act in it.

        It is the only way back, and a decision about people's privacy: what was released stays
        released, so the epsilons before and after the reset both happened to the same units.

        Args:
            reason: why, for those who read the history.
            by: who decided it.

        Returns:
            The entry, which is on disk.

        Raises:
            BudgetError: no reason or no name; another process holds the budget; the file is
                damaged or cannot be written.
        """
        for name, text in (("reason", reason), ("by", by)):
            if not (isinstance(text, str) and text.strip()):
                raise BudgetError(f"reset of {self._where}", need=f"{name}=, as text",
                                  found=repr(text), fix="Say why, and who decides it.")
        with self._locked(f"reset by {by}"):
            history = self._read()
            entry = BudgetEntry("reset", len(history.entries), _now(), 0.0, reason=reason, by=by)
            self._write(history.extended(_document(entry), entry))
            return entry

    def __repr__(self) -> str:
        label = f", label={self.label!r}" if self.label else ""
        try:
            spent = rounded_up(self.spent)
        except BudgetError:
            spent = "unreadable"
        return (f"Budget(unit={self.unit!r}{label}, spent={spent} of epsilon={self.epsilon:g} "
                f"at dp_delta={self.dp_delta:g}, {self.adjacency})")

    # How it decides

    @property
    def _where(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return f"the privacy budget{label} of unit `{self.unit}`"

    def _check_kind(self, spend: Spend) -> None:
        for name in ("unit", "adjacency"):
            mine, given = getattr(self, name), getattr(spend, name)
            if mine != given:
                raise BudgetError(
                    self._where, need=f"spends of {name} {mine!r}", found=f"{name} {given!r}",
                    fix=f"Open a budget of its own for {given!r}; their epsilons do not add.")

    def _check_fits(self, counted: list[Spend], spend: Spend, rounds: int, what: str) -> float:
        total = compose([*counted, *_times(spend, rounds)], self.dp_delta)
        if total <= self.epsilon:
            return total
        spent = compose(counted, self.dp_delta)
        label = f" The budget is labelled {self.label!r}." if self.label else ""
        raise BudgetError(
            self._where, need=f"a total of at most epsilon {self.epsilon:.6g} at "
            f"dp_delta {self.dp_delta:g} (spent so far: {rounded_up(spent, 6)})",
            found=f"{rounded_up(total, 6)} with {what} ({_text(spend)}, {rounds} times); "
            f"{self._fitting(counted, spend)} such rounds still fit",
            fix="Take fewer rounds, more noise or a lower sampling rate, or have whoever answers "
            f"for the data record a reset(reason=..., by=...).{label}")

    def _fitting(self, counted: list[Spend], spend: Spend) -> int:
        def cost(rounds: int) -> float:
            return compose([*counted, *_times(spend, rounds)], self.dp_delta)

        return most_rounds(cost, self.epsilon)

    # How it is kept

    @contextmanager
    def _locked(self, holder: str) -> Iterator[None]:
        """Holds the lock file, or says who does. The system frees it when a process dies."""
        if fcntl is None:
            raise BudgetError(self._where, need="file locks of a POSIX system", found=os.name,
                              fix="Run on Linux or macOS, or in WSL on Windows.")
        path = self._path.with_suffix(".lock")
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

    def _read(self) -> _History:
        try:
            text = self._path.read_text("utf-8")
        except FileNotFoundError:
            raise BudgetError(
                self._where, need=f"its file {self._path}", found="no such file",
                fix="Restore it from a backup: without it, what was spent is not known.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(f"{type(error).__name__} on reading") from error
        if self._known is not None and text == self._known.text:
            return self._known
        history = self._parse(text)
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
                    'after the fact; explore with label="simulation", which has its own.')
        self._known = history
        return history

    def _parse(self, text: str) -> _History:
        lines = text.split("\n")
        if len(lines) < 3 or lines[-1] != "":
            raise self._damaged("a file that ends in the middle of a line")
        try:
            documents = [json.loads(line) for line in lines[:-1]]
            if documents[0]["format"] != _FORMAT:
                raise self._damaged(f"format {documents[0]['format']!r}, not {_FORMAT!r}")
            claimed = [document.pop("digest") for document in documents]
            history = _History("", hashlib.sha256().digest(), documents[0], ())
            for number, document in enumerate(documents[:-1], start=1):
                entry = _entry(document) if number > 1 else None
                history = history.extended(document, entry)
                if history.digest.hex() != claimed[number - 1]:
                    raise self._damaged(f"line {number}, whose digest does not match")
            if history.text != text:
                raise self._damaged("a last line that does not match the entries before it")
            if [entry.index for entry in history.entries] != list(range(len(history.entries))):
                raise self._damaged("entries out of order")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"lines that are no entries ({type(error).__name__})") from error
        return history

    def _damaged(self, found: str) -> BudgetError:
        return BudgetError(
            self._where, need=f"an intact file at {self._path}", found=found,
            fix="Restore it from a backup. Nothing can be spent while it is not known what was.")

    def _write(self, history: _History) -> None:
        """Replaces the file as a whole: temporary file, sync, rename, sync of the folder."""
        temporary = None
        try:
            for left_over in self._path.parent.glob(f"{self._path.stem}*.tmp"):
                left_over.unlink()  # of a writer that was killed: we hold the lock
            handle, temporary = tempfile.mkstemp(
                dir=self._path.parent, prefix=self._path.stem, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(history.text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            temporary = None
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise BudgetError(
                self._where, need=f"to write {self._path}", found=str(error.strerror),
                fix="Free space or mend the folder's permissions; decrypt nothing until the "
                "spend is on disk.") from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        self._known = history


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    if folder is not None:
        return Path(folder)
    home = os.environ.get("FEDJAX_SECURE_HOME")
    if home:
        return Path(home) / "budgets"
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG rules: a relative path there is to be ignored.
    base = Path(data) if data and os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / "fedjax_secure" / "budgets"


def _file_name(fingerprint: str, unit: str, label: str | None) -> str:
    """Readable, and different for each (fingerprint, unit, label)."""
    identity = hashlib.sha256(json.dumps([fingerprint, unit, label]).encode()).hexdigest()[:16]
    words = [re.sub(r"[^A-Za-z0-9]+", "-", word)[:24].strip("-") for word in
             (unit, label or "real")]
    return "-".join([*words, identity]) + ".jsonl"


def settled_groups_path(folder: Path, fingerprint: str, unit: str, label: str | None) -> Path:
    """Where an individual budget writes, once it is spent from, that people have groups."""
    return (folder / _file_name(fingerprint, unit, label)).with_suffix(".groups")


def _since_reset(entries: tuple[BudgetEntry, ...]) -> tuple[BudgetEntry, ...]:
    last = max((i for i, entry in enumerate(entries) if entry.kind == "reset"), default=-1)
    return entries[last + 1:]


def _counted(entries: tuple[BudgetEntry, ...]) -> list[Spend]:
    return [entry.spend for entry in _since_reset(entries) if entry.spend is not None]


def _times(spend: Spend, rounds: int) -> list[Spend]:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise SpecError("the privacy budget", need="rounds >= 1, an integer",
                        found=f"rounds={rounds!r}", fix="Give the number of rounds.")
    return [replace(spend, count=spend.count * rounds)]


def _text(spend: Spend | None) -> str:
    if spend is None:
        return "no spend"
    return str(spend)


def _document(entry: BudgetEntry) -> dict[str, Any]:
    fields = {name: value for name, value in vars(entry).items() if value is not None}
    return {**fields, "spend": entry.spend.to_dict()} if entry.spend is not None else fields


def _entry(document: dict[str, Any]) -> BudgetEntry:
    fields = dict(document)
    if fields["kind"] == "spend":
        fields["spend"] = Spend(**fields["spend"])
    elif fields["kind"] != "reset":
        raise ValueError("kind")
    return BudgetEntry(**fields)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
