"""What the engine works with: models, records, one client's work, and where values go.

Models and datasets are protocols: any object with these attributes will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Params = Any


class TrainableModel(Protocol):
    """A classifier as pure functions; `fedjax_secure.models.Model` is one.

    ``ravel`` puts the parameters' leaves one after the other, in the order of ``jax.tree.leaves``,
    each in C order.
    """

    @property
    def name(self) -> str: ...
    @property
    def num_features(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def dim(self) -> int: ...
    def init(self, key: jax.Array) -> Params: ...
    def apply(self, params: Params, x: jax.Array) -> jax.Array: ...
    def loss(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array: ...
    def probabilities(self, logits: jax.Array) -> jax.Array: ...
    def ravel(self, params: Params) -> jax.Array: ...
    def unravel(self, flat: jax.Array) -> Params: ...


class ClientRecords(Protocol):
    """Records contiguous by client; `fedjax_secure.data.FederatedDataset` is one."""

    @property
    def clients(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def x(self) -> np.ndarray: ...
    @property
    def y(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def test_x(self) -> np.ndarray: ...
    @property
    def test_y(self) -> np.ndarray: ...
    @property
    def test_offsets(self) -> np.ndarray: ...
    def pooled(self) -> ClientRecords: ...


# -- one client's work -----------------------------------------------------------------------------


class Batch(NamedTuple):
    """Some records of one client, as a step of its work sees them.

    The last batch of a pass may have unused places: ``valid`` is False there, and ``x`` and ``y``
    repeat the batch's first record, so that a masked loss stays finite.

    Attributes:
        x: ``[batch_size, features]``, in the dataset's dtype.
        y: ``[batch_size] int32``.
        valid: ``[batch_size] bool``.
        first: int32, the place of the batch's first record in the client's draw.
        number: int32, the number of this step within its phase.
        rows: ``[batch_size] int32``, the records' row numbers in the dataset.
    """

    x: jax.Array
    y: jax.Array
    valid: jax.Array
    first: jax.Array
    number: jax.Array
    rows: jax.Array


class Phase(NamedTuple):
    """Steps over a client's records, batch by batch.

    Attributes:
        step: ``(shared, own, carry, batch) -> carry``, pure and jittable.
        passes: how many passes over the client's records: pass p follows the draw's order p.
        partial: whether a client that completes only a share of its work (``share`` of
            `Engine.train`) shortens this phase; False for a look at all of its records.
    """

    step: Callable[[Any, Any, Any, Batch], Any]
    passes: int = 1
    partial: bool = True


class Done(NamedTuple):
    """What a client has done when its work is finished.

    Attributes:
        count: int32, the records of its draw.
        steps: int32 for each phase, the executed steps.
    """

    count: jax.Array
    steps: tuple[jax.Array, ...]


class ClientResult(NamedTuple):
    """What one client's work comes to.

    Attributes:
        value: what the client sends: ``[width]``, or a pytree of arrays that make up those values
            in the order of ``jax.tree.leaves``, each in C order, which is faster for a model's
            parameters. An algorithm that sends several vectors sends a tuple of them: clipping and
            sensitivity cover the whole.
        state: ``state_size`` float32 values, likewise: what the client keeps for its next round;
            None where it keeps nothing.
        metrics: scalars, for example ``{"loss": ...}``. They leave the client in the clear.
        nonfinite: int32, how many parts were not finite and count as zero in ``value``; None lets
            the engine look.
    """

    value: Any
    state: Any = None
    metrics: Mapping[str, jax.Array] = {}
    nonfinite: jax.Array | None = None


class ClientWork(NamedTuple):
    """What one client computes in a round, as pure functions that the engine compiles.

    The engine runs ``start``, then the steps of each phase, then ``finish``, for every client of
    a round in one program. ``shared`` is the same for all clients (the model at the least), ``own``
    holds a client's public numbers (its weight, for example), and ``state`` is what it kept from
    its last round. Make one such object and use it in every round: another object is another
    program.

    Attributes:
        name: under which the engine counts traces.
        width: the number of values a client sends.
        start: ``(shared, own, state [state_size]) -> carry``, a pytree of arrays.
        phases: the steps, one phase after the other.
        finish: ``(shared, own, state, carry, done) -> ClientResult``.
        state_size: float32 values that a client keeps from round to round.
        batch_size: records in a batch; None takes the engine's.

    Example:
        >>> import jax.numpy as jnp
        >>> count = ClientWork(  # each client sends how many records of class 1 it drew
        ...     "count", 1, start=lambda shared, own, state: jnp.float32(0),
        ...     phases=(Phase(lambda shared, own, carry, batch:
        ...                   carry + jnp.sum(batch.valid & (batch.y == 1))),),
        ...     finish=lambda shared, own, state, carry, done: ClientResult(carry[None]))
        >>> count.width
        1
    """

    name: str
    width: int
    start: Callable[[Any, Any, jax.Array], Any]
    phases: tuple[Phase, ...]
    finish: Callable[[Any, Any, jax.Array, Any, Done], ClientResult]
    state_size: int = 0
    batch_size: int | None = None

    @property
    def passes(self) -> int:
        """How many orders of its records a client's draw needs."""
        return max((phase.passes for phase in self.phases), default=1)


# -- where values go -------------------------------------------------------------------------------


class Rows(NamedTuple):
    """A row for each client of a chunk: memory grows with the chunk, not with the federation.

    Attributes:
        clients: numbers of the clients whose values are computed, at most ``room``.
        room: how many rows there are; the same in every call, so that one program serves all.

    Example:
        >>> Rows.of(range(3), 4).clients
        (0, 1, 2)
    """

    clients: tuple[int, ...]
    room: int

    @classmethod
    def of(cls, clients: Sequence[int], room: int) -> Rows:
        """Rows for some clients, as plain integers."""
        return cls(tuple(int(c) for c in clients), int(room))


class Total(NamedTuple):
    """One running total a device: memory does not grow with the number of clients.

    Each client's value becomes a payload (clipped, rounded, noised, encrypted: whatever the chain
    does) as soon as it is there, and is added up. All zeros must be the payload that adds nothing.
    Without a ``contribution`` floats are added up as they are, which is fastest; then nobody looks
    whether a single client's value is finite.

    Attributes:
        clients: numbers of the clients that take part, also those without records.
        keys: ``[num_clients, 8] uint32``, a fresh key for each client of the dataset and round.
        states: any pytree, given to both functions; its arrays may change from round to round.
        contribution: ``(states, key [8], value [width]) -> (payload, finite)``, pure and jittable;
            None for the values themselves.
        add: ``(states, payload, payload) -> payload``; None for ``+``. Give the same function
            objects each round.
        room: for work with a state of its own: how many clients' states there is room for, the
            same in every call; None for the whole population.
    """

    clients: tuple[int, ...]
    keys: np.ndarray
    states: Any
    contribution: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    add: Callable[[Any, Any, Any], Any] | None = None
    room: int | None = None


Sink = Rows | Total
