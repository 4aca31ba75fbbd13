"""A federated dataset from any pandas DataFrame that has a client column."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.encoding import CategoryColumn, Column, NumberColumn, encode_columns
from fedjax_secure.data.splitting import check_split, from_records

if TYPE_CHECKING:
    import pandas as pd


def from_dataframe(
    df: pd.DataFrame,
    client: str,
    label: str,
    *,
    features: Sequence[str] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    categories: Mapping[str, Sequence[Hashable]] | None = None,
    classes: Sequence[Hashable] | None = None,
    may_be_missing: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    unit: str = "record",
    name: str = "dataframe",
    card: str = "",
    population: str = "",
) -> FederatedDataset:
    """Makes a federated dataset of a table: one row a record, one column names the client.

    Features are made by public constants that you give, never by statistics of the table: a mean,
    a smallest or a largest value is computed from records, and what is trained on it would leak
    outside the privacy guarantee. A number is scaled from its range to [-1, 1], clipped to it, and
    takes the midpoint where it is missing; a category becomes one feature for each of its values.
    A column with missing values gets one more feature, 1 where the value is missing.

    Guarantees:
        With ``may_be_missing`` and ``classes`` given, the features and classes are a function of
        one record and your constants. Without them, which columns have an indicator and which
        classes exist are read from the table; the card says so.

    Args:
        df: the table. Its index is ignored.
        client: the column with the client of each row.
        label: the column to predict.
        features: the columns to use; by default all others, in the table's order.
        ranges: the public ``(low, high)`` of each numeric column.
        categories: the public values of each categorical column. Columns of category or bool
            dtype need none.
        classes: the label's values, in order; by default those of its category dtype, or else
            the sorted values found.
        may_be_missing: the columns that get an indicator; a value missing elsewhere is refused.
            By default the columns in which a value is missing.
        test_fraction: the share of each client's records to hold out, in [0, 1); the same share
            of every class.
        seed: of the split; a public constant.
        unit: what one row stands for, e.g. ``"patient"``: what privacy protects.
        name: what the dataset is called.
        card: provenance and licence, as text; the constants used are added to it.
        population: a name for the people behind the table. Give it, and the same one for every
            encoding and every later version of the table: they then share one privacy budget.

    Returns:
        A `FederatedDataset`; clients are in sorted order, or in that of their category dtype.

    Raises:
        DataError: no such column, an empty table, a column named twice, a row without client or
            label, a client without rows, fewer than two classes, an infinite value, a numeric
            column without range, a column of another type without categories, a value outside
            the categories, a bad range, fraction or seed.

    Example:
        >>> import pandas as pd
        >>> from fedjax_secure.data import from_dataframe
        >>> df = pd.DataFrame({"hospital": ["a", "a", "b", "b"], "age": [30, 50, 40, None],
        ...                    "smoker": [True, False, False, True], "ill": [1, 0, 0, 1]})
        >>> data = from_dataframe(df, client="hospital", label="ill", ranges={"age": (20, 80)},
        ...                       test_fraction=0)
        >>> data.feature_names
        ('age', 'age missing', 'smoker=False', 'smoker=True')
        >>> data.x[3].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise _refuse("a pandas DataFrame", type(df).__name__, "Wrap it in pandas.DataFrame(...).")
    repeated = sorted({str(c) for c in df.columns[df.columns.duplicated()]})
    if repeated:
        raise _refuse(
            "distinct column names", f"{repeated} more than once", "Rename or drop the others."
        )
    if len(df) == 0:
        raise _refuse("at least one row", "an empty table", "Check how the table was read.")
    if client == label:
        raise _refuse(
            "a client column and a label column", f"{client!r} for both", "Name two columns."
        )
    for argument, value in (("features", features), ("classes", classes),
                            ("may_be_missing", may_be_missing)):  # fmt: skip
        if isinstance(value, str) or not isinstance(value, Iterable | None):
            raise _refuse(
                f"{argument} as a list", repr(value), f"Write {argument}=[{value!r}, ...]."
            )
    for argument, value in (("ranges", ranges), ("categories", categories)):
        if not isinstance(value, Mapping | None):
            raise _refuse(
                f"{argument} by column, as a dict",
                type(value).__name__,
                f"Write {argument}={{column: ...}}.",
            )
    for argument, value in (("client", client), ("label", label)):
        if not isinstance(value, Hashable):
            raise _refuse(f"one column in {argument}=", repr(value), "Give its name.")
    if features is None:
        features = [c for c in df.columns if c not in (client, label)]
    check_split(test_fraction, seed)
    _columns_exist(df, [client, label, *features])
    _features_make_sense(features, client, label)

    client_names, client_numbers = _clients(df, client)
    class_names, y, classes_found = _labels(df, label, classes)
    given = {
        "ranges": dict(ranges or {}),
        "categories": dict(categories or {}),
        "may_be_missing": dict.fromkeys(may_be_missing or ()),
    }
    for argument, names in given.items():
        unknown = [c for c in names if c not in features]
        if unknown:
            raise _refuse(
                f"names of features in {argument}=",
                f"{unknown}",
                f"The features are {_short(features)}.",
            )
    missing = {c: df[c].isna().to_numpy() for c in features}
    indicators = [c for c in features if missing[c].any()]
    if may_be_missing is not None:
        undeclared = [c for c in indicators if c not in given["may_be_missing"]]
        if undeclared:
            raise _refuse(
                "no missing value outside may_be_missing=",
                f"some in {undeclared}",
                f"Write may_be_missing={[*may_be_missing, *undeclared]}, or drop such rows.",
            )
        indicators = list(may_be_missing)

    columns, values = [], []
    for feature in features:
        column, encoded = _feature(
            df[feature],
            feature,
            given["ranges"].get(feature),
            given["categories"].get(feature),
            feature in indicators,
        )
        columns.append(column)
        values.append(encoded)
    x, feature_names = encode_columns(columns, values)
    return from_records(
        name=name,
        client_names=client_names,
        client=client_numbers,
        x=x,
        y=y,
        test_fraction=test_fraction,
        seed=seed,
        feature_names=feature_names,
        classes=class_names,
        unit=unit,
        client_unit=str(client),
        population=population,
        card=_card(card, columns, classes_found, may_be_missing is None, test_fraction, seed),
    )


def _columns_exist(df: pd.DataFrame, names: Sequence[str]) -> None:
    absent = [c for c in names if c not in df.columns]
    if absent:
        raise _refuse(
            f"a column named {absent[0]!r}",
            f"the columns {_short(list(df.columns))}",
            "Check the spelling of client=, label= and features=.",
        )


def _features_make_sense(features: Sequence[str], client: str, label: str) -> None:
    if not features:
        raise _refuse(
            "at least one feature column", "none", "Name the columns to learn from in features=."
        )
    if len(set(features)) != len(features):
        raise _refuse("distinct features", _short(features), "Name each column once.")
    for name in (client, label):
        if name in features:
            raise _refuse(
                "features apart from client and label",
                f"{name!r} among the features",
                "Leave it out: the model would be told the answer, or where a record is from.",
            )


def _clients(df: pd.DataFrame, client: str) -> tuple[list[str], np.ndarray]:
    import pandas as pd

    column = df[client]
    absent = int(column.isna().sum())
    if absent:
        raise _refuse(
            f"a client in every row of {client!r}",
            f"{absent} rows without one",
            f"Drop them: df.dropna(subset=[{client!r}]).",
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        names, numbers = list(column.cat.categories), column.cat.codes.to_numpy()
    else:
        names = list(column.unique())
        try:
            names = sorted(names)
        except TypeError:
            names = sorted(names, key=str)
        numbers = _codes(column, names)
    rows = np.bincount(numbers, minlength=len(names))
    empty = [str(n) for n, count in zip(names, rows, strict=True) if count == 0]
    if empty:
        raise _refuse(
            "rows for every client",
            f"none for {empty}",
            f"Drop the unused category: df[{client!r}].cat.remove_unused_categories().",
        )
    texts = [str(n) for n in names]
    if len(set(texts)) != len(texts):
        raise _refuse(
            "clients that differ as text",
            f"values of {client!r} that read the same",
            f"Give them one type: df[{client!r}].astype(str).",
        )
    return texts, np.asarray(numbers, np.int64)


def _labels(
    df: pd.DataFrame, label: str, classes: Sequence[Hashable] | None
) -> tuple[list[str], np.ndarray, bool]:
    import pandas as pd

    column = df[label]
    absent = int(column.isna().sum())
    if absent:
        raise _refuse(
            f"a label in every row of {label!r}",
            f"{absent} rows without one",
            f"Drop them: df.dropna(subset=[{label!r}]).",
        )
    found = False
    if classes is not None:
        values = list(classes)
    elif isinstance(column.dtype, pd.CategoricalDtype):
        values = list(column.cat.categories)
    else:
        found, values = True, list(column.unique())
        try:
            values = sorted(values)
        except TypeError:
            values = sorted(values, key=str)
        floats = [v for v in values if isinstance(v, float | np.floating)]
        fractional = [v for v in floats if not float(v).is_integer()]
        if fractional:
            raise _refuse(
                "labels that name a class",
                f"fractions in {label!r}",
                "Make classes of them first, e.g. with pandas.cut; regression is not offered.",
            )
        values = [int(v) if isinstance(v, float | np.floating) else v for v in values]
    if len(set(values)) != len(values):
        raise _refuse("distinct classes", _short(values), "Name each class once.")
    y = _codes(column, values)
    if (y == -1).any():
        raise _refuse(
            f"labels among the classes {_short(values)}",
            f"{int((y == -1).sum())} rows with another label",
            "Add the class to classes=, or drop such rows.",
        )
    present = np.unique(y)
    if len(values) < 2 or len(present) < 2:
        raise _refuse(
            f"two or more classes in {label!r}",
            f"{len(present)} in all rows",
            "There is nothing to learn: check how the label was made.",
        )
    return [str(v) for v in values], y.astype(np.int32), found


def _feature(
    column: pd.Series,
    name: str,
    bounds: tuple[float, float] | None,
    categories: Sequence[Hashable] | None,
    indicator: bool,
) -> tuple[Column, np.ndarray]:
    import pandas as pd

    if bounds is not None and categories is not None:
        raise _refuse(
            f"ranges= or categories= for {name!r}", "both", "Is it a number or a category?"
        )
    if bounds is not None:
        return _number_feature(column, name, bounds, indicator)
    if categories is None and isinstance(column.dtype, pd.CategoricalDtype):
        categories = list(column.cat.categories)
    elif categories is None and pd.api.types.is_bool_dtype(column.dtype):
        categories = [False, True]
    if categories is not None:
        return _category_feature(column, name, categories, indicator)
    if pd.api.types.is_numeric_dtype(column.dtype):
        raise _refuse(
            f"a public range for the numeric column {name!r}",
            "none",
            f"Write ranges={{{name!r}: (low, high)}} with bounds known without looking at the "
            "records; a fitted range would leak outside the privacy guarantee.",
        )
    raise _refuse(
        f"numbers with a range, or declared categories, in column {name!r}",
        f"dtype {column.dtype}",
        f"Write categories={{{name!r}: [...]}} with its public values, or leave it out of "
        "features=.",
    )


def _number_feature(
    column: pd.Series, name: str, bounds: tuple[float, float], indicator: bool
) -> tuple[Column, np.ndarray]:
    import pandas as pd

    try:
        low, high = (float(b) for b in bounds)
    except (TypeError, ValueError):
        low = high = float("nan")
    usable = low < high and 0 < high / 2 - low / 2  # not too narrow, and below not too wide
    if not (usable and np.isfinite([low, high, high - low, low + high]).all()):
        raise _refuse(
            f"a range (low, high) with low < high for {name!r}",
            repr(bounds),
            f"Write ranges={{{name!r}: (low, high)}} with two finite numbers and a finite width.",
        )
    if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "c":
        raise _refuse(
            f"numbers in column {name!r}, which has a range",
            f"dtype {column.dtype}",
            f"Convert it first: pandas.to_numeric(df[{name!r}]).",
        )
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    infinite = int(np.isinf(numbers).sum())
    if infinite:
        raise _refuse(
            f"finite values in column {name!r}",
            f"{infinite} infinite ones",
            "Replace them by NaN if they are missing, or drop such rows.",
        )
    return NumberColumn(name, low, high, indicator), numbers


def _category_feature(
    column: pd.Series, name: str, categories: Sequence[Hashable], indicator: bool
) -> tuple[Column, np.ndarray]:
    one = isinstance(categories, str) or not isinstance(categories, Iterable)
    values = [categories] if one else list(categories)
    if len(set(values)) != len(values) or len(values) < 2:
        raise _refuse(
            f"two or more distinct categories for {name!r}", _short(values), "List its values."
        )
    codes = _codes(column, values)
    unknown = int(((codes == -1) & ~column.isna().to_numpy()).sum())
    if unknown:
        raise _refuse(
            f"values of {name!r} among {_short(values)}",
            f"{unknown} rows with another value",
            f"Add it to categories={{{name!r}: [...]}}, or set it to missing.",
        )
    return CategoryColumn(name, tuple(str(v) for v in values), indicator), codes


def _codes(column: pd.Series, values: Sequence[Hashable]) -> np.ndarray:
    """Each row's place in values, -1 where it is not among them."""
    import pandas as pd

    return pd.Index(values, dtype=object).get_indexer(column.astype(object))


def _card(
    card: str,
    columns: Sequence[Column],
    classes_found: bool,
    indicators_found: bool,
    test_fraction: float,
    seed: int,
) -> str:
    lines = [card.rstrip(), "", "Public constants given by the user:"]
    for column in columns:
        if isinstance(column, NumberColumn):
            lines.append(f"- {column.name}: {column.low:g} to {column.high:g} becomes -1 to 1")
        else:
            lines.append(f"- {column.name}: one of {', '.join(column.categories)}")
    lines.append(f"- the split: test_fraction {test_fraction:g}, seed {seed}")
    found = ["each client's number of records and its share of each class"]
    if classes_found:
        found.append("which classes exist")
    if indicators_found:
        found.append("which columns have missing values")
    lines += ["", f"Read from the table, outside any privacy guarantee: {'; '.join(found)}."]
    return "\n".join(lines).lstrip("\n") + "\n"


def _short(values: Sequence[Hashable]) -> str:
    shown = ", ".join(repr(v) for v in values[:8])
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("from_dataframe", need=need, found=found, fix=fix)
