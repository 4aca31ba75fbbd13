"""Integer noise: sums of discrete Gaussian shares, and the Gaussian that they are accounted as."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .arguments import is_count, is_positive, require
from .calibrate import calibrate
from .spend import Adjacency, Spend

_SMALLEST_SHARE_STDDEV = 2.0
_ROUNDING_EPSILON_PER_ROUND = 1e-9


def _poisson_tail(stddev: float) -> float:
    """Upper bound of 2 * sum_{k>=1} exp(-2 pi^2 stddev^2 k^2) (k^2 >= k: a geometric sum)."""
    x = math.exp(-2.0 * (math.pi * stddev) ** 2)
    return 2.0 * x / (1.0 - x)


@dataclass(frozen=True)
class DiscreteGaussianSum:
    r"""Integer noise that is a sum of discrete Gaussian shares, and what it is accounted as.

    Each of `num_shares` parties adds its own discrete Gaussian of parameter `share_stddev` to
    integers of which one unit moves the sum by at most `unit_l2`. dp-accounting knows no such
    mechanism in more than one dimension, so it is accounted as the continuous Gaussian of
    ``noise_multiplier``, plus a slack that is proved below and usually invisible.

    Guarantees:
        Let n shares, :math:`\sigma` = ``share_stddev`` * sqrt(n), d = `dim`, s =
        ``rounding_stddev``, and :math:`\eta(t) = 2\sum_{k\ge1} e^{-2\pi^2 t^2 k^2}`. By Poisson
        summation :math:`Z_t(c) = \sum_{x\in\mathbb Z} e^{-(x-c)^2/2t^2} = t\sqrt{2\pi}
        (1 + 2\sum_{k\ge1} e^{-2\pi^2t^2k^2}\cos 2\pi kc)`, which lies between
        :math:`t\sqrt{2\pi}(1\pm\eta(t))`, and equals the upper end for an integer c.

        1. *A discrete Gaussian is nearly a rounded continuous one.* Draw y from the continuous
           Gaussian of variance :math:`\sigma^2-s^2` around an integer m, then x from the discrete
           Gaussian of parameter s around y (the second step does not know m: post-processing).
           Then :math:`P(x) = \int \phi_{\sqrt{\sigma^2-s^2}}(y-m)\,
           e^{-(x-y)^2/2s^2}/Z_s(y)\,dy`, and since :math:`Z_s(y)` lies within
           :math:`s\sqrt{2\pi}(1\pm\eta(s))`, P(x) is :math:`\phi_\sigma(x-m)` times a factor in
           :math:`[1/(1+\eta(s)), 1/(1-\eta(s))]`. The discrete Gaussian of parameter
           :math:`\sigma` around m is :math:`\phi_\sigma(x-m)/(1+\eta(\sigma))`. So their log-ratio
           is at most :math:`\log(1+\eta(\sigma)) - \log(1-\eta(s))` in absolute value.
        2. *A sum of shares is nearly a discrete Gaussian.* The log-ratio of the sum's pmf to that
           of the discrete Gaussian of parameter :math:`\sigma` is at most
           :math:`5\sum_{k=1}^{n-1} e^{-2\pi^2\sigma_i^2 k/(k+1)}` (Kairouz, Liu, Steinke 2021,
           the bound behind their Theorem 1, whose 10 is this 5 for each of the two neighbours).
           For adding one share of parameter t to a discrete Gaussian of parameter
           :math:`\sqrt{k}\,t`: the pmf of the sum is exactly :math:`e^{-z^2/2(k+1)t^2}
           Z_\rho(c)/(Z_{\sqrt kt}(0) Z_t(0))` with :math:`\rho^2 = t^2k/(k+1)` and some c, so
           the ratio is :math:`(1\pm\eta(\rho))` over two factors that are closer to 1.
        3. ``log_ratio`` = d times (1. plus 2.) bounds :math:`|\log|` of the true over the
           accounted pmf of a whole round, whatever the integers are. It carries over to a
           Poisson-subsampled round, because that is a mixture of such pmfs with the same weights
           on both sides; and to R adaptive rounds as R * ``log_ratio``, because the joint pmf is
           the product of the rounds' conditional ones.
        4. With g = R * ``log_ratio``, and the accounted Gaussian (e, :math:`\delta'`)-DP,
           :math:`P_{true}(S) \le e^g P(S) \le e^g(e^e Q(S) + \delta') \le e^{e+2g} Q_{true}(S)
           + e^g\delta'`. So epsilon grows by 2g and delta by the factor :math:`e^g`.
        5. The table sampler's draws are within `total_variation` of exact ones; T =
           `total_variation` * d * n * R bounds the distance of everything released. For each set,
           :math:`\tilde P(S) \le P(S)+T \le e^\epsilon (\tilde Q(S)+T) + \delta + T`: delta grows
           by :math:`(1+e^\epsilon)T`.

        :func:`compose` solves 4. and 5. for the smallest epsilon it can prove at a given delta.
        Shares that are present beyond the `num_shares` counted, or known to an attacker, change
        nothing: they are added to the released sum independently of it.

    Args:
        share_stddev: parameter of each share, in integer units; at least 2.
        num_shares: honest shares that are sure to be in the sum (not those that may be missing,
            nor those that the attacker knows).
        unit_l2: L2 bound of one unit's integers, rounding included.
        dim: number of coordinates.
        total_variation: bound on the distance of one draw of the sampler from an exact one; 0
            where the sampler is exact.

    Raises:
        SpecError: a value out of range, or shares narrower than 2, whose sum is not close enough
            to a discrete Gaussian.

    Example:
        >>> noise = DiscreteGaussianSum(share_stddev=40.0, num_shares=3, unit_l2=70.0, dim=14)
        >>> round(noise.noise_multiplier, 4), noise.extra_epsilon_per_round < 1.1e-9
        (0.9896, True)

    Source:
        Peikert 2010, "An efficient and parallel Gaussian sampler for lattices", Theorem 3.1;
        Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy"
        (Poisson summation); Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Theorem 1.
    """

    share_stddev: float
    num_shares: int
    unit_l2: float
    dim: int
    total_variation: float = 0.0

    def __post_init__(self) -> None:
        where = "DiscreteGaussianSum"
        for name in ("num_shares", "dim"):
            value = getattr(self, name)
            require(is_count(value), where, f"{name} >= 1, an integer",
                    f"{name}={value!r}", "Count only what is sure to be in the sum."
                    if name == "num_shares" else "Give the number of coordinates.")
        for name in ("share_stddev", "unit_l2"):
            value = getattr(self, name)
            require(is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
                    "Give it in integer units.")
        require(0 <= self.total_variation < 1, where, "total_variation in [0, 1)",
              f"total_variation={self.total_variation!r}", "Use 0 for an exact sampler.")
        require(self.share_stddev >= _SMALLEST_SHARE_STDDEV, where,
                f"shares of stddev >= {_SMALLEST_SHARE_STDDEV:g} integer units",
                f"share_stddev={self.share_stddev:.4g}",
                "Quantise on a finer grid (more bits), which makes every stddev larger in "
                "integer units, or add more noise.")

    @property
    def stddev(self) -> float:
        """Parameter of the summed noise, in integer units."""
        return self.share_stddev * math.sqrt(self.num_shares)

    @property
    def rounding_stddev(self) -> float:
        """The s of the proof: any value is sound; this one makes the slack of step 1 1e-9."""
        return _rounding_stddev(self.dim)

    @property
    def noise_multiplier(self) -> float:
        """sqrt(stddev^2 - s^2) / unit_l2: the continuous Gaussian that it is accounted as."""
        variance = self.stddev**2 - self.rounding_stddev**2
        require(variance > 0, "DiscreteGaussianSum",
                f"noise wider than its rounding parameter {self.rounding_stddev:.3g}",
                f"a stddev of {self.stddev:.4g}",
                "Quantise on a finer grid (more bits), or add more noise.")
        return math.sqrt(variance) / self.unit_l2 * (1 - 1e-14)  # rounded down

    @property
    def log_ratio(self) -> float:
        """Bound on ``|log(true pmf / accounted pmf)|`` of one round (step 3)."""
        rounding = math.log1p(_poisson_tail(self.stddev)) - math.log1p(
            -_poisson_tail(self.rounding_stddev))
        return self.dim * (rounding + _summing_log_ratio(self.share_stddev, self.num_shares))

    @property
    def extra_epsilon_per_round(self) -> float:
        """What one round adds to epsilon: twice ``log_ratio`` (step 4)."""
        return 2.0 * self.log_ratio

    @property
    def total_variation_per_round(self) -> float:
        """Distance of one round's noise, all coordinates and shares, from exact noise (step 5)."""
        return self.total_variation * self.dim * self.num_shares

    def extra_delta_per_round(self, epsilon: float) -> float:
        """What one round's sampler adds to delta where `epsilon` is that of the whole run."""
        return (1.0 + math.exp(epsilon)) * self.total_variation_per_round

    def spend(self, *, sampling_rate: float, unit: str, rounds: int = 1,
              adjacency: Adjacency = "add_remove") -> Spend:
        """The spend of `rounds` rounds with this noise, slack included."""
        return Spend(self.noise_multiplier, sampling_rate, unit, rounds, adjacency,
                     self.log_ratio, self.total_variation_per_round)


def _rounding_stddev(dim: int) -> float:
    # Solves 2 * dim * eta(s) = the aim, with eta(s) = 2 exp(-2 pi^2 s^2).
    return math.sqrt(math.log(4.0 * dim / _ROUNDING_EPSILON_PER_ROUND) / 2.0) / math.pi


def _summing_log_ratio(share_stddev: float, num_shares: int) -> float:
    """5 * sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k/(k+1)), the tail k >= 1000 at its first term."""
    exact = range(1, min(num_shares, 1000))
    rate = -2.0 * (math.pi * share_stddev) ** 2
    total = math.fsum(math.exp(rate * k / (k + 1)) for k in exact)
    total += max(0, num_shares - 1000) * math.exp(rate * 1000 / 1001)
    return 5.0 * total


def share_stddev_for(
    noise_multiplier: float, *, unit_l2: float, dim: int, honest_shares: int
) -> float:
    """Parameter of each share so that the honest ones are accounted as `noise_multiplier`.

    Use it to turn a calibrated multiplier into what each party must draw: the inverse of
    :attr:`DiscreteGaussianSum.noise_multiplier`, rounded up.

    Args:
        noise_multiplier: multiplier to reach.
        unit_l2: L2 bound of one unit's integers, rounding included.
        dim: number of coordinates.
        honest_shares: shares that are sure to be in the sum.

    Returns:
        The stddev of each share, in integer units.

    Raises:
        SpecError: a value out of range, or shares that would be narrower than 2.

    Example:
        >>> s = share_stddev_for(1.0, unit_l2=70.0, dim=14, honest_shares=3)
        >>> DiscreteGaussianSum(s, 3, 70.0, 14).noise_multiplier >= 1.0
        True
    """
    where = "share_stddev_for"
    for name, value in (("noise_multiplier", noise_multiplier), ("unit_l2", unit_l2),
                        ("dim", dim), ("honest_shares", honest_shares)):
        require(is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
                "Give a positive number.")
    wide = math.hypot(noise_multiplier * unit_l2, _rounding_stddev(dim))
    share = wide / math.sqrt(honest_shares) * (1 + 1e-12)
    # The constructor refuses narrow shares and bad counts.
    return DiscreteGaussianSum(share, honest_shares, unit_l2, dim).share_stddev


def calibrate_shares(
    *, target_epsilon: float, dp_delta: float, rounds: int, sampling_rate: float,
    unit_l2: float, dim: int, honest_shares: int, total_variation: float = 0.0,
    adjacency: Adjacency = "add_remove",
) -> DiscreteGaussianSum:
    """The least noise, as shares of discrete Gaussians, whose rounds cost at most the target.

    It is :func:`calibrate` for the mechanism that really runs, with its slack inside the target.

    Guarantees:
        ``compose([result.spend(rounds=rounds, ...)], dp_delta)`` is below `target_epsilon` for
        the sum of the honest shares alone.

    Args:
        target_epsilon: epsilon that the whole run may cost.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        rounds: number of equal rounds.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        unit_l2: L2 bound of one unit's integers, rounding included.
        dim: number of coordinates.
        honest_shares: shares that are sure to be in the sum and unknown to the attacker.
        total_variation: bound on the distance of one draw of the sampler from an exact one, at
            any stddev the result may have.
        adjacency: ``"add_remove"`` or ``"replace_one"``.

    Returns:
        The noise; its `share_stddev` is what each party draws.

    Raises:
        SpecError: a value out of range, a target out of reach, or shares narrower than 2.

    Example:
        >>> noise = calibrate_shares(target_epsilon=3.0, dp_delta=1e-3, rounds=30,
        ...                          sampling_rate=0.1, unit_l2=70.0, dim=14, honest_shares=3)
        >>> from fedjax_secure.privacy.accounting import compose
        >>> compose([noise.spend(sampling_rate=0.1, unit="patient", rounds=30)], 1e-3) <= 3.0
        True
    """
    # The slack falls as shares widen: a share of stddev 2 bounds that of every allowed one.
    widest_slack = DiscreteGaussianSum(
        _SMALLEST_SHARE_STDDEV, honest_shares, unit_l2, dim, total_variation)
    multiplier = calibrate(
        target_epsilon=target_epsilon, dp_delta=dp_delta, rounds=rounds,
        sampling_rate=sampling_rate, adjacency=adjacency, log_ratio=widest_slack.log_ratio,
        total_variation=widest_slack.total_variation_per_round)
    share = share_stddev_for(
        multiplier, unit_l2=unit_l2, dim=dim, honest_shares=honest_shares)
    return DiscreteGaussianSum(share, honest_shares, unit_l2, dim, total_variation)
