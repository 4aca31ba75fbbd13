"""The GPU kernels of ChaCha20 and the discrete Gaussian, in the GPU interpreter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_kernels import chacha, discrete_gaussian, mosaic
from fedjax_kernels.discrete_gaussian.cases import TEST_CASES

pytestmark = pytest.mark.skipif(
    not mosaic.has_interpreter(), reason="the GPU interpreter needs jax 0.12 or newer"
)
INTERPRET = {"implementation": "pallas_interpret"}
KEY = chacha.key_from_bytes(bytes(range(32)))
NONCE = np.array([9, 0x4A000000, 0], np.uint32)


def test_keystream_equals_the_vector_of_rfc_8439():
    """Section 2.3.2: the block with counter 1."""
    nonce = np.frombuffer(bytes.fromhex("000000090000004a00000000"), "<u4")
    words = chacha.keystream(KEY, nonce, 16, counter=1, **INTERPRET)
    expected = (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )
    assert [f"{word:08x}" for word in np.asarray(words).tolist()] == expected.split()


@pytest.mark.parametrize(
    ("num_words", "x64"), [(0, False), (1, False), (17, True), (2048, False), (5000, False)]
)
def test_keystream_equals_the_reference(num_words, x64):
    with jax.enable_x64(x64):
        words = chacha.keystream(KEY, NONCE, num_words, counter=7, **INTERPRET)
    assert words.dtype == jnp.uint32
    expected = chacha.keystream(KEY, NONCE, num_words, counter=7, implementation="reference")
    np.testing.assert_array_equal(words, expected)


def test_keystreams_of_many_keys_and_a_traced_counter():
    keys = np.stack([KEY, KEY[::-1]])

    @jax.jit
    def streams(start):
        return jax.vmap(lambda key: chacha.keystream(key, NONCE, 100, counter=start, **INTERPRET))(
            keys
        )

    start = jnp.uint32(2**32 - 7)  # the last block that 100 words need is the last there is
    for key, words in zip(keys, streams(start), strict=True):
        expected = chacha.keystream(key, NONCE, 100, counter=2**32 - 7, implementation="reference")
        np.testing.assert_array_equal(words, expected)


def draws_of(table, count, seed):
    """Random words, and among them thresholds, their neighbours, and both signs."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 32, (4, count), dtype=np.uint32)
    places = rng.integers(0, table.max_magnitude, count // 2)
    words[:, : count // 2] = table.thresholds[:, places]
    words[3, : count // 4] -= np.uint32(1)  # may borrow from nothing: any word will do
    words[0, : count // 2] |= rng.integers(0, 2, count // 2, dtype=np.uint32) << np.uint32(31)
    return words


@pytest.mark.parametrize(("sigma", "x64"), [(0.1, False), (2.0, False), (2.0, True), (10.0, False)])
def test_sampler_equals_the_reference(sigma, x64):
    table = discrete_gaussian.table(sigma)  # at 10 its thresholds fill more than one part
    words = draws_of(table, 300, seed=3)
    with jax.enable_x64(x64):
        drawn = discrete_gaussian.sample(table, words, **INTERPRET)
    assert drawn.dtype == jnp.int32
    expected = discrete_gaussian.sample(table, words, implementation="reference")
    np.testing.assert_array_equal(drawn, expected)
    assert (np.asarray(expected) < 0).any() and (np.asarray(expected) >= 0).any()


def test_sampler_of_several_blocks_and_under_vmap():
    table = discrete_gaussian.table(1 / 3)
    words = draws_of(table, 2 * 2500, seed=4).reshape(4, 2, 2500).swapaxes(0, 1)
    drawn = jax.vmap(lambda w: discrete_gaussian.sample(table, w, **INTERPRET))(words)
    for row, own in zip(drawn, words, strict=True):
        np.testing.assert_array_equal(row, discrete_gaussian.sample(table, own))


@pytest.mark.slow
@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_sampler_on_every_case(case):
    table = discrete_gaussian.table(case.sigma)
    words = draws_of(table, case.draws if case.sigma < 100 else 500, seed=5)
    expected = discrete_gaussian.sample(table, words, implementation="reference")
    np.testing.assert_array_equal(discrete_gaussian.sample(table, words, **INTERPRET), expected)


def test_refusals():
    table = discrete_gaussian.table(2.0)
    words = np.zeros((4, 1), np.uint32)
    with pytest.raises(ValueError, match="GPU of compute capability 9.0"):
        discrete_gaussian.sample(table, words, implementation="pallas")
    with pytest.raises(ValueError, match="GPU of compute capability 9.0"):
        chacha.keystream(KEY, NONCE, 16, implementation="pallas")
