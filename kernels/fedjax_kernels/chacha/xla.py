"""ChaCha20 in plain JAX: sixteen arrays over the blocks, so that every step is elementwise.

The twenty rounds are a loop of ten double rounds. Unrolled, they ran no faster on a CPU and took
seven times as long to compile. Blocks are made in chunks that stay in the cache, and `jax.vmap`
adds streams to a chunk rather than making chunks larger: without that rule, 64 streams of
65,536 words took three times as long.

How long a chunk is best depends on the version of jax; why was not looked into, and no version
between these two was measured. Least CPU ms for 2^20 words on one core of a Xeon at 2.5 GHz:

    blocks of a chunk      128   256   384   512   768  1024  2048  4096
    jax 0.12               5.1   4.8   6.7   6.4   6.6   7.8   7.3   7.4
    jax 0.10              10.9  12.9  12.4   9.9   8.8   9.6   8.1   7.7
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

#: Blocks of a chunk: on a CPU, and elsewhere.
CPU_CHUNK_BLOCKS = 256 if jax.__version_info__ >= (0, 12) else 4_096
CHUNK_BLOCKS = 4_096

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
_QUARTER_ROUNDS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
_State = tuple[Array, ...]


def _rotate_left(value: Array, amount: int) -> Array:
    return (value << jnp.uint32(amount)) | (value >> jnp.uint32(32 - amount))


def _double_round(_: Array, state: _State) -> _State:
    words = list(state)
    for i, j, k, m in _QUARTER_ROUNDS:
        a, b, c, d = words[i], words[j], words[k], words[m]
        a = a + b
        d = _rotate_left(d ^ a, 16)
        c = c + d
        b = _rotate_left(b ^ c, 12)
        a = a + b
        d = _rotate_left(d ^ a, 8)
        c = c + d
        b = _rotate_left(b ^ c, 7)
        words[i], words[j], words[k], words[m] = a, b, c, d
    return tuple(words)


def _blocks(key: Array, nonce: Array, counter: Array, num_blocks: int) -> Array:
    """`num_blocks` successive blocks of each stream: `[streams, 16 * num_blocks]`."""
    streams = key.shape[0]
    counters = counter[:, None] + jnp.arange(num_blocks, dtype=jnp.uint32)
    # Under shard_map the loop's carry must have one type from its first step, so every word of the
    # state is tied to all three inputs. The term is always zero.
    zero = (key[:, :1] & 0) | (nonce[:, :1] & 0) | (counters & 0)
    columns = [
        *(jnp.uint32(constant) for constant in _CONSTANTS),
        *(key[:, i : i + 1] for i in range(8)),
        counters,
        *(nonce[:, i : i + 1] for i in range(3)),
    ]
    initial = tuple((zero + column).reshape(-1) for column in columns)
    state = lax.fori_loop(0, 10, _double_round, initial)
    words = jnp.stack([x + y for x, y in zip(state, initial, strict=True)], axis=-1)
    return words.reshape(streams, 16 * num_blocks)


def _in_chunks(
    key: Array, nonce: Array, counter: Array, *, num_blocks: int, chunk_blocks: int
) -> Array:
    streams = key.shape[0]
    if num_blocks <= chunk_blocks:
        groups = math.ceil(streams / (chunk_blocks // num_blocks))
        if groups <= 1:
            return _blocks(key, nonce, counter, num_blocks)
        size = math.ceil(streams / groups)

        def grouped(array: Array) -> Array:
            padding = [(0, groups * size - streams)] + [(0, 0)] * (array.ndim - 1)
            return jnp.pad(array, padding).reshape(groups, size, *array.shape[1:])

        words = lax.map(
            lambda group: _blocks(group[0], group[1], group[2], num_blocks),
            (grouped(key), grouped(nonce), grouped(counter)),
        )
        return words.reshape(groups * size, 16 * num_blocks)[:streams]

    chunks = math.ceil(num_blocks / chunk_blocks)
    size = math.ceil(num_blocks / chunks)

    def one_chunk(index: tuple[Array, Array]) -> Array:
        stream, chunk = index
        start = counter[stream] + chunk * jnp.uint32(size)
        return _blocks(key[stream][None], nonce[stream][None], start[None], size)[0]

    stream = jnp.repeat(jnp.arange(streams, dtype=jnp.uint32), chunks)
    chunk = jnp.tile(jnp.arange(chunks, dtype=jnp.uint32), streams)
    words = lax.map(one_chunk, (stream, chunk))
    return words.reshape(streams, chunks * size * 16)[:, : 16 * num_blocks]


@functools.cache
def _streams_of(num_blocks: int) -> Callable[[Array, Array, Array], Array]:
    """The function of `[streams, ...]` arrays under which `jax.vmap` only adds streams."""

    @custom_vmap
    def streams_of(key: Array, nonce: Array, counter: Array) -> Array:
        on = functools.partial(_in_chunks, num_blocks=num_blocks)
        if key.shape[0] * num_blocks <= min(CPU_CHUNK_BLOCKS, CHUNK_BLOCKS):
            return on(key, nonce, counter, chunk_blocks=CHUNK_BLOCKS)
        return lax.platform_dependent(
            *(key, nonce, counter),
            cpu=functools.partial(on, chunk_blocks=CPU_CHUNK_BLOCKS),
            default=functools.partial(on, chunk_blocks=CHUNK_BLOCKS),
        )

    @streams_of.def_vmap
    def _(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        merged = []
        for array, batched in zip(arrays, in_batched, strict=True):
            if not batched:
                array = jnp.broadcast_to(array, (axis_size, *array.shape))
            merged.append(array.reshape(-1, *array.shape[2:]))
        words = streams_of(*merged)
        return words.reshape(axis_size, -1, 16 * num_blocks), True

    return streams_of


@functools.partial(jax.jit, static_argnames="num_words")
def keystream(key: Array, nonce: Array, counter: Array, *, num_words: int) -> Array:
    """`[num_words] uint32` of one stream; the arguments are checked by the caller."""
    if num_words == 0:
        return jnp.zeros((0,), jnp.uint32)
    num_blocks = math.ceil(num_words / 16)
    words = _streams_of(num_blocks)(key[None], nonce[None], jnp.reshape(counter, (1,)))
    return words[0, :num_words]
