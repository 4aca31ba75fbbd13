"""As many clients as fit into a round of limited time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..core import Cohort, Sampling, Source, SpecError, source
from .drawing import cohort_of, coins, smallest, whole
from .selection import Candidates, Selection
from .timing import Devices, check_deadline, check_devices, check_times

_TRIALS = 200


def fed_cs(
    deadline_seconds: float, devices: Devices, *, candidates: int | None = None
) -> Selection:
    """As many clients as can train and send one after the other before a deadline.

    A random part of the clients says what it can do; the server then takes, one by one, the client
    that adds least to the round's time, as long as the deadline is kept. Clients train at the same
    time but share one channel for uploads, so a slow trainer costs nothing while others send.

    Args:
        deadline_seconds: how long a round may take.
        devices: how long each client downloads, trains and uploads.
        candidates: how many clients are asked each round; None asks everyone, and then the same
            clients are taken in each round unless the devices' times vary.

    Returns:
        A :class:`Selection` whose cohorts have ``seconds``. The expected number of clients is the
        mean over 200 simulated rounds of a public seed.

    Guarantees:
        No cohort takes longer than the deadline. Who takes part follows from public numbers only.
        Privacy is not amplified.

    Assumes:
        Slow clients take part seldom or never; the model then fits the fast ones better.

    Raises:
        SpecError: a deadline that not even the fastest client keeps, or times that make no sense;
            when a federation is made,
            devices of another number of clients, or more candidates than there are.

    Example:
        >>> from fedjax_secure.core import source
        >>> three = Devices(np.ones(3), np.array([1.0, 2.0, 30.0]), np.full(3, 2.0))
        >>> people = Candidates(("a", "b", "c"), np.array([0, 10, 20, 30]))
        >>> cohort = fed_cs(10.0, three).draw(source(0), 1, people, ())
        >>> cohort.taking_part.tolist(), cohort.seconds  # 1 down, 1 training, then 2 uploads of 2
        ([0, 1], 6.0)

    Source:
        Nishio, Yonetani 2019, "Client Selection for Federated Learning with Heterogeneous Resources
        in Mobile Edge", algorithm 3 (client selection in protocol 2).
    """
    check_deadline("fed_cs", deadline_seconds)
    if candidates is not None and not whole(candidates):
        raise SpecError("fed_cs", need="a whole number of candidates, 1 or more",
                        found=repr(candidates), fix="Leave it out to ask everyone.")
    check_times("fed_cs", devices)
    candidates = None if candidates is None else int(candidates)
    if devices.seconds.min() > deadline_seconds:
        raise SpecError("fed_cs", need="a deadline that some client keeps",
                        found=f"{deadline_seconds} seconds, the fastest needs "
                        f"{devices.seconds.min():.3g}", fix="Give more time.")

    def fits(num_clients: int) -> None:
        check_devices("fed_cs", devices, num_clients)
        if candidates is not None and candidates > num_clients:
            raise SpecError("selection `fed_cs`", need=f"at least {candidates} clients to ask",
                            found=f"{num_clients}", fix=f"Ask {num_clients} or fewer.")

    def choose(source: Source, round: int, present: np.ndarray) -> tuple[np.ndarray, float]:
        asked = present
        if candidates is not None:
            words = coins(source, round, len(devices.compute_seconds))[present]
            asked = present[smallest(words, candidates)]
        factor = devices.factor(round)[asked]
        taken, seconds = packed(
            factor * devices.download_seconds[asked], factor * devices.compute_seconds[asked],
            factor * devices.upload_seconds[asked], deadline_seconds)
        return np.sort(asked[taken]), seconds

    def draw(source: Source, round: int, people: Candidates, state: Any) -> Cohort:
        fits(len(people.clients))
        chosen, seconds = choose(source, round, people.present)
        return cohort_of(source, round, people, chosen, seconds=seconds)

    @lru_cache(maxsize=64)
    def trials(present: bytes | None) -> tuple[float, int]:
        here = np.arange(len(devices.compute_seconds))
        if present is not None:
            here = here[np.frombuffer(present, bool)]
        varies = candidates is not None or devices.jitter
        sizes = [len(choose(source(devices.seed), r, here)[0])
                 for r in range(1, _TRIALS + 1 if varies else 2)]
        return float(np.mean(sizes)), max(sizes)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        fits(num_clients)
        present = None if available is None else np.asarray(available, bool).tobytes()
        return trials(present)[0]

    def most(num_clients: int) -> int:
        fits(num_clients)
        return candidates or num_clients

    return Selection(
        "fed_cs", Sampling("public", 1.0, "client"), draw, expected_clients=expected,
        most_clients=most, settings=f"{deadline_seconds=}, {candidates=}, "
        f"devices {devices.digest()}")


def packed(
    download: np.ndarray, compute: np.ndarray, upload: np.ndarray, deadline: float
) -> tuple[list[int], float]:
    """The greedy schedule: places of the clients taken, in the order of their uploads.

    Args:
        download, compute, upload: float64 [clients], seconds.
        deadline: seconds.

    Returns:
        The places, and how long the round takes.
    """
    left = np.ones(len(compute), bool)
    taken: list[int] = []
    slowest, sending = 0.0, 0.0  # the slowest download so far; when the last upload ends
    while left.any():
        longer = np.maximum(download - slowest, 0.0)
        cost = longer + upload + np.maximum(compute - sending, 0.0)
        best = int(np.argmin(np.where(left, cost, np.inf)))
        left[best] = False
        until = sending + upload[best] + max(0.0, compute[best] - sending)
        if max(slowest, download[best]) + until <= deadline:
            slowest, sending = max(slowest, float(download[best])), float(until)
            taken.append(best)
    return taken, slowest + sending
