"""Loops over pieces of an array that stay in a core's cache, as XLA:CPU runs them fast.

A transform reads and writes its whole operand in each of log2 N stages. On one core, ms per stage
and 1M coefficients: 0.25 while operand and result take 2 x 256 KiB, 0.28 at 2 x 512 KiB, and 0.5
beyond that, where the second-level cache of 1 MiB ends. From N = 8192 on, 16 columns are more than
that. Such a block goes through its first stages as a whole, and through the rest in parts of its
rows that fit. With 19 columns at N = 8192, in two parts: forward 5.6 ms instead of 6.1, inverse 5.5
instead of 6.2. More parts changed nothing: what remains is copying blocks in and out (1.7 ms), and
the stages whose runs are one or two rows long, which take as much as eight of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

#: Coefficients of a block: 256 KiB.
BLOCK_COEFFICIENTS = 1 << 16
#: Fewer columns make XLA:CPU unroll the loop over them before it can vectorise it.
MIN_COLUMNS = 16


def columns_of(ring_degree: int, batch: int) -> tuple[int, int]:
    """How to cut a batch of polynomials into blocks of columns: (width, count).

    `count` blocks of `width` cover the batch; the last one starts early enough to be whole.

    Example:
        >>> columns_of(4096, 86), columns_of(8192, 19), columns_of(4096, 3)
        ((18, 5), (19, 1), (3, 1))
    """
    least = max(MIN_COLUMNS, BLOCK_COEFFICIENTS // ring_degree)
    count = max(1, batch // least)
    return -(-batch // count), count


def parts_of(ring_degree: int, width: int) -> int:
    """In how many parts a block of `width` columns goes through most of its stages.

    Example:
        >>> parts_of(4096, 31), parts_of(8192, 19), parts_of(16384, 16)
        (1, 2, 4)
    """
    parts = 1
    while ring_degree // parts * width >= 2 * BLOCK_COEFFICIENTS:
        parts *= 2
    return parts


def loop(count: int, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """`carry = body(i, carry)` for i in 0..count-1, with one kernel per operation of the body.

    XLA:CPU (jax 0.12) compiles a loop into one kernel by an older emitter wherever it can, which
    vectorises less: an inverse transform then takes three times as long. A loop that sorts is
    exempt. The sort is of two numbers and does nothing.
    """

    def step(i: Array, carry: Any) -> Any:
        return body(lax.sort(jnp.stack([i, i + 1]))[0], carry)

    return lax.fori_loop(np.int32(0), np.int32(count), step, carry)


def apart(i: Array, function: Callable[..., Any], *operands: Array) -> Any:
    """`function(*operands)`, which XLA does not fuse with what is before and after it.

    A slice fused into the first stage of a transform, or the last stage into the update of the
    result, would not be vectorised. XLA:CPU drops an optimisation barrier before it fuses (jax
    0.10); the branch of a conditional it keeps.

    Args:
        i: the index that :func:`loop` gives, which XLA does not know to be non-negative.
        function: returns uint32 arrays.
        operands: uint32 arrays.
    """
    shapes = jax.eval_shape(function, *operands)

    def never(*operands: Array) -> Any:
        return jax.tree.map(lambda out: zeros(out.shape, *operands), shapes)

    return lax.cond(i >= 0, function, never, *operands)


def zeros(shape: tuple[int, ...], *varies_with: Array) -> Array:
    """uint32 zeros that vary over devices as the given arrays do, as a loop's carry must."""
    zero = jnp.zeros((), jnp.uint32)
    for array in varies_with:
        zero = zero | (array[(0,) * array.ndim].astype(jnp.uint32) & 0)
    return jnp.broadcast_to(zero, shape)
