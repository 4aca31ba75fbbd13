"""TenSEAL's CKKS vectors (what NVFlare encrypts with): a worker of the benchmark."""

from __future__ import annotations

import os

import numpy as np
import tenseal
from worker import serve


class CKKS:
    """One client's update as one CKKS vector, scale 2^40."""

    def __init__(self, updates: str, ring_degree: int, modulus_bits: list[int]):
        self.context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            ring_degree,
            coeff_mod_bit_sizes=modulus_bits,
            n_threads=len(os.sched_getaffinity(0)),
        )
        self.context.global_scale = 2.0**40
        self.updates = np.load(updates)
        self.ciphertexts = [None] * len(self.updates)
        self.total = None
        self.message = b""
        self.opened = np.empty(0)
        self.facts = {
            "version": tenseal.__version__,
            "ring_degree": ring_degree,
            "log2_modulus": sum(modulus_bits),
            "sum_below": 2.0 ** (modulus_bits[0] - 41),
        }

    def encrypt(self, client: int) -> None:
        self.ciphertexts[client] = tenseal.ckks_vector(self.context, self.updates[client])

    def add(self) -> None:
        total = self.ciphertexts[0] + self.ciphertexts[1]
        for ciphertext in self.ciphertexts[2:]:
            total += ciphertext
        self.total = total

    def decrypt(self) -> None:
        self.opened = np.array(self.total.decrypt())

    def to_wire(self) -> None:
        self.message = self.ciphertexts[0].serialize()

    def from_wire(self) -> None:
        tenseal.ckks_vector_from(self.context, self.message)

    def wire_bytes(self) -> int:
        return len(self.message)

    def sum(self) -> np.ndarray:
        """The decrypted sum in model units, float64 [dim]."""
        return self.opened


if __name__ == "__main__":
    serve({"ckks": CKKS})
