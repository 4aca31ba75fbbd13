"""Real data sets and a synthetic one, all offline, with provenance and licence in their cards."""

from __future__ import annotations

from fedjax_secure.data.sets.breast_cancer import breast_cancer
from fedjax_secure.data.sets.digits import digits
from fedjax_secure.data.sets.heart_disease import heart_disease
from fedjax_secure.data.sets.lending import lending
from fedjax_secure.data.sets.mnist_5k import mnist_5k
from fedjax_secure.data.sets.shakespeare import shakespeare
from fedjax_secure.data.sets.synthetic import synthetic
from fedjax_secure.data.sets.watch import watch

__all__ = [
    "breast_cancer", "digits", "heart_disease", "lending", "mnist_5k", "shakespeare", "synthetic",
    "watch",
]
