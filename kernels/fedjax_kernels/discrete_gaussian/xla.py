"""The discrete Gaussian sampler in plain JAX, with 32-bit integers only.

A binary search on the top words of the thresholds settles a draw, unless its top word equals that
of a threshold. Then the whole chunk is searched again with all 128 bits. At sigma 100 this happens
to one draw in four million. The short search reads a quarter of the memory and takes between a
third and a half of the time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

CHUNK_DRAWS = 16_384


def _at(row: Array, index: Array) -> Array:
    return row.at[index].get(mode="promise_in_bounds")


def _search_top(thresholds: Array, top: Array) -> tuple[Array, Array]:
    """How many thresholds have a smaller top word, and whether the next one has the same."""
    position = top & 0
    for bit in reversed(range(thresholds.shape[1].bit_length() - 1)):
        step = jnp.uint32(1 << bit)
        below = _at(thresholds[0], position + (step - 1)) < top
        position = position + jnp.where(below, step, jnp.uint32(0))
    return position, _at(thresholds[0], position) == top


def _search_all(thresholds: Array, top: Array, words: Array) -> Array:
    """How many thresholds are at most the 127-bit number: every step compares all the bits."""
    half = jnp.uint32(thresholds.shape[1] // 2)

    def halve(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        position, step = carry
        index = position + (step - 1)
        at_most = _at(thresholds[3], index) <= words[3]
        for row, word in ((2, words[2]), (1, words[1]), (0, top)):
            threshold = _at(thresholds[row], index)
            at_most = (threshold < word) | ((threshold == word) & at_most)
        return position + jnp.where(at_most, step, jnp.uint32(0)), step >> 1

    start = (words[0] & 0) | (thresholds[0, 0] & 0)
    steps = thresholds.shape[1].bit_length() - 1
    return lax.fori_loop(0, steps, halve, (start, start[..., :1] + half))[0]


def _draw(thresholds: Array, words: Array) -> Array:
    top = words[0] & jnp.uint32(0x7FFFFFFF)
    position, tied = _search_top(thresholds, top)
    # A loop of at most one step: nothing is searched again where no draw ties.
    position, _ = lax.while_loop(
        lambda carry: carry[1],
        lambda carry: (_search_all(thresholds, top, words), carry[1] & False),
        (position, jnp.any(tied)),
    )
    magnitude = position.astype(jnp.int32)
    return jnp.where(words[0] >> 31 == 1, -magnitude, magnitude)


@custom_vmap
def _draw_in_chunks(thresholds: Array, words: Array) -> Array:
    draws = words.shape[1]
    if draws <= CHUNK_DRAWS:
        return _draw(thresholds, words)

    def one_chunk(index: Array, out: Array) -> Array:
        # The last chunk starts early enough to be whole, and draws some values twice.
        start = jnp.minimum(index * CHUNK_DRAWS, draws - CHUNK_DRAWS)
        drawn = _draw(thresholds, lax.dynamic_slice_in_dim(words, start, CHUNK_DRAWS, axis=1))
        return lax.dynamic_update_slice_in_dim(out, drawn, start, axis=0)

    out = ((words[0] & 0) | (thresholds[0, 0] & 0)).astype(jnp.int32)
    return lax.fori_loop(0, -(-draws // CHUNK_DRAWS), one_chunk, out)


@_draw_in_chunks.def_vmap
def _(
    axis_size: int, in_batched: list[bool], thresholds: Array, words: Array
) -> tuple[Array, bool]:
    """More clients are more draws, not larger chunks: a tie then costs no more than one chunk."""
    many_tables, many_words = in_batched
    if many_tables:
        if not many_words:
            words = jnp.broadcast_to(words, (axis_size, *words.shape))
        return lax.map(lambda pair: _draw_in_chunks(*pair), (thresholds, words)), True
    side_by_side = jnp.moveaxis(words, 0, 1).reshape(words.shape[1], -1)
    return _draw_in_chunks(thresholds, side_by_side).reshape(axis_size, -1), True


@jax.jit
def sample(thresholds: Array, words: Array) -> Array:
    """`[n] int32` from `[4, size]` and `[4, n]` words; the arguments are checked by the caller."""
    return _draw_in_chunks(jnp.asarray(thresholds), jnp.asarray(words))
