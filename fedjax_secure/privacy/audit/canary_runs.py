"""Lower bounds on epsilon from many independent runs with one canary each."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from fedjax_secure.core.errors import SpecError

from .one_run import check_confidence


class Rates(NamedTuple):
    """How often an attack said "in", with and without the canary.

    Attributes:
        true_positives: runs with the canary in which it said so.
        runs_with: runs with the canary.
        false_positives: runs without the canary in which it said so.
        runs_without: runs without the canary.
    """

    true_positives: int
    runs_with: int
    false_positives: int
    runs_without: int


class RunsBound(NamedTuple):
    """A lower bound, the rates that it rests on, and the threshold of the attack."""

    epsilon: float
    rates: Rates
    threshold: float


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """Bounds on a probability, each of which holds with the stated confidence.

    Args:
        successes: how often it happened.
        trials: out of how many independent trials.
        confidence: of each bound by itself.

    Returns:
        (lower, upper): exact one-sided bounds.

    Example:
        >>> low, high = clopper_pearson(0, 100, confidence=0.95)
        >>> low, round(high, 4), round(1 - 0.05 ** (1 / 100), 4)
        (0.0, 0.0295, 0.0295)

    Source:
        Clopper, Pearson 1934, "The Use of Confidence or Fiducial Limits".
    """
    if not 0 <= successes <= trials or trials < 1:
        raise SpecError("clopper_pearson", need="successes out of at least one trial",
                        found=f"{successes} of {trials}", fix="Run the audit with more runs.")
    error = 1.0 - confidence
    low = stats.beta.ppf(error, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.isf(error, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def rate_limits(rates: Rates, confidence: float) -> tuple[float, float]:
    """(least true-positive rate, largest false-positive rate), both at once at a confidence."""
    check_confidence(confidence)
    each = 0.5 + 0.5 * confidence
    least, _ = clopper_pearson(rates.true_positives, rates.runs_with, confidence=each)
    _, most = clopper_pearson(rates.false_positives, rates.runs_without, confidence=each)
    return least, most


def runs_epsilon(rates: Rates, *, dp_delta: float, confidence: float = 0.95) -> float:
    """The lower bound on epsilon from an attack's rates over independent runs.

    For an (epsilon, dp_delta)-private algorithm TPR <= e^epsilon FPR + dp_delta, and the same of
    the rates of the other answer, 1 - FPR <= e^epsilon (1 - TPR) + dp_delta. Both follow from the
    same two Clopper-Pearson bounds, so the larger epsilon is taken without a correction.

    Guarantees:
        The result is above the algorithm's epsilon with probability at most ``1 - confidence``,
        where runs are independent and the attack was fixed before they were seen.

    Args:
        rates: the counts.
        dp_delta: of the claim.
        confidence: of the bound: half of the error for each of the two rates.

    Returns:
        epsilon, 0 where nothing is shown.

    Raises:
        SpecError: counts that make no sense.

    Example:
        >>> round(runs_epsilon(Rates(900, 1000, 100, 1000), dp_delta=1e-5), 2)
        1.99

    Source:
        Jagielski, Ullman, Oprea 2020, "Auditing Differentially Private Machine Learning", section
        on Clopper-Pearson bounds; Nasr et al. 2021, "Adversary Instantiation".
    """
    least, most = rate_limits(rates, confidence)
    found = 0.0
    for hit, miss in ((least, most), (1.0 - most, 1.0 - least)):
        if hit > dp_delta and miss > 0.0:
            found = max(found, math.log((hit - dp_delta) / miss))
    return found


def runs_bound(
    scores_with: np.ndarray, scores_without: np.ndarray, *, dp_delta: float,
    confidence: float = 0.95, threshold: float | None = None,
) -> RunsBound:
    """The lower bound on epsilon from the scores of independent runs.

    Guarantees:
        As :func:`runs_epsilon`. Where no threshold is given, the first half of the runs chooses
        it and the bound is computed on the second half alone, so that nothing has to be corrected.

    Args:
        scores_with: [runs], higher where a run looks more like one with the canary.
        scores_without: [runs], of runs without it.
        dp_delta: of the claim.
        confidence: of the bound.
        threshold: the attack says "in" above it; fixed before the scores were seen.

    Returns:
        A :class:`RunsBound`.

    Raises:
        SpecError: fewer than 4 runs of a kind, or scores that are not numbers.

    Example:
        >>> random = np.random.default_rng(0)
        >>> without, with_it = random.normal(size=(2, 40_000)) + np.array([[0.0], [1.0]])
        >>> bound = runs_bound(with_it, without, dp_delta=1e-2)  # true epsilon: 2.318
        >>> 1.7 < bound.epsilon < 2.32
        True
    """
    with_it, without = (np.asarray(part, np.float64) for part in (scores_with, scores_without))
    for part in (with_it, without):
        if part.ndim != 1 or len(part) < 4 or np.isnan(part).any():
            raise SpecError("runs_bound", need="scores of 4 runs or more of each kind, none NaN",
                            found=f"shape {list(part.shape)}", fix="Run the audit with more runs.")
    if threshold is None:
        halves = len(with_it) // 2, len(without) // 2
        threshold = best_threshold(with_it[:halves[0]], without[:halves[1]], dp_delta=dp_delta,
                                   confidence=confidence)
        with_it, without = with_it[halves[0]:], without[halves[1]:]
    rates = Rates(int(np.sum(with_it > threshold)), len(with_it),
                  int(np.sum(without > threshold)), len(without))
    return RunsBound(runs_epsilon(rates, dp_delta=dp_delta, confidence=confidence), rates,
                     float(threshold))


def best_threshold(scores_with: np.ndarray, scores_without: np.ndarray, *, dp_delta: float,
                   confidence: float) -> float:
    """The threshold with the largest bound on these runs, which no longer count as evidence.

    Args:
        scores_with, scores_without: [runs] each.
        dp_delta, confidence: as the bound will have them.

    Returns:
        One of 128 quantiles of the scores of either kind.
    """
    deep = 0.5 ** np.linspace(1.0, 16.0, 32)
    shares = np.concatenate([deep, 1.0 - deep])
    candidates = np.unique(np.concatenate(
        [np.quantile(scores_with, shares), np.quantile(scores_without, shares)]))
    above = [len(part) - np.searchsorted(np.sort(part), candidates, side="right")
             for part in (scores_with, scores_without)]
    found = [runs_epsilon(Rates(int(hits), len(scores_with), int(misses), len(scores_without)),
                          dp_delta=dp_delta, confidence=confidence)
             for hits, misses in zip(*above, strict=True)]
    return float(candidates[int(np.argmax(found))])
