"""ChaCha20 against the vectors of RFC 8439, against OpenSSL, and against Python integers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels.chacha import key_from_bytes, keystream
from fedjax_kernels.chacha.cases import TEST_CASES, Case

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "chacha20_rfc8439.json").read_text())[
    "vectors"
]
IMPLEMENTATIONS = ("xla", "reference")
KEY = bytes(range(100, 132))
NONCE = bytes(range(7, 19))


def nonce_words(nonce: bytes) -> np.ndarray:
    return np.frombuffer(nonce, "<u4").astype(np.uint32)


def openssl(key: bytes, nonce: bytes, num_words: int, counter: int = 0) -> np.ndarray:
    cipher = Cipher(algorithms.ChaCha20(key, counter.to_bytes(4, "little") + nonce), None)
    return np.frombuffer(cipher.encryptor().update(bytes(4 * num_words)), "<u4")


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_rfc_8439_vectors(vector, implementation, x64):
    expected = bytes.fromhex(vector["keystream"])
    words = keystream(
        key_from_bytes(bytes.fromhex(vector["key"])),
        nonce_words(bytes.fromhex(vector["nonce"])),
        -(-len(expected) // 4),
        counter=vector["counter"],
        implementation=implementation,
    )
    assert words.dtype == jnp.uint32
    assert np.asarray(words).astype("<u4").tobytes()[: len(expected)] == expected


@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_equals_openssl_for_each_stream(case):
    check_against_openssl(case)


def test_equals_openssl_with_x64():
    with jax.enable_x64(True):
        check_against_openssl(Case(2, 65_537))
        check_against_openssl(Case(300, 257))


def check_against_openssl(case: Case) -> None:
    keys = [bytes([i % 256, i // 256, *range(30)]) for i in range(case.streams)]
    words = jax.vmap(lambda key: keystream(key, nonce_words(NONCE), case.num_words))(
        jnp.stack([key_from_bytes(key) for key in keys])
    )
    assert words.shape == (case.streams, case.num_words) and words.dtype == jnp.uint32
    for key, row in zip(keys, np.asarray(words), strict=True):
        np.testing.assert_array_equal(row, openssl(key, NONCE, case.num_words))


@settings(max_examples=15, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=12, max_size=12),
    counter=st.integers(0, 2**32 - 5),
    num_words=st.sampled_from([1, 3, 16, 37, 64]),
)
def test_any_key_nonce_and_counter(key, nonce, counter, num_words):
    expected = openssl(key, nonce, num_words, counter)
    for implementation in IMPLEMENTATIONS:
        words = keystream(
            key_from_bytes(key),
            nonce_words(nonce),
            num_words,
            counter=counter,
            implementation=implementation,
        )
        np.testing.assert_array_equal(words, expected)


def test_traced_counter_and_nonce_in_a_loop():
    key = key_from_bytes(KEY)

    @jax.jit
    def in_pieces(nonce):
        def piece(counter, _):
            return counter + jnp.uint32(3), keystream(key, nonce, 48, counter=counter)

        return jax.lax.scan(piece, jnp.uint32(5), None, length=4)[1].reshape(-1)

    np.testing.assert_array_equal(in_pieces(nonce_words(NONCE)), openssl(KEY, NONCE, 192, 5))


def test_vmap_over_each_argument_and_nested():
    nonces = [bytes([i]) + NONCE[1:] for i in range(3)]
    counters = jnp.arange(4, dtype=jnp.uint32)

    def one(nonce, counter):
        return keystream(key_from_bytes(KEY), nonce, 20, counter=counter)

    words = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(
        jnp.stack([nonce_words(nonce) for nonce in nonces]), counters
    )
    assert words.shape == (3, 4, 20)
    for i, nonce in enumerate(nonces):
        for j in range(4):
            np.testing.assert_array_equal(words[i, j], openssl(KEY, nonce, 20, j))


def test_inside_shard_map_and_inside_a_gradient():
    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("clients")
    keys = jnp.stack([key_from_bytes(KEY), key_from_bytes(KEY[::-1])])

    def of_all(keys):
        return jax.vmap(lambda key: keystream(key, nonce_words(NONCE), 70_000))(keys)

    words = jax.jit(jax.shard_map(of_all, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
    np.testing.assert_array_equal(words[1], openssl(KEY[::-1], NONCE, 70_000))

    def loss(x, key):
        return x * (keystream(key, nonce_words(NONCE), 4)[3] % 7).astype(jnp.float32)

    expected = openssl(KEY, NONCE, 4)[3] % 7
    assert jax.grad(loss)(2.0, keys[0]) == expected
    assert jax.vmap(jax.grad(loss))(jnp.ones(2), keys)[0] == expected


def test_the_last_block_is_used_and_the_counter_never_wraps():
    key, nonce = key_from_bytes(KEY), nonce_words(NONCE)
    last = keystream(key, nonce, 16, counter=2**32 - 1)
    np.testing.assert_array_equal(last, openssl(KEY, NONCE, 16, 2**32 - 1))
    for num_words, counter in ((17, 2**32 - 1), (2**36 + 1, 0), (1, 2**32)):
        with pytest.raises(ValueError, match=r"at most 2\^32"):
            keystream(key, nonce, num_words, counter=counter)


def test_no_words():
    for implementation in IMPLEMENTATIONS:
        words = keystream(key_from_bytes(KEY), nonce_words(NONCE), 0, implementation=implementation)
        assert words.shape == (0,) and words.dtype == jnp.uint32


def test_key_from_bytes_refuses_and_keeps_the_secret():
    secret = b"hunter2-hunter2"
    with pytest.raises(ValueError, match="32 bytes, got 15 bytes") as caught:
        key_from_bytes(secret)
    assert "hunter" not in str(caught.value)
    with pytest.raises(ValueError, match="got str"):
        key_from_bytes("a" * 32)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": np.zeros(7, np.uint32)}, r"`key` needs uint32\[8\].* got uint32\[7\]"),
        ({"key": np.zeros(8, np.int32)}, r"got int32\[8\]"),
        ({"nonce": np.zeros(4, np.uint32)}, r"`nonce` needs uint32\[3\]"),
        ({"nonce": [0, 0, 0]}, r"got list\[3\]"),
        ({"counter": -1}, "`counter` needs a non-negative integer, got -1"),
        ({"counter": np.zeros((), np.int64)}, r"got int64\[\]"),
        ({"num_words": 1.5}, "`num_words` needs a non-negative Python integer"),
        ({"num_words": -1}, "`num_words` needs a non-negative Python integer"),
        ({"implementation": "triton"}, "'triton'"),
    ],
)
def test_refusals(change, message):
    arguments = {"key": key_from_bytes(KEY), "nonce": nonce_words(NONCE), "num_words": 4}
    with pytest.raises(ValueError, match=message):
        keystream(**(arguments | change))


def test_the_reference_refuses_traced_values():
    with pytest.raises(ValueError, match="concrete arrays, got traced ones"):
        jax.jit(lambda k: keystream(k, nonce_words(NONCE), 4, implementation="reference"))(
            key_from_bytes(KEY)
        )
