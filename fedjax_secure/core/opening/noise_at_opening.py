"""Noise that whoever opens a sum adds to it, once a round, and the keys it is drawn with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import OpeningError
from ..randomness import KEY_BYTES, Source, device_keys
from .durable import write_durably

#: What the key for noise that is drawn when a sum is opened is asked for.
AT_OPENING = "noise at opening"


class Releases:
    """What whoever opens sums does to each before anybody else sees it: adds noise, once a round.

    Noise that is correlated over rounds depends on what was drawn in earlier ones. That memory is
    secret: with it, noise could be taken off again. So it is in no record and in no state that
    users see, but here, with the opener; on disk there are only the keys that it is made of again
    after a restart, in the opener's private folder.

    A round's noise is a function of a key, drawn before clients make their messages and kept in
    that folder, and of the messages' digest (HKDF-SHA-256, RFC 5869). So two copies of a folder in
    which a round is under way come to one noised sum, not to two whose mean has less noise; and
    other messages of the round get noise that has nothing to do with it.

    Args:
        release: ``(key, total[, memory]) -> total`` or ``(total, memory)``.
        first: ``dim -> memory`` before the first round; None where nothing is remembered.
        source: where each round's key comes from.
        folder: where keys are kept; None keeps them in memory only. Keys derived from a seed are
            derived again, and need no keeping.

    Guarantees:
        A key is on disk before its noise is drawn. It is deleted once the round's result is
        stored, except where a memory is made of it. Of rounds with a memory, one without the keys
        of all rounds before it is refused, as is one before the last that was released.

    Raises:
        OpeningError: keys are missing or damaged, or rounds are out of order.

    Example:
        >>> from fedjax_secure.core import source
        >>> def running(key, total, memory):  # no noise: it only remembers
        ...     return total + memory, total + memory
        >>> releases = Releases(running, lambda dim: np.zeros(dim), source(0))
        >>> [releases(round, np.ones(1)).tolist() for round in (1, 2)]
        [[1.0], [2.0]]
    """

    FILE = "noise-keys"

    def __init__(self, release: Callable[..., Any], first: Callable[[int], Any] | None,
                 source: Source, folder: Path | None = None):
        self._release, self._first, self._source = release, first, source
        self._path = None if folder is None else folder / self.FILE
        self._keys: list[bytes] = []
        self._pending: dict[int, bytes] = {}
        self._done, self._memory = 0, None

    def prepare(self, round: int) -> None:
        """Draw a round's key, unless it is there."""
        if self._source.mode == "seeded" or self.prepared(round):
            return
        key = self._source.key(AT_OPENING, round=round)
        if self._path is None:
            self._pending[round] = key
        else:
            write_durably(self._pending_path(round), key)

    def prepared(self, round: int) -> bool:
        """Whether a round's key is there."""
        return self._source.mode == "seeded" or self._pending_key(round) is not None

    def forget(self, round: int) -> None:
        """Delete a round's key, now that what it made is stored."""
        self._pending.pop(round, None)
        if self._path is not None:
            self._pending_path(round).unlink(missing_ok=True)

    def _pending_key(self, round: int) -> bytes | None:
        if self._path is None:
            return self._pending.get(round)
        path = self._pending_path(round)
        content = path.read_bytes() if path.exists() else b""
        return content if len(content) == KEY_BYTES else None

    def _pending_path(self, round: int) -> Path:
        assert self._path is not None
        return self._path.with_name(f"noise-key-{round:06d}")

    def _key(self, round: int, submissions_digest: bytes) -> bytes:
        """The key of a round's noise."""
        if self._source.mode == "seeded":
            return self._source.key(AT_OPENING, round=round)
        self.prepare(round)
        drawn = self._pending_key(round)
        assert drawn is not None
        info = round.to_bytes(8, "little") + submissions_digest
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=b"fedjax_secure/noise/1",
                    info=info).derive(drawn)

    def __call__(self, round: int, total: np.ndarray, submissions_digest: bytes = b"",
                 ) -> np.ndarray:
        """The sum of a round with its noise, of the same shape and dtype."""
        if self._first is None:
            key = self._key(round, submissions_digest)
            return np.asarray(self._release(device_keys([key])[0], total))
        total = np.asarray(total)  # wherever it lies: else the memory follows it, and recompiles
        before = self._before(round)
        if self._memory is None or self._done != round - 1:
            self._memory, nothing = self._first(total.shape[0]), np.zeros_like(total)
            for past in before:
                _, self._memory = self._release(device_keys([past])[0], nothing, self._memory)
        key = self._key(round, submissions_digest)
        self._keep([*before, key])
        noised, self._memory = self._release(device_keys([key])[0], total, self._memory)
        self._done = round
        return np.asarray(noised)

    def _before(self, round: int) -> list[bytes]:
        """The keys of all earlier rounds."""
        if self._source.mode == "seeded":
            return [self._source.key(AT_OPENING, round=past) for past in range(1, round)]
        keys = self._keys
        if self._path is not None:
            content = self._path.read_bytes() if self._path.exists() else bytes(32)
            body, check = content[:-32], content[-32:]
            whole = hashlib.sha256(body).digest() == check and len(body) % KEY_BYTES == 0
            keys = [body[k:k + KEY_BYTES] for k in range(0, len(body), KEY_BYTES)] if whole else []
        if not round - 1 <= len(keys) <= round:
            raise OpeningError(
                f"the noise of round {round}", need=f"the keys of the noise of {round - 1} rounds "
                "before it, and of none after it", found=f"{len(keys)}", fix="Restore the opener's "
                "folder as it was after the last finished round, or begin a new run.")
        return keys[:round - 1]  # one more is that of a round whose sum nobody has seen

    def _keep(self, keys: list[bytes]) -> None:
        self._keys = keys
        if self._path is not None and self._source.mode != "seeded":
            body = b"".join(keys)
            write_durably(self._path, body + hashlib.sha256(body).digest())

    def __repr__(self) -> str:
        return f"Releases(after round {self._done})"
