"""A privacy budget that outlives the notebook: spent on disk before a sum is opened.

A budget belongs to a dataset and a unit, not to a run. All runs, notebooks and sweeps on one
machine (or one shared folder) that touch the same data draw on the same file.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedjax_secure.core.errors import BudgetError, SpecError

from ..accounting import Adjacency, Spend, compose, most_rounds
from ..accounting.arguments import require_dp_delta, rounded_up
from .history import FORMAT, BudgetEntry, History, counted_spends, document_of, since_reset
from .history_file import HistoryFile
from .places import file_name, folder_of_budgets, settled_groups_path


class LargeDeltaWarning(UserWarning):
    """A dp_delta that is not below one over the number of people says little about any of them.

    A mechanism that publishes one person's data, drawn at random, has such a delta.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", LargeDeltaWarning)  # where it is meant so
    """


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
        self._header = header
        self._file = HistoryFile(path, header, self._where, lock_timeout_seconds)

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
        header = {"format": FORMAT, "fingerprint": fingerprint, "unit": unit, "label": label,
                  "adjacency": adjacency, "epsilon": float(epsilon), "dp_delta": float(dp_delta)}
        path = folder_of_budgets(folder) / file_name(fingerprint, unit, label)
        budget = cls(path, header, lock_timeout_seconds)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BudgetError(where, need="a folder it can write to",
                              found=f"{error.strerror} at {path.parent}",
                              fix="Set FEDJAX_SECURE_HOME or folder= to one.") from error
        if not path.exists():
            with budget._file.locked("open"):
                if not path.exists():
                    budget._file.write(History.begun(header).extended(header, None))
        budget._file.read()
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
        return self._file.path

    @property
    def spent(self) -> float:
        """Epsilon spent since the last reset, at ``dp_delta``; read from disk each time."""
        return compose(counted_spends(self._file.read().entries), self.dp_delta)

    def entries(self) -> tuple[BudgetEntry, ...]:
        """The whole history, resets included, oldest first; read from disk each time."""
        return self._file.read().entries

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
        return self._fitting(counted_spends(self._file.read().entries), spend)

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
        counted = counted_spends(self._file.read().entries)
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
        with self._file.locked(f"run {run_id!r}, round {round}"):
            if settled_groups_path(
                    self._file.path.parent, self.fingerprint, self.unit, self.label).exists():
                raise BudgetError(
                    where, need="people whose privacy was not spent by groups",
                    found="an individual budget that was spent from", fix="Go on with "
                    "IndividualBudget.open(...); the two do not add up by themselves.")
            history = self._file.read()
            entries = history.entries
            for entry in since_reset(entries):
                if (entry.run_id, entry.round, entry.attempt) == (run_id, round, attempt):
                    if entry.spend == spend:
                        return entry
                    raise BudgetError(
                        where, need=f"the spend on file for run {run_id!r}, round {round}, "
                        f"attempt {attempt}: {_text(entry.spend)}", found=_text(spend),
                        fix="A round released again with other noise or sampling is a second "
                        "release: give it another attempt=.")
            total = self._check_fits(
                counted_spends(entries), spend, 1, f"round {round} of run {run_id!r}")
            entry = BudgetEntry("spend", len(entries), _now(), total, run_id=run_id, round=round,
                                attempt=attempt, spend=spend)
            self._file.write(history.extended(document_of(entry), entry))
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
        with self._file.locked(f"reset by {by}"):
            history = self._file.read()
            entry = BudgetEntry("reset", len(history.entries), _now(), 0.0, reason=reason, by=by)
            self._file.write(history.extended(document_of(entry), entry))
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
        fitting = self._fitting(counted, spend)
        fewer = f"{fitting} rounds or fewer" if fitting else "more noise or a smaller sampling rate"
        if spend.sampling_rate == 1.0 and not fitting:
            fewer = "more noise"
        always = "" if spend.sampling_rate < 1.0 else (
            " (The sampling rate counts as 1 unless nobody learns who was drawn: "
            "poisson_records(...), or poisson_clients(..., everyone_answers=True).)")
        raise BudgetError(
            self._where, need=f"a total of at most epsilon {self.epsilon:.6g} at "
            f"dp_delta {self.dp_delta:g} (spent so far: {rounded_up(spent, 6)})",
            found=f"{rounded_up(total, 6)} with {what} ({_text(spend)}, {rounds} times); "
            f"{fitting} such rounds still fit",
            fix=f"Take {fewer}, go on with a run that was interrupted in its own folder=, or have "
            f"whoever answers for the data record a reset(reason=..., by=...).{always}{label}")

    def _fitting(self, counted: list[Spend], spend: Spend) -> int:
        def cost(rounds: int) -> float:
            return compose([*counted, *_times(spend, rounds)], self.dp_delta)

        return most_rounds(cost, self.epsilon)


def _times(spend: Spend, rounds: int) -> list[Spend]:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise SpecError("the privacy budget", need="rounds >= 1, an integer",
                        found=f"rounds={rounds!r}", fix="Give the number of rounds.")
    return [replace(spend, count=spend.count * rounds)]


def _text(spend: Spend | None) -> str:
    if spend is None:
        return "no spend"
    return str(spend)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
