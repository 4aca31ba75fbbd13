"""The wire format: every message comes back as it was, and every altered one is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import rlwe
from fedjax_secure.core import ParameterError, UpdateError
from fedjax_secure.he import wire
from fedjax_secure.he.packing import plan_packing

PLAN = plan_packing("rlwe-1024-26", dim=900, modulus=1 << 8, max_summands=3)
WIDE = plan_packing("rlwe-4096-90", dim=9000, modulus=1 << 30, max_summands=3)
KEY_ID = bytes(range(32))
HEADER_BYTES = 148


def residues(plan, rng):
    shape, q = plan.ciphertext_shape, plan.transport.moduli.q
    words = rng.integers(0, 1 << 32, shape, dtype=np.uint32) % q
    extreme = rng.random(shape) < 0.1
    return np.where(extreme, q - np.uint32(1), words).astype(np.uint32)


@pytest.mark.parametrize("name", rlwe.PARAMETER_SETS)
@pytest.mark.parametrize("polynomials", [1, 3])
def test_ciphertexts_of_every_parameter_set_come_back(name, polynomials):
    small = plan_packing(name, dim=5, modulus=2, max_summands=2)
    plan = dataclasses.replace(small, num_polynomials=polynomials)
    array = residues(plan, np.random.default_rng(1))
    content = wire.ciphertext_to_bytes(plan, KEY_ID, array)
    np.testing.assert_array_equal(wire.ciphertext_from_bytes(content, plan, KEY_ID), array)
    assert len(content) - plan.ciphertext_bytes == 180
    bits = sum(q.bit_length() for q in plan.transport.moduli.primes)
    assert plan.ciphertext_bytes * 8 == 2 * bits * plan.params.ring_degree * plan.num_polynomials
    copy = np.asfortranarray(array)  # how the array lies in memory does not matter
    assert wire.ciphertext_to_bytes(plan, KEY_ID, copy) == content


def packed_by_integers(values, width):
    """The layout again, from its description, in Python integers."""
    length = len(values) // 32
    numbers = [
        sum(int(values[length * run + g]) << (width * run) for run in range(32))
        for g in range(length)
    ]
    words = [(number >> (32 * k)) & 0xFFFFFFFF for k in range(width) for number in numbers]
    return b"".join(word.to_bytes(4, "little") for word in words)


@settings(max_examples=100)
@given(st.integers(1, 32), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_bit_packing(width, groups, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << width, 32 * groups, dtype=np.uint64).astype(np.uint32)
    values[rng.random(32 * groups) < 0.2] = (1 << width) - 1
    packed = bytearray(b"\xa5" * wire.packed_bytes(len(values), width))
    wire.pack_bits(values, width, memoryview(packed))
    assert packed == packed_by_integers(values, width)
    back = np.empty_like(values)
    wire.unpack_bits(memoryview(bytes(packed)), width, back)
    np.testing.assert_array_equal(back, values)


MESSAGE = wire.ciphertext_to_bytes(PLAN, KEY_ID, residues(PLAN, np.random.default_rng(2)))


@settings(max_examples=300)
@given(st.one_of(st.integers(0, 140), st.integers(0, len(MESSAGE) - 1)), st.integers(1, 255))
def test_any_changed_byte_is_refused(place, change):
    altered = bytearray(MESSAGE)
    altered[place] ^= change
    with pytest.raises(UpdateError):
        wire.ciphertext_from_bytes(bytes(altered), PLAN, KEY_ID)


@settings(max_examples=60)
@given(st.integers(0, len(MESSAGE) - 1), st.binary(min_size=1, max_size=40))
def test_any_other_length_is_refused(length, more):
    for altered in (MESSAGE[:length], MESSAGE + more):
        with pytest.raises(UpdateError):
            wire.ciphertext_from_bytes(altered, PLAN, KEY_ID)


@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused(content):
    with pytest.raises(UpdateError, match="foreign|cut short"):
        wire.ciphertext_from_bytes(content, PLAN, KEY_ID)
    with pytest.raises(ParameterError, match="foreign|cut short"):
        wire.public_key_from_bytes(content)


def with_checksum(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=32).digest()


def forged_with(residue):
    """A message whose first residue, of 26 bits, is this; its checksum is right."""
    payload = bytearray(MESSAGE[HEADER_BYTES:-32])
    word = int.from_bytes(payload[:4], "little")
    payload[:4] = (word >> 26 << 26 | residue).to_bytes(4, "little")
    return with_checksum(MESSAGE[:HEADER_BYTES] + bytes(payload))


def test_residues_not_below_their_prime_are_refused():
    q = PLAN.params.moduli.primes[0]
    for residue in (q, q + 1, (1 << 26) - 1):
        with pytest.raises(UpdateError, match=f"residues below {q}"):
            wire.ciphertext_from_bytes(forged_with(residue), PLAN, KEY_ID)
    assert wire.ciphertext_from_bytes(forged_with(q - 1), PLAN, KEY_ID)[0, 0, 0, 0] == q - 1
    too_large = residues(PLAN, np.random.default_rng(3))
    for residue in (q, 1 << 26, 0xFFFFFFFF):
        too_large[1, 0, 5, 0] = residue
        with pytest.raises(UpdateError, match=f"writing a ciphertext needs residues below {q}"):
            wire.ciphertext_to_bytes(PLAN, KEY_ID, too_large)


def test_messages_that_belong_elsewhere_are_refused():
    other = plan_packing("rlwe-1024-26", dim=901, modulus=1 << 8, max_summands=3)
    older = with_checksum(MESSAGE[:8] + (1).to_bytes(2, "little") + MESSAGE[10:-32])
    traveller = plan_packing("rlwe-8192-212", dim=9, modulus=1 << 8, max_summands=3)
    stayer = dataclasses.replace(traveller, parameters="rlwe-8192-196")
    assert traveller.transport is stayer.transport  # residues alike, encrypted under another set
    switched = wire.ciphertext_to_bytes(
        traveller, KEY_ID, residues(traveller, np.random.default_rng(5))
    )
    for content, plan, key_id, what in (
        (switched, stayer, KEY_ID, "another parameter set"),
        (MESSAGE, PLAN, bytes(32), "another key"),
        (MESSAGE, other, KEY_ID, "another packing"),
        (MESSAGE, WIDE, KEY_ID, "another parameter set"),
        (older, PLAN, KEY_ID, "version 1"),
    ):
        with pytest.raises(UpdateError, match=what):
            wire.ciphertext_from_bytes(content, plan, key_id)
    for array in (np.zeros((2, 1, 1024, 1), np.int64), np.zeros((2, 2, 1024, 1), np.uint32)):
        with pytest.raises(UpdateError, match=r"uint32 \[2, 1, 1024, 1\]"):
            wire.ciphertext_to_bytes(PLAN, KEY_ID, array)


@pytest.mark.parametrize("name", ["rlwe-1024-26", "rlwe-4096-104"])
def test_public_keys_come_back(name):
    params, rng = rlwe.parameters(name), np.random.default_rng(4)
    shape = (params.num_limbs, params.ring_degree, 1)
    b, a = (rng.integers(0, 1 << 25, shape, dtype=np.uint32) for _ in range(2))
    content = wire.public_key_to_bytes(name, rlwe.PublicKey(b, a))
    back_name, back = wire.public_key_from_bytes(content)
    assert back_name == name
    np.testing.assert_array_equal(back.b, b)
    np.testing.assert_array_equal(back.a, a)
    assert wire.key_id_of(content) == hashlib.sha256(content).digest()
    for altered in (content[:-1], content + b"0", content[:100], b"X" + content[1:], "text", None):
        with pytest.raises(ParameterError):
            wire.public_key_from_bytes(altered)
    renamed = with_checksum(content[:12] + b"rlwe-9".ljust(32, b"\0") + content[44:-32])
    with pytest.raises(ParameterError, match="does not know"):
        wire.public_key_from_bytes(renamed)
    with pytest.raises(ParameterError, match="kind"):
        wire.public_key_from_bytes(MESSAGE)
