"""Who opens the sum: signed submissions go in, one sum comes out, once per round.

An :class:`OnceOpener` takes the clients' signed submissions, not a sum that somebody else
computed; it checks every signature, enforces the minimum number of distinct clients, sums, opens,
and never opens a second set of submissions for the same round. What it opened is on disk before it
is returned, so a run that was killed gets the same sum again.

Where a run trusts its aggregator (``Setting.aggregator`` is ``"semi-honest"``), the opener takes a
sum that the aggregator made, once a round: the checks of submissions do not happen then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import OpeningError
from .durable import opened_from_bytes, opened_to_bytes, write_durably
from .protocols import InvalidSum, Release
from .submissions import Opened, Setting, StoredPayload, Submission

_TOTAL_DOMAIN = b"fedjax_secure/total/1"


class OnceOpener:
    """The checks that every opener makes, around a function that sums and opens payloads.

    Args:
        setting: the run, its roster, the minimum of clients, and the folder for results.
        key_id: what submissions must name as the key they were encrypted under.
        open_payloads: ``Sequence[bytes] -> total``; sums the payloads itself and opens the sum. It
            should take them one after another, since they may lie on disk. Raises OpeningError for
            what it refuses to open, and InvalidSum for what it should not have.
        open_sum: ``(bytes, num_clients) -> total``; opens a sum that the aggregator made. None
            where that cannot be asked for.
        on_close: called once by :meth:`close`.

    Guarantees:
        Nothing is opened unless every submission is signed by a client of the roster, for this
        run, round, model and key, and at least ``min_clients`` distinct clients are present. One
        round is opened for one set of submissions only, also by threads and processes that share
        the folder. The result is durable before it returns. A sum of others' making is opened only
        where the setting trusts the aggregator.

    Raises:
        OpeningError: any check fails, nothing has been opened then; or the roster has one signing
            key under two names, which would count as two clients.
    """

    def __init__(
        self,
        setting: Setting,
        key_id: bytes,
        open_payloads: Callable[[Sequence[bytes]], np.ndarray],
        *,
        open_sum: Callable[[bytes, int], np.ndarray] | None = None,
        on_close: Callable[[], None] | None = None,
    ):
        self.setting, self.key_id = setting, key_id
        self._open_payloads, self._open_sum = open_payloads, open_sum
        self._on_close = on_close
        self._release: Release | None = None
        self._results: dict[int, Opened] = {}
        self._failed: set[int] = set()
        self._lock = threading.Lock()
        if len(set(setting.roster.values())) != len(setting.roster):
            raise OpeningError("the roster", need="a signing key of its own for every client",
                               found="one key under two names", fix="Have each client make its "
                               "own key; distinct clients are counted by it.")
        if setting.folder is not None:
            setting.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, round: int, model_digest: bytes, submissions: Sequence[Submission]) -> Opened:
        """Check the submissions, sum them, open the sum, and store it.

        Args:
            round: the round, from 1.
            model_digest: SHA-256 of the model that the updates answer.
            submissions: the clients' signed submissions, in any order.

        Returns:
            The opened sum; the stored one if this very set was opened before.
        """
        where = f"opening round {round}"
        for submission in submissions:
            self._require_well_formed(where, submission)
        ordered = sorted(submissions, key=lambda submission: submission.client)
        clients = tuple(submission.client for submission in ordered)
        digest = hashlib.sha256(b"".join(s.statement() + s.signature for s in ordered)).digest()
        before = self.opened(round)
        bound = all(submission.model_digest == model_digest for submission in ordered)
        if before is not None and before.submissions_digest == digest and bound:
            self._forget(round)  # a kill may have come before it
            return before  # the very statements and signatures that were checked then
        if self.setting.aggregator != "untrusted":
            raise OpeningError(
                where, need="the aggregator's sum, as this run was set up",
                found="submissions", fix="Use open_total(...), or set the run up with "
                'aggregator="untrusted".')
        self._check(where, round, model_digest, ordered)
        payloads = _Payloads([submission.payload for submission in ordered])
        return self._once(where, round, clients, digest, lambda: self._open_payloads(payloads))

    def open_total(
        self, round: int, model_digest: bytes, total: bytes, clients: Sequence[str]
    ) -> Opened:
        """Open a sum that the aggregator made, where the run trusts it to have added honestly.

        Args:
            round: the round, from 1.
            model_digest: SHA-256 of the model that the updates answer.
            total: the sum as the scheme's wire format has one client's message.
            clients: whose values are in it, by the aggregator's word.

        Returns:
            The opened sum; the stored one if this very sum was opened before.

        Raises:
            OpeningError: the run does not trust its aggregator, the scheme cannot do this, or too
                few, unknown or repeated clients.
        """
        where = f"opening round {round}"
        if not isinstance(total, bytes) or not all(isinstance(name, str) for name in clients):
            raise OpeningError(where, need="a sum's bytes and the clients' ids",
                               found="something of another type",
                               fix="Give to_wire(...)'s message of the sum, and the cohort's ids.")
        names = tuple(sorted(clients))
        fields = (_TOTAL_DOMAIN, model_digest, hashlib.sha256(total).digest(),
                  *(name.encode() for name in names))
        digest = hashlib.sha256(
            b"".join(struct.pack("<I", len(field)) + field for field in fields)).digest()
        before = self.opened(round)
        if before is not None and before.submissions_digest == digest:
            self._forget(round)
            return before
        if self.setting.aggregator != "semi-honest" or self._open_sum is None:
            raise OpeningError(
                where, need="the clients' signed submissions", found="a sum made by others",
                fix="Use open(...). Only a run of aggregator=\"semi-honest\" opens such sums, with "
                "a scheme that adds up inside the compiled round.")
        unknown = [name for name in names if name not in self.setting.roster]
        if unknown or len(set(names)) != len(names) or len(names) < self.setting.min_clients:
            raise OpeningError(
                where, need=f"at least {self.setting.min_clients} distinct clients of the roster",
                found=f"{len(set(names) - set(unknown))}, {len(unknown)} unknown",
                fix="Sum each registered client's value once.")
        open_sum, count = self._open_sum, len(names)
        return self._once(where, round, names, digest, lambda: open_sum(total, count))

    def _once(
        self,
        where: str,
        round: int,
        clients: tuple[str, ...],
        digest: bytes,
        open_it: Callable[[], np.ndarray],
    ) -> Opened:
        with self._alone():
            before = self.opened(round)
            if before is not None and before.submissions_digest == digest:
                return before  # opened by another thread or process meanwhile
            if before is not None:
                raise OpeningError(
                    where, need="a round that has not been opened", fix="Use the stored result.",
                    found="another set of submissions for a round that was opened already")
            if self._has_failed(round):
                raise OpeningError(
                    where, need="a round whose opening has not failed", found="one that is used "
                    "up, because its sum was invalid", fix="Begin a new run, with a new key, "
                    "without the client that did not encode as planned.")
            try:
                total = np.asarray(open_it())
            except InvalidSum:
                self._fail(round)
                raise
            if self._release is not None:
                total = np.asarray(self._release(round, total, digest))
            total.setflags(write=False)  # what is stored is what every caller gets
            opened = Opened(round, total, clients, digest)
            self._store(opened)
            self._forget(round)
            return opened

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One opening at a time, among the threads and processes that share the folder."""
        with self._lock:
            if self.setting.folder is None:
                yield
                return
            folder = os.open(self.setting.folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
            finally:
                os.close(folder)

    @property
    def rounds_left(self) -> int | None:
        """How many more rounds can be opened with this key; None for any number."""
        return None

    def opened(self, round: int) -> Opened | None:
        """The stored result of a round, or None if it has not been opened."""
        if round not in self._results and self.setting.folder is not None:
            path = self._path(round)
            if path.exists():
                self._results[round] = opened_from_bytes(path.read_bytes(), round)
        return self._results.get(round)

    def release_through(self, release: Release) -> None:
        """Have every sum pass through ``release`` before it is stored or shown to anybody.

        Noise that the opener adds (central trust) is drawn there: what is stored is the noised
        sum, so asking again gives the same one, and no second draw is ever made of a round that
        was opened.

        Args:
            release: see :class:`Release`.
        """
        self._release = release

    def prepare(self, round: int) -> None:
        """Settle what a round's release draws, before clients make their messages.

        Whoever goes on from a copy of the messages, because a folder was copied or restored from
        a backup, then draws the same noise for the same sum: it is released once, as it was paid
        for.
        """
        if self._release is not None:
            with self._alone():
                self._release.prepare(round)

    def prepared(self, round: int) -> bool:
        """Whether what was settled for a round is still there."""
        return self._release is None or self._release.prepared(round)

    def close(self) -> None:
        """Release what the opener holds; stored results stay on disk."""
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_id={self.key_id.hex()[:16]})"

    def _require_well_formed(self, where: str, submission: Submission) -> None:
        """What comes over a network may hold anything; it is looked at before it is used."""
        name, number = submission.client, submission.round
        if not isinstance(name, str) or name not in self.setting.roster:
            raise OpeningError(where, need="submissions from clients of the roster",
                               found=f"one from {name!r:.80}", fix="Register the client first.")
        texts = (submission.run, submission.model_digest, submission.key_id, submission.signature)
        if (not all(isinstance(text, bytes) for text in texts)
                or not isinstance(submission.payload, bytes | StoredPayload)
                or isinstance(number, bool) or not isinstance(number, int)
                or not 0 <= number < 1 << 64):
            raise OpeningError(where, need=f"a whole submission of {name!r}",
                               found="one with a field of another type or range",
                               fix="Have the client encode and sign its update again.")

    def _check(self, where, round, model_digest, submissions):
        roster, run = self.setting.roster, self.setting.run
        seen = set()
        for submission in submissions:
            name = submission.client
            if name in seen:
                raise OpeningError(where, need="one submission a client",
                                   found=f"two from {name!r}", fix="Send each client's once.")
            seen.add(name)
            bound = ("run", submission.run, run), ("round", submission.round, round), (
                "model", submission.model_digest, model_digest), (
                "key", submission.key_id, self.key_id)
            for what, found, wanted in bound:
                if found != wanted:
                    raise OpeningError(
                        where, need=f"a submission of {name!r} bound to this {what}",
                        found=f"one bound to another {what}",
                        fix="Have the client encode and sign its update again.")
            try:
                key = Ed25519PublicKey.from_public_bytes(roster[name])
                key.verify(submission.signature, submission.statement())
            except (InvalidSignature, ValueError):
                raise OpeningError(
                    where, need=f"a valid signature of {name!r}", found="one that does not verify",
                    fix="Have the client sign its submission with its registered key.") from None
        if len(seen) < self.setting.min_clients:
            raise OpeningError(
                where, need=f"submissions from at least {self.setting.min_clients} distinct "
                "clients", found=str(len(seen)), fix="Wait for more clients, or end the round.")

    def _forget(self, round: int) -> None:
        if self._release is not None:
            self._release.forget(round)

    def _path(self, round: int) -> Path:
        assert self.setting.folder is not None
        return self.setting.folder / f"opened-{round:06d}.msgpack"

    def _failed_path(self, round: int) -> Path:
        return self._path(round).with_suffix(".failed")

    def _has_failed(self, round: int) -> bool:
        stored = self.setting.folder is not None and self._failed_path(round).exists()
        return stored or round in self._failed

    def _fail(self, round: int) -> None:
        if self.setting.folder is not None:
            write_durably(self._failed_path(round), b"invalid sum\n")
        self._failed.add(round)

    def _store(self, opened: Opened) -> None:
        if self.setting.folder is not None:
            write_durably(self._path(opened.round), opened_to_bytes(opened))
        self._results[opened.round] = opened


class _Payloads(Sequence[bytes]):
    """Payloads as bytes, read from disk one at a time where they lie there."""

    def __init__(self, payloads: Sequence[bytes | StoredPayload]):
        self._payloads = payloads

    def __len__(self) -> int:
        return len(self._payloads)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> _Payloads: ...
    def __getitem__(self, place: int | slice) -> bytes | _Payloads:
        if isinstance(place, slice):
            return _Payloads(self._payloads[place])
        return bytes(self._payloads[place])
