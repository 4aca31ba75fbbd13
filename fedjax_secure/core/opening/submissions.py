"""What clients sign and send, what a run's openers know of it, and what comes of a round.

A client signs what it submits (Ed25519, RFC 8032), bound to the run, the round, the model it
answers and the key it encrypted under.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..errors import ResumeError
from ..randomness import Source
from ..spec import Aggregator

_DOMAIN = b"fedjax_secure/submission/1"


class Signer:
    """A client's Ed25519 signing key; ``repr`` shows the public half only.

    Args:
        secret: 32 secret bytes.

    Example:
        >>> len(Signer(bytes(32)).public_key)
        32
    """

    def __init__(self, secret: bytes):
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes of signature."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Signer(public_key={self.public_key.hex()})"


class StoredPayload:
    """A payload that lies in a file and is read only when it is needed.

    A thousand clients' ciphertexts need not be in memory at once.

    Args:
        path: the file.
        start: where the payload begins.
        size: its bytes.
        digest: its SHA-256.

    Raises:
        ResumeError: (from ``bytes``) the file does not hold these bytes any more.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"abcdef"), file.flush()
        ...     stored = StoredPayload(Path(file.name), 2, 3, hashlib.sha256(b"cde").digest())
        ...     bytes(stored), len(stored)
        (b'cde', 3)
    """

    def __init__(self, path: Path, start: int, size: int, digest: bytes):
        self.path, self.start, self.digest = path, start, digest
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                content = file.read(self._size)
        except OSError:
            content = b""
        if hashlib.sha256(content).digest() != self.digest:
            raise ResumeError("reading a stored payload", need="the bytes that were written",
                              found="others, or none", fix="Restore the run's folder from a "
                              "backup, or begin a new run.")
        return content

    def __repr__(self) -> str:
        return f"StoredPayload({self._size} bytes)"


@dataclasses.dataclass(frozen=True)
class Submission:
    """One client's signed message of one round.

    Attributes:
        client: the client's id.
        run: the run's id, 16 bytes.
        round: the round, from 1.
        model_digest: SHA-256 of the model that the update answers.
        key_id: SHA-256 of the public key the payload is encrypted under; zeros in the clear.
        payload: the encoded value, as its scheme's wire format has it; perhaps in a file.
        signature: Ed25519 over :meth:`statement`.
    """

    client: str
    run: bytes
    round: int
    model_digest: bytes
    key_id: bytes
    payload: bytes | StoredPayload = dataclasses.field(repr=False)
    signature: bytes = dataclasses.field(default=b"", repr=False)

    @functools.cached_property
    def payload_digest(self) -> bytes:
        """SHA-256 of the payload."""
        if isinstance(self.payload, StoredPayload):
            return self.payload.digest
        return hashlib.sha256(self.payload).digest()

    @property
    def num_bytes(self) -> int:
        """What the message takes on the wire: payload, ids, digests and signature."""
        fixed = len(self.run) + 8 + len(self.model_digest) + len(self.key_id)
        return len(self.payload) + len(self.client.encode()) + fixed + len(self.signature)

    def statement(self) -> bytes:
        """The signed bytes: every field, length-prefixed, under a domain of its own."""
        fields = (_DOMAIN, self.client.encode(), self.run, self.round.to_bytes(8, "little"),
                  self.model_digest, self.key_id, self.payload_digest)
        return b"".join(struct.pack("<I", len(field)) + field for field in fields)

    @property
    def statement_digest(self) -> bytes:
        """SHA-256 of the signed bytes: what the client commits to on the ledger."""
        return hashlib.sha256(self.statement()).digest()

    def signed(self, signer: Signer) -> Submission:
        """This submission with the client's signature; the payload is hashed once."""
        signed = dataclasses.replace(self, signature=signer.sign(self.statement()))
        vars(signed)["payload_digest"] = self.payload_digest
        return signed


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stages and openers need to know of a run when it is set up.

    Attributes:
        run: the run's id, 16 bytes.
        roster: each client's Ed25519 public key.
        min_clients: how many distinct clients a sum needs.
        source: where keys come from.
        folder: a private folder for the opener's keys and results; None keeps both in memory.
        aggregator: whether openers recompute the sum, or trust the aggregator's.
    """

    run: bytes
    roster: Mapping[str, bytes]
    min_clients: int
    source: Source
    folder: Path | None = None
    aggregator: Aggregator = "untrusted"


@dataclasses.dataclass(frozen=True)
class Opened:
    """An opened sum.

    Attributes:
        round: the round it belongs to.
        total: uint32 (ring elements) or float32, [dim].
        clients: whose submissions are in it, sorted.
        submissions_digest: SHA-256 over the signed statements, in the clients' order; of a sum
            that the aggregator made, over that sum, the model and the clients.
    """

    round: int
    total: np.ndarray
    clients: tuple[str, ...]
    submissions_digest: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the sum's little-endian bytes."""
        return hashlib.sha256(self.total.astype(self.total.dtype.newbyteorder("<")).tobytes()
                              ).digest()
