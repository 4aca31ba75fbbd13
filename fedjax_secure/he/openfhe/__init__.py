"""OpenFHE, as an encryption scheme in processes of its own, and interoperation with it.

``python -m fedjax_secure.he.openfhe.env`` sets up the environment in which it loads.
"""

from . import interop
from .plan import Plan, plan_for
from .processes import Encryptor, KeyHolder, KeyHolders
from .scheme import OpenFheScheme, openfhe_bgv, openfhe_ckks

__all__ = [
    "Encryptor",
    "KeyHolder",
    "KeyHolders",
    "OpenFheScheme",
    "Plan",
    "interop",
    "openfhe_bgv",
    "openfhe_ckks",
    "plan_for",
]
