"""Data sets of Hugging Face's `datasets` that were saved on disk."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.encoding import encode_text
from fedjax_secure.data.loaders.arrays import assemble, check_text_length


def from_hugging_face(
    path: str | os.PathLike,
    *,
    features: str | Sequence[str],
    label: str,
    client: str | None = None,
    split: str = "train",
    test_split: str | None = "test",
    text_length: int | None = None,
    classes: Sequence[str] | int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    unit: str = "record",
    name: str | None = None,
    card: str = "",
    population: str = "",
) -> FederatedDataset:
    """Loads what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote, offline.

    Needs the package datasets: ``pip install datasets`` (and Pillow for pictures).

    Args:
        path: the folder.
        features: the column of records (pictures become uint8, lists of numbers float32, int32 or
            uint8 as they are, text tokens of LEAF's alphabet), or a list of columns of numbers.
        label: the column to predict: whole numbers from 0, classes, or text.
        client: the column with the client of each record; None makes one client, ``"all"``, for a
            partitioner to divide.
        split: of several splits, the one with the training records.
        test_split: the one with the held-out records; None, or a folder of one split: a share of
            the training records is held out.
        text_length: tokens of a record of text, which is cut or filled with spaces.
        classes: the classes' names or number; by default what the column says of itself, or else
            the sorted values found.
        test_fraction, seed: the share to hold out where there is no such split, and its seed.
        unit, name, card, population: as in `FederatedDataset`.

    Returns:
        A `FederatedDataset`.

    Raises:
        DataError: no package datasets, no such folder, split or column, records of different
            shapes, or a missing value.
    """
    where = f"from_hugging_face({Path(path).name})"
    if importlib.util.find_spec("datasets") is None:
        raise _refuse(
            where,
            "the package datasets",
            "no package of that name",
            "Run: pip install datasets",
        )
    check_text_length(where, text_length)
    parts = _splits(path, where, split, test_split)
    names = [features] if isinstance(features, str) else list(features)
    for part in parts:
        absent = [c for c in [*names, label, client] if c and c not in part.column_names]
        if absent:
            raise _refuse(
                where, f"a column {absent[0]!r}", f"{part.column_names}", "Check features=, label=."
            )
    labels, found = _labels([part[label] for part in parts], parts[0].features[label], where)
    encoded = [
        (
            _records(part, names, isinstance(features, str), text_length, where),
            y,
            None if client is None else np.array([str(c) for c in part[client]]),
        )
        for part, y in zip(parts, labels, strict=True)
    ]
    about = parts[0].info
    stated = f"{about.description}\nLicence: {about.license or 'see its source'}.\n{about.citation}"
    return assemble(
        where,
        *encoded[0],
        test=encoded[1] if len(encoded) > 1 else None,
        classes=found if classes is None else classes,
        feature_names=() if isinstance(features, str) else names,
        shape=_text_shape(parts[0].features, features, encoded[0][0]),
        test_fraction=test_fraction,
        seed=seed,
        unit=unit,
        client_unit=client or "client",
        name=name or Path(path).name,
        card=card or f"Hugging Face dataset {Path(path).name}, from disk.\n{stated.strip()}\n",
        population=population,
    )


def _splits(path: str | os.PathLike, where: str, split: str, test_split: str | None) -> list[Any]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of arrow, of json, of the file system: whatever is wrong with it
        raise _refuse(
            where,
            "a folder that save_to_disk wrote",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing'}",
            "Give the folder that was passed to dataset.save_to_disk(...).",
        ) from None
    if not isinstance(loaded, datasets.DatasetDict):
        return [loaded]
    if split not in loaded:
        raise _refuse(where, f"a split {split!r}", f"{list(loaded)}", "Name it in split=.")
    if test_split is None or test_split not in loaded or test_split == split:
        return [loaded[split]]
    return [loaded[split], loaded[test_split]]


def _labels(columns: list[Any], kind: Any, where: str) -> tuple[list[np.ndarray], Any]:
    values = [list(column) for column in columns]
    if any(v is None for column in values for v in column):
        raise _refuse(where, "a label in every record", "records without", "Drop such records.")
    if hasattr(kind, "names"):
        return [np.array(column, np.int64) for column in values], list(kind.names)
    if all(isinstance(v, int | np.integer) for column in values for v in column):
        return [np.array(column, np.int64) for column in values], None
    found = sorted({str(v) for column in values for v in column})
    places = {value: k for k, value in enumerate(found)}
    return [np.array([places[str(v)] for v in column], np.int64) for column in values], found


def _records(
    part: Any, names: list[str], one: bool, text_length: int | None, where: str
) -> np.ndarray:
    columns = [list(part[name]) for name in names]
    if any(v is None for column in columns for v in column):
        raise _refuse(where, f"a value in every row of {names}", "rows without", "Drop such rows.")
    if one and columns[0] and isinstance(columns[0][0], str):
        lengths = {len(text) for text in columns[0]}
        if text_length is None and len(lengths) > 1:
            raise _refuse(
                where, "texts of one length, or text_length=",
                f"{min(lengths)} to {max(lengths)} characters", "Write text_length=140.",
            )  # fmt: skip
        length = text_length or lengths.pop()
        whole = "".join(text[:length].ljust(length) for text in columns[0])
        return encode_text(whole).reshape(-1, length)
    try:
        if not one:
            return np.stack([np.array(column, np.float32) for column in columns], axis=1)
        array = np.array([np.asarray(v) for v in columns[0]])
    except (ValueError, TypeError):
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise _refuse(
            where,
            f"numbers or pictures of one shape in {names}",
            "other values, or several shapes",
            "Resize or encode them before saving.",
        )
    kept = _stored_type(part.features[names[0]])
    if array.ndim == 3 and type(part.features[names[0]]).__name__ == "Image":
        array = array[..., None]  # a picture in grey
    return array.astype(kept) if kept in ("uint8", "int32") else array


def _text_shape(columns: Any, features: Any, x: np.ndarray) -> tuple[int, ...] | None:
    text = isinstance(features, str) and _stored_type(columns[features]).endswith("string")
    return x.shape[1:] if text else None


def _stored_type(feature: Any) -> str:
    while getattr(feature, "feature", None) is not None:
        feature = feature.feature
    return str(getattr(feature, "dtype", ""))


def _refuse(where: str, need: str, found: str, fix: str) -> DataError:
    return DataError(where, need=need, found=found, fix=fix)
