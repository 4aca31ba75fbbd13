"""Audits of a whole federation: one training run with canaries among its own records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...algorithms import Algorithm
from ...core import (
    Aggregation,
    Cohort,
    RoundState,
    SeededSource,
    Source,
    Spec,
    SpecError,
    source,
)
from ...core.randomness import host_words
from ...data import FederatedDataset
from ...models import Model
from ...privacy.audit import AuditResult
from ...selection import Candidates, Selection
from ..federation import Federation
from ..simulation import Simulation
from .chain_runs import GAIN
from .claims import (
    claimed_epsilon,
    log_likelihood_ratio,
    one_run_result,
    require_auditable,
    without_opener,
)
from .planting import DOWN, REAL, SILENT, UP, Marks, marked, planted_model

Canary = Literal["gradient", "mislabelled"]
View = Literal["white_box", "black_box"]
Background = Literal["real", "silent", "opposed"]

#: Length of a crafted gradient in clipping bounds: of one record's (see `chain_runs.GAIN`), and of
#: one step of a client, whose learning rate shortens it.
_RECORD_GAIN, _CLIENT_GAIN = GAIN, 1e6
_MOST_CANARIES = 5000


class Planted(NamedTuple):
    """A federation's data with canaries.

    Attributes:
        data: records with their marks, as they are in this run.
        everyone: the same as if every coin had said in.
        units: int64 [canaries]: rows of the dataset, or numbers of clients.
        included: bool [canaries]: how each one's coin fell.
        places: int64 [canaries]: the parameter along which each pushes.
        pushed_back: float64 [canaries]: how many others push the other way.
    """

    data: FederatedDataset
    everyone: FederatedDataset
    units: np.ndarray
    included: np.ndarray
    places: np.ndarray
    pushed_back: np.ndarray


def audit(
    run: Simulation | Federation, *, rounds: int, canaries: int | None = None, runs: int = 1,
    canary: Canary = "gradient", view: View = "white_box", background: Background | None = None,
    dp_delta: float | None = None, confidence: float = 0.95,
    counts: Sequence[tuple[int, int]] | None = None, seed: int = 0,
) -> AuditResult:
    """Attack a whole federation with canaries in a training run of it.

    Some of the federation's units are replaced by canaries, each in or out by its own fair coin;
    everything else stays: model, clients, selection, algorithm, chain and their plan. The rounds
    run for real, in a simulation, and the auditor guesses which canaries were in. Encryption is
    left out, since it changes nothing in the sum that is opened. No budget is spent: the run is a
    copy, and nothing of it is kept but the result.

    Guarantees:
        If the run is private as claimed, the result's ``epsilon`` is above the claim with
        probability at most ``1 - confidence``, whatever canaries, view and background. Numbers of
        guesses are fixed before any score, and corrected for.

    Args:
        run: what is audited; it is not changed.
        rounds: how many to run. The claim is computed for as many.
        canaries: how many; None takes as many as there is room for, up to 5,000: half of the
            units, and one value of the model for each gradient canary. A bound of epsilon e needs
            a good many more than ``3 exp(e)`` guesses.
        runs: how many independent copies to run; their canaries count together. For models of few
            values, which have room for few canaries. Each run compiles anew, a few seconds.
        canary: ``"gradient"``: crafted, the gradient is one axis of the model, far above the
            clipping bound; the strongest. ``"mislabelled"``: a unit's own records under the next
            class's label, as a person might really be.
        view: ``"white_box"``: every round's released sum. ``"black_box"``: the first and the last
            model's loss on each canary.
        background: what all other units do: train as they are (``"real"``, the default of
            mislabelled canaries), send nothing (``"silent"``, the default of gradient canaries and
            the worst case that a guarantee has to cover), or push against canaries
            (``"opposed"``), which shows where one unit's presence pushes another out.
        dp_delta: at which both epsilons are stated. None takes that of the federation's budget,
            and 1e-5 where there is none. Well below one over the number of canaries.
        confidence: of the bound.
        counts: numbers of guesses to try, (positive, negative) each; None takes
            :func:`fedjax_secure.privacy.audit.counts_ladder`.
        seed: of everything random.

    Returns:
        An :class:`fedjax_secure.privacy.audit.AuditResult`.

    Raises:
        SpecError: numbers that make no sense, or a guarantee of another adjacency.

    Example:
        >>> import fedjax_secure as fs, optax
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> chain = fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24),
        ...                  fs.privacy.discrete_gaussian(noise_multiplier=1.0))
        >>> simulation = fs.Simulation(model, data, fs.algorithms.fed_sgd(optax.sgd(0.5)), chain)
        >>> result = audit(simulation, rounds=2)
        >>> result.refuted, result.canaries, result.unit
        (False, 31, 'patient')

    Source:
        Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", Algorithm 1;
        crafted gradients: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine
        Learning". The score of a white-box view is the log likelihood ratio of claimed noise.
    """
    if not isinstance(run, Simulation | Federation):
        raise SpecError("audit", need="a simulation or a federation", found=f"{run!r}"[:100],
                        fix="Pass fs.Simulation(...) or fs.Federation(...).")
    spec = run.spec
    background = background or ("silent" if canary == "gradient" else "real")
    _check(spec, rounds, runs, canary, view, background)
    if dp_delta is None:
        budget = getattr(run, "budget", None)
        dp_delta = 1e-5 if budget is None else float(getattr(budget, "plan", budget).dp_delta)
    claimed_epsilon(spec, rounds, dp_delta)  # refuses what has no claim before anything runs
    inside = run.rounds if isinstance(run, Simulation) else run
    aggregation, selection = without_opener(inside.aggregation), inside.selection
    scores, included = [], []
    for number in range(1, runs + 1):
        key = source(seed).key("audit run", round=number)
        planted = _plant(run.data, spec, SeededSource(int.from_bytes(key[:8], "little")), canaries,
                         canary, background, run.model.dim)
        simulation = _planted_simulation(run.model, run.algorithm, aggregation, selection, spec,
                                         planted, int.from_bytes(key[8:16], "little"))
        look = _white_box if view == "white_box" else _black_box
        scores.append(look(simulation, spec, planted, rounds, canary))
        included.append(planted.included)
    stages = ", ".join(stage.name for stage in aggregation.stages)
    sees = ("every round's released sum (white box)" if view == "white_box" else
            "the first and the last model (black box)")
    others = {"real": "all others train as they are", "silent": "all others send nothing",
              "opposed": "others push the other way"}[background]
    return one_run_result(
        np.stack(scores), np.stack(included), spec, rounds=rounds, dp_delta=dp_delta,
        confidence=confidence, counts=counts,
        audited=f"{run.algorithm.name} of {run.model.name} on {run.data.name}, "
        f"selection {selection.name}, chain({stages})",
        attack=f"{canary} canaries, {others}; the auditor sees {sees}")


def _planted_simulation(model: Model, algorithm: Algorithm, aggregation: Aggregation,
                        selection: Selection, spec: Spec, planted: Planted,
                        seed: int) -> Simulation:
    """The federation as it is, but for the canaries."""
    per_record = spec.unit == "record"
    model = planted_model(model, (_RECORD_GAIN if per_record else _CLIENT_GAIN) * _length(spec))
    if per_record:
        selection = _leaving_out(selection, planted.units[~planted.included])
    return Simulation(model, planted.data, _released(algorithm, model, aggregation), aggregation,
                      selection=selection, seed=seed, denominator=spec.denominator)


# -- canaries ------------------------------------------------------------------------------------


def _plant(data: FederatedDataset, spec: Spec, secrets: Source, canaries: int | None,
           canary: str, background: str, dim: int) -> Planted:
    per_record = spec.unit == "record"
    population = len(data.y) if per_record else data.num_clients
    most = min(population, dim) if canary == "gradient" else population
    if canaries is None:
        canaries = min(most, max(population // 2, 1), _MOST_CANARIES)
    whole = isinstance(canaries, int | np.integer) and not isinstance(canaries, bool)
    if not whole or not 1 <= canaries <= most:
        raise SpecError("an audit", need=f"1 to {most} canaries: there are {population} units and "
                        f"{dim} values", found=repr(canaries), fix="Leave canaries out.")
    units = np.arange(canaries) * population // canaries  # evenly over all clients, and public
    included = (host_words(secrets.key("audit coins"), canaries) >> 31).astype(bool)
    places = np.arange(canaries) * dim // canaries
    # what each unit does: a canary's number, or -1
    number = np.full(population, -1)
    number[units] = np.arange(canaries)
    kinds = np.full(population, REAL if background == "real" else SILENT, np.uint8)
    directions = np.zeros(population, np.int64)
    pushed_back = np.zeros(canaries)
    if background == "opposed":
        target = _opponents(data, number, per_record)
        against = np.flatnonzero(target >= 0)
        kinds[against], directions[against] = DOWN, places[target[against]]
        np.add.at(pushed_back, target[against], 1.0)
    if canary == "gradient":
        kinds[units], directions[units] = UP, places
    else:
        kinds[units] = REAL
    quiet = kinds.copy()
    quiet[units[~included]] = SILENT
    if not per_record:
        rows = np.repeat(np.arange(population), data.counts)
        kinds, quiet, directions, number = (part[rows] for part in (
            kinds, quiet, directions, number))
    labels = None
    if canary == "mislabelled":
        labels = np.where(number >= 0, (data.y + 1) % len(data.classes), data.y)
    everyone = marked(data, Marks(kinds, directions), labels)
    # A client that is removed still answers, with zero. A record that is removed is never drawn.
    data = everyone if per_record else marked(data, Marks(quiet, directions), labels)
    return Planted(data, everyone, units, included, places, pushed_back)


def _opponents(data: FederatedDataset, number: np.ndarray, per_record: bool) -> np.ndarray:
    """int [units]: the canary against which each other unit pushes; -1 for canaries and for none.

    A record pushes against the canaries of its own client in turn, a client against any.
    """
    target = np.full(len(number), -1)
    bounds = data.offsets.tolist() if per_record else [0, len(number)]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        here = number[first:last]
        own, others = here[here >= 0], first + np.flatnonzero(here < 0)
        if len(own):
            target[others] = own[np.arange(len(others)) % len(own)]
    return target


def _leaving_out(selection: Selection, absent: np.ndarray) -> Selection:
    """The selection as it draws from a dataset in which some rows are not."""
    if selection.by_group is not None:  # known by their numbers, and drawn by coins of their own
        def among_all(secrets: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
            cohort = selection.draw(secrets, round, candidates, state)
            rows = tuple(drawn[~np.isin(drawn, absent)] for drawn in cohort.indices)
            return cohort._replace(indices=rows)

        return selection._replace(draw=among_all)

    def draw(secrets: Source, round: int, candidates: Candidates, state: Any) -> Cohort:
        offsets = np.asarray(candidates.offsets, np.int64)
        kept = np.delete(np.arange(offsets[-1]), absent)
        fewer = candidates._replace(offsets=np.searchsorted(kept, offsets))
        cohort = selection.draw(secrets, round, fewer, state)
        rows = tuple(kept[drawn].astype(np.int32) for drawn in cohort.indices)
        return cohort._replace(indices=rows)

    return selection._replace(draw=draw)


def _released(algorithm: Algorithm, model: Model, aggregation: Aggregation) -> Algorithm:
    """The same algorithm, whose server state holds the mean that the last round released."""
    width = model.dim if aggregation.num_record_stages else algorithm.work(model, aggregation).width

    def init(model: Model, params: Any) -> Any:
        return algorithm.init(model, params), jnp.zeros(width, jnp.float32)

    def shared(model: Model, params: Any, state: Any, stage_states: Any) -> Any:
        return algorithm.shared(model, params, state[0], stage_states)

    def step(model: Model, params: Any, state: Any, mean: jax.Array) -> tuple[Any, Any]:
        params, inner = algorithm.step(model, params, state[0], mean)
        return params, (inner, mean)

    return algorithm._replace(init=init, shared=shared, step=step, bind=None)


# -- what the auditor sees -----------------------------------------------------------------------


def _white_box(simulation: Simulation, spec: Spec, planted: Planted, rounds: int,
               canary: str) -> np.ndarray:
    """Each canary's evidence from every released sum."""
    length, rate = _length(spec), spec.sampling_rate
    # a gradient that is sent as it is points up; a change of the model goes down the gradient
    sign = 1.0 if simulation.algorithm.one_step else -1.0
    slopes = _slopes(simulation, planted) if canary == "mislabelled" else None
    state, scores = simulation.init(), np.zeros(len(planted.units))
    while state.round < rounds:
        before = state
        state = _next(simulation, state)
        released = np.asarray(state.opt_state[1][:simulation.model.dim], np.float64)
        released = sign * spec.denominator * released
        if slopes is None:
            along = released[planted.places] + rate * length * planted.pushed_back
            scores += np.asarray(log_likelihood_ratio(spec, along, length))
        else:
            scores += slopes(before.params, released)
    return scores


def _black_box(simulation: Simulation, spec: Spec, planted: Planted, rounds: int,
               canary: str) -> np.ndarray:
    """By how much each canary's loss fell from the first model to the last."""
    losses = _losses(simulation, planted, spec.unit == "record")
    state = simulation.init()
    first = losses(state.params)
    while state.round < rounds:
        state = _next(simulation, state)
    return first - losses(state.params)


def _next(simulation: Simulation, state: RoundState) -> RoundState:
    return next(iter(simulation.run(state, rounds=state.round + 1)))[0]


def _losses(simulation: Simulation, planted: Planted, per_record: bool) -> Callable[[Any], Any]:
    """``params -> float64 [canaries]``: the mean loss on each canary, were it in."""
    model, (x, y, owner) = simulation.model, _canary_records(planted, per_record)
    losses = jax.jit(model.loss)
    count = np.maximum(np.bincount(owner, minlength=len(planted.units)), 1)

    def mean(params: Any) -> np.ndarray:
        found = np.asarray(losses(params, x, y), np.float64)
        return np.bincount(owner, found, minlength=len(planted.units)) / count

    return mean


def _slopes(simulation: Simulation, planted: Planted) -> Callable[[Any, np.ndarray], np.ndarray]:
    """``(params, released) -> float64 [canaries]``: the released sum along each one's gradient."""
    model, per_record = simulation.model, simulation.spec.unit == "record"
    x, y, owner = _canary_records(planted, per_record)

    @jax.jit
    def along(params: Any, released: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(record: Any) -> tuple[jax.Array, jax.Array]:
            loss = lambda p: model.loss(p, record[0][None], record[1][None])[0]  # noqa: E731
            gradient = model.ravel(jax.grad(loss)(params))
            return jnp.vdot(gradient, released), jnp.vdot(gradient, gradient)
        return jax.lax.map(one, (x, y))

    def slopes(params: Any, released: np.ndarray) -> np.ndarray:
        dot, square = (np.asarray(part, np.float64)
                       for part in along(params, jnp.asarray(released, jnp.float32)))
        projected = dot / np.maximum(np.sqrt(square), 1e-30)
        count = np.maximum(np.bincount(owner, minlength=len(planted.units)), 1)
        return np.bincount(owner, projected, minlength=len(planted.units)) / count

    return slopes


def _canary_records(planted: Planted, per_record: bool) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """The canaries' records as they are when they are in, and whose each is."""
    data = planted.everyone
    rows = (planted.units if per_record else
            np.concatenate([data.rows(int(client)) for client in planted.units]))
    owner = (np.arange(len(rows)) if per_record else
             np.repeat(np.arange(len(planted.units)), data.counts[planted.units]))
    return jnp.asarray(data.x[rows]), jnp.asarray(data.y[rows]), owner


def _length(spec: Spec) -> float:
    """A canary's norm after clipping, in model units."""
    return 1.0 if spec.unit_l2 is None else spec.unit_l2 / spec.scale


def _check(spec: Spec, rounds: int, runs: int, canary: str, view: str,
           background: str) -> None:
    require_auditable("an audit", spec)
    whole = all(isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1
                for count in (rounds, runs))
    checks = (
        (whole, "rounds and runs, whole numbers of 1 or more", f"{rounds=}, {runs=}",
         "Use as many rounds as the federation runs."),
        (canary in ("gradient", "mislabelled"), 'canary "gradient" or "mislabelled"', repr(canary),
         "Leave it out."),
        (view in ("white_box", "black_box"), 'view "white_box" or "black_box"', repr(view),
         "Leave it out."),
        (background in ("real", "silent", "opposed"), 'background "real", "silent" or "opposed"',
         repr(background), "Leave it out."),
    )
    for holds, need, found, fix in checks:
        if not holds:
            raise SpecError("an audit", need=need, found=found, fix=fix)
