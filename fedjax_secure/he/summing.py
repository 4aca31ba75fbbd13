"""Clients' ciphertexts read and added up, by whoever opens the sum; it takes no secret.

The key holder, every share holder and the combiner sum by themselves, with this code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fedjax_kernels import rlwe

from ..core import OpeningError, UpdateError
from . import wire
from .packing import Packing

FEWEST = 2  # a sum of one client's value is that value
_BLOCK = 16  # ciphertexts that are summed at once: bounds memory, and one program serves all


def sum_ciphertexts(packing: Packing, key_id: bytes, payloads: Sequence[bytes]) -> np.ndarray:
    """Read clients' messages and add them up; takes no secret.

    Args:
        packing: the plan of the ciphertexts.
        key_id: the key under which they must be.
        payloads: one message a client, read one after another.

    Returns:
        uint32 [2, limb, N, polynomial].

    Raises:
        OpeningError: fewer than two, too many, a message that cannot be read, or one that comes
            twice.
    """
    _require_planned(packing, len(payloads))
    params, total, seen = packing.transport, None, set()
    size = min(_BLOCK, packing.max_summands)
    for start in range(0, len(payloads), size):
        block = np.zeros((size, *packing.ciphertext_shape), np.uint32)
        for place, stored in enumerate(payloads[start : start + size]):
            payload = bytes(stored)  # which may lie on disk
            whose = f"the ciphertext of client {start + place + 1} (in order of ids)"
            block[place] = _read(packing, key_id, payload, whose)
            digest = hashlib.sha256(payload).digest()
            if digest in seen:
                raise OpeningError(
                    "opening a sum",
                    need="a fresh ciphertext from every client",
                    found="one that two clients sent",
                    fix="Find out which client copied the other's; it would count twice.",
                )
            seen.add(digest)
        part = rlwe.sum_ciphertexts(params, block)
        total = part if total is None else rlwe.add(params, total, part)
    return np.asarray(total)


def read_total(packing: Packing, key_id: bytes, payload: bytes, num_clients: int) -> np.ndarray:
    """Read a sum that an aggregator made of some clients' ciphertexts.

    Raises:
        OpeningError: fewer than two clients, too many, or a message that cannot be read.
    """
    _require_planned(packing, num_clients)
    return _read(packing, key_id, payload, "the aggregator's sum")


def sum_digest(total: np.ndarray) -> bytes:
    """SHA-256 of a sum's residues."""
    return hashlib.sha256(np.ascontiguousarray(total).astype("<u4")).digest()


def _require_planned(packing: Packing, count: int) -> None:
    most = packing.max_summands
    if not FEWEST <= count <= most:
        raise OpeningError(
            "opening a sum",
            need=f"{FEWEST} to {most} clients' ciphertexts, as planned",
            found=str(count),
            fix="Wait for more clients." if count < FEWEST else "Plan the chain for more.",
        )


def _read(packing: Packing, key_id: bytes, payload: bytes, whose: str) -> np.ndarray:
    try:
        return wire.ciphertext_from_bytes(payload, packing, key_id)
    except UpdateError as error:
        raise OpeningError(
            f"opening a sum: {whose}",
            need=error.need,
            found=error.found,
            fix=error.fix,
        ) from None
