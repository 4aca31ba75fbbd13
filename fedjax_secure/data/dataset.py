"""The type of every federated dataset: records of several clients, and a fixed split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.description import describe, draw, label_counts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_ARRAYS = ("x", "y", "offsets", "test_x", "test_y", "test_offsets")
_KEPT = (np.dtype(np.uint8), np.dtype(np.int32))  # dtypes of `x` that do not become float32


class Card(str):
    """A dataset's card: text that shows itself, and that may be called, ``dataset.card()``.

    Example:
        >>> card = Card("Heights of two villages. Licence: CC0.")
        >>> card()
        Heights of two villages. Licence: CC0.
        >>> "Licence" in card
        True
    """

    def __call__(self) -> Card:
        """Returns the card; a notebook shows its text."""
        return self

    def __repr__(self) -> str:
        return str(self)


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
        x: ``[records, features]``, training records. uint8 (pixels 0 to 255) and int32 (numbers of
            tokens) are kept as given; everything else becomes float32.
        y: ``[records] int32``, class numbers in ``[0, len(classes))``.
        offsets: ``[clients + 1] int32``, where each client's training records begin.
        test_x, test_y, test_offsets: the same for held-out records; a client may have none.
        feature_names: one name for each column of ``x``. With a ``shape`` they may be left empty:
            a feature is then named by its place, ``"0,0,0"``, ``"0,0,1"``, ...
        classes: one name for each class.
        unit: what one record stands for, and so what privacy protects, e.g. ``"patient"``.
        client_unit: what one client is, for texts, e.g. ``"hospital"``.
        population: a name for the people behind the records. All datasets of one population,
            however encoded or split, share one privacy budget. Empty: the records are the name.
        card: provenance, licence, cleaning rules, public constants and citations, as text.
            ``dataset.card()`` shows it.
        shape: the shape of one record, e.g. ``(28, 28, 1)`` (height, width, channels); a row of
            ``x`` is the record in C order. Empty: a record is a plain vector.

    Arrays that are read-only all the way down are shared; others are copied.

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
    card: Card = Card()
    client_unit: str = "client"
    population: str = ""
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        def assign(name: str, value: Any):
            object.__setattr__(self, name, value)

        assign("card", Card(self.card))
        assign("shape", _as_shape(self.shape))
        if self.shape and len(self.feature_names) == 0:
            places = np.ndindex(*self.shape)
            assign("feature_names", [",".join(map(str, place)) for place in places])
        for name in ("clients", "feature_names", "classes"):
            assign(name, tuple(str(v) for v in getattr(self, name)))
        assign("x", _as_array("x", self.x, _dtype_of(self.x)))
        assign("test_x", self._as_test_x(self.test_x))
        for name in ("y", "offsets", "test_y", "test_offsets"):
            assign(name, _as_array(name, getattr(self, name), np.dtype(np.int32)))
        self._check()

    def _as_test_x(self, value: Any) -> np.ndarray:
        if np.size(value) and self.x.dtype != _dtype_of(value):
            raise _refuse(
                f"test_x of x's type, {self.x.dtype}",
                f"{_dtype_of(value)}",
                "Encode training and held-out records in the same way.",
            )
        return _as_array("test_x", value, self.x.dtype)

    def _check(self):
        if not self.clients:
            raise _refuse("at least one client", "none", "Give the id of each client.")
        for what in ("clients", "feature_names", "classes"):
            names = getattr(self, what)
            if len(set(names)) != len(names):
                repeated = sorted(n for n, times in Counter(names).items() if times > 1)
                raise _refuse(f"distinct {what}", f"{_short(repeated)} twice", "Rename one.")
        if len(self.classes) < 2:
            raise _refuse("two or more classes", f"{self.classes}", "Name every class.")
        for x, y, offsets in (("x", "y", "offsets"), ("test_x", "test_y", "test_offsets")):
            self._check_part(x, y, offsets)
        if self.shape and np.prod(self.shape, dtype=object) != self.num_features:
            raise _refuse(
                f"a shape of {self.num_features} features in all",
                f"{self.shape}",
                "The product of the shape is the number of columns of x.",
            )
        empty = [self.clients[c] for c in np.flatnonzero(np.diff(self.offsets) == 0)]
        if empty:
            raise _refuse(
                "training records at every client",
                f"none at {_short(empty)}",
                "Leave such clients out.",
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
        if records.dtype == np.float32 and not np.isfinite(records).all():
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
        """Returns the row numbers of a client's training records, ``[count] int32``.

        Raises:
            DataError: no client of that number.
        """
        whole = isinstance(client, int | np.integer) and not isinstance(client, bool)
        if not whole or not 0 <= client < self.num_clients:
            raise _refuse(
                f"a client's number from 0 to {self.num_clients - 1}",
                repr(client),
                "dataset.clients.index(name) is that of a name.",
            )
        return np.arange(self.offsets[client], self.offsets[client + 1], dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the whole content, with the split: equal exactly if the data are equal.

        A digest of private records lets anyone who knows all records but one test a guess about
        the last: keep it on the machine that holds the records, or publish it salted.
        """
        digest = self._digest_of_meaning()
        for name in _ARRAYS:
            array = getattr(self, name)
            digest.update(f"{name}{array.shape}".encode())
            digest.update(_as_bytes(array if array.ndim == 2 else array[:, None]))
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
        if self._origin is not None:
            return self._origin.population_fingerprint
        digest = self._digest_of_meaning()
        for c in range(self.num_clients):
            train = slice(self.offsets[c], self.offsets[c + 1])
            test = slice(self.test_offsets[c], self.test_offsets[c + 1])
            x = np.concatenate([self.x[train], self.test_x[test]])
            y = np.concatenate([self.y[train], self.test_y[test]])
            records = np.concatenate([_as_bytes(x), _as_bytes(y[:, None])], axis=1)
            digest.update(f"client{c}:{len(records)}".encode())
            digest.update(np.sort(records.view(f"V{records.shape[1]}").ravel()).tobytes())
        return digest.hexdigest()

    def __setstate__(self, state: dict[str, Any]):
        """A copy, or a dataset out of a pickle, is read-only again."""
        self.__dict__.update(state)
        for name in _ARRAYS:
            frozen(getattr(self, name))

    def _digest_of_meaning(self):
        digest = hashlib.sha256(b"fedjax_secure federated dataset 1\n")
        for part in (self.clients, self.feature_names, self.classes, (self.unit,)):
            digest.update(repr(part).encode())
        if self.x.dtype != np.float32 or self.shape:
            digest.update(repr((self.x.dtype.name, self.shape)).encode())
        return digest

    #: The dataset that this one was made of, where the population has no name of its own.
    _origin = None

    def derive(self, **changes: Any) -> FederatedDataset:
        """Returns a dataset of the same people with some attributes replaced.

        The new dataset spends from the same privacy budget, also where ``population`` is empty.

        Args:
            **changes: attributes of `FederatedDataset`.

        Returns:
            The new dataset; arrays that did not change are shared, not copied.

        Raises:
            DataError: what does not fit together.

        Example:
            >>> from fedjax_secure.data import heart_disease
            >>> data = heart_disease()
            >>> data.derive(name="hearts").population_fingerprint == data.population_fingerprint
            True
        """
        made = replace(self, **changes)
        if not made.population:
            object.__setattr__(made, "_origin", self if self._origin is None else self._origin)
        return made

    def subset(self, clients: Sequence[int | str] | np.ndarray) -> FederatedDataset:
        """Returns the records of some clients only, in the order in which you name them.

        A run of neighbours shares the arrays of this dataset; any other choice copies the records
        of the chosen clients and no others.

        Args:
            clients: their ids, or their numbers from 0; a boolean mask over all clients serves too.

        Returns:
            A dataset of these clients, which spends from the same privacy budget.

        Raises:
            DataError: no client, one named twice, or one that is not in the dataset.

        Example:
            >>> from fedjax_secure.data import heart_disease
            >>> heart_disease().subset(["Hungary", "Cleveland"]).clients
            ('Hungary', 'Cleveland')
        """
        chosen = self._client_numbers(clients)
        parts: dict[str, Any] = {}
        for prefix in ("", "test_"):
            bounds = getattr(self, f"{prefix}offsets").astype(np.int64)
            counts = np.diff(bounds)[chosen]
            offsets = np.concatenate([[0], np.cumsum(counts)])
            if np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
                rows: Any = slice(bounds[chosen[0]], bounds[chosen[-1] + 1])
            else:
                rows = np.arange(offsets[-1]) + np.repeat(bounds[chosen] - offsets[:-1], counts)
            parts[f"{prefix}offsets"] = offsets
            for name in (f"{prefix}x", f"{prefix}y"):
                parts[name] = frozen(getattr(self, name)[rows])
        return self.derive(clients=tuple(self.clients[c] for c in chosen), **parts)

    def _client_numbers(self, clients: Sequence[int | str] | np.ndarray) -> np.ndarray:
        asked = np.asarray(clients)
        if asked.ndim != 1 or asked.size == 0:
            raise _refuse("a list of clients", repr(clients), 'Write subset(["a", "b"]).')
        if asked.dtype == bool:
            if len(asked) != self.num_clients or not asked.any():
                raise _refuse(
                    f"a mask of {self.num_clients} clients, true for one at least",
                    f"{len(asked)} entries, {int(asked.sum())} of them true",
                    "Give one entry for each client.",
                )
            return np.flatnonzero(asked)
        if asked.dtype.kind in "iu":
            unknown = asked[(asked < 0) | (asked >= self.num_clients)].tolist()
            numbers = asked.astype(np.int64)
        else:
            places = {client: c for c, client in enumerate(self.clients)}
            unknown = [str(c) for c in clients if str(c) not in places]
            numbers = np.array([places.get(str(c), -1) for c in clients], np.int64)
        if unknown:
            raise _refuse(
                f"clients of {_short(self.clients)}, or numbers below {self.num_clients}",
                _short(unknown),
                "Check the spelling: dataset.clients lists them.",
            )
        if len(np.unique(numbers)) != len(numbers):
            raise _refuse("distinct clients", "one named twice", "Name each client once.")
        return numbers

    def pooled(self) -> FederatedDataset:
        """Returns the same records as one client, `"pooled"`: the baseline without federation.

        Returns:
            A dataset of one client. Train on it and evaluate on the original, per client.
        """
        return self.derive(
            name=f"{self.name}, pooled",
            clients=("pooled",),
            offsets=np.array([0, len(self.y)]),
            test_offsets=np.array([0, len(self.test_y)]),
        )

    @cached_property
    def label_counts(self) -> np.ndarray:
        """``[clients, classes] int64``: records of each class, training and held-out together."""
        return label_counts(self)

    def describe(self) -> pd.DataFrame:
        """Returns one row for each client: its records, the share of each class, and its skew.

        Columns: ``client``, ``train``, ``test``, ``share of CLASS`` for each class over the
        training and held-out records together, and ``skew``: the total variation distance between
        the client's shares and those of all records pooled, 0 where they agree, and below 1.
        These are exact counts, outside any privacy guarantee: look at them where the records may
        be looked at. `plot` draws the same.
        """
        return describe(self)

    def plot(self) -> Figure:
        """Draws the clients' sizes, their label shares, and their skew, as a matplotlib figure.

        Up to 100 clients are drawn one column each; more are sorted by their most frequent class
        and drawn as a picture. What `describe` says of privacy holds here too.

        Example:
            >>> from fedjax_secure.data import heart_disease
            >>> len(heart_disease().plot().axes) >= 3
            True
        """
        return draw(self)

    def __repr__(self) -> str:
        return (
            f"FederatedDataset({self.name!r}, clients={self.num_clients}, train={len(self.y)}, "
            f"test={len(self.test_y)}, features={self.num_features}, "
            f"classes={len(self.classes)}, unit={self.unit!r})"
        )


def frozen(array: np.ndarray) -> np.ndarray:
    """Marks a new array read-only, so that a dataset takes it over without copying.

    Example:
        >>> frozen(np.zeros(2)).flags.writeable
        False
    """
    array.setflags(write=False)
    return array


def _dtype_of(x: Any) -> np.dtype:
    dtype = getattr(x, "dtype", None)
    return dtype if dtype in _KEPT else np.dtype(np.float32)


def _cannot_change(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or isinstance(array, bytes)


def _as_array(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    if type(value) is np.ndarray and value.dtype == dtype and _cannot_change(value):
        return value
    try:
        array = np.asarray(value)
        if array.size and dtype.kind == "i":
            whole = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.bool_)
            if not whole or np.any(array != array.astype(np.int32)):
                raise TypeError
        return frozen(array.astype(dtype))
    except (TypeError, ValueError):
        raise _refuse(
            f"{name} as an array of {dtype}", type(value).__name__, "Convert it first."
        ) from None


def _as_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(shape)
        if not all(isinstance(n, int | np.integer) and n > 0 for n in sizes):
            raise TypeError
        return tuple(int(n) for n in sizes)
    except TypeError:
        raise _refuse(
            "a shape of whole numbers above 0", repr(shape), "Write shape=(28, 28, 1)."
        ) from None


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """``[records, bytes] uint8`` of ``[records, columns]``, little-endian."""
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    width = content.shape[1] * content.itemsize
    return content.reshape(-1).view(np.uint8).reshape(len(array), width)


def _short(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(n) for n in names[:8])
    return f"[{shown}{f', ... ({len(names)} in all)' if len(names) > 8 else ''}]"


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("FederatedDataset", need=need, found=found, fix=fix)
