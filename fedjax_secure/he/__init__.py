"""Additively homomorphic encryption of updates, on our lattice kernels and on OpenFHE."""

from .scheme import Scheme, encrypt

__all__ = ["Scheme", "encrypt"]
