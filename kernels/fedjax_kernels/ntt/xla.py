"""The transform for XLA: radix-2 stages with Harvey's lazy butterflies, 32-bit words only.

A stage is one operation on [limb, blocks, 2, length * batch]: where the last axis is long, XLA
vectorises it. On a CPU the work is cut into blocks of one limb and a few columns, which stay in the
cache (:mod:`fedjax_kernels.ntt.blocks`); the tables of a limb are sliced out of all limbs' tables,
so that the number of limbs does not change how long it takes to compile.

The inverse takes its first two stages together: alone, a loop over the 16 columns of a block would
be unrolled before it is vectorised.

What was tried, forward and inverse, for 1M coefficients at N = 4096 on one core of a Xeon at
2.5 GHz, CPU time in ms (jax 0.12; rows of several widths are forward only):

    whole arrays of 256 columns, the last axis a column                6.8   6.8
    8, 16, 24, 32, 64 columns, the same        11.7, 16.2, 4.2, 4.3, 6.0
    8, 16, 24, 32, 64 columns, last axis length * columns    6.5, 4.0, 3.8, 4.2, 6.0
    16 columns, the inverse in radix-2 stages only                      -    4.7
    16 columns, the inverse's first two stages together                4.0   3.4
    16 columns, radix 4 throughout                                     5.4   4.0
    32 columns, radix 4, 8, 16 in one kernel per pass (constant geometry)  7.8, 12, 22
    16 columns, powers multiplied in when written, not when read       5.4    -
    16 columns, products kept apart, so that each is computed once     5.6    -
    16 columns, 512-bit vectors (a compiler option, not ours to set)   2.9   3.2
    one program of 16 blocks, unrolled                                 7.7   8.8
    a loop over blocks as XLA compiles it by itself                    6.1  19.4
    the same loop with its pieces kept apart, radix 2 and radix 4      4.5   5.1

Halving the multiplications changed nothing: a stage in the cache is bound by its loads and stores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from fedjax_kernels.modular import xla as modular
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.modular.xla import mul_shoup_lazy, subtract_once
from fedjax_kernels.ntt import blocks
from fedjax_kernels.ntt.tables import Tables, part_tables, tables


class Limbs:
    """The constants of some limbs, as [limb, ...] arrays, and arithmetic with them.

    Operands are [..., limb, blocks, columns] of `ndim` axes. Where `parts` is not 1, transforms go
    through their last or first stages in that many parts.
    """

    parts: int = 1
    is_part: bool = False

    def __init__(self, q: Any, table: Any, ndim: int):
        self.table = table
        self.ndim = ndim
        self.q = self.constant(q)
        self.two_q = self.q + self.q

    @classmethod
    def all(cls, moduli: Moduli, ndim: int) -> Limbs:
        """Of every limb."""
        return cls(np.array(moduli.primes, np.uint32)[:, None], tables(moduli), ndim)

    @classmethod
    def one(cls, moduli: Moduli, limb: Array, ndim: int, parts: int = 1) -> Limbs:
        """Of one limb, whose number is traced."""
        q = one_limb(np.array(moduli.primes, np.uint32)[:, None], limb)
        limbs = cls(q, Tables(*(one_limb(table, limb) for table in tables(moduli))), ndim)
        limbs.parts, limbs.moduli, limbs.limb = parts, moduli, limb
        return limbs

    def part(self, i: Array) -> Limbs:
        """Of part `i` of this one limb."""
        part = copy.copy(self)
        rows = part_tables(self.moduli, self.parts)
        part.table = Tables(*(one_limb(table, self.limb * self.parts + i) for table in rows))
        part.parts, part.is_part = 1, True
        return part

    def constant(self, part: Any) -> Array:
        """[limb, blocks] as [..., limb, blocks, 1]."""
        return jnp.reshape(part, (1,) * (self.ndim - 3) + (part.shape[0], -1, 1))

    def scale(self, x: Array, name: str, select: slice = slice(None)) -> Array:
        """x times a part of a table, below 2q, for any 32-bit x."""
        power = getattr(self.table, name)[:, select]
        quotient = getattr(self.table, f"{name}_quotient")[:, select]
        return mul_shoup_lazy(x, self.constant(power), self.constant(quotient), self.q)

    def below_2q(self, x: Array) -> Array:
        """x mod 2q, for x below 4q."""
        return subtract_once(x, self.two_q)

    def below_q(self, x: Array) -> Array:
        """x mod q, for x below 2q."""
        return subtract_once(x, self.q)


def one_limb(table: Any, limb: Array) -> Array:
    """Row `limb` of [limb, ...], with the leading axis kept."""
    return lax.dynamic_slice_in_dim(jnp.asarray(table), limb, 1)


def _forward_stage(x: Array, limbs: Limbs, count: int) -> list[Array]:
    """Both halves of `count` runs of [..., limb, N, columns], below 4q as the operand."""
    pairs = x.reshape(*x.shape[:-2], count, 2, -1)
    u = limbs.below_2q(pairs[..., 0, :])
    v = limbs.scale(pairs[..., 1, :], "roots", slice(count, 2 * count))
    return [u + v, u - v + limbs.two_q]


def _inverse_stage(x: Array, limbs: Limbs, count: int, *, lazy: bool) -> list[Array]:
    """Both halves of `count` runs of [..., limb, N, columns], below 2q as the operand.

    The very last stage divides by N, and reduces its result where it is not `lazy`.
    """
    pairs = x.reshape(*x.shape[:-2], count, 2, -1)
    total = pairs[..., 0, :] + pairs[..., 1, :]
    difference = pairs[..., 0, :] - pairs[..., 1, :] + limbs.two_q
    if count > 1 or limbs.is_part:
        select = slice(count, 2 * count)
        return [limbs.below_2q(total), limbs.scale(difference, "inverse_roots", select)]
    halves = [limbs.scale(total, "n_inverse"), limbs.scale(difference, "last")]
    return halves if lazy else [limbs.below_q(half) for half in halves]


def forward_block(x: Array, limbs: Limbs, *, lazy: bool = False) -> Array:
    """The forward transform of [..., limb, N, columns]; with `lazy` the values are below 4q only.

    Between stages, too, values stay below 4q.
    """
    if limbs.parts > 1:
        x = forward_first_stages(x, limbs)
        return in_parts(limbs, lambda part, x: (forward_block(x, part, lazy=lazy),), x)[0]
    shape, degree = x.shape, x.shape[-2]
    count = 1
    while count < degree:
        halves = _forward_stage(x, limbs, count)
        if 2 * count == degree and not lazy:
            halves = [limbs.below_q(limbs.below_2q(half)) for half in halves]
        x = jnp.stack(halves, axis=-2).reshape(shape)
        count *= 2
    return x


def forward_first_stages(x: Array, limbs: Limbs) -> Array:
    """The stages before the parts of `limbs`."""
    count = 1
    while count < limbs.parts:
        x = jnp.stack(_forward_stage(x, limbs, count), axis=-2).reshape(x.shape)
        count *= 2
    return x


def inverse_block(x: Array, limbs: Limbs, *, lazy: bool = False) -> Array:
    """The inverse transform of [..., limb, N, columns] of values below 2q.

    With `lazy` the coefficients are below 2q only. Between stages, too, values stay below 2q.
    """
    if limbs.parts > 1:
        x = in_parts(limbs, lambda part, x: (inverse_block(x, part, lazy=True),), x)[0]
        return inverse_last_stages(x, limbs, lazy=lazy)
    shape, degree = x.shape, x.shape[-2]
    count = degree // 2
    if degree >= 8:  # two stages at once
        a, b, c, d = jnp.moveaxis(x.reshape(*shape[:-2], degree // 4, 4, shape[-1]), -2, 0)
        quarter = slice(degree // 4, degree // 2)
        even = slice(degree // 2, degree, 2)
        sums = limbs.below_2q(a + b), limbs.below_2q(c + d)
        first = limbs.below_2q(a - b + limbs.two_q)
        second = limbs.scale(c - d + limbs.two_q, "i")
        quarters = [
            limbs.below_2q(sums[0] + sums[1]),
            limbs.scale(first + second, "inverse_roots", even),
            limbs.scale(sums[0] - sums[1] + limbs.two_q, "inverse_roots", quarter),
            limbs.scale(first - second + limbs.two_q, "first_products"),
        ]
        x = jnp.stack(quarters, axis=-2).reshape(shape)
        count = degree // 8
    while count:
        x = jnp.stack(_inverse_stage(x, limbs, count, lazy=lazy), axis=-2).reshape(shape)
        count //= 2
    return x


def inverse_last_stages(x: Array, limbs: Limbs, *, lazy: bool = False) -> Array:
    """The stages after the parts of `limbs`."""
    count = limbs.parts // 2
    while count:
        x = jnp.stack(_inverse_stage(x, limbs, count, lazy=lazy), axis=-2).reshape(x.shape)
        count //= 2
    return x


def in_parts(
    limbs: Limbs, function: Callable[..., tuple[Array, ...]], x: Array, *rows: Array, results=1
) -> tuple[Array, ...]:
    """`function(limbs, x, *rows)` of each part of the rows of one limb, one after the other.

    Args:
        limbs: the constants, with `parts`.
        function: returns `results` arrays of the shape of its part of `x`.
        x: [..., 1, N, columns].
        rows: each [..., 1, N, 1 or columns].
        results: how many arrays the function returns.
    """
    length = x.shape[-2] // limbs.parts

    def body(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        part = limbs.part(i)
        cuts = [lax.dynamic_slice_in_dim(y, i * length, length, -2) for y in (out[0], *rows)]
        done = blocks.apart(i, lambda *cuts: function(part, *cuts), *cuts)
        return tuple(
            lax.dynamic_update_slice_in_dim(whole, cut, i * length, -2)
            for whole, cut in zip(out, done, strict=True)
        )

    return blocks.loop(limbs.parts, body, (x,) * results)


def _in_blocks(block: Callable[..., Array], x: Array, moduli: Moduli) -> Array:
    num_limbs, degree, batch = x.shape[-3:]
    width, count = blocks.columns_of(degree, batch)
    rows = x.reshape(-1, num_limbs, degree, batch)

    def body(i: Array, out: Array) -> Array:
        row, limb = i // (num_limbs * count), i // count % num_limbs
        at = (row, limb, 0, jnp.minimum(i % count * width, batch - width))
        part = lax.dynamic_slice(rows, at, (1, 1, degree, width))
        limbs = Limbs.one(moduli, limb, part.ndim, blocks.parts_of(degree, width))
        return lax.dynamic_update_slice(out, blocks.apart(i, lambda x: block(x, limbs), part), at)

    zeros = blocks.zeros(rows.shape, rows)
    return blocks.loop(rows.shape[0] * num_limbs * count, body, zeros).reshape(x.shape)


@lru_cache(maxsize=256)
def _transform(block: Callable[..., Array], moduli: Moduli) -> Callable[[Array], Array]:
    """The transform of [..., limb, N, batch], under which `jax.vmap` adds a leading axis."""

    def whole(x: Array) -> Array:
        return block(x, Limbs.all(moduli, x.ndim))

    @custom_vmap
    def transform(x: Array) -> Array:
        if x.size <= 2 * blocks.BLOCK_COEFFICIENTS or prod(x.shape[:-2]) == 0:
            return whole(x)
        return lax.platform_dependent(x, cpu=lambda x: _in_blocks(block, x, moduli), default=whole)

    @transform.def_vmap
    def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
        return transform(x), True

    return transform


@partial(jax.jit, static_argnames="moduli")
def forward(x, *, moduli):
    return _transform(forward_block, moduli)(jnp.asarray(x))


@partial(jax.jit, static_argnames="moduli")
def inverse(x, *, moduli):
    return _transform(inverse_block, moduli)(jnp.asarray(x))


@partial(jax.jit, static_argnames="moduli")
def multiply(a, b, *, moduli):
    a, b = forward(a, moduli=moduli), forward(b, moduli=moduli)
    return inverse(modular.mul(a, b, moduli=moduli), moduli=moduli)
