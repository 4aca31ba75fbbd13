"""The ragged engine: every client of a round inside one compiled program, no padding executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import ClientRecords, Params, TrainableModel
from fedjax_secure.training.packing import Draw, pack_draw
from fedjax_secure.training.sinks import Rows, Sink, Total

AXIS = "devices"


class ClientValues(NamedTuple):
    """What the engine computed for the clients of one round.

    Attributes:
        values: ``[rows, dim]``: sums of encoded records, or float32 updates; a client that took
            no part has zeros. Into a `Total`, the payloads' sum.
        nonfinite: ``[clients] int32``: of `record_sums`, how many records had a gradient that is
            not finite (each counts as zero); of `local_sgd`, 1 where the update is not finite.
            Computed from records, so outside any privacy guarantee.
        steps: ``[devices] int32``: steps that each device executed: records of `record_sums`,
            batches of `local_sgd`.
    """

    values: jax.Array
    nonfinite: jax.Array
    steps: jax.Array


class Engine:
    """Trains all clients of a round inside one compiled program.

    Clients have unequal numbers of records. Padding each to the largest costs five times the work
    on realistic sizes, so this engine loops: over the clients dealt to a device, and for each over
    its batches, with a trip count that is data and not shape. The dataset goes to the devices
    once; a round sends int32 row numbers in arrays of a fixed size. Clients are dealt to the CPU
    devices longest first (see `use_all_cores`).

    Guarantees:
        - One compile an experiment: draws of any sizes run the same program (`traces` counts).
        - A client without records executes nothing, and of a client's last batch the unused
          places contribute exactly zero.
        - Integer sums are exact (modulo 2^32) and do not depend on the order of summation; which
          device a client is dealt to changes nothing.
        - What `record_sums` computes of a record depends on that record, its key and its slot
          only, to the last bit: each gradient is computed by itself.

    Results go into a sink. `Rows`, a row for each client of a chunk, suits federations of
    organisations and whatever has to see each client's value; by default there is a row for every
    client of the dataset. `Total` adds up as it goes, in memory that does not grow with the number
    of clients: what the chain does to a client's value, encryption included, happens in the same
    program.

    Args:
        model: what is trained.
        dataset: the clients' records.
        batch_size: records in one batch of `local_sgd`.
        devices: the devices to use; by default those of JAX's default backend, at most one a
            client.

    Raises:
        SpecError: a batch size below 1, no devices, or a model and a dataset that do not fit.

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
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise _refuse("an integer batch_size of 1 or more", repr(batch_size), "Try 32.")
        if dataset.x.shape[1] != model.num_features or len(dataset.classes) != model.num_classes:
            raise _refuse(
                f"a dataset of {model.num_features} features and {model.num_classes} classes for "
                f"model `{model.name}`",
                f"{dataset.x.shape[1]} and {len(dataset.classes)}",
                "Make the model from the dataset, e.g. logistic_regression(dataset).",
            )
        chosen = list(jax.local_devices() if devices is None else devices)
        if not chosen:
            raise _refuse("at least one device", "none", "Leave devices= out.")
        self.model, self.dataset, self.batch_size = model, dataset, batch_size
        self.devices = tuple(chosen[: len(dataset.clients)])
        mesh = Mesh(np.array(self.devices), (AXIS,))
        self._mesh = mesh
        self._everywhere = NamedSharding(mesh, P())
        self._dealt = NamedSharding(mesh, P(AXIS))
        self._x = jax.device_put(np.asarray(dataset.x, np.float32), self._everywhere)
        self._y = jax.device_put(np.asarray(dataset.y, np.int32), self._everywhere)
        self._programs: dict[Hashable, Callable[..., Any]] = {}
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
    ) -> Draw:
        """Checks a draw and deals it to this engine's devices; see `pack_draw`.

        Args:
            indices: for each client the row numbers of its drawn records.
            distinct: refuse a row drawn twice.
            only: numbers of the clients to deal; None for all.
            empty_too: also deal clients without records.

        Returns:
            The draw, as `record_sums` (distinct) and `local_sgd` send it to the devices.

        Raises:
            DataError: a draw that does not fit the dataset.
        """
        return pack_draw(
            indices,
            offsets=self.dataset.offsets,
            clients=self.dataset.clients,
            batch_size=self.batch_size,
            num_devices=len(self.devices),
            distinct=distinct,
            only=only,
            empty_too=empty_too,
        )

    def record_sums(
        self,
        params: Params,
        indices: Sequence[np.ndarray],
        keys: np.ndarray,
        encode_record: Callable[..., jax.Array],
        out_dtype: Any = jnp.int32,
        *,
        states: Any = None,
        into: Sink | None = None,
    ) -> ClientValues:
        """Sums, for each client, the encoded gradients of its drawn records at ``params``.

        This is the client's half of differentially private SGD: each record's own gradient is
        clipped and rounded to integers before anything is summed, so that one record can move
        the sum by no more than its bound.

        Guarantees:
            ``values[c]`` is exactly the sum of ``encode_record(keys[c], slot, g)`` over the drawn
            records, wrapped at 2^32; records whose gradient is not finite add exactly zero. No
            record is left out and none counts twice. ``g`` is the same to the last bit whatever
            other records were drawn, so that adding or removing one record changes nothing but
            its own term.

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
            into: where values go, and of which clients; None for a row of every client.

        Returns:
            Sums of ``out_dtype``, the number of records with a gradient that is not finite, and
            the records that each device went through.

        Raises:
            DataError: a draw that does not fit the dataset, or a row drawn twice.
            SpecError: keys, an encoder or a dtype other than those above, or other parameters.
        """
        into = self._sink(into)
        draw = self.pack(indices, only=into.clients, empty_too=isinstance(into, Total))
        dtype = np.dtype(out_dtype)
        if dtype not in (np.dtype("int32"), np.dtype("uint32"), np.dtype("float32")):
            raise _refuse(
                "out_dtype int32, uint32 or float32",
                str(dtype),
                "Round each record to integers first.",
            )
        keys = np.asarray(keys)
        self._check_keys(keys)
        with_states = states is not None
        name = ("record_sums", encode_record, dtype, with_states, _shape_of(into))
        if name not in self._programs:
            self._check_encoder(encode_record, dtype, (states,) if with_states else ())
            work = self._record_sums(encode_record, dtype, with_states)
            self._programs[name] = self._compile("record_sums", work, dtype, into)
        return self._run(self._programs[name], params, draw, (keys, states), into)

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
            them are not finite; and the executed batches.

        Raises:
            DataError: a draw that does not fit the dataset.
            SpecError: not exactly one of learning_rate and optimizer, a learning rate that is not
                finite, or other parameters.
        """
        if (learning_rate is None) == (optimizer is None):
            raise _refuse(
                "a learning_rate or an optimizer",
                "both" if optimizer is not None else "neither",
                "Write learning_rate=0.1 or optimizer=optax.adam(1e-3).",
            )
        if learning_rate is not None and not np.isfinite(learning_rate):
            raise _refuse("a finite learning_rate", repr(learning_rate), "Try 0.1.")
        into = self._sink(into)
        num_clients = len(self.dataset.clients)
        weights = np.ones(num_clients) if weights is None else np.asarray(weights)
        if weights.shape != (num_clients,) or not np.all(np.isfinite(weights)):
            raise _refuse(
                f"{num_clients} finite weights",
                f"{list(weights.shape)} or some that are not finite",
                "Give one for each client of the dataset.",
            )
        draw = self.pack(
            indices, distinct=False, only=into.clients, empty_too=isinstance(into, Total)
        )
        name = ("local_sgd", optimizer, draw.epochs, _shape_of(into))
        if name not in self._programs:
            work = self._local_sgd(optimizer, draw.epochs)
            self._programs[name] = self._compile("local_sgd", work, np.dtype("float32"), into)
        rate = np.float32(0 if learning_rate is None else learning_rate)
        extra = (rate, weights.astype(np.float32))
        return self._run(self._programs[name], params, draw, extra, into)

    def _sink(self, into: Sink | None) -> Sink:
        num_clients = len(self.dataset.clients)
        if into is None:
            return Rows.of(range(num_clients), num_clients)
        if not isinstance(into, Rows | Total):
            raise _refuse("a sink: Rows or Total", type(into).__name__, "Leave into= out.")
        clients = np.asarray(into.clients)
        known = not clients.size or (clients.min() >= 0 and clients.max() < num_clients)
        if not known or len(set(into.clients)) != len(into.clients):
            raise _refuse(
                f"distinct client numbers from 0 to {num_clients - 1}",
                "others, or one twice",
                "Number clients as the dataset does.",
            )
        if isinstance(into, Rows) and not len(into.clients) <= into.room:
            raise _refuse(
                f"at most {into.room} clients in a chunk of that many rows",
                str(len(into.clients)),
                "Make chunks smaller, or give them more rows.",
            )
        if isinstance(into, Total):
            # Too few keys would not fail in a compiled program: the last would serve several.
            self._check_keys(np.asarray(into.keys))
        return into

    def _check_keys(self, keys: np.ndarray) -> None:
        num_clients = len(self.dataset.clients)
        if keys.shape != (num_clients, 8) or keys.dtype != np.uint32:
            raise _refuse(
                f"keys of shape [{num_clients}, 8] and dtype uint32",
                f"{keys.dtype}{list(keys.shape)}",
                "Give each client of the dataset eight 32-bit words of fresh randomness.",
            )

    def _run(self, program: Callable[..., Any], params: Params, draw: Draw, extra: Any, into: Sink):
        self.model.ravel(params)  # refuses the parameters of another model
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        if isinstance(into, Total):
            place = draw.client
            sealing = (np.asarray(into.keys), into.states)
        else:
            rows = np.zeros(len(self.dataset.clients), np.int32)
            rows[list(into.clients)] = np.arange(len(into.clients))
            place, sealing = rows[draw.client], ()
        params, extra, sealing = jax.device_put((params, extra, sealing), self._everywhere)
        dealt = jax.device_put((*draw[:5], place), self._dealt)
        out = program(params, self._x, self._y, extra, sealing, dealt)
        values, nonfinite, steps = jax.device_put(out, self.devices[0])
        if isinstance(into, Total):
            values = self._merge(into)(jax.device_put(into.states, self.devices[0]), values)
        return ClientValues(values, nonfinite, steps)

    def _merge(self, into: Total) -> Callable[[Any, Any], Any]:
        """Adds up the devices' totals, in the devices' order."""
        name = ("merge", into.add)
        if name not in self._programs:

            def merge(states, parts):
                total = jax.tree.map(lambda part: part[0], parts)
                for device in range(1, len(self.devices)):
                    other = jax.tree.map(lambda part, d=device: part[d], parts)
                    total = into.add(states, total, other)
                return total

            self._programs[name] = jax.jit(merge)
        return self._programs[name]

    def _compile(
        self, name: str, work: Callable[..., Any], dtype: np.dtype, into: Sink
    ) -> Callable[..., Any]:
        if isinstance(into, Total):
            body, values = self._into_total(work, into.contribution, into.add), P(AXIS)
        else:
            body, values = self._into_rows(work, dtype, into.room), P()
        # check_vma=False: with it, jax.grad inside the body would sum over devices by itself
        program = jax.shard_map(
            body,
            mesh=self._mesh,
            in_specs=(P(), P(), P(), P(), P(), P(AXIS)),
            out_specs=(values, P(), P(AXIS)),
            check_vma=False,
        )

        def counted(*args):
            self._traces[name] += 1
            return program(*args)

        return jax.jit(counted)

    def _check_encoder(self, encode_record: Any, dtype: np.dtype, states: tuple) -> None:
        out = jax.eval_shape(
            encode_record,
            *states,
            jax.ShapeDtypeStruct((8,), jnp.uint32),
            jax.ShapeDtypeStruct((), jnp.uint32),
            jax.ShapeDtypeStruct((self.model.dim,), jnp.float32),
        )
        found = (getattr(out, "shape", None), getattr(out, "dtype", None))
        if found != ((self.model.dim,), dtype):
            raise _refuse(
                f"encode_record to return {dtype}[{self.model.dim}]",
                f"{found[1]}{list(found[0] or ())}",
                "Round the clipped gradient to integers, and keep its length.",
            )

    def _record_sums(self, encode_record: Any, dtype: np.dtype, with_states: bool):
        model = self.model

        def record_gradient(params, x, y):
            return model.ravel(jax.grad(lambda p: model.loss(p, x[None], y[None])[0])(params))

        def client_sum(params, x, y, extra, c, start, count, rows):
            keys, states = extra
            head = (states,) if with_states else ()

            def record(t, carry):
                # One record by itself: in a batch, the last bit of a gradient depends on the place
                # in the batch, and so on which other records were drawn.
                total, bad = carry
                chosen = rows[start + t]
                gradient = record_gradient(params, x[chosen], y[chosen])
                finite = jnp.all(jnp.isfinite(gradient))
                gradient = jnp.where(finite, gradient, jnp.float32(0))
                encoded = encode_record(*head, keys[c], t.astype(jnp.uint32), gradient)
                total = total + jnp.where(finite, encoded, jnp.zeros_like(encoded))
                return total, bad + (~finite).astype(jnp.int32)

            start_values = (jnp.zeros(model.dim, dtype), jnp.int32(0))
            return (*lax.fori_loop(jnp.int32(0), count, record, start_values), count)

        return client_sum

    def _local_sgd(self, optimizer: optax.GradientTransformation | None, epochs: int):
        model, batch_size = self.model, self.batch_size

        def mean_loss(params, x, y, valid):
            losses = jnp.where(valid, model.loss(params, x, y), jnp.float32(0))
            return jnp.sum(losses) / jnp.sum(valid, dtype=jnp.float32)

        def client_delta(params, x, y, extra, c, start, count, rows):
            rate, weights = extra

            def batch(t, carry):
                local, state = carry
                epoch, place = t // per_epoch, t % per_epoch
                _, valid, chosen = _batch(
                    rows, start + epoch * count, place * batch_size, count, batch_size
                )
                gradient = jax.grad(mean_loss)(local, x[chosen], y[chosen], valid)
                if optimizer is None:
                    local = jax.tree.map(lambda p, g: p - rate * g, local, gradient)
                else:
                    updates, state = optimizer.update(gradient, state, local)
                    local = optax.apply_updates(local, updates)
                return local, state

            per_epoch = _batches(count, batch_size)
            trips = jnp.int32(epochs) * per_epoch
            state = () if optimizer is None else optimizer.init(params)
            local, _ = lax.fori_loop(jnp.int32(0), trips, batch, (params, state))
            delta = (model.ravel(local) - model.ravel(params)) * weights[c]
            return delta, jnp.any(~jnp.isfinite(delta)).astype(jnp.int32), trips

        return client_delta

    def _into_rows(self, work: Callable[..., Any], dtype: np.dtype, room: int):
        num_clients, dim = len(self.dataset.clients), self.model.dim

        def device(params, x, y, extra, sealing, dealt):
            rows, client, start, count, busy, place = (part[0] for part in dealt)

            def one(j, carry):
                values, nonfinite, steps = carry
                c = client[j]
                value, bad, trips = work(params, x, y, extra, c, start[j], count[j], rows)
                return values.at[place[j]].set(value), nonfinite.at[c].set(bad), steps + trips

            values, nonfinite, steps = lax.fori_loop(
                jnp.int32(0),
                busy,
                one,
                (
                    jnp.zeros((room, dim), dtype),
                    jnp.zeros(num_clients, jnp.int32),
                    jnp.int32(0),
                ),
            )
            # each client's row is set on one device and zero on the others: this sum is exact
            return lax.psum(values, AXIS), lax.psum(nonfinite, AXIS), steps[None]

        return device

    def _into_total(self, work: Callable[..., Any], contribution: Any, add: Any):
        num_clients = len(self.dataset.clients)

        def device(params, x, y, extra, sealing, dealt):
            rows, client, start, count, busy, _ = (part[0] for part in dealt)
            keys, states = sealing

            def payload_of(j):
                c = client[j]
                value, bad, trips = work(params, x, y, extra, c, start[j], count[j], rows)
                payload, finite = contribution(states, keys[c], value)
                return payload, bad + (~finite & (bad == 0)).astype(jnp.int32), trips

            def one(j, carry):
                total, nonfinite, steps = carry
                payload, bad, trips = payload_of(j)
                nonfinite = nonfinite.at[client[j]].set(bad)
                return add(states, total, payload), nonfinite, steps + trips

            shape = jax.eval_shape(payload_of, jnp.int32(0))[0]
            nothing = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shape)
            total, nonfinite, steps = lax.fori_loop(
                jnp.int32(0),
                busy,
                one,
                (nothing, jnp.zeros(num_clients, jnp.int32), jnp.int32(0)),
            )
            total = jax.tree.map(lambda part: part[None], total)
            return total, lax.psum(nonfinite, AXIS), steps[None]

        return device


def _shape_of(into: Sink) -> Hashable:
    """What of a sink a compiled program depends on."""
    return into.room if isinstance(into, Rows) else (into.contribution, into.add)


def _batches(count: jax.Array, batch_size: int) -> jax.Array:
    return (count + jnp.int32(batch_size - 1)) // jnp.int32(batch_size)


def _batch(rows, start, first, count, batch_size):
    """One batch: places in the draw, which of them are used, and their rows in the dataset.

    An unused place repeats the batch's first row: masked by a zero weight, a record of another
    client whose gradient is not finite would still spoil this one's (0 * NaN is NaN).
    """
    place = first + jnp.arange(batch_size, dtype=jnp.int32)
    valid = place < count
    chosen = lax.dynamic_slice(rows, (start + first,), (batch_size,))
    return place, valid, jnp.where(valid, chosen, chosen[0])


def _refuse(need: str, found: str, fix: str) -> SpecError:
    return SpecError("the engine", need=need, found=found, fix=fix)
