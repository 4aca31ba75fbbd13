"""The wire format: every message comes back as it was, and every altered one is refused."""

from __future__ import annotations

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


def residues(plan, rng):
    shape = plan.ciphertext_shape
    words = rng.integers(0, 1 << 32, shape, dtype=np.uint32) % plan.params.moduli.q
    extreme = rng.random(shape) < 0.1
    return np.where(extreme, plan.params.moduli.q - np.uint32(1), words).astype(np.uint32)


@pytest.mark.parametrize("plan", [PLAN, WIDE], ids=lambda plan: plan.parameters)
def test_ciphertexts_come_back(plan):
    array = residues(plan, np.random.default_rng(1))
    content = wire.ciphertext_to_bytes(plan, KEY_ID, array)
    np.testing.assert_array_equal(wire.ciphertext_from_bytes(content, plan, KEY_ID), array)
    overhead = len(content) - plan.ciphertext_bytes
    assert 0 < overhead < 200
    bits = sum(q.bit_length() for q in plan.params.moduli.primes)
    assert plan.ciphertext_bytes * 8 == 2 * bits * plan.params.ring_degree * plan.num_polynomials


@settings(max_examples=50)
@given(st.integers(1, 32), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_bit_packing(width, groups, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << width, 32 * groups, dtype=np.uint64).astype(np.uint32)
    packed = wire._pack_bits(values, width)
    whole = sum(int(value) << (width * i) for i, value in enumerate(values))
    assert packed == whole.to_bytes(4 * width * groups, "little")
    np.testing.assert_array_equal(wire._unpack_bits(memoryview(packed), width), values)


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
    return body + hashlib.sha256(body).digest()


def test_residues_not_below_their_prime_are_refused():
    header = MESSAGE[: -32 - PLAN.ciphertext_bytes]
    forged = with_checksum(header + b"\xff" * PLAN.ciphertext_bytes)
    with pytest.raises(UpdateError, match="residues below 67104769"):
        wire.ciphertext_from_bytes(forged, PLAN, KEY_ID)
    exactly_q = residues(PLAN, np.random.default_rng(3))
    exactly_q[1, 0, 5, 0] = PLAN.params.moduli.primes[0]
    with pytest.raises(UpdateError, match="residues below"):
        wire.ciphertext_from_bytes(wire.ciphertext_to_bytes(PLAN, KEY_ID, exactly_q), PLAN, KEY_ID)


def test_messages_that_belong_elsewhere_are_refused():
    other = plan_packing("rlwe-1024-26", dim=901, modulus=1 << 8, max_summands=3)
    newer = with_checksum(MESSAGE[:8] + (2).to_bytes(2, "little") + MESSAGE[10:-32])
    for content, plan, key_id, what in (
        (MESSAGE, PLAN, bytes(32), "another key"),
        (MESSAGE, other, KEY_ID, "another packing"),
        (MESSAGE, WIDE, KEY_ID, "another parameter set"),
        (newer, PLAN, KEY_ID, "version 2"),
    ):
        with pytest.raises(UpdateError, match=what):
            wire.ciphertext_from_bytes(content, plan, key_id)
    with pytest.raises(UpdateError, match=r"uint32 \[2, 1, 1024, 1\]"):
        wire.ciphertext_to_bytes(PLAN, KEY_ID, np.zeros((2, 1, 1024, 1), np.int64))


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
    for altered in (content[:-1], content + b"0", content[:100], b"X" + content[1:]):
        with pytest.raises(ParameterError):
            wire.public_key_from_bytes(altered)
    renamed = with_checksum(content[:12] + b"rlwe-9".ljust(32, b"\0") + content[44:-32])
    with pytest.raises(ParameterError, match="does not know"):
        wire.public_key_from_bytes(renamed)
    with pytest.raises(ParameterError, match="kind"):
        wire.public_key_from_bytes(MESSAGE)
