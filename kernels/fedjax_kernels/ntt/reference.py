"""The transform by its definition and products by schoolbook, on the host.

Everything is an int64 below q^2 + q < 2^61, reduced after every step, so no integer overflows.
"""

from __future__ import annotations

import numpy as np

from fedjax_kernels.ntt.tables import bit_reverse, primitive_root


def _powers(root: int, q: int, count: int) -> np.ndarray:
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * root % q)
    return np.array(powers, np.int64)


def _limbs(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(x).astype(np.int64), -3, 0)


def _stack(limbs: list[np.ndarray]) -> np.ndarray:
    return np.stack(limbs, axis=-3).astype(np.uint32)


def forward(x, *, moduli):
    degree = moduli.ring_degree
    odd = 2 * np.arange(degree) + 1
    out = []
    for q, limb in zip(moduli.primes, _limbs(x), strict=True):
        powers = _powers(primitive_root(q, degree), q, 2 * degree)
        values = np.zeros_like(limb)
        for n in range(degree):
            weight = powers[n * odd % (2 * degree)][:, None]
            values = (values + limb[..., n : n + 1, :] * weight) % q
        out.append(values[..., bit_reverse(degree), :])
    return _stack(out)


def inverse(x, *, moduli):
    degree = moduli.ring_degree
    odd = 2 * np.arange(degree) + 1
    out = []
    for q, limb in zip(moduli.primes, _limbs(x), strict=True):
        powers = _powers(pow(primitive_root(q, degree), -1, q), q, 2 * degree)
        values = limb[..., bit_reverse(degree), :]
        coefficients = np.zeros_like(values)
        for k in range(degree):
            weight = powers[np.arange(degree) * odd[k] % (2 * degree)][:, None]
            coefficients = (coefficients + values[..., k : k + 1, :] * weight) % q
        out.append(coefficients * pow(degree, -1, q) % q)
    return _stack(out)


def multiply(a, b, *, moduli):
    degree = moduli.ring_degree
    out = []
    for q, left, right in zip(moduli.primes, _limbs(a), _limbs(b), strict=True):
        product = np.zeros(np.broadcast_shapes(left.shape, right.shape), np.int64)
        for i in range(degree):  # x^i b: the coefficients that pass x^N come back negated
            shifted = np.roll(right, i, axis=-2)
            shifted[..., :i, :] *= -1
            product = (product + left[..., i : i + 1, :] * shifted) % q
        out.append(product)
    return _stack(out)
