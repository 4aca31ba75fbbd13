"""Inversion in plain JAX, with 32-bit integers only.

The top words of a draw and of the thresholds settle the draw, unless they are equal. The guide says
how many thresholds lie below the draw's part of the range, and a few halvings find the place: the
parts are a floating-point exponent and the first bits of the mantissa of the distance from the top,
so that the same number of halvings serves the middle and the tail. Where a top word equals that of
a threshold, the row of 256 draws that it is in is searched again with all 128 bits: at sigma 100
this happens to one draw in four million. So `draw`, which expands a key by itself, makes only the
first of four words of most draws.

Least CPU ms for 2^20 draws on one core of a Xeon at 2.5 GHz, jax 0.12, words lying ready; "halving"
searches the top words of the whole table:

    sigma                            1     10    100  1,000  2,000
    halving                        9.5   21.7   39.0   59.3   62.5
    with the guide                 5.4    5.3    5.5    5.1    6.4
    `draw`, keystream included    11.7   12.2   11.7   11.0   13.0
    keystream of all four words, and halving       34 to 87
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from fedjax_kernels import chacha

CHUNK_DRAWS = 16_384
ROW_DRAWS = 256

_TOP = (1 << 31) - 1
_LOWEST_EXPONENT = 126
_OCTAVES = 33


def _at(row: Array, index: Array) -> Array:
    return row.at[index].get(mode="promise_in_bounds")


def _search_top(thresholds: Array, guide: Array | None, top: Array, steps: int) -> Array:
    """How many thresholds have a smaller top word."""
    tops = thresholds[0]
    if guide is None:
        position, steps = top & 0, thresholds.shape[1].bit_length() - 1
    else:
        bits = (guide.shape[0] // _OCTAVES).bit_length() - 1
        distance = (jnp.uint32(_TOP) - top).astype(jnp.int32).astype(jnp.float32)
        place = lax.bitcast_convert_type(distance, jnp.int32) >> (23 - bits)
        place = jnp.maximum(place - (_LOWEST_EXPONENT << bits), 0)
        position = _at(guide, place).astype(jnp.uint32)
    for bit in reversed(range(steps)):
        step = jnp.uint32(1 << bit)
        below = _at(tops, position + (step - 1)) < top
        position = position + jnp.where(below, step, jnp.uint32(0))
    return position


def _search_all(thresholds: Array, words: Array) -> Array:
    """How many thresholds are at most the 127-bit number: every step compares all the bits."""
    half = jnp.uint32(thresholds.shape[1] // 2)
    top = words[0] & jnp.uint32(_TOP)

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


def _signed(position: Array, top: Array) -> Array:
    magnitude = position.astype(jnp.int32)
    return jnp.where(top >> 31 == 1, -magnitude, magnitude)


def _by_top_words(
    thresholds: Array, guide: Array | None, tops: Array, steps: int
) -> tuple[Array, Array]:
    """Draws settled by their top words `[n]`, and whether each one is not: `[n]`, `[n]`."""

    def search(tops: Array) -> tuple[Array, Array]:
        magnitude = tops & jnp.uint32(_TOP)
        position = _search_top(thresholds, guide, magnitude, steps)
        return _signed(position, tops), _at(thresholds[0], position) == magnitude

    draws = tops.shape[0]
    if draws <= CHUNK_DRAWS:
        return search(tops)

    def one_chunk(index: Array, out: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last chunk starts early enough to be whole, and draws some values twice.
        start = jnp.minimum(index * CHUNK_DRAWS, draws - CHUNK_DRAWS)
        found = search(lax.dynamic_slice_in_dim(tops, start, CHUNK_DRAWS))
        pairs = zip(out, found, strict=True)
        return tuple(lax.dynamic_update_slice_in_dim(a, b, start, axis=0) for a, b in pairs)

    zero = (tops & 0) | (thresholds[0, 0] & 0)
    out = (zero.astype(jnp.int32), zero != 0)
    return lax.fori_loop(0, -(-draws // CHUNK_DRAWS), one_chunk, out)


def _settle(
    thresholds: Array, drawn: Array, tied: Array, words_of: Callable[[Array, Array, int], Array]
) -> Array:
    """Searches rows with ties again, with all words.

    Args:
      thresholds: `[4, size]`.
      drawn: `[streams, n] int32`, right where not tied.
      tied: `[streams, n]`.
      words_of: takes a stream, the first draw of a row, and the row's length, and returns its
        `[4, length]` words.
    """
    streams, draws = drawn.shape
    length = min(draws, ROW_DRAWS)
    rows = -(-draws // length)
    padded = jnp.pad(tied, ((0, 0), (0, rows * length - draws)))
    left = jnp.any(padded.reshape(streams * rows, length), axis=1)

    def one_row(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, left = carry
        row = jnp.argmax(left)
        stream, start = row // rows, jnp.minimum(row % rows * length, draws - length)
        words = words_of(stream, start, length)
        again = _signed(_search_all(thresholds, words), words[0])
        drawn = lax.dynamic_update_slice(drawn, again[None], (stream, start))
        return drawn, left & (jnp.arange(streams * rows) != row)

    return lax.while_loop(lambda carry: jnp.any(carry[1]), one_row, (drawn, left))[0]


@functools.cache
def _sampler(steps: int | None, first_row: int) -> Callable[..., Array]:
    """The function of (thresholds, guide, words) under which `jax.vmap` only adds draws."""

    @custom_vmap
    def of_words(thresholds: Array, guide: Array, words: Array) -> Array:
        tops = words[first_row]
        found = _by_top_words(thresholds, None if steps is None else guide, tops, steps or 0)
        drawn, tied = (part[None] for part in found)

        def words_of(_: Array, start: Array, length: int) -> Array:
            row = jnp.asarray(first_row, start.dtype)
            return lax.dynamic_slice(words, (row, start), (4, length))

        return _settle(thresholds, drawn, tied, words_of)[0]

    @of_words.def_vmap
    def _(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        *many_tables, many_words = in_batched
        if any(many_tables):
            return _one_table_each(of_words, axis_size, in_batched, arrays), True
        words = jnp.moveaxis(arrays[2], 0, 1)
        side_by_side = words.reshape(words.shape[0], -1)
        return of_words(*arrays[:2], side_by_side).reshape(axis_size, -1), True

    return of_words


def _one_table_each(
    function: Callable[..., Array], axis_size: int, in_batched: list[bool], arrays: tuple
) -> Array:
    many = [
        array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        for array, batched in zip(arrays, in_batched, strict=True)
    ]
    return lax.map(lambda one: function(*one), tuple(many))


@functools.partial(jax.jit, static_argnames=("steps", "first_row"))
def sample(
    thresholds: Array,
    words: Array,
    guide: Array | None = None,
    *,
    steps: int | None = None,
    first_row: int = 0,
) -> Array:
    """`[n] int32` from `[4, size]` and rows first_row, ..., first_row + 3 of `[rows, n]` words.

    The arguments are checked by the caller. Without a guide and its number of steps, the whole
    table is searched by halving.
    """
    words, thresholds = jnp.asarray(words), jnp.asarray(thresholds)
    if not words.shape[1]:
        return jnp.zeros((0,), jnp.int32)
    guide = jnp.zeros((_OCTAVES,), jnp.int32) if steps is None else jnp.asarray(guide)
    return _sampler(steps, first_row)(thresholds, guide, words)


def _stretch(key: Array, nonce: Array, start: Array, count: int) -> Array:
    """Words start, ..., start + count - 1 of a keystream; a block has 16."""
    words = chacha.keystream(key, nonce, count + 15, counter=start >> 4)
    return lax.dynamic_slice_in_dim(words, (start & 15).astype(jnp.int32), count)


@functools.cache
def _drawer(draws: int, steps: int) -> Callable[..., Array]:
    """The function of keys `[streams, 8]` and nonces under which `jax.vmap` only adds streams."""

    @custom_vmap
    def of_keys(
        thresholds: Array, guide: Array, keys: Array, nonces: Array, first_row: Array
    ) -> Array:
        base = first_row * jnp.uint32(draws)
        tops = jax.vmap(lambda key, nonce: _stretch(key, nonce, base, draws))(keys, nonces)
        drawn, tied = _by_top_words(thresholds, guide, tops.reshape(-1), steps)

        def words_of(stream: Array, start: Array, length: int) -> Array:
            key, nonce = keys[stream], nonces[stream]
            first = base + start.astype(jnp.uint32)
            starts = first + jnp.arange(4, dtype=jnp.uint32) * jnp.uint32(draws)
            return jax.vmap(lambda at: _stretch(key, nonce, at, length))(starts)

        return _settle(thresholds, drawn.reshape(tops.shape), tied.reshape(tops.shape), words_of)

    @of_keys.def_vmap
    def _(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        if in_batched[0] or in_batched[1] or in_batched[4]:
            return _one_table_each(of_keys, axis_size, in_batched, arrays), True
        keys, nonces = (
            (array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))).reshape(
                -1, array.shape[-1]
            )
            for array, batched in zip(arrays[2:4], in_batched[2:4], strict=True)
        )
        drawn = of_keys(*arrays[:2], keys, nonces, arrays[4])
        return drawn.reshape(axis_size, -1, draws), True

    return of_keys


@functools.partial(jax.jit, static_argnames=("draws", "steps"))
def draw(
    thresholds: Array,
    guide: Array,
    key: Array,
    nonce: Array,
    first_row: Array,
    *,
    draws: int,
    steps: int,
) -> Array:
    """`[draws] int32`: what `sample` makes of rows first_row, ..., first_row + 3 of a keystream.

    Row r is words r * draws, ..., (r + 1) * draws - 1 of it.
    """
    if not draws:
        return jnp.zeros((0,), jnp.int32)
    thresholds, guide = jnp.asarray(thresholds), jnp.asarray(guide)
    keys, nonces = jnp.asarray(key)[None], jnp.asarray(nonce)[None]
    return _drawer(draws, steps)(thresholds, guide, keys, nonces, first_row)[0]
