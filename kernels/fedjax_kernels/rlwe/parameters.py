"""Named parameter sets with their security level and its source, and the plaintext encoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from fedjax_kernels.modular.moduli import Moduli

#: Each coin of the centred binomial error: 21 bits minus 21 bits, variance 10.5, sigma 3.24.
ERROR_BITS = 21
ERROR_VARIANCE = ERROR_BITS / 2

#: Largest log2 Q for 128-bit classical security with a ternary secret and sigma >= 3.19.
MAX_LOG2_MODULUS: Mapping[int, int] = MappingProxyType({1024: 27, 2048: 54, 4096: 109, 8192: 218})
SECURITY_SOURCE = (
    "HomomorphicEncryption.org security standard (November 2018), table 1, "
    "ternary secret, classical, 128 bits"
)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A parameter set of the encryption: the ring and the distributions.

    The secret and the ephemeral keys are uniform on {-1, 0, 1}. Errors are centred binomial with
    21 + 21 bits: standard deviation 3.24, above the 3.19 that the security table assumes.

    Args:
        name: names the set in wire formats and messages.
        moduli: the primes and the ring degree N.

    Raises:
        ValueError: the set has less than 128 bits of security by the table.

    Example:
        >>> parameters("rlwe-4096-90").security_bits
        128
    """

    name: str
    moduli: Moduli

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
# below 2^bits that are 1 mod 2N (`modular.ntt_primes`), which the tests check.
_PRIMES: Mapping[str, tuple[int, tuple[int, ...]]] = MappingProxyType(
    {
        "rlwe-1024-26": (1024, (67104769,)),
        "rlwe-2048-52": (2048, (67104769, 67084289)),
        "rlwe-4096-60": (4096, (1073692673, 1073668097)),
        "rlwe-4096-90": (4096, (1073692673, 1073668097, 1073651713)),
        "rlwe-4096-104": (4096, (67084289, 67043329, 66994177, 66969601)),
        "rlwe-8192-210": (
            8192,
            (1073692673, 1073643521, 1073479681, 1073430529, 1073299457, 1073233921, 1073184769),
        ),
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
    return Parameters(name, Moduli(primes, degree))


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
        """Refuses an encoding that the modulus cannot hold.

        Raises:
            ValueError: 2^total_bits > Q.
        """
        if self.total_bits > params.modulus_bits:
            raise ValueError(
                f"encoding needs 2^total_bits <= Q, so at most {params.modulus_bits} bits with "
                f"{params.name}, got {self.total_bits} ({self.num_lanes} lanes of "
                f"{self.lane_bits} bits above {self.noise_bits} bits of noise). "
                "Use fewer or narrower lanes, or a larger parameter set."
            )
