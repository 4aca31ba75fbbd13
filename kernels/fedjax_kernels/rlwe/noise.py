"""How large the noise of a sum gets: a bound that always holds, and one that fails with a stated
probability. Both are computed from the distributions; nothing is estimated by simulation.

The sum of K ciphertexts under a public key decrypts to the message plus, in each coefficient,

    noise = (e * sum_k u_k) + sum_k e0_k + (s * sum_k e1_k),

where * is the negacyclic product, e is the public key's error, u_k and s are ternary, and e, e0_k,
e1_k are centred binomial with 21 + 21 bits. Under a joint key of n holders, s and e are sums of n.
The secret-key form has noise = sum_k e_k only.

Where ciphertexts drop a prime p before they travel, the noise becomes noise / p plus what rounding
adds, sum_k r0_k + (s * sum_k r1_k). Here r is a residue mod p over p, in (-1/2, 1/2). Residues of
ciphertexts are taken as uniform and independent: whoever could tell them from that breaks Ring-LWE.

The summands are independent encryptions: adding one ciphertext to itself K times gives K times its
noise, which only :func:`worst_case_noise` covers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from fedjax_kernels.rlwe.parameters import ERROR_BITS, ERROR_VARIANCE, Parameters

#: "public": under a public key. "secret": the seeded form, under the encryptor's own secret.
Form = Literal["public", "secret"]

_TERNARY_VARIANCE = 2 / 3
_ROUNDING_VARIANCE = 1 / 12


def worst_case_noise(
    params: Parameters, num_summands: int, *, form: Form = "public", num_holders: int = 1
) -> int:
    """The largest absolute noise that any choice of the random words can give, as it travels.

    Args:
        params: the parameter set.
        num_summands: K, how many ciphertexts are added.
        form: "public" or "secret".
        num_holders: n, how many secrets the key is the sum of.

    Returns:
        For a public key 21 K (2 n N + 1), over the dropped prime and with K (n N + 1) / 2 of
        rounding where there is one; in the secret form 21 K. Rounded up.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> worst_case_noise(parameters("rlwe-4096-90"), 1)
        172053
        >>> worst_case_noise(parameters("rlwe-8192-212"), 1)
        4102
    """
    _check(num_summands, 1, 1, form, num_holders)
    if form == "secret":
        return ERROR_BITS * num_summands
    spread = num_holders * params.ring_degree
    noise = ERROR_BITS * num_summands * (2 * spread + 1)
    prime = params.dropped_prime
    if prime == 1:
        return noise
    return -(-(2 * noise + prime * num_summands * (spread + 1)) // (2 * prime))


def failure_log2(
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    noise_bits: int,
    *,
    form: Form = "public",
    num_holders: int = 1,
) -> float:
    """Bounds the probability that any coefficient of one decrypted sum comes out wrong.

    A coefficient is right when its noise lies in [-Delta/2, Delta/2) with Delta = 2^noise_bits.

    Given e and s, the noise of a coefficient is a sum of independent variables. A uniform ternary
    variable is sub-Gaussian with its own variance 2/3 (compare the Taylor terms of
    (1 + 2 cosh t) / 3 and exp(t^2 / 3)); so are a centred binomial one with 21/2, as a sum of
    coins, and a uniform one on (-1/2, 1/2) with 1/12. The noise is then sub-Gaussian with
    v = K (2/3 |e|^2 + 21/2 + 21/2 |s|^2), or with v / p^2 + K (1 + |s|^2) / 12 where a prime p is
    dropped; each side of its tail at T is at most exp(-T^2 / 2v), and the union over coefficients
    is taken. |s|^2 of one secret is bounded by Hoeffding's inequality; |e|^2, and |s|^2 of a sum of
    secrets, by Chernoff's with E exp(x X^2) <= (1 - 2 x V)^(-1/2) for a sub-Gaussian X of variance
    V. Each of these fails with probability 2^-b, for the best b of a few.

    The ternary sampler's relative bias of 3 * 2^-64 a coefficient changes the probability by a
    factor below exp(3 * 2^-64 * coefficients * summands), which is included.

    Args:
        params: the parameter set.
        num_summands: K, how many ciphertexts are added.
        num_coefficients: N times batch, the coefficients of one decryption.
        noise_bits: log2 of the scale, as ciphertexts travel.
        form: "public" or "secret".
        num_holders: n, how many secrets the key is the sum of.

    Returns:
        log2 of the bound; -inf where no choice of randomness can fail.

    Raises:
        ValueError: a count below 1, or another form.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> failure_log2(parameters("rlwe-4096-90"), 1000, 4096 * 100, 18) < -40
        True

    Source: V. Lyubashevsky, C. Peikert, O. Regev (ePrint 2012/230), section 8.3 for the noise;
    Boucheron, Lugosi, Massart, "Concentration Inequalities", chapter 2, for the bounds; rounding as
    in Brakerski, Gentry, Vaikuntanathan (ePrint 2011/277), section 4.2.
    """
    _check(num_summands, num_coefficients, noise_bits, form, num_holders)
    threshold = 2.0 ** (noise_bits - 1)
    worst = worst_case_noise(params, num_summands, form=form, num_holders=num_holders)
    if worst < threshold:
        return -math.inf

    def tail_log2(variance: float) -> float:
        return 1 + math.log2(num_coefficients) - threshold**2 / (2 * variance) / math.log(2)

    if form == "secret":
        return min(0.0, tail_log2(num_summands * ERROR_VARIANCE))
    total = min(
        _log2_sum(tail_log2(noise_variance(params, num_summands, num_holders, bits)), 1 - bits)
        for bits in (24, 32, 40, 44, 48, 56, 64, 80, 96, 128, 192, 256)
    )
    drawn = num_coefficients * num_summands + num_holders * params.ring_degree
    return min(0.0, total + 3 * 2.0**-64 * drawn / math.log(2))


def noise_bits_needed(
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    *,
    failure_bits: int = 40,
    form: Form = "public",
    num_holders: int = 1,
) -> int:
    """The fewest noise bits with which a sum decrypts right, except with probability 2^-40.

    Args:
        params: the parameter set.
        num_summands: K, the most ciphertexts that are added.
        num_coefficients: N times batch, the coefficients of one decryption.
        failure_bits: the failure probability is at most 2^-failure_bits per decryption.
        form: "public" or "secret".
        num_holders: n, how many secrets the key is the sum of.

    Returns:
        noise_bits for :class:`Encoding`.

    Raises:
        ValueError: a count below 1, or another form.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> noise_bits_needed(parameters("rlwe-4096-90"), 1000, 4096 * 100)
        18
        >>> noise_bits_needed(parameters("rlwe-8192-212"), 1000, 4096 * 100)
        14
        >>> noise_bits_needed(parameters("rlwe-4096-90"), 1000, 4096 * 100, form="secret")
        11
    """
    bits = 1
    while (
        failure_log2(
            params, num_summands, num_coefficients, bits, form=form, num_holders=num_holders
        )
        > -failure_bits
    ):
        bits += 1
    return bits


def noise_variance(
    params: Parameters, num_summands: int, num_holders: int, key_failure_bits: int
) -> float:
    """The sub-Gaussian variance of one coefficient of a public-key sum's noise, as it travels.

    It holds for all keys but a fraction of 2^(1 - key_failure_bits).

    Args:
        params: the parameter set.
        num_summands: K, how many ciphertexts are added.
        num_holders: n, how many secrets the key is the sum of.
        key_failure_bits: how rare the keys are that have a larger one.

    Returns:
        The variance, in squared units of a coefficient.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> variance = noise_variance(parameters("rlwe-4096-90"), 1024, 1, 40)
        >>> 12.9 < math.log2(variance) / 2 < 13.1
        True
    """
    degree, nats = params.ring_degree, key_failure_bits * math.log(2)
    excess = 1 + _chi_square_excess(degree, nats)
    error_norm = ERROR_VARIANCE * num_holders * degree * excess
    if num_holders == 1:
        secret_norm = min(degree, degree * _TERNARY_VARIANCE + math.sqrt(degree * nats / 2))
    else:
        secret_norm = min(
            num_holders**2 * degree, _TERNARY_VARIANCE * num_holders * degree * excess
        )
    fresh = _TERNARY_VARIANCE * error_norm + ERROR_VARIANCE + ERROR_VARIANCE * secret_norm
    rounding = _ROUNDING_VARIANCE * (1 + secret_norm) if params.dropped_prime > 1 else 0.0
    return num_summands * (fresh / params.dropped_prime**2 + rounding)


def _check(
    num_summands: int, num_coefficients: int, noise_bits: int, form: str, num_holders: int
) -> None:
    if min(num_summands, num_coefficients, noise_bits, num_holders) < 1:
        raise ValueError(
            "noise arithmetic needs counts of at least 1, got "
            f"{num_summands} summands, {num_coefficients} coefficients, {noise_bits} bits and "
            f"{num_holders} holders. Count what is added and decrypted."
        )
    if form not in ("public", "secret"):
        raise ValueError(
            f"noise arithmetic needs form='public' or 'secret', got {form!r}. "
            "Take 'public' for encryption under a public key."
        )


def _log2_sum(first: float, second: float) -> float:
    return max(first, second) + math.log2(1 + 2.0 ** -abs(first - second))


@lru_cache(maxsize=64)
def _chi_square_excess(degree: int, nats: float) -> float:
    """The least d (rounded up) with (degree / 2) (d - ln(1 + d)) >= nats."""
    low, high = 0.0, 1.0
    while degree / 2 * (high - math.log1p(high)) < nats:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if degree / 2 * (middle - math.log1p(middle)) < nats:
            low = middle
        else:
            high = middle
    return high
