"""Reads pickled numpy arrays without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fedjax_secure.core.errors import DataError

_NEW_ARRAY = np.empty(0).__reduce__()[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


def _rebuild(kind: type, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of class {kind}")
    return _NEW_ARRAY(np.ndarray, (0,), b"b")


def _scalar(dtype: np.dtype, content: Any = None) -> Any:
    return np.frombuffer(content, dtype)[0]


def _from_buffer(
    content: Any, dtype: np.dtype, shape: Any, order: str, axes: Any = None
) -> np.ndarray:
    flat = np.frombuffer(content, dtype)
    if axes is None:
        return flat.reshape(shape, order=order)
    return flat.reshape(shape).transpose(axes)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _rebuild), ("scalar", _scalar))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def load_pickle(content: bytes, where: str) -> Any:
    """Reads a pickle of numbers, text, lists, tuples, dicts and numpy arrays.

    A pickle is a program: to load one from a stranger runs it. This reader knows nothing but numpy
    arrays and basic containers, and refuses a pickle that names any other class or function, before
    that is imported or called.

    Args:
        content: the pickle; one of Python 2 reads its strings as bytes.
        where: the file's name, for messages.

    Returns:
        What was pickled.

    Raises:
        DataError: a pickle that names anything else, a truncated one, or no pickle.

    Example:
        >>> import os, pickle
        >>> load_pickle(pickle.dumps({b"data": np.zeros(2)}), "batch")
        {b'data': array([0., 0.])}
        >>> load_pickle(pickle.dumps(os.system), "batch")
        Traceback (most recent call last):
        fedjax_secure.core.errors.DataError: batch needs a pickle of numpy arrays and basic
        containers, got posix.system. It may be harmful: do not load it.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        named = "." in str(error) and " " not in str(error)
        raise DataError(
            where,
            need="a pickle of numpy arrays and basic containers",
            found=str(error),
            fix="It may be harmful: do not load it." if named else "Download the file again.",
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(
            where,
            need="a whole pickle of numpy arrays and basic containers",
            found=f"{type(error).__name__}: {error}",
            fix="Download the file again.",
        ) from None


def load_npy(content: bytes, where: str) -> Any:
    """Reads a ``.npy`` file that holds one pickled object, by `load_pickle`.

    Args:
        content: the file's content.
        where: the file's name, for messages.

    Returns:
        The object.

    Raises:
        DataError: as `load_pickle`, and for what is no such file.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.array({"a": [1, 2]}, object), allow_pickle=True)
        >>> load_npy(file.getvalue(), "file")
        {'a': [1, 2]}
    """
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if shape != () or dtype.kind != "O":
            raise ValueError(f"an array of shape {shape} and dtype {dtype}")
    except ValueError as error:
        raise DataError(
            where, need="a .npy file with one object", found=str(error), fix="Download it again."
        ) from None
    return load_pickle(content[file.tell() :], where).item()
