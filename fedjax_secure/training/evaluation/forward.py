"""Models applied to records on every device, in batches of a fixed size, in the records' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_secure.training.contracts import ClientRecords, Params, TrainableModel

AXIS = "devices"
#: Bytes of records, and of models, that a device holds at a time where clients have their own.
CHUNK_BYTES = 2**24
_IN_FLIGHT = 2  # calls made ahead of the one that is read
_OWN_BATCHES = (8, 128)  # the least and the most records in a batch of one client

#: Rows of parameters by client number: ``(numbers [k] int) -> [k, dim]``.
RowsOf = Callable[[np.ndarray], np.ndarray]


class Outputs(NamedTuple):
    """What a model makes of some records.

    Attributes:
        predicted: ``[records] int32``, the likeliest class; -1 where a logit is not finite.
        loss: ``[records] float32``; infinity where a logit is not finite.
        confidence: ``[records] float32``, the likeliest class's probability.
        brier: ``[records] float32``, the squared distance from the true class.
        scores: ``[records, columns] float32``, what AUC is computed from: the second of two
            classes' probability, or every class's; no columns where AUC is not asked for.
    """

    predicted: Any
    loss: Any
    confidence: Any
    brier: Any
    scores: Any


class Split(NamedTuple):
    """The records of one part of a dataset, contiguous by client."""

    name: str
    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray


def one_model(
    model: TrainableModel,
    params: Params,
    dataset: ClientRecords,
    split: Split,
    *,
    batch_size: int,
    devices: Sequence[Any],
    with_scores: bool,
) -> Iterator[Outputs]:
    """Applies one model to all records; the records stay on the devices for the next call.

    A call computes one batch a device. The loop over calls is Python's: XLA on a CPU compiles a
    convolution within a loop to slow code, and a batch takes far longer than a call.

    Yields:
        The outputs of consecutive records, NumPy arrays.
    """
    records = len(split.y)
    fair = -(-records // len(devices))
    batch_size = min(batch_size, -(-fair // 8) * 8)
    chosen = tuple(devices)
    x, y = _placed(dataset, split, chosen, batch_size)
    program = _one_model_program(model, chosen, with_scores)
    params = jax.device_put(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        NamedSharding(_mesh(chosen), P()),
    )
    calls = (
        (program(params, x, y, np.int32(step)), [(0, batch_size * len(chosen))])
        for step in range(x.shape[0])
    )
    yield from _read(calls, records)


def own_models(
    model: TrainableModel,
    rows_of: RowsOf,
    split: Split,
    *,
    devices: Sequence[Any],
    with_scores: bool,
) -> Iterator[Outputs]:
    """Applies each client's own model to its records, a chunk of clients at a time.

    Within a chunk one program loops over clients and over each one's batches. A device holds at
    most `CHUNK_BYTES` of records and as much of parameters (one client's, if those are more).

    Args:
        model: whose parameters they are.
        rows_of: the parameters of some clients, by number, in rising order. A client without
            records is never asked for; one whose records do not fit into a chunk is asked for
            again.
        split: the records.
        devices: the devices to use.
        with_scores: whether `Outputs.scores` are wanted.

    Yields:
        The outputs of consecutive records, NumPy arrays.
    """
    chosen, records = tuple(devices), len(split.y)
    held = np.flatnonzero(np.diff(split.offsets))
    bounds = np.append(split.offsets[held], records)  # of clients that have records
    fair = -(-records // len(chosen))
    row_bytes = split.x.shape[1] * split.x.dtype.itemsize
    room = max(1, min(fair, CHUNK_BYTES // row_bytes))
    clients = max(1, min(len(held), CHUNK_BYTES // (4 * model.dim)))
    mean = -(-records // len(held))
    batch_size = min(max(1 << (mean - 1).bit_length(), _OWN_BATCHES[0]), _OWN_BATCHES[1])
    program = _own_models_program(model, chosen, batch_size, with_scores)
    padded = room + batch_size  # a client's last batch may read beyond its records

    def chunks() -> Iterator[tuple[int, int, int, int]]:
        first = 0  # the first record that is not dealt yet
        while first < records:
            c = int(np.searchsorted(bounds, first, side="right")) - 1
            last = min(first + room, int(bounds[min(c + clients, len(held))]))
            yield first, last, c, int(np.searchsorted(bounds, last, side="left"))
            first = last

    def load(chunk: tuple[int, int, int, int] | None) -> tuple[np.ndarray, ...]:
        first, last, c, end = chunk or (records, records, 0, 0)
        start = np.clip(bounds[c : end + 1], first, last) - first
        return (
            _filled(rows_of(held[c:end]) if chunk else np.zeros((0, model.dim)), clients,
                    np.float32),
            _filled(split.x[first : first + padded], padded, split.x.dtype),
            _filled(split.y[first : first + padded], padded, np.int32),
            _filled(start, clients + 1, np.int32),
            np.int32(end - c),
        )  # fmt: skip

    def calls() -> Iterator[tuple[Outputs, list[tuple[int, int]]]]:
        dealt = list(chunks())
        for k in range(0, len(dealt), len(chosen)):
            now = dealt[k : k + len(chosen)]
            now += [None] * (len(chosen) - len(now))
            loaded = zip(*(load(chunk) for chunk in now), strict=True)
            parts = [(d * padded, chunk[1] - chunk[0]) for d, chunk in enumerate(now) if chunk]
            yield program(*(_one_each(pieces, chosen) for pieces in loaded)), parts

    yield from _read(calls(), records)


def _read(
    calls: Iterator[tuple[Outputs, list[tuple[int, int]]]], records: int
) -> Iterator[Outputs]:
    """Results as NumPy arrays, read a few calls after they were asked for."""
    waiting: deque[tuple[Outputs, list[tuple[int, int]]]] = deque()
    done = 0

    def take() -> Iterator[Outputs]:
        nonlocal done
        out, parts = waiting.popleft()
        found = [np.asarray(part) for part in out]
        for first, count in parts:
            count = min(count, records - done)
            yield Outputs(*(part[first : first + count] for part in found))
            done += count

    for call in calls:
        waiting.append(call)
        if len(waiting) > _IN_FLIGHT:
            yield from take()
    while waiting:
        yield from take()


# -- programs --------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _mesh(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


@lru_cache(maxsize=32)
def _one_model_program(model: TrainableModel, devices: tuple[Any, ...], with_scores: bool):
    def batch(params, x, y, step):
        chosen = [lax.dynamic_index_in_dim(part, step, keepdims=False)[0] for part in (x, y)]
        return _outputs(model, params, *chosen, with_scores)

    dealt = P(None, AXIS)
    return jax.jit(
        jax.shard_map(
            batch, mesh=_mesh(devices), in_specs=(P(), dealt, dealt, P()), out_specs=P(AXIS),
            check_vma=False,
        )
    )  # fmt: skip


@lru_cache(maxsize=32)
def _own_models_program(
    model: TrainableModel, devices: tuple[Any, ...], batch_size: int, with_scores: bool
):
    def chunk(flat, x, y, start, busy):
        flat, x, y, start, busy = flat[0], x[0], y[0], start[0], busy[0]

        def take(part, first):
            return lax.dynamic_slice_in_dim(part, first, batch_size)

        def client(c, out):
            params = model.unravel(flat[c])
            count = start[c + 1] - start[c]

            def batch(t, out):
                # Of the last batch, what lies beyond the client's records is written over by the
                # next client, or never read.
                first = start[c] + t * batch_size
                found = _outputs(model, params, take(x, first), take(y, first), with_scores)
                return Outputs(*(
                    lax.dynamic_update_slice_in_dim(whole, part, first, 0)
                    for whole, part in zip(out, found, strict=True)
                ))  # fmt: skip

            return lax.fori_loop(0, (count + (batch_size - 1)) // batch_size, batch, out)

        shapes = jax.eval_shape(
            lambda: _outputs(model, model.unravel(flat[0]), take(x, 0), take(y, 0), with_scores)
        )
        nothing = Outputs(*(jnp.zeros((len(y), *s.shape[1:]), s.dtype) for s in shapes))
        return lax.fori_loop(0, busy, client, nothing)

    return jax.jit(
        jax.shard_map(
            chunk, mesh=_mesh(devices), in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False
        )
    )


def _outputs(model: TrainableModel, params: Params, x, y, with_scores: bool) -> Outputs:
    logits = model.apply(params, x)
    chances = model.probabilities(logits)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    truth = jax.nn.one_hot(y, chances.shape[1], dtype=chances.dtype)
    columns = slice(1, 2) if chances.shape[1] == 2 else slice(None)
    return Outputs(
        jnp.where(finite, jnp.argmax(chances, axis=1).astype(jnp.int32), jnp.int32(-1)),
        jnp.where(finite, model.loss(params, x, y), jnp.float32(jnp.inf)),
        jnp.max(chances, axis=1),
        jnp.sum((chances - truth) ** 2, axis=1),
        chances[:, columns if with_scores else slice(0)],
    )


def _filled(part: np.ndarray, length: int, dtype: Any) -> np.ndarray:
    """The same array, or a longer one that ends in zeros."""
    part = np.asarray(part, dtype)
    if len(part) == length:
        return part
    whole = np.zeros((length, *part.shape[1:]), dtype)
    whole[: len(part)] = part
    return whole


def _one_each(pieces: Sequence[np.ndarray], devices: tuple[Any, ...]) -> jax.Array:
    """An array of ``[devices, ...]`` with a piece on each."""
    placed = [jax.device_put(p[None], d) for p, d in zip(pieces, devices, strict=True)]
    shape = (len(devices), *np.shape(pieces[0]))
    place = NamedSharding(_mesh(devices), P(AXIS))
    return jax.make_array_from_single_device_arrays(shape, place, placed)


# -- records on the devices ------------------------------------------------------------------------

_on_devices: WeakKeyDictionary[Any, dict[str, tuple[Any, ...]]] = WeakKeyDictionary()


def _placed(
    dataset: ClientRecords, split: Split, devices: tuple[Any, ...], batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """The split as ``[steps, devices, batch_size, ...]``, kept as long as its dataset lives.

    Arrays that can be written to are placed anew each time: they may have changed.
    """
    lasting = not (split.x.flags.writeable or split.y.flags.writeable)
    try:
        kept = _on_devices.setdefault(dataset, {}) if lasting else {}
    except TypeError:  # a dataset that cannot be hashed, or referred to weakly
        kept = {}
    found = kept.get(split.name)
    same = found is not None and found[0] is split.x and found[1] is split.y
    if not same or found[2] != (devices, batch_size):
        arrays = [_dealt(part, devices, batch_size) for part in (split.x, split.y)]
        found = kept[split.name] = (split.x, split.y, (devices, batch_size), *arrays)
    return found[3], found[4]


def _dealt(part: np.ndarray, devices: tuple[Any, ...], batch_size: int) -> jax.Array:
    """Batch after batch, to one device after the other; what is missing at the end is zero."""
    step = len(devices) * batch_size
    whole = len(part) // step
    steps, rest = -(-len(part) // step), part[whole * step :]
    shape = (steps, len(devices), batch_size, *part.shape[1:])
    views = part[: whole * step].reshape(whole, *shape[1:])
    pieces = []
    for d, device in enumerate(devices):
        piece = np.zeros((steps, 1, *shape[2:]), part.dtype)
        piece[:whole, 0] = views[:, d]
        mine = rest[d * batch_size : (d + 1) * batch_size]
        piece[whole:, 0, : len(mine)] = mine
        pieces.append(jax.device_put(piece, device))
    place = NamedSharding(_mesh(devices), P(None, AXIS))
    return jax.make_array_from_single_device_arrays(shape, place, pieces)
