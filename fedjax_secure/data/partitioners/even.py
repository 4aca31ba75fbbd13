"""Partitions without skew of their own: records dealt at random, and clients that you name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners.dealing import deal_records, dealt


@overload
def iid(data: FederatedDataset, num_clients: int, *, seed: int = 0) -> FederatedDataset: ...
@overload
def iid(data: Sequence[int] | np.ndarray, num_clients: int, *, seed: int = 0) -> np.ndarray: ...
def iid(data: Any, num_clients: int, *, seed: int = 0) -> Any:
    """Deals the records at random, the same number to each client, at most one apart.

    The baseline beside every skewed partition.

    Args:
        data: a dataset, whose clients are replaced; or ``[records] int`` labels.
        num_clients: how many clients to make; at most one for each training record.
        seed: a public constant.

    Returns:
        A dataset, which spends from the same privacy budget; or the client of each label,
        ``[records] int32``. Held-out records stay held out.

    Raises:
        DataError: fewer training records than clients, or a bad number of clients or seed.

    Example:
        >>> from fedjax_secure.data import heart_disease
        >>> iid(heart_disease(), 10).counts
        array([74, 74, 74, 74, 74, 73, 73, 73, 73, 73], dtype=int32)
    """

    def deal(labels, random):
        client = np.empty(len(labels), np.int64)
        client[random.permutation(len(labels))] = even_clients(len(labels), num_clients)
        return client

    return deal_records(
        "iid", data, num_clients, deal, seed=seed, min_records=1, said=f"seed={seed}"
    )


def even_clients(records: int, num_clients: int) -> np.ndarray:
    """Returns ``[records] int64``: 0, 0, ..., 1, 1, ... in runs at most one apart in length.

    Example:
        >>> even_clients(5, 2)
        array([0, 0, 0, 1, 1])
    """
    sizes = np.full(num_clients, records // num_clients)
    sizes[: records % num_clients] += 1
    return np.repeat(np.arange(num_clients), sizes)


def natural(
    data: FederatedDataset, ids: Mapping[str, Hashable] | Sequence[Hashable] | np.ndarray
) -> FederatedDataset:
    """Makes clients of what you name: merges the clients there are, or names each record's.

    Args:
        data: the dataset.
        ids: for each client of ``data`` the new client that it goes to; or one id for each record,
            those of the training records first, then those of the held-out records.

    Returns:
        A dataset with the clients in sorted order, which spends from the same privacy budget.

    Raises:
        DataError: a client or record without an id, or a new client without training records.

    Example:
        >>> from fedjax_secure.data import heart_disease
        >>> data = natural(heart_disease(), {"Cleveland": "US", "VA Long Beach": "US",
        ...                                  "Hungary": "Europe", "Switzerland": "Europe"})
        >>> data.clients, data.counts.tolist()
        (('Europe', 'US'), [333, 402])
    """
    records = len(data.y), len(data.test_y)
    if isinstance(ids, Mapping):
        absent = [c for c in data.clients if c not in ids]
        if absent or len(ids) != data.num_clients:
            extra = [c for c in ids if c not in data.clients]
            raise DataError(
                "natural",
                need=f"a new client for each of the {data.num_clients} clients",
                found=f"none for {absent[:8]}" if absent else f"the unknown {extra[:8]}",
                fix="Write natural(data, {old: new, ...}) with every client of the dataset.",
            )
        each = np.array([str(ids[c]) for c in data.clients])
        named = np.concatenate(
            [np.repeat(each, data.counts), np.repeat(each, data.test_counts)]
        )  # fmt: skip
    else:
        named = np.array([str(v) for v in ids])
        if len(named) != sum(records):
            raise DataError(
                "natural",
                need=f"{sum(records)} ids: {records[0]} of training and {records[1]} of held-out "
                "records",
                found=f"{len(named)}",
                fix="Give one id for each record, in the order of the dataset.",
            )
    names, client = np.unique(named, return_inverse=True)
    return dealt(
        data, client[: records[0]], client[records[0] :], names.tolist(), "natural", "given ids"
    )
