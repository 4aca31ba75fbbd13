"""The type of every federated dataset: records of several clients, and a fixed split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_secure.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS = {
    "x": np.float32,
    "y": np.int32,
    "offsets": np.int32,
    "test_x": np.float32,
    "test_y": np.int32,
    "test_offsets": np.int32,
}


@dataclass(frozen=True, eq=False, repr=False)
class FederatedDataset:
    """The records of several clients, one after the other, with training and held-out parts.

    One flat array for all clients is what the engine needs: it goes to the device once, and a
    round names records by their row number. Records of client c are the rows
    ``offsets[c]:offsets[c + 1]``. The arrays are made read-only.

    Guarantees:
        Nothing here is fitted: features are whatever was given, and the loaders of this package
        scale and impute by public constants only. The split is fixed when the dataset is made;
        the privacy guarantee of a run is about the training records. Counts, shares and
        fingerprints are computed from records and lie outside any privacy guarantee.

    Args:
        name: what the dataset is called.
        clients: one id for each client.
        x: ``[records, features] float32``, training records.
        y: ``[records] int32``, class numbers in ``[0, len(classes))``.
        offsets: ``[clients + 1] int32``, where each client's training records begin.
        test_x, test_y, test_offsets: the same for held-out records.
        feature_names: one name for each column of ``x``.
        classes: one name for each class.
        unit: what one record stands for, and so what privacy protects, e.g. ``"patient"``.
        client_unit: what one client is, for texts, e.g. ``"hospital"``.
        population: a name for the people behind the records. All datasets of one population,
            however encoded or split, share one privacy budget. Empty: the records are the name.
        card: provenance, licence, cleaning rules, public constants and citations, as text.

    Raises:
        DataError: shapes, types or values that do not fit together.

    Example:
        >>> import numpy as np
        >>> from fedjax_secure.data import FederatedDataset
        >>> data = FederatedDataset(
        ...     name="two", clients=("a", "b"), x=np.zeros((3, 1)), y=[0, 1, 0], offsets=[0, 2, 3],
        ...     test_x=np.zeros((0, 1)), test_y=[], test_offsets=[0, 0, 0],
        ...     feature_names=("height",), classes=("no", "yes"))
        >>> data
        FederatedDataset('two', clients=2, train=3, test=0, features=1, classes=2, unit='record')
        >>> data.rows(1)
        array([2], dtype=int32)
    """

    name: str
    clients: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    test_offsets: np.ndarray
    feature_names: tuple[str, ...]
    classes: tuple[str, ...]
    unit: str = "record"
    card: str = field(default="")
    client_unit: str = "client"
    population: str = ""

    def __post_init__(self):
        for name in ("clients", "feature_names", "classes"):
            object.__setattr__(self, name, tuple(str(v) for v in getattr(self, name)))
        for name, dtype in _ARRAYS.items():
            array = _as_array(name, getattr(self, name), dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check()

    def _check(self):
        if not self.clients:
            raise _refuse("at least one client", "none", "Give the id of each client.")
        for what in ("clients", "feature_names", "classes"):
            names = getattr(self, what)
            if len(set(names)) != len(names):
                repeated = sorted({n for n in names if names.count(n) > 1})
                raise _refuse(f"distinct {what}", f"{repeated} twice", "Rename one of them.")
        if len(self.classes) < 2:
            raise _refuse("two or more classes", f"{self.classes}", "Name every class.")
        for x, y, offsets in (("x", "y", "offsets"), ("test_x", "test_y", "test_offsets")):
            self._check_part(x, y, offsets)
        empty = [c for c, n in zip(self.clients, np.diff(self.offsets), strict=True) if n == 0]
        if empty:
            raise _refuse(
                "training records at every client", f"none at {empty}", "Leave such clients out."
            )

    def _check_part(self, x: str, y: str, offsets: str):
        records, labels, bounds = getattr(self, x), getattr(self, y), getattr(self, offsets)
        if records.ndim != 2 or records.shape[1] != len(self.feature_names):
            raise _refuse(
                f"{x} of shape [records, {len(self.feature_names)}]",
                f"{list(records.shape)}",
                "Give one column for each of feature_names.",
            )
        if labels.shape != (len(records),):
            raise _refuse(
                f"{y} of shape [{len(records)}]", f"{list(labels.shape)}", "Give one per record."
            )
        expected = (len(self.clients) + 1,)
        if (
            bounds.shape != expected
            or bounds[0] != 0
            or bounds[-1] != len(records)
            or np.any(np.diff(bounds) < 0)
        ):
            raise _refuse(
                f"{offsets} of shape {list(expected)} rising from 0 to {len(records)}",
                f"shape {list(bounds.shape)}, values {bounds.ravel()[:8].tolist()}",
                "Sort the records by client and give where each client begins.",
            )
        if not np.isfinite(records).all():
            raise _refuse(
                f"finite values in {x}", "NaN or infinity", "Impute or drop such records."
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
            raise _refuse(
                f"{y} in [0, {len(self.classes)})",
                "a value outside it",
                "Number the classes from 0 in the order of `classes`.",
            )

    @property
    def num_clients(self) -> int:
        """The number of clients."""
        return len(self.clients)

    @property
    def num_features(self) -> int:
        """The number of features of a record."""
        return len(self.feature_names)

    @property
    def counts(self) -> np.ndarray:
        """``[clients] int32``: training records of each client."""
        return np.diff(self.offsets)

    @property
    def test_counts(self) -> np.ndarray:
        """``[clients] int32``: held-out records of each client."""
        return np.diff(self.test_offsets)

    def rows(self, client: int) -> np.ndarray:
        """Returns the row numbers of a client's training records, ``[count] int32``."""
        return np.arange(self.offsets[client], self.offsets[client + 1], dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the whole content, with the split: equal exactly if the data are equal.

        A digest of private records lets anyone who knows all records but one test a guess about
        the last: keep it on the machine that holds the records, or publish it salted.
        """
        digest = self._digest_of_meaning()
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @cached_property
    def population_fingerprint(self) -> str:
        """sha256 (hex) of the population's name, or else of the records of each client.

        Without a name it covers each client's records in any order, training and held-out together.

        Another split of the same records has the same population fingerprint. A privacy budget
        belongs to this one: a new split does not give the patients a new budget. The caution
        of `fingerprint` holds here too.
        """
        if self.population:
            named = f"fedjax_secure population 1\n{self.population}"
            return hashlib.sha256(named.encode()).hexdigest()
        digest = self._digest_of_meaning()
        for c in range(self.num_clients):
            train = slice(self.offsets[c], self.offsets[c + 1])
            test = slice(self.test_offsets[c], self.test_offsets[c + 1])
            x = np.concatenate([self.x[train], self.test_x[test]]).astype("<f4")
            y = np.concatenate([self.y[train], self.test_y[test]]).astype("<i4")
            records = sorted(a.tobytes() + b.tobytes() for a, b in zip(x, y, strict=True))
            digest.update(f"client{c}:{len(records)}".encode())
            digest.update(b"".join(records))
        return digest.hexdigest()

    def _digest_of_meaning(self):
        digest = hashlib.sha256(b"fedjax_secure federated dataset 1\n")
        for part in (self.clients, self.feature_names, self.classes, (self.unit,)):
            digest.update(repr(part).encode())
        return digest

    def pooled(self) -> FederatedDataset:
        """Returns the same records as one client, `"pooled"`: the baseline without federation.

        Returns:
            A dataset of one client. Train on it and evaluate on the original, per client.
        """
        return FederatedDataset(
            name=f"{self.name}, pooled",
            clients=("pooled",),
            x=self.x,
            y=self.y,
            offsets=np.array([0, len(self.y)]),
            test_x=self.test_x,
            test_y=self.test_y,
            test_offsets=np.array([0, len(self.test_y)]),
            feature_names=self.feature_names,
            classes=self.classes,
            unit=self.unit,
            client_unit=self.client_unit,
            population=self.population,
            card=self.card,
        )

    def describe(self) -> pd.DataFrame:
        """Returns one row for each client: its records, and the share of each class among them.

        Columns: ``client``, ``train``, ``test`` and ``share of CLASS`` for each class, over the
        training and held-out records together. These are exact counts, outside any privacy
        guarantee: look at them where the records may be looked at.
        """
        import pandas as pd

        rows = []
        for c, client in enumerate(self.clients):
            train = self.y[self.offsets[c] : self.offsets[c + 1]]
            test = self.test_y[self.test_offsets[c] : self.test_offsets[c + 1]]
            shares = np.bincount(np.concatenate([train, test]), minlength=len(self.classes))
            row: dict[str, Any] = {"client": client, "train": len(train), "test": len(test)}
            for name, count in zip(self.classes, shares, strict=True):
                row[f"share of {name}"] = count / shares.sum()
            rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return (
            f"FederatedDataset({self.name!r}, clients={self.num_clients}, train={len(self.y)}, "
            f"test={len(self.test_y)}, features={self.num_features}, "
            f"classes={len(self.classes)}, unit={self.unit!r})"
        )


def _as_array(name: str, value: Any, dtype: Any) -> np.ndarray:
    try:
        array = np.array(value)
        if array.size and dtype == np.int32:
            whole = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.bool_)
            if not whole or np.any(array != array.astype(np.int32)):
                raise TypeError
        return array.astype(dtype)
    except (TypeError, ValueError):
        raise _refuse(
            f"{name} as an array of {np.dtype(dtype)}", type(value).__name__, "Convert it first."
        ) from None


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("FederatedDataset", need=need, found=found, fix=fix)


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
    check_split(test_fraction, seed)
    labels = np.asarray(labels)
    order = np.random.PCG64(np.random.SeedSequence([int(seed), stream])).random_raw(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        wanted = int(np.floor(test_fraction * len(members) + 0.5)) if test_fraction else 0
        if test_fraction:
            wanted = max(wanted, 1)
        wanted = min(wanted, len(members) - 1)
        held_out[members[np.argsort(order[members], kind="stable")][:wanted]] = True
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
) -> FederatedDataset:
    """Groups encoded records by client, splits each client, and builds the dataset.

    Args:
        name, feature_names, classes, unit, client_unit, population, card: as in `FederatedDataset`.
        client_names: the clients' ids, in the order of the dataset.
        client: ``[records] int``, the number of each record's client.
        x: ``[records, features]``, encoded features.
        y: ``[records] int``, class numbers.
        test_fraction, seed: as in `split_records`.

    Returns:
        The dataset; records of a client keep their order.

    Raises:
        DataError: as `FederatedDataset` and `split_records` do.
    """
    train, test = [], []
    for c in range(len(client_names)):
        rows = np.flatnonzero(client == c)
        held_out = split_records(y[rows], test_fraction=test_fraction, seed=seed, stream=c)
        train.append(rows[~held_out])
        test.append(rows[held_out])
    train_rows, test_rows = np.concatenate(train), np.concatenate(test)
    return FederatedDataset(
        name=name,
        clients=tuple(client_names),
        x=x[train_rows],
        y=y[train_rows],
        offsets=np.cumsum([0, *map(len, train)]),
        test_x=x[test_rows],
        test_y=y[test_rows],
        test_offsets=np.cumsum([0, *map(len, test)]),
        feature_names=tuple(feature_names),
        classes=tuple(classes),
        unit=unit,
        client_unit=client_unit,
        population=population,
        card=card,
    )
