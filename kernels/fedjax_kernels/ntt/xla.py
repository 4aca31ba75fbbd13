"""The transform for XLA: radix-2 stages with Harvey's lazy butterflies, 32-bit words only.

One stage is two fused passes over [limb, blocks, 2, length, batch]. Radix 4 and more, blocking for
the cache, and a four-step transform by floating-point products were measured and are not faster
on a CPU: the stage is bound by its three integer multiplications.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels.modular import xla as modular
from fedjax_kernels.modular.xla import constant_like, mul_shoup_lazy, subtract_once
from fedjax_kernels.ntt.tables import tables


def _stage_constant(table: np.ndarray, blocks: int, ndim: int) -> jax.Array:
    return constant_like(table[:, blocks : 2 * blocks, None, None], ndim)


def _q(moduli, ndim: int) -> jax.Array:
    return constant_like(moduli.q[..., None], ndim)


@partial(jax.jit, static_argnames="moduli")
def forward(x, *, moduli):
    x = jnp.asarray(x)
    shape, table, ndim = x.shape, tables(moduli), x.ndim + 1
    q, two_q = _q(moduli, ndim), np.uint32(2) * _q(moduli, ndim)
    blocks, length = 1, moduli.ring_degree // 2
    while length:  # values stay below 4q
        pairs = x.reshape(*shape[:-2], blocks, 2, length, shape[-1])
        u = subtract_once(pairs[..., 0, :, :], two_q)
        v = mul_shoup_lazy(
            pairs[..., 1, :, :],
            _stage_constant(table.roots, blocks, ndim),
            _stage_constant(table.roots_quotient, blocks, ndim),
            q,
        )
        x = jnp.stack([u + v, u - v + two_q], axis=-3)
        blocks, length = 2 * blocks, length // 2
    x = x.reshape(shape)
    q = constant_like(moduli.q, x.ndim)
    return subtract_once(subtract_once(x, np.uint32(2) * q), q)


@partial(jax.jit, static_argnames="moduli")
def inverse(x, *, moduli):
    x = jnp.asarray(x)
    shape, table, ndim = x.shape, tables(moduli), x.ndim + 1
    q, two_q = _q(moduli, ndim), np.uint32(2) * _q(moduli, ndim)
    blocks, length = moduli.ring_degree // 2, 1
    while blocks:  # values stay below 2q
        pairs = x.reshape(*shape[:-2], blocks, 2, length, shape[-1])
        u, v = pairs[..., 0, :, :], pairs[..., 1, :, :]
        difference = mul_shoup_lazy(
            u - v + two_q,
            _stage_constant(table.inverse_roots, blocks, ndim),
            _stage_constant(table.inverse_roots_quotient, blocks, ndim),
            q,
        )
        x = jnp.stack([subtract_once(u + v, two_q), difference], axis=-3)
        blocks, length = blocks // 2, 2 * length
    return modular.mul_constant(
        x.reshape(shape), table.n_inverse, table.n_inverse_quotient, moduli=moduli
    )


@partial(jax.jit, static_argnames="moduli")
def multiply(a, b, *, moduli):
    a, b = forward(a, moduli=moduli), forward(b, moduli=moduli)
    return inverse(modular.mul(a, b, moduli=moduli), moduli=moduli)
