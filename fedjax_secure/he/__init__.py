"""Additively homomorphic encryption of updates, on our lattice kernels and on OpenFHE."""

from . import openfhe
from .joint_key import threshold
from .key_holder import KeyHolder
from .openfhe import openfhe_bgv, openfhe_ckks
from .public_key import public_key
from .scheme import Scheme, encrypt

__all__ = ["KeyHolder", "Scheme", "encrypt", "openfhe", "openfhe_bgv", "openfhe_ckks",
           "public_key", "threshold"]
