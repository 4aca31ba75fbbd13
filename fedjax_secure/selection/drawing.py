"""From the numbers of chosen clients to a cohort, without a loop over the population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import Cohort, Source, SpecError
from ..core.randomness import host_shuffles, host_words
from .selection import ByGroup, Candidates

#: The examples of every client that takes no part: one array, that nobody can write to.
NO_ROWS = np.zeros(0, np.int32)
NO_ROWS.flags.writeable = False


def cohort_of(
    source: Source, round: int, candidates: Candidates, chosen: np.ndarray, **fields: Any
) -> Cohort:
    """The cohort in which the chosen clients use all of their examples, in a fresh order.

    Args:
        source: where the orders come from.
        round: the round, from 1.
        candidates: the population.
        chosen: int, ascending: numbers of the clients that take part.
        fields: further fields of `Cohort`.

    Example:
        >>> from fedjax_secure.core import source
        >>> two = Candidates(("a", "b"), np.array([0, 2, 5]))
        >>> cohort = cohort_of(source(0), 1, two, np.array([1]))
        >>> [sorted(rows.tolist()) for rows in cohort.indices], cohort.alive.tolist()
        ([[], [2, 3, 4]], [False, True])
    """
    offsets = np.asarray(candidates.offsets, np.int64)
    firsts, counts = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    places = host_shuffles(source.key("order", round=round), counts)[0]
    rows = (np.repeat(firsts, counts) + places).astype(np.int32)
    indices, begin = [NO_ROWS] * len(candidates.clients), 0
    for client, end in zip(chosen.tolist(), np.cumsum(counts).tolist(), strict=True):
        indices[client] = rows[begin:end]
        begin = end
    alive = np.zeros(len(indices), bool)
    alive[chosen] = True
    return Cohort(round, tuple(candidates.clients), tuple(indices), alive, **fields)


def coins(source: Source, round: int, num_coins: int, purpose: str = "sampling") -> np.ndarray:
    """uint64 [num_coins], uniform: one fresh key a round, expanded by ChaCha20."""
    return host_words(source.key(purpose, round=round), 2 * num_coins).view("<u8")


def uniforms(words: np.ndarray) -> np.ndarray:
    """float64 in (0, 1) from 64-bit words: the middles of 2^52 equal intervals."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def below(probability: float | np.ndarray) -> np.ndarray:
    """The largest 64-bit words whose coins land heads, with at most this probability.

    A coin is heads where its word is at most this number. Probability 1 is exact; others are
    multiples of 2^-64 and never above what is asked. Probabilities below 2^-64 are refused by
    those who call this.
    """
    scaled = np.minimum(np.asarray(probability, np.float64), np.nextafter(1.0, 0.0)) * 2.0**64
    words = scaled.astype(np.uint64) - np.uint64(1)
    return np.where(np.asarray(probability) >= 1.0, np.uint64(2**64 - 1), words)


def smallest(keys: np.ndarray, count: int) -> np.ndarray:
    """int64, ascending: places of the ``count`` smallest keys."""
    if count >= len(keys):
        return np.arange(len(keys))
    return np.sort(np.argpartition(keys, count - 1)[:count]) if count else np.arange(0)


def by_group(name: str, groups: Any, rates: Sequence[float], mean_rate: float) -> ByGroup:
    """Groups of units and their rates, checked.

    Raises:
        SpecError: rates outside [0, 1], or so small that no coin has them; groups that have no
            rate; a mean outside the rates.
    """
    listed = np.asarray(rates) if isinstance(rates, Sequence | np.ndarray) else np.zeros(())
    if listed.ndim != 1 or not np.issubdtype(listed.dtype, np.number):
        raise SpecError(name, need="rates, a number for each group, in the groups' order",
                        found=f"{rates!r}"[:100], fix="Give a plan's sampling_rates.")
    numbers, biases = np.asarray(groups), tuple(float(rate) for rate in rates)
    if (not biases or max(biases) == 0
            or not all(rate == 0 or 2.0**-50 <= rate <= 1 for rate in biases)):
        raise SpecError(name, need="rates from 2^-50 to 1, or 0 for a group that is never drawn, "
                        "and not all 0", found=repr(rates), fix="Give a plan's sampling_rates.")
    if (numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer)
            or numbers.min() < 0 or numbers.max() >= len(biases)):
        raise SpecError(name, need=f"groups, whole numbers from 0 to {len(biases) - 1}",
                        found=f"{numbers.dtype}{list(numbers.shape)}",
                        fix="Number each unit's group in the order of the rates.")
    real = isinstance(mean_rate, int | float | np.number) and not isinstance(mean_rate, bool)
    if not real or not 0 < mean_rate <= max(biases):
        raise SpecError(name, need="a mean_rate above 0 and up to the largest rate",
                        found=repr(mean_rate), fix="Give a plan's mean_rate.")
    numbers = numbers.astype(np.int64)
    numbers.flags.writeable = False
    return ByGroup(numbers, biases, float(mean_rate))


def last_words(drawn: ByGroup) -> tuple[np.ndarray, np.ndarray]:
    """For each unit, the last word of a coin that is heads, and whether one is heads at all.

    Example:
        >>> last, possible = last_words(by_group("example", [0, 1, 1], (0.0, 1.0), 0.5))
        >>> possible.tolist(), int(last[1]) == 2**64 - 1
        ([False, True, True], True)
    """
    rates = np.array(drawn.rates)
    return below(np.maximum(rates, 2.0**-50))[drawn.groups], (rates > 0)[drawn.groups]


def settings_of(drawn: ByGroup) -> str:
    """What a draw by groups depends on, as text for reports: nothing of anybody's group."""
    return f"rates={drawn.rates!r}, mean_rate={drawn.mean_rate!r}"


def whole(value: Any) -> bool:
    """Whether something is a whole number of 1 or more."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def enough(name: str, asked: int, num_clients: int) -> None:
    """Refuse more clients a round than there are.

    Raises:
        SpecError: more are asked than exist.
    """
    if asked > num_clients:
        raise SpecError(f"selection `{name}`", need=f"at least {asked} clients to choose from",
                        found=f"{num_clients}", fix=f"Ask for {num_clients} or fewer.")
