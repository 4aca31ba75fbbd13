"""CKKS's canonical embedding, and exact integers from residues, on the host in NumPy.

Source: J. H. Cheon, A. Kim, M. Kim, Y. Song, ASIACRYPT 2017 (ePrint 2016/421), section 3.2, with
the slots in the order of the powers of 5, as OpenFHE has them; mixed-radix digits of H. Garner, IRE
Trans. EC-8 (1959).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedjax_kernels.modular import Moduli

from ...core import ParameterError


@lru_cache(maxsize=8)
def _slot_exponents(ring_degree: int) -> np.ndarray:
    """5^j mod 2N for every slot j: slot j is the value at exp(i pi 5^j / N)."""
    exponents = np.empty(ring_degree // 2, np.int64)
    power = 1
    for slot in range(ring_degree // 2):
        exponents[slot] = power
        power = power * 5 % (2 * ring_degree)
    exponents.setflags(write=False)
    return exponents


def embed(values: np.ndarray, ring_degree: int) -> np.ndarray:
    """The real polynomials that have these values in their slots.

    Args:
        values: float64 [batch, slots], slots up to N/2; the rest are zero.
        ring_degree: N.

    Returns:
        float64 [N, batch], coefficients.

    Example:
        >>> embed(np.full((1, 4), 3.0), 8).round(12)[:, 0].tolist()
        [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    batch, slots = values.shape
    exponents = _slot_exponents(ring_degree)[:slots]
    spectrum = np.zeros((2 * ring_degree, batch))
    spectrum[exponents] = values.T
    spectrum[2 * ring_degree - exponents] = values.T  # at the conjugate roots
    return np.fft.fft(spectrum, axis=0)[:ring_degree].real / ring_degree + 0.0


def project(coefficients: np.ndarray, ring_degree: int) -> np.ndarray:
    """The real parts of polynomials' values in their slots; inverts :func:`embed`.

    Args:
        coefficients: float64 [N, batch].
        ring_degree: N.

    Returns:
        float64 [batch, N/2].
    """
    values = np.fft.ifft(coefficients, n=2 * ring_degree, axis=0) * (2 * ring_degree)
    return values[_slot_exponents(ring_degree)].real.T


def to_residues(integers: np.ndarray, moduli: Moduli) -> np.ndarray:
    """Signed integers to residues: int64 [N, batch] -> uint32 [limb, N, batch].

    Raises:
        ParameterError: an integer that is not within Q/2.
    """
    largest = int(np.abs(integers).max(initial=0))
    if 2 * largest >= moduli.product:
        raise ParameterError(
            "encoding for OpenFHE", need=f"scaled values below {moduli.product // 2}",
            found="a larger one", fix="Use smaller values, or a context with more primes.")
    return np.stack([(integers % q).astype(np.uint32) for q in moduli.primes])


def centred_digits(residues: np.ndarray, moduli: Moduli) -> tuple[np.ndarray, np.ndarray]:
    """Sign and magnitude of the integers nearest zero with these residues.

    Args:
        residues: uint32 [limb, N, batch].
        moduli: the primes.

    Returns:
        bool [N, batch], True where negative; and the magnitudes' mixed-radix digits, uint64 [limb,
        N, batch]: digit i counts q_1 ... q_(i-1).
    """
    q = np.array(moduli.primes, np.uint64).reshape(-1, 1, 1)
    wide = residues.astype(np.uint64)
    positive = _digits(wide, moduli)
    opposite = _digits((q - wide) % q, moduli)
    negative = np.zeros(wide.shape[1:], bool)
    for one, other in zip(positive, opposite, strict=True):  # the highest digit decides
        negative = np.where(one == other, negative, other < one)
    return negative, np.where(negative, opposite, positive)


def _digits(wide: np.ndarray, moduli: Moduli) -> np.ndarray:
    digits = np.empty_like(wide)
    for i, q in enumerate(moduli.primes):
        value, radix = wide[i].copy(), 1
        for j in range(i):
            value = (value + np.uint64(q) - digits[j] * np.uint64(radix) % np.uint64(q)
                     ) % np.uint64(q)
            radix = radix * moduli.primes[j] % q
        digits[i] = value * np.uint64(pow(radix, -1, q)) % np.uint64(q)
    return digits


def centred_floats(residues: np.ndarray, moduli: Moduli) -> np.ndarray:
    """The integers nearest zero, to 53 bits: uint32 [limb, N, batch] -> float64 [N, batch]."""
    negative, digits = centred_digits(residues, moduli)
    total, radix = np.zeros(negative.shape), 1.0
    for digit, q in zip(digits, moduli.primes, strict=True):
        total += digit * radix
        radix *= q
    return np.where(negative, -total, total)


def centred_modulo(residues: np.ndarray, moduli: Moduli, modulus: int) -> np.ndarray:
    """The integers nearest zero, reduced and centred modulo t < 2^32: int64 [N, batch]."""
    negative, digits = centred_digits(residues, moduli)
    t, total, radix = np.uint64(modulus), np.zeros(negative.shape, np.uint64), 1
    for digit, q in zip(digits, moduli.primes, strict=True):
        total = (total + digit * np.uint64(radix) % t) % t
        radix = radix * q % modulus
    total = np.where(negative, (t - total) % t, total).astype(np.int64)
    return np.where(total > modulus // 2, total - modulus, total)
