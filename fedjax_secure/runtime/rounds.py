"""The work of a round, shared by simulations and federations: who takes part, and what they do."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import Algorithm
from ..core import (
    Aggregation,
    Cohort,
    OpeningError,
    RoundState,
    Source,
    Spec,
    SpecError,
    UpdateError,
)
from ..core.finite import all_finite
from ..core.randomness import Mode, host_shuffles
from ..data import FederatedDataset
from ..models import Model
from ..selection import Candidates, Observed, Selection
from ..training import Batch, ClientValues, Done, Engine, Rows, Sink, Total, local_loss
from .storage import ClientStates

_CHUNK_VALUES = 1 << 23  # values of a chunk that are in memory at once, unless asked otherwise


def chunk_size(chunk_clients: int | None, num_clients: int, dim: int) -> int:
    """How many clients' values are in memory at once.

    Args:
        chunk_clients: what the user asks for; None takes as many as hold 2^23 values.
        num_clients: clients of the federation.
        dim: values of an update.

    Raises:
        SpecError: not a whole number of 1 or more.

    Example:
        >>> chunk_size(None, 1000, 200_000), chunk_size(None, 4, 31), chunk_size(10, 4, 31)
        (41, 4, 4)
    """
    if chunk_clients is None:
        chunk_clients = max(1, _CHUNK_VALUES // dim)
    whole = isinstance(chunk_clients, Integral) and not isinstance(chunk_clients, bool)
    if not whole or chunk_clients < 1:
        raise SpecError("the federation", need="chunk_clients, a whole number of 1 or more",
                        found=repr(chunk_clients), fix="Leave it out, or give for example 50.")
    return min(int(chunk_clients), num_clients)


def check_parts(where: str, model: Any, data: Any, algorithm: Any, aggregation: Any,
                selection: Any) -> None:
    """Refuse parts in another order, or functions that make them in their place.

    Raises:
        SpecError: a part that is something else.
    """
    for name, part, kind, example in (
            ("data", data, FederatedDataset, "fs.data.heart_disease()"),
            ("algorithm", algorithm, Algorithm, "fs.algorithms.fed_avg(0.1)"),
            ("aggregation", aggregation, Aggregation, "fs.chain(...)"),
            ("selection", selection, Selection, "fs.selection.uniform_clients(10)")):
        if not isinstance(part, kind):
            swapped = name == "data" and isinstance(model, FederatedDataset)
            raise SpecError(where, need=f"{name}, as {example} gives", found=f"{part!r}"[:100],
                            fix="Give the model first, and then the data." if swapped else
                            "Call the function that makes it.")
    for kind, units, count, bounds in (
            ("record", "training records", len(data.y), algorithm.record_bounds),
            ("client", "clients", data.num_clients, algorithm.client_bounds)):
        if bounds is not None and len(bounds) != count:
            raise SpecError(where, need=f"a bound for each of {count} {units}",
                            found=f"{len(bounds)} {kind}_bounds",
                            fix=f"Assign groups to the {units} of this dataset.")


def denominator_of(algorithm: Algorithm, selection: Selection, data: FederatedDataset,
                   asked: float | None) -> float:
    """The public constant by which a round's sum is divided.

    The expected number of records where clients send one gradient for each record, else the
    expected number of clients.
    """
    if asked is not None:
        # numpy's numbers are no JSON; what is no number at all, Spec refuses
        return float(asked) if isinstance(asked, Real) else asked
    clients = selection.expected_clients(data.num_clients)
    if not algorithm.one_step:
        return float(clients)
    by_record = selection.sampling is not None and selection.sampling.unit == "record"
    rate = selection.sampling.rate if by_record and selection.sampling else 1.0
    if by_record and selection.by_group is not None:
        rate = selection.by_group.mean_rate
    if by_record and selection.answering is not None:  # records of who is there, and answers
        return float(rate * np.dot(data.counts, selection.answering(data.num_clients)))
    return rate * len(data.y) * clients / data.num_clients


class Rounds:
    """Draws cohorts and runs their work for one model, dataset, algorithm and selection.

    Args:
        model, data, algorithm, aggregation, selection: as for a federation.
        source: where keys come from.
        chunk_clients: how many clients' values are in memory at once; see `chunk_size`.
        engine: arguments of `Engine` besides model, dataset and batch size.
    """

    def __init__(
        self,
        model: Model,
        data: FederatedDataset,
        algorithm: Algorithm,
        aggregation: Aggregation,
        selection: Selection,
        source: Source,
        *,
        chunk_clients: int | None = None,
        engine: dict[str, Any] | None = None,
    ):
        self.model, self.data, self.algorithm = model, data, algorithm
        self.aggregation, self.selection, self.source = aggregation, selection, source
        if not algorithm.one_step and any(stage.record_clip for stage in aggregation.stages):
            raise SpecError(
                "clip(method='ghost')", need="an algorithm of one step a round at the global model",
                found=f"{algorithm.name}, whose clients take several steps",
                fix="Use fs.algorithms.fed_sgd(...), or clip(unit='client').")
        self.work = algorithm.work(model, aggregation)
        widest = max(self.work.width, self.work.state_size)
        self.room = chunk_size(chunk_clients, data.num_clients, widest)
        self.engine = Engine(model, data, batch_size=algorithm.batch_size, **(engine or {}))
        self.states: ClientStates | None = None
        self._loss = local_loss(model)
        self._all_finite = jax.jit(all_finite)
        self._nobody = np.zeros(0, np.int32)
        self._refused: Counter[int] = Counter()

    @property
    def dim(self) -> int:
        """How many values the chain takes: of one record's gradient, or of a client's value."""
        return self.model.dim if self.aggregation.num_record_stages else self.work.width

    def open_states(self, params: Any, folder: Path | None = None) -> None:
        """Make or find the clients' states; ``params`` is the first model.

        Without a folder they are kept as long as this object lives.
        """
        if self.work.state_size == 0:
            return
        assert self.algorithm.client_state is not None
        initial = np.asarray(self.algorithm.client_state(self.model, params), np.float32)
        self.states = ClientStates(self.data.num_clients, initial, folder)

    # -- who takes part ----------------------------------------------------------------------

    def draw(self, round: int, state: RoundState) -> Cohort:
        """The round's cohort, with an order of its records for each pass of the work.

        Raises:
            SpecError: the selection returned something that is no cohort of this dataset.
        """

        def losses(clients: Sequence[int]) -> np.ndarray:
            return self.losses(state.params, clients)

        candidates = Candidates(self.data.clients, self.data.offsets,
                                losses if self.selection.reads_data else None)
        source = _Again(self.source, self._refused[round])
        cohort = self.selection.draw(source, round, candidates, state.selection)
        clients = self.data.num_clients
        if len(cohort.indices) != clients or np.shape(cohort.alive) != (clients,):
            raise SpecError(
                f"selection `{self.selection.name}`", need=f"indices and alive for {clients} "
                "clients", found=f"{len(cohort.indices)} and {list(np.shape(cohort.alive))}",
                fix="Number clients as the dataset does.")
        if cohort.staleness is not None and not self.algorithm.stale_versions:
            raise SpecError(
                f"selection `{self.selection.name}`, whose clients start from older models",
                need="an asynchronous algorithm", found=self.algorithm.name,
                fix="Use fs.algorithms.fed_buff(...) or fed_async(...).")
        return self._with_passes(cohort)

    def require_answers(self, cohort: Cohort, spec: Spec) -> None:
        """Refuses a round in which fewer clients answer than its sum needs, before anybody works.

        Whoever runs the round again draws its cohort anew, in a simulation too.

        Args:
            cohort: who answers.
            spec: of the chain.

        Raises:
            OpeningError: too few answer; says how much noise theirs would have been.
        """
        answering, fewest = len(cohort.taking_part), spec.min_clients
        if answering >= fewest:
            return
        self._refused[cohort.round] += 1
        found, mechanism = str(answering), spec.mechanism
        if mechanism is not None and mechanism.trust == "distributed":
            accounted = mechanism.share_stddev * math.sqrt(mechanism.num_shares)
            left = spec.stddev_in_sum(answering) / accounted
            if left < 1.0:
                found += f", whose noise has {left:.0%} of the standard deviation that is accounted"
        coins = "" if self.selection.hides_drawn else (
            "Where coins decide who takes part, let all send their noise: poisson_clients(..., "
            "everyone_answers=True). ")
        lost = len(cohort.clients) - answering
        raise OpeningError(
            f"round {cohort.round}", need=f"at least {fewest} clients that take part", found=found,
            fix=f"Wait for more clients, and run the round again. {coins}Or count on fewer shares, "
            f"in a new run: discrete_gaussian(..., missing_shares={lost}) allows for as many as "
            "were missing here.")

    def _with_passes(self, cohort: Cohort) -> Cohort:
        """Further orders of the same records, where the work goes through them several times."""
        passes = self.work.passes
        if passes == 1:
            return cohort
        clients = cohort.taking_part
        # Also where nobody takes part, the arrays say how many passes there are.
        indices = [np.zeros((passes, 0), np.int32)] * len(cohort.indices)
        counts = np.array([len(cohort.indices[c]) for c in clients], np.int64)
        if len(clients):
            first = np.concatenate([cohort.indices[c] for c in clients])
            key = self.source.key("orders", round=cohort.round)
            places = host_shuffles(key, counts, passes=passes - 1)
            places += np.repeat(np.cumsum(counts) - counts, counts)
            orders = np.concatenate([first[None], first[places]])
            for c, rows in zip(clients, np.split(orders, np.cumsum(counts)[:-1], axis=1),
                               strict=True):
                indices[c] = rows
        return cohort._replace(indices=tuple(indices))

    def losses(self, params: Any, clients: Sequence[int]) -> np.ndarray:
        """The mean loss of a model on some clients' training records, float64 [clients]."""
        indices = [self._nobody] * self.data.num_clients
        for c in clients:
            indices[c] = self.data.rows(c)
        found = []
        for first in range(0, len(clients), self.room):
            chunk = clients[first:first + self.room]
            out = self.engine.train(self._loss, {"params": params}, indices,
                                    into=Rows.of(chunk, self.room))
            found.append(np.asarray(out.values)[:len(chunk), 0])
        return np.concatenate(found).astype(np.float64) if found else np.zeros(0)

    # -- what they do ------------------------------------------------------------------------

    def chunks(self, cohort: Cohort) -> Iterator[np.ndarray]:
        """The clients that take part, as many at a time as there is room for."""
        alive = cohort.taking_part
        for first in range(0, len(alive), self.room):
            yield alive[first:first + self.room]

    def train(self, cohort: Cohort, state: RoundState, keys: np.ndarray, stage_states: Any,
              into: Sink) -> ClientValues:
        """The work of the sink's clients; their new states are staged.

        Raises:
            UpdateError: a client's value is not finite; names the round and the clients.
        """
        algorithm, clients = self.algorithm, np.asarray(into.clients, np.int64)
        shared = algorithm.shared(self.model, state.params, state.opt_state, stage_states)
        kept = None if self.states is None else self.states.read(clients)
        out = self.engine.train(
            self.work, shared, cohort.indices, own=algorithm.own(cohort, keys),
            share=cohort.share, states=kept, distinct=algorithm.one_step, into=into)
        nonfinite = np.array(out.nonfinite)
        if self.states is not None:
            nonfinite[clients] += ~np.isfinite(out.states).all(axis=1)
        self._require_finite(cohort, nonfinite)
        if self.states is not None:
            self.states.stage(cohort.round, clients, out.states)
        return out

    def total(self, cohort: Cohort, state: RoundState, keys: np.ndarray,
              stage_states: Any) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
        """The payloads' sum over the whole cohort, in memory that does not grow with it.

        Returns:
            The sum; each client's metrics and executed steps.

        Raises:
            UpdateError: a client's value is not finite, or their sum.
        """
        add = self.aggregation.add if self.aggregation.stages else None
        contribution = self.aggregation.contribution if add else None
        chunks = [cohort.taking_part] if self.states is None else list(self.chunks(cohort))
        total, metrics, steps = None, {}, np.zeros(self.data.num_clients, np.int64)
        for chunk in chunks or [cohort.taking_part]:
            into = Total(tuple(chunk.tolist()), keys, stage_states, contribution, add,
                         self.room if self.states is not None else None)
            out = self.train(cohort, state, keys, stage_states, into)
            if total is None:
                total = out.values
            else:
                total = add(stage_states, total, out.values) if add else total + out.values
            steps += np.asarray(out.steps)
            for name, values in out.metrics.items():
                found = metrics.setdefault(name, np.full(len(steps), np.nan))
                found[chunk] = np.asarray(values)[chunk]
        if add is None and not bool(self._all_finite(total)):
            self._name_nonfinite(cohort, state, keys, stage_states)
        return total, metrics, steps

    def _name_nonfinite(self, cohort: Cohort, state: RoundState, keys: np.ndarray,
                        stage_states: Any) -> None:
        """Works the round again, client by client, to say whose value is not finite."""
        for chunk in self.chunks(cohort):
            self.train(cohort, state, keys, stage_states, Rows.of(chunk, self.room))
        raise UpdateError(
            f"round {cohort.round}", need="a finite sum of the clients' values",
            found="finite values whose sum is not", fix="Lower the learning rate. The state "
            f"after round {cohort.round - 1} is unharmed.")

    def _require_finite(self, cohort: Cohort, nonfinite: np.ndarray) -> None:
        bad = np.flatnonzero(nonfinite)
        if not len(bad):
            return
        named = ", ".join(cohort.clients[c] for c in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UpdateError(
            f"round {cohort.round}", need="finite values from every client",
            found=f"NaN or infinity from {named}{more}",
            fix="Lower the learning rate, or check these clients' data and scaling. The state "
                f"after round {cohort.round - 1} is unharmed.")

    def require_finite_model(self, round: int, params: Any, server_state: Any) -> None:
        """Refuses what a server's step made of finite values, before it becomes a state.

        Raises:
            UpdateError: the new model or server state is not finite.
        """
        if not bool(self._all_finite((params, server_state))):
            raise UpdateError(
                f"round {round}", need="a finite model after the server's step",
                found="NaN or infinity, though every client's value was finite",
                fix="Lower the server's learning rate, or that of all clients. The state after "
                f"round {round - 1} is unharmed.")

    def observe(self, state: RoundState, cohort: Cohort, metrics: dict[str, np.ndarray],
                steps: np.ndarray) -> Any:
        """The selection's state after a round."""
        losses = metrics.get("loss", np.full(self.data.num_clients, np.nan))
        losses = np.where(cohort.alive, losses, np.nan)
        return self.selection.observe(state.selection, cohort, Observed(losses, steps))

    def fresh(self, params: Any, stage_states: Any) -> RoundState:
        """The state before the first round."""
        candidates = Candidates(self.data.clients, self.data.offsets)
        return RoundState(params, self.algorithm.init(self.model, params),
                          self.aggregation.carried(stage_states), 0,
                          self.selection.init(candidates))

    def server_step(self, params: Any, server_state: Any, stage_states: Any,
                    total: jax.Array) -> tuple[Any, Any, Any, dict[str, jax.Array]]:
        """The sum decoded by the chain, and the algorithm's step with it; pure and jittable.

        Returns:
            The model, the server's state, what the stages carry on, and the stages' metrics.
        """
        mean, after, metrics = self.aggregation.decode(stage_states, total)
        params, server_state = self.algorithm.step(self.model, params, server_state, mean)
        return params, server_state, self.aggregation.carried(after), metrics

    # -- what the run is ---------------------------------------------------------------------

    def server_digest(self, states: Any, spec: Spec) -> str:
        """SHA-256 of the server's step as a program, so that other settings are another run."""
        kind = jnp.float32 if spec.modulus is None else jnp.uint32
        total = jax.ShapeDtypeStruct((spec.dim,), kind)
        return _digest(self.server_step, *self._shapes(), states, total)

    def work_digest(self, states: Any) -> str:
        """The same of one client's work: its optimiser and the model's functions have no text."""
        work, algorithm, data = self.work, self.algorithm, self.data
        nobody = Cohort(1, data.clients, (self._nobody,) * data.num_clients,
                        np.zeros(data.num_clients, bool))
        own = jax.eval_shape(
            lambda numbers: jax.tree.map(lambda part: part[0], numbers),
            algorithm.own(nobody, np.zeros((data.num_clients, 8), np.uint32)))
        size = work.batch_size or algorithm.batch_size
        number = jax.ShapeDtypeStruct((), jnp.int32)
        batch = Batch(
            jax.ShapeDtypeStruct((size, data.x.shape[1]), data.x.dtype),
            jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((size,), bool),
            number, number, jax.ShapeDtypeStruct((size,), jnp.int32))
        done = Done(number, (number,) * len(work.phases))
        kept = jax.ShapeDtypeStruct((work.state_size,), jnp.float32)

        def one(params, server_state, states, own, kept, batch, done):
            shared = algorithm.shared(self.model, params, server_state, states)
            carry = work.start(shared, own, kept)
            for phase in work.phases:
                carry = phase.step(shared, own, carry, batch)
            return tuple(work.finish(shared, own, kept, carry, done))

        return _digest(one, *self._shapes(), states, own, kept, batch, done)

    def require_storable(self) -> None:
        """Refuses a server whose state cannot be kept on disk.

        Raises:
            SpecError: JAX's typed random keys, as optax.add_noise keeps one.
        """
        for leaf in jax.tree.leaves(self._shapes()):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise SpecError(
                    "a federation", need="a server whose state is plain arrays, to be kept on disk",
                    found="a random key (optax.add_noise keeps one)",
                    fix="Use another server optimiser, or fs.Simulation(...).")

    def _shapes(self) -> tuple[Any, Any]:
        """Of the model's parameters, and of the server's state."""
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        return params, jax.eval_shape(lambda p: self.algorithm.init(self.model, p), params)

    def personal(self, state: RoundState) -> Callable[[Sequence[int]], np.ndarray]:
        """Each client's own model, in chunks: ``client numbers -> [numbers, dim] float32``.

        Raises:
            SpecError: the algorithm gives everyone the same model.
        """
        if self.algorithm.personal is None:
            raise SpecError(
                "a client's own model", need="an algorithm that makes one",
                found=self.algorithm.name,
                fix="Use fs.algorithms.ditto(...) or apfl(...), or fs.algorithms.fine_tune(model, "
                "state.params, data, learning_rate=...).")
        personal, population = self.algorithm.personal, self.data.num_clients
        one = jax.jit(jax.vmap(
            lambda params, row: self.model.ravel(personal(self.model, params, row)),
            in_axes=(None, 0)))

        def models(clients: Sequence[int]) -> np.ndarray:
            numbers = np.asarray(clients).reshape(-1)
            known = not numbers.size or (np.issubdtype(numbers.dtype, np.integer) and
                                         0 <= numbers.min() <= numbers.max() < population)
            if not known:
                raise SpecError("personal models", need=f"client numbers from 0 to "
                                f"{population - 1}", found=f"{numbers.tolist()[:10]}",
                                fix="Number clients as the dataset does.")
            if not self.work.state_size:
                rows = np.zeros((len(numbers), 0), np.float32)
            elif self.states is None:
                raise SpecError("personal models", need="what its own clients keep",
                                found="none: the state is of another simulation",
                                fix="Ask the simulation that ran the rounds.")
            else:
                rows = self.states.read(numbers)
            return np.asarray(one(state.params, jnp.asarray(rows)))

        return models

    def fewest_clients(self, most_clients: int) -> int:
        """How many clients a sum needs, where neither noise nor the user says so."""
        expected = self.selection.expected_clients(self.data.num_clients)
        if expected == most_clients:
            return most_clients
        # A random number of clients: at least half of those expected, so that rounds go on.
        return max(1, int(expected / 2))


class _Again:
    """A run's source in a round that was refused some times: a seed's draws are others then."""

    def __init__(self, source: Source, times: int):
        self.mode: Mode = source.mode
        self._source, self._times = source, times

    def key(self, purpose: str, *, round: int = 0, client: str = "") -> bytes:
        """A key of its own for each time."""
        purpose = f"{purpose}, again {self._times}" if self._times else purpose
        return self._source.key(purpose, round=round, client=client)

    def __repr__(self) -> str:
        return repr(self._source)


def _digest(function: Callable[..., Any], *arguments: Any) -> str:
    """SHA-256 of a function as a program for arguments of some shapes."""
    program = jax.make_jaxpr(function)(*arguments)
    hasher = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr)).encode())
    for constant in program.consts:
        hasher.update(np.ascontiguousarray(constant).tobytes())
    return hasher.hexdigest()
