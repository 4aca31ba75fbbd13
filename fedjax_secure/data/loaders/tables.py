"""CSV and Parquet files with a client column."""

from __future__ import annotations

import importlib.util
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.loaders.dataframe import from_dataframe
from fedjax_secure.data.loaders.idx import read_file

if TYPE_CHECKING:
    import pandas as pd


def from_csv(
    path: str | os.PathLike,
    client: str,
    label: str,
    *,
    read: dict[str, Any] | None = None,
    **arguments: Any,
) -> FederatedDataset:
    """Loads a CSV file with a header: one row a record, one column names the client.

    Args:
        path: the file; ``.gz``, ``.bz2``, ``.xz`` and ``.zip`` are decompressed.
        client: the column with the client of each row.
        label: the column to predict.
        read: arguments for `pandas.read_csv`, e.g. ``{"sep": ";"}``.
        **arguments: those of `from_dataframe`: ``ranges``, ``categories``, ``classes``, ...

    Returns:
        What `from_dataframe` makes; its name is the file's, unless ``name`` says otherwise.

    Raises:
        DataError: no such file, one that is not CSV, or what `from_dataframe` refuses.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "study.csv"
        >>> _ = file.write_text("site,age,ill\\na,30,0\\na,50,1\\nb,40,1\\nb,60,0\\n")
        >>> from_csv(file, client="site", label="ill", ranges={"age": (20, 80)}, test_fraction=0)
        FederatedDataset('study', clients=2, train=4, test=0, features=1, classes=2, unit='record')
    """
    import pandas as pd

    where = f"the CSV file {Path(path).name}"
    if not Path(path).is_file():
        read_file(path, where)  # says why
    try:
        table = pd.read_csv(path, **(read or {}))
    except (ValueError, OSError, EOFError, TypeError, ImportError, *_BROKEN) as error:
        raise DataError(
            where,
            need="comma-separated values with a header",
            found=_said(error),
            fix="Check the file, or pass read={...}, the arguments of pandas.read_csv.",
        ) from None
    return _named(path, table, client, label, arguments)


def from_parquet(
    path: str | os.PathLike, client: str, label: str, **arguments: Any
) -> FederatedDataset:
    """Loads a Parquet file, or a folder of them: one row a record, one column names the client.

    Needs the package pyarrow: ``pip install "fedjax-secure[datasets]"``.

    Args:
        path: the file or folder.
        client: the column with the client of each row.
        label: the column to predict.
        **arguments: those of `from_dataframe`: ``ranges``, ``categories``, ``classes``, ...

    Returns:
        What `from_dataframe` makes; its name is the file's, unless ``name`` says otherwise.

    Raises:
        DataError: no pyarrow, no such file, one that is not Parquet, or what `from_dataframe`
            refuses.
    """
    import pandas as pd

    where = f"the Parquet file {Path(path).name}"
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            where,
            need="the package pyarrow",
            found="no package of that name",
            fix="Run: pip install pyarrow",
        )
    if not Path(path).exists():
        read_file(path, where)  # says why
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except (ValueError, OSError) as error:
        raise DataError(
            where,
            need="a whole Parquet file",
            found=_said(error),
            fix="Make or download it again.",
        ) from None
    return _named(path, table, client, label, arguments)


# What decompressing a broken file raises, beside OSError and EOFError.
_BROKEN = (zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


def _said(error: Exception) -> str:
    """An error's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _named(
    path: str | os.PathLike, table: pd.DataFrame, client: str, label: str, arguments: dict[str, Any]
) -> FederatedDataset:
    stem = Path(path).name.split(".")[0]
    return from_dataframe(table, client=client, label=label, **{"name": stem, **arguments})
