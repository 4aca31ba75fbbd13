"""Federated datasets: the type, sets of real records, loaders of your own, and partitioners."""

from __future__ import annotations

from fedjax_secure.data.catalogue import is_public, is_registered, load, names, register
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.loaders import (
    from_arrays,
    from_cifar,
    from_csv,
    from_dataframe,
    from_hugging_face,
    from_idx,
    from_leaf,
    from_parquet,
)
from fedjax_secure.data.partitioners import (
    dirichlet,
    feature_shift,
    iid,
    label_shards,
    natural,
    quantity_skew,
)
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

__all__ = [
    "FederatedDataset", "breast_cancer", "digits", "dirichlet", "feature_shift", "from_arrays",
    "from_cifar", "from_csv", "from_dataframe", "from_hugging_face", "from_idx", "from_leaf",
    "from_parquet", "heart_disease", "iid", "is_public", "is_registered", "label_shards",
    "lending", "load", "mnist_5k", "names", "natural", "quantity_skew", "register",
    "shakespeare", "synthetic", "watch",
]
