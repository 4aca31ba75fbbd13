"""Ring-LWE encryption for XLA, on 32-bit words only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_kernels.modular import xla as modular
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.modular.xla import mulhi
from fedjax_kernels.ntt import xla as ntt
from fedjax_kernels.rlwe.parameters import ERROR_BITS, PublicKey, SecretKey

_ERROR_MASK = np.uint32((1 << ERROR_BITS) - 1)


def _centred_binomial(first, second):
    """Bits of the lower 21 of one word minus those of another: int32 in [-21, 21]."""
    ones = lax.population_count(first & _ERROR_MASK) - lax.population_count(second & _ERROR_MASK)
    return ones.astype(jnp.int32)


def _ternary(high, low):
    """floor(3 (2^32 high + low) / 2^64) - 1: int32 in {-1, 0, 1}."""
    three = jnp.full(high.shape, 3, jnp.uint32)
    middle = high * np.uint32(3)
    carry = (middle + mulhi(low, three) < middle).astype(jnp.uint32)
    return (mulhi(high, three) + carry).astype(jnp.int32) - 1


def _transform_small(x, moduli):
    return ntt.forward(modular.from_signed(x, moduli=moduli), moduli=moduli)


@partial(jax.jit, static_argnames="params")
def generate_key(words, *, params):
    moduli, degree, limbs = params.moduli, params.ring_degree, params.num_limbs
    small = words[: 4 * degree].reshape(4, degree, 1)
    wide = words[4 * degree :].reshape(3, limbs, degree, 1)
    secret, error = _ternary(small[0], small[1]), _centred_binomial(small[2], small[3])
    s, e = _transform_small(jnp.stack([secret, error]), moduli)
    a = modular.reduce_words(wide, moduli=moduli)
    b = modular.sub(e, modular.mul(a, s, moduli=moduli), moduli=moduli)
    return SecretKey(s), PublicKey(b, a)


@partial(jax.jit, static_argnames=("params", "encoding"))
def encode(lanes, *, params, encoding):
    moduli = params.moduli
    total = None
    for j in range(encoding.num_lanes):
        shift = encoding.noise_bits + j * encoding.lane_bits
        factor = params.dropped_prime << shift
        scale = moduli.per_limb(lambda q, factor=factor: factor % q)
        term = modular.mul_constant(lanes[j][None], scale, moduli.shoup(scale), moduli=moduli)
        total = term if total is None else modular.add(total, term, moduli=moduli)
    return total


@partial(jax.jit, static_argnames="params")
def encrypt(public_key, message, words, *, params):
    moduli = params.moduli
    w = words.reshape(5, params.ring_degree, message.shape[-1])
    unused = (w[0] >> ERROR_BITS) | (w[1] >> ERROR_BITS << 11) | (w[2] >> ERROR_BITS << 22)
    u = _transform_small(_ternary(w[4], unused), moduli)

    keys = modular.to_montgomery(jnp.stack([public_key.b, public_key.a]), moduli=moduli)
    products = modular.mul_montgomery(u, keys, moduli=moduli)
    errors = jnp.stack([_centred_binomial(w[0], w[1]), _centred_binomial(w[2], w[3])])
    zero_part = modular.add(
        ntt.inverse(products, moduli=moduli),
        modular.from_signed(errors, moduli=moduli),
        moduli=moduli,
    )
    return jnp.stack([modular.add(zero_part[0], message, moduli=moduli), zero_part[1]])


def add(a, b, *, params):
    return modular.add(a, b, moduli=params.moduli)


def sum_ciphertexts(ciphertexts, *, params):
    return modular.sum_residues(ciphertexts, moduli=params.moduli)


@partial(jax.jit, static_argnames="params")
def phase(secret_key, ciphertext, *, params):
    moduli = params.moduli
    s = modular.to_montgomery(secret_key.s, moduli=moduli)
    product = modular.mul_montgomery(ntt.forward(ciphertext[1], moduli=moduli), s, moduli=moduli)
    return modular.add(ciphertext[0], ntt.inverse(product, moduli=moduli), moduli=moduli)


@partial(jax.jit, static_argnames=("params", "encoding"))
def decode(phase, *, params, encoding):
    moduli = params.moduli
    half = moduli.per_limb(lambda q: pow(2, encoding.noise_bits - 1, q))
    words = _to_words(modular.add(phase, half, moduli=moduli), moduli)
    lanes = []
    for j in range(encoding.num_lanes):
        lane = _bits_from(words, encoding.noise_bits + j * encoding.lane_bits)
        if encoding.lane_bits < 32:
            lane = lane & np.uint32((1 << encoding.lane_bits) - 1)
        lanes.append(lane)
    above = jnp.zeros_like(words[0])
    for start in range(encoding.total_bits, 32 * len(words), 32):
        above = above | _bits_from(words, start)
    return jnp.stack(lanes), jnp.all(above == 0)


def _to_words(residues, moduli: Moduli):
    """The integers below Q with these residues, as a list of 32-bit words, lowest first."""
    digits = []
    for j, q in enumerate(moduli.primes):  # digit_j = (..(x_j - digit_0) / q_0 - ..) mod q_j
        digits.append(residues[0])
        if j + 1 == moduli.num_limbs:
            break
        rest = Moduli(moduli.primes[j + 1 :], moduli.ring_degree)
        inverse = rest.per_limb(lambda p, q=q: pow(q, -1, p))
        difference = modular.sub(
            residues[1:], modular.reduce(residues[:1], moduli=rest), moduli=rest
        )
        residues = modular.mul_constant(difference, inverse, rest.shoup(inverse), moduli=rest)
    words = [digits[-1]]
    for digit, q in zip(digits[-2::-1], moduli.primes[-2::-1], strict=True):
        words = _multiply_add(words, q, digit)
    return words[: -(-moduli.product.bit_length() // 32)]


def _multiply_add(words, factor: int, carry):
    """words * factor + carry, one word longer."""
    multiplier = jnp.full(carry.shape, factor, jnp.uint32)
    out = []
    for word in words:
        low = word * multiplier + carry
        carry = mulhi(word, multiplier) + (low < carry).astype(jnp.uint32)
        out.append(low)
    return [*out, carry]


def _bits_from(words, start: int):
    """The 32 bits of a multi-word integer from bit `start` up."""
    index, shift = divmod(start, 32)
    if index >= len(words):
        return jnp.zeros_like(words[0])
    low = words[index] >> np.uint32(shift)
    if shift == 0 or index + 1 == len(words):
        return low
    return low | (words[index + 1] << np.uint32(32 - shift))
