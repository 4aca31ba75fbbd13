"""How wide a flood hides a ciphertext's noise, and how much noise a threshold sum then carries.

A partial decryption shows c1 s' + f, and all of an active set together show message + v + f, where
v is the noise of the ciphertext, which depends on the secret key, and f is at least one honest
holder's flood. The flood is a discrete Gaussian of parameter sigma in every coefficient. Shifting
it by an integer v changes it by a Kullback-Leibler divergence of exactly v^2 / (2 sigma^2): the
terms linear in the draw cancel, since its mean is zero. Divergences of independent floods add up,
also over openings that are chosen in the light of earlier ones, and Pinsker's inequality gives

    total variation <= sqrt(sum over openings of |v|^2) / (2 sigma).

|v|^2 is bounded by the inequality for quadratic forms of sub-Gaussian vectors, its probability of
failure, the sampler's distance from its ideal, that of shares and masks from uniform, and the
shift's are added up, and sigma is the least for which the total is at most 2^-flooding_bits, over
all openings that a key allows.

Sources: Canonne, Kamath, Steinke (arXiv 2004.00010), proposition 5, for the divergence, and fact 18
for the tails; Tsybakov, "Introduction to Nonparametric Estimation", lemma 2.5, for Pinsker's
inequality; Hsu, Kakade, Zhang (arXiv 1110.2842), theorem 1, for quadratic forms. Flooding in
threshold decryption: Asharov et al., EUROCRYPT 2012 (ePrint 2011/613), section 3.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property, lru_cache

from fedjax_kernels import discrete_gaussian
from fedjax_kernels.rlwe.noise import noise_variance, worst_case_noise
from fedjax_kernels.rlwe.parameters import ERROR_VARIANCE, Parameters

#: No flood hides less than this many bits: statistical distance at most 2^-40.
MIN_FLOODING_BITS = 40
#: The sampler is not close enough to its ideal to promise more over many openings.
MAX_FLOODING_BITS = 60
#: The most holders; their evaluation points 1..n and the differences are then units mod each prime.
MAX_PARTIES = 64
#: Parts of a flood are scaled by powers of 2^SHIFT_BITS and have these parameters.
SHIFT_BITS = 9
PART_SIGMA = 1040.0
MAX_TOP_SIGMA = 4096
MIN_TOP_SIGMA = 8
#: How many bits rarer than the flooding's distance each side event is.
_MARGIN_BITS = 6
_TERNARY_VARIANCE = 2 / 3
#: How far 128 bits modulo a prime below 2^30 are from uniform: q / 2^130 at most.
_UNIFORM_LOG2 = -100


@dataclasses.dataclass(frozen=True)
class Flooding:
    """A wide discrete Gaussian, as a sum of narrow ones: x_0 + k x_1 + k^2 x_2 + ..., k = 2^9.

    Why it is one: given y, the terms of the distribution of x_0 + k x_1 at y are those of a
    Gaussian of y, times the sum over the integers of a Gaussian in x_1 of parameter tau with
    1 / tau^2 = k^2 / sigma_0^2 + 1 / sigma_1^2, wherever it is centred. By Poisson's formula that
    sum is the same for all y up to a factor 1 +- 2 exp(-2 pi^2 tau^2) (1 + ...). With tau >= 1.96
    the distance is below 2^-108; each further part adds as much.

    Args:
        num_parts: how many narrow ones.
        top_sigma: the parameter of the last; the others have 1040.

    Raises:
        ValueError: a part is too narrow or too wide, or there is none.

    Example:
        >>> flooding = Flooding(num_parts=2, top_sigma=100)
        >>> round(flooding.sigma), flooding.sampler_log2 < -105
        (51211, True)

    Source: Peikert, CRYPTO 2010 (ePrint 2010/088), theorem 3.1; the scaled form as in Micciancio,
    Walter, CRYPTO 2017 (ePrint 2017/259), section 4.
    """

    num_parts: int
    top_sigma: int

    def __post_init__(self):
        wide_enough = self.num_parts == 1 or self.top_sigma >= MIN_TOP_SIGMA
        if self.num_parts < 1 or not 1 <= self.top_sigma <= MAX_TOP_SIGMA or not wide_enough:
            raise ValueError(
                f"Flooding needs 1 or more parts and a top_sigma from {MIN_TOP_SIGMA} to "
                f"{MAX_TOP_SIGMA}, got {self.num_parts} and {self.top_sigma}. "
                "Take one from flooding_needed(...)."
            )

    @property
    def part_sigmas(self) -> tuple[float, ...]:
        """The parameters of the parts, lowest first."""
        return (PART_SIGMA,) * (self.num_parts - 1) + (float(self.top_sigma),)

    @property
    def sigma(self) -> float:
        """The parameter of the whole; also its sub-Gaussian parameter."""
        return math.sqrt(
            sum((s * 2.0 ** (SHIFT_BITS * i)) ** 2 for i, s in enumerate(self.part_sigmas))
        )

    @cached_property
    def tables(self) -> tuple[discrete_gaussian.Table, ...]:
        """One table a part, lowest first."""
        return tuple(discrete_gaussian.table(sigma) for sigma in self.part_sigmas)

    @property
    def worst_case(self) -> int:
        """No larger magnitude can be drawn: a table ends where 2^-128 of its mass is left."""
        return sum(
            math.ceil(14 * sigma + 2) << (SHIFT_BITS * i)
            for i, sigma in enumerate(self.part_sigmas)
        )

    @property
    def sampler_log2(self) -> float:
        """log2 of a bound on the distance of one draw from the discrete Gaussian.

        It covers the sum of parts and the rounding of the tables, whose distance is at most
        2^-108 a part for every parameter allowed here.
        """
        if self.num_parts == 1:
            return -108.0
        narrowest = (2.0**SHIFT_BITS / PART_SIGMA) ** 2 + 1 / self.top_sigma**2
        ripple = 2 - 2 * math.pi**2 / narrowest / math.log(2)
        return math.log2(self.num_parts) + math.log2(2.0**ripple + 2.0**-108)


@dataclasses.dataclass(frozen=True)
class Openings:
    """What a joint key may be used for: the adversary's view that the flood has to cover.

    Args:
        num_parties: n, share holders whose secrets add up to the key.
        threshold: t, how many of them open a sum together.
        max_openings: how many partial decryptions each holder gives with one key.
        flooding_bits: the statistical distance is at most 2^-flooding_bits, 40 or more.

    Raises:
        ValueError: fewer than 2 or more than n holders to open, or too little flooding.

    Example:
        >>> Openings(num_parties=4, threshold=3, max_openings=100).num_sums
        200
    """

    num_parties: int
    threshold: int
    max_openings: int
    flooding_bits: int = MIN_FLOODING_BITS

    def __post_init__(self):
        if not 2 <= self.threshold <= self.num_parties <= MAX_PARTIES or self.max_openings < 1:
            raise ValueError(
                f"Openings needs 2 <= threshold <= num_parties <= {MAX_PARTIES} and at least one "
                f"opening, got {self.threshold} of {self.num_parties} and {self.max_openings}. "
                "Choose how many holders open a sum together."
            )
        if not MIN_FLOODING_BITS <= self.flooding_bits <= MAX_FLOODING_BITS:
            raise ValueError(
                f"Openings needs {MIN_FLOODING_BITS} to {MAX_FLOODING_BITS} bits of flooding, got "
                f"{self.flooding_bits}. Fewer would show the noise, and with it the key."
            )

    @property
    def num_sums(self) -> int:
        """The most sums that an adversary with t - 1 holders sees opened.

        Each needs an answer of one of the n - t + 1 others at least.
        """
        return (self.num_parties - self.threshold + 1) * self.max_openings


def noise_norm_log2(
    params: Parameters, num_summands: int, num_coefficients: int, openings: Openings
) -> float:
    """Bounds the Euclidean norm of the noise of all coefficients of one sum, in log2.

    The noise is a linear map of independent sub-Gaussian variables. The map's squared norm has the
    trace (coefficients times the variance of one) and, as the map is multiplication by s and e,
    an operator norm of their largest embedding squared: |s(w)|^2 at a root of x^N + 1 exceeds
    tau times its mean with probability at most tau exp(1 - tau), over N / 2 pairs of roots.

    Args:
        params: the parameter set under which clients encrypt.
        num_summands: K, the most ciphertexts in a sum.
        num_coefficients: N times batch.
        openings: of how many sums the bound has to hold, and how surely.

    Returns:
        log2 of the bound. It fails for any sum of a key with probability below
        2^-(flooding_bits + 5).

    Source: arXiv 1110.2842, theorem 1.
    """
    degree, holders = params.ring_degree, openings.num_parties
    key_bits = openings.flooding_bits + _MARGIN_BITS + 2
    variance = noise_variance(params, num_summands, holders, key_bits)
    nominal = (
        2 * _TERNARY_VARIANCE * ERROR_VARIANCE * holders * degree + ERROR_VARIANCE
    ) / params.dropped_prime**2
    if params.dropped_prime > 1:
        nominal += (1 + _TERNARY_VARIANCE * holders * degree) / 12
    largest = num_summands * nominal * _embedding_excess(degree, key_bits)
    nats = (openings.flooding_bits + _MARGIN_BITS + math.log2(openings.num_sums)) * math.log(2)
    trace = num_coefficients * variance
    bound = trace + 2 * math.sqrt(largest * trace * nats) + 2 * largest * nats
    return math.log2(bound) / 2


@lru_cache(maxsize=64)
def _embedding_excess(degree: int, bits: int) -> float:
    """The least tau with N / 2 * 2 * tau exp(1 - tau) <= 2^-bits, for both s and e."""
    nats, tau = bits * math.log(2) + math.log(degree), 2.0
    for _ in range(50):
        tau = nats + 1 + math.log(tau)
    return tau


def distance_log2(
    flooding: Flooding,
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    openings: Openings,
) -> float:
    """Bounds how far everything that t - 1 holders see is from what they could make up themselves.

    Args:
        flooding: the flood of every holder.
        params: the parameter set under which clients encrypt.
        num_summands: K, the most ciphertexts in a sum.
        num_coefficients: N times batch.
        openings: how many sums, and of whom.

    Returns:
        log2 of the bound on the statistical distance over all openings of a key.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> params, openings = parameters("rlwe-8192-212"), Openings(4, 3, 100)
        >>> flooding = flooding_needed(params, 1024, 8192 * 26, openings)
        >>> distance_log2(flooding, params, 1024, 8192 * 26, openings) <= -40
        True
    """
    norm = noise_norm_log2(params, num_summands, num_coefficients, openings)
    shift = norm + math.log2(openings.num_sums) / 2 - 1 - math.log2(flooding.sigma)
    drawn = _drawn_log2(flooding, params, num_coefficients, openings)
    rare = -(openings.flooding_bits + _MARGIN_BITS - 1)
    return math.log2(2.0**shift + 2.0**drawn + 2.0**rare)


def _drawn_log2(
    flooding: Flooding, params: Parameters, num_coefficients: int, openings: Openings
) -> float:
    """How far all floods, shares and masks of a key are from what they should be drawn from."""
    limbs, n, t = params.transport.num_limbs, openings.num_parties, openings.threshold
    floods = num_coefficients * openings.num_sums * 2.0**flooding.sampler_log2
    masks = openings.num_sums * math.comb(t, 2) * limbs * num_coefficients
    shares = n * (t - 1) * limbs * params.ring_degree
    return math.log2(floods + (masks + shares) * 2.0**_UNIFORM_LOG2)


@lru_cache(maxsize=1024)
def flooding_needed(
    params: Parameters, num_summands: int, num_coefficients: int, openings: Openings
) -> Flooding:
    """The narrowest flood that hides the noise of all openings of a key.

    Args:
        params: the parameter set under which clients encrypt.
        num_summands: K, the most ciphertexts in a sum.
        num_coefficients: N times batch, the coefficients of one sum.
        openings: how many sums, of whom, and how well.

    Returns:
        The flood, with :func:`distance_log2` at most -flooding_bits.

    Raises:
        ValueError: so many draws of the sampler are not that close to their ideal.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> params, openings = parameters("rlwe-8192-212"), Openings(4, 3, 9)
        >>> flooding = flooding_needed(params, 1024, 8192 * 26, openings)
        >>> 60 < math.log2(flooding.sigma) < 61
        True
    """
    drawn = _drawn_log2(Flooding(16, MIN_TOP_SIGMA), params, num_coefficients, openings)
    if drawn > -(openings.flooding_bits + 2):
        raise ValueError(
            f"flooding_needed needs draws that are together within 2^-{openings.flooding_bits + 2} "
            f"of their ideal, got 2^{drawn:.0f}. Use fewer openings, holders, coefficients or bits."
        )
    norm = noise_norm_log2(params, num_summands, num_coefficients, openings)
    parts = 1
    target = norm + math.log2(openings.num_sums) / 2 - 1 + openings.flooding_bits
    while target - SHIFT_BITS * (parts - 1) > math.log2(MAX_TOP_SIGMA) - 0.5:
        parts += 1
    top = max(MIN_TOP_SIGMA, math.floor(2.0 ** (target - SHIFT_BITS * (parts - 1))))
    while True:
        flooding = Flooding(parts, top)
        reached = distance_log2(flooding, params, num_summands, num_coefficients, openings)
        if reached <= -openings.flooding_bits:
            return flooding
        top += max(1, top // 256)


def failure_log2(
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    noise_bits: int,
    openings: Openings,
) -> float:
    """Bounds the probability that any coefficient of one opened sum comes out wrong.

    The noise is the ciphertexts' and the floods of t holders; all are sub-Gaussian. The distance
    of t floods' draws from discrete Gaussians is added, and the ternary sampler's bias is a factor
    next to 1, as in :func:`fedjax_kernels.rlwe.failure_log2`.

    Args:
        params: the parameter set under which clients encrypt.
        num_summands: K, how many ciphertexts are added.
        num_coefficients: N times batch.
        noise_bits: log2 of the scale, as ciphertexts travel.
        openings: who opens it, and how well it is flooded.

    Returns:
        log2 of the bound; -inf where no choice of randomness can fail.
    """
    flooding = flooding_needed(params, num_summands, num_coefficients, openings)
    worst = worst_case_noise(params, num_summands, num_holders=openings.num_parties)
    threshold = 1 << (noise_bits - 1)
    if worst + openings.threshold * flooding.worst_case < threshold:
        return -math.inf
    draws = openings.threshold * num_coefficients * 2.0**flooding.sampler_log2
    drawn = num_coefficients * num_summands + openings.num_parties * params.ring_degree
    best = 0.0
    for bits in (40, 44, 48, 56, 64, 80, 96, 128):
        variance = noise_variance(params, num_summands, openings.num_parties, bits)
        variance += openings.threshold * flooding.sigma**2
        tail = 1 + math.log2(num_coefficients) - threshold**2 / (2 * variance) / math.log(2)
        key = math.log2(2.0 ** (1 - bits) + draws)
        total = max(tail, key) + math.log2(1 + 2.0 ** -abs(tail - key))
        best = min(best, total + 3 * 2.0**-64 * drawn / math.log(2))
    return best


def noise_bits_needed(
    params: Parameters,
    num_summands: int,
    num_coefficients: int,
    openings: Openings,
    *,
    failure_bits: int = 40,
) -> int:
    """The fewest noise bits with which a threshold sum opens right, except with rare failure.

    Args:
        params: the parameter set under which clients encrypt.
        num_summands: K, the most ciphertexts that are added.
        num_coefficients: N times batch.
        openings: who opens it, and how well it is flooded.
        failure_bits: the failure probability is at most 2^-failure_bits a sum.

    Returns:
        noise_bits for :class:`fedjax_kernels.rlwe.Encoding`.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> noise_bits_needed(parameters("rlwe-8192-212"), 1024, 8192 * 26, Openings(3, 2, 32))
        66
    """
    flooding = flooding_needed(params, num_summands, num_coefficients, openings)
    bits = max(1, math.floor(math.log2(flooding.sigma)))
    while failure_log2(params, num_summands, num_coefficients, bits, openings) > -failure_bits:
        bits += 1
    return bits
