"""The ChaCha20 keystream as a function of a key, a nonce and a counter."""

from __future__ import annotations

import operator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from fedjax_kernels import mosaic
from fedjax_kernels.chacha import reference, xla

Words = Array | np.ndarray
Implementation = Literal["xla", "pallas", "pallas_interpret", "reference"]
_MAX_BLOCKS = 1 << 32


def _refuse(what: str, need: str, found: str, fix: str) -> ValueError:
    return ValueError(f"{what} needs {need}, got {found}. {fix}")


def _shape(value: Words) -> tuple[int, ...]:
    return value.shape if hasattr(value, "shape") else np.shape(value)


def _words(name: str, value: Words, size: int) -> Words:
    shape, dtype = _shape(value), getattr(value, "dtype", None)
    if shape != (size,) or dtype != jnp.uint32:
        raise _refuse(
            f"keystream: `{name}`",
            f"uint32[{size}], the little-endian words of RFC 8439",
            f"{dtype or type(value).__name__}{list(shape)}",
            "Make a key with key_from_bytes(...), a nonce with "
            'numpy.frombuffer(twelve_bytes, "<u4").',
        )
    return value


def key_from_bytes(key: bytes) -> np.ndarray:
    """Reads a 256-bit key as the eight little-endian words that `keystream` takes.

    Args:
      key: 32 bytes, from the operating system or a key derivation.

    Returns:
      `[8] uint32`, on the host.

    Raises:
      ValueError: if there are not exactly 32 bytes. The message does not show them.

    Example:
      >>> from fedjax_kernels import chacha
      >>> chacha.key_from_bytes(bytes(range(32)))[0] == 0x03020100
      np.True_

    Source: RFC 8439, section 2.3.
    """
    if not isinstance(key, bytes | bytearray | memoryview) or len(bytes(key)) != 32:
        found = f"{len(key)} bytes" if isinstance(key, bytes | bytearray) else type(key).__name__
        raise _refuse("key_from_bytes", "32 bytes", found, "Make one with secrets.token_bytes(32).")
    return np.frombuffer(bytes(key), dtype="<u4").astype(np.uint32)


def keystream(
    key: Words,
    nonce: Words,
    num_words: int,
    *,
    counter: int | np.integer | Array | np.ndarray = 0,
    implementation: Implementation | None = None,
) -> Array:
    """Expands a secret key into random words with ChaCha20.

    Masks, lattice errors and privacy noise need randomness that nobody without the key can
    predict. JAX's own generators make no such claim. The host supplies one fresh 256-bit key, and
    this function expands it inside a compiled program. It is pure, and works under `jax.jit`,
    `jax.vmap`, `jax.shard_map` and inside loops; `jax.vmap` over keys costs the same per word.

    Guarantees: the words are exactly the ChaCha20 keystream, the same on every platform, with
      x64 on or off. The running time and the memory addresses do not depend on the key. A pair of
      key and nonce must never be used for two purposes, nor with overlapping counters: that
      would repeat the words.

    Args:
      key: `[8] uint32`, secret. See `key_from_bytes`. May be traced.
      nonce: `[3] uint32`, public and distinct for each use of one key. May be traced.
      num_words: how many words, a Python integer, at most 16 * 2^32.
      counter: the number of the first block of 16 words, an integer below 2^32. May be traced; a
        traced counter that passes 2^32 wraps to 0 and repeats blocks, so keep it small enough.
      implementation: "xla"; "pallas", the GPU kernel, for compute capability 9.0 or newer;
        "pallas_interpret", the same kernel in JAX's GPU interpreter; or "reference" (Python
        integers, slow, not traceable). None picks the fastest that runs here.

    Returns:
      `[num_words] uint32`. Word i is word i mod 16 of block counter + i // 16.

    Raises:
      ValueError: if a shape, a dtype or the implementation's name is wrong, if the blocks would
        pass the 32-bit counter, or if the reference is given traced values.

    Example:
      >>> import jax, numpy as np
      >>> from fedjax_kernels import chacha
      >>> key = chacha.key_from_bytes(bytes(32))
      >>> nonce = np.zeros(3, np.uint32)
      >>> [hex(word) for word in chacha.keystream(key, nonce, 2).tolist()]
      ['0xade0b876', '0x903df1a0']
      >>> keys = np.stack([key, key + np.uint32(1)])
      >>> jax.vmap(lambda k: chacha.keystream(k, nonce, 100))(keys).shape
      (2, 100)

    Source: RFC 8439, sections 2.3 and 2.4.
    """
    key, nonce = _words("key", key, 8), _words("nonce", nonce, 3)
    try:
        num_words = operator.index(num_words)
    except TypeError:
        num_words = -1
    if num_words < 0:
        raise _refuse(
            "keystream: `num_words`",
            "a non-negative Python integer",
            "something else",
            "Mark it static where the call is traced.",
        )
    num_blocks = -(-num_words // 16)
    concrete = isinstance(counter, int | np.integer)
    if concrete:
        first = int(counter)
        if first < 0:
            raise _refuse("keystream: `counter`", "a non-negative integer", str(first), "Use 0.")
    else:
        first = 0
        shape = _shape(counter)
        if shape != () or getattr(counter, "dtype", None) != jnp.uint32:
            raise _refuse(
                "keystream: `counter`",
                "a Python integer or a uint32 scalar",
                f"{getattr(counter, 'dtype', type(counter).__name__)}{list(shape)}",
                "Convert it with jnp.uint32(...).",
            )
    if first + num_blocks > _MAX_BLOCKS:
        raise _refuse(
            "keystream",
            "counter + ceil(num_words / 16) of at most 2^32, where the block counter would wrap "
            "and repeat words",
            str(first + num_blocks),
            "Take a fresh nonce for the rest.",
        )
    kernels = mosaic.kernels(implementation, xla.__package__)
    if kernels or implementation in (None, "xla"):
        # num_blocks = 0 allows counter = 2^32, which no block then uses.
        start = jnp.uint32(first % _MAX_BLOCKS) if concrete else counter
        return (kernels or xla).keystream(key, nonce, start, num_words=num_words)
    if implementation == "reference":
        if any(isinstance(value, Tracer) for value in (key, nonce, counter)):
            raise _refuse(
                'keystream: implementation="reference"',
                "concrete arrays",
                "traced ones",
                'Use implementation="xla" under jit or vmap.',
            )
        words = reference.keystream(
            np.asarray(key), np.asarray(nonce), num_words, counter=int(counter)
        )
        return jnp.asarray(words)
    raise _refuse(
        "keystream: `implementation`",
        'None, "xla", "pallas", "pallas_interpret" or "reference"',
        repr(implementation),
        "Leave it out for the fastest one.",
    )
