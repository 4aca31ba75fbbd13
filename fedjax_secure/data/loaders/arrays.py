"""A federated dataset from arrays in memory; the other loaders end here."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.splitting import by_client, check_split, from_parts, from_records

_MANY_CLASSES = 10_000  # a larger label is a slip, where nobody says that there are so many classes


def from_arrays(
    x: np.ndarray,
    y: Sequence[int] | np.ndarray,
    clients: Sequence[Hashable] | np.ndarray | None = None,
    *,
    test: tuple[Any, ...] | None = None,
    classes: Sequence[str] | int | None = None,
    shape: tuple[int, ...] | None = None,
    feature_names: Sequence[str] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
    unit: str = "record",
    client_unit: str = "client",
    name: str = "arrays",
    card: str = "",
    population: str = "",
) -> FederatedDataset:
    """Makes a federated dataset of records, labels and the client of each record.

    Nothing is scaled: scale features by public constants before, never by statistics of the
    records. uint8 (pixels) and int32 (tokens) are kept; everything else becomes float32.

    Args:
        x: ``[records, ...]``, the records: rows of features, pictures, series.
        y: ``[records] int``, class numbers from 0.
        clients: the client's id of each record, in any order; None makes one client, ``"all"``, for
            a partitioner to divide.
        test: the held-out part as ``(x, y, clients)``, or ``(x, y)`` where ``clients`` is None. By
            default a share of each client's records is held out.
        classes: the classes' names, or their number; by default as many as the largest label says,
            which is then read from the records, outside any privacy guarantee.
        shape: the shape of one record; by default that of ``x`` where a record has one.
        feature_names: one for each feature; by default their places.
        test_fraction: the share of each client's records to hold out, in [0, 1), the same of every
            class; used where ``test`` is None.
        seed: of that split; a public constant.
        unit, client_unit, name, card, population: as in `FederatedDataset`.

    Returns:
        A `FederatedDataset`; clients are in sorted order, whole numbers by size.

    Raises:
        DataError: lengths that differ, labels that are not whole numbers of classes, NaN, no
            records, or a client with held-out records alone.

    Example:
        >>> pictures = np.zeros((6, 2, 2, 1), np.uint8)
        >>> data = from_arrays(pictures, [0, 1, 0, 1, 0, 1], ["b", "a", "a", "a", "b", "b"],
        ...                    test_fraction=0)
        >>> data.clients, data.shape, data.x.dtype, data.counts.tolist()
        (('a', 'b'), (2, 2, 1), dtype('uint8'), [3, 3])
    """
    return assemble(
        "from_arrays",
        x,
        y,
        clients,
        test=test,
        classes=classes,
        shape=shape,
        feature_names=feature_names,
        test_fraction=test_fraction,
        seed=seed,
        unit=unit,
        client_unit=client_unit,
        name=name,
        card=card,
        population=population,
    )


def assemble(
    where: str,
    x: Any,
    y: Any,
    clients: Any = None,
    *,
    test: tuple[Any, ...] | None = None,
    classes: Sequence[str] | int | None = None,
    shape: tuple[int, ...] | None = None,
    feature_names: Sequence[str] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
    **attributes: Any,
) -> FederatedDataset:
    """Does what `from_arrays` does; ``where`` says in messages who asks."""
    check_split(test_fraction, seed)
    given_parts = len(test) if isinstance(test, tuple | list) else 0
    test_clients = test[2] if test is not None and given_parts > 2 else None
    parts = [_part(where, "", x, y, clients)]
    if test is not None:
        if given_parts not in (2, 3) or (clients is None) != (test_clients is None):
            raise DataError(
                where,
                need="test=(x, y, clients), or (x, y) where there are no clients",
                found=f"{given_parts} parts" if given_parts else type(test).__name__,
                fix="Give the client of both the training and the held-out records, or of none.",
            )
        parts.append(_part(where, "held-out ", *test[:2], test_clients))
    records, labels, ids = (list(p) for p in zip(*parts, strict=True))
    if len(records[0]) == 0:
        raise DataError(where, need="one record at least", found="none", fix="Check the file.")
    if any(r.shape[1:] != records[0].shape[1:] for r in records):
        raise DataError(
            where,
            need=f"held-out records of shape {list(records[0].shape[1:])}, as the training records",
            found=f"{list(records[1].shape[1:])}",
            fix="Encode both in the same way.",
        )
    if shape is None:
        shape = records[0].shape[1:] if records[0].ndim > 2 else ()
    if not len(feature_names) and not shape:
        feature_names = [str(j) for j in range(records[0].shape[1])]
    names, client = _number(np.concatenate(ids))
    given = {
        **attributes,
        "client_names": names,
        "client": client,
        "x": _joined(where, [r.reshape(len(r), math.prod(r.shape[1:])) for r in records]),
        "y": np.concatenate(labels),
        "feature_names": feature_names,
        "classes": _classes(where, classes, np.concatenate(labels)),
        "shape": shape,
    }
    if test is None:
        return from_records(test_fraction=test_fraction, seed=seed, **given)
    without = np.setdiff1d(np.arange(len(names)), client[: len(records[0])])
    if len(without):
        raise DataError(
            where,
            need="training records at every client",
            found=f"held-out records alone at {[names[c] for c in without[:8]]}",
            fix="Split by record and not by client, or leave such clients out.",
        )
    order, _ = by_client(client, len(names))
    held_out = order >= len(records[0])
    return from_parts(order[~held_out], order[held_out], **given)


def _part(
    where: str, kind: str, x: Any, y: Any, clients: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    records, labels = _array(x), _array(y)
    if any(np.ma.is_masked(part) for part in (x, y, clients)):
        raise DataError(
            where,
            need=f"a value in every place of the {kind}records, labels and clients",
            found="masked values",
            fix="Fill them by a public constant, x.filled(0), or drop such records.",
        )
    if records.ndim < 2 or records.dtype.kind not in "fiub":
        raise DataError(
            where,
            need=f"{kind}records as numbers of shape [records, ...]",
            found=f"shape {list(records.shape)}, dtype {records.dtype}",
            fix="Stack records of one shape: numpy.stack(...).",
        )
    if labels.shape != (len(records),):
        raise DataError(
            where,
            need=f"{len(records)} {kind}labels, one for each record",
            found=f"shape {list(labels.shape)}",
            fix="Check that records and labels belong together.",
        )
    whole = labels.dtype.kind == "f" and np.isfinite(labels).all()
    if whole and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.size and (labels.dtype.kind not in "iub" or labels.min() < 0):
        raise DataError(
            where,
            need=f"{kind}labels that are whole numbers of 0 or more",
            found=f"dtype {labels.dtype}" + (", negative" if labels.dtype.kind in "i" else ""),
            fix="Number the classes from 0.",
        )
    ids = np.full(len(records), "all") if clients is None else np.asarray(clients)
    if ids.shape != (len(records),):
        raise DataError(
            where,
            need=f"{len(records)} {kind}clients, one id for each record",
            found=f"shape {list(ids.shape)}",
            fix="Give the client of each record.",
        )
    missing = _missing(ids)
    if missing:
        raise DataError(
            where,
            need=f"the client of every one of the {kind}records",
            found=f"{missing} without",
            fix="Drop such records, or name their client.",
        )
    return records, labels.astype(np.int64), ids


def check_text_length(where: str, length: Any) -> None:
    """Refuses a number of tokens that no text has.

    Raises:
        DataError: neither None nor a whole number of 1 or more.
    """
    whole = isinstance(length, int | np.integer) and not isinstance(length, bool)
    if length is not None and not (whole and length >= 1):
        raise DataError(
            where,
            need="text_length as a whole number of 1 or more",
            found=repr(length),
            fix="Write text_length=80, or leave it out.",
        )


def _array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # lists of different lengths
        return np.empty(0, object)


def _missing(ids: np.ndarray) -> int:
    """How many ids are None or NaN."""
    if ids.dtype.kind == "f":
        return int(np.isnan(ids).sum())
    if ids.dtype.kind != "O":
        return 0
    return sum(v is None or type(v).__name__ == "NAType" or v != v for v in ids.tolist())


def _number(ids: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The clients' names in order, and each record's number among them."""
    values, numbers = np.unique(ids if ids.dtype.kind in "iu" else ids.astype(str),
                                return_inverse=True)  # fmt: skip
    return [str(v) for v in values], numbers


def _joined(where: str, parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) > 1 and parts[0].dtype != parts[1].dtype and len(parts[1]):
        raise DataError(
            where,
            need=f"held-out records of dtype {parts[0].dtype}, as the training records",
            found=f"{parts[1].dtype}",
            fix="Encode both in the same way.",
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _classes(where: str, classes: Any, labels: np.ndarray) -> Sequence[str]:
    most = int(labels.max()) + 1
    if classes is None and most > max(_MANY_CLASSES, len(labels)):
        raise DataError(
            where,
            need=f"labels below {max(_MANY_CLASSES, len(labels)):,} where classes are not given",
            found=f"{most - 1}",
            fix="Number the classes from 0 without gaps, or give their number in classes=.",
        )
    if classes is None or isinstance(classes, int | np.integer):
        names = [str(k) for k in range(max(most, 2) if classes is None else int(classes))]
    elif isinstance(classes, str) or not isinstance(classes, Iterable):
        raise DataError(
            where,
            need="classes as a list of names, or their number",
            found=repr(classes),
            fix="Write classes=10, for example.",
        )
    else:
        names = [str(name) for name in classes]
    if most > len(names):
        raise DataError(
            where,
            need=f"labels in [0, {len(names)}), as many as there are classes",
            found=f"{most - 1}",
            fix="Name or count every class in classes=.",
        )
    return names
