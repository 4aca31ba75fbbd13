"""Turns table columns into features by public constants only: ranges, codebooks, nothing fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NumberColumn:
    """A number with a public range, scaled to [-1, 1].

    ``low`` becomes -1 and ``high`` 1; values beyond are clipped to the range, a missing value
    becomes the midpoint, 0. With ``indicator`` a second feature is 1 where the value is missing.
    """

    name: str
    low: float
    high: float
    indicator: bool = False

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} missing") if self.indicator else (self.name,)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Returns ``[records, 1 or 2] float32`` for ``[records] float64`` with NaN for missing."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        scaled = (np.clip(values, self.low, self.high) - middle) / half
        missing = np.isnan(values)
        columns = [np.where(missing, 0.0, scaled)]
        if self.indicator:
            columns.append(missing.astype(float))
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class CategoryColumn:
    """A category of a public codebook: one feature for each, 1 for the record's own.

    A missing value gives zeros; with ``indicator`` one more feature is 1 there.
    """

    name: str
    categories: tuple[str, ...]
    indicator: bool = False

    @property
    def feature_names(self) -> tuple[str, ...]:
        names = tuple(f"{self.name}={c}" for c in self.categories)
        return (*names, f"{self.name} missing") if self.indicator else names

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Returns ``[records, categories] float32`` for ``[records] int`` with -1 for missing."""
        columns = codes[:, None] == np.arange(len(self.categories))
        if self.indicator:
            columns = np.concatenate([columns, codes[:, None] == -1], axis=1)
        return columns.astype(np.float32)


Column = NumberColumn | CategoryColumn


def encode_columns(
    columns: Sequence[Column], values: Sequence[np.ndarray]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encodes a table.

    Args:
        columns: how each column is encoded.
        values: the columns, in the same order, as their ``encode`` takes them.

    Returns:
        ``[records, features] float32``, and the features' names. Every entry lies in [-1, 1],
        and a record's L2 norm is at most the square root of the number of columns.

    Example:
        >>> import numpy as np
        >>> x, names = encode_columns(
        ...     [NumberColumn("age", 20, 80), CategoryColumn("sex", ("female", "male"))],
        ...     [np.array([35.0, np.nan]), np.array([1, 0])])
        >>> names, x.tolist()
        (('age', 'sex=female', 'sex=male'), [[-0.5, 0.0, 1.0], [0.0, 1.0, 0.0]])
    """
    blocks = [column.encode(v) for column, v in zip(columns, values, strict=True)]
    return np.concatenate(blocks, axis=1), tuple(n for c in columns for n in c.feature_names)


#: The 80 characters of LEAF's Shakespeare, in its order: a character's place is its number.
ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
CHARACTER_NAMES = tuple({"\n": "newline", " ": "space"}.get(c, c) for c in ALPHABET)
_PLACES = np.full(128, ALPHABET.index(" "), np.int32)
_PLACES[np.frombuffer(ALPHABET.encode("ascii"), np.uint8)] = np.arange(len(ALPHABET))


def encode_text(text: str) -> np.ndarray:
    """Numbers the characters of a text by `ALPHABET`; a character outside it becomes a space.

    Args:
        text: any text.

    Returns:
        ``[characters] int32`` in ``[0, 80)``.

    Example:
        >>> encode_text("To be").tolist()
        [44, 67, 1, 54, 57]

    Source:
        Caldas et al. 2018, LEAF: A Benchmark for Federated Settings (its Shakespeare task).
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return _PLACES[np.minimum(codes, 127)]  # 127 is no character of the alphabet
