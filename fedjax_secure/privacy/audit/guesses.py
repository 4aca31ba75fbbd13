"""From scores to guesses: who was in the training data, who was not, and who is passed over."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import numpy as np

from fedjax_secure.core.errors import SpecError

#: A pair (positive, negative): how many canaries are guessed to be in, and how many to be out.
Counts = tuple[int, int]


class Tally(NamedTuple):
    """How a set of guesses fared.

    Attributes:
        canaries: how many canaries there were, guessed or not.
        guesses: how many were guessed.
        correct: how many of those guesses were right.
    """

    canaries: int
    guesses: int
    correct: int


def guess(scores: np.ndarray, *, positive: int, negative: int = 0) -> np.ndarray:
    """Guess that the highest scores were in and the lowest were out, and abstain on the rest.

    Args:
        scores: [canaries], higher where a canary looks more like one that was in. Equal scores are
            told apart by their place, which says nothing about the coins.
        positive: how many are guessed to be in (k+). Fix it before you see the scores.
        negative: how many are guessed to be out (k-).

    Returns:
        int8 [canaries]: 1 for in, -1 for out, 0 for no guess.

    Raises:
        SpecError: more guesses than canaries, or scores that are not numbers.

    Example:
        >>> guess(np.array([0.1, 2.0, -1.0, 0.3]), positive=1, negative=1).tolist()
        [0, 1, -1, 0]

    Source:
        Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", Algorithm 1.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise SpecError("guess", need="one score a canary, none of them NaN",
                        found=f"shape {list(scores.shape)}, {int(np.isnan(scores).sum())} NaN",
                        fix="Score every canary, also those that were left out.")
    _check_counts((positive, negative), len(scores))
    order = np.argsort(scores, kind="stable")
    guessed = np.zeros(len(scores), np.int8)
    guessed[order[len(scores) - positive:]] = 1
    guessed[order[:negative]] = -1
    return guessed


def tally(included: np.ndarray, guessed: np.ndarray) -> Tally:
    """Count the guesses, and those that are right.

    Args:
        included: bool [canaries], how each coin fell.
        guessed: int8 [canaries], as :func:`guess` gives them.

    Example:
        >>> tally(np.array([True, False, False]), np.array([1, 1, 0]))
        Tally(canaries=3, guesses=2, correct=1)
    """
    included, guessed = np.asarray(included, bool), np.asarray(guessed)
    if included.shape != guessed.shape or included.ndim != 1:
        raise SpecError("tally", need="a coin and a guess for each canary",
                        found=f"shapes {list(included.shape)} and {list(guessed.shape)}",
                        fix="Give one array entry for each canary to both.")
    right = np.where(included, guessed == 1, guessed == -1)
    return Tally(len(included), int(np.count_nonzero(guessed)), int(np.count_nonzero(right)))


def counts_ladder(canaries: int, *, two_sided: bool = True) -> tuple[Counts, ...]:
    """Numbers of guesses to try, from nearly everyone to a few: a choice made before any score.

    A few very sure guesses show a large epsilon best, many unsure ones a small epsilon. Trying
    several and keeping the best bound is honest only with a correction for their number, which
    :func:`fedjax_secure.privacy.audit.one_run_bound` makes.

    Args:
        canaries: how many there are.
        two_sided: guess as many to be out as in. Where a round draws each unit with a small
            probability, a low score says little, and guesses of one side are better.

    Returns:
        At most 8 pairs (positive, negative), each with about half the guesses of the one before.

    Example:
        >>> counts_ladder(100)
        ((50, 50), (25, 25), (12, 12), (6, 6), (3, 3))
    """
    _check_counts((0, 0), canaries)
    most = canaries // 2
    sizes = [most >> shift for shift in range(8) if most >> shift >= 3] or [most]
    return tuple((size, size if two_sided else 0) for size in sizes)


def _check_counts(counts: Counts, canaries: int) -> None:
    whole = all(isinstance(count, Integral) and not isinstance(count, bool) and count >= 0
                for count in (*counts, canaries))
    if not whole or canaries < 1 or sum(counts) > canaries:
        raise SpecError("guesses", need="whole numbers of guesses, together at most the canaries",
                        found=f"positive={counts[0]!r}, negative={counts[1]!r} of {canaries!r}",
                        fix="Ask for fewer guesses, or use more canaries.")
