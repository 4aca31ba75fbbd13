"""How ring elements lie in the coefficients of a ciphertext, so that sums come out exact.

A coefficient holds several lanes above its noise. A lane is as wide as the ring plus the carries
of all summands, so lanes never run into each other. An element x is stored as x + M/2 mod M: while
no client's own value wraps around the ring, a lane's sum is then the sum of the centred values plus
a constant, and tells whoever opens it no more than that sum.

Lanes, ring degree and primes are chosen together: :func:`plan_packing` tries the named parameter
sets and takes the one with the smallest product of bytes a message and work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import rlwe

from ..core import SpecError

#: A sum decrypts wrongly with at most this probability, 2^-40.
FAILURE_BITS = 40


class NoiseModel(Protocol):
    """How much noise a scheme's sums carry; hashable. A scheme passes its own to the planner."""

    def bits_needed(
        self, params: rlwe.Parameters, num_summands: int, num_coefficients: int
    ) -> int:
        """The fewest noise bits with which a sum opens right, except with probability 2^-40."""
        ...

    def failure_log2(
        self, params: rlwe.Parameters, num_summands: int, num_coefficients: int, noise_bits: int
    ) -> float:
        """log2 of a bound on the probability that a sum opens wrong; -inf for never."""
        ...

    def worst_case_bits(self, params: rlwe.Parameters, num_summands: int) -> int:
        """The noise bits with which no choice of randomness fails."""
        ...


@dataclasses.dataclass(frozen=True)
class PublicKeyNoise:
    """The noise of sums under one holder's public key; a :class:`NoiseModel`.

    Example:
        >>> PublicKeyNoise().bits_needed(rlwe.parameters("rlwe-8192-201"), 1024, 8192 * 19)
        18
    """

    def bits_needed(
        self, params: rlwe.Parameters, num_summands: int, num_coefficients: int
    ) -> int:
        """See :class:`NoiseModel`."""
        return rlwe.noise_bits_needed(
            params, num_summands, num_coefficients, failure_bits=FAILURE_BITS
        )

    def failure_log2(
        self, params: rlwe.Parameters, num_summands: int, num_coefficients: int, noise_bits: int
    ) -> float:
        """See :class:`NoiseModel`."""
        return rlwe.failure_log2(params, num_summands, num_coefficients, noise_bits)

    def worst_case_bits(self, params: rlwe.Parameters, num_summands: int) -> int:
        """See :class:`NoiseModel`."""
        return rlwe.worst_case_noise(params, num_summands).bit_length() + 1


@dataclasses.dataclass(frozen=True)
class Packing:
    """A plan made by :func:`plan_packing`; hashable, so compiled functions take it as static.

    Attributes:
        parameters: name of the parameter set under which clients encrypt.
        dim: values in an update.
        ring_bits: a value is in ``[0, 2**ring_bits)``.
        max_summands: the most ciphertexts in a sum.
        encoding: lane width, lanes per coefficient, bits of noise.
        num_polynomials: polynomials in one client's ciphertext (the kernels' batch).
        noise: the noise of the scheme's sums.
    """

    parameters: str
    dim: int
    ring_bits: int
    max_summands: int
    encoding: rlwe.Encoding
    num_polynomials: int
    noise: NoiseModel = PublicKeyNoise()

    @property
    def params(self) -> rlwe.Parameters:
        """The parameter set under which clients encrypt."""
        return rlwe.parameters(self.parameters)

    @property
    def transport(self) -> rlwe.Parameters:
        """The parameter set under which ciphertexts travel, are summed and opened."""
        return self.params.transport

    @property
    def failure_log2(self) -> float:
        """log2 of a bound on the probability that one opened sum is wrong; -inf for never."""
        coefficients = self.params.ring_degree * self.num_polynomials
        return self.noise.failure_log2(
            self.params, self.max_summands, coefficients, self.encoding.noise_bits
        )

    @property
    def ciphertext_shape(self) -> tuple[int, int, int, int]:
        """[2, limb, N, polynomial], uint32, as it travels."""
        return (2, self.transport.num_limbs, self.params.ring_degree, self.num_polynomials)

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of one client's bit-packed residues, without the header."""
        bits = sum(q.bit_length() for q in self.transport.moduli.primes)
        return 2 * self.params.ring_degree * self.num_polynomials * bits // 8

    def lanes(self, values: jax.Array) -> jax.Array:
        """Ring elements side by side, as the kernels encrypt them; pure and jittable.

        Args:
            values: uint32 [dim], each below ``2**ring_bits``.

        Returns:
            uint32 [lane, N, polynomial].
        """
        shape = (self.encoding.num_lanes, self.params.ring_degree, self.num_polynomials)
        padded = jnp.pad(jnp.asarray(values), (0, math.prod(shape) - self.dim)).reshape(shape)
        return (padded + np.uint32(1 << (self.ring_bits - 1))) & np.uint32(self._mask)

    def pack(self, values: jax.Array) -> jax.Array:
        """Ring elements to the residues of scaled coefficients; pure and jittable.

        Args:
            values: uint32 [dim], each below ``2**ring_bits``.

        Returns:
            uint32 [limb, N, polynomial].
        """
        return rlwe.encode(self.params, self.encoding, self.lanes(values))

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

    @property
    def work(self) -> int:
        """N log2(N) times limbs and polynomials: what the time of one encryption goes with."""
        degree = self.params.ring_degree
        return degree * degree.bit_length() * self.params.num_limbs * self.num_polynomials

    def explain(self) -> str:
        """The plan in words, one fact a line."""
        params, code = self.params, self.encoding
        spare = self.transport.modulus_bits - code.total_bits
        failure = self.failure_log2
        chance = "never" if failure == -math.inf else f"with probability below 2^{failure:.0f}"
        carries = code.lane_bits - self.ring_bits
        drops = ""
        if params is not self.transport:
            drops = (
                f" A ciphertext is divided by {params.dropped_prime} before it travels, which "
                f"leaves {self.transport.num_limbs} primes and less noise."
            )
        return "\n".join(
            [
                f"Parameters {self.parameters}: N = {params.ring_degree}, {params.num_limbs} "
                f"primes, {self.transport.modulus_bits} usable bits, "
                f"{params.security_bits}-bit security ({params.security_source}).{drops}",
                f"A lane has {code.lane_bits} bits: {self.ring_bits} of the ring and {carries} for "
                f"the carries of {self.max_summands} summands.",
                f"A coefficient has {code.num_lanes} lanes above {code.noise_bits} bits of noise, "
                f"and {spare} spare bits.",
                f"{self.dim} values take {self.num_polynomials} polynomials: "
                f"{self.ciphertext_bytes} bytes a client, "
                f"{self.ciphertext_bytes / self.dim:.2f} bytes a value.",
                f"A sum decrypts wrongly {chance}.",
                self._comparison(),
            ]
        )

    def _comparison(self) -> str:
        plans = list(
            _plans(rlwe.PARAMETER_SETS, self.dim, self.ring_bits, self.max_summands, self.noise)
        )
        others = sorted((p.ciphertext_bytes, p.parameters) for p in plans if p != self)
        if not others:
            return "No other named set holds these sums."
        sizes = ", ".join(f"{name} {size / self.dim:.2f}" for size, name in others[:3])
        why = "It has the smallest product of bytes and work. "
        best = min(plans, key=_cost)
        return f"{why if self == best else ''}Bytes a value under other sets: {sizes}."

    @property
    def _mask(self) -> int:
        return (1 << self.ring_bits) - 1


def plan_packing(
    parameters: str | None,
    *,
    dim: int,
    modulus: int,
    max_summands: int,
    noise: NoiseModel | None = None,
) -> Packing:
    """Choose parameter set, lanes, noise bits and polynomials for a sum.

    Within one set the fewest polynomials are taken, then the fewest lanes that give them; bits that
    are left over go to the noise, up to its worst case. Among sets, the smallest product of bytes
    a message and :attr:`Packing.work` wins.

    Args:
        parameters: name of a parameter set, for example ``"rlwe-4096-90"``; None chooses one.
        dim: values in an update.
        modulus: size of the ring, a power of two up to 2^32.
        max_summands: the most ciphertexts in a sum, up to 65,536.
        noise: how much noise the scheme's sums carry; None for a public key of one holder.

    Returns:
        A :class:`Packing`.

    Raises:
        SpecError: an unknown set, a ring that is no power of two, too many summands, or a sum that
            does not fit one coefficient.

    Example:
        >>> plan = plan_packing("rlwe-4096-90", dim=10_000, modulus=2**16, max_summands=256)
        >>> plan.encoding.lane_bits, plan.encoding.num_lanes, plan.num_polynomials
        (24, 3, 1)
        >>> plan_packing(None, dim=2**20, modulus=2**16, max_summands=1024).parameters
        'rlwe-8192-201'
        >>> plan_packing(None, dim=31, modulus=2**24, max_summands=4).parameters
        'rlwe-2048-52'

    Source: packing several quantised values into a plaintext as in Zhang et al., "BatchCrypt",
    USENIX ATC 2020, section 4; noise as :func:`fedjax_kernels.rlwe.failure_log2` computes it.
    """
    where = "stage `encrypt`"
    noise = PublicKeyNoise() if noise is None else noise
    if parameters is not None and parameters not in rlwe.PARAMETER_SETS:
        raise SpecError(
            where,
            need=f"a parameter set: {', '.join(rlwe.PARAMETER_SETS)}",
            found=repr(parameters),
            fix="Name one of them, or leave it out.",
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
    wanted = rlwe.PARAMETER_SETS if parameters is None else (parameters,)
    plans = list(_plans(wanted, dim, ring_bits, max_summands, noise))
    if not plans:
        raise _does_not_fit(where, parameters, dim, ring_bits, max_summands, noise)
    return min(plans, key=_cost)


def _cost(plan: Packing) -> int:
    return plan.work * plan.ciphertext_bytes


def _plans(
    names: Iterable[str], dim: int, ring_bits: int, max_summands: int, noise: NoiseModel
) -> Iterable[Packing]:
    fits = (_fit(name, dim, ring_bits, max_summands, noise) for name in names)
    return (plan for plan in fits if plan is not None)


def _does_not_fit(
    where: str,
    parameters: str | None,
    dim: int,
    ring_bits: int,
    max_summands: int,
    noise: NoiseModel,
) -> SpecError:
    name = parameters or max(
        rlwe.PARAMETER_SETS, key=lambda name: rlwe.parameters(name).transport.modulus_bits
    )
    params = rlwe.parameters(name)
    lane_bits = ring_bits + (max_summands - 1).bit_length()
    needed = noise.bits_needed(params, max_summands, params.ring_degree)
    larger = next(iter(_plans(rlwe.PARAMETER_SETS, dim, ring_bits, max_summands, noise)), None)
    return SpecError(
        where,
        need=f"a lane of {ring_bits} bits and the carries of {max_summands} summands above the "
        f"noise, {lane_bits} + {needed} bits in one coefficient",
        found=f"{params.transport.modulus_bits} bits with {name}",
        fix=f"Use parameters={larger.parameters!r}, or leave it out."
        if larger
        else "Quantise to fewer bits, or sum fewer clients.",
    )


def _fit(
    parameters: str, dim: int, ring_bits: int, max_summands: int, noise: NoiseModel
) -> Packing | None:
    """The plan with the fewest polynomials, then the fewest lanes; None where no lane fits."""
    params = rlwe.parameters(parameters)
    usable = params.transport.modulus_bits
    lane_bits = ring_bits + (max_summands - 1).bit_length()
    worst_bits = noise.worst_case_bits(params, max_summands)
    best = None
    for num_lanes in range(1, usable // lane_bits + 1):
        polynomials = -(-dim // (params.ring_degree * num_lanes))
        if best is not None and polynomials == best.num_polynomials:
            continue
        needed = noise.bits_needed(params, max_summands, params.ring_degree * polynomials)
        room = usable - num_lanes * lane_bits
        if needed <= room:
            code = rlwe.Encoding(lane_bits, num_lanes, max(needed, min(room, worst_bits)))
            best = Packing(parameters, dim, ring_bits, max_summands, code, polynomials, noise)
    return best
