"""Convolution, pooling and the LSTM layer: every implementation against XLA's own, and gradients.

Tolerances are of float32: 2e-5 of the sum of the absolute products, which bounds rounding for any
order of summation of the sizes here.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models import Conv, ConvReluPool, Lstm, avg_pool, conv, conv_relu_pool, max_pool
from fedjax_secure.models.layers import blocks, winograd

TOLERANCE = 2e-5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def traced_gradients(function, *arrays):
    """The value, and the gradients of its product with a fixed array."""
    value, back = jax.vjp(function, *arrays)
    return value, *back(normal(9, *value.shape))


def value_and_gradients(function, *arrays):
    """The same, compiled."""
    found = jax.jit(partial(traced_gradients, function))(*arrays)
    return [np.asarray(array) for array in found]


def reference_conv(x, kernel, strides, padding):
    """XLA's convolution, outside any loop."""
    axes = "HW"[: x.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def bounds_of(x, kernel, strides, padding):
    """The sums of absolute products of the value and of both gradients."""
    function = partial(reference_conv, strides=strides, padding=padding)
    value, back = jax.vjp(function, abs(x), abs(kernel))
    return value, *back(abs(normal(9, *value.shape)))


def assert_like_xla(x, kernel, strides, padding):
    """Value and both gradients agree, each to the tolerance of its own sum."""
    conv_settings = {"strides": strides, "padding": padding}

    @jax.jit  # one program: each by itself takes longer to compile
    def all_three(x, kernel):
        want = traced_gradients(partial(reference_conv, **conv_settings), x, kernel)
        ours = partial(conv, implementation="products", **conv_settings)
        return traced_gradients(ours, x, kernel), want, bounds_of(x, kernel, strides, padding)

    for ours, theirs, bound in zip(*jax.tree.map(np.asarray, all_three(x, kernel)), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == jnp.float32
        assert np.all(abs(ours - theirs) <= TOLERANCE * (bound + 1))


@settings(max_examples=8)
@given(
    records=st.integers(1, 4),
    image=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 4])),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["VALID", "SAME"]),
)
@example(3, (9, 8), (3, 3), (4, 3), (1, 1), "VALID")  # rows of the window as outputs
def test_convolution_over_patches(records, image, window, channels, strides, padding):
    x = normal(1, records, *image, channels[0])
    assert_like_xla(x, normal(2, *window, *channels), strides, padding)


@settings(max_examples=4)
@given(
    records=st.integers(1, 3),
    image=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    features=st.sampled_from([32, 40]),
    padding=st.sampled_from(["VALID", "SAME"]),
)
@example(2, (4, 4), 32, "VALID")
@example(2, (7, 8), 40, "SAME")
def test_winograds_convolution(records, image, features, padding):
    x = normal(1, records, *image, 32)
    assert_like_xla(x, normal(2, 3, 3, 32, features), (1, 1), padding)


@settings(max_examples=5)
@given(
    length=st.integers(5, 12),
    window=st.integers(1, 5),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["VALID", "SAME"]),
)
def test_convolution_over_one_axis(length, window, stride, padding):
    assert_like_xla(normal(1, 2, length, 3), normal(2, window, 3, 4), (stride,), padding)


def test_three_by_three_windows_are_winograds_and_others_are_not(monkeypatch):
    calls = []
    real = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda x, k: calls.append(k.shape) or real(x, k))
    for window, channels, strides in [
        ((3, 3), 32, 1),
        ((3, 3), 32, 2),
        ((3, 3), 4, 1),
        ((5, 5), 32, 1),
    ]:
        x, kernel = normal(1, 2, 9, 9, channels), normal(2, *window, channels, channels)
        jax.eval_shape(partial(conv, strides=strides, implementation="products"), x, kernel)
    assert calls == [(3, 3, 32, 32)]


@pytest.mark.parametrize("size", ["whole", "blocks", "single records"])
@pytest.mark.parametrize("window, channels", [(3, 32), (3, 4)], ids=["winograd", "patches"])
def test_blocks_change_nothing(monkeypatch, size, window, channels):
    """However many records are worked on at a time, and also if only one fits."""
    if size != "whole":
        monkeypatch.setattr(blocks, "WHOLE_BYTES", 0)
        one = 16 * 16 * 2 * 32 * 4 if window == 3 and channels == 32 else 100_000
        monkeypatch.setattr(blocks, "CACHE_BYTES", 3 * one if size == "blocks" else 1)
    x, kernel = normal(1, 6, 10, 10, channels), normal(2, window, window, channels, channels)
    assert_like_xla(x, kernel, (1, 1), "VALID")
    bias = normal(3, channels)
    fused = partial(conv_relu_pool, implementation="products")
    plain = partial(conv_relu_pool, implementation="lax")
    for got, want in zip(
        value_and_gradients(fused, x, kernel, bias),
        value_and_gradients(plain, x, kernel, bias),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("records, fits, size", [(20, 1, 1), (20, 7, 5), (7, 6, 1), (6, 6, 6)])
def test_a_block_is_a_divisor_that_fits(monkeypatch, records, fits, size):
    monkeypatch.setattr(blocks, "WHOLE_BYTES", 0)
    assert blocks.block_size(records, blocks.CACHE_BYTES // fits) == size
    assert blocks.block_size(records, 10 * blocks.CACHE_BYTES) == 1


@settings(max_examples=4)
@given(
    image=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    channels=st.sampled_from([3, 32]),
    padding=st.sampled_from(["VALID", "SAME"]),
)
@example((6, 8), 32, "VALID")
def test_convolution_relu_and_pooling_in_one(image, channels, padding):
    x, kernel = normal(1, 2, *image, channels), normal(2, 3, 3, channels, 32)
    bias = normal(3, 32)

    def apart(x, kernel, bias):
        y = reference_conv(x, kernel, (1, 1), padding) + bias.reshape(1, 1, 1, -1)
        return nn.max_pool(nn.relu(y), (2, 2), (2, 2))

    got = value_and_gradients(
        partial(conv_relu_pool, padding=padding, implementation="products"), x, kernel, bias
    )
    for ours, theirs in zip(got, value_and_gradients(apart, x, kernel, bias), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-4)


@settings(max_examples=8)
@given(
    image=st.lists(st.integers(4, 9), min_size=1, max_size=2),
    window=st.integers(1, 4),
    strides=st.sampled_from([None, 1, 2, 3]),
    padding=st.sampled_from(["VALID", "SAME"]),
    ties=st.booleans(),
)
def test_max_pooling_is_xlas_exactly_where_values_differ_and_where_they_tie(
    image, window, strides, padding, ties
):
    x = normal(1, 2, *image, 3)
    if ties:
        x = jnp.round(x)
    ours = partial(max_pool, window=window, strides=strides, padding=padding)
    got = value_and_gradients(partial(ours, implementation="products"), x)
    want = value_and_gradients(partial(ours, implementation="lax"), x)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)


def test_average_pooling_is_flaxs():
    for shape, window, strides in [((2, 7, 8, 3), 2, None), ((2, 9, 3), 3, 2)]:
        axes = len(shape) - 2
        want = partial(
            nn.avg_pool, window_shape=(window,) * axes, strides=(strides or window,) * axes
        )
        got = value_and_gradients(
            partial(avg_pool, window=window, strides=strides), normal(1, *shape)
        )
        for ours, theirs in zip(got, value_and_gradients(want, normal(1, *shape)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_fused_gradient_goes_to_the_first_of_equal_values_and_nowhere_below_zero():
    x, kernel = jnp.ones((1, 6, 6, 32)), jnp.ones((3, 3, 32, 32)) / 288
    bias = jnp.where(jnp.arange(32) < 16, 0.5, -2.0)
    for implementation in ("products", "lax"):
        f = partial(conv_relu_pool, implementation=implementation)
        value, to_x, _, to_bias = value_and_gradients(f, x, kernel, bias)
        np.testing.assert_allclose(value[..., :16], 1.5, rtol=1e-5)
        assert not value[..., 16:].any() and not to_bias[16:].any()
        # the first output of each tile depends on inputs (0..4, 0..4) only: the last row gets none
        assert np.abs(to_x[0, 0]).max() > 0 and np.abs(to_x[0, 5]).max() < 1e-5


def test_the_gradient_can_be_differentiated_again():
    """As a gradient-inversion attack does."""
    x, kernel, bias = normal(1, 2, 6, 6, 32), normal(2, 3, 3, 32, 32), normal(3, 32)

    def leak(x, implementation):
        def loss(kernel):
            y = conv(x, kernel, padding="SAME", implementation=implementation)
            return jnp.sum(jnp.tanh(conv_relu_pool(y, kernel, bias, implementation=implementation)))

        return jnp.sum(jax.grad(loss)(kernel) ** 2)

    slope = jax.jit(jax.grad(leak), static_argnums=1)
    got, want = (slope(x * 0.01, i) for i in ("products", "lax"))
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_inside_a_loop_inside_shard_map():
    """Where the engine runs them, with the type checks of shard_map on."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    x, kernel = normal(1, 2 * len(mesh.devices), 18, 18, 32), normal(2, 3, 3, 32, 32) * 0.05
    bias = jnp.zeros(32)

    def train(x, kernel):
        kernel = lax.pcast(kernel, "d", to="varying")

        def step(_, kernel):
            loss = lambda k: jnp.mean(conv_relu_pool(conv(x, k), k, bias) ** 2)  # noqa: E731
            return kernel - 0.1 * jax.grad(loss)(kernel)

        return lax.fori_loop(0, 2, step, kernel)[None]

    spec = PartitionSpec("d")
    whole = jax.jit(
        jax.shard_map(train, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "WHOLE_BYTES", 0)
        got = whole(x, kernel)
    assert got.shape == (len(mesh.devices), 3, 3, 32, 32) and np.isfinite(got).all()
    assert not np.allclose(got[0], kernel)


def test_layers_name_parameters_as_flax_does():
    x = normal(1, 2, 8, 8, 3)
    ours = Conv(4, (3, 3), padding="SAME").init(jax.random.key(0), x)
    theirs = nn.Conv(4, (3, 3), padding="SAME")
    np.testing.assert_allclose(
        Conv(4, (3, 3), padding="SAME").apply(ours, x), theirs.apply(ours, x), atol=1e-5
    )
    assert "bias" not in Conv(4, use_bias=False).init(jax.random.key(0), x)["params"]
    fused = ConvReluPool(4, padding="SAME").apply(ours, x)
    np.testing.assert_allclose(
        fused, nn.max_pool(nn.relu(theirs.apply(ours, x)), (2, 2), (2, 2)), atol=1e-5
    )


def test_the_lstm_is_flaxs():
    """Same gates, same numbers, once parameters are put in place; both gradients too."""
    features, x = 5, normal(1, 3, 7, 4)
    layer = Lstm(features)
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], features))

    def theirs(x, params):
        cell = {}
        for number, gate in enumerate("ifgo"):
            at = slice(number * features, (number + 1) * features)
            cell[f"i{gate}"] = {"kernel": params["kernel"][:, at]}
            cell[f"h{gate}"] = {
                "kernel": params["recurrent"][:, at],
                "bias": params["bias"][at],
            }
        return nn.RNN(nn.LSTMCell(features)).apply({"params": {"cell": cell}}, x)

    @partial(jax.jit, static_argnums=0)
    def gradients(function, x, params):
        return traced_gradients(function, x, params)

    got = gradients(lambda x, p: layer.apply({"params": p}, x), x, params)
    want = gradients(theirs, x, params)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    for ours, other in zip(jax.tree.leaves(got[1:]), jax.tree.leaves(want[1:]), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: conv(normal(1, 2, 5), normal(2, 3, 1, 1)), r"x \[records, length, in\]"),
        (lambda: conv(normal(1, 2, 5, 5, 3), normal(2, 3, 3, 1, 1)), "as many channels"),
        (lambda: conv(normal(1, 2, 5, 5, 1), jnp.ones((3, 3, 1, 1), jnp.int32)), "one dtype"),
        (lambda: conv(normal(1, 2, 5, 5, 1), normal(2, 3, 3, 1, 1), strides=0), "strides"),
        (lambda: conv(normal(1, 2, 5, 5, 1), normal(2, 3, 3, 1, 1), strides=(1,)), "strides"),
        (lambda: conv(normal(1, 2, 5, 5, 1), normal(2, 3, 3, 1, 1), padding="same"), "padding"),
        (lambda: conv(normal(1, 2, 2, 5, 1), normal(2, 3, 3, 1, 1)), "the window's size"),
        (
            lambda: conv(normal(1, 2, 5, 5, 1), normal(2, 3, 3, 1, 1), implementation="fast"),
            "implementation",
        ),
        (
            lambda: conv_relu_pool(normal(1, 2, 6, 6, 1), normal(2, 3, 3, 1, 4), jnp.zeros(3)),
            "a bias of shape",
        ),
        (lambda: max_pool(normal(1, 2, 5)), r"x \[records"),
        (lambda: max_pool(normal(1, 2, 5, 5, 1), 6), "the window's size"),
        (lambda: max_pool(normal(1, 2, 5, 5, 1), (2,)), "a window and strides"),
        (lambda: avg_pool(normal(1, 2, 5, 5, 1), 0), "a window and strides"),
        (lambda: max_pool(normal(1, 2, 5, 5, 1), padding="FULL"), "padding"),
        (lambda: Lstm(3).init(jax.random.key(0), normal(1, 2, 5)), r"x \[records, time, in\]"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(SpecError, match=words) as error:
        call()
    assert error.value.fix


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_the_largest_of_whole_numbers(dtype):
    x = -jnp.arange(25).reshape(1, 5, 5, 1) if dtype == "int32" else jnp.zeros((1, 5, 5, 1))
    x = x.astype(dtype)
    ours, theirs = (
        max_pool(x, 3, strides=2, padding="SAME", implementation=way) for way in ("products", "lax")
    )
    assert ours.dtype == dtype and np.array_equal(ours, theirs)
