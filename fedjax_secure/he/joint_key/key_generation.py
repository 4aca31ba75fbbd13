"""How holders make a joint key of which none ever has the secret, by messages only.

1. Every holder sends an X25519 key for this key generation, and commits to a coin.
2. All coins are shown. Their hash gives the common `a`: nobody chose it.
3. Every holder makes its secret s_i and commits to its key part b_i = e_i - a s_i.
4. All key parts are shown; their sum is the public key. Nobody could choose its part in the light
   of the others', and so cancel them. Each holder seals a Shamir share of s_i for every other.
5. Each adds up its shares, keeps the sum, and confirms what it has seen and the key's id.
6. Where all confirmations agree, the key is in use.

Sources: Mouchet et al. (ePrint 2020/304), collective public key; Mouchet, Bertrand, Hubaux (ePrint
2022/780), section 4, sharing; coin by commitment: Blum, CRYPTO 1981.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedjax_kernels import rlwe, threshold

from ...core import OpeningError, Signer
from ...core.randomness import host_words
from .. import wire
from . import messages
from .messages import (
    COIN,
    COMMIT,
    CONFIRM,
    EVERYONE,
    KEY_COMMIT,
    KEY_PART,
    SHARE,
    Message,
    Session,
    derive,
)

_WHERE = "the key generation"
#: What a step sends: (recipient or EVERYONE, bytes).
Outbox = list[tuple[int, bytes]]
#: A holder's part in the key generation: takes the messages of a step, gives those of the next.
Steps = Generator[Outbox, list[bytes], None]


@dataclasses.dataclass(frozen=True, repr=False)
class KeyShare:
    """What one holder keeps of a joint key.

    Attributes:
        share: uint32 [limb, N, 1], its share of the joint secret, as ciphertexts travel.
        pair_keys: the 256-bit key it has with every other holder, for masks.
        flood_key: 256 bits from which its floods come.
        public_key: the joint public key as bytes.
    """

    share: np.ndarray
    pair_keys: dict[int, bytes]
    flood_key: bytes
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the public key."""
        return wire.key_id_of(self.public_key)

    def __repr__(self) -> str:
        return f"KeyShare(key_id={self.key_id.hex()[:16]}, hidden)"


def make_key(
    session: Session,
    number: int,
    signer: Signer,
    seed: bytes,
    params: rlwe.Parameters,
    threshold_parties: int,
    *,
    keep: Callable[[KeyShare], None],
    confirmed: Callable[[list[bytes]], None],
) -> Steps:
    """One holder's part in making the key, as a generator that is sent each step's messages.

    Args:
        session: the run, the plan and the holders.
        number: this holder's, from 1.
        signer: this holder's key.
        seed: 32 fresh secret bytes, used for nothing else.
        params: the set under which clients encrypt.
        threshold_parties: t.
        keep: called with the share before it is confirmed to the others.
        confirmed: called with all confirmations when they agree.

    Yields:
        What to send next.

    Raises:
        OpeningError: a message is missing, wrong, or not what was committed to, or holders have
            seen different things. The key is then not used.
    """
    count = len(session.holders)
    transport = params.transport
    transcript = hashlib.sha256()

    def send(kind: int, body: bytes, recipient: int = EVERYONE) -> tuple[int, bytes]:
        return recipient, session.write(signer, kind, number, body, recipient=recipient)

    def receive(kind: int, own: tuple[int, bytes], inbox: list[bytes], size: int) -> list[bytes]:
        """Everybody's message of a step, in the order of numbers; all go into the transcript."""
        found = {}
        for content in [own[1], *inbox]:
            message = session.read(content, kind, body_bytes=size)
            _require_one(message, found)
            found[message.sender] = message.body
        _require_all(found, range(1, count + 1))
        for sender in range(1, count + 1):
            transcript.update(bytes([kind, sender]) + hashlib.sha256(found[sender]).digest())
        return [found[sender] for sender in range(1, count + 1)]

    def words(purpose: bytes, needed: int) -> np.ndarray:
        return host_words(derive(seed, purpose), needed).astype(np.uint32)

    own_dh = X25519PrivateKey.from_private_bytes(derive(seed, b"x25519"))
    coin = derive(seed, b"coin")
    own = send(COMMIT, own_dh.public_key().public_bytes_raw() + _commitment(number, coin))
    inbox = yield [own]
    bodies = receive(COMMIT, own, inbox, 64)
    dh_keys, commitments = [body[:32] for body in bodies], [body[32:] for body in bodies]

    own = send(COIN, coin)
    inbox = yield [own]
    coins = receive(COIN, own, inbox, 32)
    _require_committed(commitments, coins)
    public = hashlib.sha256(session.id + b"".join(coins)).digest()
    common = host_words(public, threshold.common_words_needed(params)).astype(np.uint32)
    a = np.asarray(threshold.common_part(params, common))
    needed = threshold.contribution_words_needed(params)
    secret, b = threshold.contribute(params, a, words(b"contribution", needed))
    part = messages.residues_to_bytes(params, np.asarray(b))

    own = send(KEY_COMMIT, _commitment(number, part))
    inbox = yield [own]
    commitments = receive(KEY_COMMIT, own, inbox, 32)

    needed = threshold.share_words_needed(transport, threshold_parties)
    shares = np.asarray(
        threshold.share(
            transport,
            secret,
            words(b"sharing", needed),
            threshold=threshold_parties,
            num_parties=count,
        )
    )
    own = send(KEY_PART, part)
    outbox = [own]
    for other in range(1, count + 1):
        if other != number:
            key = messages.agree(session, own_dh, dh_keys[other - 1], "share", number, other)
            body = messages.residues_to_bytes(transport, shares[other - 1])
            outbox.append(send(SHARE, messages.seal(key, body), other))
    inbox = yield outbox
    sealed_bytes = messages.residues_bytes(transport, 1) + 16
    to_all = [content for content in inbox if _kind_of(content) != SHARE]
    parts = receive(KEY_PART, own, to_all, len(part))
    _require_committed(commitments, parts)
    dealt = {number: shares[number - 1]}
    for content in inbox:
        if _kind_of(content) == SHARE:
            message = session.read(content, SHARE, recipient=number, body_bytes=sealed_bytes)
            _require_one(message, dealt)
            sender = message.sender
            key = messages.agree(session, own_dh, dh_keys[sender - 1], "share", sender, number)
            body = messages.unseal(key, message.body, sender)
            dealt[sender] = messages.residues_from_bytes(transport, 1, body)
    _require_all(dealt, range(1, count + 1))

    all_parts = np.stack([messages.residues_from_bytes(params, 1, part) for part in parts])
    joint = threshold.joint_public_key(params, a, all_parts)
    pair_keys = {
        other: messages.agree(
            session, own_dh, dh_keys[other - 1], "masks", *sorted((number, other))
        )
        for other in range(1, count + 1)
        if other != number
    }
    stacked = np.stack([dealt[sender] for sender in range(1, count + 1)])
    kept = KeyShare(
        share=np.asarray(threshold.add_shares(transport, stacked)),
        pair_keys=pair_keys,
        flood_key=derive(seed, b"flood"),
        public_key=wire.public_key_to_bytes(params.name, joint),
    )
    keep(kept)
    own = send(CONFIRM, transcript.digest() + kept.key_id)
    inbox = yield [own]
    confirmations = [own[1], *inbox]
    require_confirmed(session, confirmations, kept.key_id)
    confirmed(confirmations)


def require_confirmed(session: Session, confirmations: Iterable[bytes], key_id: bytes) -> None:
    """Check that all holders confirmed the same key and the same messages before it.

    Args:
        session: the session.
        confirmations: one message of every holder.
        key_id: the key's id.

    Raises:
        OpeningError: one is missing or wrong, or they differ.
    """
    found: dict[int, bytes] = {}
    for content in confirmations:
        message = session.read(content, CONFIRM, body_bytes=64)
        _require_one(message, found)
        found[message.sender] = message.body
    _require_all(found, range(1, len(session.holders) + 1))
    if len(set(found.values())) != 1 or found[1][32:] != key_id:
        raise OpeningError(
            _WHERE,
            need="holders who have all seen the same messages and key",
            found="confirmations that differ",
            fix="Begin the key generation again; whoever carried the messages altered them.",
        )


def run_key_generation(steps: dict[int, Steps]) -> None:
    """Carry the messages of a key generation among holders in one process.

    Args:
        steps: every holder's generator, by number.

    Raises:
        OpeningError: a holder refused what it was sent.
    """
    outboxes = {number: next(part) for number, part in steps.items()}
    while outboxes:
        sent = outboxes
        outboxes = {}
        for number, part in steps.items():
            inbox = [
                content
                for sender, outbox in sent.items()
                for recipient, content in outbox
                if sender != number and recipient in (EVERYONE, number)
            ]
            try:
                outboxes[number] = part.send(inbox)
            except StopIteration:
                continue


def _commitment(number: int, content: bytes) -> bytes:
    return hashlib.sha256(bytes([number]) + content).digest()


def _kind_of(content: bytes) -> int | None:
    return content[10] if len(content) > 10 else None


def _require_one(message: Message, found: dict) -> None:
    if message.sender in found:
        raise OpeningError(
            _WHERE,
            need="one message a holder and step",
            found=f"two of holder {message.sender}",
            fix="Begin the key generation again.",
        )


def _require_all(found: dict, numbers: Iterable[int]) -> None:
    missing = [number for number in numbers if number not in found]
    if missing:
        raise OpeningError(
            _WHERE,
            need="a message of every holder",
            found=f"none of holder {missing[0]}",
            fix="All holders have to take part in making the key; begin again.",
        )


def _require_committed(commitments: list[bytes], contents: list[bytes]) -> None:
    for number, (commitment, content) in enumerate(zip(commitments, contents, strict=True), 1):
        if _commitment(number, content) != commitment:
            raise OpeningError(
                _WHERE,
                need="what was committed to",
                found=f"something else of holder {number}",
                fix="Begin the key generation again, without that holder.",
            )
