"""What every partitioner shares: its random stream, the rule for empty clients, the new dataset."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset, frozen
from fedjax_secure.data.splitting import by_client, check_split

#: Of a Dirichlet law: above it the shares are even to all digits, and their sum would overflow.
LARGEST_CONCENTRATION = 1e30

Deal = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


def random_stream(seed: int, stream: int = 0) -> np.random.RandomState:
    """A random stream that numpy keeps for ever, up to rounding of what is not whole.

    ``RandomState`` is frozen (NEP 19), and so are PCG64 and SeedSequence.

    Raises:
        DataError: a seed that is not an integer of 0 or more.

    Example:
        >>> random_stream(0).permutation(5)
        array([2, 4, 3, 0, 1])
    """
    check_split(0, seed)
    return np.random.RandomState(np.random.PCG64(np.random.SeedSequence([int(seed), stream])))


def deal_records(
    where: str,
    data: FederatedDataset | Sequence[int] | np.ndarray,
    num_clients: int,
    deal: Deal,
    *,
    seed: int,
    min_records: int,
    said: str,
) -> Any:
    """Deals records to clients by `deal`, then makes sure that no client is short of records.

    Args:
        where: the partitioner's name, for messages and the dataset's name.
        data: a dataset, or ``[records] int`` labels.
        num_clients: how many clients to make.
        deal: from ``[records] int`` labels and a random stream to ``[records] int`` clients.
        seed: of the random stream.
        min_records: what each client has at least.
        said: the settings, for the card.

    Returns:
        ``[records] int32``, the client of each label; or for a dataset a dataset.

    Raises:
        DataError: a bad number of clients or seed, labels that are not whole numbers of 0 or more,
            or fewer records than the clients need.
    """
    labels = data.y if isinstance(data, FederatedDataset) else _whole(where, data)
    _at_least_one(where, "num_clients", num_clients)
    _at_least_one(where, "min_records", min_records)
    if num_clients * min_records > len(labels):
        raise DataError(
            where,
            need=f"{num_clients * min_records} training records for {num_clients} clients",
            found=f"{len(labels)}",
            fix=f"Ask for {max(len(labels) // min_records, 1)} clients or fewer.",
        )
    random = random_stream(seed)
    client = fill_up(deal(labels, random), num_clients, min_records, random)
    if not isinstance(data, FederatedDataset):
        return client.astype(np.int32)
    held_out = follow(client, data.y, data.test_y, num_clients, random)
    return dealt(data, client, held_out, [str(c) for c in range(num_clients)], where, said)


def dealt(
    data: FederatedDataset,
    client: np.ndarray,
    test_client: np.ndarray,
    names: Sequence[str],
    where: str,
    said: str,
) -> FederatedDataset:
    """Returns the same records at other clients; held-out records stay held out.

    Args:
        data: the dataset.
        client, test_client: ``[records] int``, the new client of each record of either part.
        names: the clients' ids.
        where, said: the partitioner and its settings, for the name and the card.
    """
    order, offsets = by_client(client, len(names))
    test_order, test_offsets = by_client(test_client, len(names))
    return data.derive(
        name=f"{data.name}, {where}",
        clients=tuple(names),
        x=frozen(data.x[order]),
        y=frozen(data.y[order]),
        offsets=offsets,
        test_x=frozen(data.test_x[test_order]),
        test_y=frozen(data.test_y[test_order]),
        test_offsets=test_offsets,
        client_unit="client",
        card=f"{data.card}\nPartition: {where}({said}), {len(names)} clients. Not the data's own: "
        "the clients are made for experiments.\n",
    )


def fill_up(
    client: np.ndarray, num_clients: int, min_records: int, random: np.random.RandomState
) -> np.ndarray:
    """Gives each client at least `min_records` records.

    A client that is short takes random records, one at a time, from whichever client has most at
    that moment. Nothing moves where no client is short.

    Args:
        client: ``[records] int``, the client of each record; as many records as are needed.
        num_clients, min_records: what must hold.
        random: which of a client's records moves.

    Returns:
        ``[records] int64``.

    Example:
        >>> np.bincount(fill_up(np.array([0, 0, 0, 0]), 3, 1, random_stream(0)))
        array([2, 1, 1])
    """
    client = np.array(client, np.int64)
    counts = np.bincount(client, minlength=num_clients)
    short = np.flatnonzero(counts < min_records)
    if not len(short):
        return client
    shuffled = random.permutation(len(client))
    order = shuffled[np.argsort(client[shuffled], kind="stable")]
    ends = np.cumsum(counts)
    givers = [(-int(n), c) for c, n in enumerate(counts) if n > min_records]
    heapq.heapify(givers)
    for taker in short:
        for _ in range(min_records - counts[taker]):
            number, giver = givers[0]
            ends[giver] -= 1
            client[order[ends[giver]]] = taker
            heapq.heapreplace(givers, (number + 1, giver))
    return client


def apportion(total: int, weights: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Deals `total` things by weight in whole numbers: the largest remainders round up.

    Args:
        total: how many there are.
        weights: ``[clients] float`` of 0 or more, not all 0.
        random: breaks ties.

    Returns:
        ``[clients] int64`` that sum to `total`, each less than 1 from its exact share.

    Example:
        >>> apportion(10, np.array([1.0, 1.0, 2.0]), random_stream(0)).sum()
        np.int64(10)
    """
    exact = total * (weights / weights.sum())
    whole = np.floor(exact).astype(np.int64)
    rest = np.lexsort((random.random_sample(len(weights)), whole - exact))
    whole[rest[: total - whole.sum()]] += 1
    return whole


def follow(
    client: np.ndarray,
    labels: np.ndarray,
    test_labels: np.ndarray,
    num_clients: int,
    random: np.random.RandomState,
) -> np.ndarray:
    """Deals held-out records as the training records lie: class by class in the same shares.

    A class that no client trains on is dealt by the clients' sizes.

    Returns:
        ``[held-out records] int64``, the client of each.
    """
    sizes = np.bincount(client, minlength=num_clients)
    found = np.zeros(len(test_labels), np.int64)
    for k in np.unique(test_labels):
        rows = random.permutation(np.flatnonzero(test_labels == k))
        weights = np.bincount(client[labels == k], minlength=num_clients)
        weights = weights if weights.any() else sizes
        found[rows] = np.repeat(np.arange(num_clients), apportion(len(rows), weights, random))
    return found


def positive(where: str, name: str, value: Any) -> float:
    """Returns a finite number above 0.

    Raises:
        DataError: anything else.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value < np.inf:
        raise DataError(
            where, need=f"{name} above 0", found=repr(value), fix=f"Write for example {name}=0.5."
        )
    return float(value)


def _at_least_one(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(
            where,
            need=f"{name} as a whole number of 1 or more",
            found=repr(value),
            fix=f"Write for example {name}=10.",
        )


def _whole(where: str, labels: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise DataError(
            where,
            need="a dataset, or labels [records] that are whole numbers of 0 or more",
            found=f"{type(labels).__name__} of shape {list(array.shape)} and dtype {array.dtype}",
            fix="Number the classes from 0, one number for each record.",
        )
    return array.astype(np.int64)
