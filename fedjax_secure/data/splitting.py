"""The fixed split of records into training and held-out parts, and a dataset from loose records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset, frozen


def check_split(test_fraction: float, seed: int) -> None:
    """Refuses what `split_records` cannot split by.

    Raises:
        DataError: a fraction outside [0, 1), or a seed that is not an integer of 0 or more.
    """
    number = isinstance(test_fraction, int | float | np.number)
    if isinstance(test_fraction, bool) or not number or not 0 <= test_fraction < 1:
        raise DataError(
            "the split",
            need="a test_fraction in [0, 1)",
            found=repr(test_fraction),
            fix="0.2 holds out a fifth of each client's records.",
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(
            "the split",
            need="an integer seed of 0 or more",
            found=repr(seed),
            fix="Give seed=0, or any other public constant.",
        )


def split_records(
    labels: Sequence[int] | np.ndarray, *, test_fraction: float, seed: int, stream: int
) -> np.ndarray:
    """Chooses a client's held-out records: seeded, and the same share of every class.

    Each class gives ``round(test_fraction * size)`` of its records, at least one where it has
    two and a share was asked for, and never all of them. The choice sorts the class by the raw
    64-bit output of PCG64, whose stream numpy keeps for ever, so the split is a constant of the
    data, the fraction and the seed.

    Args:
        labels: ``[records]`` class numbers of one client.
        test_fraction: the share to hold out, in [0, 1).
        seed: any integer of 0 or more; a public constant.
        stream: the client's number, so that clients have different permutations.

    Returns:
        ``[records] bool``, true where the record is held out.

    Raises:
        DataError: a fraction outside [0, 1), or a seed that is not an integer of 0 or more.

    Example:
        >>> split_records([0, 0, 0, 1, 1], test_fraction=0.3, seed=0, stream=0).sum()
        np.int64(2)
    """
    labels = np.asarray(labels)
    return split_clients(
        labels,
        np.array([0, len(labels)]),
        test_fraction=test_fraction,
        seed=seed,
        first_stream=stream,
    )


def split_clients(
    labels: np.ndarray,
    offsets: np.ndarray,
    *,
    test_fraction: float,
    seed: int,
    first_stream: int = 0,
) -> np.ndarray:
    """Does what `split_records` does for many clients at once, client c with its own stream.

    A client with one record of a class keeps it for training; so a client with one record has no
    held-out records.

    Args:
        labels: ``[records] int``, class numbers, contiguous by client.
        offsets: ``[clients + 1] int``, where each client's records begin.
        test_fraction, seed: as in `split_records`.
        first_stream: the stream of the first client; the others follow.

    Returns:
        ``[records] bool``, true where the record is held out.

    Raises:
        DataError: a bad fraction or seed.

    Example:
        >>> held = split_clients(np.zeros(8, int), np.array([0, 3, 8]), test_fraction=0.4, seed=0)
        >>> held[:3].sum(), held[3:].sum()
        (np.int64(1), np.int64(2))
    """
    check_split(test_fraction, seed)
    counts = np.diff(offsets)
    held_out = np.zeros(len(labels), bool)
    if not test_fraction or not len(labels):
        return held_out
    order = np.concatenate(
        [
            np.random.PCG64(np.random.SeedSequence([int(seed), first_stream + c])).random_raw(n)
            for c, n in enumerate(counts.tolist())
        ]
    )
    client = np.repeat(np.arange(len(counts)), counts)
    sorting = np.lexsort((order, labels, client))
    new_group = np.ones(len(labels), bool)
    new_group[1:] = (np.diff(labels[sorting]) != 0) | (np.diff(client[sorting]) != 0)
    starts = np.flatnonzero(new_group)
    sizes = np.diff(np.append(starts, len(labels)))
    wanted = np.maximum(np.floor(test_fraction * sizes + 0.5).astype(np.int64), 1)
    wanted = np.minimum(wanted, sizes - 1)
    place = np.arange(len(labels)) - np.repeat(starts, sizes)
    held_out[sorting] = place < np.repeat(wanted, sizes)
    return held_out


def from_records(
    *,
    name: str,
    client_names: Sequence[str],
    client: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    test_fraction: float,
    seed: int,
    feature_names: Sequence[str],
    classes: Sequence[str],
    unit: str,
    card: str,
    client_unit: str = "client",
    population: str = "",
    shape: tuple[int, ...] = (),
) -> FederatedDataset:
    """Groups encoded records by client, splits each client, and builds the dataset.

    Args:
        name, feature_names, classes, unit, client_unit, population, card, shape: as in
            `FederatedDataset`.
        client_names: the clients' ids, in the order of the dataset.
        client: ``[records] int``, the number of each record's client.
        x: ``[records, features]``, encoded features: float32, uint8 or int32.
        y: ``[records] int``, class numbers.
        test_fraction, seed: as in `split_records`.

    Returns:
        The dataset; records of a client keep their order.

    Raises:
        DataError: as `FederatedDataset` and `split_records` do.
    """
    order, offsets = by_client(client, len(client_names))
    held_out = split_clients(y[order], offsets, test_fraction=test_fraction, seed=seed)
    return from_parts(
        order[~held_out],
        order[held_out],
        name=name,
        client_names=client_names,
        client=client,
        x=x,
        y=y,
        feature_names=feature_names,
        classes=classes,
        unit=unit,
        client_unit=client_unit,
        population=population,
        card=card,
        shape=shape,
    )


def from_parts(
    train_rows: np.ndarray,
    test_rows: np.ndarray,
    *,
    client_names: Sequence[str],
    client: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    **attributes: Any,
) -> FederatedDataset:
    """Builds the dataset of records that are ordered by client and split already.

    Args:
        train_rows, test_rows: ``[count] int``, rows of ``x``, in the order of the clients.
        client_names, client, x, y: as in `from_records`.
        **attributes: other arguments of `FederatedDataset`.

    Returns:
        The dataset.

    Raises:
        DataError: as `FederatedDataset` does.
    """
    parts = {}
    for prefix, rows in (("", train_rows), ("test_", test_rows)):
        counts = np.bincount(client[rows], minlength=len(client_names))
        parts[f"{prefix}x"] = frozen(x[rows])
        parts[f"{prefix}y"] = frozen(np.asarray(y)[rows])
        parts[f"{prefix}offsets"] = np.concatenate([[0], np.cumsum(counts)])
    return FederatedDataset(clients=tuple(client_names), **parts, **attributes)


def by_client(client: np.ndarray, num_clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders records by client; those of one client keep their order.

    Args:
        client: ``[records] int``, the number of each record's client.
        num_clients: how many clients there are.

    Returns:
        ``[records] int64`` row numbers, contiguous by client, and ``[num_clients + 1] int64``
        offsets into them.

    Example:
        >>> by_client(np.array([1, 0, 1]), 2)
        (array([1, 0, 2]), array([0, 1, 3]))
    """
    counts = np.bincount(client, minlength=num_clients)
    return np.argsort(client, kind="stable"), np.concatenate([[0], np.cumsum(counts)])
