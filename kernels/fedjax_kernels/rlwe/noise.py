"""How large the noise of a sum gets: a bound that always holds, and one that fails with a stated
probability. Both are computed from the distributions; nothing is estimated by simulation.

The sum of K ciphertexts decrypts to the message plus, in each coefficient,

    noise = (e * sum_k u_k) + sum_k e0_k + (s * sum_k e1_k),

where * is the negacyclic product, e is the public key's error, u_k and s are ternary, and e, e0_k,
e1_k are centred binomial with 21 + 21 bits. The summands are independent encryptions: adding one
ciphertext to itself K times gives K times its noise, which only :func:`worst_case_noise` covers.
"""

from __future__ import annotations

import math
from functools import lru_cache

from fedjax_kernels.rlwe.parameters import ERROR_BITS, ERROR_VARIANCE, Parameters

_TERNARY_VARIANCE = 2 / 3


def worst_case_noise(params: Parameters, num_summands: int) -> int:
    """The largest absolute noise that any choice of the random words can give.

    Args:
        params: the parameter set.
        num_summands: K, how many ciphertexts are added.

    Returns:
        21 K (2N + 1).

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> worst_case_noise(parameters("rlwe-4096-90"), 1)
        172053
    """
    return ERROR_BITS * num_summands * (2 * params.ring_degree + 1)


def failure_log2(
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    noise_bits: int,
) -> float:
    """Bounds the probability that any coefficient of one decrypted sum comes out wrong.

    A coefficient is right when its noise lies in [-Delta/2, Delta/2) with Delta = 2^noise_bits.

    Given e and s, the noise of a coefficient is a sum of independent variables. A uniform ternary
    variable is sub-Gaussian with its own variance 2/3 (compare the Taylor terms of
    (1 + 2 cosh t) / 3 and exp(t^2 / 3)); so is a centred binomial one with 21/2, as a sum of coins.
    The noise is then sub-Gaussian with v = K (2/3 |e|^2 + 21/2 + 21/2 |s|^2), each side of its
    tail at T is at most exp(-T^2 / 2v), and the union over coefficients is taken. |s|^2 is bounded
    by Hoeffding's inequality, and |e|^2 by Chernoff's with E exp(x e_i^2) <= (1 - 21 x)^(-1/2)
    for the sub-Gaussian e_i; each of these fails with probability 2^-b, for the best b of a few.

    The ternary sampler's relative bias of 3 * 2^-64 a coefficient changes the probability by a
    factor below exp(3 * 2^-64 * coefficients * summands), which is included.

    Args:
        params: the parameter set.
        num_summands: K, how many ciphertexts are added.
        num_coefficients: N times batch, the coefficients of one decryption.
        noise_bits: log2 of the scale.

    Returns:
        log2 of the bound; -inf where no choice of randomness can fail.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> failure_log2(parameters("rlwe-4096-90"), 1000, 4096 * 100, 18) < -40
        True

    Source: V. Lyubashevsky, C. Peikert, O. Regev (ePrint 2012/230), section 8.3 for the noise;
    Boucheron, Lugosi, Massart, "Concentration Inequalities", chapter 2, for the bounds.
    """
    if num_summands < 1 or num_coefficients < 1 or noise_bits < 1:
        raise ValueError(
            "failure_log2 needs counts of at least 1, got "
            f"{num_summands}, {num_coefficients} and {noise_bits}. Count summands, coefficients."
        )
    threshold = 2.0 ** (noise_bits - 1)
    if worst_case_noise(params, num_summands) < threshold:
        return -math.inf
    degree = params.ring_degree
    total = min(
        _tail_log2(degree, num_summands, num_coefficients, threshold, key_failure_bits)
        for key_failure_bits in (24, 32, 40, 44, 48, 56, 64, 80, 96, 128, 192, 256)
    )
    bias = 3 * 2.0**-64 * (num_coefficients * num_summands + degree) / math.log(2)
    return min(0.0, total + bias)


def noise_bits_needed(
    params: Parameters, num_summands: int, num_coefficients: int, *, failure_bits: int = 40
) -> int:
    """The fewest noise bits with which a sum decrypts right, except with probability 2^-40.

    Args:
        params: the parameter set.
        num_summands: K, the most ciphertexts that are added.
        num_coefficients: N times batch, the coefficients of one decryption.
        failure_bits: the failure probability is at most 2^-failure_bits per decryption.

    Returns:
        noise_bits for :class:`Encoding`.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> noise_bits_needed(parameters("rlwe-4096-90"), 1000, 4096 * 100)
        18
    """
    bits = 1
    while failure_log2(params, num_summands, num_coefficients, bits) > -failure_bits:
        bits += 1
    return bits


def _tail_log2(
    degree: int, num_summands: int, num_coefficients: int, threshold: float, key_failure_bits: int
) -> float:
    key_nats = key_failure_bits * math.log(2)
    error_norm = ERROR_VARIANCE * degree * (1 + _chi_square_excess(degree, key_nats))
    secret_norm = min(degree, degree * _TERNARY_VARIANCE + math.sqrt(degree * key_nats / 2))
    variance = num_summands * (
        _TERNARY_VARIANCE * error_norm + ERROR_VARIANCE + ERROR_VARIANCE * secret_norm
    )
    tail = 1 + math.log2(num_coefficients) - threshold**2 / (2 * variance) / math.log(2)
    key = 1 - key_failure_bits
    return max(tail, key) + math.log2(1 + 2.0 ** -abs(tail - key))


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
