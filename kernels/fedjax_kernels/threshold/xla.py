"""Threshold keys and decryption for XLA, on 32-bit words only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels.inversion import xla as inversion
from fedjax_kernels.modular import xla as modular
from fedjax_kernels.ntt import xla as ntt
from fedjax_kernels.rlwe import xla as rlwe
from fedjax_kernels.rlwe.parameters import SecretKey

_TOP_TABLE_SIZE = 1 << 16  # thresholds of the widest last part


@partial(jax.jit, static_argnames="params")
def common_part(words, *, params):
    wide = words.reshape(3, params.num_limbs, params.ring_degree, 1)
    return modular.reduce_words(wide, moduli=params.moduli)


@partial(jax.jit, static_argnames="params")
def contribute(a, words, *, params):
    moduli = params.moduli
    small = words.reshape(4, params.ring_degree, 1)
    secret, error = (
        rlwe._ternary(small[0], small[1]),
        rlwe._centred_binomial(small[2], small[3]),
    )
    s, e = rlwe._transform_small(jnp.stack([secret, error]), moduli)
    return SecretKey(s), modular.sub(e, modular.mul(a, s, moduli=moduli), moduli=moduli)


def total(parts, *, params):
    return modular.sum_residues(jnp.asarray(parts), moduli=params.moduli)


@partial(jax.jit, static_argnames=("params", "threshold", "num_parties"))
def share(secret, words, *, params, threshold, num_parties):
    moduli = params.moduli
    wide = words.reshape(4, threshold - 1, params.num_limbs, params.ring_degree, 1)
    coefficients = modular.reduce_words(wide, moduli=moduli)
    constant = secret[: params.num_limbs]
    shares = []
    for point in range(1, num_parties + 1):  # Horner's rule
        scale = moduli.per_limb(lambda q, point=point: point % q)
        value = jnp.zeros_like(constant)
        for coefficient in coefficients[::-1]:
            value = modular.add(value, coefficient, moduli=moduli)
            value = modular.mul_constant(value, scale, moduli.shoup(scale), moduli=moduli)
        shares.append(modular.add(value, constant, moduli=moduli))
    return jnp.stack(shares)


def flood(tables, words, *, params, shift_bits):
    # The last table has another size for every width of the flood: padded, one program serves all.
    top = tables[-1].thresholds
    room = max(0, _TOP_TABLE_SIZE - top.shape[1])
    top = np.pad(top, ((0, 0), (0, room)), constant_values=0xFFFFFFFF)
    return _flood(tables[0].thresholds, top, words, params=params, shift_bits=shift_bits)


@partial(jax.jit, static_argnames=("params", "shift_bits"))
def _flood(lower, top, words, *, params, shift_bits):
    """All parts but the last are drawn from `lower`, as one long draw."""
    moduli, shape = params.moduli, (params.ring_degree, words.shape[2] // params.ring_degree)
    parts = [inversion.sample(top, words[-1]).reshape(shape)]
    if len(words) > 1:
        side_by_side = jnp.moveaxis(words[:-1], 0, 1).reshape(words.shape[1], -1)
        parts = [*inversion.sample(lower, side_by_side).reshape(-1, *shape), *parts]
    scale = moduli.per_limb(lambda q: (1 << shift_bits) % q)
    value = modular.from_signed(parts[-1], moduli=moduli)
    for part in parts[-2::-1]:  # Horner's rule
        value = modular.mul_constant(value, scale, moduli.shoup(scale), moduli=moduli)
        value = modular.add(value, modular.from_signed(part, moduli=moduli), moduli=moduli)
    return value


@partial(jax.jit, static_argnames="params")
def partially_decrypt(key_share, coefficient, second, flood, *, params):
    moduli = params.moduli
    additive = modular.mul(key_share, coefficient, moduli=moduli)
    additive = modular.to_montgomery(additive, moduli=moduli)
    product = modular.mul_montgomery(ntt.forward(second, moduli=moduli), additive, moduli=moduli)
    return modular.add(ntt.inverse(product, moduli=moduli), flood, moduli=moduli)


@partial(jax.jit, static_argnames=("params", "negative"))
def mask(partial, words, *, params, negative):
    wide = words.reshape(4, *partial.shape)
    uniform = modular.reduce_words(wide, moduli=params.moduli)
    operation = modular.sub if negative else modular.add
    return operation(partial, uniform, moduli=params.moduli)


@partial(jax.jit, static_argnames="params")
def combine(first, partials, *, params):
    moduli = params.moduli
    return modular.add(first, modular.sum_residues(partials, moduli=moduli), moduli=moduli)
