"""Clients that are not there: away at times, by a trace, or lost in the middle of a round."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError, source
from .drawing import NO_ROWS, coins, uniforms, whole
from .selection import Candidates, Selection


def available(selection: Selection, trace: np.ndarray) -> Selection:
    """A selection that draws only clients that are available at the time of the round.

    Args:
        selection: draws among those who are available.
        trace: bool [times, clients], who is available when: public, and the same in every run.
            Round r is at time r - 1; after the last time the trace begins again.

    Returns:
        A :class:`Selection`. In a round in which nobody is available nobody takes part: the mean is
        zero, so the model moves only where the server has momentum left. Sums are divided by the
        expected number of clients over the whole trace, so that a round with few of them moves the
        model less.

    Guarantees:
        Who is not available is not drawn. Poisson coins stay as they are for those who are, so the
        accountant is told the same rate as without the trace; everything else counts as if
        everyone took part.

    Assumes:
        No client's data changes the trace.

    Raises:
        SpecError: a trace of another type or shape, or in which nobody is ever available; when a
            federation is made, one of another number of clients.

    Example:
        >>> from fedjax_secure.core import source
        >>> from fedjax_secure.selection import uniform_clients
        >>> trace = np.array([[True, True, False], [False, False, True]])
        >>> selection = available(uniform_clients(2), trace)
        >>> people = Candidates(("a", "b", "c"), np.array([0, 5, 10, 15]))
        >>> [selection.draw(source(0), r, people, ()).taking_part.tolist() for r in (1, 2, 3)]
        [[0, 1], [2], [0, 1]]
        >>> selection.expected_clients(3)
        1.5

    Source:
        Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design", section 9 (who
        is available follows the time of day).
    """
    trace = np.asarray(trace)
    if trace.dtype != bool or trace.ndim != 2 or not trace.size:
        raise SpecError("available", need="a trace of shape [times, clients] and dtype bool",
                        found=f"{trace.dtype}{list(trace.shape)}",
                        fix="Use day_night(num_clients), or compare your numbers: trace > 0.")
    if not trace.any():
        raise SpecError("available", need="a trace in which somebody is available at some time",
                        found="none", fix="Is it upside down? Give ~trace.")
    trace = trace.copy()
    trace.flags.writeable = False
    told = selection.sampling
    if told is not None and told.kind == "all":
        told = Sampling("public", 1.0, told.unit)

    def fits(num_clients: int) -> None:
        if num_clients != trace.shape[1]:
            raise SpecError(f"selection `available({selection.name})`",
                            need=f"a trace of {num_clients} clients", found=f"{trace.shape[1]}",
                            fix="Give a column for each client of the dataset.")

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        fits(len(candidates.clients))
        now = trace[(round - 1) % len(trace)]
        if candidates.available is not None:
            now = now & candidates.available
        return selection.draw(source, round, candidates._replace(available=now), state)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        fits(num_clients)
        selection.expected_clients(num_clients)  # refuses more than there are
        rows = trace if available is None else trace & available
        return float(np.mean([selection.expected_clients(num_clients, row) for row in rows]))

    def most(num_clients: int) -> int:
        fits(num_clients)
        return int(min(selection.most_clients(num_clients), trace.sum(1).max()))

    def answering(num_clients: int) -> np.ndarray:
        fits(num_clients)
        return _answering(selection, num_clients) * trace.mean(0)

    digest = hashlib.sha256(np.packbits(trace).tobytes()).hexdigest()[:16]
    return selection._replace(
        name=f"available({selection.name})", sampling=told, draw=draw, expected_clients=expected,
        most_clients=most, answering=answering,
        settings=f"{selection.settings}, trace {list(trace.shape)} {digest}")


def dropping_out(
    selection: Selection, rate: float | Sequence[float] | np.ndarray
) -> Selection:
    """A selection of whose clients some vanish within the round, before they send anything.

    To see what a federation does when clients that it counted on are lost. Each client that would
    answer is lost by a coin of its own, drawn or not. Who is lost sends neither its update nor its
    share of the noise.

    Args:
        selection: who is asked.
        rate: the probability with which a client that was asked is lost, from 0 to below 1; or one
            for each client, ``[clients]``. Public.

    Returns:
        A :class:`Selection`. Sums are divided by the number of clients that are expected to answer,
        where all are as likely to be asked. Weights by examples stay those of everyone who was
        asked: a client that sends does not know who else is lost. So with one rate for all, the
        mean is that of ``selection`` in expectation, whoever is lost. With rates of their own,
        clients that are lost more often count less, as they do in reality.

    Guarantees:
        Coins are independent of everything else: of the records, of each other, and of who was
        drawn. So the accountant is told what ``selection`` tells. For any set of clients that is
        lost, the others' sum is that of a federation of theirs alone: a unit of a lost client is
        not in it, and a unit of another is in it with the same probability as before. What holds
        for every set, and does not depend on the data, holds for a random one.

        A federation counts on ``num_clients - missing_shares`` shares of distributed noise. A
        round with fewer is refused before anybody works: nothing is sent, opened or spent, and
        running it again asks anew. Each record says how much noise was accounted
        (``noise_stddev_accounted``) and how much was there (``noise_stddev_in_sum``). Noise that
        whoever opens the sum adds, or that is correlated over rounds, does not depend on who is
        lost: a client that is lost takes part in fewer rounds than it was allowed to.

    Assumes:
        In a real federation: whether a client is lost depends neither on anybody's records nor on
        whether its own coin drew it. A phone whose battery dies because it trains tells that it
        was drawn.

    Raises:
        SpecError: rates that are not from 0 to below 1; when a federation is made, rates of
            another number of clients; combined with ``arrivals``, where who is lost never arrives
            and others fill its place.

    Example:
        >>> from fedjax_secure.core import source
        >>> from fedjax_secure.selection import all_records
        >>> selection = dropping_out(all_records(), 0.25)
        >>> people = Candidates(("a", "b", "c", "d"), np.array([0, 5, 10, 15, 20]))
        >>> [selection.draw(source(0), r, people, ()).taking_part.tolist() for r in (2, 3, 4)]
        [[0, 1, 2, 3], [0, 1, 3], [0]]
        >>> selection.expected_clients(4)
        3.0

    Source:
        Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design" (clients that
        drop out between selection and reporting); Kairouz, Liu, Steinke 2021, arXiv 2102.06387,
        for noise made of shares.
    """
    if not isinstance(selection, Selection):
        raise SpecError("dropping_out", need="a selection, and then a rate",
                        found=type(selection).__name__, fix="Write dropping_out(all_records(), "
                        "0.1), for example.")
    rates = np.array(rate, np.float64) if _numbers(rate) else np.full(1, np.nan)
    if rates.ndim > 1 or not rates.size or not np.all((rates >= 0) & (rates < 1)):
        raise SpecError(
            "dropping_out", need="a rate from 0 to below 1, or one for each client",
            found=f"{rate!r}"[:100], fix="Give for example 0.1: every tenth client is lost.")
    rates.flags.writeable = False
    told = selection.sampling
    if told is not None and rates.any():
        told = dataclasses.replace(
            told, kind="public" if told.kind == "all" else told.kind, drops_out=True)

    def fits(num_clients: int) -> np.ndarray:
        if rates.ndim and len(rates) != num_clients:
            raise SpecError(f"selection `dropping_out({selection.name})`",
                            need=f"a rate for each of {num_clients} clients", found=f"{len(rates)}",
                            fix="Give one for each client of the dataset, or one number for all.")
        return np.broadcast_to(rates, (num_clients,))

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        losing = fits(len(candidates.clients))
        cohort = selection.draw(source, round, candidates, state)
        if cohort.staleness is not None:
            raise SpecError("selection `dropping_out`", need="a selection that asks clients round "
                            "by round", found=f"`{selection.name}`, where others fill the place of "
                            "a client that is lost", fix="Leave dropping_out out.")
        asked = np.asarray(cohort.alive, bool)
        lost = asked & (uniforms(coins(source, round, len(asked), purpose)) < losing)
        indices = list(cohort.indices)
        for client in np.flatnonzero(lost).tolist():
            indices[client] = NO_ROWS
        scale, mean_count = cohort.scale, cohort.mean_count
        if scale is None:
            scale = np.ones(len(asked), np.float32)
        if mean_count is None:
            mean_count = float(cohort.counts.sum() / max(int(asked.sum()), 1)) or 1.0
        return cohort._replace(alive=asked & ~lost, indices=tuple(indices), scale=scale,
                               mean_count=mean_count)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        staying = 1.0 - fits(num_clients)
        drawn, weights = selection.by_group, np.ones(num_clients)
        if drawn is not None and len(drawn.groups) == num_clients:  # clients by group, not records
            weights = np.array(drawn.rates)[drawn.groups]
        if available is not None:
            weights = weights * np.asarray(available, bool)
        if not weights.any():
            return 0.0
        share = float(np.average(staying, weights=weights))
        return float(selection.expected_clients(num_clients, available)) * share

    def answering(num_clients: int) -> np.ndarray:
        return _answering(selection, num_clients) * (1.0 - fits(num_clients))

    # One purpose for each layer: else the same coins are tossed by all of them.
    purpose = "drop-out" + "+" * selection.name.count("dropping_out(")

    each = (f"lost at rate {float(rates)!r}" if not rates.ndim else
            f"lost at rates {hashlib.sha256(rates.astype('<f8').tobytes()).hexdigest()[:16]}")
    return selection._replace(
        name=f"dropping_out({selection.name})", sampling=told, draw=draw,
        expected_clients=expected, answering=answering,
        settings=f"{selection.settings}, {each}".lstrip(", "))


def _answering(selection: Selection, num_clients: int) -> np.ndarray:
    """Each client's probability of answering when it is asked, ``[clients]``."""
    found = selection.answering
    return np.ones(num_clients) if found is None else found(num_clients)


def _numbers(value: Any) -> bool:
    try:
        found = np.asarray(value)
    except ValueError:  # lists of different lengths
        return False
    return bool(np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer))


def day_night(
    num_clients: int, *, rounds_a_day: int = 24, awake: float = 0.4, zones: int = 3, seed: int = 0
) -> np.ndarray:
    """A trace of clients that are available at one time of the day, each in its time zone.

    Args:
        num_clients: of the federation.
        rounds_a_day: rounds in a day; the trace is one day long.
        awake: the share of the day for which a client is available, above 0 and up to 1.
        zones: how many time zones there are, at equal distances; clients fall into them at random.
        seed: of the zones and of each client's own habits (up to an hour earlier or later).

    Returns:
        bool [rounds_a_day, clients].

    Raises:
        SpecError: numbers that make no sense.

    Example:
        >>> trace = day_night(1000, rounds_a_day=24)
        >>> trace.shape, round(float(trace.mean()), 1), len(set(trace.sum(1).tolist())) > 5
        ((24, 1000), 0.4, True)

    Source:
        The setting of Eichner et al. 2019, "Semi-Cyclic Stochastic Gradient Descent".
    """
    if not (whole(num_clients) and whole(rounds_a_day) and whole(zones) and 0 < awake <= 1):
        raise SpecError(
            "day_night", need="whole numbers of clients, rounds and zones, and awake in (0, 1]",
            found=f"{num_clients=}, {rounds_a_day=}, {zones=}, {awake=}",
            fix="Try day_night(1000).")
    words = uniforms(coins(source(seed), 0, 2 * num_clients, "day and night"))
    zone = np.floor(words[:num_clients] * zones) / zones
    habit = (words[num_clients:] - 0.5) / 12.0
    hours = np.arange(rounds_a_day)[:, None] / rounds_a_day
    return (hours + zone + habit) % 1.0 < awake
