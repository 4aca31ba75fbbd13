"""Sharper figures for a mechanism whose trade-off curve is a Gaussian's: labelled, not general."""

from __future__ import annotations

import math

from scipy import special, stats

from fedjax_secure.core.errors import SpecError

from .canary_runs import Rates, rate_limits
from .guesses import Tally
from .one_run import check_confidence, largest_refused


def gaussian_epsilon(separation: float, dp_delta: float) -> float:
    """Epsilon of a Gaussian mechanism by how far apart its two outputs are.

    Args:
        separation: mu, the distance of the two means in standard deviations: one over the noise
            multiplier for one round, times sqrt(rounds) for many.
        dp_delta: the delta, in (0, 1).

    Returns:
        The smallest epsilon with ``Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)`` at
        most ``dp_delta``; 0 where 0 is enough.

    Raises:
        SpecError: a separation below 0 or a dp_delta outside (0, 1).

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377

    Source:
        Balle, Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", Theorem 8;
        Dong, Roth, Su 2022, "Gaussian Differential Privacy", Corollary 1.
    """
    if not separation >= 0.0 or not 0.0 < dp_delta < 1.0:
        raise SpecError("gaussian_epsilon", need="a separation of 0 or more and dp_delta in (0, 1)",
                        found=f"{separation!r} and {dp_delta!r}",
                        fix="Give one over the noise multiplier, and 1e-5 for example.")
    if _delta(0.0, separation) <= dp_delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(high, separation) > dp_delta:
        low, high = high, 2.0 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _delta(middle, separation) > dp_delta else (low, middle)
    return high


def gaussian_separation(epsilon: float, dp_delta: float) -> float:
    """The separation at which a Gaussian mechanism has this epsilon: the inverse of the above.

    Example:
        >>> round(gaussian_separation(gaussian_epsilon(1.0, 1e-5), 1e-5), 6)
        1.0
    """
    low, high = 0.0, 1.0
    while _delta(epsilon, high) < dp_delta:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _delta(epsilon, middle) < dp_delta else (low, middle)
    return low


def _delta(epsilon: float, separation: float) -> float:
    """The delta of a Gaussian mechanism at an epsilon."""
    if separation == 0.0:
        return 0.0
    half, ratio = 0.5 * separation, epsilon / separation
    return float(special.ndtr(half - ratio)
                 - math.exp(min(epsilon + special.log_ndtr(-half - ratio), 700.0)))


def runs_gaussian_epsilon(rates: Rates, *, dp_delta: float, confidence: float = 0.95) -> float:
    """Epsilon from an attack's rates, if the trade-off curve is a Gaussian's.

    One threshold's rates fix a Gaussian curve, and with it epsilon at every dp_delta: far sharper
    than what the rates show by themselves, and void if the curve is another.

    Assumes:
        The mechanism's trade-off curve is mu-GDP for some mu: that is what the accountant claims of
        Gaussian noise without sampling. Where the claim is such a curve and the result is above its
        epsilon, the claim is refuted at this confidence, whatever the true curve.

    Args:
        rates: the counts, for a threshold fixed before.
        dp_delta: of the claim.
        confidence: of the bound on mu.

    Returns:
        epsilon, 0 where nothing is shown.

    Example:
        >>> round(runs_gaussian_epsilon(Rates(900, 1000, 100, 1000), dp_delta=1e-5), 2)
        12.2

    Source:
        Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning", section on
        Gaussian differential privacy.
    """
    least, most = rate_limits(rates, confidence)
    if least <= 0.0 or most >= 1.0:
        return 0.0
    separation = float(stats.norm.ppf(least) - stats.norm.ppf(most))
    return gaussian_epsilon(separation, dp_delta) if separation > 0.0 else 0.0


def one_run_gaussian_epsilon(score: Tally, *, dp_delta: float, confidence: float = 0.95) -> float:
    """Epsilon from the guesses of one training run, if the trade-off curve is a Gaussian's.

    Assumes:
        As :func:`runs_gaussian_epsilon`.

    Args:
        score: canaries, guesses, and correct guesses, their number fixed before.
        dp_delta: of the claim.
        confidence: of the bound.

    Returns:
        The largest epsilon whose Gaussian curve is refused, 0 where none is.

    Example:
        >>> round(one_run_gaussian_epsilon(Tally(1000, 100, 90), dp_delta=1e-5), 2)
        2.46

    Source:
        Mahloujifar, Melis, Chaudhuri 2024, "Auditing f-Differential Privacy in One Run",
        arXiv 2410.22235: the recursion that decides whether an f-DP mechanism lets ``correct`` of
        ``guesses`` be right with more than a given probability, for membership (two candidates).
    """
    check_confidence(confidence)
    if score.correct == 0:
        return 0.0

    def p_value(epsilon: float) -> float:
        separation = gaussian_separation(epsilon, dp_delta)
        return 0.0 if _refused(score, separation, 1.0 - confidence) else 1.0

    return largest_refused(p_value, 0.5)


def _refused(score: Tally, separation: float, level: float) -> bool:
    """Whether a Gaussian curve makes the tally less likely than a level.

    The recursion runs from the event "all right" down: r bounds the mass of the guesses that are
    right and h that of those that are wrong, per canary. One step lets h grow to what the
    trade-off curve demands of r, and r with it.
    """
    canaries, guesses, correct = score
    right = level * correct / canaries
    wrong = level * (guesses - correct) / canaries
    for place in range(correct - 1, -1, -1):
        demanded = float(special.ndtr(special.ndtri(min(right, 1.0)) - separation))
        if demanded <= wrong:
            break  # neither changes any more
        right = min(right + place / (guesses - place) * (demanded - wrong), 1.0)
        wrong = demanded
    return right + wrong > guesses / canaries
