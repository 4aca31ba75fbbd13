"""ChaCha20 for GPUs: one thread makes one block, with its sixteen words in sixteen registers.

The twenty rounds touch no memory. The sixteen words of a thread are 64 contiguous bytes of the
stream, so written as they stand, one store of a warp would touch 32 places 64 bytes apart; they
pass through shared memory instead (17 words a block, which leaves no bank conflict on the way in)
and leave as whole 128-byte lines. The stream is written once and nothing is read but the key.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_kernels import mosaic

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
_WORDS = 16


def _rotate_left(value: Any, amount: int) -> Any:
    return (value << amount) | (value >> (32 - amount))


def _double_round(_: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
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


def blocks(seed: Any, counters: Any) -> list[Any]:
    """Sixteen vectors of words: one block a thread, with the block numbers `counters` [128].

    `seed` is a reference to [12] words: the key, the first counter (already in `counters`), the
    nonce.
    """
    zero = counters & 0  # so that every word of the loop's state has the layout of the counters
    initial = [
        *(zero + jnp.uint32(constant) for constant in _CONSTANTS),
        *(zero + seed[i] for i in range(8)),
        counters,
        *(zero + seed[9 + i] for i in range(3)),
    ]
    state = mosaic.repeat(0, 10, _double_round, tuple(initial))
    return [x + y for x, y in zip(state, initial, strict=True)]


def seed_words(key: Any, nonce: Any, counter: Any) -> jax.Array:
    """What :func:`blocks` reads: [12] uint32."""
    counter = jnp.asarray(counter, jnp.uint32)[None]
    return jnp.concatenate([jnp.asarray(key), counter, jnp.asarray(nonce)])


def write_rows(work: Any, gate: Any, out: Any, first: Any, columns: Sequence[Any]) -> None:
    """Writes thread i's words as row `first + i` of `out`, through shared memory [128, w + 1]."""
    width = len(columns)
    for i, column in enumerate(columns):
        mosaic.store(work.at[mosaic.indices(0, mosaic.THREADS), i], column)
    mosaic.meet(gate)
    rows = mosaic.THREADS // width
    layout = mosaic.tile(rows, width)
    for start in range(0, mosaic.THREADS, rows):
        value = mosaic.load(work.at[mosaic.indices(start, rows), mosaic.indices(0, width)], layout)
        place = out.at[mosaic.indices(first + start, rows), mosaic.indices(0, width)]
        mosaic.store(place, value)


@functools.partial(jax.jit, static_argnames=("num_words", "interpret"))
def keystream(key, nonce, counter, *, num_words, interpret=False):
    if num_words == 0:
        return jnp.zeros((0,), jnp.uint32)
    grid = -(-num_words // (_WORDS * mosaic.THREADS))

    def body(index, group, seed, out, work, gate):
        first = index[0] * mosaic.THREADS
        counters = mosaic.thread_numbers() + first.astype(jnp.uint32) + seed[8]
        write_rows(work, gate, out, first, blocks(seed, counters))

    words = mosaic.launch(
        body,
        name="chacha_keystream",
        out=jax.ShapeDtypeStruct((grid * mosaic.THREADS, _WORDS), jnp.uint32),
        grid=(grid,),
        scratch=(mosaic.shared((mosaic.THREADS, _WORDS + 1), jnp.uint32), mosaic.barrier(1)),
        warpgroups=1,
        interpret=interpret,
    )(seed_words(key, nonce, counter))
    return words.reshape(-1)[:num_words]
