"""Which records take part in a round, while every client does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError
from ..core.randomness import host_words
from .drawing import NO_ROWS, below, by_group, cohort_of, last_words, settings_of
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
    if not isinstance(rate, int | float) or not 2.0**-50 <= rate < 1.0:
        raise SpecError("poisson_records", need="a rate above 0 and below 1", found=repr(rate),
                        fix="Give expected batch / number of records, or use all_records().")
    last = below(float(rate))
    return Selection("poisson_records", Sampling("poisson", float(rate), "record"),
                     _tossed(lambda rows: (last, True)))


def poisson_records_by_group(
    groups: Sequence[int] | np.ndarray, rates: Sequence[float], *, mean_rate: float,
) -> Selection:
    """Each client tosses a secret coin for each of its records, of the record's group's own bias.

    For people who want more privacy than others: drawn more seldom, they end at a smaller epsilon.
    `fedjax_secure.privacy.individual.sample` finds the rates; its budget charges each group.

    Args:
        groups: ``[records]``, the number of each record's group, in the dataset's order. It must
            be a function of that record alone.
        rates: each group's probability of taking part, from 0 to 1; 0 never draws it.
        mean_rate: the rate in the mean over all records, by public shares of the groups: what the
            sum's public denominator is made of.

    Returns:
        A :class:`Selection`. Where it is accounted without groups, everyone is taken to be drawn
        at the largest rate.

    Guarantees:
        As `poisson_records`, for each record with its own rate. Coins are independent.

    Raises:
        SpecError: rates outside [0, 1], groups that have no rate, or a mean outside the rates.

    Example:
        >>> from fedjax_secure.core import source
        >>> selection = poisson_records_by_group([0, 0, 1, 1, 1, 1], (0.0, 0.9), mean_rate=0.6)
        >>> cohort = selection.draw(
        ...     source(0), 1, Candidates(("a", "b"), np.array([0, 3, 6])), ())
        >>> [drawn.tolist() for drawn in cohort.indices]
        [[2], [3, 4, 5]]

    Source:
        Boenisch, Muehl, Dziedzic, Rinberg, Papernot 2023, arXiv 2303.17046, the method Sample.
    """
    drawn = by_group("poisson_records_by_group", groups, rates, mean_rate)
    last, possible = last_words(drawn)

    def among(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        if len(last) < rows.stop:
            raise SpecError("poisson_records_by_group", need="a group for every record",
                            found=f"{len(last)} groups and a record {rows.stop - 1}",
                            fix="Assign groups to the training records of this dataset.")
        return last[rows], possible[rows]

    return Selection(
        "poisson_records_by_group", Sampling("poisson", max(drawn.rates), "record"),
        _tossed(among), settings=settings_of(drawn), by_group=drawn)


def _tossed(heads_of: Callable[[slice], Any]) -> Callable[..., Cohort]:
    """A draw by a coin for each record.

    Args:
        heads_of: for rows, the last word that is heads, and whether one is at all.
    """

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        clients, offsets = candidates.clients, candidates.offsets
        indices = [NO_ROWS] * len(clients)
        for place in candidates.present.tolist():
            first, last = int(offsets[place]), int(offsets[place + 1])
            key = source.key("sampling", round=round, client=clients[place])
            coins = host_words(key, 2 * (last - first)).view("<u8")
            most, possible = heads_of(slice(first, last))
            heads = (coins <= most) & possible
            indices[place] = (first + np.flatnonzero(heads)).astype(np.int32)
        alive = np.zeros(len(clients), bool)
        alive[candidates.present] = True
        return Cohort(round, tuple(clients), tuple(indices), alive)

    return draw


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
