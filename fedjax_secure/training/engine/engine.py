"""The engine: every client of a round inside one compiled program, no padding executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_secure.training import local
from fedjax_secure.training.contracts import (
    ClientRecords,
    ClientWork,
    Params,
    Rows,
    Sink,
    Total,
    TrainableModel,
)
from fedjax_secure.training.engine.arguments import (
    float_params,
    record_bounds_of,
    refused,
    require_encoder,
    require_keys,
    require_own,
    require_states,
    shares_of,
    sink_of,
    weights_of,
)
from fedjax_secure.training.engine.transfers import Transfers
from fedjax_secure.training.ghost import ghost_sums
from fedjax_secure.training.packing import Draw, pack_draw
from fedjax_secure.training.programs import AXIS, round_program

Layout = Literal["ragged", "lanes"]


class ClientValues(NamedTuple):
    """What the engine computed for the clients of one round.

    Attributes:
        values: ``[rows, width]``, a row for each client of a `Rows` sink; zeros for a client that
            took no part. Into a `Total`, the payloads' sum.
        nonfinite: ``[clients] int32``: how many parts of each client's value were not finite: of
            `record_sums` and `ghost_sums` its records (each counts as zero), else 1 where its
            update or state is not. Computed from records, so outside any privacy guarantee.
        steps: ``[clients] int32``: the steps that each client executed.
        metrics: ``{name: [clients]}``; zero for a client that took no part.
        states: ``[rows, state_size]``, the clients' new states, as in ``values``; None where the
            work keeps none. They are not looked at for values that are not finite.
    """

    values: Any
    nonfinite: jax.Array
    steps: jax.Array
    metrics: Mapping[str, jax.Array]
    states: jax.Array | None = None


class Engine:
    """Trains all clients of a round inside one compiled program.

    Clients have unequal numbers of records. Padding each to the largest costs five times the work
    on realistic sizes, so nothing is padded: see `fedjax_secure.training.layouts`. The dataset
    goes to the devices once; a round sends int32 row numbers in arrays of a fixed size. Clients
    are dealt to devices longest first (see `use_all_cores`).

    Guarantees:
        - One compile an experiment: draws of any sizes run the same program (`traces` counts).
        - A client without records executes nothing, and of a client's last batch the unused
          places contribute exactly zero.
        - Integer sums are exact (modulo 2^32) and do not depend on the order of summation; which
          device a client is dealt to changes nothing.
        - In the ragged layout, what `record_sums` computes of a record depends on that record, its
          key and its slot only, to the last bit: each gradient is computed by itself.

    Results go into a sink. `Rows`, a row for each client of a chunk, suits federations of
    organisations and whatever has to see each client's value; by default there is a row for every
    client of the dataset. `Total` adds up as it goes, in memory that does not grow with the number
    of clients: what the chain does to a client's value, encryption included, happens in the same
    program.

    With several processes (``jax.distributed``), every process makes the same engine and the same
    calls, with equal arguments; each gets the whole result.

    Args:
        model: what is trained.
        dataset: the clients' records.
        batch_size: records in a batch.
        devices: the devices to use; by default all of JAX's default backend, at most one a client.
        layout: ``"ragged"`` or ``"lanes"``; None takes ragged on CPUs and lanes elsewhere.
        num_lanes: lanes of each device in that layout.

    Raises:
        SpecError: a batch size below 1, no devices, an unknown layout, or a model and a dataset
            that do not fit.

    Example:
        >>> import jax, numpy as np
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> from fedjax_secure.training import Engine
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> engine = Engine(model, data, batch_size=32)
        >>> params = model.init(jax.random.key(0))
        >>> out = engine.local_sgd(params, [data.rows(c) for c in range(4)], learning_rate=0.1)
        >>> out.values.shape, int(out.steps.sum())
        ((4, 31), 25)

    Source:
        Local SGD: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", algorithm 1 (ClientUpdate). Per-record sums: Abadi et al. 2016, "Deep
        Learning with Differential Privacy", algorithm 1.
    """

    def __init__(
        self,
        model: TrainableModel,
        dataset: ClientRecords,
        *,
        batch_size: int,
        devices: Sequence[Any] | None = None,
        layout: Layout | None = None,
        num_lanes: int = 16,
    ):
        for name, value, example in (("batch_size", batch_size, 32), ("num_lanes", num_lanes, 16)):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < 1:
                raise refused(f"an integer {name} of 1 or more", repr(value), f"Try {example}.")
        if dataset.x.shape[1] != model.num_features or len(dataset.classes) != model.num_classes:
            raise refused(
                f"a dataset of {model.num_features} features and {model.num_classes} classes for "
                f"model `{model.name}`",
                f"{dataset.x.shape[1]} and {len(dataset.classes)}",
                "Make the model from the dataset, e.g. logistic_regression(dataset).",
            )
        chosen = list(jax.devices() if devices is None else devices)
        if not chosen:
            raise refused("at least one device", "none", "Leave devices= out.")
        if layout not in (None, "ragged", "lanes"):
            raise refused('layout "ragged" or "lanes"', repr(layout), "Leave layout= out.")
        self.model, self.dataset, self.batch_size = model, dataset, int(batch_size)
        several = jax.process_count() > 1
        # Every process has to hold a device, so that each gets the result.
        self.devices = tuple(chosen if several else chosen[: len(dataset.clients)])
        self.layout = layout or ("ragged" if self.devices[0].platform == "cpu" else "lanes")
        self.num_lanes = int(num_lanes) if self.layout == "lanes" else 1
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        self._moves = Transfers(self._mesh, several=several)
        self._x = self._moves.put(np.asarray(dataset.x))
        self._y = self._moves.put(np.asarray(dataset.y, np.int32))
        self._programs: dict[Hashable, Callable[..., Any]] = {}
        self._works: dict[Hashable, ClientWork] = {}
        self._traces: Counter[str] = Counter()

    @property
    def traces(self) -> Mapping[str, int]:
        """How often each program was traced: ``{"record_sums": 1}`` after any number of rounds."""
        return dict(self._traces)

    def pack(
        self,
        indices: Sequence[np.ndarray],
        *,
        distinct: bool = True,
        only: Sequence[int] | None = None,
        empty_too: bool = False,
        capacity: int | None = None,
        batch_size: int | None = None,
    ) -> Draw:
        """Checks a draw and deals it to this engine's devices; see `pack_draw`.

        Args:
            indices: for each client the row numbers of its drawn records.
            distinct: refuse a row drawn twice.
            only: numbers of the clients to deal; None for all.
            empty_too: also deal clients without records.
            capacity: at most so many clients a device; None for any number.
            batch_size: records in a batch; None takes the engine's.

        Returns:
            The draw, as `train` sends it to the devices.

        Raises:
            DataError: a draw that does not fit the dataset.
        """
        return pack_draw(
            indices,
            offsets=self.dataset.offsets,
            clients=self.dataset.clients,
            batch_size=batch_size or self.batch_size,
            num_devices=len(self.devices),
            num_lanes=self.num_lanes,
            distinct=distinct,
            only=only,
            empty_too=empty_too,
            capacity=capacity,
        )

    def train(
        self,
        work: ClientWork,
        shared: Any,
        indices: Sequence[np.ndarray],
        *,
        own: Mapping[str, np.ndarray] | None = None,
        share: np.ndarray | None = None,
        states: np.ndarray | None = None,
        distinct: bool = False,
        into: Sink | None = None,
    ) -> ClientValues:
        """Runs one client's work for every client of a round.

        Args:
            work: what each client computes. Give the same object each round: a new one is
                compiled anew.
            shared: what every client gets, a pytree of arrays; their values may change from round
                to round.
            indices: for each client the row numbers of its records, ``[count]`` or
                ``[passes, count]``, at least as many passes as the work has. The order of a row is
                the order of the work.
            own: arrays ``[num_clients, ...]``: each client's own public numbers.
            share: ``[num_clients]``, above 0 and up to 1: which share of its steps each client
                completes, rounded up; None for all.
            states: ``[clients of the sink, state_size] float32``, what each keeps, in the sink's
                order; needed exactly where the work keeps something.
            distinct: refuse a row drawn twice in a pass.
            into: where values go, and of which clients; None for a row of every client.

        Returns:
            The clients' values, or their sum; new states, metrics, and executed steps.

        Raises:
            DataError: a draw that does not fit the dataset.
            SpecError: arguments of other shapes than those above.
        """
        num_clients, num_devices = len(self.dataset.clients), len(self.devices)
        into = sink_of(into, num_clients, with_states=work.state_size > 0)
        clients = np.asarray(into.clients, np.int64)
        own = {} if own is None else dict(own)
        require_own(own, num_clients)
        share = shares_of(share, num_clients)
        require_states(states, work, len(clients))
        room = into.room
        capacity = None if room is None else -(-room // num_devices)
        draw = self.pack(
            indices,
            distinct=distinct,
            only=into.clients,
            empty_too=isinstance(into, Total) or work.state_size > 0,
            capacity=capacity,
            batch_size=work.batch_size,
        )
        if draw.passes < work.passes and int(draw.busy.sum()) and draw.count.any():
            raise refused(
                f"{work.passes} passes over each client's records for work `{work.name}`",
                f"{draw.passes}",
                "Give an order for each pass: [passes, count].",
            )
        capacity = capacity or 1
        name = (work, draw.passes, capacity, share is None, _shape_of(into))
        if name not in self._programs:
            self._programs[name] = self._compile(work, into, capacity)
        # where each of the sink's clients is: its device's block, and its place in there
        at = np.zeros(num_clients, np.int64)
        busy, per_device = int(draw.first[-1]), draw.first[:: self.num_lanes]
        device = np.repeat(np.arange(num_devices), np.diff(per_device))
        at[draw.client[:busy]] = device * capacity + draw.place[:busy]
        rows = at[clients]
        sealing = ()
        if isinstance(into, Total) and into.contribution is not None:
            sealing = (np.asarray(into.keys), into.states)
        shared, own, share, sealing, packed = self._moves.put(
            (shared, own, share, sealing, draw.packed())
        )
        values, nonfinite, steps, metrics, after = self._programs[name](
            shared,
            own,
            share,
            self._x,
            self._y,
            sealing,
            packed,
            self._moves.split(states, rows, num_devices * capacity),
        )
        if isinstance(into, Rows):
            taking_part = np.zeros(num_clients, bool)
            taking_part[draw.client[:busy]] = True
            dealt = taking_part[clients]
            values = self._moves.in_order(values, rows, dealt, into.room)
        else:
            values = self._moves.local(values)
        new = self._moves.fetch(after)[rows] if work.state_size else None
        return ClientValues(values, *self._moves.local((nonfinite, steps, metrics)), new)

    def record_sums(
        self,
        params: Params,
        indices: Sequence[np.ndarray],
        keys: np.ndarray,
        encode_record: Callable[..., jax.Array],
        out_dtype: Any = jnp.int32,
        *,
        states: Any = None,
        record_bounds: np.ndarray | None = None,
        into: Sink | None = None,
    ) -> ClientValues:
        """Sums, for each client, the encoded gradients of its drawn records at ``params``.

        Guarantees:
            ``values[c]`` is exactly the sum of ``encode_record(keys[c], slot, g)`` over the drawn
            records, wrapped at 2^32; records whose gradient is not finite add exactly zero. No
            record is left out and none counts twice. In the ragged layout ``g`` is the same to the
            last bit whatever other records were drawn, so that adding or removing one record
            changes nothing but its own term.

        Args:
            params: the model's parameters, a pytree.
            indices: for each client the row numbers of its records, drawn once each.
            keys: ``[clients, 8] uint32``, a fresh key for each client and round.
            encode_record: ``(key [8] uint32, slot uint32, gradient [dim] float32) -> [dim]``, pure
                and jittable. ``slot`` is the record's place in its client's draw: with it every
                record has a keystream of its own. Give the same function object each round: a new
                one is compiled anew.
            out_dtype: what ``encode_record`` returns: int32 or uint32; float32 for a baseline
                without privacy, whose sums are rounded in the order of the draw.
            states: any pytree; if given, ``encode_record`` takes it first. Its arrays may change
                from round to round without a new compile.
            record_bounds: ``[num_records]``, by row number: a longer gradient is scaled down to
                its record's bound before ``encode_record``; None for no such bounds. They may
                change from round to round.
            into: where values go, and of which clients; None for a row of every client.

        Returns:
            Sums of ``out_dtype``, the number of records with a gradient that is not finite, and
            the records that were gone through.

        Raises:
            DataError: a draw that does not fit the dataset, or a row drawn twice.
            SpecError: keys, an encoder or a dtype other than those above, or other parameters.
        """
        dtype = np.dtype(out_dtype)
        if dtype not in (np.dtype("int32"), np.dtype("uint32"), np.dtype("float32")):
            raise refused(
                "out_dtype int32, uint32 or float32",
                str(dtype),
                "Round each record to integers first.",
            )
        keys = np.asarray(keys)
        require_keys(keys, len(self.dataset.clients))
        with_states = states is not None
        bounded = record_bounds is not None
        name = ("record_sums", encode_record, dtype, with_states, bounded)
        if name not in self._works:
            require_encoder(encode_record, dtype, self.model.dim, (states,) if with_states else ())
            self._works[name] = local.record_sums(
                self.model, encode_record, dtype, with_states=with_states,
                with_record_bounds=bounded,
            )  # fmt: skip
        shared = {"params": float_params(self.model, params), "states": states}
        if bounded:
            shared["record_bounds"] = record_bounds_of(record_bounds, len(self.dataset.y))
        return self.train(
            self._works[name], shared, indices, own={"key": keys}, distinct=True, into=into
        )

    def ghost_sums(
        self,
        params: Params,
        indices: Sequence[np.ndarray],
        *,
        l2_bound: float,
        record_bounds: np.ndarray | None = None,
        into: Sink | None = None,
    ) -> ClientValues:
        """Sums, for each client, the clipped gradients of its drawn records at ``params``.

        The fast path: a batch of records at a time, in floats; see `ghost.ghost_sums` for what is
        guaranteed of them and what is assumed.

        Args:
            params: the model's parameters, a pytree.
            indices: for each client the row numbers of its records, drawn once each.
            l2_bound: the largest norm of a record's gradient, in model units.
            record_bounds, into: as for `record_sums`.

        Returns:
            Sums, float32; how many records had a gradient that is not finite, which adds zero; and
            the batches that were gone through.

        Raises:
            DataError: a draw that does not fit the dataset, or a row drawn twice.
            SpecError: bounds that are no positive numbers, or other parameters.
        """
        bounded = record_bounds is not None
        name = ("ghost_sums", l2_bound, bounded)
        if name not in self._works:
            self._works[name] = ghost_sums(
                self.model, l2_bound, batch_size=self.batch_size, with_record_bounds=bounded
            )
        shared = {"params": float_params(self.model, params)}
        if bounded:
            shared["record_bounds"] = record_bounds_of(record_bounds, len(self.dataset.y))
        return self.train(self._works[name], shared, indices, distinct=True, into=into)

    def local_sgd(
        self,
        params: Params,
        indices: Sequence[np.ndarray],
        *,
        learning_rate: float | None = None,
        optimizer: optax.GradientTransformation | None = None,
        weights: np.ndarray | None = None,
        into: Sink | None = None,
    ) -> ClientValues:
        """Trains each client from ``params`` on its own records and returns what changed.

        Plain local SGD on the mean loss of each batch, without clipping or noise: the baseline
        without privacy. The order of a client's rows is the order of training; rows of shape
        ``[epochs, count]`` go through several epochs, each with a last batch of its own.

        Args:
            params: the model's parameters, a pytree: where every client starts.
            indices: for each client the row numbers to train on, ``[count]`` or
                ``[epochs, count]``.
            learning_rate: of plain SGD. It may change from round to round.
            optimizer: instead of it, any optax transform; its state starts anew at every client.
                Give the same object each round.
            weights: ``[num_clients]``, what each update is multiplied by; None for 1.
            into: where updates go, and of which clients; None for a row of every client.

        Returns:
            Updates, ``params`` after less ``params`` before, times their weight, float32; which of
            them are not finite; the executed batches; and the metric ``loss``, a mean over steps.

        Raises:
            DataError: a draw that does not fit the dataset.
            SpecError: not exactly one of learning_rate and optimizer, a learning rate that is not
                finite, or other parameters.
        """
        if (learning_rate is None) == (optimizer is None):
            raise refused(
                "a learning_rate or an optimizer",
                "both" if optimizer is not None else "neither",
                "Write learning_rate=0.1 or optimizer=optax.adam(1e-3).",
            )
        if learning_rate is not None and not np.isfinite(learning_rate):
            raise refused("a finite learning_rate", repr(learning_rate), "Try 0.1.")
        own = {"weight": weights_of(weights, len(self.dataset.clients))}
        passes = max((len(rows) for rows in indices if np.ndim(rows) == 2), default=1)
        name = ("local_sgd", optimizer, passes)
        if name not in self._works:
            self._works[name] = local.local_sgd(self.model, passes=passes, optimizer=optimizer)
        rate = np.float32(0 if learning_rate is None else learning_rate)
        shared = {"params": float_params(self.model, params), "learning_rate": rate}
        return self.train(self._works[name], shared, indices, own=own, into=into)

    def _compile(self, work: ClientWork, into: Sink, capacity: int) -> Callable[..., Any]:
        program = round_program(
            work,
            into,
            self._mesh,
            num_clients=len(self.dataset.clients),
            batch_size=work.batch_size or self.batch_size,
            capacity=capacity,
            num_lanes=self.num_lanes if self.layout == "lanes" else 0,
        )

        def counted(*args):
            self._traces[work.name] += 1
            return program(*args)

        return jax.jit(counted)


def _shape_of(into: Sink) -> Hashable:
    """What of a sink a compiled program depends on."""
    return into.room if isinstance(into, Rows) else (into.contribution, into.add)
