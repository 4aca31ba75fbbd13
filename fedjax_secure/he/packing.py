"""How ring elements lie in the coefficients of a ciphertext, so that sums come out exact.

A coefficient holds several lanes above its noise. A lane is as wide as the ring plus the carries
of all summands, so lanes never run into each other. An element x is stored as x + M/2 mod M: while
no client's own value wraps around the ring, a lane's sum is then the sum of the centred values plus
a constant, and tells whoever opens it no more than that sum.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import rlwe

from ..core import SpecError

#: A sum decrypts wrongly with at most this probability, 2^-40.
FAILURE_BITS = 40


@dataclasses.dataclass(frozen=True)
class Packing:
    """A plan made by :func:`plan_packing`; hashable, so compiled functions take it as static.

    Attributes:
        parameters: name of the parameter set.
        dim: values in an update.
        ring_bits: a value is in ``[0, 2**ring_bits)``.
        max_summands: the most ciphertexts in a sum.
        encoding: lane width, lanes per coefficient, bits of noise.
        num_polynomials: polynomials in one client's ciphertext (the kernels' batch).
    """

    parameters: str
    dim: int
    ring_bits: int
    max_summands: int
    encoding: rlwe.Encoding
    num_polynomials: int

    @property
    def params(self) -> rlwe.Parameters:
        """The kernels' parameter set."""
        return rlwe.parameters(self.parameters)

    @property
    def failure_log2(self) -> float:
        """log2 of a bound on the probability that one opened sum is wrong; -inf for never."""
        coefficients = self.params.ring_degree * self.num_polynomials
        return rlwe.failure_log2(
            self.params, self.max_summands, coefficients, self.encoding.noise_bits
        )

    @property
    def ciphertext_shape(self) -> tuple[int, int, int, int]:
        """[2, limb, N, polynomial], uint32."""
        return (2, self.params.num_limbs, self.params.ring_degree, self.num_polynomials)

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of one client's bit-packed residues, without the header."""
        bits = sum(q.bit_length() for q in self.params.moduli.primes)
        return 2 * self.params.ring_degree * self.num_polynomials * bits // 8

    def pack(self, values: jax.Array) -> jax.Array:
        """Ring elements to the residues that are encrypted; pure and jittable.

        Args:
            values: uint32 [dim], each below ``2**ring_bits``.

        Returns:
            uint32 [limb, N, polynomial].
        """
        shape = (self.encoding.num_lanes, self.params.ring_degree, self.num_polynomials)
        padded = jnp.pad(jnp.asarray(values), (0, math.prod(shape) - self.dim)).reshape(shape)
        shifted = (padded + np.uint32(1 << (self.ring_bits - 1))) & np.uint32(self._mask)
        return rlwe.encode(self.params, self.encoding, shifted)

    def unpack(self, lanes: np.ndarray, num_summands: int) -> np.ndarray:
        """The lanes' sums of some summands to ring elements.

        Args:
            lanes: uint32 [lane, N, polynomial], sums modulo 2^32.
            num_summands: how many ciphertexts are in the sum.

        Returns:
            uint32 [dim], each below ``2**ring_bits``.
        """
        shift = np.uint32((num_summands << (self.ring_bits - 1)) & self._mask)
        return (np.asarray(lanes).reshape(-1)[: self.dim] - shift) & np.uint32(self._mask)

    def explain(self) -> str:
        """The plan in words, one fact a line."""
        params, code = self.params, self.encoding
        spare = params.modulus_bits - code.total_bits
        failure = self.failure_log2
        chance = "never" if failure == -math.inf else f"with probability below 2^{failure:.0f}"
        carries = code.lane_bits - self.ring_bits
        return "\n".join(
            [
                f"Parameters {self.parameters}: N = {params.ring_degree}, {params.num_limbs} "
                f"primes, {params.modulus_bits} usable bits, {params.security_bits}-bit security "
                f"({params.security_source}).",
                f"A lane has {code.lane_bits} bits: {self.ring_bits} of the ring and {carries} for "
                f"the carries of {self.max_summands} summands.",
                f"A coefficient has {code.num_lanes} lanes above {code.noise_bits} bits of noise, "
                f"and {spare} spare bits.",
                f"{self.dim} values take {self.num_polynomials} polynomials: "
                f"{self.ciphertext_bytes} bytes a client, "
                f"{self.ciphertext_bytes / self.dim:.2f} bytes a value.",
                f"A sum decrypts wrongly {chance}.",
            ]
        )

    @property
    def _mask(self) -> int:
        return (1 << self.ring_bits) - 1


def plan_packing(parameters: str, *, dim: int, modulus: int, max_summands: int) -> Packing:
    """Choose lanes, noise bits and polynomials for a sum.

    The fewest polynomials are taken, then the fewest lanes that give them; bits that are left over
    go to the noise, up to its worst case.

    Args:
        parameters: name of a parameter set, for example ``"rlwe-4096-90"``.
        dim: values in an update.
        modulus: size of the ring, a power of two up to 2^32.
        max_summands: the most ciphertexts in a sum, up to 65,536.

    Returns:
        A :class:`Packing`.

    Raises:
        SpecError: an unknown set, a ring that is no power of two, too many summands, or a sum that
            does not fit one coefficient.

    Example:
        >>> plan = plan_packing("rlwe-4096-90", dim=10_000, modulus=2**16, max_summands=256)
        >>> plan.encoding.lane_bits, plan.encoding.num_lanes, plan.num_polynomials
        (24, 3, 1)

    Source: packing several quantised values into a plaintext as in Zhang et al., "BatchCrypt",
    USENIX ATC 2020, section 4; noise as :func:`fedjax_kernels.rlwe.failure_log2` computes it.
    """
    where = "stage `encrypt`"
    if parameters not in rlwe.PARAMETER_SETS:
        raise SpecError(
            where,
            need=f"a parameter set: {', '.join(rlwe.PARAMETER_SETS)}",
            found=repr(parameters),
            fix="Name one of them: public_key(parameters=...).",
        )
    ring_bits = modulus.bit_length() - 1
    if modulus != 1 << ring_bits or not 1 <= ring_bits <= 32:
        raise SpecError(
            where,
            need="a ring whose size is a power of two, from 2 to 2^32",
            found=f"modulus={modulus}",
            fix="Put quantise(bits=...) before it.",
        )
    if dim < 1 or not 1 <= max_summands <= 1 << 16:
        raise SpecError(
            where,
            need="at least one value, and 1 to 65536 summands",
            found=f"dim={dim}, {max_summands} summands",
            fix="Sum fewer clients in one round.",
        )
    plan = _fit(parameters, dim, ring_bits, max_summands)
    if plan is None:
        lane_bits = ring_bits + (max_summands - 1).bit_length()
        params = rlwe.parameters(parameters)
        noise = rlwe.noise_bits_needed(params, max_summands, params.ring_degree)
        larger = next(
            (name for name in rlwe.PARAMETER_SETS if _fit(name, dim, ring_bits, max_summands)), None
        )
        raise SpecError(
            where,
            need=f"a lane of {ring_bits} bits and the carries of {max_summands} summands above the "
            f"noise, {lane_bits} + {noise} bits in one coefficient",
            found=f"{params.modulus_bits} bits with {parameters}",
            fix=f"Use public_key(parameters={larger!r})." if larger else "Quantise to fewer bits.",
        )
    return plan


def _fit(parameters: str, dim: int, ring_bits: int, max_summands: int) -> Packing | None:
    """The plan with the fewest polynomials, then the fewest lanes; None where no lane fits."""
    params = rlwe.parameters(parameters)
    lane_bits = ring_bits + (max_summands - 1).bit_length()
    worst_bits = rlwe.worst_case_noise(params, max_summands).bit_length() + 1
    best = None
    for num_lanes in range(1, params.modulus_bits // lane_bits + 1):
        polynomials = -(-dim // (params.ring_degree * num_lanes))
        if best is not None and polynomials == best.num_polynomials:
            continue
        needed = rlwe.noise_bits_needed(
            params, max_summands, params.ring_degree * polynomials, failure_bits=FAILURE_BITS
        )
        room = params.modulus_bits - num_lanes * lane_bits
        if needed <= room:
            code = rlwe.Encoding(lane_bits, num_lanes, max(needed, min(room, worst_bits)))
            best = Packing(parameters, dim, ring_bits, max_summands, code, polynomials)
    return best
