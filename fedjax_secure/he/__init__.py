"""Additively homomorphic encryption of updates, on our lattice kernels and on OpenFHE."""

from .openfhe import openfhe_bgv
from .scheme import Scheme, encrypt

__all__ = ["Scheme", "encrypt", "openfhe_bgv"]
