"""Where secret randomness comes from, and how a stage draws from it.

The host supplies one 256-bit key per purpose, client and round (a :class:`Source`); the device
expands it with ChaCha20 (RFC 8439) into as many words as the stages need (a :class:`Stream`).
Nothing secret is ever drawn from threefry or another generator without a cryptographic claim.

Two sources exist. :class:`SecureSource` asks the operating system for fresh keys and is not
reproducible. :class:`SeededSource` derives every key from a seed, so that a simulation repeats;
whoever knows the seed knows every secret, so everything it makes is labelled "simulation".
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_kernels import chacha

from .errors import ParameterError

Mode = Literal["secure", "seeded"]

KEY_BYTES = 32


class Source(Protocol):
    """Supplies 256-bit keys. ``mode`` says whether they are fresh or derived from a seed."""

    mode: Mode

    def key(self, purpose: str, *, round: int = 0, client: str = "") -> bytes:
        """32 secret bytes for one purpose, round and client."""
        ...


class SecureSource:
    """Fresh keys from the operating system's generator; never the same twice.

    Example:
        >>> source = SecureSource()
        >>> source.key("noise", round=1, client="a") == source.key("noise", round=1, client="a")
        False
    """

    mode: Mode = "secure"

    def key(self, purpose: str, *, round: int = 0, client: str = "") -> bytes:
        """32 fresh bytes; the arguments do not influence them."""
        return os.urandom(KEY_BYTES)

    def __repr__(self) -> str:
        return "SecureSource()"


class SeededSource:
    """Keys derived from a seed by HKDF-SHA-256 (RFC 5869): for simulation only.

    Args:
        seed: an integer from 0 to 2^64 - 1.

    Guarantees:
        The same (seed, purpose, round, client) gives the same key on every machine. There is no
        secrecy: anyone who knows the seed can remove every noise and open every ciphertext.

    Raises:
        ParameterError: the seed is not an integer in range.

    Example:
        >>> source = SeededSource(7)
        >>> source.key("noise", round=1, client="a") == source.key("noise", round=1, client="a")
        True
        >>> source.key("noise", round=1, client="a") == source.key("noise", round=2, client="a")
        False
    """

    mode: Mode = "seeded"

    def __init__(self, seed: int):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ParameterError(
                "SeededSource", need="an integer seed from 0 to 2**64 - 1", found=repr(seed),
                fix="Give a whole number such as seed=0.",
            )
        self.seed = seed

    def key(self, purpose: str, *, round: int = 0, client: str = "") -> bytes:
        """32 bytes that depend on the seed and on every argument."""
        parts = (purpose.encode(), round.to_bytes(8, "little"), client.encode())
        info = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        kdf = HKDF(hashes.SHA256(), KEY_BYTES, salt=b"fedjax_secure/seeded/1", info=info)
        return kdf.derive(self.seed.to_bytes(8, "little"))

    def __repr__(self) -> str:
        return f"SeededSource({self.seed})"


def source(seed: int | None = None) -> Source:
    """The source for a run: fresh secrets, or a simulation's when a seed is given.

    Example:
        >>> source().mode, source(0).mode
        ('secure', 'seeded')
    """
    return SecureSource() if seed is None else SeededSource(seed)


def host_words(key: bytes, num_words: int) -> np.ndarray:
    """Expand a 256-bit key on the host: the ChaCha20 keystream (nonce and counter zero).

    Args:
        key: 32 bytes, used for nothing else.
        num_words: how many 32-bit words.

    Returns:
        uint32 [num_words].

    Example:
        >>> host_words(bytes(32), 2).tolist()
        [2917185654, 2419978656]
    """
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * num_words)), "<u4")


def host_shuffles(key: bytes, counts: np.ndarray, *, passes: int = 1) -> np.ndarray:
    """Random orders of many groups at once, without a loop over them.

    Each place of each group gets random bits; (group, bits, place) is packed into one 64-bit word,
    and one sort puts every group in random order.

    Args:
        key: 32 bytes, used for nothing else.
        counts: int [groups], how many members each group has.
        passes: how many independent orders of everything.

    Returns:
        int64 [passes, sum(counts)]: group after group, the places 0 to count - 1 in random order.

    Guarantees:
        The same on every machine. Places have at least 32 random bits each as long as groups x
        largest group is at most 2^32; members with equal bits keep their order.

    Raises:
        ParameterError: groups x largest group above 2^56, where too few bits would be random.

    Example:
        >>> host_shuffles(bytes(32), np.array([3, 0, 2])).tolist()
        [[2, 1, 0, 1, 0]]
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    place_bits = max(int(counts.max(initial=1)) - 1, 0).bit_length()
    group_bits = max(len(counts) - 1, 0).bit_length()
    random_bits = 64 - place_bits - group_bits
    if random_bits < 8:
        raise ParameterError(
            "host_shuffles", need="groups x largest group up to 2**56",
            found=f"{len(counts)} groups, the largest of {counts.max()}",
            fix="Shuffle fewer groups at a time.")
    starts = np.cumsum(counts) - counts
    place = np.arange(total, dtype=np.uint64) - np.repeat(starts, counts).astype(np.uint64)
    packed = host_words(key, 2 * passes * total).view("<u8").reshape(passes, total)
    packed = packed >> np.uint64(64 - random_bits) << np.uint64(place_bits) | place
    if group_bits:
        groups = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        packed |= groups << np.uint64(64 - group_bits)
    packed.sort(axis=1)
    return (packed & np.uint64((1 << place_bits) - 1)).astype(np.int64)


def device_keys(keys: list[bytes]) -> np.ndarray:
    """Keys as the device takes them: uint32 [clients, 8], little-endian words (RFC 8439)."""
    return np.stack([np.frombuffer(key, "<u4") for key in keys]).astype(np.uint32)


class Stream(NamedTuple):
    """One stage's keystream for one value: a ChaCha20 key and the first two nonce words.

    The nonce is (stage, slot, draw): the stage's place in the chain, the record's place in its
    client's draw (0 for a client's own value), and the number of the draw within the stage. So no
    two draws under one key ever share a keystream.
    """

    key: jax.Array
    stage: int
    slot: jax.Array | int = 0

    def nonce(self, draw: int = 0) -> jax.Array:
        """``uint32 [3]``, for a kernel that expands the key itself; stands for one draw."""
        return jnp.stack([jnp.asarray(w, jnp.uint32) for w in (self.stage, self.slot, draw)])

    def words(self, num_words: int, *, draw: int = 0) -> jax.Array:
        """``uint32 [num_words]`` of keystream; each ``draw`` number is to be used once."""
        return chacha.keystream(self.key, self.nonce(draw), num_words)
