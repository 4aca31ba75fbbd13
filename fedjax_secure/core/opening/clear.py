"""The opener of a chain that ends without encryption: the server itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import OpeningError
from ..spec import Spec
from .once import OnceOpener
from .submissions import Setting

CLEAR_KEY_ID = bytes(32)


class ClearOpener(OnceOpener):
    """The server itself: it reads every client's value and adds them up.

    Used where a chain ends without encryption; it makes the same checks as a key holder.
    """

    def __init__(self, setting: Setting, spec: Spec):
        modulus, dim = spec.modulus, spec.dim
        dtype = np.dtype("<f4") if modulus is None else np.dtype("<u4")

        def read(payload: bytes) -> np.ndarray:
            if len(payload) != 4 * dim:
                raise OpeningError("the sum", need=f"{4 * dim} bytes a client",
                                   found=f"{len(payload)}", fix="Send one word a value.")
            return np.frombuffer(payload, dtype)

        def add(payloads: Sequence[bytes]) -> np.ndarray:
            total = np.zeros(dim, dtype)
            for payload in payloads:
                total += read(payload)  # words wrap modulo 2^32, a multiple of the modulus
            return total if modulus is None else np.bitwise_and(total, np.uint32(modulus - 1))

        def open_sum(payload: bytes, num_clients: int) -> np.ndarray:
            return read(payload)

        super().__init__(setting, CLEAR_KEY_ID, add, open_sum=open_sum)
