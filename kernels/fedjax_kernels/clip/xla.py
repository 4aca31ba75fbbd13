"""Clipping in plain JAX: norms by one pass over the rows, their weighted sum by a second.

Two passes over the memory are what it costs, as in torch. Least CPU ms for 1,000 rows of 100,000 on
one core of a loaded Xeon at 2.5 GHz, jax 0.12:

    norms by parts of rows, then a product of a vector and a matrix                 71
    the same in torch 2.13                                                          69
    rows one by one, each read once: norm, then added up while in the cache        115
    blocks of 2, 8 and 20 rows in the same way                          108, 97 and 92
    norms by 128 to 4,096 lanes that are reduced over columns                      290
    norms of blocks of 8 rows from the diagonal of their products with themselves  206

A row whose squares overflow float32 makes the whole call take a slower way, row by row, with that
row scaled by 2^-80 first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from fedjax_kernels.clip.bounds import MAX_BOUND, MIN_BOUND, norm_slack, parts_of

_HUGE = 2.0**-80  # squares of float32 times this, and sums of 2^31 of them, do not overflow


def _squared_norms(values: Array) -> Array:
    """`[n]`: each row is added up in equal parts, and then the parts, as `norm_slack` counts.

    Without the second barrier XLA makes one long sum of both; without the first, it writes all
    squares to memory.
    """
    rows, dim = values.shape
    parts = parts_of(dim)
    split = lax.optimization_barrier(values.reshape(rows * parts, dim // parts))
    squares = lax.optimization_barrier(jnp.sum(split * split, axis=1))
    return jnp.sum(squares.reshape(rows, parts), axis=1)


@custom_vmap
def _factors(values: Array, bounds: Array) -> tuple[Array, Array, Array]:
    """Of each row, a power of two and a factor to multiply it with, and its norm."""
    squared = _squared_norms(values)
    usual = jnp.isfinite(squared)

    def scaled(_: Array) -> Array:
        return lax.map(lambda row: _squared_norms(row[None] * jnp.float32(_HUGE))[0], values)

    # Nothing is read again where no row is unusual.
    again = lax.cond(jnp.all(usual), lambda squared: squared, scaled, squared)
    root = jnp.sqrt(jnp.where(usual, squared, again))
    finite = jnp.isfinite(root)
    # A traced bound is not checked before: where nothing is proved of it, nothing comes out.
    allowed = jnp.where(bounds >= MIN_BOUND, jnp.minimum(bounds, MAX_BOUND), 0.0)
    target = allowed * jnp.float32(1 - norm_slack(values.shape[1]))
    factor = jnp.where(usual & (root <= target), jnp.sign(target), target / root)
    power = jnp.where(usual, jnp.float32(1.0), jnp.float32(_HUGE))
    norm = jnp.where(usual, root, root * jnp.float32(1 / _HUGE))
    return (
        jnp.where(finite, power, 0.0),
        jnp.where(finite, factor, 0.0),
        jnp.where(finite, norm, jnp.float32(jnp.nan)),
    )


@_factors.def_vmap
def _(axis_size: int, in_batched: list[bool], values: Array, bounds: Array):
    """More rows, so that only a row that overflows is a reason to take the slower way."""
    arrays = [
        array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        for array, batched in zip((values, bounds), in_batched, strict=True)
    ]
    found = _factors(arrays[0].reshape(-1, values.shape[-1]), arrays[1].reshape(-1))
    return tuple(part.reshape(axis_size, -1) for part in found), (True, True, True)


@jax.jit
def clip_rows(values: Array, bounds: Array) -> tuple[Array, Array]:
    """`[n, dim]` and `[n]` from `[n, dim]` and `[n]`; the arguments are checked by the caller."""
    if not values.shape[0]:
        return values, bounds
    power, factor, norms = _factors(values, bounds)
    clipped = (values * power[:, None]) * factor[:, None]
    return jnp.where(power[:, None] > 0, clipped, 0.0), norms


@jax.jit
def clip_and_sum(values: Array, bounds: Array) -> tuple[Array, Array]:
    """`[dim]` and `[n]` from `[n, dim]` and `[n]`; the arguments are checked by the caller."""
    if not values.shape[0]:
        return jnp.zeros(values.shape[1:], values.dtype), bounds
    power, factor, norms = _factors(values, bounds)
    zero = jnp.zeros(values.shape[1:], values.dtype) + 0.0 * jnp.sum(factor)

    def at_once(_: Array) -> Array:
        return jnp.dot(factor, values, precision=lax.Precision.HIGHEST)

    def one_by_one(total: Array) -> Array:
        def add(row: Array, total: Array) -> Array:
            value = lax.dynamic_index_in_dim(values, row, keepdims=False)
            part = (value * power[row]) * factor[row]
            return total + jnp.where(power[row] > 0, part, 0.0)

        return lax.fori_loop(0, values.shape[0], add, total)

    return lax.cond(jnp.all(power == 1.0), at_once, one_by_one, zero), norms
