"""Ring-LWE encryption for XLA, on 32-bit words only.

On a CPU, encryption and decryption go limb by limb through blocks of a few columns: transform,
product, inverse transform, errors and message meet in the cache, on lazily reduced values, and only
what leaves is reduced (:mod:`fedjax_kernels.ntt.blocks`). Elsewhere the same steps work on whole
arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from fedjax_kernels.modular import xla as modular
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.modular.xla import mul_montgomery_lazy, mulhi, subtract_once
from fedjax_kernels.ntt import blocks
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


def _montgomery_inverse(moduli: Moduli) -> np.ndarray:
    """q^-1 mod 2^32 as [limb, 1], beside the rows of the transform's tables."""
    return moduli.q_inverse[..., 0]


class _Block(ntt.Limbs):
    """Arithmetic of one limb on a block of columns, or of all limbs on whole arrays."""

    q_inverse: Array

    @classmethod
    def whole(cls, moduli: Moduli) -> _Block:
        block = cls.all(moduli, 3)
        block.q_inverse = block.constant(_montgomery_inverse(moduli))
        return block

    @classmethod
    def of_limb(cls, moduli: Moduli, limb: Array, parts: int) -> _Block:
        block = cls.one(moduli, limb, 3, parts)
        block.q_inverse = block.constant(ntt.one_limb(_montgomery_inverse(moduli), limb))
        return block

    def small(self, x: Array) -> Array:
        """int32 [N, columns] of magnitude below q as residues [limb, N, columns]."""
        x = x[None]
        return x.astype(jnp.uint32) + jnp.where(x < 0, self.q, np.uint32(0))

    def product(self, x: Array, factor: Array) -> Array:
        """x * factor below 2q; `factor` [limb, N, 1 or columns] is in Montgomery form."""
        return mul_montgomery_lazy(x, factor, self.q, self.q_inverse)

    def sum(self, x: Array, *terms: Array) -> Array:
        """x below 2q plus residues, reduced; all [limb, N, columns]."""
        shape = x.shape
        x = x.reshape(shape[0], 1, -1)  # XLA:CPU vectorises the last axis only
        for term in terms:
            x = self.below_2q(x + term.reshape(x.shape))
        return self.below_q(x).reshape(shape)


def _products(block: _Block, x: Array, *keys: Array, transformed: bool = False) -> list[Array]:
    """The products of x and each key, [limb, N, columns] below 2q.

    Args:
        block: the constants.
        x: [limb, N, columns] residues.
        keys: transformed, in Montgomery form.
        transformed: whether x is.
    """

    def of_part(part: _Block, x: Array, *keys: Array) -> tuple[Array, ...]:
        values = x if transformed else ntt.forward_block(x, part, lazy=True)
        products = []
        for key in keys:
            products.append(ntt.inverse_block(part.product(values, key), part, lazy=True))
            if x.shape[0] == 1:  # one after the other: both at once would not fit the cache
                values, products[-1] = lax.optimization_barrier((values, products[-1]))
        return tuple(products)

    if block.parts == 1:
        return list(of_part(block, x, *keys))
    if not transformed:
        x = ntt.forward_first_stages(x, block)
    products = ntt.in_parts(block, of_part, x, *keys, results=len(keys))
    return [ntt.inverse_last_stages(product, block, lazy=True) for product in products]


def _public_key_block(block: _Block, keys, errors, u, message) -> list[Array]:
    first, second = _products(block, block.small(u), keys[0], keys[1])
    return [
        block.sum(first, block.small(errors[0]), message),
        block.sum(second, block.small(errors[1])),
    ]


def _phase_block(block: _Block, s, c0, c1) -> list[Array]:
    return [block.sum(*_products(block, c1, s), c0)]


def _secret_key_block(block: _Block, s, error, a, message) -> list[Array]:
    product = _products(block, a, s, transformed=True)
    return [block.sum(*product, block.small(error), message)]


def _secret_phase_block(block: _Block, minus_s, c0, a) -> list[Array]:
    return [block.sum(*_products(block, a, minus_s, transformed=True), c0)]


#: How an operand is cut: [..., limb, N, 1], [..., limb, N, batch] or [..., N, batch]; and one of
#: the two components of a ciphertext, which would be copied if it were taken beforehand.
_KEY, _WIDE, _SMALL = "key", "wide", "small"
_COMPONENTS = ("c0", "c1")


def _component(operand: Array, kind: str) -> Array:
    return operand[_COMPONENTS.index(kind)] if kind in _COMPONENTS else operand


def _cut(operand: Array, kind: str, limb: Array, start: Array, width: int) -> Array:
    if kind in _COMPONENTS:
        at = (_COMPONENTS.index(kind), limb, 0, start)
        return lax.dynamic_slice(operand, at, (1, 1, operand.shape[2], width))[0]
    if kind != _KEY:
        operand = lax.dynamic_slice_in_dim(operand, start, width, -1)
    if kind != _SMALL:
        operand = lax.dynamic_slice_in_dim(operand, limb, 1, -3)
    return operand


@lru_cache(maxsize=256)
def _in_blocks(function: Callable[..., Any], kinds: tuple[str, ...], num_out: int, moduli: Moduli):
    """`function(block, *operands)` as [num_out, limb, N, batch], block by block on a CPU.

    Under `jax.vmap`, clients with few columns each are set side by side as columns; others go one
    after the other. Both keep the blocks in the cache.
    """
    num_limbs, degree = moduli.num_limbs, moduli.ring_degree

    def whole(*operands: Array) -> Array:
        taken = (_component(x, kind) for x, kind in zip(operands, kinds, strict=True))
        return jnp.stack(function(_Block.whole(moduli), *taken))

    def blocked(*operands: Array) -> Array:
        batch = next(x.shape[-1] for x, kind in zip(operands, kinds, strict=True) if kind != _KEY)
        width, count = blocks.columns_of(degree, batch)

        def body(i: Array, out: Array) -> Array:
            limb, start = i // count, jnp.minimum(i % count * width, batch - width)
            cuts = [
                _cut(x, kind, limb, start, width) for x, kind in zip(operands, kinds, strict=True)
            ]
            block = _Block.of_limb(moduli, limb, blocks.parts_of(degree, width))
            parts = blocks.apart(i, lambda *cuts: function(block, *cuts), *cuts)
            for j, part in enumerate(parts):
                out = lax.dynamic_update_slice(out, part[None], (j, limb, 0, start))
            return out

        zeros = blocks.zeros((num_out, num_limbs, degree, batch), *operands)
        return blocks.loop(num_limbs * count, body, zeros)

    @custom_vmap
    def run(*operands: Array) -> Array:
        if max(x.size for x in operands) <= 2 * blocks.BLOCK_COEFFICIENTS:
            return whole(*operands)
        return lax.platform_dependent(*operands, cpu=blocked, default=whole)

    @run.def_vmap
    def _(axis_size: int, in_batched: list[bool], *operands: Array):
        batched = [flag for flag, kind in zip(in_batched, kinds, strict=True) if kind != _KEY]
        one_key = not any(f for f, kind in zip(in_batched, kinds, strict=True) if kind == _KEY)
        columns = max(x.shape[-1] for x in operands)
        if one_key and all(batched) and columns < blocks.MIN_COLUMNS:
            merged = [
                x if kind == _KEY else jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)
                for x, kind in zip(operands, kinds, strict=True)
            ]
            out = run(*merged)
            return jnp.moveaxis(out.reshape(*out.shape[:-1], axis_size, -1), -2, 0), True
        moving = [x for x, flag in zip(operands, in_batched, strict=True) if flag]

        def one(moving: list[Array]) -> Array:
            rest = iter(moving)
            pairs = zip(operands, in_batched, strict=True)
            return run(*(next(rest) if flag else x for x, flag in pairs))

        return lax.map(one, moving), True

    return run


@partial(jax.jit, static_argnames=("params", "encoding"))
def encode(lanes, *, params, encoding):
    """Every lane times a constant modulo q, below 2q: as many as fit 32 bits are added up first.

    Their quotients are added up too, so that they are multiplied by q only once.
    """
    moduli, shape = params.moduli, lanes.shape[1:]
    lanes, q = lanes.reshape(lanes.shape[0], 1, 1, -1), moduli.q
    at_once = ((1 << 32) - 1) // (2 * max(moduli.primes))
    total = None
    for start in range(0, encoding.num_lanes, at_once):
        low = high = np.uint32(0)
        group = range(start, min(start + at_once, encoding.num_lanes))
        for j in group:
            factor = params.dropped_prime << (encoding.noise_bits + j * encoding.lane_bits)
            scale = moduli.per_limb(lambda q, factor=factor: factor % q)
            low = low + lanes[j] * jnp.asarray(scale)
            high = high + mulhi(lanes[j], jnp.asarray(moduli.shoup(scale)))
        terms = low - high * q
        for bit in reversed(range((len(group) - 1).bit_length())):  # below 2 * len(group) * q
            terms = subtract_once(terms, (2 << bit) * q)
        total = terms if total is None else subtract_once(total + terms, 2 * q)  # below 2q
    return subtract_once(total, q).reshape(-1, *shape)


@partial(jax.jit, static_argnames="params")
def encrypt(public_key, message, words, *, params):
    moduli, batch = params.moduli, message.shape[-1]
    w = words.reshape(5, -1)
    unused = (w[0] >> ERROR_BITS) | (w[1] >> ERROR_BITS << 11) | (w[2] >> ERROR_BITS << 22)
    errors = jnp.stack([_centred_binomial(w[0], w[1]), _centred_binomial(w[2], w[3])])
    errors = errors.reshape(2, params.ring_degree, batch)
    u = _ternary(w[4], unused).reshape(params.ring_degree, batch)
    keys = modular.to_montgomery(jnp.stack([public_key.b, public_key.a]), moduli=moduli)
    run = _in_blocks(_public_key_block, (_KEY, _SMALL, _SMALL, _WIDE), 2, moduli)
    return run(keys, errors, u, message)


def add(a, b, *, params):
    return modular.add(a, b, moduli=params.moduli)


def sum_ciphertexts(ciphertexts, *, params):
    return modular.sum_residues(ciphertexts, moduli=params.moduli)


@partial(jax.jit, static_argnames="params")
def switch_modulus(ciphertext, *, params):
    prime, moduli = params.moduli.primes[-1], params.transport.moduli
    flat = ciphertext.reshape(*ciphertext.shape[:-2], 1, -1)
    dropped, kept = flat[..., -1:, :, :], flat[..., :-1, :, :]
    inverse = moduli.per_limb(lambda q: pow(prime, -1, q))
    above = moduli.per_limb(lambda q: -(-prime // q) * q)  # 0 mod q, and at least the prime
    centred = dropped - jnp.where(dropped > prime // 2, np.uint32(prime), np.uint32(0))
    difference = kept + modular.constant_like(above, flat.ndim) - centred  # below 2^32, above 0
    switched = modular.mul_constant(difference, inverse, moduli.shoup(inverse), moduli=moduli)
    return switched.reshape(*switched.shape[:-2], *ciphertext.shape[-2:])


@partial(jax.jit, static_argnames="params")
def phase(secret_key, ciphertext, *, params):
    s = modular.to_montgomery(secret_key.s, moduli=params.moduli)
    run = _in_blocks(_phase_block, (_KEY, *_COMPONENTS), 1, params.moduli)
    return run(s, ciphertext, ciphertext)[0]


@partial(jax.jit, static_argnames="params")
def expand_uniform(words, *, params):
    wide = words.reshape(4, params.num_limbs, params.ring_degree, -1)
    return modular.reduce_words(wide, moduli=params.moduli)


@partial(jax.jit, static_argnames="params")
def generate_secret(words, *, params):
    small = _ternary(*words.reshape(2, params.ring_degree, 1))
    return SecretKey(_transform_small(small, params.moduli))


def _packed_binomials(words, count: int):
    """Three centred binomials of 21 + 21 bits from each four words: int32 [count]."""
    w = words.reshape(4, -1)
    draws = []
    for r in range(3):
        minus = lax.population_count(w[r] >> ERROR_BITS) + lax.population_count(
            w[3] >> np.uint32(10 * r) & np.uint32((1 << 10) - 1)
        )
        draws.append(lax.population_count(w[r] & _ERROR_MASK) - minus)
    return jnp.concatenate(draws)[:count].astype(jnp.int32)


@partial(jax.jit, static_argnames="params")
def encrypt_secret(secret_key, message, a, words, *, params):
    moduli, shape = params.moduli, message.shape[1:]
    error = _packed_binomials(words, shape[0] * shape[1]).reshape(shape)
    s = modular.to_montgomery(secret_key.s, moduli=moduli)
    run = _in_blocks(_secret_key_block, (_KEY, _SMALL, _WIDE, _WIDE), 1, moduli)
    return run(s, error, a, message)[0]


@partial(jax.jit, static_argnames="params")
def phase_secret(secret_key, c0, a, *, params):
    moduli = params.moduli
    minus_s = modular.to_montgomery(modular.neg(secret_key.s, moduli=moduli), moduli=moduli)
    run = _in_blocks(_secret_phase_block, (_KEY, _WIDE, _WIDE), 1, moduli)
    return run(minus_s, c0, a)[0]


#: Coefficients that are decoded at once on a CPU: their residues and words stay in the cache.
_DECODED_AT_ONCE = 1 << 13


@partial(jax.jit, static_argnames=("params", "encoding"))
def decode(phase, *, params, encoding):
    moduli = params.moduli
    flat = phase.reshape(moduli.num_limbs, -1)
    size = flat.shape[-1]

    def whole(flat):
        lanes, above = _decode(flat, moduli, encoding)
        return lanes, jnp.all(above == 0)

    def blocked(flat):
        def body(i, carry):
            lanes, valid = carry
            start = jnp.minimum(i * _DECODED_AT_ONCE, size - _DECODED_AT_ONCE)
            part = lax.dynamic_slice_in_dim(flat, start, _DECODED_AT_ONCE, 1)
            part, above = blocks.apart(i, lambda x: _decode(x, moduli, encoding), part)
            lanes = lax.dynamic_update_slice_in_dim(lanes, part, start, 1)
            return lanes, valid & jnp.all(above == 0)

        zeros = blocks.zeros((encoding.num_lanes, size), flat)
        carry = (zeros, zeros[0, 0] == 0)
        return blocks.loop(-(-size // _DECODED_AT_ONCE), body, carry)

    if size <= _DECODED_AT_ONCE:
        lanes, valid = whole(flat)
    else:
        lanes, valid = lax.platform_dependent(flat, cpu=blocked, default=whole)
    return lanes.reshape(-1, *phase.shape[1:]), valid


def _decode(flat, moduli: Moduli, encoding):
    """[limb, n] to the lanes [lane, n], and to [n] words that are 0 where nothing is above them."""
    half = moduli.per_limb(lambda q: pow(2, encoding.noise_bits - 1, q))[..., 0]
    q = moduli.q[..., 0]
    words = _to_words(subtract_once(flat + half, q), moduli)
    lanes = []
    for j in range(encoding.num_lanes):
        lane = _bits_from(words, encoding.noise_bits + j * encoding.lane_bits)
        if encoding.lane_bits < 32:
            lane = lane & np.uint32((1 << encoding.lane_bits) - 1)
        lanes.append(lane)
    above = jnp.zeros_like(words[0])
    for start in range(encoding.total_bits, 32 * len(words), 32):
        above = above | _bits_from(words, start)
    return jnp.stack(lanes), above


def _to_words(residues, moduli: Moduli):
    """The integers below Q with these residues, as a list of 32-bit words, lowest first.

    Of the mixed-radix digits, digit_j = (..(x_j - digit_0) / q_0 - ..) mod q_j.
    """
    primes = moduli.primes
    rest = [residues[j] for j in range(len(primes))]
    digits = []
    for j, q in enumerate(primes):
        digit = subtract_once(rest[j], np.uint32(q)) if j else rest[0]
        digits.append(digit)
        for k in range(j + 1, len(primes)):  # values below 2 q_k
            p = primes[k]
            inverse = pow(q, -1, p)
            difference = rest[k] + np.uint32(-(-q // p) * p) - digit  # in (0, 2^32)
            rest[k] = _scaled(difference, inverse, p)
        rest = lax.optimization_barrier(rest)
    words = [digits[-1]]
    for digit, q in zip(digits[-2::-1], primes[-2::-1], strict=True):
        words = lax.optimization_barrier(_multiply_add(words, q, digit))
    return words[: -(-moduli.product.bit_length() // 32)]


def _scaled(x, factor: int, q: int):
    """x * factor mod q below 2q, for any 32-bit x and numbers known before compilation."""
    word = np.uint32
    quotient = jnp.full(x.shape, (factor << 32) // q, jnp.uint32)
    return x * word(factor) - mulhi(x, quotient) * word(q)


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
