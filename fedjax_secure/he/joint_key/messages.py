"""Messages between share holders and the combiner: versioned, signed, and sealed where secret.

Layout, little-endian: the header (see `_FORMAT`), the body, the sender's Ed25519 signature (RFC
8032) over both, and BLAKE2b-256 (RFC 7693) over all that comes before. The header names kind,
session, sender, recipient and round, so no message passes for another; the session is a digest of
the run, the plan and the holders' public keys. The checksum tells damage from forgery.

A secret body is sealed for its recipient: X25519 (RFC 7748) of the two holders' keys of this key
generation, HKDF-SHA-256 (RFC 5869) bound to session, sender, recipient and purpose, then
ChaCha20-Poly1305 (RFC 8439). A sealing key is used for one message.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_kernels import rlwe

from ...core import OpeningError, Signer
from .. import wire

MAGIC = b"FSTHRESH"
VERSION = 1
EVERYONE = 0

COMMIT, COIN, KEY_COMMIT, KEY_PART, SHARE, CONFIRM, WITNESS, PARTIAL = range(1, 9)
_NAMES = {
    COMMIT: "a commitment to a coin",
    COIN: "a coin",
    KEY_COMMIT: "a commitment to a key part",
    KEY_PART: "a key part",
    SHARE: "a sealed share",
    CONFIRM: "a confirmation of the key",
    WITNESS: "a statement of what it was given to open",
    PARTIAL: "a partial decryption",
}
# magic, version, kind, sender, recipient, session, round, body length
_FORMAT = struct.Struct("<8sHBBB32sQQ")
_SIGNATURE_BYTES = 64
_CHECKSUM_BYTES = 32
_DOMAIN = b"fedjax_secure/threshold/1"


class Message(NamedTuple):
    """A message that was read and whose signature holds."""

    kind: int
    sender: int
    recipient: int
    round: int
    body: bytes


@dataclasses.dataclass(frozen=True)
class Session:
    """What every message of one joint key is bound to, and who may sign.

    Args:
        run: the run's id, 16 bytes.
        plan_digest: SHA-256 of the plan.
        holders: each share holder's Ed25519 public key, in the order of their numbers from 1.

    Example:
        >>> session = Session(bytes(16), bytes(32), (Signer(bytes(32)).public_key,))
        >>> len(session.id)
        32
    """

    run: bytes
    plan_digest: bytes
    holders: tuple[bytes, ...]

    @property
    def id(self) -> bytes:
        """SHA-256 of all of it."""
        return hashlib.sha256(
            b"".join([_DOMAIN, self.run, self.plan_digest, *self.holders])
        ).digest()

    def write(
        self,
        signer: Signer,
        kind: int,
        sender: int,
        body: bytes,
        *,
        recipient: int = EVERYONE,
        round: int = 0,
    ) -> bytes:
        """A message of a holder as bytes.

        Args:
            signer: the sender's key.
            kind: what it is.
            sender: the holder's number.
            body: what it says.
            recipient: a holder's number, or EVERYONE.
            round: the round; 0 while the key is made.

        Returns:
            The bytes.
        """
        header = _FORMAT.pack(MAGIC, VERSION, kind, sender, recipient, self.id, round, len(body))
        content = header + body
        content += signer.sign(_DOMAIN + content)
        return content + _checksum(content)

    def read(
        self,
        content: bytes,
        kind: int,
        *,
        sender: int | None = None,
        recipient: int = EVERYONE,
        round: int = 0,
        body_bytes: int | None = None,
    ) -> Message:
        """Read a message that must be of one kind, for one recipient and round.

        Args:
            content: the bytes.
            kind: what it must be.
            sender: who must have sent it; None for any holder.
            recipient: whom it must be for.
            round: the round it must be of.
            body_bytes: how long its body must be; None for any length.

        Returns:
            The message.

        Raises:
            OpeningError: it is cut, damaged, foreign, of another version, session, kind, sender,
                recipient, round or length, or its signature does not hold.
        """
        where, again = f"reading {_NAMES[kind]}", "Have it sent again."

        def refuse(need: str, found: str, fix: str = again) -> OpeningError:
            return OpeningError(where, need=need, found=found, fix=fix)

        fixed = _FORMAT.size + _SIGNATURE_BYTES + _CHECKSUM_BYTES
        if not isinstance(content, bytes) or len(content) < fixed:
            raise refuse("a whole message", "one cut short")
        magic, version, its_kind, its_sender, to, session, its_round, size = _FORMAT.unpack_from(
            content
        )
        if magic != MAGIC:
            raise refuse("a message between share holders", "foreign bytes")
        if version != VERSION:
            raise refuse(
                f"version {VERSION}", f"version {version}", "Use the same release everywhere."
            )
        if len(content) != fixed + size:
            raise refuse("a whole message", "one of another length")
        if _checksum(content[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:]:
            raise refuse("bytes that match their checksum", "damaged bytes")
        for what, holds in (
            ("session", session == self.id),
            ("kind", its_kind == kind),
            ("sender", 1 <= its_sender <= len(self.holders) and sender in (None, its_sender)),
            ("recipient", to == recipient),
            ("round", its_round == round),
            ("size", body_bytes in (None, size)),
        ):
            if not holds:
                raise refuse(f"one of this {what}", f"one of another {what}")
        signed = content[: _FORMAT.size + size]
        signature = content[_FORMAT.size + size : -_CHECKSUM_BYTES]
        try:
            key = Ed25519PublicKey.from_public_bytes(self.holders[its_sender - 1])
            key.verify(signature, _DOMAIN + signed)
        except (InvalidSignature, ValueError):
            raise refuse(
                f"a valid signature of holder {its_sender}", "one that does not verify"
            ) from None
        return Message(its_kind, its_sender, to, its_round, signed[_FORMAT.size :])


def agree(
    session: Session, own: X25519PrivateKey, other: bytes, purpose: str, sender: int, recipient: int
) -> bytes:
    """A 256-bit key that two holders have and nobody else, for one purpose and direction.

    Args:
        session: the session.
        own: one's own X25519 key of this key generation.
        other: the other's public key, 32 bytes.
        purpose: what the key is for.
        sender, recipient: the direction; for a key of both, the lower number first.

    Returns:
        32 bytes.

    Raises:
        OpeningError: the other's key is no usable point.

    Source: RFC 7748, section 6.1; RFC 5869.
    """
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise OpeningError(
            "the key generation",
            need="an X25519 key of every holder",
            found="one that leads to no shared secret",
            fix="Have that holder make a fresh key.",
        ) from None
    mine = own.public_key().public_bytes_raw()
    info = b"".join([_DOMAIN, purpose.encode(), bytes([sender, recipient]), *sorted((mine, other))])
    return HKDF(hashes.SHA256(), 32, salt=session.id, info=info).derive(shared)


def derive(secret: bytes, *parts: bytes) -> bytes:
    """A 256-bit key for one purpose, from a secret and a list of parts (HKDF-SHA-256)."""
    info = b"".join([_DOMAIN, *(struct.pack("<I", len(part)) + part for part in parts)])
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(secret)


def seal(key: bytes, body: bytes) -> bytes:
    """Encrypt and authenticate one message under a key that serves this message only."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), body, _DOMAIN)


def unseal(key: bytes, sealed: bytes, sender: int) -> bytes:
    """Undo :func:`seal`.

    Raises:
        OpeningError: it was sealed under another key, or altered.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, _DOMAIN)
    except InvalidTag:
        raise OpeningError(
            "opening a sealed share",
            need=f"one that holder {sender} sealed for this holder",
            found="one that does not open",
            fix="Begin the key generation again.",
        ) from None


def residues_bytes(params: rlwe.Parameters, polynomials: int) -> int:
    """How many bytes :func:`residues_to_bytes` makes."""
    count = params.ring_degree * polynomials
    return sum(wire.packed_bytes(count, q.bit_length()) for q in params.moduli.primes)


def residues_to_bytes(params: rlwe.Parameters, residues: np.ndarray) -> bytes:
    """uint32 [limb, N, polynomial] with as many bits a residue as its prime has."""
    content = bytearray(residues_bytes(params, residues.shape[-1]))
    start = 0
    for limb, q in zip(np.asarray(residues), params.moduli.primes, strict=True):
        stop = start + wire.packed_bytes(limb.size, q.bit_length())
        wire.pack_bits(limb.reshape(-1), q.bit_length(), memoryview(content)[start:stop])
        start = stop
    return bytes(content)


def residues_from_bytes(params: rlwe.Parameters, polynomials: int, content: bytes) -> np.ndarray:
    """Undo :func:`residues_to_bytes`.

    Raises:
        OpeningError: another length, or a residue that is not below its prime.
    """
    where = "reading a holder's residues"
    if len(content) != residues_bytes(params, polynomials):
        raise OpeningError(
            where, need="as many as planned", found="another number", fix="Plan alike everywhere."
        )
    residues = np.empty((params.num_limbs, params.ring_degree, polynomials), np.uint32)
    start = 0
    for limb, q in zip(residues, params.moduli.primes, strict=True):
        values = limb.reshape(-1)
        stop = start + wire.packed_bytes(values.size, q.bit_length())
        wire.unpack_bits(memoryview(content)[start:stop], q.bit_length(), values)
        wire.require_below(where, OpeningError, values, q)
        start = stop
    return residues


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
