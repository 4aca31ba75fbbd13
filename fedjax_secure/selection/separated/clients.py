"""Clients whose rounds are kept apart, as noise that is correlated over rounds counts on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core import Cohort, Sampling, Source, SpecError
from ..drawing import cohort_of, coins, whole
from ..selection import Candidates, Observed, Selection


def separated_clients(
    clients: int, *, separation: int, most_rounds: int | None = None
) -> Selection:
    """A fixed number of clients each round, none again until some rounds have passed.

    With noise that is correlated over rounds (`fedjax_secure.privacy.correlated_noise`) privacy
    comes from rounds that lie apart instead of from sampling: nothing here needs to be secret.
    Those who took part least often come first, and chance decides among them, so that everyone
    takes part about equally often.

    Args:
        clients: how many take part in a round; if fewer may, all of those do.
        separation: who takes part in round t takes part again in round t + separation at the
            earliest. Largest without smaller cohorts: clients of the federation / ``clients``.
        most_rounds: nobody takes part in more rounds of a run than that; None for as many as the
            separation allows.

    Returns:
        A :class:`Selection` that remembers each client's last round and number of rounds.

    Guarantees:
        No draw breaks the separation or the number of rounds. A federation checks that again, by
        its own records, before anybody works: a client that would break it is refused.

    Raises:
        SpecError: not such numbers; when a federation is made, fewer than clients x separation
            clients.

    Example:
        >>> from fedjax_secure.core import source
        >>> population = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
        >>> selection = separated_clients(2, separation=3)
        >>> state, drawn = selection.init(population), []
        >>> for round in range(1, 7):
        ...     cohort = selection.draw(source(0), round, population, state)
        ...     state = selection.observe(state, cohort, None)
        ...     drawn.append("".join(np.array(cohort.clients)[cohort.taking_part]))
        >>> drawn[:3] == drawn[3:], sorted("".join(drawn[:3])) == list("abcdef")
        (True, True)

    Source:
        Choquette-Choo et al. 2023, arXiv 2306.08153 (participation at least b rounds apart);
        Kairouz et al. 2021, arXiv 2103.00039 (rounds without sampling).
    """
    name = "separated_clients"
    for what, value, good in (
            ("clients", clients, whole(clients)), ("separation", separation, whole(separation)),
            ("most_rounds", most_rounds, most_rounds is None or whole(most_rounds))):
        if not good:
            raise SpecError(name, need=f"{what}, a whole number of 1 or more", found=repr(value),
                            fix="Give for example separated_clients(20, separation=10).")

    def init(candidates: Candidates) -> Any:
        never = np.zeros(len(candidates.clients), np.int32)
        return {"last": never, "times": never.copy()}

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        present = candidates.present
        last, times = np.asarray(state["last"])[present], np.asarray(state["times"])[present]
        may = (last == 0) | (round - last >= separation)
        if most_rounds is not None:
            may &= times < most_rounds
        chance = coins(source, round, len(candidates.clients))[present]
        order = np.lexsort((chance, times))
        chosen = order[may[order]][:clients]
        return cohort_of(source, round, candidates, np.sort(present[chosen]))

    def observe(state: Any, cohort: Cohort, observed: Observed) -> Any:
        alive = np.asarray(cohort.alive)
        return {"last": np.where(alive, np.int32(cohort.round), state["last"]).astype(np.int32),
                "times": (np.asarray(state["times"]) + alive).astype(np.int32)}

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        if num_clients < clients * separation:
            raise SpecError(
                f"selection `{name}`", need=f"{clients * separation} clients or more: {clients} a "
                f"round, of whom none comes back within {separation} rounds",
                found=f"{num_clients}", fix="Lower separation, or ask fewer clients a round.")
        return float(clients if available is None else min(clients, int(np.sum(available))))

    return Selection(
        name, Sampling("public", 1.0, "client", int(separation), most_rounds), draw, init, observe,
        expected, lambda num_clients: min(clients, num_clients),
        settings=f"{clients=}, {separation=}, {most_rounds=}")
