"""A ragged draw as arrays of fixed size: which records, whose, and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_secure.core.errors import DataError


class Draw(NamedTuple):
    """The records of one round, dealt to devices.

    The sizes depend on the dataset, the batch size and the number of epochs only, with room for
    every record of the population: no draw is ever truncated, and none makes JAX compile again.

    Attributes:
        rows: ``[devices, room] int32``, row numbers in the dataset, client after client.
        client: ``[devices, clients] int32``, the clients dealt to each device.
        start: ``[devices, clients] int32``, where each begins in ``rows``.
        count: ``[devices, clients] int32``, its records in one epoch.
        busy: ``[devices] int32``, how many clients each device was dealt.
        epochs: how often ``rows`` goes through a client's records.
    """

    rows: np.ndarray
    client: np.ndarray
    start: np.ndarray
    count: np.ndarray
    busy: np.ndarray
    epochs: int


def pack_draw(
    indices: Sequence[np.ndarray],
    *,
    offsets: np.ndarray,
    clients: Sequence[str],
    batch_size: int,
    num_devices: int,
    distinct: bool,
    only: Sequence[int] | None = None,
    empty_too: bool = False,
) -> Draw:
    """Checks a ragged draw and deals it to devices, the clients with most batches first.

    Args:
        indices: for each client the row numbers of its drawn records, ``[count]`` or
            ``[epochs, count]`` integers; empty for a client that takes no part (``[epochs, 0]``
            keeps the number of epochs where nobody takes part).
        offsets: ``[clients + 1]``, where each client's rows begin.
        clients: the clients' ids, for messages.
        batch_size: records in a batch.
        num_devices: how many devices to deal to.
        distinct: refuse a row that is drawn twice in an epoch.
        only: numbers of the clients that are dealt, whatever the others drew; None for all.
        empty_too: also deal clients without records, who then execute no step.

    Returns:
        The draw. A client without records is dealt to no device, unless asked for.

    Raises:
        DataError: a wrong number of clients, other than integers, rows of another client, more
            rows than the client has, unequal numbers of epochs, or a repeated row.
    """
    if len(indices) != len(clients):
        raise _refuse(
            f"one index array for each of {len(clients)} clients",
            f"{len(indices)}",
            "Give an empty array for a client that takes no part.",
        )
    nothing = np.zeros((1, 0), np.int32)
    dealt = range(len(clients)) if only is None else set(only)
    orders = [
        _checked(rows, c, offsets, clients, distinct) if c in dealt else nothing
        for c, rows in enumerate(indices)
    ]
    lengths = {len(order) for order in orders if order.size}
    if len(lengths) > 1:
        raise _refuse(
            "the same number of epochs for every client", f"{sorted(lengths)}", "Make them equal."
        )
    # Where nobody drew a record, empty arrays still say how many epochs there are.
    epochs = lengths.pop() if lengths else max(len(order) for order in orders)
    room = epochs * int(offsets[-1]) + batch_size  # a last batch may read beyond the last record
    shape = (num_devices, len(clients))
    rows = np.zeros((num_devices, room), np.int32)
    client, start, count = (np.zeros(shape, np.int32) for _ in range(3))
    busy, filled, load = (np.zeros(num_devices, np.int64) for _ in range(3))
    batches = np.array([-(-order.shape[1] // batch_size) for order in orders])
    for c in np.argsort(-batches, kind="stable"):
        order = orders[c]
        if c not in dealt or not (order.size or empty_too):
            continue
        device = int(load.argmin())
        place, first = busy[device], filled[device]
        rows[device, first : first + order.size] = order.ravel()
        client[device, place], start[device, place] = c, first
        count[device, place] = order.shape[1]
        busy[device] += 1
        filled[device] += order.size
        load[device] += max(batches[c], 1)
    return Draw(rows, client, start, count, busy.astype(np.int32), epochs)


def _checked(
    rows: np.ndarray, c: int, offsets: np.ndarray, clients: Sequence[str], distinct: bool
) -> np.ndarray:
    order = np.asarray(rows)
    if order.size == 0:
        epochs = len(order) if order.ndim == 2 and not distinct else 1
        return np.zeros((max(epochs, 1), 0), np.int32)
    if order.ndim not in (1, 2) or not np.issubdtype(order.dtype, np.integer):
        raise _refuse(
            f"row numbers of {clients[c]!r} as integers [count] or [epochs, count]",
            f"{order.dtype}{list(order.shape)}",
            "Use numpy.flatnonzero(...) on a mask, and astype(numpy.int32).",
        )
    order = np.atleast_2d(order)
    low, high = int(offsets[c]), int(offsets[c + 1])
    if order.min() < low or order.max() >= high:
        raise _refuse(
            f"row numbers of {clients[c]!r} in [{low}, {high})",
            "a row of another client",
            "Rows are numbered through the whole dataset: add offsets[client].",
        )
    if order.shape[1] > high - low:
        raise _refuse(
            f"at most {high - low} rows of {clients[c]!r} in an epoch",
            f"{order.shape[1]}",
            "Put further passes in rows of their own: [epochs, count].",
        )
    if distinct and len(order) > 1:
        raise _refuse(
            f"one pass over the records of {clients[c]!r}",
            f"{len(order)} epochs",
            "Each record counts once in a sum over records: give [count].",
        )
    if distinct and len(np.unique(order)) != order.size:
        raise _refuse(
            f"every record of {clients[c]!r} at most once",
            "a row drawn twice",
            "A repeated record would count twice against its clipping bound: draw without "
            "replacement, or by Poisson sampling.",
        )
    return order.astype(np.int32)


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("the engine's draw", need=need, found=found, fix=fix)
