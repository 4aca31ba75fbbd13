"""Named parameter sets with their security level and its source, the plaintext encoding, and keys.

A set may end in a prime that ciphertexts lose before they travel (modulus switching): they are then
sent, summed and decrypted under `Parameters.transport`, and are smaller and less noisy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import jax

from fedjax_kernels.modular.moduli import Moduli

#: Each coin of the centred binomial error: 21 bits minus 21 bits, variance 10.5, sigma 3.24.
ERROR_BITS = 21
ERROR_VARIANCE = ERROR_BITS / 2

#: Largest log2 Q for 128-bit classical security with a ternary secret and sigma >= 3.19, by each
#: source. A set must satisfy both.
SECURITY_TABLES: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {
        "HomomorphicEncryption.org security standard 2018, table 1": MappingProxyType(
            {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438}
        ),
        "security guidelines of Bossuat et al., ePrint 2024/463": MappingProxyType(
            {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430}
        ),
    }
)
MAX_LOG2_MODULUS: Mapping[int, int] = MappingProxyType(
    {
        degree: min(table[degree] for table in SECURITY_TABLES.values())
        for degree in (1024, 2048, 4096, 8192, 16384)
    }
)
SECURITY_SOURCE = " and ".join(SECURITY_TABLES) + ", ternary secret, classical"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A parameter set of the encryption: the ring and the distributions.

    Why a set may drop a prime: a fresh ciphertext of a public key carries far more noise than its
    size needs. Dividing it by one of its primes removes that prime from every coefficient and most
    of the noise with it.

    The secret and the ephemeral keys are uniform on {-1, 0, 1}. Errors are centred binomial with
    21 + 21 bits: standard deviation 3.24, above the 3.19 that the security table assumes.

    Args:
        name: names the set in wire formats and messages.
        moduli: the primes and the ring degree N. Keys and fresh ciphertexts are modulo all of them:
            the security level is that of their product.
        transport_name: the set under which ciphertexts travel, with the same primes but the last;
            empty where ciphertexts travel as they are.

    Raises:
        ValueError: the set has less than 128 bits of security by either table, or its transport
            set is not what is left of it without its last prime.

    Example:
        >>> parameters("rlwe-4096-90").security_bits
        128
        >>> parameters("rlwe-8192-212").transport.name, parameters("rlwe-8192-212").dropped_prime
        ('rlwe-8192-196', 65537)

    Source: modulus switching by Brakerski, Gentry, Vaikuntanathan (ePrint 2011/277), section 4.2,
    by one prime of a residue number system as in Cheon, Han, Kim, Kim, Song (ePrint 2018/931).
    """

    name: str
    moduli: Moduli
    transport_name: str = ""

    def __post_init__(self):
        degree, bits = self.moduli.ring_degree, self.moduli.product.bit_length()
        largest = MAX_LOG2_MODULUS.get(degree)
        if largest is None or bits > largest:
            allowed = ", ".join(f"{q} at N={n}" for n, q in MAX_LOG2_MODULUS.items())
            raise ValueError(
                f"parameter set {self.name!r} needs 128-bit security, which allows log2 Q of at "
                f"most {allowed}, got log2 Q = {bits} at N={degree}. "
                "Use fewer or smaller primes, or a larger ring degree."
            )
        if self.transport_name:
            moduli = parameters(self.transport_name).moduli
            if (moduli.primes, moduli.ring_degree) != (self.moduli.primes[:-1], degree):
                raise ValueError(
                    f"parameter set {self.name!r} needs a transport set of its own ring with its "
                    f"primes but the last, got {self.transport_name!r}. Switching the modulus "
                    "drops that prime and no other."
                )

    @property
    def transport(self) -> Parameters:
        """The set under which ciphertexts travel, are summed and decrypted; often this one."""
        return parameters(self.transport_name) if self.transport_name else self

    @property
    def dropped_prime(self) -> int:
        """The prime by which ciphertexts are divided before they travel; 1 where there is none."""
        return self.moduli.primes[-1] if self.transport_name else 1

    @property
    def ring_degree(self) -> int:
        """N, the number of coefficients of a polynomial."""
        return self.moduli.ring_degree

    @property
    def num_limbs(self) -> int:
        """L, the number of primes."""
        return self.moduli.num_limbs

    @property
    def modulus_bits(self) -> int:
        """floor(log2 Q): every integer below 2^modulus_bits is below Q."""
        return self.moduli.product.bit_length() - 1

    @property
    def security_bits(self) -> int:
        """Bits of classical security that the table grants; no set has fewer."""
        return 128

    @property
    def security_source(self) -> str:
        """Where the security level comes from."""
        return SECURITY_SOURCE


# The primes are written out, so that a name means the same bytes for ever: they are the largest
# below 2^bits that are 1 mod 2N (`modular.ntt_primes`), for one or two sizes a set, which the tests
# check. 65537 is dropped before ciphertexts travel.
_PRIMES_8192_30 = (
    1073692673,
    1073643521,
    1073479681,
    1073430529,
    1073299457,
    1073233921,
    1073184769,
)
_PRIMES_8192_29 = (536690689, 536641537, 536608769, 536543233, 536494081)
_PRIMES_8192_28 = (
    268369921,
    268271617,
    268238849,
    268189697,
    268091393,
    268042241,
    267943937,
)
_PRIMES_16384 = (
    1073643521, 1073479681, 536641537, 536608769, 536543233, 536215553, 535920641,
    535756801, 535461889, 535232513, 534970369, 534478849, 534085633, 533790721,
)
_PRIMES: Mapping[str, tuple[int, tuple[int, ...]]] = MappingProxyType(
    {
        "rlwe-1024-26": (1024, (67104769,)),
        "rlwe-2048-52": (2048, (67104769, 67084289)),
        "rlwe-4096-60": (4096, (1073692673, 1073668097)),
        "rlwe-4096-90": (4096, (1073692673, 1073668097, 1073651713)),
        "rlwe-4096-97": (4096, (33538049, 16760833, 16736257, 16588801)),
        "rlwe-4096-104": (4096, (67084289, 67043329, 66994177, 66969601)),
        "rlwe-8192-180": (8192, _PRIMES_8192_30[:6]),
        "rlwe-8192-196": (8192, _PRIMES_8192_28),
        "rlwe-8192-197": (8192, (*_PRIMES_8192_29[:1], *_PRIMES_8192_28[:6])),
        "rlwe-8192-201": (8192, (*_PRIMES_8192_29, *_PRIMES_8192_28[:2])),
        "rlwe-8192-210": (8192, _PRIMES_8192_30),
        "rlwe-8192-212": (8192, (*_PRIMES_8192_28, 65537)),
        "rlwe-8192-213": (8192, (*_PRIMES_8192_29[:1], *_PRIMES_8192_28[:6], 65537)),
        "rlwe-16384-408": (16384, _PRIMES_16384),
        "rlwe-16384-424": (16384, (*_PRIMES_16384, 65537)),
    }
)
_TRANSPORT: Mapping[str, str] = MappingProxyType(
    {
        "rlwe-8192-212": "rlwe-8192-196",
        "rlwe-8192-213": "rlwe-8192-197",
        "rlwe-16384-424": "rlwe-16384-408",
    }
)

#: The names that :func:`parameters` knows.
PARAMETER_SETS: tuple[str, ...] = tuple(_PRIMES)


@cache
def parameters(name: str) -> Parameters:
    """Returns a named parameter set.

    The name is ``rlwe-N-bits``: ring degree and log2 Q, rounded up.

    Args:
        name: one of `PARAMETER_SETS`.

    Returns:
        The frozen parameter set; every set has at least 128 bits of security.

    Raises:
        ValueError: there is no such set.

    Example:
        >>> parameters("rlwe-2048-52").num_limbs
        2
    """
    if name not in _PRIMES:
        raise ValueError(
            f"parameters needs one of {', '.join(PARAMETER_SETS)}, got {name!r}. "
            "Larger rings hold more values and more summands in one ciphertext."
        )
    degree, primes = _PRIMES[name]
    return Parameters(name, Moduli(primes, degree), _TRANSPORT.get(name, ""))


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How small integers lie in one coefficient: lanes side by side, above the noise.

    A coefficient holds sum_j lane_j * 2^(noise_bits + j * lane_bits). Sums are exact while every
    lane's sum stays below 2^lane_bits and the noise below 2^(noise_bits - 1).

    Args:
        lane_bits: width of one lane, 1 to 64. It has to hold the sum of all summands.
        num_lanes: lanes per coefficient.
        noise_bits: log2 of the scale Delta; see :func:`noise_bits_needed`.

    Raises:
        ValueError: a width that makes no sense.

    Example:
        >>> Encoding(lane_bits=26, num_lanes=2, noise_bits=16).total_bits
        68
    """

    lane_bits: int
    num_lanes: int
    noise_bits: int

    def __post_init__(self):
        if not (1 <= self.lane_bits <= 64 and self.num_lanes >= 1 and self.noise_bits >= 1):
            raise ValueError(
                "Encoding needs 1 <= lane_bits <= 64, num_lanes >= 1 and noise_bits >= 1, got "
                f"{self.lane_bits}, {self.num_lanes} and {self.noise_bits}. "
                "Take noise_bits from noise_bits_needed(...)."
            )

    @property
    def total_bits(self) -> int:
        """Bits of the coefficient that lanes and noise take."""
        return self.noise_bits + self.num_lanes * self.lane_bits

    def check(self, params: Parameters) -> None:
        """Refuses an encoding that the modulus, as ciphertexts travel, cannot hold.

        Raises:
            ValueError: 2^total_bits > Q of `params.transport`.
        """
        params = params.transport
        if self.total_bits > params.modulus_bits:
            raise ValueError(
                f"encoding needs 2^total_bits <= Q, so at most {params.modulus_bits} bits with "
                f"{params.name}, got {self.total_bits} ({self.num_lanes} lanes of "
                f"{self.lane_bits} bits above {self.noise_bits} bits of noise). "
                "Use fewer or narrower lanes, or a larger parameter set."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class SecretKey:
    """The ternary secret s, transformed: [limb, N, 1] uint32 residues in bit-reversed order."""

    s: Any

    def __repr__(self) -> str:
        return "SecretKey(hidden)"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class PublicKey:
    """The pair (b, a) with b = e - a s, transformed: each [limb, N, 1] uint32 residues.

    `a` is sampled as it stands, in the transformed domain.
    """

    b: Any
    a: Any

    def __repr__(self) -> str:
        return f"PublicKey(shape={list(getattr(self.a, 'shape', ()))})"
