"""Encryption for GPUs, fused: nothing but coins, plaintext and ciphertext goes through memory.

`encrypt_lanes` is two kernels, because their work is shared out differently.

- *Expand and sample*: a thread makes five ChaCha20 blocks, one in each of the five streams of
  words that an encryption takes, and turns their 80 words into the 16 coins of successive
  coefficients: u, e0 and e1 in 14 bits. The words never leave the registers. Blocks of the stream
  and columns of a transform do not line up (a stream runs through the whole batch first), so one
  kernel for everything would make each block about three times, and again for each prime.
- *Encrypt*: a block takes one prime and the C columns of one transform. It reads the coins (2
  bytes a coefficient), transforms u, and keeps going in registers: pass 3 of the transform ends
  where pass 3 of the inverse begins, with the product by the key in between. u's transform is
  needed twice; there is no room for it in shared memory beside the work, so it waits in the place
  of the ciphertext's second half, written and read back by the same thread (it comes from the L2
  cache). Packing the lanes, adding the errors and adding the message happen on the way out.

So a coefficient costs 2 bytes of coins written and 2 L read, 4 bytes a lane read (L times, from
the cache after the first), and 8 L of ciphertext written; without fusion it is 20 bytes of words
written and read, and about 60 L bytes of intermediate results.

`phase`, the costly half of decryption, is one kernel of the same kind. What is not here (making a
key, decoding) is one elementwise fusion of XLA's, or is done once, and is taken from
`fedjax_kernels.rlwe.xla`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import mosaic
from fedjax_kernels.chacha import pallas as chacha
from fedjax_kernels.modular import pallas as modular
from fedjax_kernels.modular.xla import to_montgomery
from fedjax_kernels.mosaic import mul_montgomery_lazy, mul_shoup, subtract_once
from fedjax_kernels.ntt.pallas import Block, Constants, Window, constants, in_columns, plan
from fedjax_kernels.rlwe import xla
from fedjax_kernels.rlwe.parameters import ERROR_BITS

_ERROR_MASK = np.uint32((1 << ERROR_BITS) - 1)
_COIN_BITS = 6  # of an error plus 21
_STREAMS, _WORDS = 5, 16


def __getattr__(name: str) -> Any:
    return getattr(xla, name)


def _pairs(word: Any) -> Any:
    """Ones of every four bits, by bit arithmetic: Mosaic GPU has no population count."""
    word = word - ((word >> 1) & 0x55555555)
    return (word & 0x33333333) + ((word >> 2) & 0x33333333)


def _error(first: Any, second: Any) -> Any:
    """21 plus the centred binomial: the ones of the first word and the zeros of the second."""
    fours = _pairs(first & _ERROR_MASK) + _pairs(~second & _ERROR_MASK)  # at most 8 in each
    bytes_ = (fours & 0x0F0F0F0F) + ((fours >> 4) & 0x0F0F0F0F)
    return (bytes_ * jnp.uint32(0x01010101)) >> 24


def _ternary(high: Any, low: Any) -> Any:
    """floor(3 (2^32 high + low) / 2^64), in {0, 1, 2}: one plus the ternary u."""
    three = (high & 0) + jnp.uint32(3)
    middle = high * three
    carry = (middle + mosaic.mulhi(low, three) < middle).astype(jnp.uint32)
    return mosaic.mulhi(high, three) + carry


def _second_error(c: Any, d: Any) -> Any:
    """From the third and fourth word: e1 + 21 in 6 bits, and the bits that are left above."""
    return _error(c, d) | (c >> ERROR_BITS << _COIN_BITS)


def _both_errors(a: Any, b: Any, second: Any) -> tuple[Any, Any]:
    """From the first two words: both errors in 12 bits, and the lower word of the ternary draw."""
    unused = (a >> ERROR_BITS) | (b >> ERROR_BITS << 11) | (second >> _COIN_BITS << 22)
    return _error(a, b) | ((second & ((1 << _COIN_BITS) - 1)) << _COIN_BITS), unused


def _coin(errors: Any, unused: Any, high: Any) -> Any:
    """u + 1, e0 + 21 and e1 + 21 in 2 + 6 + 6 bits."""
    return _ternary(high, unused) | (errors << 2)


def _ternary_residue(coin: Any, q: Any) -> Any:
    u = (coin & 3) - 1
    return jnp.minimum(u, u + q)


def _error_residue(coin: Any, which: int, q: Any) -> Any:
    e = ((coin >> (2 + _COIN_BITS * which)) & ((1 << _COIN_BITS) - 1)) - jnp.uint32(ERROR_BITS)
    return jnp.minimum(e, e + q)


@partial(jax.jit, static_argnames=("ring_degree", "batch", "interpret"))
def expand_coins(key, nonce, *, ring_degree, batch, interpret=False):
    """[N, batch] uint16 coins from the key stream that `encrypt` would take as words."""
    threads = ring_degree * batch // _WORDS
    grid = -(-threads // mosaic.THREADS)

    def body(index, group, seed, out, work, gate):
        first = index[0] * mosaic.THREADS
        counter = mosaic.thread_numbers() + first.astype(jnp.uint32) + seed[8]

        def stream(number):
            return chacha.blocks(seed, counter + jnp.uint32(number * threads))

        # In an order that keeps few words alive, which the barriers make the compiler keep to.
        keep = jax.lax.optimization_barrier
        second = keep([_second_error(c, d) for c, d in zip(stream(2), stream(3), strict=True)])
        words = zip(stream(0), stream(1), second, strict=True)
        errors, unused = zip(*(_both_errors(a, b, e) for a, b, e in words), strict=True)
        errors, unused = keep(errors), keep(unused)
        coins = [_coin(*parts) for parts in zip(errors, unused, stream(4), strict=True)]
        pairs = [a | (b << 16) for a, b in zip(coins[::2], coins[1::2], strict=True)]
        chacha.write_rows(work, gate, out, first, pairs)

    width = _WORDS // 2
    pairs = mosaic.launch(
        body,
        name="rlwe_expand_and_sample",
        out=jax.ShapeDtypeStruct((grid * mosaic.THREADS, width), jnp.uint32),
        grid=(grid,),
        scratch=(mosaic.shared((mosaic.THREADS, width + 1), jnp.uint32), mosaic.barrier(1)),
        warpgroups=1,
        interpret=interpret,
    )(chacha.seed_words(key, nonce, 0))
    coins = jax.lax.bitcast_convert_type(pairs[:threads], jnp.uint16)
    return coins.reshape(ring_degree, batch)


@lru_cache(maxsize=64)
def _scales(params: Any, encoding: Any) -> np.ndarray:
    """[limb, lane, 2] uint32: each lane's factor and its Shoup quotient."""
    moduli, parts = params.moduli, []
    for j in range(encoding.num_lanes):
        factor = params.dropped_prime << (encoding.noise_bits + j * encoding.lane_bits)
        scale = moduli.per_limb(lambda q, factor=factor: factor % q)
        parts.append(np.stack([scale, moduli.shoup(scale)], axis=-1).reshape(-1, 1, 2))
    return np.concatenate(parts, axis=1)


def _transformed(polynomials: Any, moduli: Any) -> jax.Array:
    """[..., limb, N, 1] values of a transform, in Montgomery form, as [rows, limb, r3, r1 r2]."""
    values = to_montgomery(polynomials, moduli=moduli)
    r1, r2, r3 = plan(moduli.ring_degree).radices
    return values.reshape(-1, moduli.num_limbs, r1 * r2, r3).swapaxes(-1, -2)


def _multiply(block: Block, rows: Any, key: Any, which: int, chunk: Any, prime: Any) -> list[Any]:
    """Products of one chunk's values with a transformed key, below 2q."""
    r3 = block.plan.radices[2]
    at = mosaic.indices(chunk * r3, r3)
    q, q_inverse = prime[block.limb, 0], prime[block.limb, 1]
    return [
        mul_montgomery_lazy(value, block.repeat(key.at[which, block.limb, d, at]), q, q_inverse)
        for d, value in enumerate(rows)
    ]


def _launch(body: Any, name: str, params: Any, columns: int, rows: int, interpret: bool) -> Any:
    """Runs `body` for each prime and each C of `columns`; the result is [rows, r1 r2, r3, ...]."""
    division = plan(params.ring_degree)
    r1, r2, r3 = division.radices
    return mosaic.launch(
        body,
        name=f"{name}_{params.ring_degree}",
        out=jax.ShapeDtypeStruct((rows, r1 * r2, r3, columns), jnp.uint32),
        grid=(columns // division.columns, params.num_limbs),
        scratch=division.scratch,
        warpgroups=division.warpgroups,
        interpret=interpret,
    )


def _tables(moduli: Any) -> list[jax.Array]:
    """The constants of the forward transform, then those of the inverse."""
    tables = (*constants(moduli, inverse=False), *constants(moduli, inverse=True))
    return [jnp.asarray(table) for table in tables]


def _encrypt(public_key, coins, plaintext, params, encoding, interpret):
    """The second kernel: `plaintext` is residues where `encoding` is None, else lanes."""
    moduli, limbs, degree = params.moduli, params.num_limbs, params.ring_degree
    division, batch = plan(degree), plaintext.shape[-1]
    if not batch:
        return jnp.zeros((2, limbs, degree, 0), jnp.uint32)
    chunks = division.radices[0] * division.radices[1] // division.radices[2]
    key = _transformed(jnp.stack([public_key.b, public_key.a]), moduli)
    scales = np.zeros((limbs, 1, 2), np.uint32) if encoding is None else _scales(params, encoding)

    def body(index, group, coins, plain, key, scale, *rest):
        forward, inverse = Constants(*rest[:4]), Constants(*rest[4:8])
        result, work, gate = rest[8:]
        columns, limb = index
        block = Block(division, limb, group, work, gate)
        q, prime = forward.prime[limb, 0], forward.prime
        coin = Window(block, coins, 0, columns)
        halves = [Window(block, result, which * limbs + limb, columns) for which in range(2)]

        def message(b, a):
            if encoding is None:
                return Window(block, plain, limb, columns).read(b, a)
            total = None
            for j in range(encoding.num_lanes):
                lane = Window(block, plain, j, columns).read(b, a)
                term = mul_shoup(lane, scale[limb, j, 0], scale[limb, j, 1], q)
                total = term if total is None else subtract_once(total + term, q)
            return total

        def ephemeral(b, a):
            return _ternary_residue(coin.read(b, a).astype(jnp.uint32), q)

        def first_product(chunk):
            rows = block.third_forward(chunk, forward.third, q)
            for d, value in enumerate(rows):  # for the second product
                mosaic.store(halves[1].spread(chunk, d), value)
            rows = _multiply(block, rows, key, 0, chunk, prime)
            block.third_inverse(chunk, rows, inverse.third, q)

        def second_product(chunk):
            rows = [block.get(halves[1].spread(chunk, d)) for d in range(division.radices[2])]
            rows = _multiply(block, rows, key, 1, chunk, prime)
            block.third_inverse(chunk, rows, inverse.third, q)

        def finish(which):
            def sink(b, a, value):
                error = _error_residue(coin.read(b, a).astype(jnp.uint32), which, q)
                value = subtract_once(value + error, q)
                if which == 0:
                    value = subtract_once(value + message(b, a), q)
                halves[which].write(b, a, value)

            return sink

        block.forward_to_third(ephemeral, forward, q)
        block.share(chunks, first_product)
        block.meet()
        block.inverse_from_third(finish(0), inverse, q)
        block.meet()
        block.share(chunks, second_product)
        block.meet()
        block.inverse_from_third(finish(1), inverse, q)

    coins, plain = in_columns(coins, division), in_columns(plaintext, division)
    run = _launch(body, "rlwe_encrypt", params, plain.shape[-1], 2 * limbs, interpret)
    result = run(coins, plain, key, jnp.asarray(scales), *_tables(moduli))
    return result[..., :batch].reshape(2, limbs, degree, batch)


@partial(jax.jit, static_argnames=("params", "encoding", "interpret"))
def encrypt_lanes(public_key, lanes, key, nonce, *, params, encoding, interpret=False):
    coins = expand_coins(
        key, nonce, ring_degree=params.ring_degree, batch=lanes.shape[-1], interpret=interpret
    )
    return _encrypt(public_key, coins, lanes, params, encoding, interpret)


@partial(jax.jit, static_argnames=("params", "interpret"))
def encrypt(public_key, message, words, *, params, interpret=False):
    """Words from outside become coins in one elementwise fusion of XLA's."""
    words = words.reshape(_STREAMS, params.ring_degree, message.shape[-1])
    second = _second_error(words[2], words[3])
    errors, unused = _both_errors(words[0], words[1], second)
    coins = _coin(errors, unused, words[4]).astype(jnp.uint16)
    return _encrypt(public_key, coins, message, params, None, interpret)


@partial(jax.jit, static_argnames=("params", "interpret"))
def phase(secret_key, ciphertext, *, params, interpret=False):
    moduli, limbs = params.moduli, params.num_limbs
    division, batch = plan(params.ring_degree), ciphertext.shape[-1]
    if not batch:
        return ciphertext[0]
    chunks = division.radices[0] * division.radices[1] // division.radices[2]

    def body(index, group, source, key, *rest):
        forward, inverse = Constants(*rest[:4]), Constants(*rest[4:8])
        result, work, gate = rest[8:]
        columns, limb = index
        block = Block(division, limb, group, work, gate)
        q = forward.prime[limb, 0]
        c0, c1 = (Window(block, source, which * limbs + limb, columns) for which in range(2))
        out = Window(block, result, limb, columns)

        def product(chunk):
            rows = block.third_forward(chunk, forward.third, q)
            rows = _multiply(block, rows, key, 0, chunk, forward.prime)
            block.third_inverse(chunk, rows, inverse.third, q)

        block.forward_to_third(c1.read, forward, q)
        block.share(chunks, product)
        block.meet()
        block.inverse_from_third(
            lambda b, a, value: out.write(b, a, subtract_once(value + c0.read(b, a), q)),
            inverse,
            q,
        )

    source = in_columns(ciphertext, division)
    run = _launch(body, "rlwe_phase", params, source.shape[-1], limbs, interpret)
    result = run(source, _transformed(secret_key.s, moduli), *_tables(moduli))
    return result[..., :batch].reshape(limbs, params.ring_degree, batch)


def add(a, b, *, params, interpret=False):
    return modular.add(a, b, moduli=params.moduli, interpret=interpret)


def sum_ciphertexts(ciphertexts, *, params, interpret=False):
    return modular.sum_residues(ciphertexts, moduli=params.moduli, interpret=interpret)
