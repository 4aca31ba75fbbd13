"""Clients that arrive when they are done: the simulated event queue of asynchronous training."""

from __future__ import annotations

import heapq
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from ..core import Cohort, Sampling, Source, SpecError, source
from .drawing import cohort_of, coins, enough, uniforms, whole
from .selection import Candidates, Selection
from .timing import Devices, check_devices, check_times

_BLOCK = 512


def arrivals(
    devices: Devices, *, concurrency: int, buffer_size: int = 1, seed: int = 0
) -> Selection:
    """The clients whose updates fill the server's buffer: one round is one step of the server.

    A fixed number of clients train at any time, each from the model that was newest when it began.
    Who is done sends its update and makes room for another client, drawn at random among those who
    neither train nor wait in the buffer. When the buffer is full the server makes a step, and the
    next round begins. Nobody waits for the slowest.

    Args:
        devices: how long each client takes, from the model's download to its update's arrival;
            their ``jitter`` varies it each time.
        concurrency: how many clients train at the same time.
        buffer_size: how many updates make a step; 1 steps at each arrival.
        seed: public, of who begins when: the same in every run and after a resume.

    Returns:
        A :class:`Selection` for `fedjax_secure.algorithms.fed_buff` and ``fed_async``. Its cohorts
        have ``staleness``, the server's steps since each client began, and ``seconds``, the
        simulated time since the last step.

    Guarantees:
        A client is in a buffer at most once, so it counts once in each sum. Who arrives follows
        from public numbers only. Privacy is not amplified.

    Assumes:
        Times do not depend on the clients' data but through their public numbers of examples.

    Raises:
        SpecError: numbers that are not whole, or times that make no sense; when a federation is
            made, more clients at a time or in a buffer than it has, or devices of another number
            of clients; combined with a trace of who is available, as it keeps its own time.

    Example:
        >>> from fedjax_secure.core import source
        >>> quick_and_slow = Devices(np.zeros(3), np.array([1.0, 1.0, 2.5]), np.zeros(3))
        >>> people = Candidates(("a", "b", "c"), np.array([0, 2, 4, 6]))
        >>> selection = arrivals(quick_and_slow, concurrency=3, buffer_size=2)
        >>> for round in (1, 2):
        ...     cohort = selection.draw(source(0), round, people, ())
        ...     print(cohort.taking_part, cohort.staleness[cohort.alive], cohort.seconds)
        [0 1] [0 0] 1.0
        [0 1] [0 0] 1.0

    Source:
        Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm
        1 (the server's loop); Xie et al. 2019, "Asynchronous Federated Optimization", algorithm 1,
        for a buffer of one.
    """
    for name, value in (("concurrency", concurrency), ("buffer_size", buffer_size)):
        if not whole(value):
            raise SpecError("arrivals", need=f"{name}, a whole number of 1 or more",
                            found=repr(value), fix="Try concurrency=10, buffer_size=5.")
    # numpy's numbers are no JSON, in which a run's settings are kept
    concurrency, buffer_size = int(concurrency), int(buffer_size)
    check_times("arrivals", devices)
    queue = _Queue(devices, concurrency, buffer_size, seed)

    def fits(num_clients: int) -> None:
        check_devices("arrivals", devices, num_clients)
        enough("arrivals", max(concurrency, buffer_size), num_clients)

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        fits(len(candidates.clients))
        if candidates.available is not None:
            raise SpecError("selection `arrivals`", need="clients that keep its own time",
                            found="a trace of who is available in which round",
                            fix="Give absent clients long times in devices= instead.")
        step = queue.step(round)
        order = np.argsort(step.clients)
        staleness = np.zeros(len(candidates.clients), np.int32)
        staleness[step.clients] = step.staleness
        return cohort_of(source, round, candidates, step.clients[order], staleness=staleness,
                         seconds=step.seconds)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        fits(num_clients)
        return float(buffer_size)

    def most(num_clients: int) -> int:
        fits(num_clients)
        return buffer_size

    return Selection(
        "arrivals", Sampling("public", 1.0, "client"), draw, expected_clients=expected,
        most_clients=most, settings=f"{concurrency=}, {buffer_size=}, {seed=}, "
        f"devices {devices.digest()}")


class _Step(NamedTuple):
    """The updates of one step of the server, in the order of their arrival."""

    clients: np.ndarray
    staleness: np.ndarray
    seconds: float


class _Queue:
    """Who trains, who waits in the buffer, and who is idle; steps are simulated once, in order."""

    def __init__(self, devices: Devices, concurrency: int, buffer_size: int, seed: int):
        self.seconds, self.jitter = devices.seconds, devices.jitter
        self.concurrency, self.buffer_size = concurrency, buffer_size
        self.source = source(seed)
        self.idle = list(range(len(self.seconds)))
        self.training: list[tuple[float, int, int, int]] = []  # until when, which start, who, from
        self.started, self.words = 0, np.zeros((0, 2), np.uint64)
        self.now = self.last = 0.0
        self.steps: list[_Step] = []
        self.lock = Lock()

    def step(self, number: int) -> _Step:
        """The server's step ``number``, from 1."""
        with self.lock:  # one selection may serve several simulations, in threads of their own
            while len(self.steps) < number:
                self.steps.append(self._next())
            return self.steps[number - 1]

    def _next(self) -> _Step:
        version, buffer = len(self.steps), []
        while len(buffer) < self.buffer_size:
            while self.idle and len(self.training) < self.concurrency:
                self._start(version)
            self.now, _, client, begun = heapq.heappop(self.training)
            buffer.append((client, version - begun))
        clients, staleness = (np.array(part) for part in zip(*buffer, strict=True))
        self.idle += clients.tolist()
        step = _Step(clients, staleness, self.now - self.last)
        self.last = self.now
        return step

    def _start(self, version: int) -> None:
        place = self.started % _BLOCK
        if place == 0:
            block = self.started // _BLOCK
            self.words = coins(self.source, block, 2 * _BLOCK, "arrivals").reshape(_BLOCK, 2)
        who, luck = self.words[place]
        at = int(who) % len(self.idle)
        self.idle[at], self.idle[-1] = self.idle[-1], self.idle[at]
        client = self.idle.pop()
        factor = np.exp(self.jitter * ndtri(uniforms(luck))) if self.jitter else 1.0
        until = self.now + float(self.seconds[client] * factor)
        heapq.heappush(self.training, (until, self.started, client, version))
        self.started += 1
