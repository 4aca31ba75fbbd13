"""OpenFHE's side of the pipe: the key holder and the encryptor, each in a process of its own.

Runs as a script of :class:`fedjax_secure.core.party.Party`, perhaps on Python 3.10 and without
jax, so it imports only openfhe, numpy, msgpack, the standard library and ``core.party``. A process
takes one role: a key holder makes a key pair and never gives the secret key away; an encryptor
gets the public key only.

BGV: Brakerski, Gentry, Vaikuntanathan 2012 (ePrint 2011/277), packed by the CRT of the plaintext
ring, as OpenFHE implements it. Only additions follow an encryption, so the depth is zero and no
evaluation key exists.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import struct
from typing import Any

import msgpack
import numpy as np

from fedjax_secure.core.party import Refusal, serve

SCHEME = "openfhe_bgv"
WIRE_VERSION = 1

_MAGIC = b"fsOpnFHE"
_CHECKSUM_BYTES = 16
_PUBLIC_KEY, _CIPHERTEXT = "public key", "ciphertext"


class Context:
    """OpenFHE's context for one plan, and the wire format of what is made in it."""

    def __init__(self, plan: dict[str, int]):
        openfhe = _openfhe()
        self.openfhe, self.plan = openfhe, plan
        self.plaintext_modulus, self.max_summands = plan["plaintext_modulus"], plan["max_summands"]
        wanted = openfhe.CCParamsBGVRNS()
        wanted.SetPlaintextModulus(self.plaintext_modulus)
        wanted.SetMultiplicativeDepth(0)
        wanted.SetEvalAddCount(self.max_summands)
        wanted.SetSecurityLevel(openfhe.HEStd_128_classic)
        wanted.SetKeySwitchTechnique(openfhe.BV)
        wanted.SetScalingTechnique(openfhe.FIXEDMANUAL)
        self.context = openfhe.GenCryptoContext(wanted)
        self.context.Enable(openfhe.PKE)
        self.context.Enable(openfhe.LEVELEDSHE)
        self.slots = self.context.GetRingDimension()
        self.log2_modulus = math.log2(float(self.context.GetModulus()))
        self._check_noise(wanted.GetStandardDeviation())
        facts = [SCHEME, self.version, self.slots, round(self.log2_modulus), sorted(plan.items())]
        self.digest = hashlib.sha256(msgpack.Packer().pack(facts)).digest()

    @property
    def version(self) -> str:
        return self.openfhe.__version__

    def _check_noise(self, stddev: float) -> None:
        """Refuse parameters under which a sum might not decrypt exactly.

        A ciphertext decrypts to m + t (e u + e0 + e1 s), with Gaussian e, e0, e1 and ternary u, s.
        Given u and s, a coefficient of the sum of K is sub-Gaussian with variance at most
        K (2 N + 1) stddev^2, and 12 standard deviations are exceeded with probability below 2^-100.
        OpenFHE takes the size of t as 32 bits and would wrap silently above.
        """
        t, terms = self.plaintext_modulus, self.max_summands
        noise = 12.0 * stddev * math.sqrt(terms * (2 * self.slots + 1))
        bound = math.log2(t * (terms / 2 + noise)) + 1
        if t >= 2**32 or (t - 1) % (2 * self.slots) or bound >= self.log2_modulus:
            raise Refusal(
                "OpenFHE BGV", need=f"a modulus of more than {bound:.1f} bits and a plaintext "
                f"modulus below 2**32 that is 1 modulo {2 * self.slots}",
                found=f"{self.log2_modulus:.1f} bits and {t}",
                fix="Sum fewer clients, or fewer bits a value.")

    # -- wire format: magic, header length, msgpack header, OpenFHE's bytes, checksum -------------

    def seal(self, kind: str, key_id: bytes, dim: int, blobs: list[bytes]) -> bytes:
        """Our header before OpenFHE's serialised objects, and a checksum after them."""
        header: bytes = msgpack.Packer().pack(
            [WIRE_VERSION, kind, SCHEME, self.version, self.digest, key_id, dim,
             [len(blob) for blob in blobs]])
        content = b"".join([_MAGIC, struct.pack("<I", len(header)), header, *blobs])
        return content + hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]

    def unseal(self, message: bytes, kind: str, key_id: bytes | None, dim: int) -> list[bytes]:
        """OpenFHE's serialised objects, after every check that can be made before reading them."""
        where, again = f"an OpenFHE {kind}", "Encrypt again and send the whole message."
        content, checksum = message[:-_CHECKSUM_BYTES], message[-_CHECKSUM_BYTES:]
        if (len(content) < len(_MAGIC) + 4 or content[:len(_MAGIC)] != _MAGIC
                or hashlib.sha256(content).digest()[:_CHECKSUM_BYTES] != checksum):
            raise Refusal(where, need="a whole message in this toolkit's format",
                          found=f"{len(message)} bytes that were cut, altered or are no such "
                          "message", fix=again)
        start = len(_MAGIC) + 4
        end = start + struct.unpack("<I", content[len(_MAGIC):start])[0]
        try:
            wire_version, *rest = msgpack.unpackb(content[start:end])
            if wire_version == WIRE_VERSION:
                found_kind, scheme, version, digest, found_key, found_dim, sizes = rest
                whole = end + sum(sizes) == len(content) and min(sizes) >= 0
        except Exception:
            raise Refusal(where, need="a header that can be read", found="another one",
                          fix=again) from None
        if wire_version != WIRE_VERSION:
            raise Refusal(where, need=f"wire format {WIRE_VERSION}", found=f"{wire_version!r:.20}",
                          fix="Use the same release of the toolkit everywhere.")
        for what, found, wanted in (
                ("kind of message", found_kind, kind), ("scheme", scheme, SCHEME),
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
        return -(-dim * self.plan["num_digits"] // self.slots)

    def plaintexts(self, values: np.ndarray) -> list[Any]:
        """One client's values, split into digits, digit after digit, a slot each."""
        bits, count = self.plan["digit_bits"], self.plan["num_digits"]
        mask = np.int64((1 << bits) - 1)
        wide = values.astype(np.int64)
        digits = np.concatenate([(wide >> (bits * place)) & mask for place in range(count)])
        return [self.context.MakePackedPlaintext(digits[start:start + self.slots])
                for start in range(0, len(digits), self.slots)]

    def integers(self, plaintexts: list[Any], dim: int, terms: int) -> np.ndarray:
        """The sums of plain integers, uint64 [dim]."""
        bits, count = self.plan["digit_bits"], self.plan["num_digits"]
        digits = []
        for plaintext in plaintexts:
            plaintext.SetLength(self.slots)
            read = getattr(plaintext, "GetPackedValueArray", plaintext.GetPackedValue)
            digits.append(np.asarray(read(), dtype=np.int64))
        sums = np.concatenate(digits)
        used = sums[:count * dim]
        largest = terms * ((1 << bits) - 1)
        if used.min() < 0 or used.max() > largest or sums[count * dim:].any():
            raise Refusal(
                "opening an OpenFHE sum", need="sums of encrypted digits",
                found="values that no such sum can have",
                fix="One client did not encrypt as the protocol says; leave the round unopened.")
        places = used.reshape(count, dim).astype(np.uint64)
        shifts = np.uint64(bits) * np.arange(count, dtype=np.uint64)
        return (places << shifts[:, None]).sum(axis=0, dtype=np.uint64)


class Encryptor:
    """Has the public key only."""

    def __init__(self, plan: dict[str, int], public_key: bytes):
        self.context = Context(plan)
        blob, = self.context.unseal(public_key, _PUBLIC_KEY, None, 0)
        self.key = self.context.openfhe.DeserializePublicKeyString(
            blob, self.context.openfhe.BINARY)
        self.key_id = hashlib.sha256(public_key).digest()

    def encrypt(self, values: np.ndarray) -> list[bytes]:
        context, limit = self.context, 1 << self.context.plan["ring_bits"]
        if values.size and int(values.max()) >= limit:
            raise Refusal("encrypting with OpenFHE", need=f"ring elements below {limit}",
                          found="a larger one", fix="Wrap the values into the ring first.")
        binary, serialise = context.openfhe.BINARY, context.openfhe.Serialize
        messages = []
        for row in values:
            blobs = [serialise(context.context.Encrypt(self.key, plaintext), binary)
                     for plaintext in context.plaintexts(row)]
            messages.append(context.seal(_CIPHERTEXT, self.key_id, len(row), blobs))
        return messages


class KeyHolder:
    """Holds the secret key, adds ciphertexts up, and opens sums of enough of them."""

    def __init__(self, plan: dict[str, int], min_summands: int):
        self.context, self.min_summands = Context(plan), min_summands
        openfhe = self.context.openfhe
        self._keys = self.context.context.KeyGen()
        blob = openfhe.Serialize(self._keys.publicKey, openfhe.BINARY)
        self.public_key = self.context.seal(_PUBLIC_KEY, b"", 0, [blob])
        self.key_id = hashlib.sha256(self.public_key).digest()
        # A key that was read back, as encryptors have it: its ciphertexts take some bytes more.
        key = openfhe.DeserializePublicKeyString(blob, openfhe.BINARY)
        example = self.context.context.Encrypt(
            key, self.context.plaintexts(np.zeros(1, np.uint32))[0])
        self._ciphertext_bytes = len(openfhe.Serialize(example, openfhe.BINARY))
        self._key_tag = self._keys.publicKey.GetKeyTag()
        self.begin(0)

    def begin(self, dim: int) -> None:
        self._dim, self._sums, self._seen = dim, [], set()

    def add(self, messages: list[bytes]) -> None:
        for message in messages:
            self._add(message)

    def _add(self, message: bytes) -> None:
        context, openfhe = self.context, self.context.openfhe
        fingerprint = hashlib.sha256(message).digest()
        if fingerprint in self._seen:
            raise Refusal("an OpenFHE sum", need="different ciphertexts",
                          found="one ciphertext twice", fix="Add each client's once.")
        if len(self._seen) >= context.max_summands:
            raise Refusal("an OpenFHE sum", need=f"at most {context.max_summands} summands",
                          found="more", fix="Plan the chain for more clients.")
        blobs = context.unseal(message, _CIPHERTEXT, self.key_id, self._dim)
        if ([len(blob) for blob in blobs]
                != [self._ciphertext_bytes] * context.num_plaintexts(self._dim)):
            raise Refusal("an OpenFHE ciphertext", need="parts of the size that these parameters "
                          "give", found="others", fix="Encrypt again with this toolkit.")
        parts = [openfhe.DeserializeCiphertextString(blob, openfhe.BINARY) for blob in blobs]
        for part in parts:
            if (part.GetKeyTag() != self._key_tag or part.NumberCiphertextElements() != 2
                    or part.GetLevel() != 0 or part.GetNoiseScaleDeg() != 1):
                raise Refusal("an OpenFHE ciphertext", need="a fresh encryption under this key",
                              found="another one", fix="Encrypt again with this toolkit.")
        self._seen.add(fingerprint)
        if self._sums:
            for total, part in zip(self._sums, parts):  # noqa: B905 (the sizes were checked)
                context.context.EvalAddInPlace(total, part)
        else:
            self._sums = parts

    def open(self) -> np.ndarray:
        terms = len(self._seen)
        if terms < self.min_summands:
            raise Refusal("opening an OpenFHE sum", found=str(terms),
                          need=f"at least {self.min_summands} different ciphertexts",
                          fix="Wait for more clients, or end the round.")
        opened = [self.context.context.Decrypt(self._keys.secretKey, total)
                  for total in self._sums]
        values = self.context.integers(opened, self._dim, terms)
        self.begin(0)
        return values


class Roles:
    """What the parent can call; a process takes one role, once."""

    def __init__(self) -> None:
        self._role: KeyHolder | Encryptor | None = None

    def _take(self, role: KeyHolder | Encryptor) -> dict[str, Any]:
        if self._role is not None:
            raise Refusal("an OpenFHE party", need="a process without a role", found="one with",
                          fix="Start another process.")
        self._role = role
        context = role.context
        return {"key_id": role.key_id, "ring_dimension": context.slots,
                "log2_modulus": context.log2_modulus, "parameters": context.digest.hex()}

    def _as(self, kind: type) -> Any:
        if not isinstance(self._role, kind):
            raise Refusal("an OpenFHE party", need=f"the role {kind.__name__}",
                          found=type(self._role).__name__, fix="Call the other process.")
        return self._role

    def hold_key(self, plan: dict[str, int], min_summands: int) -> dict[str, Any]:
        holder = KeyHolder(plan, min_summands)
        return {**self._take(holder), "public_key": holder.public_key}

    def load_public_key(self, plan: dict[str, int], public_key: bytes) -> dict[str, Any]:
        return self._take(Encryptor(plan, public_key))

    def encrypt(self, values: np.ndarray) -> list[bytes]:
        return self._as(Encryptor).encrypt(values)

    def begin_sum(self, dim: int) -> None:
        self._as(KeyHolder).begin(dim)

    def add(self, ciphertexts: list[bytes]) -> None:
        self._as(KeyHolder).add(ciphertexts)

    def open_sum(self) -> np.ndarray:
        return self._as(KeyHolder).open()


def _openfhe() -> Any:
    """The library: by name, since a file beside this one has the same name."""
    return importlib.import_module("openfhe")


def main() -> None:
    """Serve until the parent closes the pipe."""
    openfhe = _openfhe()
    roles = Roles()
    calls = (roles.hold_key, roles.load_public_key, roles.encrypt, roles.begin_sum, roles.add,
             roles.open_sum)
    serve({call.__name__: call for call in calls},
          about={"openfhe": openfhe.__version__, "numpy": np.__version__})


if __name__ == "__main__":
    main()
