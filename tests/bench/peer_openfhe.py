"""OpenFHE's CKKS and BGV, as fast as its Python wheel goes: a worker of the benchmark.

numpy in and numpy out (lists make it 25-50 percent slower), depth 0, no evaluation keys, and the
smallest ring that OpenFHE itself chooses at HEStd_128_classic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openfhe
from worker import serve

# OpenFHE takes a BGV plaintext modulus as 32 bits and sums wrongly above, so it is the largest
# prime below 2^32 that is 1 modulo 2N for every N up to 8192: sums of 1,024 22-bit values fit.
PLAINTEXT_MODULUS = 4294828033


class OpenFHE:
    """One client's update as a list of ciphertexts; subclasses make context and plaintexts."""

    slots: int

    def __init__(self, context: Any, slots: int, updates: str, **facts: Any):
        context.Enable(openfhe.PKE)
        context.Enable(openfhe.LEVELEDSHE)
        self.context, self.slots = context, slots
        self.keys = context.KeyGen()
        self.updates = self.inputs(np.load(updates))
        self.ciphertexts: list[list[Any]] = [[] for _ in self.updates]
        self.total: list[Any] = []
        self.messages: list[bytes] = []
        self.opened = np.empty(0)
        self.facts = {
            "version": openfhe.__version__,
            "ring_degree": context.GetRingDimension(),
            "log2_modulus": round(math.log2(context.GetModulus()), 1),
            **facts,
        }

    def inputs(self, updates: np.ndarray) -> np.ndarray:
        """What is encrypted, made from float32 [clients, dim]."""
        raise NotImplementedError

    def plaintext(self, values: np.ndarray) -> Any:
        """A plaintext of at most `slots` values."""
        raise NotImplementedError

    def values(self, plaintext: Any) -> np.ndarray:
        """The values of a plaintext, float64 [slots]."""
        raise NotImplementedError

    def encrypt(self, client: int) -> None:
        update, key = self.updates[client], self.keys.publicKey
        self.ciphertexts[client] = [
            self.context.Encrypt(key, self.plaintext(update[start : start + self.slots]))
            for start in range(0, len(update), self.slots)
        ]

    def add(self) -> None:
        total = [ciphertext.Clone() for ciphertext in self.ciphertexts[0]]
        for ciphertexts in self.ciphertexts[1:]:
            for into, ciphertext in zip(total, ciphertexts, strict=True):
                self.context.EvalAddInPlace(into, ciphertext)
        self.total = total

    def decrypt(self) -> None:
        key = self.keys.secretKey
        self.opened = np.concatenate(
            [self.values(self.context.Decrypt(key, ciphertext)) for ciphertext in self.total]
        )

    def to_wire(self) -> None:
        self.messages = [
            openfhe.Serialize(ciphertext, openfhe.BINARY) for ciphertext in self.ciphertexts[0]
        ]

    def from_wire(self) -> None:
        for message in self.messages:
            openfhe.DeserializeCiphertextString(message, openfhe.BINARY)

    def wire_bytes(self) -> int:
        return sum(map(len, self.messages))

    def sum(self) -> np.ndarray:
        """The decrypted sum in model units, float64 [dim]."""
        return self.opened[: self.updates.shape[1]]


class CKKS(OpenFHE):
    """CKKS, depth 0, scale 2^40 and first modulus 2^60: |sum| may reach 2^19."""

    def __init__(self, updates: str):
        wanted = openfhe.CCParamsCKKSRNS()
        wanted.SetMultiplicativeDepth(0)
        wanted.SetScalingModSize(40)
        wanted.SetFirstModSize(60)
        wanted.SetScalingTechnique(openfhe.FIXEDMANUAL)
        wanted.SetKeySwitchTechnique(openfhe.BV)
        wanted.SetSecurityLevel(openfhe.HEStd_128_classic)
        context = openfhe.GenCryptoContext(wanted)
        super().__init__(context, context.GetRingDimension() // 2, updates, sum_below=2.0**19)

    def inputs(self, updates):
        return updates.astype(np.float64)

    def plaintext(self, values):
        return self.context.MakeCKKSPackedPlaintext(values)

    def values(self, plaintext):
        plaintext.SetLength(self.slots)
        return np.asarray(plaintext.GetRealPackedValueArray())


class BGV(OpenFHE):
    """BGV, depth 0, exact integers modulo a prime just below 2^32."""

    def __init__(self, updates: str, scale: float, max_summands: int):
        wanted = openfhe.CCParamsBGVRNS()
        wanted.SetPlaintextModulus(PLAINTEXT_MODULUS)
        wanted.SetMultiplicativeDepth(0)
        wanted.SetEvalAddCount(max_summands)
        wanted.SetScalingTechnique(openfhe.FIXEDMANUAL)
        wanted.SetKeySwitchTechnique(openfhe.BV)
        wanted.SetSecurityLevel(openfhe.HEStd_128_classic)
        context = openfhe.GenCryptoContext(wanted)
        self.scale = scale
        slots = context.GetRingDimension()
        super().__init__(context, slots, updates, sum_below=PLAINTEXT_MODULUS / 2 / scale)

    def inputs(self, updates):
        return np.rint(updates.astype(np.float64) * self.scale).astype(np.int64)

    def plaintext(self, values):
        return self.context.MakePackedPlaintext(values)

    def values(self, plaintext):
        plaintext.SetLength(self.slots)
        return np.asarray(plaintext.GetPackedValueArray())

    def sum(self):
        return super().sum() / self.scale


if __name__ == "__main__":
    serve({"ckks": CKKS, "bgv": BGV})
