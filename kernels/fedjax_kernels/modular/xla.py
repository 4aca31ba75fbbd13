"""Modular arithmetic on uint32 arrays for XLA.

A product of two 32-bit words is the pair (`lax.mulhi`, wrapping `*`): no 64-bit type appears, so
the same program runs with x64 on or off. A conditional subtraction of c is min(x, x - c): where
x < c, x - c wraps above x. Nothing branches on a value.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_kernels.modular.moduli import Moduli

_SUMMANDS_AT_ONCE = 16


def constant_like(constant: np.ndarray, ndim: int) -> jax.Array:
    """A NumPy constant as a device array with leading axes of length 1, up to `ndim`."""
    return jnp.asarray(constant.reshape((1,) * (ndim - constant.ndim) + constant.shape))


def subtract_once(x: jax.Array, c: jax.Array) -> jax.Array:
    """x - c where x >= c, else x; for x < 2c."""
    return jnp.minimum(x, x - c)


def mulhi(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper 32 bits of the 64-bit product; operands of equal rank are broadcast.

    XLA cannot partition its own operation for it: a program under `jax.shard_map` fails to compile
    (jax 0.10 to 0.12). There the product is taken in 64 bits, which is slower on a CPU, and which
    needs no x64 mode outside these lines.
    """
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    a, b = jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
    if jax.sharding.get_abstract_mesh().empty:
        return lax.mulhi(a, b)
    half = lax.full_like(a, 32)
    with jax.enable_x64(True):
        wide = [lax.convert_element_type(word, np.uint64) for word in (a, b, half)]
        product = lax.shift_right_logical(lax.mul(wide[0], wide[1]), wide[2])
        return lax.convert_element_type(product, np.uint32)


def mul_shoup_lazy(a: jax.Array, w: jax.Array, quotient: jax.Array, q: jax.Array) -> jax.Array:
    """a * w mod q as a value below 2q, for any 32-bit a and w < q (Harvey 2014, section 3)."""
    return a * w - mulhi(a, quotient) * q


def mul_montgomery_lazy(a: jax.Array, b: jax.Array, q: jax.Array, q_inverse: jax.Array):
    """a * b / 2^32 mod q as a value below 2q, for any 32-bit a and b < q.

    With m = a b q^-1 mod 2^32, a b - m q is a multiple of 2^32, hence the difference of the upper
    words; it lies in (-q, q).
    """
    return mulhi(a, b) - mulhi(a * b * q_inverse, q) + q


def _q(moduli: Moduli, ndim: int) -> jax.Array:
    return constant_like(moduli.q, ndim)


def _aligned(*arrays):
    """The arrays with equal ranks, and the shape of the last two axes of what is computed of them.

    Where no constant varies along the last two axes they become one: XLA:CPU vectorises the last
    axis only, and a batch of 19 columns would run at half the speed.
    """
    ndim = max(jnp.ndim(a) for a in arrays)
    arrays = [jnp.reshape(a, (1,) * (ndim - jnp.ndim(a)) + jnp.shape(a)) for a in arrays]
    last = np.broadcast_shapes(*(a.shape[-2:] for a in arrays))
    if all(a.shape[-2:] in (last, (1, 1)) for a in arrays):
        arrays = [a.reshape(*a.shape[:-2], 1, -1) for a in arrays]
    return arrays, last


def _apart(result, last):
    return result.reshape(*result.shape[:-2], *last)


@partial(jax.jit, static_argnames="moduli")
def add(a, b, *, moduli):
    (a, b), last = _aligned(a, b)
    return _apart(subtract_once(a + b, _q(moduli, a.ndim)), last)


@partial(jax.jit, static_argnames="moduli")
def sub(a, b, *, moduli):
    (a, b), last = _aligned(a, b)
    q = _q(moduli, a.ndim)
    return _apart(subtract_once(a - b + q, q), last)


@partial(jax.jit, static_argnames="moduli")
def neg(a, *, moduli):
    (a,), last = _aligned(a)
    q = _q(moduli, a.ndim)
    return _apart(subtract_once(q - a, q), last)


@partial(jax.jit, static_argnames="moduli")
def mul_montgomery(a, b, *, moduli):
    (a, b), last = _aligned(a, b)
    q, q_inverse = _q(moduli, a.ndim), constant_like(moduli.q_inverse, a.ndim)
    return _apart(subtract_once(mul_montgomery_lazy(a, b, q, q_inverse), q), last)


@partial(jax.jit, static_argnames="moduli")
def to_montgomery(a, *, moduli):
    return mul_montgomery(a, moduli.montgomery_r2, moduli=moduli)


@partial(jax.jit, static_argnames="moduli")
def from_montgomery(a, *, moduli):
    return mul_montgomery(a, np.ones_like(moduli.q), moduli=moduli)


@partial(jax.jit, static_argnames="moduli")
def mul(a, b, *, moduli):
    return mul_montgomery(mul_montgomery(a, b, moduli=moduli), moduli.montgomery_r2, moduli=moduli)


@partial(jax.jit, static_argnames="moduli")
def mul_constant(a, constant, quotient, *, moduli):
    (a, constant, quotient), last = _aligned(a, constant, quotient)
    q = _q(moduli, a.ndim)
    return _apart(subtract_once(mul_shoup_lazy(a, constant, quotient, q), q), last)


@partial(jax.jit, static_argnames="moduli")
def reduce(a, *, moduli):
    return mul_constant(a, np.ones_like(moduli.q), moduli.barrett, moduli=moduli)


@partial(jax.jit, static_argnames="moduli")
def reduce_words(words, *, moduli):
    shift = moduli.per_limb(lambda q: (1 << 32) % q)
    quotient = moduli.shoup(shift)
    total = reduce(words[-1], moduli=moduli)
    for word in reversed(words[:-1]):
        carried = mul_constant(total, shift, quotient, moduli=moduli)
        total = add(carried, reduce(word, moduli=moduli), moduli=moduli)
    return total


@partial(jax.jit, static_argnames="moduli")
def from_signed(a, *, moduli):
    a = jnp.expand_dims(a, -3)
    magnitude = reduce(jnp.where(a < 0, -a, a).astype(jnp.uint32), moduli=moduli)
    return jnp.where(a < 0, neg(magnitude, moduli=moduli), magnitude)


def _sum_of_few(a, moduli):
    """Few enough summands for one pass over memory; halves of 16 bits are added up apart."""
    low = high = jnp.zeros(a.shape[1:], jnp.uint32)
    for row in a:
        low, high = low + (row & np.uint32(0xFFFF)), high + (row >> np.uint32(16))
    shift = moduli.per_limb(lambda q: (1 << 16) % q)
    high = mul_constant(high, shift, moduli.shoup(shift), moduli=moduli)
    return add(high, reduce(low, moduli=moduli), moduli=moduli)


@partial(jax.jit, static_argnames="moduli")
def sum_residues(a, *, moduli):
    a = jnp.asarray(a)
    shape = a.shape
    a = a.reshape(*shape[:-2], 1, shape[-2] * shape[-1])
    groups, rest = divmod(shape[0], _SUMMANDS_AT_ONCE)
    total = _sum_of_few(a[groups * _SUMMANDS_AT_ONCE :], moduli)
    if groups:

        def add_group(i, total):
            part = lax.dynamic_slice_in_dim(a, i * _SUMMANDS_AT_ONCE, _SUMMANDS_AT_ONCE)
            return add(total, _sum_of_few(part, moduli), moduli=moduli)

        first = _sum_of_few(a[:_SUMMANDS_AT_ONCE], moduli)
        total = first if rest == 0 else add(total, first, moduli=moduli)
        if groups > 1:
            total = lax.fori_loop(1, groups, add_group, total)
    return total.reshape(shape[1:])
