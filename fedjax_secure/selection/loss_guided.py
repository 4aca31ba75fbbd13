"""Clients chosen by how badly the model serves them: faster learning, and no privacy guarantee."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Cohort, Source, SpecError
from .drawing import cohort_of, coins, enough, smallest, uniforms, whole
from .selection import Candidates, Observed, Selection
from .timing import Devices, check_devices, check_times


def power_of_choice(clients: int, *, candidates: int) -> Selection:
    """Of some clients drawn by size, those on whom the model's loss is largest.

    Learns faster than a uniform choice, at the price of a bias towards clients of high loss that
    grows with the number of candidates.

    Args:
        clients: how many take part in a round (m).
        candidates: how many are asked for their loss (d), drawn without replacement with
            probabilities in proportion to their numbers of examples. As many as ``clients`` makes
            a draw by size that looks at no loss.

    Returns:
        A :class:`Selection` that ``reads_data``. If fewer clients are available, all of those take
        part. A loss that is not finite counts as the smallest; equal losses are chosen among at
        random.

    Assumes:
        The candidates' losses are told in the clear.

    Raises:
        SpecError: numbers that are not whole or fewer candidates than clients; when a federation is
            made, more candidates than it has clients.

    Example:
        >>> from fedjax_secure.core import source
        >>> people = Candidates(tuple("abcd"), np.arange(0, 50, 10),
        ...                     losses=lambda asked: np.array([0.5, 3.0, 1.0, 2.0])[asked])
        >>> selection = power_of_choice(2, candidates=4)
        >>> selection.draw(source(0), 1, people, ()).taking_part.tolist(), selection.reads_data
        ([1, 3], True)

    Source:
        Cho, Wang, Joshi 2022, "Towards Understanding Biased Client Selection in Federated
        Learning", the strategy pi_pow-d (its three steps); preprint of 2020: "Client Selection in
        Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies".
    """
    if not (whole(clients) and whole(candidates) and candidates >= clients):
        raise SpecError("power_of_choice", need="whole numbers, candidates >= clients >= 1",
                        found=f"{clients=}, {candidates=}",
                        fix="Try twice as many candidates as clients.")

    def draw(source: Source, round: int, people: Candidates, state: Any) -> Cohort:
        enough("power_of_choice", candidates, len(people.clients))
        present = people.present
        waiting = _race(source, round, "sampling", people.counts[present])
        places = smallest(waiting, candidates)
        asked = present[places]
        losses = np.asarray(_losses("power_of_choice", people)(asked), np.float64)
        losses = np.where(np.isfinite(losses), losses, -np.inf)
        order = np.lexsort((waiting[places], -losses))  # equal losses: who came first in the race
        return cohort_of(source, round, people, np.sort(asked[order[:clients]]))

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        enough("power_of_choice", candidates, num_clients)
        return float(clients if available is None else min(clients, int(np.sum(available))))

    return Selection(
        "power_of_choice", None, draw, expected_clients=expected,
        most_clients=lambda n: int(expected(n)), reads_data=True,
        settings=f"{clients=}, {candidates=}")


def oort(
    clients: int,
    *,
    devices: Devices | None = None,
    exploration: float = 0.9,
    exploration_decay: float = 0.98,
    least_exploration: float = 0.2,
    straggler_penalty: float = 2.0,
    first_percentile: float = 30.0,
    pacer_percentile: float = 10.0,
    pacer_rounds: int = 20,
    cutoff: float = 0.95,
    clip_percentile: float = 95.0,
) -> Selection:
    """Clients that promise most progress for the time that they take.

    Each client that has taken part has a statistical utility, its number of examples times its
    training loss. Most places go to clients of high utility, lowered for those who take longer than
    the preferred duration of a round; a share that falls over time goes to clients that nobody has
    tried yet, the fast ones first. A bonus grows with the rounds since a client was last seen, so
    that old knowledge is renewed. When the utility that rounds gather falls, the preferred duration
    rises, so that slower clients get their turn.

    Args:
        clients: how many take part in a round (K).
        devices: how long each client takes; None leaves time out.
        exploration, exploration_decay, least_exploration: the share of places for clients that were
            never tried: at first, its factor from round to round, and its least value (epsilon).
        straggler_penalty: the exponent alpha of preferred over needed duration.
        first_percentile: of all clients' durations: the preferred duration (T) at first.
        pacer_percentile: by how many percentiles the pacer raises it (Delta).
        pacer_rounds: how many rounds it compares with as many before (W).
        cutoff: clients of at least this share of the last admitted client's utility are drawn from,
            with probabilities in proportion to their utilities (c).
        clip_percentile: larger utilities count as this percentile of all.

    Returns:
        A :class:`Selection` that ``reads_data`` and remembers each client's utility and last round.

    Assumes:
        The algorithm reports each client's training ``loss``; it is told in the clear.

        Two things differ from the paper's text. The statistical utility takes the mean loss where
        the paper takes the root of the mean squared loss, as a mean is what clients report. And
        utilities are scaled to [0, 1] before the bonus is added, as in the authors' own program,
        since the bonus is below 1 whatever the loss.

    Raises:
        SpecError: settings out of range; when a federation is made, more clients than it has; after
            a round, an algorithm whose clients report no loss.

    Example:
        >>> from fedjax_secure.core import source
        >>> people = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
        >>> selection = oort(3)
        >>> state = selection.init(people)
        >>> cohort = selection.draw(source(0), 1, people, state)
        >>> losses = np.where(cohort.alive, 2.0, np.nan)
        >>> state = selection.observe(state, cohort, Observed(losses, cohort.counts))
        >>> np.array_equal(state["utility"] > 0, cohort.alive)
        True

    Source:
        Lai, Zhu, Madhyastha, Chowdhury 2021, "Oort: Efficient Federated Learning via Guided
        Participant Selection", algorithm 1 and section 4.
    """
    shares = (exploration, exploration_decay, least_exploration, cutoff)
    if not (whole(clients) and whole(pacer_rounds) and all(0 <= v <= 1 for v in shares)
            and straggler_penalty >= 0 and 0 < clip_percentile <= 100
            and 0 < first_percentile <= 100 and 0 <= pacer_percentile <= 100):
        raise SpecError(
            "oort", need="whole numbers of clients and pacer_rounds, shares in [0, 1], percentiles "
            "in (0, 100], straggler_penalty of 0 or more", found=f"{clients=}, {pacer_rounds=}, "
            f"{shares=}, {straggler_penalty=}, {first_percentile=}, {pacer_percentile=}, "
            f"{clip_percentile=}", fix="Start with oort(clients).")

    if devices is not None:
        check_times("oort", devices)
        if devices.seconds.min() <= 0:
            raise SpecError("oort", need="clients that take some time", found="one that takes none",
                            fix="Leave devices= out, or give it a second.")

    def init(people: Candidates) -> dict[str, np.ndarray]:
        n = len(people.clients)
        return {"counts": np.asarray(people.counts, np.float64), "utility": np.zeros(n),
                "last_round": np.zeros(n, np.int32),
                "percentile": np.array(float(first_percentile)),
                "gathered": np.zeros(2 * pacer_rounds)}

    def scores(state: Any, round: int, tried: np.ndarray) -> np.ndarray:
        utility = state["utility"][tried]
        utility = np.minimum(utility, np.percentile(utility, clip_percentile))
        utility = (utility - utility.min()) / max(float(np.ptp(utility)), 1e-12)
        utility = utility + np.sqrt(0.1 * np.log(round) / state["last_round"][tried])
        if devices is not None:
            preferred = np.percentile(devices.seconds, float(state["percentile"]))
            late = np.minimum(preferred / devices.seconds[tried], 1.0)
            utility = utility * late**straggler_penalty
        return np.maximum(utility, 1e-9)

    def draw(source: Source, round: int, people: Candidates, state: Any) -> Cohort:
        expected(len(people.clients))
        present = people.present
        known = np.asarray(state["last_round"])[present] > 0
        tried, fresh = present[known], present[~known]
        places = min(clients, len(present))
        share = max(least_exploration, exploration * exploration_decay ** (round - 1))
        explored = max(min(len(fresh), int(np.ceil(share * places))), places - len(tried))
        exploited = places - explored
        chosen = [np.zeros(0, np.int64)]
        if exploited:
            score = scores(state, round, tried)
            admitted = np.sort(score)[-exploited]
            pool = np.flatnonzero(score >= cutoff * admitted)
            waiting = _race(source, round, "exploitation", score[pool])
            chosen.append(tried[pool[smallest(waiting, exploited)]])
        if explored:
            speed = np.ones(len(fresh)) if devices is None else 1.0 / devices.seconds[fresh]
            waiting = _race(source, round, "exploration", speed)
            chosen.append(fresh[smallest(waiting, explored)])
        cohort = cohort_of(source, round, people, np.sort(np.concatenate(chosen)))
        if devices is None:
            return cohort
        seconds = devices.factor(round) * devices.seconds
        return cohort._replace(seconds=float(seconds[cohort.alive].max(initial=0.0)))

    def observe(state: Any, cohort: Cohort, observed: Observed) -> dict[str, np.ndarray]:
        took = cohort.taking_part
        reported = took[np.isfinite(observed.losses[took])]
        if len(took) and np.any(observed.steps[took] > 0) and not len(reported):
            raise SpecError("selection `oort`", need="an algorithm whose clients report their "
                            "training loss", found="none reported",
                            fix="Use fs.algorithms.fed_avg(...), or another selection.")
        utility, last = np.array(state["utility"]), np.array(state["last_round"])
        counts = np.asarray(state["counts"])
        found = counts[reported] * observed.losses[reported]
        utility[reported], last[took] = np.maximum(found, 0.0), cohort.round
        gathered = np.append(np.asarray(state["gathered"])[1:], found.sum())
        percentile = np.array(state["percentile"])
        if cohort.round >= 2 * pacer_rounds and cohort.round % pacer_rounds == 0 and (
                gathered[:pacer_rounds].sum() > gathered[pacer_rounds:].sum()):
            percentile = np.minimum(percentile + pacer_percentile, 100.0)
        return {"counts": counts, "utility": utility, "last_round": last,
                "percentile": percentile, "gathered": gathered}

    def expected(num_clients: int, available: np.ndarray | None = None) -> float:
        enough("oort", clients, num_clients)
        if devices is not None:
            check_devices("oort", devices, num_clients)
        return float(clients if available is None else min(clients, int(np.sum(available))))

    settings = (f"{clients=}, {exploration=}, {exploration_decay=}, {least_exploration=}, "
                f"{straggler_penalty=}, {first_percentile=}, {pacer_percentile=}, {pacer_rounds=}, "
                f"{cutoff=}, {clip_percentile=}")
    if devices is not None:
        settings += f", devices {devices.digest()}"
    return Selection(
        "oort", None, draw, init, observe, expected, lambda n: int(expected(n)), True, settings)


def _losses(name: str, people: Candidates) -> Any:
    if people.losses is None:
        raise SpecError(f"selection `{name}`", need="the candidates' losses", found="none",
                        fix="Give Candidates(..., losses=...), as fs.Simulation does.")
    return people.losses


def _race(source: Source, round: int, purpose: str, weights: np.ndarray) -> np.ndarray:
    """Exponential waiting times: the k first are a draw without replacement by weight.

    Source:
        Efraimidis, Spirakis 2006, "Weighted Random Sampling with a Reservoir", algorithm A.
    """
    words = uniforms(coins(source, round, len(weights), purpose))
    return -np.log(words) / np.maximum(np.asarray(weights, np.float64), 1e-12)
