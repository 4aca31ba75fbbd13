"""The primes of a residue number system, proven prime, with the constants that the kernels use."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

MAX_PRIME_BITS = 30
MAX_RING_DEGREE = 1 << 15


@lru_cache(maxsize=1024)
def is_prime(value: int) -> bool:
    """Decides primality for integers below 4,759,123,141, with proof.

    The strong probable-prime test to the bases 2, 7 and 61 errs for no integer below that bound.

    Args:
        value: the integer, below 2^32.

    Returns:
        True when `value` is prime.

    Raises:
        ValueError: `value` is 2^32 or more, where three bases prove nothing.

    Example:
        >>> is_prime(65537), is_prime(65539 * 3)
        (True, False)

    Source: G. Jaeschke, "On strong pseudoprimes to several bases", Math. Comp. 61 (1993).
    """
    if value >= 1 << 32:
        raise ValueError(f"is_prime needs an integer below 2^32, got {value}. Use smaller primes.")
    if value < 2:
        return False
    for small in (2, 3, 5, 7, 11, 13, 61):
        if value % small == 0:
            return value == small
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 7, 61):
        power = pow(base, odd, value)
        if power in (1, value - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % value
            if power == value - 1:
                break
        else:
            return False
    return True


def ntt_primes(ring_degree: int, bits: int, count: int = 1) -> tuple[int, ...]:
    """Finds the largest primes below 2^bits that have a primitive 2N-th root of unity.

    A negacyclic transform of length N needs q = 1 mod 2N.

    Args:
        ring_degree: N, a power of two.
        bits: the primes are below 2^bits; at most 30.
        count: how many primes.

    Returns:
        `count` distinct primes, largest first, each with exactly `bits` bits.

    Raises:
        ValueError: there are not that many primes of this size.

    Example:
        >>> ntt_primes(4096, 30, 2)
        (1073692673, 1073668097)
    """
    _check_ring_degree(ring_degree)
    if not 2 <= bits <= MAX_PRIME_BITS:
        raise ValueError(
            f"ntt_primes needs 2 <= bits <= {MAX_PRIME_BITS}, got {bits}. "
            "Use more primes where a larger modulus is needed."
        )
    step, found = 2 * ring_degree, []
    candidate = ((1 << bits) - 2) // step * step + 1
    while len(found) < count:
        if candidate < 1 << (bits - 1):
            raise ValueError(
                f"ntt_primes needs {count} primes of {bits} bits that are 1 mod {step}, "
                f"got {len(found)}. Use larger primes or a smaller ring degree."
            )
        if is_prime(candidate):
            found.append(candidate)
        candidate -= step
    return tuple(found)


def _check_ring_degree(ring_degree: int) -> None:
    if ring_degree < 2 or ring_degree & (ring_degree - 1) or ring_degree > MAX_RING_DEGREE:
        raise ValueError(
            f"a ring needs a degree that is a power of two from 2 to {MAX_RING_DEGREE}, "
            f"got {ring_degree}. Use for example 4096."
        )


@dataclasses.dataclass(frozen=True)
class Moduli:
    """The primes q_1..q_L of a residue number system for the ring Z_Q[x]/(x^N + 1).

    It is frozen and hashable, so a compiled function can take it as a static argument. Every
    prime is below 2^30: then 4q < 2^32, which the lazy butterflies of the transform rely on.

    Args:
        primes: distinct primes below 2^30, each 1 mod 2N.
        ring_degree: N, a power of two.

    Raises:
        ValueError: a number is not prime, too large, repeated, or not 1 mod 2N.

    Example:
        >>> moduli = Moduli(ntt_primes(4096, 30, 3), 4096)
        >>> moduli.num_limbs, moduli.product.bit_length()
        (3, 90)

    Source: residue number systems as in Halevi, Polyakov, Shoup (ePrint 2018/117), section 2;
    Montgomery constants as in P. Montgomery, Math. Comp. 44 (1985).
    """

    primes: tuple[int, ...]
    ring_degree: int

    def __post_init__(self):
        object.__setattr__(self, "primes", tuple(int(q) for q in self.primes))
        _check_ring_degree(self.ring_degree)
        if not self.primes or len(set(self.primes)) != len(self.primes):
            raise ValueError(
                f"Moduli needs one or more distinct primes, got {self.primes}. "
                "Find them with ntt_primes(ring_degree, bits, count)."
            )
        for q in self.primes:
            if q >= 1 << MAX_PRIME_BITS or q % (2 * self.ring_degree) != 1 or not is_prime(q):
                raise ValueError(
                    f"Moduli needs primes below 2^{MAX_PRIME_BITS} that are 1 mod "
                    f"{2 * self.ring_degree}, got {q}. "
                    "Find them with ntt_primes(ring_degree, bits, count)."
                )

    @property
    def num_limbs(self) -> int:
        """L, the number of primes."""
        return len(self.primes)

    @cached_property
    def product(self) -> int:
        """Q, the product of the primes."""
        return math.prod(self.primes)

    @cached_property
    def q(self) -> np.ndarray:
        """The primes, [limb, 1, 1] uint32."""
        return self.per_limb(lambda q: q)

    @cached_property
    def q_inverse(self) -> np.ndarray:
        """q^-1 mod 2^32, [limb, 1, 1] uint32."""
        return self.per_limb(lambda q: pow(q, -1, 1 << 32))

    @cached_property
    def montgomery_r2(self) -> np.ndarray:
        """2^64 mod q, [limb, 1, 1] uint32: takes a residue into Montgomery form."""
        return self.per_limb(lambda q: pow(2, 64, q))

    @cached_property
    def barrett(self) -> np.ndarray:
        """floor(2^32 / q), [limb, 1, 1] uint32."""
        return self.per_limb(lambda q: (1 << 32) // q)

    def per_limb(self, constant: Any) -> np.ndarray:
        """Evaluates `constant(q)` for every prime as a [limb, 1, 1] uint32 array."""
        return np.array([constant(q) for q in self.primes], np.uint32).reshape(-1, 1, 1)

    def shoup(self, constants: np.ndarray) -> np.ndarray:
        """Precomputes Shoup's quotient floor(w * 2^32 / q) of constant residues.

        Args:
            constants: [limb, ...] residues w < q.

        Returns:
            An array of the same shape, uint32.

        Raises:
            ValueError: a constant is not below its prime.

        Source: D. Harvey, "Faster arithmetic for number-theoretic transforms",
        arXiv 1205.2926, section 3.
        """
        wide = np.asarray(constants).astype(np.uint64)
        q = np.array(self.primes, np.uint64).reshape((-1,) + (1,) * (wide.ndim - 1))
        if (wide >= q).any():
            raise ValueError(
                "shoup needs constants below their prime, got a larger one. Reduce them first."
            )
        return ((wide << np.uint64(32)) // q).astype(np.uint32)

    def check_residues(self, where: str, array: Any, *, whole_ring: bool = False) -> None:
        """Refuses an array whose type or shape does not fit; reads no value.

        Args:
            where: the operation, for the message.
            array: expected as [..., limb, n, batch] uint32.
            whole_ring: also require n = N.

        Raises:
            ValueError: another dtype or shape.
        """
        shape = list(np.shape(array))
        dtype = getattr(array, "dtype", type(array))
        rows = self.ring_degree if whole_ring else "n"
        fits = len(shape) >= 3 and shape[-3] == self.num_limbs
        if dtype != np.uint32 or not fits or (whole_ring and shape[-2] != self.ring_degree):
            raise ValueError(
                f"{where} needs uint32 residues of shape [..., {self.num_limbs}, {rows}, batch], "
                f"got {dtype} of shape {shape}. The layout is limb, coefficient, batch."
            )
