"""Datasets by name, for forms, plans and notebooks: those of this package, and your own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.sets import (
    breast_cancer,
    digits,
    heart_disease,
    lending,
    mnist_5k,
    shakespeare,
    synthetic,
    watch,
)

_MAKERS: dict[str, Callable[[], FederatedDataset]] = {
    make.__name__: make
    for make in (
        heart_disease, breast_cancer, digits, mnist_5k, lending, watch, shakespeare, synthetic,
    )  # fmt: skip
}
_PUBLIC = set(_MAKERS)


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows. Nothing is read before a set is loaded.

    Example:
        >>> from fedjax_secure.data import names
        >>> "heart_disease" in names()
        True
    """
    return tuple(_MAKERS)


def load(name: str) -> FederatedDataset:
    """The dataset of that name, with the arguments that its function has by default.

    Of this package's sets the last two are remembered: a form asks again at every change.

    Raises:
        DataError: no dataset of that name is known in this process, or the function that was
            registered for it raised an error or returned something else.

    Example:
        >>> from fedjax_secure.data import load
        >>> load("heart_disease").num_clients
        4
    """
    if name not in _MAKERS:
        raise DataError("load", need="one of " + ", ".join(_MAKERS), found=repr(name),
                        fix="Make your own known first: fs.data.register(name, dataset).")
    try:
        make = _MAKERS[name]
        dataset = _remembered(make) if name in _PACKAGE else make()
    except DataError:
        raise
    except Exception as error:
        raise DataError("load", need=f"the function registered as {name!r} to load its dataset",
                        found=type(error).__name__,
                        fix="Call the function yourself to see the error whole.") from error
    if not isinstance(dataset, FederatedDataset):
        raise DataError("load", need=f"a FederatedDataset from the function registered as {name!r}",
                        found=type(dataset).__name__,
                        fix="Return what fs.data.from_dataframe(...) makes.")
    return dataset


def is_public(name: str) -> bool:
    """Whether everybody may see the records, so that exploring them needs no lasting budget.

    Example:
        >>> from fedjax_secure.data import is_public
        >>> is_public("heart_disease")
        True
    """
    return name in _PUBLIC


def is_registered(name: str) -> bool:
    """Whether a name was made known by :func:`register`, and is no set of this package.

    Example:
        >>> from fedjax_secure.data import is_registered
        >>> is_registered("heart_disease")
        False
    """
    return name in _MAKERS and name not in _PACKAGE


def register(name: str, dataset: FederatedDataset | Callable[[], FederatedDataset], *,
             public: bool = False) -> None:
    """Make a dataset known by name, so that the dashboard's form and plans can use it.

    Args:
        name: a word; not that of a dataset of this package. A name registered again replaces the
            earlier dataset.
        dataset: the dataset, or a function that loads it.
        public: everybody may see the records. Runs on other data spend from the data's one budget
            unless they are told otherwise.

    Raises:
        DataError: a name that is taken or no word, or something else than a dataset.

    Example:
        >>> import pandas as pd
        >>> from fedjax_secure.data import from_dataframe, load, register
        >>> table = pd.DataFrame({"site": list("aabb") * 3, "age": [30, 40, 50, 60] * 3,
        ...                       "ill": [0, 1, 1, 0] * 3})
        >>> register("my_study", from_dataframe(table, client="site", label="ill",
        ...                                     ranges={"age": (0, 100)}, population="my study"))
        >>> load("my_study").clients
        ('a', 'b')
    """
    if not isinstance(name, str) or not name.isidentifier() or name in _PACKAGE:
        raise DataError("register", need="a name of your own, such as my_study",
                        found=repr(name), fix="Use letters, digits and underscores.")
    if isinstance(dataset, FederatedDataset):
        found = dataset

        def make() -> FederatedDataset:
            return found
    elif callable(dataset):
        make = dataset
    else:
        raise DataError("register", need="a FederatedDataset, or a function that loads one",
                        found=type(dataset).__name__,
                        fix="Make one with fs.data.from_dataframe(...).")
    _MAKERS[name] = make
    (_PUBLIC.add if public else _PUBLIC.discard)(name)


@lru_cache(maxsize=2)
def _remembered(make: Callable[[], FederatedDataset]) -> FederatedDataset:
    return make()


_PACKAGE = frozenset(_MAKERS)
