"""Ring-LWE encryption from its definition: polynomials in coefficient form, products by
schoolbook, transforms by definition, and Python integers wherever a number exceeds 62 bits."""

from __future__ import annotations

import numpy as np

from fedjax_kernels.modular import reference as modular
from fedjax_kernels.ntt import reference as ntt
from fedjax_kernels.rlwe.parameters import ERROR_BITS, PublicKey, SecretKey


def _integers(words) -> np.ndarray:
    return np.asarray(words).astype(object)


def _centred_binomial(first: int, second: int) -> int:
    mask = (1 << ERROR_BITS) - 1
    return (first & mask).bit_count() - (second & mask).bit_count()


def _ternary(high: int, low: int) -> int:
    return 3 * ((high << 32) + low) // (1 << 64) - 1


def _map(function, *words) -> np.ndarray:
    return np.vectorize(function, otypes=[object])(*words)


def _residues(small: np.ndarray, params) -> np.ndarray:
    return modular.from_signed(small, moduli=params.moduli)


def generate_key(words, *, params):
    degree, moduli = params.ring_degree, params.moduli
    small = _integers(words[: 4 * degree]).reshape(4, degree, 1)
    wide = np.asarray(words[4 * degree :]).reshape(3, params.num_limbs, degree, 1)
    s = _residues(_map(_ternary, small[0], small[1]), params)
    e = _residues(_map(_centred_binomial, small[2], small[3]), params)
    a = modular.reduce_words(wide, moduli=moduli)
    product = ntt.multiply(ntt.inverse(a, moduli=moduli), s, moduli=moduli)
    b = modular.sub(e, product, moduli=moduli)
    return (
        SecretKey(ntt.forward(s, moduli=moduli)),
        PublicKey(ntt.forward(b, moduli=moduli), a),
    )


def encode(lanes, *, params, encoding):
    scaled = [
        params.dropped_prime * _integers(lane) << (encoding.noise_bits + j * encoding.lane_bits)
        for j, lane in enumerate(lanes)
    ]
    return _residues(np.sum(scaled, axis=0), params)


def encrypt(public_key, message, words, *, params):
    moduli = params.moduli
    w = _integers(words).reshape(5, params.ring_degree, np.shape(message)[-1])
    unused = (w[0] >> ERROR_BITS) + (w[1] >> ERROR_BITS) * 2**11 + (w[2] >> ERROR_BITS) * 2**22
    u = _residues(_map(_ternary, w[4], unused % 2**32), params)
    e0 = _residues(_map(_centred_binomial, w[0], w[1]), params)
    e1 = _residues(_map(_centred_binomial, w[2], w[3]), params)
    b, a = (ntt.inverse(key, moduli=moduli) for key in (public_key.b, public_key.a))
    c0 = modular.add(ntt.multiply(u, b, moduli=moduli), e0, moduli=moduli)
    c1 = modular.add(ntt.multiply(u, a, moduli=moduli), e1, moduli=moduli)
    return np.stack([modular.add(c0, message, moduli=moduli), c1])


def add(a, b, *, params):
    return modular.add(a, b, moduli=params.moduli)


def sum_ciphertexts(ciphertexts, *, params):
    return modular.sum_residues(ciphertexts, moduli=params.moduli)


def switch_modulus(ciphertext, *, params):
    prime, primes = params.moduli.primes[-1], params.transport.moduli.primes
    integers = _integers(ciphertext)
    dropped = integers[..., -1, :, :]
    centred = np.where(dropped > prime // 2, dropped - prime, dropped)
    limbs = [
        (integers[..., j, :, :] - centred) * pow(prime, -1, q) % q for j, q in enumerate(primes)
    ]
    return np.stack(limbs, axis=-3).astype(np.uint32)


def expand_uniform(words, *, params):
    wide = np.asarray(words).reshape(4, params.num_limbs, params.ring_degree, -1)
    return modular.reduce_words(wide, moduli=params.moduli)


def generate_secret(words, *, params):
    high, low = _integers(words).reshape(2, params.ring_degree, 1)
    s = _residues(_map(_ternary, high, low), params)
    return SecretKey(ntt.forward(s, moduli=params.moduli))


def _packed_binomial(word: int, fourth: int, place: int) -> int:
    """Of three words and a fourth, 42 bits: 32 of one's own, and ten of the fourth."""
    bits = word + ((fourth >> 10 * place) % (1 << 10) << 32)
    return _centred_binomial(bits, bits >> ERROR_BITS)


def encrypt_secret(secret_key, message, a, words, *, params):
    moduli, shape = params.moduli, np.shape(message)[1:]
    w = _integers(words).reshape(4, -1)
    draws = [_map(lambda x, y, r=r: _packed_binomial(x, y, r), w[r], w[3]) for r in range(3)]
    error = _residues(np.concatenate(draws)[: shape[0] * shape[1]].reshape(shape), params)
    a, s = (ntt.inverse(np.asarray(x), moduli=moduli) for x in (a, secret_key.s))
    total = modular.add(ntt.multiply(a, s, moduli=moduli), error, moduli=moduli)
    return modular.add(total, message, moduli=moduli)


def phase_secret(secret_key, c0, a, *, params):
    moduli = params.moduli
    a, s = (ntt.inverse(np.asarray(x), moduli=moduli) for x in (a, secret_key.s))
    return modular.sub(c0, ntt.multiply(a, s, moduli=moduli), moduli=moduli)


def phase(secret_key, ciphertext, *, params):
    moduli = params.moduli
    s = ntt.inverse(secret_key.s, moduli=moduli)
    product = ntt.multiply(ciphertext[1], s, moduli=moduli)
    return modular.add(ciphertext[0], product, moduli=moduli)


def decode(phase, *, params, encoding):
    modulus = params.moduli.product
    integers = sum(  # Chinese remainder theorem
        _integers(limb) * (modulus // q) * pow(modulus // q, -1, q)
        for limb, q in zip(np.asarray(phase), params.moduli.primes, strict=True)
    )
    scaled = (integers + (1 << (encoding.noise_bits - 1))) % modulus >> encoding.noise_bits
    lanes = []
    for _ in range(encoding.num_lanes):
        lanes.append((scaled % (1 << encoding.lane_bits) % (1 << 32)).astype(np.uint32))
        scaled = scaled >> encoding.lane_bits
    return np.stack(lanes), np.bool_((scaled == 0).all())
