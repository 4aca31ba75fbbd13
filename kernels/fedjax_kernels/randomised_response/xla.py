"""Randomised response in plain JAX, with 32-bit integers only and no branches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


def _product(a: Array, b: int) -> tuple[Array, Array]:
    """High and low word of a * b, for b below 2^16."""
    low = (a & 0xFFFF) * jnp.uint32(b)
    middle = (a >> 16) * jnp.uint32(b) + (low >> 16)
    return middle >> 16, (middle << 16) | (low & 0xFFFF)


@functools.partial(jax.jit, static_argnames=("num_values", "lies"))
def respond(values: Array, words: Array, *, num_values: int, lies: int) -> Array:
    """`[n] uint32`; the arguments are checked by the caller."""
    first, second = jnp.uint32(lies >> 32), jnp.uint32(lies & 0xFFFFFFFF)
    lie = (words[0] < first) | ((words[0] == first) & (words[1] < second))
    others = num_values - 1
    high, low = _product(words[2], others)
    carried, _ = _product(words[3], others)
    total = low + carried
    step = high + (total < low).astype(jnp.uint32) + jnp.uint32(1)
    moved = values % jnp.uint32(num_values) + jnp.where(lie, step, jnp.uint32(0))
    return jnp.where(moved >= num_values, moved - jnp.uint32(num_values), moved)
