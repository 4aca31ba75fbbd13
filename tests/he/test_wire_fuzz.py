"""Fuzzing of everything that a client, a key holder or a file may be sent altered.

Each input is a valid message that was changed: cut, extended, flipped, spliced, overwritten field
by field, with the checksum left as it was or made right again. Whatever reads it must either raise
the one error that it documents, or return what the message says: the very same values for the very
same bytes, and for a message made anew around other residues those residues, read a second time in
Python integers. A crash, another error, a second spelling of one message, more than
`MAX_SECONDS` or more memory than a few messages is a failure.

    pytest tests/he/test_wire_fuzz.py                       # a short run; the same in CI each time
    python tests/he/test_wire_fuzz.py --inputs 1000000      # a long one, with counts
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import random
import resource
import signal
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest

from fedjax_kernels import rlwe
from fedjax_secure.core import (
    InvalidSum,
    OpeningError,
    ParameterError,
    ResumeError,
    SeededSource,
    Setting,
    Signer,
    Submission,
    UpdateError,
    opening,
)
from fedjax_secure.core.party import Refusal
from fedjax_secure.core.randomness import host_words
from fedjax_secure.he import key_holder, wire
from fedjax_secure.he.joint_key import holder as share_holder
from fedjax_secure.he.joint_key import messages as threshold_messages
from fedjax_secure.he.openfhe import context as openfhe_context
from fedjax_secure.he.openfhe import interop, serialised
from fedjax_secure.he.openfhe.plan import plan_for
from fedjax_secure.he.packing import plan_packing

INPUTS = int(os.environ.get("FEDJAX_SECURE_FUZZ_INPUTS", "5000"))
MAX_SECONDS = 20.0  # an input takes about a millisecond; the machine may be very busy
KEY_ID, RUN, MODEL = bytes(range(32)), bytes(16), bytes(32)
HEADER_BYTES, CHECKSUM_BYTES = wire._FORMAT.size, 32
Rng = random.Random


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader, and a valid message for it.

    Attributes:
        read: the reader; returns something that compares with ``==`` after :func:`plain`.
        error: the one class that it may raise.
        fields: (start, size) of the header's fields.
        reseal: makes the checksum right again.
        judge: ``(changed, result) -> outcome`` for what was read from changed bytes; raises
            AssertionError where the result is not what the bytes say.
        weight: how often it is taken.
    """

    name: str
    message: bytes
    read: Callable[[bytes], Any]
    error: type[Exception]
    fields: tuple[tuple[int, int], ...]
    reseal: Callable[[bytes], bytes]
    judge: Callable[[bytes, Any], str]
    weight: int
    special: tuple[Callable[[Rng, bytes], bytes], ...] = ()


# -- changes ---------------------------------------------------------------------------------------


def cut(rng: Rng, message: bytes) -> bytes:
    size = len(message)
    return message[: rng.choice((rng.randrange(size), rng.randrange(220), size - 1))]


def extend(rng: Rng, message: bytes) -> bytes:
    more = rng.choice((b"\0", rng.randbytes(rng.randint(1, 64)), message, message[:HEADER_BYTES]))
    return rng.choice((message + more, more + message))


def flip_bits(rng: Rng, message: bytes) -> bytes:
    changed, header_only = bytearray(message), rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(min(HEADER_BYTES, len(message)) if header_only else len(message))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: Rng, message: bytes) -> bytes:
    size = rng.choice((1, 4, 32, 200))
    place = rng.randrange(max(1, len(message) - size))
    block = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return message[:place] + block + message[place + size :]


def move(rng: Rng, message: bytes) -> bytes:
    """Two blocks change places; the length stays."""
    size = rng.choice((4, 16, 256))
    one, other = sorted(rng.randrange(max(1, len(message) - size)) for _ in range(2))
    changed = bytearray(message)
    changed[one : one + size] = message[other : other + size]
    changed[other : other + size] = message[one : one + size]
    return bytes(changed[: len(message)])


def foreign(rng: Rng, message: bytes) -> bytes:
    body = rng.randbytes(rng.choice((0, 1, 7, HEADER_BYTES, len(message), rng.randint(0, 4000))))
    return rng.choice((body, message[:8] + body[8:], message[:10] + body[10:]))


CHANGES = (cut, extend, flip_bits, flip_bits, overwrite, move, foreign)


def edit_field(rng: Rng, target: Target) -> bytes:
    changed = bytearray(target.message)
    for _ in range(rng.choice((1, 1, 2))):
        start, size = rng.choice(target.fields)
        before = int.from_bytes(changed[start : start + size], "little")
        top = 256**size
        after = rng.choice((0, 1, before + 1, before - 1, before * 2, before ^ 1, top - 1, top // 2,
                            before + (1 << 32), rng.randrange(top)))  # fmt: skip
        changed[start : start + size] = (after % top).to_bytes(size, "little")
    return bytes(changed)


def mutate(rng: Rng, target: Target, others: list[Target]) -> bytes:
    """One altered message; about one in a hundred is the message as it was."""
    kind, message = rng.random(), target.message
    if kind < 0.01:
        return message
    if kind < 0.35:
        changed = edit_field(rng, target)
    elif kind < 0.60 and target.special:
        changed = rng.choice(target.special)(rng, message)
    elif kind < 0.68:
        other = rng.choice(others).message
        at = rng.choice((8, 12, HEADER_BYTES, rng.randrange(len(message))))
        changed = message[:at] + other[at:]
    else:
        changed = rng.choice(CHANGES)(rng, message)
        if rng.random() < 0.2:
            changed = rng.choice(CHANGES)(rng, changed or message)
    return target.reseal(changed) if rng.random() < 0.6 else changed


# -- the lattice messages --------------------------------------------------------------------------


def lattice_reseal(content: bytes) -> bytes:
    body = content[:-CHECKSUM_BYTES]
    return body + hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def lattice_fields() -> tuple[tuple[int, int], ...]:
    sizes = [struct.calcsize("<" + code) for code in
             ("8s", "H", "B", "B", "32s", "32s", "32s", "I", "I", "I", "Q", "H", "I", "H", "H", "H",
              "Q")]  # fmt: skip
    starts = np.cumsum([0, *sizes])
    assert starts[-1] == HEADER_BYTES
    fields = list(zip(starts[:-1].tolist(), sizes, strict=True))
    return tuple(fields + fields[7:])  # the numbers twice as often as the names


def residue_by_integers(content: bytes, params, polynomials: int, place: tuple[int, ...]) -> int:
    """One residue, read by the layout's description."""
    component, limb, coefficient, polynomial = place
    count, start = params.ring_degree * polynomials, HEADER_BYTES
    widths = [q.bit_length() for q in params.moduli.primes] * 2
    before = component * params.num_limbs + limb
    start += sum(4 * width * count // 32 for width in widths[:before])
    width, runs = widths[before], count // 32
    run, group = divmod(coefficient * polynomials + polynomial, runs)
    number = 0
    for k in range(width):
        at = start + 4 * (k * runs + group)
        number |= int.from_bytes(content[at : at + 4], "little") << (32 * k)
    return (number >> (run * width)) & ((1 << width) - 1)


def lattice_target(name, params, polynomials, message, read, write, error, weight) -> Target:
    widths = [q.bit_length() for q in params.moduli.primes]
    count = params.ring_degree * polynomials

    def near_prime(rng: Rng, content: bytes) -> bytes:
        """A first residue of some limb at, just below or just above its prime."""
        limb = rng.randrange(len(widths))
        at = HEADER_BYTES + sum(4 * w * count // 32 for w in widths[:limb])
        at += 4 * rng.randrange(count // 32)  # the first run lies lowest in its words
        q, width = params.moduli.primes[limb], widths[limb]
        value = rng.choice((0, q - 1, q, q + 1, (1 << width) - 1, rng.randrange(1 << width)))
        word = int.from_bytes(content[at : at + 4], "little") >> width << width | value
        return content[:at] + word.to_bytes(4, "little") + content[at + 4 :]

    def payload(rng: Rng, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 40))):
            changed[rng.randrange(HEADER_BYTES, len(content) - CHECKSUM_BYTES)] = rng.randrange(256)
        return bytes(changed)

    def judge(changed: bytes, result: Any) -> str:
        array = np.stack([result[1].b, result[1].a]) if isinstance(result, tuple) else result
        assert write(result) == changed, "two messages are read as one"
        if isinstance(result, tuple) and result[0] != params.name:
            return "another whole message"  # a splice that is all of a key of another set
        assert array.dtype == np.uint32 and (array < params.moduli.q).all()
        assert changed[:HEADER_BYTES] == message[:HEADER_BYTES], "another header was taken"
        if changed == message:
            return "the same array"
        pick = Rng(changed[-8:])
        for _ in range(4):
            place = tuple(pick.randrange(size) for size in array.shape)
            assert int(array[place]) == residue_by_integers(changed, params, polynomials, place)
        return "other residues, sealed anew"

    return Target(name, message, read, error, lattice_fields(), lattice_reseal, judge, weight,
                  (near_prime, payload))  # fmt: skip


def random_residues(params, polynomials: int, seed: int) -> np.ndarray:
    shape = (2, params.num_limbs, params.ring_degree, polynomials)
    words = np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint32)
    return (words % params.moduli.q).astype(np.uint32)


def ciphertext_target(parameters: str, dim: int, modulus: int, summands: int, weight: int):
    plan = plan_packing(parameters, dim=dim, modulus=modulus, max_summands=summands)
    array = random_residues(plan.transport, plan.num_polynomials, dim)
    return lattice_target(
        f"ciphertext {parameters} x {plan.num_polynomials}", plan.transport, plan.num_polynomials,
        wire.ciphertext_to_bytes(plan, KEY_ID, array),
        lambda content: wire.ciphertext_from_bytes(content, plan, KEY_ID),
        lambda result: wire.ciphertext_to_bytes(plan, KEY_ID, result), UpdateError, weight,
    )  # fmt: skip


def public_key_target(parameters: str, weight: int) -> Target:
    params = rlwe.parameters(parameters)
    key = rlwe.PublicKey(*random_residues(params, 1, 1))
    return lattice_target(
        f"public key {parameters}", params, 1, wire.public_key_to_bytes(parameters, key),
        wire.public_key_from_bytes, lambda result: wire.public_key_to_bytes(*result),
        ParameterError, weight,
    )  # fmt: skip


# -- the key holder --------------------------------------------------------------------------------


class Opening:
    """A real key holder of two clients; one of them, or whoever carries its messages, cheats."""

    plan = plan_packing("rlwe-1024-26", dim=20, modulus=1 << 8, max_summands=2)

    def __init__(self):
        self.signers = {name: Signer(bytes([i]) * 32) for i, name in enumerate(("ada", "bob"), 1)}
        roster = {name: signer.public_key for name, signer in self.signers.items()}
        setting = Setting(RUN, roster, 2, SeededSource(1))
        self.holder = key_holder.KeyHolder(self.plan, setting)
        self.values = np.random.default_rng(7).integers(0, 256, (2, 20)).astype(np.uint32)
        count = rlwe.words_needed(self.plan.params, self.plan.num_polynomials)
        self.payloads = [
            wire.ciphertext_to_bytes(self.plan, self.holder.key_id, rlwe.encrypt(
                self.plan.params, self.holder.public_key, self.plan.pack(value),
                host_words(bytes([9 + i]) * 32, count).astype(np.uint32)))
            for i, value in enumerate(self.values)]  # fmt: skip
        self.total = self.values.sum(axis=0) % 256
        self.round = 0

    def submission(self, name: str, payload: bytes) -> Submission:
        made = Submission(name, RUN, self.round, MODEL, self.holder.key_id, payload)
        return made.signed(self.signers[name])

    def signed_by_the_cheat(self, payload: bytes) -> np.ndarray:
        """The client itself sends the altered message."""
        self.round += 1
        sent = [self.submission("ada", self.payloads[0]), self.submission("bob", payload)]
        return self.holder.open(self.round, MODEL, sent).total

    def altered_on_the_way(self, payload: bytes) -> np.ndarray:
        """The aggregator alters what an honest client has signed."""
        self.round += 1
        bob = dataclasses.replace(self.submission("bob", self.payloads[1]), payload=payload)
        return self.holder.open(self.round, MODEL, [self.submission("ada", self.payloads[0]), bob]
                                ).total  # fmt: skip

    def judge_signed(self, changed: bytes, total: np.ndarray) -> str:
        assert changed[:HEADER_BYTES] == self.payloads[1][:HEADER_BYTES]
        if changed == self.payloads[1]:
            assert (total == self.total).all(), "a wrong sum"
            return "the same array"
        wire.ciphertext_from_bytes(changed, self.plan, self.holder.key_id)
        return "other residues, sealed anew"  # a registered client's own doing

    def judge_altered(self, changed: bytes, total: np.ndarray) -> str:
        assert changed == self.payloads[1] and (total == self.total).all(), "a wrong sum"
        return "the same array"

    def targets(self) -> list[Target]:
        pattern = lattice_target("", self.plan.params, self.plan.num_polynomials, self.payloads[1],
                                 None, None, OpeningError, 2)  # fmt: skip
        return [
            dataclasses.replace(pattern, name="opening, signed by the cheat",
                                read=self.signed_by_the_cheat, judge=self.judge_signed),
            dataclasses.replace(pattern, name="opening, altered on the way",
                                read=self.altered_on_the_way, judge=self.judge_altered),
            packed_target("opening, fields of a submission", self.fields(), self.open_fields,
                          OpeningError, self.judge_fields, 2),
        ]  # fmt: skip

    def fields(self) -> list[Any]:
        self.round = 0
        bob = self.submission("bob", b"")
        return [bob.client, bob.run, bob.round, bob.model_digest, bob.key_id, bob.signature]

    def open_fields(self, content: bytes) -> np.ndarray:
        """What a network layer makes of a message that decodes: fields of any type."""
        try:
            client, run, number, model, key_id, signature = msgpack.unpackb(content)
        except Exception:
            raise OpeningError("decoding", need="six fields", found="others", fix="Ask.") from None
        bob = Submission(client, run, number, model, key_id, self.payloads[1], signature)
        return self.holder.open(0, MODEL, [self.submission("ada", self.payloads[0]), bob]).total

    def judge_fields(self, changed: bytes, total: np.ndarray) -> str:
        raise AssertionError("the signature was for another payload")


# -- files and OpenFHE's headers: msgpack ----------------------------------------------------------


def hostile(rng: Rng, depth: int = 0) -> Any:
    """A value of any type that msgpack has."""
    values = [None, True, 0, 1, -1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.5, float("nan"),
              float("inf"), b"", "", "\0", "O", "<u4", "V9999999999", "i4,(", "bob", bytes(16),
              bytes(32), b"x" * 70, "y" * 70]  # fmt: skip
    if depth < 2 and rng.random() < 0.3:
        inner = [hostile(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        return rng.choice((inner, {str(place): value for place, value in enumerate(inner)}))
    return rng.choice(values)


def edited_values(rng: Rng, fields: Any) -> Any:
    """Fields of which one is another value, is missing, or comes twice."""
    items = list(fields.items()) if isinstance(fields, dict) else list(fields)
    place, how = rng.randrange(len(items)), rng.random()
    if how < 0.1:
        items.pop(place)
    elif how < 0.15 and isinstance(fields, list):
        items.insert(place, items[place])
    elif isinstance(fields, dict):
        items[place] = (items[place][0], hostile(rng))
    elif isinstance(items[place], list) and rng.random() < 0.7:
        items[place] = [
            rng.choice((hostile(rng), x, float(x) if isinstance(x, int) else x))
            for x in items[place] * rng.choice((1, 1, 2))
        ]
    elif isinstance(items[place], int) and rng.random() < 0.4:
        items[place] = rng.choice((items[place] + 1, float(items[place]), -items[place]))
    else:
        items[place] = hostile(rng)
    return dict(items) if isinstance(fields, dict) else items


def packed_target(name, fields, read, error, judge, weight) -> Target:
    message = msgpack.packb(fields)
    places = tuple((place, 1) for place in range(len(message)))
    return Target(name, message, read, error, places, lambda content: content, judge, weight,
                  (lambda rng, content: msgpack.packb(edited_values(rng, fields)),))  # fmt: skip


def file_targets(folder: Path) -> list[Target]:
    """Files of the key holder's own folder, damaged."""
    path, seed = folder / "key-holder.key", bytes(range(32))
    total = np.arange(5, dtype="<u4")
    plan = Opening.plan
    setting = Setting(RUN, {}, 2, SeededSource(1), folder)
    key_holder._restored_or_fresh_seed(plan, setting)
    key_fields = msgpack.unpackb(path.read_bytes()) | {"seed": seed}

    def read_key(content: bytes) -> bytes:
        path.write_bytes(content)
        return key_holder._restored_or_fresh_seed(plan, setting)

    def judge_key(changed: bytes, result: bytes) -> str:
        found = msgpack.unpackb(changed)
        assert isinstance(result, bytes) and len(result) == 32 and found["seed"] == result
        assert {**found, "seed": seed} == key_fields
        return "the same array" if result == seed else "other values, a file written anew"

    result_fields = msgpack.unpackb(opening.durable.opened_to_bytes(
        opening.Opened(3, total, ("ada", "bob"), bytes(32))))  # fmt: skip

    def judge_result(changed: bytes, result: Any) -> str:
        found = msgpack.unpackb(changed)
        assert result.total.tobytes() == found["total"]
        return "the same array" if found == result_fields else "other values, a file written anew"

    return [
        packed_target("file of the key", key_fields, read_key, ResumeError, judge_key, 1),
        packed_target("file of a result", result_fields,
                      lambda content: opening.durable.opened_from_bytes(content, 3), OpeningError,
                      judge_result, 1),
    ]  # fmt: skip


def openfhe_target(weight: int) -> Target:
    """The header and the parts of OpenFHE's messages; OpenFHE itself does not run here."""
    context = openfhe_context.Context.__new__(openfhe_context.Context)
    context.plan = plan_for("openfhe_bgv", 16, 4)
    context.openfhe = SimpleNamespace(__version__="1.6.1.0")
    context.digest = bytes(range(32))
    kind, dim, blobs = openfhe_context.CIPHERTEXT, 50, [b"a" * 300, b"b" * 200]
    message = context.seal(kind, KEY_ID, dim, blobs)
    start = len(openfhe_context.MAGIC) + 4
    end = start + int.from_bytes(message[start - 4 : start], "little")
    fields, size = msgpack.unpackb(message[start:end]), openfhe_context.CHECKSUM_BYTES

    def reseal(content: bytes) -> bytes:
        return content[:-size] + hashlib.sha256(content[:-size]).digest()[:size]

    def edit(rng: Rng, content: bytes) -> bytes:
        packed = msgpack.packb(edited_values(rng, fields))
        return content[: start - 4] + struct.pack("<I", len(packed)) + packed + content[end:]

    def judge(changed: bytes, parts: list[bytes]) -> str:
        body = b"".join(parts)
        assert changed[:-size].endswith(body), "parts that the message does not hold"
        return "the same array" if parts == blobs else "other residues, sealed anew"

    places = tuple((place, 1) for place in range(len(openfhe_context.MAGIC), end)) + ((8, 4),) * 8
    return Target("OpenFHE's header", message,
                  lambda content: context.unseal(content, kind, KEY_ID, dim), Refusal, places,
                  reseal, judge, weight, (edit,))  # fmt: skip


def openfhe_bytes_targets(weight: int) -> list[Target]:
    """OpenFHE's own serialisation, which has no checksum, as our reader takes it."""
    path = Path(__file__).parent.parent / "vectors" / "openfhe_contexts.json"
    vectors = json.loads(path.read_text())
    vector = next(value for name, value in vectors.items() if name != "source")
    header = serialised._Reader(bytes.fromhex(vector["context"])).context()
    shape = (2, len(header.primes), header.ring_degree)
    residues = np.random.default_rng(3).integers(0, min(header.primes), shape).astype(np.uint64)
    tail = serialised.Tail(header.ring_degree // 2, 0, 0, 1, 2.0**header.plaintext_modulus, 1,
                           serialised.CKKS_PACKED)  # fmt: skip
    key = serialised.write_public_key(header, "tag", residues)
    ciphertext = serialised.write_ciphertext(header, "tag", residues, tail)

    def judge_key(changed: bytes, result: interop.ContextKey) -> str:
        assert interop.export_public_key(result) == changed, "two keys are read as one"
        return "the same array" if changed == key else "other residues, sealed anew"

    def judge_ciphertext(changed: bytes, result: Any) -> str:
        again = serialised.write_ciphertext(*result)
        assert again[:-12] == changed[:-12], "two ciphertexts are read as one"
        return "the same array" if changed == ciphertext else "other residues, sealed anew"

    def read_key(content: bytes) -> interop.ContextKey:
        return interop.import_public_key(content, version="1.6.1.0")

    head = [(place, size) for size in (1, 4, 8) for place in range(0, 700, 1 if size > 1 else 9)]
    return [
        Target("OpenFHE's public key", key, read_key, ParameterError, tuple(head), lambda x: x,
               judge_key, weight),
        Target("OpenFHE's ciphertext", ciphertext, serialised.read_ciphertext, ParameterError,
               (*head, *((len(ciphertext) - place, 4) for place in range(4, 50, 4))), lambda x: x,
               judge_ciphertext, weight),
    ]  # fmt: skip


# -- messages of share holders ---------------------------------------------------------------------


def threshold_target(weight: int) -> Target:
    """A partial decryption; half of the altered ones are signed by the holder who sends them."""
    signers = [Signer(bytes([i]) * 32) for i in range(1, 4)]
    session = threshold_messages.Session(RUN, KEY_ID, tuple(s.public_key for s in signers))
    params, kind, head = rlwe.parameters("rlwe-1024-26"), threshold_messages.PARTIAL, bytes(8)
    residues = random_residues(params, 1, 6)[0]
    to_bytes = threshold_messages.residues_to_bytes
    body_bytes = len(head) + threshold_messages.residues_bytes(params, 1)

    def write(body: bytes) -> bytes:
        return session.write(signers[1], kind, 2, body, round=5)

    message = write(head + to_bytes(params, residues))
    header, signature = len(message) - body_bytes - 64 - CHECKSUM_BYTES, 64

    def read(content: bytes) -> tuple[Any, np.ndarray]:
        found = session.read(content, kind, sender=2, round=5, body_bytes=body_bytes)
        return found, threshold_messages.residues_from_bytes(params, 1, found.body[8:])

    def reseal(content: bytes) -> bytes:
        signed = content[: -signature - CHECKSUM_BYTES]
        if sum(content) % 2:  # the holder itself cheats
            content = signed + signers[1].sign(threshold_messages._DOMAIN + signed) + bytes(32)
        return lattice_reseal(content)

    def judge(changed: bytes, result: Any) -> str:
        found, array = result
        assert write(found.body[:8] + to_bytes(params, array)) == changed, "two messages as one"
        assert (array < params.moduli.q).all() and changed[:header] == message[:header]
        return "the same array" if changed == message else "other residues, sealed anew"

    sizes = [8, 2, 1, 1, 1, 32, 8, 8]
    places = list(zip(np.cumsum([0, *sizes]).tolist(), [*sizes, 8], strict=True))
    assert places[-1][0] == header
    return Target("partial decryption", message, read, OpeningError, tuple(places), reseal, judge,
                  weight)  # fmt: skip


def share_file_target(folder: Path, weight: int) -> Target:
    """The file of a share holder, damaged on its disk."""
    path = folder / "share-holder.key"
    content = msgpack.packb({"version": share_holder._FILE_VERSION, "share": bytes(range(100))})
    message = hashlib.sha256(content).digest() + content

    def read(changed: bytes) -> dict[str, Any]:
        path.write_bytes(changed)
        return share_holder._read_file(path, "holder-1")

    def judge(changed: bytes, fields: dict[str, Any]) -> str:
        assert changed == message and fields == msgpack.unpackb(content)
        return "the same array"

    places = tuple((place, 1) for place in range(len(message)))
    return Target("file of a share", message, read, ResumeError, places, lambda x: x, judge, weight)


# -- the run ---------------------------------------------------------------------------------------


def make_targets(folder: Path) -> list[Target]:
    return [
        ciphertext_target("rlwe-1024-26", 900, 1 << 8, 3, 8),
        ciphertext_target("rlwe-1024-26", 3000, 1 << 8, 3, 4),  # several polynomials
        ciphertext_target("rlwe-2048-52", 31, 1 << 24, 4, 4),
        ciphertext_target("rlwe-4096-97", 100, 1 << 16, 1024, 1),  # primes of two widths
        ciphertext_target("rlwe-8192-212", 100, 1 << 16, 1024, 1),  # travels under another set
        public_key_target("rlwe-1024-26", 6),
        public_key_target("rlwe-4096-97", 1),
        *Opening().targets(),
        *file_targets(folder),
        openfhe_target(6),
        *openfhe_bytes_targets(2),
        threshold_target(4),
        share_file_target(folder, 1),
    ]


@dataclasses.dataclass
class Run:
    """Inputs, made and judged one after another; the same for one seed."""

    folder: Path
    seed: int = 0
    names: set[str] = dataclasses.field(default_factory=set)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    slowest_seconds: float = 0.0
    most_bytes: int = 0

    def one(self, number: int, target: Target, content: bytes) -> None:
        where = f"seed {self.seed}, input {number}, {target.name}, {len(content)} bytes"
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        measured = number % 16 == 0  # measuring memory takes time
        if measured:
            tracemalloc.start()
        start = time.perf_counter()
        try:
            outcome = target.judge(content, target.read(content))
        except target.error as error:
            known = type(error) is target.error or isinstance(error, InvalidSum)
            parts = (error.where, error.need, error.found, error.fix)
            assert known and all(parts) and len(str(error)) < 1000, where
            outcome = "refused" if type(error) is target.error else "refused: not a sum"
        except BaseException as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            used = tracemalloc.get_traced_memory()[1] if measured else 0
            tracemalloc.stop()
        self.slowest_seconds = max(self.slowest_seconds, time.perf_counter() - start)
        self.most_bytes = max(self.most_bytes, used)
        size = max(len(target.message), len(content))
        assert used < 16 * size + (1 << 20), f"{where}: {used} bytes of memory"
        self.counts[target.name, outcome] += 1

    def go(self, inputs: int, only: str = "") -> None:
        def too_slow(*_: object) -> None:
            raise TimeoutError(f"more than {MAX_SECONDS} seconds")

        targets = [target for target in make_targets(self.folder) if only in target.name]
        self.names = {target.name for target in targets}
        for target in targets:  # also compiles what the key holder runs
            if "fields of a submission" not in target.name:
                assert target.judge(target.message, target.read(target.message)) == "the same array"
        weights = [target.weight for target in targets]
        handler = signal.signal(signal.SIGALRM, too_slow)
        try:
            for number in range(inputs):
                rng = Rng(f"{self.seed}/{number}")
                target = rng.choices(targets, weights)[0]
                self.one(number, target, mutate(rng, target, targets))
        finally:
            signal.signal(signal.SIGALRM, handler)


def test_altered_messages_are_refused_or_mean_what_they_say(tmp_path):
    run = Run(tmp_path)
    run.go(INPUTS)
    outcomes = collections.Counter(outcome for _, outcome in run.counts.elements())
    assert outcomes.total() == INPUTS
    assert outcomes["refused"] > INPUTS // 2
    assert outcomes["the same array"] and outcomes["other residues, sealed anew"]
    assert {name for name, _ in run.counts} == run.names


@pytest.mark.parametrize("content", [None, "text", 5, bytearray(400), memoryview(bytes(400))])
def test_what_is_not_bytes_is_refused(content):
    with pytest.raises(UpdateError, match="no bytes"):
        wire.ciphertext_from_bytes(content, Opening.plan, KEY_ID)
    with pytest.raises(ParameterError, match="no bytes"):
        wire.public_key_from_bytes(content)


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="what a target's name has to contain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, start = Run(Path(folder), options.seed), time.perf_counter()
        try:
            run.go(options.inputs, options.only)
        finally:
            names = sorted({name for name, _ in run.counts})
            for name in names:
                row = {outcome: count for (n, outcome), count in run.counts.items() if n == name}
                print(f"{name:34} " + ", ".join(f"{o}: {c}" for o, c in sorted(row.items())))
            total = collections.Counter(outcome for _, outcome in run.counts.elements())
            end = "FAILED" if sys.exc_info()[0] else "no failure"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(f"{total.total()} inputs in {time.perf_counter() - start:.0f} s: {dict(total)}; "
                  f"slowest {run.slowest_seconds * 1e3:.1f} ms, "
                  f"most {run.most_bytes >> 10} KiB an input; peak {peak} MiB; {end}")


if __name__ == "__main__":
    main()
