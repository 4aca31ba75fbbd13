"""OpenFHE's context for one plan: ring elements to plaintexts and back, and the wire format.

Read in OpenFHE's process only, perhaps on Python 3.10 and without jax.

BGV: Brakerski, Gentry, Vaikuntanathan 2012 (ePrint 2011/277), packed by the CRT of the plaintext
ring. CKKS: Cheon, Kim, Kim, Song 2017 (ePrint 2016/421), packed by the canonical embedding. Both
as OpenFHE implements them. Only additions follow an encryption, so the depth is zero and no
evaluation key exists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
import struct
from typing import Any

import msgpack
import numpy as np

from fedjax_secure.core.party import Refusal
from fedjax_secure.he.openfhe.plan import BGV, Plan

WIRE_VERSION = 2
PUBLIC_KEY, CIPHERTEXT, PARTIAL = "public key", "ciphertext", "partial decryption"

MAGIC = b"fsOpnFHE"
CHECKSUM_BYTES = 16
_MAX_RESIDUAL = 0.25
_FIRST_PRIME_BITS = 60  # the most that OpenFHE takes


class InvalidOpening(Exception):
    """The key was used, and what came out is not a sum of encrypted digits."""


class Context:
    """OpenFHE's context for one plan, and the wire format of what is made in it."""

    def __init__(self, plan: Plan):
        openfhe = importlib.import_module("openfhe")  # the library, not this package
        self.openfhe, self.plan, self.is_bgv = openfhe, plan, plan.scheme == BGV
        self._where = f"OpenFHE {'BGV' if self.is_bgv else 'CKKS'}"
        self._make_bgv() if self.is_bgv else self._make_ckks()
        facts = [self.version, self.ring_dimension, round(self.log2_modulus, 3),
                 sorted(dataclasses.asdict(plan).items())]
        self.digest = hashlib.sha256(msgpack.Packer().pack(facts)).digest()

    @property
    def version(self) -> str:
        return self.openfhe.__version__

    def _make(self, wanted: Any) -> None:
        openfhe = self.openfhe
        wanted.SetMultiplicativeDepth(0)
        wanted.SetSecurityLevel(openfhe.HEStd_128_classic)
        wanted.SetKeySwitchTechnique(openfhe.BV)  # HYBRID would enlarge the ring for no use
        wanted.SetScalingTechnique(openfhe.FIXEDMANUAL)
        self.context = openfhe.GenCryptoContext(wanted)
        features = [openfhe.PKE, openfhe.LEVELEDSHE]
        for feature in features + [openfhe.MULTIPARTY] * (self.plan.parties > 1):
            self.context.Enable(feature)
        self.ring_dimension = self.context.GetRingDimension()
        self.slots = self.ring_dimension if self.is_bgv else self.ring_dimension // 2
        self.log2_modulus = math.log2(float(self.context.GetModulus()))

    def _make_bgv(self) -> None:
        t, needed = self.plan.plaintext_modulus, math.inf
        for prime_bits in (0, _FIRST_PRIME_BITS):  # OpenFHE's own choice, if it will do
            wanted = self.openfhe.CCParamsBGVRNS()
            wanted.SetPlaintextModulus(t)
            wanted.SetEvalAddCount(self.plan.max_summands)
            if prime_bits:
                wanted.SetFirstModSize(prime_bits)
            self._make(wanted)
            needed = self.plan.bgv_bits_needed(self.ring_dimension)
            fits = t < 2**32 and (t - 1) % (2 * self.ring_dimension) == 0
            if fits and needed < self.log2_modulus:
                return
        raise Refusal(
            self._where, need=f"a modulus of more than {needed:.1f} bits and a plaintext "
            f"modulus below 2**32 that is 1 modulo {2 * self.ring_dimension}",
            found=f"{self.log2_modulus:.1f} bits and {t}",
            fix="Sum fewer clients, or fewer bits a value.")

    def _make_ckks(self) -> None:
        wanted = self.openfhe.CCParamsCKKSRNS()
        wanted.SetScalingModSize(self.plan.scaling_bits)
        wanted.SetFirstModSize(self.plan.modulus_bits)
        self._make(wanted)
        error = self.plan.ckks_error(self.ring_dimension)
        needed = self.plan.ckks_bits_needed()
        if error >= _MAX_RESIDUAL or needed >= self.log2_modulus:
            raise Refusal(
                self._where, need=f"a modulus of more than {needed:.1f} bits and an error below "
                f"{_MAX_RESIDUAL} of a unit", found=f"{self.log2_modulus:.1f} bits and {error:.3f}",
                fix="Sum fewer clients, or fewer bits a value.")

    # -- wire format: magic, header length, msgpack header, OpenFHE's bytes, checksum -------------

    def seal(self, kind: str, key_id: bytes, dim: int, blobs: list[bytes]) -> bytes:
        """Our header before OpenFHE's serialised objects, and a checksum after them."""
        header: bytes = msgpack.Packer().pack(
            [WIRE_VERSION, kind, self.plan.scheme, self.version, self.digest, key_id, dim,
             [len(blob) for blob in blobs]])
        content = b"".join([MAGIC, struct.pack("<I", len(header)), header, *blobs])
        return content + hashlib.sha256(content).digest()[:CHECKSUM_BYTES]

    def unseal(self, message: bytes, kind: str, key_id: bytes | None, dim: int) -> list[bytes]:
        """OpenFHE's serialised objects, after every check that can be made before reading them."""
        where, again = f"an OpenFHE {kind}", "Encrypt again and send the whole message."
        content, checksum = message[:-CHECKSUM_BYTES], message[-CHECKSUM_BYTES:]
        if (len(content) < len(MAGIC) + 4 or content[:len(MAGIC)] != MAGIC
                or hashlib.sha256(content).digest()[:CHECKSUM_BYTES] != checksum):
            raise Refusal(where, need="a whole message in this toolkit's format",
                          found=f"{len(message)} bytes that were cut, altered or are no such "
                          "message", fix=again)
        start = len(MAGIC) + 4
        end = start + struct.unpack("<I", content[len(MAGIC):start])[0]
        try:
            wire_version, *rest = msgpack.unpackb(content[start:end])
            if wire_version == WIRE_VERSION:
                found_kind, scheme, version, digest, found_key, found_dim, sizes = rest
                whole = (bool(sizes) and all(type(size) is int and size >= 0 for size in sizes)
                         and end + sum(sizes) == len(content))
        except Exception:
            raise Refusal(where, need="a header that can be read", found="another one",
                          fix=again) from None
        if wire_version != WIRE_VERSION:
            raise Refusal(where, need=f"wire format {WIRE_VERSION}", found=f"{wire_version!r:.20}",
                          fix="Use the same release of the toolkit everywhere.")
        for what, found, wanted in (
                ("kind of message", found_kind, kind), ("scheme", scheme, self.plan.scheme),
                ("OpenFHE version", version, self.version)):
            if found != wanted:
                raise Refusal(where, need=f"the {what} {wanted!r}", found=f"{found!r:.60}",
                              fix="Use the same scheme and version of OpenFHE everywhere.")
        if digest != self.digest:
            raise Refusal(where, need=f"the parameters {self.digest.hex()[:16]}",
                          found="other parameters", fix="Build every party from the same chain.")
        if key_id is not None and found_key != key_id:
            raise Refusal(where, need=f"the key {key_id.hex()[:16]}", found="another key",
                          fix="Encrypt again under the key holder's present public key.")
        if found_dim != dim:
            raise Refusal(where, need=f"{dim} values", found=f"{found_dim!r:.20}",
                          fix="Encrypt the values of the same model.")
        if not whole:
            raise Refusal(where, need="parts that add up to the message", found="other sizes",
                          fix=again)
        blobs = []
        for size in sizes:
            blobs.append(content[end:end + size])
            end += size
        return blobs

    # -- integers to plaintexts and back ----------------------------------------------------------

    def num_plaintexts(self, dim: int) -> int:
        return -(-dim * self.plan.num_digits // self.slots)

    def plaintexts(self, values: np.ndarray) -> list[Any]:
        """One client's values, shifted by M/2, split into digits, digit after digit, a slot each.

        CKKS has the digits centred: with one digit, a slot holds the centred ring element.
        """
        plan = self.plan
        mask = np.int64((1 << plan.digit_bits) - 1)
        wide = (values.astype(np.int64) + (plan.modulus >> 1)) & (plan.modulus - 1)
        digits = np.concatenate([(wide >> (plan.digit_bits * place)) & mask
                                 for place in range(plan.num_digits)])
        make = self.context.MakePackedPlaintext
        if not self.is_bgv:
            digits = (digits - (1 << (plan.digit_bits - 1))).astype(np.float64)
            make = self.context.MakeCKKSPackedPlaintext
        return [make(digits[start:start + self.slots])
                for start in range(0, len(digits), self.slots)]

    def slot_sums(self, plaintext: Any) -> np.ndarray:
        """The integers in an opened plaintext's slots, int64 [slots].

        Of CKKS only the rounded integers leave this function: approximate values would tell
        something about the key (Li, Micciancio, ePrint 2020/1533).

        Raises:
            InvalidOpening: (CKKS) a value further than 1/4 from an integer.
        """
        plaintext.SetLength(self.slots)
        if self.is_bgv:
            return np.asarray(plaintext.GetPackedValueArray(), dtype=np.int64)
        values = np.asarray(plaintext.GetRealPackedValueArray(), dtype=np.float64)
        rounded = np.rint(values)
        if not np.abs(values - rounded).max() <= _MAX_RESIDUAL:  # NaN fails too
            raise InvalidOpening
        return np.clip(rounded, -(2.0**62), 2.0**62).astype(np.int64)

    def ring_sums(self, slot_sums: list[np.ndarray], dim: int, terms: int) -> np.ndarray:
        """The sums modulo the ring from the slots of all plaintexts, uint32 [dim].

        Raises:
            InvalidOpening: values that no sum of digits can have.
        """
        plan = self.plan
        bits, count = plan.digit_bits, plan.num_digits
        sums = np.concatenate(slot_sums)
        used, padding = sums[:count * dim], sums[count * dim:]
        if not self.is_bgv:
            used = used + (terms << (bits - 1))
        if used.min() < 0 or used.max() > terms * ((1 << bits) - 1) or padding.any():
            raise InvalidOpening
        places = used.reshape(count, dim).astype(np.uint64)
        shifts = np.uint64(bits) * np.arange(count, dtype=np.uint64)
        total = (places << shifts[:, None]).sum(axis=0, dtype=np.uint64)
        shift = np.uint64((terms * (plan.modulus >> 1)) % plan.modulus)
        return ((total - shift) & np.uint64(plan.modulus - 1)).astype(np.uint32)
