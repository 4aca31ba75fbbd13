"""A long short-term memory layer that is fast inside compiled loops on a CPU too."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers.blocks import aligned, zeros_as
from fedjax_secure.models.layers.products import shared_product


def _bias_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.zeros((4, shape[0] // 4)).at[1].set(1.0).reshape(-1)  # remember, to begin with


class Lstm(nn.Module):
    """A long short-term memory layer over time.

    Inputs of all times are multiplied in one product before the loop over time, and the gradient
    of the recurrent kernel is one product after it; only the recurrence itself is sequential.

    Gates stand in the order input, forget, cell, output. Parameters: ``kernel [in, 4 * features]``,
    ``recurrent [features, 4 * features]`` and ``bias [4 * features]``: 1 for the forget gate at the
    start (Jozefowicz et al.), else 0. The first state is zero.

    Attributes:
        features: size of the state.

    Raises:
        SpecError: x that is not ``[records, time, in]``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y, variables = Lstm(6).init_with_output(jax.random.key(0), jnp.ones((2, 9, 3)))
        >>> y.shape, variables["params"]["recurrent"].shape
        ((2, 9, 6), (6, 24))

    Source: S. Hochreiter and J. Schmidhuber, Long short-term memory, 1997, with the forget gate of
    F. Gers, J. Schmidhuber and F. Cummins, 2000; R. Jozefowicz, W. Zaremba and I. Sutskever, An
    empirical exploration of recurrent network architectures, 2015, for its bias.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs of all times, ``[records, time, features]``."""
        if x.ndim != 3 or x.shape[1] < 1:
            raise SpecError(
                "an LSTM",
                need="x [records, time, in]",
                found=f"{list(x.shape)}",
                fix="Embed tokens first; put time before channels.",
            )
        width = 4 * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], width))
        recurrent = self.param("recurrent", _orthogonal_gates, (self.features, width))
        bias = self.param("bias", _bias_init, (width,))
        return lstm(x, kernel, recurrent, bias)


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent: jax.Array,
    bias: jax.Array,
    *,
    own: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """What `Lstm` computes.

    Args:
        x: ``[records, time, in]``.
        kernel, recurrent, bias: as `Lstm` names them.
        own: zeros, a kernel, a recurrent kernel and a bias for each record, ``[records, ...]``;
            their gradients are each record's own, and those of the first three are zero.

    Returns:
        ``[records, time, features]``.
    """
    width = kernel.shape[-1]
    if own is not None:
        own_kernel, own_recurrent, own_bias = own
        inputs = shared_product(x, kernel, own_kernel) + (bias + own_bias)[:, None]
        outputs, _ = _recur_own(*aligned(inputs.swapaxes(0, 1), recurrent, own_recurrent))
        return outputs.swapaxes(0, 1)
    times = x.swapaxes(0, 1)
    inputs = times.reshape(-1, x.shape[-1]) @ kernel + bias[None]
    inputs = inputs.reshape(*times.shape[:2], width)
    outputs, _ = _recur(*aligned(inputs, recurrent))
    return outputs.swapaxes(0, 1)


def _orthogonal_gates(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """An orthogonal matrix for each gate."""
    make = nn.initializers.orthogonal()
    keys = jax.random.split(key, 4)
    return jnp.concatenate([make(k, (shape[0], shape[1] // 4)) for k in keys], axis=1)


def _gates(z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


@jax.custom_vjp
def _recur(inputs: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs and cells of all times, ``[time, records, features]``, from gate inputs."""
    return _recur_forward(inputs, recurrent)[0]


def _recur_forward(inputs, recurrent):
    start = zeros_as(inputs[0, :, : recurrent.shape[0]])

    def step(state, z):
        h, c = state
        z = z + h @ recurrent
        i, f, g, o = _gates(z)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, z)

    _, (h, c, z) = lax.scan(step, (start, start), inputs)
    return (h, c), (h, c, z, recurrent)


def _recur_backward(saved, gradients, *, own=False):
    h, c, z, recurrent = saved
    transposed = recurrent.T
    start = jnp.zeros_like(h[:1])
    before = jnp.concatenate([start, c[:-1]])

    def step(state, at):
        to_h, to_c = state
        z, c, c_before, from_h, from_c = at
        i, f, g, o = _gates(z)
        tanh_c = jnp.tanh(c)
        to_h = to_h + from_h
        to_c = to_c + from_c + to_h * o * (1 - tanh_c**2)
        to_z = jnp.concatenate(
            [
                to_c * g * i * (1 - i),
                to_c * c_before * f * (1 - f),
                to_c * i * (1 - g**2),
                to_h * tanh_c * o * (1 - o),
            ],
            axis=-1,
        )
        return (to_z @ transposed, to_c * f), to_z

    zero = zeros_as(h[0])
    _, to_z = lax.scan(step, (zero, zero), (z, c, before, *gradients), reverse=True)
    earlier = jnp.concatenate([start, h[:-1]])
    if own:
        return to_z, lax.dot_general(earlier, to_z, (((0,), (0,)), ((1,), (1,))))
    earlier = earlier.reshape(-1, h.shape[-1])
    to_recurrent = lax.dot_general(
        earlier, to_z.reshape(-1, to_z.shape[-1]), (((0,), (0,)), ((), ()))
    )
    return to_z, to_recurrent


_recur.defvjp(_recur_forward, _recur_backward)


@jax.custom_vjp
def _recur_own(inputs: jax.Array, recurrent: jax.Array, own: jax.Array) -> Any:
    """As `_recur`, with the recurrent kernel's gradient to ``own [records, ...]``."""
    return _recur_forward(inputs, recurrent)[0]


def _recur_own_forward(inputs, recurrent, own):
    return _recur_forward(inputs, recurrent)


def _recur_own_backward(saved, gradients):
    to_z, to_own = _recur_backward(saved, gradients, own=True)
    return to_z, jnp.zeros_like(saved[-1]), to_own


_recur_own.defvjp(_recur_own_forward, _recur_own_backward)
