"""A ragged draw as arrays of fixed size: which records, whose, and on which device."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_secure.core.errors import DataError


class Draw(NamedTuple):
    """The records of one round, and the clients dealt to bins: devices, or lanes of devices.

    The sizes depend on the dataset, the batch size and the number of passes only, with room for
    every record of the population: no draw is ever truncated, and none makes JAX compile again.
    What lies beyond the dealt clients is unused.

    Attributes:
        rows: ``[room] int32``, row numbers in the dataset, client after client.
        client: ``[clients] int32``, the dealt clients, bin after bin.
        start: ``[clients] int32``, where each begins in ``rows``.
        count: ``[clients] int32``, its records in one pass.
        place: ``[clients] int32``, its place among the clients of its device.
        first: ``[bins + 1] int32``, where each bin's clients begin in the four arrays above.
        passes: how often ``rows`` goes through a client's records.
    """

    rows: np.ndarray
    client: np.ndarray
    start: np.ndarray
    count: np.ndarray
    place: np.ndarray
    first: np.ndarray
    passes: int

    def packed(self) -> np.ndarray:
        """All arrays in one, which travels faster; `unpacked` takes it apart on a device."""
        return np.concatenate(self[:6])

    @staticmethod
    def unpacked(packed: Any, num_clients: int, num_bins: int) -> tuple[Any, ...]:
        """``rows``, ``client``, ``start``, ``count``, ``place`` and ``first`` of `packed`."""
        room = packed.shape[0] - 4 * num_clients - (num_bins + 1)
        ends = [room + k * num_clients for k in range(5)]
        starts = [0, *ends]
        return tuple(packed[a:b] for a, b in zip(starts, [*ends, packed.shape[0]], strict=True))

    @property
    def busy(self) -> np.ndarray:
        """``[bins] int32``: how many clients each bin was dealt."""
        return np.diff(self.first)


def pack_draw(
    indices: Sequence[np.ndarray],
    *,
    offsets: np.ndarray,
    clients: Sequence[str],
    batch_size: int,
    num_devices: int,
    num_lanes: int = 1,
    distinct: bool,
    only: Sequence[int] | None = None,
    empty_too: bool = False,
    capacity: int | None = None,
) -> Draw:
    """Checks a ragged draw and deals it, the clients with most batches first.

    Args:
        indices: for each client the row numbers of its drawn records, ``[count]`` or
            ``[passes, count]`` integers; empty for a client that takes no part (``[passes, 0]``
            keeps the number of passes where nobody takes part).
        offsets: ``[clients + 1]``, where each client's rows begin.
        clients: the clients' ids, for messages.
        batch_size: records in a batch.
        num_devices: how many devices to deal to.
        num_lanes: lanes of each device.
        distinct: refuse a row that is drawn twice in a pass.
        only: numbers of the clients that are dealt, whatever the others drew; None for all.
        empty_too: also deal clients without records, who then execute no step.
        capacity: at most so many clients a device; None for any number.

    Returns:
        The draw. A client without records is dealt to no bin, unless asked for.

    Raises:
        DataError: a wrong number of clients, other than integers, rows of another client, more
            rows than the client has, unequal numbers of passes, or a repeated row.
    """
    if len(indices) != len(clients):
        raise _refuse(
            f"one index array for each of {len(clients)} clients",
            f"{len(indices)}",
            "Give an empty array for a client that takes no part.",
        )
    dealt = np.arange(len(clients)) if only is None else np.asarray(only, np.int64)
    orders = [_as_passes(indices[c], c, clients, distinct) for c in dealt]
    counts = np.array([order.shape[1] for order in orders], np.int64)
    lengths = {len(order) for order in orders if order.size}
    if len(lengths) > 1:
        raise _refuse(
            "the same number of epochs for every client", f"{sorted(lengths)}", "Make them equal."
        )
    # Where nobody drew a record, empty arrays still say how many passes there are.
    passes = lengths.pop() if lengths else _passes_of_nothing(indices)
    sizes = passes * counts
    used = np.concatenate([order.ravel() for order in orders]) if orders else np.zeros(0, np.int32)
    _check(used, dealt, counts, sizes, offsets, clients)
    if distinct:
        _check_distinct(used, sizes, dealt, clients)

    room = passes * int(offsets[-1]) + batch_size  # a last batch may read beyond the last record
    rows = np.zeros(room, np.int32)
    rows[: len(used)] = used
    kept = np.flatnonzero((counts > 0) | empty_too)
    batches = -(-counts[kept] // batch_size)
    longest_first = np.argsort(-batches, kind="stable")
    load = np.maximum(batches[longest_first], 1)
    device = _deal(load, num_devices, capacity)
    lane, place = np.zeros_like(device), np.zeros_like(device)
    for d in range(num_devices):
        mine = np.flatnonzero(device == d)
        lane[mine] = _deal(load[mine], num_lanes, None)
    bins = device * num_lanes + lane
    by_bin = np.argsort(bins, kind="stable")
    chosen = kept[longest_first[by_bin]]
    per_device = np.bincount(device, minlength=num_devices)
    starts = np.cumsum(per_device) - per_device
    place = np.arange(len(chosen)) - starts[device[by_bin]]
    begins = np.cumsum(sizes) - sizes
    out = (np.zeros(len(clients), np.int32) for _ in range(4))
    client, start, count, places = out
    client[: len(chosen)], start[: len(chosen)] = dealt[chosen], begins[chosen]
    count[: len(chosen)], places[: len(chosen)] = counts[chosen], place
    ends = np.cumsum(np.bincount(bins, minlength=num_devices * num_lanes))
    first = np.concatenate([[0], ends]).astype(np.int32)
    return Draw(rows, client, start, count, places, first, passes)


def _deal(load: np.ndarray, num_bins: int, capacity: int | None) -> np.ndarray:
    """To which bin each goes, in the order given: always the one with the least load so far."""
    if num_bins == 1:
        return np.zeros(len(load), np.int64)
    heap = [(0, b, 0) for b in range(num_bins)]
    bins = np.empty(len(load), np.int64)
    for place, size in enumerate(load.tolist()):
        total, b, held = heapq.heappop(heap)
        bins[place] = b
        if capacity is None or held + 1 < capacity:
            heapq.heappush(heap, (total + size, b, held + 1))
    return bins


def _passes_of_nothing(indices: Sequence[np.ndarray]) -> int:
    return max(1, *(len(part) for part in indices if np.ndim(part) == 2), 1)


def _as_passes(rows: np.ndarray, c: int, clients: Sequence[str], distinct: bool) -> np.ndarray:
    order = np.asarray(rows)
    if order.size == 0:
        return np.zeros((1, 0), np.int32)
    if order.ndim not in (1, 2) or not np.issubdtype(order.dtype, np.integer):
        raise _refuse(
            f"row numbers of {clients[c]!r} as integers [count] or [epochs, count]",
            f"{order.dtype}{list(order.shape)}",
            "Use numpy.flatnonzero(...) on a mask, and astype(numpy.int32).",
        )
    order = order[None] if order.ndim == 1 else order
    if distinct and len(order) > 1:
        raise _refuse(
            f"one pass over the records of {clients[c]!r}",
            f"{len(order)} epochs",
            "Each record counts once in a sum over records: give [count].",
        )
    return order


def _check(used, dealt, counts, sizes, offsets, clients) -> None:
    offsets = np.asarray(offsets, np.int64)
    low, high = offsets[dealt], offsets[dealt + 1]
    outside = (used < np.repeat(low, sizes)) | (used >= np.repeat(high, sizes))
    if outside.any():
        at = int(np.searchsorted(np.cumsum(sizes), outside.argmax(), side="right"))
        raise _refuse(
            f"row numbers of {clients[dealt[at]]!r} in [{low[at]}, {high[at]})",
            "a row of another client",
            "Rows are numbered through the whole dataset: add offsets[client].",
        )
    if (counts > high - low).any():
        at = int((counts > high - low).argmax())
        raise _refuse(
            f"at most {high[at] - low[at]} rows of {clients[dealt[at]]!r} in an epoch",
            f"{counts[at]}",
            "Put further passes in rows of their own: [epochs, count].",
        )


def _check_distinct(used, sizes, dealt, clients) -> None:
    if not len(used):
        return
    seen = np.bincount(used - used.min())
    if (seen > 1).any():
        repeated = used.min() + int((seen > 1).argmax())
        first = int((used == repeated).argmax())
        at = int(np.searchsorted(np.cumsum(sizes), first, side="right"))
        raise _refuse(
            f"every record of {clients[dealt[at]]!r} at most once",
            "a row drawn twice",
            "A repeated record would count twice against its clipping bound: draw without "
            "replacement, or by Poisson sampling.",
        )


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("the engine's draw", need=need, found=found, fix=fix)
