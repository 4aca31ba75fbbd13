"""Which clients take part in a round, by chance alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError
from ..core.randomness import host_words
from .drawing import (
    below,
    by_group,
    cohort_of,
    coins,
    enough,
    last_words,
    settings_of,
    smallest,
    whole,
)
from .selection import Candidates, Selection


def uniform_clients(clients: int) -> Selection:
    """A fixed number of clients each round, drawn without replacement; the usual choice.

    Each chosen client uses all of its examples, in a fresh order.

    Args:
        clients: how many take part in a round. If fewer are available, all of those do.

    Returns:
        A :class:`Selection`.

    Guarantees:
        Every set of that many clients is equally likely (up to 2^-64). Privacy is not amplified:
        a draw of fixed size is no Poisson draw, and :class:`fedjax_secure.core.Sampling` says why
        it counts as if everyone took part.

    Raises:
        SpecError: not a whole number of 1 or more; when a federation is made, more clients than it
            has.

    Example:
        >>> from fedjax_secure.core import source
        >>> population = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
        >>> cohort = uniform_clients(2).draw(source(0), 1, population, ())
        >>> cohort.taking_part.tolist(), cohort.counts.tolist()
        ([1, 3], [0, 10, 0, 10, 0, 0])

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", algorithm 1 (the random set S_t of m clients).
    """
    if not whole(clients):
        raise SpecError("uniform_clients", need="a whole number of clients, 1 or more",
                        found=repr(clients), fix="Give for example uniform_clients(50).")

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        enough("uniform_clients", clients, len(candidates.clients))
        present = candidates.present
        chosen = smallest(coins(source, round, len(candidates.clients))[present], clients)
        return cohort_of(source, round, candidates, present[chosen])

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        enough("uniform_clients", clients, num_clients)
        return float(clients if available is None else min(clients, int(np.sum(available))))

    return Selection(
        "uniform_clients", Sampling("public", 1.0, "client"), draw, expected_clients=expected,
        most_clients=lambda n: int(expected(n)), settings=f"clients={int(clients)}")


def poisson_clients(rate: float, *, everyone_answers: bool = False) -> Selection:
    """Each client takes part with the same probability, each by a coin of its own.

    The selection to use with noise for clients: it amplifies privacy, and a draw is never cut off
    or filled up.

    Args:
        rate: the probability that a client takes part in a round, above 0 and up to 1.
        everyone_answers: clients that are not drawn answer too, with zero and their noise share.
            Needed where clients add the noise: else its size would tell how many were drawn, and a
            round would lack shares. Each client then tosses its coin with a key of its own, and
            who reads only the opened sum does not learn who was drawn.

    Returns:
        A :class:`Selection`. Rounds may have any number of drawn clients, none among them. Weights
        by examples are relative to the mean over the population, so they depend on nobody else.

    Guarantees:
        Coins are independent. The probability is a multiple of 2^-64 and never above ``rate``.

    Assumes:
        Whoever profits from the amplification does not learn who was drawn. Unless everyone
        answers, messages and records tell it, so a federation counts every round as if everyone
        took part.

    Raises:
        SpecError: a rate outside (0, 1].

    Example:
        >>> from fedjax_secure.core import source
        >>> population = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
        >>> selection = poisson_clients(0.5)
        >>> selection.draw(source(0), 1, population, ()).taking_part.tolist()
        [1, 3, 4]
        >>> selection.expected_clients(6), selection.most_clients(6)
        (3.0, 6)
        >>> everyone = poisson_clients(0.5, everyone_answers=True)
        >>> cohort = everyone.draw(source(0), 1, population, ())
        >>> len(cohort.taking_part), cohort.counts.tolist()
        (6, [10, 0, 10, 10, 0, 10])

    Source:
        McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models",
        algorithm 1; Zhu, Wang 2019, "Poisson Subsampled Renyi Differential Privacy".
    """
    real = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not real or not 2.0**-50 <= rate <= 1.0:
        raise SpecError("poisson_clients", need="a rate above 0 and up to 1", found=repr(rate),
                        fix="Give expected clients a round / number of clients.")
    _need_flag("poisson_clients", everyone_answers)
    threshold = below(float(rate))

    def threshold_of(present: np.ndarray, num_clients: int) -> np.ndarray:
        return np.full(len(present), threshold)

    return Selection(
        "poisson_clients", Sampling("poisson", float(rate), "client"),
        _tossed(threshold_of, everyone_answers),
        expected_clients=lambda n, available=None: float(rate) * (
            n if available is None else int(np.sum(available))),
        settings=f"rate={float(rate)!r}, {everyone_answers=}", hides_drawn=bool(everyone_answers))


def poisson_clients_by_group(
    groups: Sequence[int] | np.ndarray, rates: Sequence[float], *, mean_rate: float,
    everyone_answers: bool = False,
) -> Selection:
    """Each client takes part by a coin of its own, of its own group's bias.

    For clients that want more privacy than others, as phones of people who asked for it, or
    hospitals of rare diseases: drawn more seldom, they end at a smaller epsilon.
    `fedjax_secure.privacy.individual.sample` finds the rates; its budget charges each group.

    Args:
        groups: ``[clients]``, the number of each client's group, in the dataset's order. It must
            be a function of that client alone.
        rates: each group's probability of taking part, from 0 to 1; 0 never draws it.
        mean_rate: the rate in the mean over all clients, by public shares of the groups: what the
            sum's public denominator is made of.
        everyone_answers: as for `poisson_clients`. Without it messages tell who was drawn, so a
            federation counts every round as if everyone took part: groups are then drawn at
            different rates, but gain nothing by it, and a budget for individuals refuses it.

    Returns:
        A :class:`Selection`. Where it is accounted without groups, everyone is taken to be drawn
        at the largest rate. Updates are **not** weighed by one over the rate: as in the paper, the
        mean leans to the groups that are drawn more often. (Clipping, which comes after weights,
        would undo them.)

    Guarantees:
        As `poisson_clients`, for each client with its own rate. Coins are independent.

    Assumes:
        As `poisson_clients`.

    Raises:
        SpecError: rates outside [0, 1], groups that have no rate, or a mean outside the rates; when
            a federation is made, other than one group for each client.

    Example:
        >>> from fedjax_secure.core import source
        >>> selection = poisson_clients_by_group([0, 0, 1, 1, 1, 1], (0.0, 0.9), mean_rate=0.6,
        ...                                      everyone_answers=True)
        >>> population = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
        >>> cohort = selection.draw(source(0), 1, population, ())
        >>> len(cohort.taking_part), cohort.counts.tolist()
        (6, [0, 0, 10, 10, 0, 10])
        >>> round(selection.expected_clients(6), 1)
        3.6

    Source:
        Boenisch, Muehl, Dziedzic, Rinberg, Papernot 2023, arXiv 2303.17046, the method Sample, with
        clients in the place of records.
    """
    name = "poisson_clients_by_group"
    _need_flag(name, everyone_answers)
    drawn = by_group(name, groups, rates, mean_rate)
    thresholds, possible = last_words(drawn)

    def fits(num_clients: int) -> None:
        if num_clients != len(thresholds):
            raise SpecError(f"selection `{name}`", need=f"a group for each of {num_clients} "
                            "clients", found=f"{len(thresholds)}",
                            fix="Number each client's group, in the dataset's order.")

    def threshold_of(present: np.ndarray, num_clients: int) -> np.ndarray:
        fits(num_clients)
        return thresholds[present]

    tossed = _tossed(threshold_of, everyone_answers, possible)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        fits(num_clients)
        return drawn.mean_rate * (num_clients if available is None else int(np.sum(available)))

    return Selection(
        name, Sampling("poisson", max(drawn.rates), "client"), tossed, expected_clients=expected,
        settings=f"{settings_of(drawn)}, {everyone_answers=}", hides_drawn=bool(everyone_answers),
        by_group=drawn)


def _need_flag(name: str, everyone_answers: object) -> None:
    if not isinstance(everyone_answers, bool):
        raise SpecError(name, need="everyone_answers=True or False", found=repr(everyone_answers),
                        fix="Leave it out where the accountant takes everyone to take part.")


def _tossed(
    threshold_of: Callable[[np.ndarray, int], np.ndarray], everyone_answers: bool,
    possible: np.ndarray | None = None,
) -> Callable[..., Cohort]:
    """A draw by a coin for each client, heads up to its own threshold.

    Args:
        threshold_of: ``(clients that are present, number of clients) -> uint64 [present]``.
        everyone_answers: whether those who are not drawn answer too.
        possible: bool [clients], False for who is not drawn whatever the coin; None for nobody.
    """

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        present, clients = candidates.present, candidates.clients
        thresholds = threshold_of(present, len(clients))
        if everyone_answers:
            keys = (source.key("sampling", round=round, client=clients[c]) for c in present)
            words = np.array([host_words(key, 2).view("<u8")[0] for key in keys], np.uint64)
        else:
            words = coins(source, round, len(clients))[present]
        heads = words <= thresholds
        if possible is not None:
            heads &= possible[present]
        cohort = cohort_of(
            source, round, candidates, present[heads],
            scale=np.ones(len(clients), np.float32), mean_count=float(np.mean(candidates.counts)))
        if not everyone_answers:
            return cohort
        alive = np.zeros(len(clients), bool)
        alive[present] = True
        return cohort._replace(alive=alive)

    return draw


def importance_clients(clients: float, *, by: Sequence[float] | np.ndarray) -> Selection:
    """Clients with larger public numbers take part more often, and count less when they do.

    With numbers of examples, large clients come often and small ones seldom, as in a draw of
    examples, which lowers the variance of the mean over examples. The mean stays unbiased.

    Args:
        clients: the expected number of clients in a round.
        by: [clients], public numbers above 0, for example ``data.counts`` or the
            norms of past updates. A client's probability is in proportion to its number, cut at 1
            with the rest shared among the others.

    Returns:
        A :class:`Selection` by independent coins. Its cohorts have ``scale``, the inverse
        probabilities, and ``mean_count``, with which `fedjax_secure.algorithms.example_weights`
        makes the expected sum that of everyone taking part.

    Guarantees:
        For any vectors v_i, the sum over the drawn of ``scale_i v_i``, over ``clients``, has the
        mean of all v_i as its expectation. The accountant takes the largest probability: each
        client is drawn by a coin of its own with no more than that, so Poisson sampling with that
        rate loses at least as much privacy to whoever does not learn who was drawn. A federation's
        messages and records tell it: there every round counts as if everyone took part.

    Assumes:
        The numbers are public and no client's data changes them: a client that is removed keeps
        its number.

    Raises:
        SpecError: numbers that are not positive and finite, or not as many as there are clients; an
            expected number that is not positive or above the number of clients.

    Example:
        >>> from fedjax_secure.core import source
        >>> population = Candidates(("a", "b", "c"), np.array([0, 10, 20, 80]))
        >>> selection = importance_clients(1.6, by=population.counts)
        >>> selection.sampling.rate
        1.0
        >>> selection.draw(source(0), 1, population, ()).scale.tolist()
        [1.7777777910232544, 1.7777777910232544, 0.5333333611488342]

    Source:
        Horvitz, Thompson 1952, "A Generalization of Sampling Without Replacement From a Finite
        Universe"; Chen, Horvath, Richtarik 2022, "Optimal Client Sampling for Federated Learning",
        for independent sampling of clients with unequal probabilities.
    """
    numbers = np.asarray(by, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise SpecError("importance_clients", need="a positive finite number for each client",
                        found=f"by= of shape {list(numbers.shape)}, or with other values",
                        fix="Give by=data.counts, for example.")
    real = isinstance(clients, int | float | np.number) and not isinstance(clients, bool)
    if not real or not 0 < clients <= len(numbers):
        raise SpecError("importance_clients", need=f"an expected number of clients above 0 and up "
                        f"to {len(numbers)}", found=repr(clients), fix="Try a tenth of them.")
    chances = inclusion_probabilities(float(clients), numbers)
    if chances.min() < 2.0**-50:
        raise SpecError("importance_clients", need="numbers of comparable size",
                        found=f"a client drawn with probability {chances.min():.1e}",
                        fix="Raise the smallest numbers, so that every client is drawn at times.")
    threshold = below(chances)
    scale = (clients / len(numbers) / chances).astype(np.float32)

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        fits(len(candidates.clients))
        present = candidates.present
        heads = coins(source, round, len(numbers))[present] <= threshold[present]
        return cohort_of(source, round, candidates, present[heads], scale=scale,
                         mean_count=float(np.mean(candidates.counts)))

    def fits(num_clients: int) -> None:
        if num_clients != len(numbers):
            raise SpecError("selection `importance_clients`",
                            need=f"a number for each of {num_clients} clients",
                            found=f"{len(numbers)} numbers", fix="Give one for each client.")

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        fits(num_clients)
        return float(clients if available is None else chances[available].sum())

    return Selection(
        "importance_clients", Sampling("poisson", float(chances.max()), "client"), draw,
        expected_clients=expected,
        settings=f"clients={float(clients)!r}, probabilities {_digest(chances)}")


def inclusion_probabilities(clients: float, numbers: np.ndarray) -> np.ndarray:
    """Probabilities in proportion to numbers, none above 1, that add up to ``clients``.

    Example:
        >>> inclusion_probabilities(2.0, np.array([1.0, 1.0, 8.0])).tolist()
        [0.5, 0.5, 1.0]
    """
    certain = np.zeros(len(numbers), bool)
    while True:
        left = clients - certain.sum()
        rest = numbers[~certain].sum()
        chances = np.where(certain, 1.0, numbers * (left / rest if rest else 0.0))
        over = chances > 1.0
        if not over.any():
            return chances
        certain |= over


def _digest(values: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(values, "<f8").tobytes()).hexdigest()[:16]
