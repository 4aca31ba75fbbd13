"""The random rotation: orthonormal, undone by the server, and flat as stated."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Spec, SpecError
from fedjax_secure.privacy.rotate import flatness_of, hadamard


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128, 4096, 8192])
def test_the_fast_transform_is_the_matrix(size):
    scipy_linalg = pytest.importorskip("scipy.linalg")
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    exact = scipy_linalg.hadamard(size).astype(np.float64) @ values / math.sqrt(size)
    np.testing.assert_allclose(jax.jit(hadamard)(values), exact, atol=2e-6 * math.sqrt(size))


@pytest.mark.parametrize("dim", [1, 3, 64, 1000, 5000])
def test_the_server_turns_sums_back_and_next_rounds_have_other_signs(dim):
    stage = fs.privacy.rotate(seed=4)
    state, spec = stage.init(Spec(dim=dim, num_clients=2, num_records=2, denominator=2.0))
    values = np.random.default_rng(dim).normal(size=(3, dim)).astype(np.float32)
    turned = jax.vmap(lambda value: stage.client(state, None, value))(values)
    assert turned.shape == (3, spec.dim) and spec.dim == stage.width(dim)
    norms = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), norms, rtol=1e-5)
    back, after, _ = stage.server(state, turned.sum(axis=0))
    np.testing.assert_allclose(back, values.sum(axis=0), atol=1e-5 * math.sqrt(dim))
    assert int(after["round"]) == 1 and stage.carries == ("round",)
    again = stage.client(after, None, values[0])
    if dim > 32:
        assert np.abs(np.asarray(again) - np.asarray(turned[0])).max() > 0.1


def test_values_are_as_flat_as_stated():
    stage = fs.privacy.rotate()
    state, spec = stage.init(Spec(dim=1 << 12, num_clients=2, num_records=2, denominator=2.0))
    spike = jnp.zeros(1 << 12).at[77].set(1.0)
    rng = np.random.default_rng(0)
    worst = 0.0
    for number in range(40):
        # A spike comes out perfectly flat; a spread vector as flat as a random one.
        vector = spike if number == 0 else rng.normal(size=1 << 12).astype(np.float32)
        moved = {**state, "round": jnp.uint32(number)}
        turned = np.asarray(stage.client(moved, None, vector))
        worst = max(worst, np.abs(turned).max() / np.linalg.norm(turned))
    # Fails with probability below 40 * 2^-40.
    assert worst <= spec.flatness == flatness_of(1 << 12)
    assert worst > spec.flatness / 4


def test_sixteen_bits_hold_a_thousand_clients_only_after_rotation():
    spec = Spec(dim=200_000, num_clients=1000, num_records=1000, denominator=1000.0)
    plain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=16))
    turned = fs.chain(fs.privacy.clip(1.0), fs.privacy.rotate(), fs.privacy.quantise(bits=16))
    without, found = plain.init(spec)[1], turned.init(spec)[1]
    assert found.dim == 1 << 18 and found.scale >= 32 * without.scale


def test_refusals():
    spec = Spec(dim=8, num_clients=2, num_records=2, denominator=2.0)
    with pytest.raises(SpecError, match="Put rotate"):
        fs.privacy.rotate().init(spec.replace(dtype="int32"))
    with pytest.raises(SpecError, match="a seed from"):
        fs.privacy.rotate(seed=-1)
    with pytest.raises(SpecError, match="up to 1073741824 values"):
        fs.privacy.rotate().init(spec.replace(dim=(1 << 30) + 1))
