"""The fused GPU kernels of the encryption, in the GPU interpreter.

Small rings have no security and no named set; the kernels take one all the same, made here.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjax_kernels import chacha, modular, mosaic, rlwe
from fedjax_kernels.modular.cases import extreme_residues
from fedjax_kernels.rlwe import pallas, reference, xla

pytestmark = pytest.mark.skipif(
    not mosaic.has_interpreter(), reason="the GPU interpreter needs jax 0.12 or newer"
)
INTERPRET = {"implementation": "pallas_interpret"}
KEY, NONCE = chacha.key_from_bytes(bytes(range(32))), np.array([1, 2, 3], np.uint32)


def toy_parameters(ring_degree, bits, limbs):
    """A parameter set without its check of the security level."""
    toy = object.__new__(rlwe.Parameters)
    moduli = modular.Moduli(modular.ntt_primes(ring_degree, bits, limbs), ring_degree)
    for name, value in {"name": "toy", "moduli": moduli, "transport_name": ""}.items():
        object.__setattr__(toy, name, value)
    return toy


TOY = toy_parameters(64, 30, 2)
CODE = rlwe.Encoding(lane_bits=13, num_lanes=2, noise_bits=20)


def words(rng, count):
    return rng.integers(0, 1 << 32, count, dtype=np.uint32)


def case(params, code, batch, seed):
    """A key pair, lanes, and the words that the encryption takes from the key stream."""
    rng = np.random.default_rng(seed)
    secret, public = xla.generate_key(words(rng, rlwe.key_words_needed(params)), params=params)
    lanes = words(rng, (code.num_lanes, params.ring_degree, batch)) >> (32 - code.lane_bits)
    stream = chacha.keystream(KEY, NONCE, rlwe.words_needed(params, batch))
    return secret, public, lanes.astype(np.uint32), np.asarray(stream)


def test_clients_side_by_side_equal_the_reference():
    """`jax.vmap` over clients, each with a key of its own, adds an axis to the grid."""
    _, public, lanes, _ = case(TOY, CODE, 2, seed=5)
    keys = np.stack([KEY, KEY[::-1]])
    run = jax.vmap(
        lambda key: pallas.encrypt_lanes(
            public, lanes, key, NONCE, params=TOY, encoding=CODE, interpret=True
        )
    )
    message = reference.encode(lanes, params=TOY, encoding=CODE)
    for key, found in zip(keys, np.asarray(run(keys)), strict=True):
        stream = np.asarray(chacha.keystream(key, NONCE, rlwe.words_needed(TOY, 2)))
        expected = reference.encrypt(public, message, stream, params=TOY)
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_fused_encryption_equals_the_reference(x64):
    params = toy_parameters(16, 28, 3)
    _, public, lanes, stream = case(params, CODE, 3, seed=1)
    message = reference.encode(lanes, params=params, encoding=CODE)
    expected = reference.encrypt(public, message, stream, params=params)
    with jax.enable_x64(x64):
        fused = pallas.encrypt_lanes(
            public, lanes, KEY, NONCE, params=params, encoding=CODE, interpret=True
        )
    np.testing.assert_array_equal(fused, expected)


def test_encryption_of_extreme_words_and_residues():
    """Words at the edges of every bit field, and messages at the edges of every prime."""
    params, batch = toy_parameters(16, 30, 2), 70  # more than one block of 64 columns
    _, public, _, _ = case(params, CODE, 1, seed=2)
    rng = np.random.default_rng(3)
    edges = np.array([0, 1, 2**21 - 1, 2**21, 2**31, 2**32 - 1, 0x55555556, 0xAAAAAAAB], np.uint32)
    given = rng.choice(edges, rlwe.words_needed(params, batch))
    message = np.concatenate(
        [
            rng.choice(np.array(extreme_residues(q), np.uint32), (1, params.ring_degree, batch))
            for q in params.moduli.primes
        ]
    )
    found = pallas.encrypt(public, message, given, params=params, interpret=True)
    expected = reference.encrypt(public, message, given, params=params)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "x64", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["x32", "x64"])
def test_phase_equals_the_reference(x64):
    secret, public, lanes, stream = case(TOY, CODE, 3, seed=4)
    message = reference.encode(lanes, params=TOY, encoding=CODE)
    ciphertext = reference.encrypt(public, message, stream, params=TOY)
    with jax.enable_x64(x64):
        found = pallas.phase(secret, ciphertext, params=TOY, interpret=True)
    expected = reference.phase(secret, ciphertext, params=TOY)
    np.testing.assert_array_equal(found, expected)
    opened, valid = xla.decode(found, params=TOY, encoding=CODE)
    assert valid
    np.testing.assert_array_equal(opened, lanes)


def test_one_step_is_the_three_steps_by_every_name():
    params, code = rlwe.parameters("rlwe-1024-26"), rlwe.Encoding(10, 1, 15)
    _, public, lanes, stream = case(params, code, 1, seed=6)
    message = rlwe.encode(params, code, lanes)
    expected = np.asarray(rlwe.encrypt(params, public, message, stream))
    for name in (None, "xla"):
        found = rlwe.encrypt_lanes(params, public, code, lanes, KEY, NONCE, implementation=name)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="rlwe.encode needs uint32 lanes"):
        rlwe.encrypt_lanes(params, public, code, lanes[:, :5], KEY, NONCE)
    with pytest.raises(ValueError, match="encrypt_lanes needs uint32 lanes"):
        rlwe.encrypt_lanes(params, public, code, lanes[:, :5], KEY, NONCE, **INTERPRET)
    with pytest.raises(ValueError, match="GPU of compute capability 9.0"):
        rlwe.encrypt_lanes(params, public, code, lanes, KEY, NONCE, implementation="pallas")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("rlwe-1024-26", 3), ("rlwe-2048-52", 1)])
def test_named_sets(name, batch):
    params = rlwe.parameters(name)
    code = rlwe.Encoding(10, params.num_limbs, 15)
    secret, public, lanes, stream = case(params, code, batch, seed=7)
    lanes //= 3  # three of them fit a lane
    expected = rlwe.encrypt(params, public, rlwe.encode(params, code, lanes), stream)
    fused = rlwe.encrypt_lanes(params, public, code, lanes, KEY, NONCE, **INTERPRET)
    np.testing.assert_array_equal(fused, expected)
    total = rlwe.add(params, fused, fused, **INTERPRET)
    total = rlwe.sum_ciphertexts(params, np.stack([total, fused]), **INTERPRET)
    opened = rlwe.decrypt(params, secret, total, code, **INTERPRET)
    assert opened.valid
    np.testing.assert_array_equal(opened.lanes, 3 * lanes)
