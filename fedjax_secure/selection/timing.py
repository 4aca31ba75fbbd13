"""Simulated devices: how long each client takes, and what happens to those who are late."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from ..core import Cohort, Sampling, Source, SpecError, source
from .drawing import NO_ROWS, coins, uniforms, whole
from .selection import Candidates, Selection


class Devices(NamedTuple):
    """How long each client takes to get the model, train, and send its update: public numbers.

    Attributes:
        download_seconds: float64 [clients].
        compute_seconds: float64 [clients], for all of a round's steps.
        upload_seconds: float64 [clients].
        jitter: standard deviation of the logarithm of a factor by which a client's whole time
            varies from round to round.
        seed: of that factor.
    """

    download_seconds: np.ndarray
    compute_seconds: np.ndarray
    upload_seconds: np.ndarray
    jitter: float = 0.0
    seed: int = 0

    @property
    def seconds(self) -> np.ndarray:
        """float64 [clients]: the usual time of a client, all together."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds

    def factor(self, number: int) -> np.ndarray:
        """float64 [clients]: by what each client's time is multiplied in round ``number``."""
        if not self.jitter:
            return np.ones(len(self.compute_seconds))
        words = coins(source(self.seed), number, len(self.compute_seconds), "jitter")
        return np.exp(self.jitter * ndtri(uniforms(words)))

    def digest(self) -> str:
        """16 hexadecimal characters: other devices have others."""
        parts = np.stack([self.download_seconds, self.compute_seconds, self.upload_seconds])
        told = parts.astype("<f8").tobytes() + repr((self.jitter, self.seed)).encode()
        return hashlib.sha256(told).hexdigest()[:16]


def devices(
    counts: Sequence[int] | np.ndarray,
    *,
    passes: int = 1,
    records_per_second: float = 100.0,
    speed_spread: float = 1.0,
    model_bytes: float = 1e6,
    bytes_per_second: float = 1e6,
    bandwidth_spread: float = 1.0,
    jitter: float = 0.0,
    seed: int = 0,
) -> Devices:
    """Simulated devices with heavy-tailed speeds and bandwidths, the same in every run.

    Args:
        counts: [clients], examples of each client: ``data.counts``.
        passes: over them in a round (local epochs).
        records_per_second: what the median device trains on.
        speed_spread: standard deviation of the speed's logarithm; 1 puts the fastest and the
            slowest percent a factor of a hundred apart.
        model_bytes: of one model; downloaded and uploaded once a round.
        bytes_per_second: the median bandwidth.
        bandwidth_spread: standard deviation of its logarithm.
        jitter: of a client's time from round to round, see :class:`Devices`.
        seed: public.

    Raises:
        SpecError: numbers that are not positive, or negative spreads.

    Example:
        >>> phones = devices([100] * 1000)
        >>> float(np.median(phones.compute_seconds).round(1))
        1.0
        >>> float(phones.seconds.max() / np.median(phones.seconds)) > 5
        True

    Source:
        Log-normal speeds after the spread over two orders of magnitude that Huba et al. 2022,
        "Papaya: Practical, Private, and Scalable Federated Learning", report.
    """
    counts = np.asarray(counts, np.float64)
    positive = (records_per_second, model_bytes, bytes_per_second)
    spreads = (speed_spread, bandwidth_spread, jitter)
    if not (counts.ndim == 1 and len(counts) and np.all(counts >= 0) and whole(passes)
            and all(0 < v < np.inf for v in positive) and all(0 <= v < np.inf for v in spreads)):
        raise SpecError(
            "devices", need="counts [clients], passes of 1 or more, positive rates and bytes, and "
            "spreads of 0 or more", found=f"counts {list(counts.shape)}, {passes=}, {positive}, "
            f"{spreads}", fix="Start with devices(data.counts).")
    words = coins(source(seed), 0, 3 * len(counts), "devices")
    speed, down, up = np.exp(ndtri(uniforms(words))).reshape(3, -1)
    transfer = model_bytes / bytes_per_second
    return Devices(
        transfer / down**bandwidth_spread,
        passes * counts / (records_per_second * speed**speed_spread),
        transfer / up**bandwidth_spread, float(jitter), seed)


def check_times(name: str, devices: Devices) -> None:
    """Refuse times that make no sense.

    Raises:
        SpecError: other than three arrays of as many finite numbers of 0 or more, or a jitter that
            is negative or not finite.
    """
    times = devices[:3]
    arrays = all(isinstance(part, np.ndarray) and part.ndim == 1 for part in times)
    good = arrays and len({len(part) for part in times}) == 1 and len(times[0]) > 0
    good = good and bool(np.all(np.isfinite(times) & (np.array(times) >= 0)))
    if not (good and 0 <= devices.jitter < np.inf):
        raise SpecError(
            name, need="devices with three numpy arrays of seconds for each client, finite and of "
            "0 or more, and a jitter of 0 or more",
            found=", ".join(type(part).__name__ for part in times) if not arrays else
            f"others, of lengths {[len(part) for part in times]}, jitter={devices.jitter!r}",
            fix="Make them with devices(data.counts), or numpy.asarray(...) your lists.")


def check_devices(name: str, devices: Devices, num_clients: int) -> None:
    """Refuse devices of another federation.

    Raises:
        SpecError: another number of clients.
    """
    found = len(devices.compute_seconds)
    if found != num_clients:
        raise SpecError(f"selection `{name}`", need=f"devices of {num_clients} clients",
                        found=f"{found}", fix="Make them with devices(data.counts).")


def check_deadline(name: str, deadline_seconds: Any) -> None:
    """Refuse a deadline that is no positive number of seconds."""
    real = isinstance(deadline_seconds, int | float | np.number)
    if not real or isinstance(deadline_seconds, bool) or not 0 < deadline_seconds < np.inf:
        raise SpecError(name, need="a positive number of seconds", found=repr(deadline_seconds),
                        fix="Give for example deadline_seconds=60.0.")


def timed(
    selection: Selection,
    devices: Devices,
    *,
    deadline_seconds: float | None = None,
    late: Literal["partial", "dropped"] = "partial",
) -> Selection:
    """A selection whose rounds take simulated time, with or without a deadline.

    Without a deadline a round lasts as long as its slowest client: what synchronous training pays
    for stragglers. With one, a slow client sends what it has after a part of its steps, or nothing.

    Args:
        selection: who takes part.
        devices: how long each takes.
        deadline_seconds: when the round ends at the latest; None waits for everyone.
        late: ``"partial"``: who would be late does as large a share of its steps as it can
            (``Cohort.share``), and only who cannot even transfer the model in time is dropped;
            ``"dropped"``: who would be late sends nothing.

    Returns:
        A :class:`Selection` whose cohorts have ``seconds``. Sums are divided by the number of
        clients that are expected to be in time, where all are as likely to be drawn. With
        ``importance_clients`` that is not so: give the federation its own ``denominator``.

    Guarantees:
        Times follow from public numbers, so that the accountant is told what ``selection`` tells.

    Raises:
        SpecError: a deadline that nobody keeps, or that is no positive number; when a federation is
            made, devices of another number of clients.

    Example:
        >>> from fedjax_secure.core import source
        >>> from fedjax_secure.selection import all_records
        >>> slow = Devices(np.array([1.0, 1.0]), np.array([2.0, 10.0]), np.array([1.0, 1.0]))
        >>> people = Candidates(("a", "b"), np.array([0, 20, 40]))
        >>> cohort = timed(all_records(), slow, deadline_seconds=7.0).draw(source(0), 1, people, ())
        >>> cohort.share.tolist(), cohort.seconds
        ([1.0, 0.5], 7.0)
        >>> timed(all_records(), slow).draw(source(0), 1, people, ()).seconds
        12.0

    Source:
        Partial work: Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx),
        section 5.2, systems heterogeneity. Dropping: Bonawitz et al. 2019, section 2.
    """
    if late not in ("partial", "dropped"):
        raise SpecError("timed", need='late="partial" or "dropped"', found=repr(late),
                        fix="Leave it out for the first.")
    check_times("timed", devices)
    if deadline_seconds is not None:
        check_deadline("timed", deadline_seconds)
    name = f"timed({selection.name})"
    transfer = devices.download_seconds + devices.upload_seconds
    needed = transfer if late == "partial" else devices.seconds
    in_time = _chance_in_time(needed, deadline_seconds, devices.jitter)
    if not in_time.any():
        raise SpecError(name, need="a deadline that some client keeps",
                        found=f"{deadline_seconds} seconds, the fastest needs {needed.min():.3g}",
                        fix="Give more time, or faster devices.")
    told = selection.sampling
    if told is not None and told.kind == "all" and in_time.min() < 1.0:
        told = Sampling("public", 1.0, told.unit)

    def draw(source: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        check_devices(name, devices, len(candidates.clients))
        cohort = selection.draw(source, round, candidates, state)
        factor = devices.factor(round)
        seconds = factor * devices.seconds
        if deadline_seconds is None:
            return cohort._replace(seconds=float(seconds[cohort.alive].max(initial=0.0)))
        keeps = cohort.alive & (factor * needed < deadline_seconds)
        indices = list(cohort.indices)
        for c in np.flatnonzero(cohort.alive & ~keeps).tolist():
            indices[c] = NO_ROWS
        lasting = deadline_seconds if np.any(cohort.alive & (seconds > deadline_seconds)) else (
            seconds[cohort.alive].max(initial=0.0))
        share = None
        if late == "partial":
            left = (deadline_seconds / factor - transfer) / np.maximum(
                devices.compute_seconds, np.finfo(np.float64).tiny)
            share = np.where(keeps, np.clip(left, 1e-6, 1.0), 1.0).astype(np.float32)
            if cohort.share is not None:
                share = share * cohort.share
        return cohort._replace(alive=keeps, indices=tuple(indices), seconds=float(lasting),
                               share=cohort.share if share is None else share)

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        check_devices(name, devices, num_clients)
        mean = in_time.mean() if available is None or not available.any() else (
            in_time[available].mean())
        return float(selection.expected_clients(num_clients, available) * mean)

    return selection._replace(
        name=name, sampling=told, draw=draw, expected_clients=expected,
        settings=f"{selection.settings}, {deadline_seconds=}, {late=}, devices {devices.digest()}")


def _chance_in_time(needed: np.ndarray, deadline: float | None, jitter: float) -> np.ndarray:
    """How probable it is that each client keeps the deadline."""
    if deadline is None:
        return np.ones(len(needed))
    if not jitter:
        return (needed < deadline).astype(np.float64)
    needed = np.maximum(needed, 1e-100)  # who needs no time is in time
    return ndtr(np.log(deadline / needed) / jitter)
