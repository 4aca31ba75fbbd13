"""A share holder: keeps one share of a joint key, and answers once for every set of holders."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from fedjax_kernels import rlwe, threshold

from ...core import (
    OnceOpener,
    OpeningError,
    PartyError,
    ResumeError,
    Setting,
    Signer,
    Submission,
)
from ...core.opening import write_durably
from ...core.randomness import host_words
from .. import wire
from ..summing import read_total, sum_ciphertexts, sum_digest
from . import messages
from .key_generation import KeyShare, Steps, make_key, require_confirmed
from .messages import PARTIAL, WITNESS, Session, derive
from .plan import ThresholdPlan

_FILE = "share-holder.key"
_FILE_VERSION = 1
_WITNESS_BYTES = 64
_ANSWER = re.compile(r"answer-(\d+)-(\d+(?:\.\d+)*)")  # its round and its set


class ShareHolder:
    """One of n holders of a joint key, with its own folder, its own key share and its own checks.

    Nothing but bytes goes in and out: messages of the key generation, the clients' signed
    submissions, statements of what it was given, and partial decryptions.

    Args:
        number: from 1 to n.
        plan: as all parties have it.
        setting: the run, the clients' roster, the minimum of distinct clients, where this holder's
            secrets come from, and its own private folder; None keeps everything in memory.

    Guarantees:
        It answers for one set of submissions a round: of at least ``min_clients`` distinct
        registered clients, each signed for this run, round, model and key, none given twice. It
        sums them itself. It answers only where enough holders have stated in writing that they were
        given the same, once for each set of t holders, each time with fresh flooding and masks,
        and at most ``max_openings`` times in all; that count is on disk before an answer leaves.
        Neither ``repr`` nor an error shows a secret.

    Assumes:
        Clients encrypt as planned, and holders make their keys as the protocol says.

    Raises:
        ResumeError: the folder holds a share of another plan or run, or a damaged one.

    Source: ePrint 2022/780, section 4; see :mod:`fedjax_kernels.threshold`.
    """

    def __init__(self, number: int, plan: ThresholdPlan, setting: Setting):
        self.number, self.plan, self.setting = number, plan, setting
        self.closed = False
        self._share: KeyShare | None = None
        self._confirmations: list[bytes] = []
        self._session: Session | None = None
        self._rounds: OnceOpener | None = None
        self._sums: dict[int, tuple[bytes, np.ndarray]] = {}
        self._asked = 0  # the round whose submissions are being checked
        self._answered: set[tuple[int, tuple[int, ...]]] = set()
        if not self._restore():
            self._identity = setting.source.key("he/threshold/identity", client=self.name)
            self._signer = Signer(self._identity)

    @property
    def name(self) -> str:
        """``holder-`` and its number."""
        return f"holder-{self.number}"

    @property
    def identity(self) -> bytes:
        """Its Ed25519 public key, 32 bytes, by which the others know its messages."""
        return self._signer.public_key

    @property
    def has_share(self) -> bool:
        """Whether it has a share of a joint key."""
        return self._share is not None

    @property
    def confirmations(self) -> list[bytes]:
        """All holders' confirmations of the key; empty until they have agreed."""
        return list(self._confirmations)

    @property
    def session(self) -> Session:
        """The session; there is none before the key generation."""
        assert self._session is not None
        return self._session

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the joint public key."""
        assert self._share is not None
        return self._share.key_id

    @property
    def public_key(self) -> rlwe.PublicKey:
        """The joint public key."""
        assert self._share is not None
        return wire.public_key_from_bytes(self._share.public_key)[1]

    @property
    def openings_left(self) -> int:
        """How many partial decryptions it will still give."""
        return self.plan.openings.max_openings - len(self._answered)

    def key_generation(self, holders: tuple[bytes, ...]) -> Steps:
        """Its part in making a joint key with others; replaces a share that was never confirmed.

        Args:
            holders: all holders' identities, in the order of their numbers.

        Returns:
            A generator; see :func:`fedjax_secure.he.joint_key.run_key_generation`.
        """
        session = Session(self.setting.run, self.plan.digest, holders)
        self._share, self._confirmations = None, []

        def keep(share: KeyShare) -> None:
            self._session, self._share = session, share
            self._store()

        def confirmed(confirmations: list[bytes]) -> None:
            self._begin(confirmations)

        return make_key(
            session,
            self.number,
            self._signer,
            self.setting.source.key("he/threshold/key", client=self.name),
            self.plan.packing.params,
            self.plan.openings.threshold,
            keep=keep,
            confirmed=confirmed,
        )

    def confirm(self, confirmations: Sequence[bytes]) -> None:
        """Take the key into use with confirmations that another holder kept, after a crash.

        Args:
            confirmations: one message of every holder.

        Raises:
            OpeningError: one is missing or wrong, or they differ.
        """
        assert self._share is not None
        require_confirmed(self.session, confirmations, self._share.key_id)
        self._begin(list(confirmations))

    def witness(self, round: int, model_digest: bytes, submissions: Sequence[Submission]) -> bytes:
        """Check and sum the clients' submissions, and state in writing which they were.

        Args:
            round: the round, from 1.
            model_digest: SHA-256 of the model that the updates answer.
            submissions: the clients' signed submissions, in any order.

        Returns:
            A signed statement of the round, the submissions and their sum; the first one binds it.

        Raises:
            OpeningError: a check fails, or the round was bound to other submissions.
            PartyError: it is closed.
        """
        rounds, self._asked = self._running(), round
        bound = rounds.open(round, model_digest, submissions)
        if round not in self._sums:  # it was bound before a restart, or another round came since
            ordered = sorted(submissions, key=lambda submission: submission.client)
            self._sum([submission.payload for submission in ordered])
        return self._statement(round, bound)

    def witness_total(
        self, round: int, model_digest: bytes, total: bytes, clients: Sequence[str]
    ) -> bytes:
        """The same for a sum that an aggregator made, where the run trusts it to add honestly."""
        rounds, self._asked = self._running(), round
        bound = rounds.open_total(round, model_digest, total, clients)
        if round not in self._sums:
            self._sum_of_total(total, len(clients))
        return self._statement(round, bound)

    def partial_decryption(
        self, round: int, active: Sequence[int], witnesses: Sequence[bytes]
    ) -> bytes:
        """Its part of an opening by one set of t holders, named beforehand.

        Args:
            round: the round, for which :meth:`witness` was called.
            active: the numbers of the t holders, itself among them.
            witnesses: statements of at least ``plan.witnesses`` holders, all active ones among
                them, that they were given the same submissions.

        Returns:
            A signed message. The same question has the same answer, also after a restart.

        Raises:
            OpeningError: a set that is no set of t, submissions that were not given, statements
                that are missing or differ, or no openings left.
            PartyError: it is closed.
        """
        self._running()
        where, share, members = f"{self.name} in round {round}", self._share, tuple(sorted(active))
        openings = self.plan.openings
        in_range = all(1 <= member <= openings.num_parties for member in members)
        if (
            len(set(members)) != openings.threshold
            or len(members) != len(set(members))
            or (self.number not in members or not in_range)
        ):
            raise OpeningError(
                where,
                need=f"a set of {openings.threshold} different holders, itself among them",
                found=str(members),
                fix="Fix the active set first.",
            )
        if round not in self._sums or share is None:
            raise OpeningError(
                where,
                need="the clients' submissions of this round",
                found="none yet",
                fix="Give them to witness(...) first.",
            )
        digest, total = self._sums[round]
        self._check_witnesses(where, round, members, witnesses)
        self._count(where, round, members)
        partial = self._decrypt(share, total, round, digest, members)
        body = _set_bytes(members) + messages.residues_to_bytes(
            self.plan.packing.transport, partial
        )
        return self.session.write(self._signer, PARTIAL, self.number, body, round=round)

    def close(self) -> None:
        """Forget the share; what is in the folder stays. It answers nothing any more."""
        self.closed, self._share, self._sums = True, None, {}
        if self._rounds is not None:
            self._rounds.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "ready" if self._confirmations else "without a key"
        return f"ShareHolder({self.number} of {self.plan.openings.num_parties}, {state})"

    # -- the sum -----------------------------------------------------------------------------

    def _sum(self, payloads: Sequence[bytes]) -> np.ndarray:
        return self._keep_sum(sum_ciphertexts(self.plan.packing, self.key_id, payloads))

    def _sum_of_total(self, payload: bytes, num_clients: int) -> np.ndarray:
        return self._keep_sum(read_total(self.plan.packing, self.key_id, payload, num_clients))

    def _keep_sum(self, total: np.ndarray) -> np.ndarray:
        """Keep the sum of the latest round in memory, and return its digest for the record."""
        digest = sum_digest(total)
        self._sums = {self._asked: (digest, total)}
        return np.frombuffer(digest, "<u4")

    def _statement(self, round: int, bound: Any) -> bytes:
        digest = self._sums[round][0]
        if digest != bound.total.astype("<u4").tobytes():
            raise ResumeError(
                f"{self.name} in round {round}",
                need="the sum that it was given before",
                found="another one",
                fix="Begin a new run, with a new key.",
            )
        body = bound.submissions_digest + digest
        return self.session.write(self._signer, WITNESS, self.number, body, round=round)

    # -- an answer ---------------------------------------------------------------------------

    def _check_witnesses(self, where, round, members, witnesses) -> None:
        own = self._rounds.opened(round).submissions_digest + self._sums[round][0]
        agreed = set()
        for content in witnesses:
            message = self.session.read(content, WITNESS, round=round, body_bytes=_WITNESS_BYTES)
            if message.body != own:
                raise OpeningError(
                    where,
                    need="holders who were all given the same submissions",
                    found=f"holder {message.sender}, who was given others",
                    fix="Give every holder the same submissions; a round opens one sum.",
                )
            agreed.add(message.sender)
        missing = set(members) - agreed
        if missing or len(agreed) < self.plan.witnesses:
            raise OpeningError(
                where,
                need=f"statements of {self.plan.witnesses} holders and of all who are active, that "
                "they were given the same submissions",
                found=f"those of {sorted(agreed)}",
                fix="Collect them with witness(...) first.",
            )

    def _count(self, where: str, round: int, members: tuple[int, ...]) -> None:
        """Note the answer before it is made; refuse it where none is left."""
        folder = self.setting.folder
        with _locked(folder):
            if folder is not None:  # another process may have answered meanwhile
                self._answered |= _answers_in(folder)
            if (round, members) in self._answered:
                return
            if self.openings_left < 1:
                raise OpeningError(
                    where,
                    need="an opening that is left",
                    found=f"all {self.plan.openings.max_openings} used up",
                    fix="Begin a new run, with a new key; more max_openings need more noise.",
                )
            if folder is not None:
                name = f"answer-{round:06d}-{'.'.join(map(str, members))}"
                write_durably(folder / name, b"")
            self._answered.add((round, members))

    def _decrypt(self, share, total, round, digest, members) -> np.ndarray:
        transport, polynomials = self.plan.packing.transport, self.plan.packing.num_polynomials
        about = (self.key_id, round.to_bytes(8, "little"), digest, _set_bytes(members))
        flooding = self.plan.flooding
        flood_words = _words(
            derive(share.flood_key, b"flood", *about),
            threshold.flood_words_needed(transport, flooding, polynomials),
        )
        partial = threshold.partially_decrypt(
            transport,
            share.share,
            threshold.lagrange_coefficient(transport, self.number, members),
            total[1],
            threshold.flood(transport, flooding, polynomials, flood_words),
        )
        for other in members:
            if other != self.number:
                mask_words = _words(
                    derive(share.pair_keys[other], b"mask", *about),
                    threshold.mask_words_needed(transport, polynomials),
                )
                negative = self.number > other
                partial = threshold.mask(transport, partial, mask_words, negative=negative)
        return np.asarray(partial)

    # -- the folder --------------------------------------------------------------------------

    def _running(self) -> OnceOpener:
        if self.closed or self._rounds is None:
            raise PartyError(
                f"asking {self.name}",
                need="a share holder that is there",
                found="one that is closed" if self.closed else "one whose key is not confirmed",
                fix="Set the run up again with its folder, or ask the other holders.",
            )
        return self._rounds

    def _begin(self, confirmations: list[bytes]) -> None:
        self._confirmations = confirmations
        self._store()
        self._serve()

    def _serve(self) -> None:
        folder = self.setting.folder
        setting = dataclasses.replace(self.setting, folder=folder and folder / "rounds")
        self._rounds = OnceOpener(
            setting,
            self.key_id,
            self._sum,
            open_sum=self._sum_of_total,
        )

    def _store(self) -> None:
        if self.setting.folder is None:
            return
        assert self._share is not None
        content = msgpack.packb(
            {
                "version": _FILE_VERSION,
                "number": self.number,
                "run": self.setting.run,
                "plan": self.plan.digest,
                "holders": list(self.session.holders),
                "identity": self._identity,
                "share": messages.residues_to_bytes(self.plan.packing.transport, self._share.share),
                "pair_keys": [list(pair) for pair in self._share.pair_keys.items()],
                "flood_key": self._share.flood_key,
                "public_key": self._share.public_key,
                "confirmations": self._confirmations,
            }
        )
        assert content is not None
        self.setting.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self.setting.folder / _FILE, hashlib.sha256(content).digest() + content)

    def _restore(self) -> bool:
        folder = self.setting.folder
        if folder is None or not (folder / _FILE).exists():
            return False
        fields = _read_file(folder / _FILE, self.name)
        wanted = {
            "number": self.number,
            "run": self.setting.run,
            "plan": self.plan.digest,
        }
        for what, value in wanted.items():
            if fields[what] != value:
                raise ResumeError(
                    f"restoring {self.name}",
                    need=f"a share of this {what}",
                    found=f"one of another {what}",
                    fix="Resume with the arguments that the run began with.",
                )
        self._identity = fields["identity"]
        self._signer = Signer(self._identity)
        transport = self.plan.packing.transport
        self._session = Session(self.setting.run, self.plan.digest, tuple(fields["holders"]))
        self._share = KeyShare(
            share=messages.residues_from_bytes(transport, 1, fields["share"]),
            pair_keys={int(other): key for other, key in fields["pair_keys"]},
            flood_key=fields["flood_key"],
            public_key=fields["public_key"],
        )
        self._confirmations = fields["confirmations"]
        self._answered = _answers_in(folder)
        if self._confirmations:
            self._serve()
        return True


def set_of(body: bytes) -> tuple[int, ...]:
    """The active set that a partial decryption is for: the numbers of the bits that are set."""
    bits = int.from_bytes(body[:8], "little")
    return tuple(number for number in range(1, 65) if bits >> (number - 1) & 1)


def _set_bytes(members: Sequence[int]) -> bytes:
    return sum(1 << (member - 1) for member in members).to_bytes(8, "little")


def _words(key: bytes, count: int) -> np.ndarray:
    return np.asarray(host_words(key, count), np.uint32)


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """One at a time, among the threads and processes that share the folder."""
    if folder is None:
        yield
        return
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _answers_in(folder: Path) -> set[tuple[int, tuple[int, ...]]]:
    """The answers that were counted; one that a crash left half written was never made."""
    names = (_ANSWER.fullmatch(path.name) for path in folder.glob("answer-*"))
    return {(int(name[1]), tuple(map(int, name[2].split(".")))) for name in names if name}


def _read_file(path: Path, name: str) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError
        fields = msgpack.unpackb(content[32:])
        if fields["version"] != _FILE_VERSION:
            raise ValueError
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException):
        raise ResumeError(
            f"restoring {name}",
            need="a whole key file of this version",
            found="one that cannot be read",
            fix="Restore this file alone from a backup: an old copy of the folder has forgotten "
            "later rounds. Without it the other holders can go on if they are enough.",
        ) from None
    return fields
