"""OpenFHE's side of the pipe: key holders, encryptors and fusion, each in a process of its own.

Runs as a script of :class:`fedjax_secure.core.party.Party`, perhaps on Python 3.10 and without
jax, so it imports only openfhe, numpy, msgpack, the standard library, ``core.party`` and the two
files beside it that do the same. A process takes one role. A key holder makes a key pair, or its
own share of a joint one, and never gives the secret away; whoever encrypts or fuses partial
decryptions has the public key only.

Multiparty: n-of-n additive shares (Asharov et al., EUROCRYPT 2012, ePrint 2011/613), as OpenFHE
implements them.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_secure.core.party import Refusal, serve

if "fedjax_secure.he" not in sys.modules:
    # As core.party does for its own package: the files here without the toolkit's __init__ files.
    for _name, _folder in (("fedjax_secure.he", Path(__file__).resolve().parent.parent),
                           ("fedjax_secure.he.openfhe", Path(__file__).resolve().parent)):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [str(_folder)]

from fedjax_secure.he.openfhe.context import (  # noqa: E402
    CHECKSUM_BYTES,
    CIPHERTEXT,
    PARTIAL,
    PUBLIC_KEY,
    Context,
    InvalidOpening,
)
from fedjax_secure.he.openfhe.plan import Plan  # noqa: E402

_INVALID = {"valid": False}


class PublicSide:
    """Has the public key only: encrypts, and fuses partial decryptions."""

    def __init__(self, plan: Plan, public_key: bytes):
        self.context = Context(plan)
        blob, = self.context.unseal(public_key, PUBLIC_KEY, None, 0)
        openfhe = self.context.openfhe
        self.key = openfhe.DeserializePublicKeyString(blob, openfhe.BINARY)
        self.key_id = hashlib.sha256(public_key).digest()
        self.begin_fusion()

    def encrypt(self, values: np.ndarray) -> list[bytes]:
        context, limit = self.context, self.context.plan.modulus
        if values.size and int(values.max()) >= limit:
            raise Refusal("encrypting with OpenFHE", need=f"ring elements below {limit}",
                          found="a larger one", fix="Wrap the values into the ring first.")
        binary, serialise = context.openfhe.BINARY, context.openfhe.Serialize
        messages = []
        for row in values:
            blobs = [serialise(context.context.Encrypt(self.key, plaintext), binary)
                     for plaintext in context.plaintexts(row)]
            messages.append(context.seal(CIPHERTEXT, self.key_id, len(row), blobs))
        return messages

    def begin_fusion(self) -> None:
        self._sums: list[np.ndarray] | None = []

    def fuse(self, partials: list[bytes], dim: int) -> None:
        """Take one part of every holder's partial decryption."""
        context, openfhe = self.context, self.context.openfhe
        if len(partials) != context.plan.parties:
            raise Refusal("fusing partial decryptions", found=str(len(partials)),
                          need=f"one from each of {context.plan.parties} parties",
                          fix="Ask every holder.")
        parts = [context.unseal(partial, PARTIAL, self.key_id, dim) for partial in partials]
        if len({len(blobs) for blobs in parts}) != 1:
            raise Refusal("fusing partial decryptions", need="the same part of each",
                          found="parts of different sizes", fix="Ask every holder for the same.")
        for blobs in zip(*parts):  # noqa: B905 (the sizes were checked)
            shares = [openfhe.DeserializeCiphertextString(blob, openfhe.BINARY) for blob in blobs]
            try:
                opened = context.slot_sums(context.context.MultipartyDecryptFusion(shares))
            except (InvalidOpening, RuntimeError):  # OpenFHE: the approximation error is too high
                self._sums = None
            if self._sums is not None:
                self._sums.append(opened)

    def fused(self, dim: int, terms: int) -> dict[str, Any]:
        sums, context = self._sums, self.context
        self.begin_fusion()
        if sums is None:
            return _INVALID
        if len(sums) != context.num_plaintexts(dim):
            raise Refusal("fusing partial decryptions", need="all parts", found=str(len(sums)),
                          fix="Ask every holder for the rest.")
        try:
            return {"valid": True, "total": context.ring_sums(sums, dim, terms)}
        except InvalidOpening:
            return _INVALID


class Adder:
    """Takes the clients' ciphertexts, checks each, and adds them up.

    A ciphertext that was in an opened sum is in no other: differences of sums would tell more.
    """

    def __init__(self, context: Context, public_key: bytes, min_summands: int):
        self.context, self.min_summands = context, min_summands
        self.key_id = hashlib.sha256(public_key).digest()
        openfhe = context.openfhe
        blob, = context.unseal(public_key, PUBLIC_KEY, None, 0)
        # A key that was read back, as encryptors have it: its ciphertexts take some bytes more.
        key = openfhe.DeserializePublicKeyString(blob, openfhe.BINARY)
        example = context.context.Encrypt(key, context.plaintexts(np.zeros(1, np.uint32))[0])
        self._ciphertext_bytes = len(openfhe.Serialize(example, openfhe.BINARY))
        self._key_tag = key.GetKeyTag()
        self._opened: set[bytes] = set()
        self.begin(0)

    def begin(self, dim: int) -> None:
        self.dim, self.sums, self._seen = dim, [], set()

    def add(self, message: bytes) -> None:
        context, openfhe = self.context, self.context.openfhe
        if len(self._seen) >= context.plan.max_summands:
            raise Refusal("an OpenFHE sum", need=f"at most {context.plan.max_summands} summands",
                          found="more", fix="Plan the chain for more clients.")
        blobs = context.unseal(message, CIPHERTEXT, self.key_id, self.dim)
        fingerprint = message[-CHECKSUM_BYTES:]  # a hash that was checked: the same for the same
        if fingerprint in self._seen:
            raise Refusal("an OpenFHE sum", need="different ciphertexts",
                          found="one ciphertext twice", fix="Add each client's once.")
        if fingerprint in self._opened:
            raise Refusal("an OpenFHE sum", need="ciphertexts that are in no opened sum",
                          found="one that is", fix="Have the clients encrypt again.")
        if ([len(blob) for blob in blobs]
                != [self._ciphertext_bytes] * context.num_plaintexts(self.dim)):
            raise Refusal("an OpenFHE ciphertext", need="parts of the size that these parameters "
                          "give", found="others", fix="Encrypt again with this toolkit.")
        parts = [openfhe.DeserializeCiphertextString(blob, openfhe.BINARY) for blob in blobs]
        for part in parts:
            if (part.GetKeyTag() != self._key_tag or part.NumberCiphertextElements() != 2
                    or part.GetLevel() != 0 or part.GetNoiseScaleDeg() != 1):
                raise Refusal("an OpenFHE ciphertext", need="a fresh encryption under this key",
                              found="another one", fix="Encrypt again with this toolkit.")
        self._seen.add(fingerprint)
        if self.sums:
            for total, part in zip(self.sums, parts):  # noqa: B905 (the sizes were checked)
                context.context.EvalAddInPlace(total, part)
        else:
            self.sums = parts

    def finish(self) -> int:
        """Use the sum up: how many ciphertexts are in it, if they are enough."""
        terms = len(self._seen)
        if terms < max(self.min_summands, 1):
            raise Refusal("opening an OpenFHE sum", found=str(terms),
                          need=f"at least {self.min_summands} different ciphertexts",
                          fix="Wait for more clients, or end the round.")
        self._opened |= self._seen
        self._seen = set()
        return terms


class KeyHolder:
    """Holds the secret key, adds ciphertexts up, and opens sums of enough of them."""

    def __init__(self, plan: Plan, min_summands: int):
        self.context = Context(plan)
        openfhe = self.context.openfhe
        self._keys = self.context.context.KeyGen()
        blob = openfhe.Serialize(self._keys.publicKey, openfhe.BINARY)
        self.public_key = self.context.seal(PUBLIC_KEY, b"", 0, [blob])
        self.adder = Adder(self.context, self.public_key, min_summands)
        self.key_id = self.adder.key_id

    def open(self) -> dict[str, Any]:
        context, adder = self.context, self.adder
        terms = adder.finish()
        try:
            sums = [context.slot_sums(context.context.Decrypt(self._keys.secretKey, total))
                    for total in adder.sums]
            return {"valid": True, "total": context.ring_sums(sums, adder.dim, terms)}
        except (InvalidOpening, RuntimeError):  # OpenFHE: the approximation error is too high
            return _INVALID
        finally:
            adder.begin(0)


class ShareHolder:
    """Holds one share of a joint secret key; adds ciphertexts up, and decrypts sums partially.

    The first makes a key pair, every next adds its share to the public key of those before it; the
    last public key is the joint one.
    """

    def __init__(self, plan: Plan, min_summands: int, previous: bytes):
        self.context, self._min_summands = Context(plan), min_summands
        context, openfhe = self.context.context, self.context.openfhe
        self._leads = not previous
        if self._leads:
            self._keys = context.KeyGen()
        else:
            blob, = self.context.unseal(previous, PUBLIC_KEY, None, 0)
            self._keys = context.MultipartyKeyGen(
                openfhe.DeserializePublicKeyString(blob, openfhe.BINARY))
        blob = openfhe.Serialize(self._keys.publicKey, openfhe.BINARY)
        self.public_key = self.context.seal(PUBLIC_KEY, b"", 0, [blob])
        self.key_id = hashlib.sha256(self.public_key).digest()
        self.adder: Adder | None = None
        self._next = 0

    def join(self, public_key: bytes) -> None:
        if self.adder is not None:
            raise Refusal("a share of an OpenFHE key", need="one joint key", found="a second",
                          fix="Start other processes for another key.")
        self.adder = Adder(self.context, public_key, self._min_summands)
        self.key_id = self.adder.key_id

    def finish(self) -> int:
        assert self.adder is not None
        self._next = 0
        return self.adder.finish()

    def partial(self, start: int, count: int) -> bytes:
        """A part of the partial decryption of the finished sum: each is given away once."""
        adder = self.adder
        assert adder is not None
        if adder._seen or start != self._next or not 0 < count <= len(adder.sums) - start:
            raise Refusal("a partial decryption", need="the next part of a finished sum",
                          found="another one", fix="Ask for each part once, in order.")
        context, openfhe = self.context.context, self.context.openfhe
        decrypt = context.MultipartyDecryptLead if self._leads else context.MultipartyDecryptMain
        self._next = start + count
        partials = decrypt(adder.sums[start:start + count], self._keys.secretKey)
        blobs = [openfhe.Serialize(partial, openfhe.BINARY) for partial in partials]
        message = self.context.seal(PARTIAL, self.key_id, adder.dim, blobs)
        if self._next == len(adder.sums):
            adder.begin(0)
        return message


class Roles:
    """What the parent can call; a process takes one role, once."""

    def __init__(self) -> None:
        self._role: KeyHolder | ShareHolder | PublicSide | None = None

    def _take(self, role: KeyHolder | ShareHolder | PublicSide) -> dict[str, Any]:
        if self._role is not None:
            raise Refusal("an OpenFHE party", need="a process without a role", found="one with",
                          fix="Start another process.")
        self._role = role
        context = role.context
        return {"key_id": role.key_id, "ring_dimension": context.ring_dimension,
                "log2_modulus": context.log2_modulus, "parameters": context.digest.hex()}

    def _as(self, *kinds: type) -> Any:
        if not isinstance(self._role, kinds):
            raise Refusal("an OpenFHE party",
                          need=f"the role {' or '.join(kind.__name__ for kind in kinds)}",
                          found=type(self._role).__name__, fix="Call the other process.")
        return self._role

    def _adder(self) -> Adder:
        adder = self._as(KeyHolder, ShareHolder).adder
        if adder is None:
            raise Refusal("a share of an OpenFHE key", need="the joint public key",
                          found="none yet", fix="Call `join` first.")
        return adder

    def hold_key(self, plan: dict[str, Any], min_summands: int) -> dict[str, Any]:
        holder = KeyHolder(Plan(**plan), min_summands)
        return {**self._take(holder), "public_key": holder.public_key}

    def hold_share(self, plan: dict[str, Any], min_summands: int,
                   previous: bytes) -> dict[str, Any]:
        holder = ShareHolder(Plan(**plan), min_summands, previous)
        return {**self._take(holder), "public_key": holder.public_key}

    def load_public_key(self, plan: dict[str, Any], public_key: bytes) -> dict[str, Any]:
        return self._take(PublicSide(Plan(**plan), public_key))

    def join(self, public_key: bytes) -> None:
        self._as(ShareHolder).join(public_key)

    def encrypt(self, values: np.ndarray) -> list[bytes]:
        return self._as(PublicSide).encrypt(values)

    def begin_sum(self, dim: int) -> None:
        self._adder().begin(dim)

    def add(self, ciphertexts: list[bytes]) -> None:
        adder = self._adder()
        for message in ciphertexts:
            adder.add(message)

    def open_sum(self) -> dict[str, Any]:
        return self._as(KeyHolder).open()

    def finish_sum(self) -> list[int]:
        adder = self._adder()
        return [self._as(ShareHolder).finish(), len(adder.sums)]

    def partial(self, start: int, count: int) -> bytes:
        self._adder()
        return self._as(ShareHolder).partial(start, count)

    def begin_fusion(self) -> None:
        self._as(PublicSide).begin_fusion()

    def fuse(self, partials: list[bytes], dim: int) -> None:
        self._as(PublicSide).fuse(partials, dim)

    def fused(self, dim: int, terms: int) -> dict[str, Any]:
        return self._as(PublicSide).fused(dim, terms)


def main() -> None:
    """Serve until the parent closes the pipe."""
    openfhe = importlib.import_module("openfhe")
    roles = Roles()
    calls = (roles.hold_key, roles.hold_share, roles.join, roles.load_public_key, roles.encrypt,
             roles.begin_sum, roles.add, roles.open_sum, roles.finish_sum, roles.partial,
             roles.begin_fusion, roles.fuse, roles.fused)
    serve({call.__name__: call for call in calls},
          about={"openfhe": openfhe.__version__, "numpy": np.__version__})


if __name__ == "__main__":
    main()
