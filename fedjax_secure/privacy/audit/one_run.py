"""Lower bounds on epsilon from one training run with many canaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from fedjax_secure.core.errors import SpecError

from .guesses import Counts, Tally, counts_ladder, guess, tally

_LARGEST_EPSILON = 200.0


class OneRunBound(NamedTuple):
    """The best of the bounds that were planned, at the stated confidence.

    Attributes:
        epsilon: the lower bound.
        tally: the guesses that it rests on.
        tried: how many numbers of guesses were planned; each was given an equal part of the
            probability of an error.
    """

    epsilon: float
    tally: Tally
    tried: int


def one_run_p_value(score: Tally, *, epsilon: float, dp_delta: float) -> float:
    """How likely so many correct guesses are, at most, if the claim is true.

    Args:
        score: canaries m, guesses r, and correct guesses v.
        epsilon: of the claim that is tested.
        dp_delta: of that claim.

    Returns:
        An upper bound on the probability that some attack makes at least ``correct`` right guesses
        out of ``guesses`` against any (epsilon, dp_delta)-differentially private algorithm, where
        each canary is in by a fair coin of its own. With f(v) = P[Binomial(r, e^epsilon /
        (1 + e^epsilon)) >= v] it is ``f(v) + 2 m dp_delta max_i (f(v - i) - f(v)) / i``.

    Raises:
        SpecError: numbers that make no sense.

    Example:
        >>> round(one_run_p_value(Tally(1000, 100, 90), epsilon=1.0, dp_delta=1e-5), 5)
        0.00084

    Source:
        Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run",
        arXiv 2305.08846, Theorem 5.2 (adding or removing one unit; Algorithm 1).
    """
    _check(score, dp_delta)
    canaries, guesses, correct = score
    if correct == 0:
        return 1.0
    chance = special.expit(epsilon)
    at_least = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, chance)  # f(v), ..., f(0)
    steps = np.arange(1, correct + 1)
    slope = float(np.max((at_least[1:] - at_least[0]) / steps))
    return float(min(at_least[0] + 2.0 * canaries * dp_delta * slope, 1.0))


def one_run_epsilon(score: Tally, *, dp_delta: float, confidence: float = 0.95) -> float:
    """The lower bound on epsilon from one number of guesses that was fixed beforehand.

    Guarantees:
        For an (epsilon, dp_delta)-differentially private algorithm (one unit added or removed) the
        result is above epsilon with probability at most ``1 - confidence``, whatever the attack.

    Args:
        score: canaries, guesses, and correct guesses.
        dp_delta: of the claim. With ``canaries * dp_delta`` near or above 1 little can be shown.
        confidence: of the bound.

    Returns:
        The largest epsilon that is refused, 0 where none is.

    Raises:
        SpecError: numbers that make no sense.

    Example:
        >>> round(one_run_epsilon(Tally(1000, 100, 100), dp_delta=0.0), 3)  # all right, no delta
        3.493
        >>> one_run_epsilon(Tally(1000, 100, 55), dp_delta=1e-5)
        0.0

    Source:
        Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, Theorem 5.2, inverted.
    """
    check_confidence(confidence)
    _check(score, dp_delta)
    return largest_refused(
        lambda epsilon: one_run_p_value(score, epsilon=epsilon, dp_delta=dp_delta),
        1.0 - confidence)


def one_run_bound(
    scores: np.ndarray, included: np.ndarray, *, dp_delta: float, confidence: float = 0.95,
    counts: Sequence[Counts] | None = None,
    epsilon_of: Callable[..., float] = one_run_epsilon,
) -> OneRunBound:
    """The lower bound on epsilon from the scores of one training run.

    Guarantees:
        As :func:`one_run_epsilon`. Which numbers of guesses are tried is fixed before the scores
        are looked at, and each of J gets the confidence ``1 - (1 - confidence) / J`` (Bonferroni),
        so that keeping the best bound is no search for a lucky threshold.

    Args:
        scores: [canaries], as for :func:`fedjax_secure.privacy.audit.guess`.
        included: bool [canaries], how each canary's own fair coin fell.
        dp_delta: of the claim.
        confidence: of the bound.
        counts: the pairs (positive, negative) to try; None takes
            :func:`fedjax_secure.privacy.audit.counts_ladder`. Choose them before you see scores.
        epsilon_of: the bound for one number of guesses.

    Returns:
        An :class:`OneRunBound`.

    Raises:
        SpecError: no counts, or scores and coins that do not fit together.

    Example:
        >>> scores = np.arange(1000.0)
        >>> bound = one_run_bound(scores, scores >= 500, dp_delta=1e-5)
        >>> round(bound.epsilon, 2), bound.tally, bound.tried
        (5.19, Tally(canaries=1000, guesses=1000, correct=1000), 8)
    """
    check_confidence(confidence)
    counts = counts_ladder(len(np.asarray(scores))) if counts is None else tuple(counts)
    if not counts:
        raise SpecError("one_run_bound", need="one pair of counts at least", found="none",
                        fix="Leave counts out, or give [(50, 50)].")
    each = 1.0 - (1.0 - confidence) / len(counts)
    found = []
    for positive, negative in counts:
        score = tally(included, guess(scores, positive=positive, negative=negative))
        found.append((epsilon_of(score, dp_delta=dp_delta, confidence=each), score))
    best = max(found, key=lambda pair: pair[0])
    return OneRunBound(best[0], best[1], len(counts))


def largest_refused(p_value: Callable[[float], float], level: float) -> float:
    """The first epsilon whose p-value is above a level, to 1e-7 from below; 0 where 0's is.

    The p-values rise with epsilon as long as they are below one half (tests search for a
    counterexample), so that all smaller epsilons are refused too.
    """
    if p_value(0.0) > level:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(high) <= level:
        low, high = high, 2.0 * high
        if high > _LARGEST_EPSILON:
            return low
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if p_value(middle) <= level else (low, middle)
    return low


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside [0.5, 1).

    Raises:
        SpecError: such a number.
    """
    if not 0.5 <= confidence < 1.0:
        raise SpecError("an audit", need="a confidence from 0.5 to below 1", found=repr(confidence),
                        fix="Use confidence=0.95.")


def _check(score: Tally, dp_delta: float) -> None:
    if not 0 <= score.correct <= score.guesses <= score.canaries or not 0.0 <= dp_delta < 1.0:
        raise SpecError("an audit", need="correct <= guesses <= canaries, and dp_delta in [0, 1)",
                        found=f"{tuple(score)} and dp_delta={dp_delta!r}",
                        fix="Count the guesses with tally(...).")
