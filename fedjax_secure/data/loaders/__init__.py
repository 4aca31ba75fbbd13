"""Loaders: records that you have, in tables, arrays or files on disk, as federated datasets."""

from __future__ import annotations

from fedjax_secure.data.loaders.arrays import from_arrays
from fedjax_secure.data.loaders.cifar import from_cifar
from fedjax_secure.data.loaders.dataframe import from_dataframe
from fedjax_secure.data.loaders.hugging_face import from_hugging_face
from fedjax_secure.data.loaders.idx import from_idx
from fedjax_secure.data.loaders.leaf import from_leaf
from fedjax_secure.data.loaders.tables import from_csv, from_parquet

__all__ = [
    "from_arrays", "from_cifar", "from_csv", "from_dataframe", "from_hugging_face", "from_idx",
    "from_leaf", "from_parquet",
]
