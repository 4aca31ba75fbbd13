"""Partitioners: deal the records of a dataset, or an array of labels, to clients anew."""

from __future__ import annotations

from fedjax_secure.data.partitioners.even import iid, natural
from fedjax_secure.data.partitioners.feature_shift import feature_shift
from fedjax_secure.data.partitioners.label_skew import dirichlet, label_shards
from fedjax_secure.data.partitioners.quantity_skew import quantity_skew

__all__ = ["dirichlet", "feature_shift", "iid", "label_shards", "natural", "quantity_skew"]
