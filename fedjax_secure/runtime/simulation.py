"""Simulating federated learning at full speed: no messages, no files, no ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..algorithms import Algorithm
from ..core import Aggregation, RoundState, Spec, SpecError, chain, source
from ..core.opening import AT_OPENING, Releases
from ..core.randomness import device_keys
from ..data import FederatedDataset
from ..models import Model
from ..selection import Selection, all_records
from ..training import Evaluation, evaluate
from .rounds import Rounds, check_parts, denominator_of
from .terms import check_private


class RoundReport(NamedTuple):
    """What one simulated round came to.

    Attributes:
        round: its number, from 1.
        clients: how many took part.
        steps: training steps of all clients together.
        loss: mean training loss over the clients that took part, weighted by their steps, of each
            batch before its step; NaN where the algorithm does not report it, where nobody took a
            step, and where one client's is NaN (its update may still be finite).
        seconds: wall time.
        simulated_seconds: how long the round would have taken, where the selection simulates time.
        evaluation: held-out figures, in the rounds that were asked to have them.
        stages: figures of the chain's stages, by ``stage/name``.
    """

    round: int
    clients: int
    steps: int
    loss: float
    seconds: float
    simulated_seconds: float | None = None
    evaluation: Evaluation | None = None
    stages: Mapping[str, float] = MappingProxyType({})


class Simulation:
    """Many clients trained in one process, for research: as fast as training without federation.

    It takes the same models, data, algorithms, selections and chains as `Federation`, and leaves
    out what protects a real one: messages, signatures, keys, openers, budgets, journals. Values
    are summed in the clear inside the compiled round, in memory that does not grow with the number
    of clients. A chain's clipping, rounding and noise are computed as in a federation; encryption
    is not, because it changes nothing in what is learned.

    Guarantees:
        The same arguments give the same model on the same machine. It protects nobody, and claims
        no epsilon: whoever knows the seed can remove every noise.

    Args:
        model: from ``fs.models``.
        data: from ``fs.data``.
        algorithm: from ``fs.algorithms``.
        aggregation: the chain around the sum; None sums floats.
        selection: who takes part; None takes every record of every client.
        seed: of everything random.
        denominator: the public constant the sum is divided by; None takes the expected number of
            clients, or of records for algorithms that send one gradient for each.
        evaluate_every: every so many rounds, the report has held-out figures; 0 for never.
        chunk_clients: for algorithms whose clients keep a state: how many are in memory at once.
        layout, num_lanes, devices: as for `fedjax_secure.training.Engine`.

    Raises:
        SpecError: the parts do not fit together; raised before anything is traced.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> simulation = fs.Simulation(model, data, fs.algorithms.fed_avg(0.1))
        >>> state = simulation.init()
        >>> for state, report in simulation.run(state, rounds=2):
        ...     print(report.round, report.clients, report.steps)
        1 4 25
        2 4 25
        >>> round(float(simulation.evaluate(state).accuracy.mean()), 1) > 0.5
        True
    """

    def __init__(
        self,
        model: Model,
        data: FederatedDataset,
        algorithm: Algorithm,
        aggregation: Aggregation | None = None,
        *,
        selection: Selection | None = None,
        seed: int = 0,
        denominator: float | None = None,
        evaluate_every: int = 0,
        chunk_clients: int | None = None,
        layout: Literal["ragged", "lanes"] | None = None,
        num_lanes: int = 16,
        devices: Sequence[Any] | None = None,
    ):
        aggregation = chain() if aggregation is None else aggregation
        selection = all_records() if selection is None else selection
        check_parts("the simulation", model, data, algorithm, aggregation, selection)
        if not isinstance(evaluate_every, int) or evaluate_every < 0:
            raise SpecError("the simulation", need="evaluate_every, a whole number of 0 or more",
                            found=repr(evaluate_every), fix="0 never evaluates.")
        hidden = [stage.name for stage in aggregation.stages if stage.setup is not None]
        if hidden:
            raise SpecError(
                "a simulation", need="a chain without encryption, which changes nothing in what "
                "is learned", found=f"stage `{hidden[0]}`",
                fix="Leave it out, or run it for real in fs.Federation(...).")
        denominator = denominator_of(algorithm, selection, data, denominator)
        algorithm = algorithm.for_federation(data.num_clients, denominator)
        self.model, self.data, self.algorithm = model, data, algorithm
        self.source, self.evaluate_every = source(seed), evaluate_every
        self.rounds = Rounds(
            model, data, algorithm, aggregation, selection, self.source,
            chunk_clients=chunk_clients,
            engine={"layout": layout, "num_lanes": num_lanes, "devices": devices})
        spec = Spec(
            dim=self.rounds.dim, num_clients=selection.most_clients(data.num_clients),
            num_records=len(data.y),
            client_records=int(np.diff(data.offsets).max()),
            denominator=denominator,
            sampling=selection.sampling, mode=self.source.mode, unit_name=data.unit,
            client_name=data.client_unit, aggregator="semi-honest")
        self._states, self.spec = aggregation.init(spec)
        if self.spec.mechanism is not None:
            drawn = selection.sampling
            check_private(self.rounds, secret=(
                drawn is not None and drawn.kind == "poisson" and drawn.unit == "client"))
        self._keyed = bool(aggregation.stages) or algorithm.one_step
        self._traces: Counter[str] = Counter()
        self._step = self._compiled("step", self.rounds.server_step)
        self._release = (None if aggregation.release is None else
                         self._compiled("release", aggregation.release))
        self._releases: Releases | None = None
        if self._release is not None and aggregation.memory is not None:
            self._releases = Releases(
                partial(self._release, self._states), partial(aggregation.memory, self._states),
                self.source)
        self._last: tuple[int, Any] | None = None

    def init(self, key: jax.Array | None = None) -> RoundState:
        """A fresh model, and clients that have kept nothing.

        Args:
            key: a JAX key for the model's first parameters; None takes key 0.
        """
        params = self.model.init(jax.random.key(0) if key is None else key)
        self.rounds.open_states(params)
        self._last = 0, params
        return self.rounds.fresh(params, self._states)

    def run(self, state: RoundState, *, rounds: int) -> Iterator[tuple[RoundState, RoundReport]]:
        """Run until ``rounds`` rounds are finished, one at a time.

        Args:
            state: from :meth:`init`, or what the last round returned.
            rounds: the number of the last round.

        Yields:
            The new state, and the round's report.

        Raises:
            SpecError: not a number of rounds, or a state that is not this simulation's last while
                clients keep states of their own.
            OpeningError: fewer clients answer than the noise's shares need; run it again, and the
                round draws its clients anew.
            UpdateError: a client's update is not finite, or the model after the server's step:
                names the round and the clients. The state that the caller holds is the last good
                one, and what clients keep is as it was then; where they keep nothing, another
                simulation, with a lower learning rate for example, can go on from it.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise SpecError("run", need="a number of rounds, at least 1", found=repr(rounds),
                            fix="Give rounds=20, for example.")
        return self._run(state, rounds)

    def _run(self, state: RoundState, rounds: int) -> Iterator[tuple[RoundState, RoundReport]]:
        while state.round < rounds:
            state, report = self._round(state)
            yield state, report

    def _round(self, state: RoundState) -> tuple[RoundState, RoundReport]:
        started, number = time.perf_counter(), int(state.round) + 1
        if self.rounds.work.state_size and not self._is_last(state):
            last = 0 if self._last is None else self._last[0]
            raise SpecError("run", need=f"the state after round {last}, of which the clients' own "
                            "states are", found=f"that after {state.round}"
                            if last != state.round else "another run's",
                            fix="Begin with init(), and pass the last state that run() gave.")
        rounds = self.rounds
        if rounds.states is not None:
            rounds.states.begin(number)
        cohort = rounds.draw(number, state)
        if self.spec.mechanism is not None and self.spec.mechanism.trust == "distributed":
            rounds.require_answers(cohort, self.spec)
        states = rounds.aggregation.with_carried(self._states, state.stage_states)
        total, metrics, steps = rounds.total(cohort, state, self._keys(cohort), states)
        if self._releases is not None:
            total = self._releases(number, total)
        elif self._release is not None:
            key = device_keys([self.source.key(AT_OPENING, round=number)])[0]
            total = self._release(states, key, total)
        # Where the sum lies, as the results will: else the second round compiles the step anew.
        first = jax.tree.leaves(total)[0]
        start = jax.device_put((state.params, state.opt_state, states),
                               first.sharding if isinstance(first, jax.Array) else None)
        params, server_state, carried, figures = self._step(*start, total)
        rounds.require_finite_model(number, params, (server_state, carried))
        if rounds.states is not None:
            rounds.states.commit(number)
        self._last = number, params
        selection = rounds.observe(state, cohort, metrics, steps)
        state = RoundState(params, server_state, carried, number, selection)
        jax.block_until_ready(params)
        evaluated = self.evaluate_every and number % self.evaluate_every == 0
        evaluation = self.evaluate(state) if evaluated else None
        return state, RoundReport(
            number, len(cohort.taking_part), int(steps.sum()),
            _weighted(metrics.get("loss"), steps), time.perf_counter() - started,
            cohort.seconds, evaluation, {name: float(value) for name, value in figures.items()})

    def _is_last(self, state: RoundState) -> bool:
        """Whether a state is the one that the clients' own states belong to."""
        if self._last is None or self._last[0] != state.round:
            return False
        ours, theirs = jax.tree.leaves(self._last[1]), jax.tree.leaves(state.params)
        return len(ours) == len(theirs) and all(
            a is b or np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def _keys(self, cohort) -> np.ndarray:
        keys = np.zeros((self.data.num_clients, 8), np.uint32)
        if self._keyed:
            alive = cohort.taking_part
            if len(alive):
                keys[alive] = device_keys([
                    self.source.key("client", round=cohort.round, client=cohort.clients[c])
                    for c in alive])
        return keys

    def evaluate(self, state: RoundState) -> Evaluation:
        """Held-out figures of the global model, per client."""
        return evaluate(self.model, state.params, self.data)

    def personal(self, state: RoundState) -> Callable[[Sequence[int]], np.ndarray]:
        """Each client's own model, as `fs.training.evaluate` takes them.

        Returns:
            A function from client numbers to their models' parameters, ``[numbers, dim] float32``.

        Raises:
            SpecError: the algorithm gives everyone the same model.
        """
        return self.rounds.personal(state)

    @property
    def traces(self) -> dict[str, int]:
        """How often each program was traced: once, however many rounds there were."""
        return {**self.rounds.engine.traces, **self._traces}

    def _compiled(self, name: str, function: Callable) -> Callable:
        def counted(*arguments):
            self._traces[name] += 1
            return function(*arguments)

        return jax.jit(counted)

    def __repr__(self) -> str:
        return f"Simulation({self.model.name}, {self.data.name}, {self.algorithm.name})"


def _weighted(losses: np.ndarray | None, steps: np.ndarray) -> float:
    """The mean loss over executed steps; NaN where there is none."""
    if losses is None:
        return float("nan")
    known = steps > 0
    return float(np.average(losses[known], weights=steps[known])) if known.any() else float("nan")
