"""Clients that can be reached only at times: day and night, or a recorded trace."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError, source
from .drawing import coins, uniforms, whole
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

    digest = hashlib.sha256(np.packbits(trace).tobytes()).hexdigest()[:16]
    return selection._replace(
        name=f"available({selection.name})", sampling=told, draw=draw, expected_clients=expected,
        most_clients=most, settings=f"{selection.settings}, trace {list(trace.shape)} {digest}")


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
