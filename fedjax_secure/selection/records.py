"""Which records take part in a round, while every client does."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError
from ..core.randomness import host_words
from .drawing import NO_ROWS, cohort_of
from .selection import Candidates, Selection


def poisson_records(rate: float) -> Selection:
    """Each client tosses a secret coin for each of its records, each round.

    Args:
        rate: probability that a record takes part, above 0 and below 1.

    Returns:
        A :class:`Selection` whose draws are never truncated or filled up, so that the
        amplification by Poisson sampling holds as the accountant takes it.

    Guarantees:
        Coins come from a fresh 256-bit key for each client and round. The probability is a
        multiple of 2^-64 and never above ``rate``.

    Raises:
        SpecError: a rate outside (0, 1).

    Example:
        >>> from fedjax_secure.core import source
        >>> cohort = poisson_records(0.5).draw(
        ...     source(0), 1, Candidates(("a", "b"), np.array([0, 6, 10])), ())
        >>> [len(drawn) for drawn in cohort.indices]
        [2, 0]

    Source:
        Zhu, Wang 2019, "Poisson Subsampled Renyi Differential Privacy".
    """
    if not isinstance(rate, int | float) or not 0.0 < rate < 1.0:
        raise SpecError("poisson_records", need="a rate above 0 and below 1", found=repr(rate),
                        fix="Give expected batch / number of records, or use all_records().")
    threshold = np.uint64(int(rate * 2.0**64))

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        clients, offsets = candidates.clients, candidates.offsets
        indices = [NO_ROWS] * len(clients)
        for place in candidates.present.tolist():
            first, last = int(offsets[place]), int(offsets[place + 1])
            key = source.key("sampling", round=round, client=clients[place])
            coins = host_words(key, 2 * (last - first)).view("<u8")
            indices[place] = (first + np.flatnonzero(coins < threshold)).astype(np.int32)
        alive = np.zeros(len(clients), bool)
        alive[candidates.present] = True
        return Cohort(round, tuple(clients), tuple(indices), alive)

    return Selection("poisson_records", Sampling("poisson", float(rate), "record"), draw)


def all_records() -> Selection:
    """Every record of every client takes part in every round, in a fresh order.

    Example:
        >>> from fedjax_secure.core import source
        >>> cohort = all_records().draw(
        ...     source(0), 1, Candidates(("a",), np.array([0, 3])), ())
        >>> sorted(cohort.indices[0].tolist())
        [0, 1, 2]
    """

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        return cohort_of(source, round, candidates, candidates.present)

    return Selection("all_records", Sampling("all", 1.0, "record"), draw)
