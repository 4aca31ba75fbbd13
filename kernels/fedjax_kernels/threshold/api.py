"""A joint key of n holders of which any t open a sum, as pure functions.

Each holder i makes a secret s_i and b_i = e_i - a s_i with the common `a`; the sum of all b_i is
the joint public key, under which :func:`fedjax_kernels.rlwe.encrypt` works as under any other. Each
s_i is shared by a random polynomial of degree t - 1 over the ring: holder j gets its value at the
point j, and adds up what it gets from all. To open a sum, t holders are named first: each
multiplies its share by its Lagrange coefficient, which turns t shares into t numbers that add up to
the secret, multiplies that by c1, and only then adds its flood. A flood that a coefficient
multiplied would no longer be small.

Ciphertexts travel under ``params.transport``; shares, partial decryptions and floods are modulo its
primes. All functions but the first three therefore take that set, and say so. The kernel holds no
randomness: uniform 32-bit words come from outside, secret, fresh for every call.

Sources: Mouchet, Troncoso-Pastoriza, Bossuat, Hubaux, "Multiparty Homomorphic Encryption from
Ring-Learning-With-Errors" (ePrint 2020/304), protocol for the collective public key, and for
decryption; Mouchet, Bertrand, Hubaux, "An Efficient Threshold Access-Structure for RLWE-Based
Multiparty Homomorphic Encryption" (ePrint 2022/780), section 4, for shares over the ring, the
points, and the order of the steps; Shamir, CACM 22 (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_kernels.discrete_gaussian import WORDS_PER_DRAW
from fedjax_kernels.modular.api import Implementation, choose
from fedjax_kernels.rlwe.parameters import Parameters, PublicKey, SecretKey
from fedjax_kernels.threshold import reference, xla
from fedjax_kernels.threshold.noise import MAX_PARTIES, SHIFT_BITS, Flooding


def common_words_needed(params: Parameters) -> int:
    """How many public random words :func:`common_part` takes: 3 L N."""
    return 3 * params.num_limbs * params.ring_degree


def contribution_words_needed(params: Parameters) -> int:
    """How many secret random words :func:`contribute` takes: 4 N."""
    return 4 * params.ring_degree


def share_words_needed(params: Parameters, threshold: int) -> int:
    """How many secret random words :func:`share` takes: 4 (t - 1) L N, L as ciphertexts travel.

    A residue of 128 bits modulo q is within 2^-100 of uniform. With 96 bits, the shares of 64
    holders would together be 2^-40 from uniform, as far as the least flood leaves a sum's noise.
    """
    return 4 * (threshold - 1) * params.num_limbs * params.ring_degree


def flood_words_needed(params: Parameters, flooding: Flooding, batch: int) -> int:
    """How many secret random words :func:`flood` takes: 4 a part and coefficient."""
    return WORDS_PER_DRAW * flooding.num_parts * params.ring_degree * batch


def mask_words_needed(params: Parameters, batch: int) -> int:
    """How many random words, shared by two holders, :func:`mask` takes: 4 L N batch.

    A residue of 128 bits modulo q is within 2^-100 of uniform: a million of them in each of a
    thousand openings together are within 2^-70.
    """
    return 4 * params.num_limbs * params.ring_degree * batch


def _check_words(where: str, words: Any, count: int) -> None:
    if getattr(words, "dtype", None) != np.uint32 or np.shape(words) != (count,):
        raise ValueError(
            f"{where} needs {count} random words as uint32 [{count}], got "
            f"{getattr(words, 'dtype', type(words).__name__)} of shape {list(np.shape(words))}. "
            "The function's ..._words_needed says how many to expand."
        )


def _check_parties(where: str, threshold: int, num_parties: int) -> None:
    if not 2 <= threshold <= num_parties <= MAX_PARTIES:
        raise ValueError(
            f"{where} needs 2 <= threshold <= num_parties <= {MAX_PARTIES}, got "
            f"{threshold} of {num_parties}. Choose how many holders open a sum together."
        )


def common_part(params: Parameters, words: Any, *, implementation: Implementation = None) -> Any:
    """The `a` that all holders use, from public randomness that none of them chose.

    Args:
        params: the set under which clients encrypt.
        words: uint32 [common_words_needed(params)], public.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, 1] uint32 in the transformed domain, within 2^-66 a residue of uniform.

    Raises:
        ValueError: another dtype or number of words.
    """
    _check_words("threshold.common_part", words, common_words_needed(params))
    return choose(implementation, xla, reference).common_part(words, params=params)


def contribute(
    params: Parameters, a: Any, words: Any, *, implementation: Implementation = None
) -> tuple[SecretKey, Any]:
    """One holder's secret and its part of the joint public key.

    Args:
        params: the set under which clients encrypt.
        a: from :func:`common_part`.
        words: uint32 [contribution_words_needed(params)], secret, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        The secret s_i, ternary, and b_i = e_i - a s_i, [limb, N, 1] uint32, transformed.

    Raises:
        ValueError: another dtype, shape or number of words.

    Source: ePrint 2020/304, collective public-key generation.
    """
    params.moduli.check_residues("threshold.contribute", a, whole_ring=True)
    _check_words("threshold.contribute", words, contribution_words_needed(params))
    return choose(implementation, xla, reference).contribute(a, words, params=params)


def joint_public_key(
    params: Parameters, a: Any, parts: Any, *, implementation: Implementation = None
) -> PublicKey:
    """The key under which clients encrypt: the sum of all holders' parts.

    Args:
        params: the set under which clients encrypt.
        a: from :func:`common_part`.
        parts: [n, limb, N, 1] uint32, every holder's b_i.
        implementation: None, "xla" or "reference".

    Returns:
        The public key (sum of b_i, a).

    Raises:
        ValueError: another dtype or shape.
    """
    params.moduli.check_residues("threshold.joint_public_key", parts, whole_ring=True)
    module = choose(implementation, xla, reference)
    return PublicKey(module.total(parts, params=params), a)


def share(
    transport: Parameters,
    secret_key: SecretKey,
    words: Any,
    *,
    threshold: int,
    num_parties: int,
    implementation: Implementation = None,
) -> Any:
    """Shares one holder's secret: the values at 1..n of a random polynomial with f(0) = s_i.

    The points and their differences are below every prime, so they are units modulo each: any t
    values give the polynomial, and t - 1 values go with every secret equally well.

    Args:
        transport: ``params.transport``; the shares are modulo its primes.
        secret_key: from :func:`contribute`.
        words: uint32 [share_words_needed(transport, threshold)], secret, never used again.
        threshold: t.
        num_parties: n.
        implementation: None, "xla" or "reference".

    Returns:
        [n, limb, N, 1] uint32, transformed: row j - 1 is for holder j and nobody else.

    Raises:
        ValueError: t of n out of range, or another dtype or number of words.

    Source: ePrint 2022/780, section 4 (Thresholdize); Shamir 1979.
    """
    _check_parties("threshold.share", threshold, num_parties)
    _check_words("threshold.share", words, share_words_needed(transport, threshold))
    return choose(implementation, xla, reference).share(
        secret_key.s, words, params=transport, threshold=threshold, num_parties=num_parties
    )


def add_shares(transport: Parameters, shares: Any, *, implementation: Implementation = None) -> Any:
    """One holder's share of the joint secret: the sum of what all holders gave it.

    Args:
        transport: ``params.transport``.
        shares: [n, limb, N, 1] uint32, one from every holder, its own included.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, 1] uint32, transformed.

    Raises:
        ValueError: another dtype or shape.
    """
    transport.moduli.check_residues("threshold.add_shares", shares, whole_ring=True)
    return choose(implementation, xla, reference).total(shares, params=transport)


def lagrange_coefficient(transport: Parameters, holder: int, active: Sequence[int]) -> np.ndarray:
    """What a holder's share is multiplied by where the active set opens a sum.

    Args:
        transport: ``params.transport``.
        holder: j, one of the set.
        active: the holders that open the sum, by number from 1, distinct.

    Returns:
        [limb, 1, 1] uint32: the product of k / (k - j) over the others k, modulo each prime.

    Raises:
        ValueError: the holder is not in the set, or numbers repeat or are out of range.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> lagrange_coefficient(parameters("rlwe-1024-26"), 1, (1, 2)).item()
        2

    Source: ePrint 2022/780, section 4 (Combine).
    """
    distinct = len(set(active)) == len(active) and all(1 <= k <= MAX_PARTIES for k in active)
    if holder not in active or not distinct:
        raise ValueError(
            f"lagrange_coefficient needs distinct holders from 1 to {MAX_PARTIES}, {holder} among "
            f"them, got {tuple(active)}. Name the active set first."
        )

    def coefficient(q: int) -> int:
        value = 1
        for other in active:
            if other != holder:
                value = value * other * pow(other - holder, -1, q) % q
        return value

    return transport.moduli.per_limb(coefficient)


def flood(
    transport: Parameters,
    flooding: Flooding,
    batch: int,
    words: Any,
    *,
    implementation: Implementation = None,
) -> Any:
    """A wide discrete Gaussian in every coefficient, which hides the ciphertext's noise.

    Args:
        transport: ``params.transport``.
        flooding: how wide; see :func:`fedjax_kernels.threshold.flooding_needed`.
        batch: how many polynomials.
        words: uint32 [flood_words_needed(transport, flooding, batch)], secret, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32 residues.

    Raises:
        ValueError: another dtype or number of words.

    Source: ePrint 2010/088, theorem 3.1; ePrint 2017/259, section 4.
    """
    _check_words("threshold.flood", words, flood_words_needed(transport, flooding, batch))
    parts = words.reshape(flooding.num_parts, WORDS_PER_DRAW, -1)
    module = choose(implementation, xla, reference)
    return module.flood(flooding.tables, parts, params=transport, shift_bits=SHIFT_BITS)


def partially_decrypt(
    transport: Parameters,
    key_share: Any,
    coefficient: Any,
    second: Any,
    flood: Any,
    *,
    implementation: Implementation = None,
) -> Any:
    """One active holder's part of an opening: c1 (lambda_j share_j) + flood.

    Args:
        transport: ``params.transport``.
        key_share: [limb, N, 1] uint32, from :func:`add_shares`, secret.
        coefficient: from :func:`lagrange_coefficient`, for the set named beforehand.
        second: [limb, N, batch] uint32, the second component of the sum.
        flood: from :func:`flood`, fresh.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32. Where two or more holders of the set may be honest, it still needs
        :func:`mask` before it is shown.

    Raises:
        ValueError: another dtype or shape.

    Source: ePrint 2020/304, decryption; ePrint 2022/780, section 4, for the order.
    """
    where = "threshold.partially_decrypt"
    transport.moduli.check_residues(where, key_share, whole_ring=True)
    transport.moduli.check_residues(where, second, whole_ring=True)
    transport.moduli.check_residues(where, coefficient)
    if np.shape(flood) != np.shape(second):
        raise ValueError(
            f"{where} needs a flood for every coefficient, {list(np.shape(second))}, "
            f"got {list(np.shape(flood))}. Draw it with the batch of the sum."
        )
    return choose(implementation, xla, reference).partially_decrypt(
        key_share, coefficient, second, flood, params=transport
    )


def mask(
    transport: Parameters,
    partial: Any,
    words: Any,
    *,
    negative: bool,
    implementation: Implementation = None,
) -> Any:
    """Adds (or subtracts) uniform residues that two active holders share.

    Why: a Lagrange coefficient is a quotient of small integers. Two honest holders' parts, each
    seen alone, would show their noise times such quotients, more than the flood hides. With a mask
    of every pair, added by one and subtracted by the other, only the parts' sum says anything.

    Args:
        transport: ``params.transport``.
        partial: [limb, N, batch] uint32.
        words: uint32 [mask_words_needed(transport, batch)], known to the two only, used once.
        negative: True for the holder with the larger number.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32.

    Raises:
        ValueError: another dtype, shape or number of words.

    Source: one-time additive masks of del Pino et al., "Threshold Raccoon", EUROCRYPT 2024 (ePrint
    2024/184); pairwise as zero sharing of Cramer, Damgard, Ishai, TCC 2005.
    """
    transport.moduli.check_residues("threshold.mask", partial, whole_ring=True)
    _check_words("threshold.mask", words, mask_words_needed(transport, np.shape(partial)[-1]))
    return choose(implementation, xla, reference).mask(
        partial, words, params=transport, negative=negative
    )


def combine(
    transport: Parameters, first: Any, partials: Any, *, implementation: Implementation = None
) -> Any:
    """The message with its noise, for :func:`fedjax_kernels.rlwe.decode`; it takes no secret.

    Args:
        transport: ``params.transport``.
        first: [limb, N, batch] uint32, the first component of the sum.
        partials: [t, limb, N, batch] uint32, one of every holder of the active set.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32: first + sum of the partials.

    Raises:
        ValueError: another dtype or shape.
    """
    transport.moduli.check_residues("threshold.combine", first, whole_ring=True)
    transport.moduli.check_residues("threshold.combine", partials, whole_ring=True)
    return choose(implementation, xla, reference).combine(first, partials, params=transport)
