"""What a run costs in privacy: epsilon, calibrated noise, and the accounting of integer noise.

All curves come from dp-accounting (privacy loss distributions, or Renyi divergences). What is ours
is the step from *our* mechanism, integers plus a sum of discrete Gaussian shares drawn from a
table, to the continuous Gaussian that dp-accounting knows; see :class:`DiscreteGaussianSum`.

Everywhere: sampling is Poisson (each unit takes part in a round independently with probability
``sampling_rate``). Sampling of a fixed size accounted as Poisson sampling reports an epsilon that
is too small by a factor; account any other sampling with ``sampling_rate=1``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

from fedjax_secure.core.errors import SpecError

Adjacency = Literal["add_remove", "replace_one"]

_RELATIONS = {
    "add_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}
_SMALLEST_DP_DELTA = 1e-12  # FFTs in double precision cannot vouch for less
_SMALLEST_SHARE_STDDEV = 2.0
_ROUNDING_EPSILON_PER_ROUND = 1e-9
_LADDER = tuple(m * 10.0**e for e in range(-7, 0) for m in (1, 2, 5))
_GRID_ERROR = 1e-3
_MULTIPLIER_RANGE = (0.02, 1e6)


def _need(ok: bool, where: str, need: str, found: object, fix: str) -> None:
    if not ok:
        raise SpecError(where, need=need, found=str(found), fix=fix)


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and float(value) > 0


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_dp_delta(where: str, dp_delta: float) -> None:
    _need(isinstance(dp_delta, Real) and _SMALLEST_DP_DELTA <= float(dp_delta) < 1, where,
          f"dp_delta in [{_SMALLEST_DP_DELTA:g}, 1)", f"dp_delta={dp_delta!r}",
          "Give a probability well below one over the number of units, for example 1e-5.")


@dataclass(frozen=True)
class Spend:
    """What `count` equal rounds cost one unit: the events that the accountant composes.

    Args:
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound.
        sampling_rate: probability with which each unit takes part in a round (Poisson).
        unit: whose privacy it is, for example ``"patient"``, ``"record"`` or ``"client"``.
        count: number of equal rounds.
        adjacency: ``"add_remove"`` (one unit is there or not) or ``"replace_one"`` (one unit's
            data changes, which moves the sum by up to twice the bound; the accountant doubles it).
        log_ratio: bound, for one round, on ``|log(true pmf / accounted pmf)|`` of all that the
            round releases; see :class:`DiscreteGaussianSum`. 0 for an exact Gaussian.
        total_variation: bound, for one round, on the total-variation distance between the noise
            drawn and the noise accounted.

    Raises:
        SpecError: a value out of range.

    Example:
        >>> Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient").count
        1
    """

    noise_multiplier: float
    sampling_rate: float
    unit: str
    count: int = 1
    adjacency: Adjacency = "add_remove"
    log_ratio: float = 0.0
    total_variation: float = 0.0

    def __post_init__(self) -> None:
        where = "Spend"
        _need(_is_positive(self.noise_multiplier), where, "noise_multiplier > 0",
              f"noise_multiplier={self.noise_multiplier!r}",
              "A round without noise has no epsilon: add noise or do not account it.")
        _need(_is_positive(self.sampling_rate) and self.sampling_rate <= 1, where,
              "sampling_rate in (0, 1]", f"sampling_rate={self.sampling_rate!r}",
              "Give the probability with which a unit takes part in one round.")
        _need(isinstance(self.unit, str) and bool(self.unit), where, "a unit, as a word",
              f"unit={self.unit!r}", 'Say whose privacy it is, for example unit="patient".')
        _need(_is_count(self.count), where, "count >= 1, an integer",
              f"count={self.count!r}", "Give the number of equal rounds.")
        _check_adjacency(where, self.adjacency)
        for name in ("log_ratio", "total_variation"):
            value = getattr(self, name)
            _need(isinstance(value, Real) and math.isfinite(value) and float(value) >= 0, where,
                  f"{name} >= 0", f"{name}={value!r}", "Use 0 for an exact Gaussian.")
        for name in ("noise_multiplier", "sampling_rate", "log_ratio", "total_variation"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "count", int(self.count))

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """The event in dp-accounting's terms, without the slack of discrete noise."""
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, event)
        return dp_accounting.SelfComposedDpEvent(event, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for a file; ``Spend(**d)`` reads it back exactly."""
        return asdict(self)


def _check_adjacency(where: str, adjacency: object) -> None:
    _need(adjacency in _RELATIONS, where, f"adjacency among {sorted(_RELATIONS)}",
          f"adjacency={adjacency!r}",
          'Use "add_remove" unless the number of units is public and fixed.')


# The curve of an exact (subsampled) Gaussian: dp-accounting's privacy loss distributions.

_Group = tuple[float, float, int]  # sampling_rate, noise_multiplier, count
_Pld = privacy_loss_distribution.PrivacyLossDistribution


def _loss_variance(sampling_rate: float, noise_multiplier: float) -> float:
    """About the variance of one round's privacy loss."""
    inverse = noise_multiplier**-2
    return min(inverse, sampling_rate**2 * math.expm1(min(inverse, 700.0)))


def _interval(groups: tuple[_Group, ...]) -> float:
    """Grid step of the losses. Any step gives a true upper bound; this one is tight and fast.

    A grid of step h adds at most h^2/4 to the variance of each round's loss, so that h^2 =
    4 * _GRID_ERROR * (mean variance of a round) moves epsilon by less than a part in a thousand.
    Few steps suffice where a round's loss is wide; 2e-3 is fine enough for all others.
    """
    rounds = sum(count for _, _, count in groups)
    variance = math.fsum(count * _loss_variance(q, nm) for q, nm, count in groups) / rounds
    wanted = min(2.0 * math.sqrt(_GRID_ERROR * variance), 2e-3 * max(1.0, math.sqrt(variance)))
    return max((step for step in _LADDER if step <= wanted), default=_LADDER[0])


@lru_cache(maxsize=32)
def _round_loss(rate: float, multiplier: float, adjacency: str, interval: float) -> _Pld:
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, sampling_prob=rate, value_discretization_interval=interval,
        neighboring_relation=_RELATIONS[adjacency])


_PREFIXES: OrderedDict[tuple, _Pld] = OrderedDict()  # losses of the groups but the last


def _composed_loss(groups: tuple[_Group, ...], adjacency: str, interval: float) -> _Pld:
    """Composes the groups in order; everything but the last group is remembered."""

    def one(group: _Group) -> _Pld:
        rate, multiplier, count = group
        loss = _round_loss(rate, multiplier, adjacency, interval)
        return loss.self_compose(count) if count > 1 else loss

    total, done = None, 0
    for size in range(len(groups), 0, -1):
        total = _PREFIXES.get((groups[:size], adjacency, interval))
        if total is not None:
            done = size
            break
    for size in range(done + 1, len(groups) + 1):
        last = one(groups[size - 1])
        total = last if total is None else total.compose(last)
        if size >= len(groups) - 1:
            _PREFIXES[groups[:size], adjacency, interval] = total
            while len(_PREFIXES) > 6:
                _PREFIXES.popitem(last=False)
    assert total is not None
    return total


def _epsilon_with_slack(
    gaussian_epsilon: Callable[[float], float], dp_delta: float, log_ratio: float,
    total_variation: float,
) -> float:
    """Epsilon of the true mechanism from that of the accounted one; see DiscreteGaussianSum."""
    shrink, extra = math.exp(-log_ratio), 2.0 * log_ratio
    result = gaussian_epsilon(dp_delta * shrink) + extra
    for _ in range(40 if total_variation > 0 else 0):
        # For any guess: epsilon <= guess makes (epsilon, dp_delta) a guarantee.
        guess = result * (1 + 1e-6) + 1e-9
        if guess > 700:
            return math.inf
        left = dp_delta - (1.0 + math.exp(guess)) * total_variation
        if left <= 0:
            return math.inf
        result = gaussian_epsilon(left * shrink) + extra
        if result <= guess:
            return result
    return result if total_variation == 0 else math.inf


@lru_cache(maxsize=256)
def _epsilon_of_groups(
    groups: tuple[_Group, ...], adjacency: str, log_ratio: float, total_variation: float,
    dp_delta: float,
) -> float:
    loss = _composed_loss(groups, adjacency, _interval(groups))
    return _epsilon_with_slack(loss.get_epsilon_for_delta, dp_delta, log_ratio, total_variation)


def compose(spends: Iterable[Spend], dp_delta: float) -> float:
    """Epsilon of many spends together, at `dp_delta`.

    Use it for the whole history of a budget: rounds of different noise or sampling may be mixed.
    Equal rounds are grouped, and results are remembered, so that a call each round is cheap.

    Guarantees:
        The rounds, adaptively composed, are (result, dp_delta)-differentially private for the
        spends' unit and adjacency. The result is an upper bound (pessimistic privacy loss
        distributions) that lies within about a part in a thousand of dp-accounting's at its
        finest useful grid. The slack of discrete noise is included.

    Args:
        spends: what was or will be spent; an empty list costs 0.
        dp_delta: the delta of the guarantee, in [1e-12, 1).

    Returns:
        epsilon, or infinity where no finite epsilon holds at this dp_delta.

    Raises:
        SpecError: mixed adjacencies or units, or a dp_delta out of range.

    Example:
        >>> a = Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient", count=20)
        >>> b = Spend(noise_multiplier=2.0, sampling_rate=0.1, unit="patient", count=10)
        >>> round(compose([a, b], dp_delta=1e-3), 2)
        2.19

    Source:
        Koskela, Jalko, Honkela 2020 (privacy loss distributions); Doroshenko et al. 2022,
        "Connect the dots" (the pessimistic grid); both as implemented by dp-accounting.
    """
    where = "compose"
    _check_dp_delta(where, dp_delta)
    spends = tuple(spends)
    if not spends:
        return 0.0
    for name in ("adjacency", "unit"):
        found = sorted({getattr(spend, name) for spend in spends})
        _need(len(found) == 1, where, f"spends of one {name}", " and ".join(found),
              f"Account each {name} in a budget of its own; their epsilons do not add.")
    counts: dict[tuple[float, float], int] = {}
    inverse_variance = []  # unsampled Gaussians compose to one Gaussian
    for spend in spends:
        if spend.sampling_rate == 1:
            inverse_variance.append(spend.count / spend.noise_multiplier**2)
        else:
            key = (float(spend.sampling_rate), float(spend.noise_multiplier))
            counts[key] = counts.get(key, 0) + spend.count
    groups = tuple((rate, multiplier, count) for (rate, multiplier), count in counts.items())
    if inverse_variance:
        groups += ((1.0, math.fsum(inverse_variance) ** -0.5, 1),)
    return _epsilon_of_groups(
        groups, spends[0].adjacency,
        math.fsum(spend.count * spend.log_ratio for spend in spends),
        math.fsum(spend.count * spend.total_variation for spend in spends),
        float(dp_delta))


def epsilon(
    *, noise_multiplier: float, sampling_rate: float, rounds: int, dp_delta: float,
    accountant: Literal["pld", "rdp"] = "pld", adjacency: Adjacency = "add_remove",
) -> float:
    """Epsilon of `rounds` rounds of the Poisson-subsampled Gaussian.

    Guarantees:
        The rounds are (result, dp_delta)-differentially private for a Gaussian of this noise; for
        summed discrete noise use the spend of :class:`DiscreteGaussianSum` and :func:`compose`.

    Args:
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        rounds: number of rounds.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        accountant: ``"pld"`` (tight) or ``"rdp"`` (looser; what older papers report).
        adjacency: ``"add_remove"`` or ``"replace_one"``.

    Returns:
        epsilon.

    Raises:
        SpecError: a value out of range; ``"rdp"`` with ``"replace_one"``, which dp-accounting's
            accountant ignores for a Gaussian (it would report half the sensitivity).

    Example:
        >>> round(epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=30, dp_delta=1e-5), 2)
        4.18

    Source:
        Abadi et al. 2016; Mironov, Talwar, Zhang 2019 (RDP); see :func:`compose` for PLD.
    """
    where = "epsilon"
    spend = Spend(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, count=rounds,
                  unit="unit", adjacency=adjacency)
    _need(accountant in ("pld", "rdp"), where, "accountant 'pld' or 'rdp'", repr(accountant),
          'Use "pld" for the tight bound.')
    if accountant == "pld":
        return compose([spend], dp_delta)
    _check_dp_delta(where, dp_delta)
    _need(adjacency == "add_remove", where, 'adjacency "add_remove" with the RDP accountant',
          repr(adjacency), 'Use accountant="pld" for "replace_one".')
    rdp = RdpAccountant(neighboring_relation=_RELATIONS[adjacency]).compose(spend.dp_event)
    return float(rdp.get_epsilon(dp_delta))


def calibrate(
    *, target_epsilon: float, dp_delta: float, rounds: int, sampling_rate: float,
    adjacency: Adjacency = "add_remove", log_ratio: float = 0.0, total_variation: float = 0.0,
) -> float:
    """The smallest noise multiplier whose rounds cost at most `target_epsilon`.

    Guarantees:
        ``compose`` of the rounds with the result is at most ``target_epsilon * (1 - 1e-5)``: the
        answer always lies on the safe side, with room for the last digits of a float sum.

    Args:
        target_epsilon: epsilon that the whole run may cost.
        dp_delta: the delta of the guarantee, in [1e-12, 1).
        rounds: number of equal rounds.
        sampling_rate: probability with which each unit takes part in a round, in (0, 1].
        adjacency: ``"add_remove"`` or ``"replace_one"``.
        log_ratio: as in :class:`Spend`, per round.
        total_variation: as in :class:`Spend`, per round.

    Returns:
        The noise multiplier; no multiplier smaller by a part in a thousand would do.

    Raises:
        SpecError: a value out of range, or a target that no noise reaches (the slack alone costs
            more) or that next to no noise reaches.

    Example:
        >>> round(calibrate(target_epsilon=3.0, dp_delta=1e-3, rounds=30, sampling_rate=0.1), 3)
        0.927
    """
    where = "calibrate"
    _check_dp_delta(where, dp_delta)
    _need(_is_positive(target_epsilon), where, "target_epsilon > 0",
          f"target_epsilon={target_epsilon!r}", "Give the epsilon that the whole run may cost.")
    goal = math.log(target_epsilon) - 5e-5  # hits within 4e-5 of it: always below the target

    def excess(log_multiplier: float) -> float:
        spend = Spend(math.exp(log_multiplier), sampling_rate, "unit", rounds, adjacency,
                      log_ratio, total_variation)
        return math.log(max(compose([spend], dp_delta), 1e-300)) - goal

    smallest, largest = (math.log(value) for value in _MULTIPLIER_RANGE)
    low = high = 0.0
    f_low = f_high = excess(0.0)
    while f_high > 0:
        low, f_low = high, f_high
        _need(high < largest, where, "a target that some noise reaches",
              f"target_epsilon={target_epsilon:g} with slack {2 * rounds * log_ratio:.3g} in "
              f"epsilon and total variation {rounds * total_variation:.3g} against "
              f"dp_delta={dp_delta:g}",
              "Raise target_epsilon or dp_delta, run fewer rounds, or use a finer sampler.")
        high += math.log(2.0)
        f_high = excess(high)
    while f_low <= 0:
        high, f_high = low, f_low
        _need(low > smallest, where, f"a target that needs a multiplier above {math.exp(smallest)}",
              f"target_epsilon={target_epsilon:g}",
              "So large an epsilon protects nobody: lower target_epsilon.")
        low -= math.log(2.0)
        f_low = excess(low)
    # Regula falsi (Illinois) between f_low > 0 >= f_high, with bisection where it stalls.
    weight_low, weight_high = f_low, f_high
    for step in range(100):
        if f_high >= -4e-5 or high - low < 1e-6:
            break
        usable = math.isfinite(weight_low) and weight_high > -50 and step % 4 != 3
        middle = ((low * weight_high - high * weight_low) / (weight_high - weight_low)
                  if usable else 0.5 * (low + high))
        value = excess(middle)
        if 0 < value < 4e-5:
            return math.exp(middle)  # above the inner goal, below the target
        if value > 0:
            low, weight_low, weight_high = middle, value, weight_high / 2
        else:
            high, f_high, weight_high, weight_low = middle, value, value, weight_low / 2
    return math.exp(high)


# Our mechanism: integers, plus a sum of discrete Gaussian shares.


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
            _need(_is_count(value), where, f"{name} >= 1, an integer",
                  f"{name}={value!r}", "Count only what is sure to be in the sum."
                  if name == "num_shares" else "Give the number of coordinates.")
        for name in ("share_stddev", "unit_l2"):
            value = getattr(self, name)
            _need(_is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
                  "Give it in integer units.")
        _need(0 <= self.total_variation < 1, where, "total_variation in [0, 1)",
              f"total_variation={self.total_variation!r}", "Use 0 for an exact sampler.")
        _need(self.share_stddev >= _SMALLEST_SHARE_STDDEV, where,
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
        _need(variance > 0, "DiscreteGaussianSum",
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
        _need(_is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
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
