"""Federated datasets: the type, real sources, and any pandas DataFrame with a client column."""

from __future__ import annotations

from fedjax_secure.data.catalogue import is_public, load, names, register
from fedjax_secure.data.dataframe import from_dataframe
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.heart_disease import heart_disease

__all__ = [
    "FederatedDataset", "from_dataframe", "heart_disease", "is_public", "load", "names", "register",
]
