"""Roots of unity for the negacyclic transform, made once per set of moduli."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedjax_kernels.modular.moduli import Moduli


class Tables(NamedTuple):
    """Powers of psi and of psi^-1 in bit-reversed order, with their Shoup quotients.

    All are [limb, N] uint32, and `n_inverse` is N^-1 mod q as [limb, 1, 1]. The rest serves the
    inverse transform's first two stages, taken together, and its last: the products of their
    powers [limb, N/4], i = psi^(-N/2), a square root of -1, as [limb, 1], and the last stage's
    power over N, [limb, 1].
    """

    roots: np.ndarray
    roots_quotient: np.ndarray
    inverse_roots: np.ndarray
    inverse_roots_quotient: np.ndarray
    n_inverse: np.ndarray
    n_inverse_quotient: np.ndarray
    first_products: np.ndarray
    first_products_quotient: np.ndarray
    i: np.ndarray
    i_quotient: np.ndarray
    last: np.ndarray
    last_quotient: np.ndarray


@lru_cache(maxsize=256)
def primitive_root(q: int, ring_degree: int) -> int:
    """The smallest primitive 2N-th root of unity mod q.

    The smallest one is taken so that the transform's output is the same everywhere.

    Args:
        q: a prime that is 1 mod 2N.
        ring_degree: N, a power of two.

    Returns:
        psi with psi^N = -1 mod q.

    Raises:
        ValueError: q is not 1 mod 2N.

    Example:
        >>> primitive_root(17, 8)
        3
    """
    if q % (2 * ring_degree) != 1:
        raise ValueError(
            f"primitive_root needs a prime that is 1 mod {2 * ring_degree}, got {q}. "
            "Find one with modular.ntt_primes."
        )
    root = next(
        candidate
        for base in range(2, q)
        if pow(candidate := pow(base, (q - 1) // (2 * ring_degree), q), ring_degree, q) == q - 1
    )
    square, smallest = root * root % q, root
    for _ in range(ring_degree):
        root = root * square % q
        smallest = min(smallest, root)
    return smallest


@lru_cache(maxsize=32)
def bit_reverse(ring_degree: int) -> np.ndarray:
    """The bit-reversal permutation of 0..N-1, [N] int64 (read-only)."""
    order = np.zeros(1, np.int64)
    while len(order) < ring_degree:
        order = np.concatenate([2 * order, 2 * order + 1])
    order.setflags(write=False)
    return order


@lru_cache(maxsize=64)
def tables(moduli: Moduli) -> Tables:
    """The constants of the transform for one set of moduli."""
    degree, order = moduli.ring_degree, bit_reverse(moduli.ring_degree)

    def powers(root: int, q: int) -> np.ndarray:
        values = np.empty(degree, np.uint32)
        value = 1
        for i in range(degree):
            values[i] = value
            value = value * root % q
        return values[order]

    psi = [primitive_root(q, degree) for q in moduli.primes]
    roots = np.stack([powers(p, q) for p, q in zip(psi, moduli.primes, strict=True)])
    inverse = np.stack([powers(pow(p, -1, q), q) for p, q in zip(psi, moduli.primes, strict=True)])
    n_inverse = moduli.per_limb(lambda q: pow(degree, -1, q))
    q = np.array(moduli.primes, np.uint64)[:, None]

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.uint64) * b % q).astype(np.uint32)

    quarter = degree // 4
    first_products = product(inverse[:, quarter : 2 * quarter], inverse[:, 2 * quarter :: 2])
    i = np.array([[pow(p, -(degree // 2), q)] for p, q in zip(psi, moduli.primes, strict=True)])
    last = product(inverse[:, 1:2], n_inverse[:, 0])
    halves = (roots, inverse, n_inverse, first_products, i.astype(np.uint32), last)
    return Tables(*(part for half in halves for part in (half, moduli.shoup(half))))


@lru_cache(maxsize=64)
def part_tables(moduli: Moduli, parts: int) -> Tables:
    """The constants of each part of the transform's last stages: `[limb * parts, ...]`.

    After log2(parts) stages, or before as many of the inverse transform, the rows are `parts`
    runs of N / parts that do not meet. Each run goes through the stages of a transform of its own
    length, with the powers of `tables` that belong to its place.

    Example:
        >>> whole, half = tables(Moduli((97,), 8)), part_tables(Moduli((97,), 8), 2)
        >>> whole.roots[0, 4:].tolist() == [*half.roots[0, 2:], *half.roots[1, 2:]]
        True
    """
    table, rows = tables(moduli), moduli.ring_degree // parts
    run = np.ones(rows, np.int64)  # of each place, the length of the stage's row of powers
    for length in (1 << stage for stage in range(rows.bit_length() - 1)):
        run[length : 2 * length] = length
    places = np.arange(rows) + (parts - 1 + np.arange(parts)[:, None]) * run

    def of_part(name: str, values: np.ndarray) -> np.ndarray:
        if "roots" in name:
            return values[:, places].reshape(-1, rows)
        if name.startswith("first_products"):
            return values.reshape(len(values) * parts, -1)
        return np.repeat(values, parts, axis=0)

    return Tables(*(of_part(name, values) for name, values in table._asdict().items()))
