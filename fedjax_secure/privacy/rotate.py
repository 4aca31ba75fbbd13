"""Spread a vector's length evenly over its values, so that sums need a smaller ring."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import chacha

from ..core import Spec, Stage, Static, Stream
from ..core.randomness import SeededSource, device_keys
from ..core.spec import NEGLIGIBLE
from ..core.stage import need

_NAME = "rotate"
_MOST_VALUES = 1 << 30
_BLOCK = 64  # values that one dense product of the transform mixes


def hadamard(values: jax.Array) -> jax.Array:
    """The orthonormal Walsh-Hadamard transform, which is its own inverse.

    Args:
        values: float32 [2^k].

    Returns:
        float32 [2^k], ``H values / sqrt(2^k)`` in Sylvester's order.

    Example:
        >>> hadamard(jnp.array([1.0, 0.0, 0.0, 1.0])).tolist()
        [1.0, 0.0, 0.0, 1.0]
        >>> hadamard(jnp.array([2.0, 0.0, 0.0, 0.0])).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    size = values.shape[0]
    left, done = size, 1
    while left > 1:
        # H of size a b is H of a on the slow index times H of b on the fast one.
        width = min(left, _BLOCK)
        matrix = jnp.asarray(_sylvester(width) / math.sqrt(width), values.dtype)
        blocks = values.reshape(-1, width, done)
        values = jnp.einsum("xy,byd->bxd", matrix, blocks,
                            precision=jax.lax.Precision.HIGHEST).reshape(size)
        left, done = left // width, done * width
    return values


def _sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def flatness_of(dim: int, probability: float = NEGLIGIBLE) -> float:
    r"""How large a value of a rotated vector is over its norm, except with some probability.

    Each value is :math:`\sum_i \pm x_i / \sqrt d` with independent signs, so by Hoeffding's
    inequality it exceeds :math:`t` with probability at most
    :math:`2\exp(-t^2 d / 2\lVert x\rVert^2)`; all d of them keep
    :math:`t = \lVert x\rVert\sqrt{2\ln(2d/p)/d}` except with probability p.

    Example:
        >>> round(flatness_of(1 << 20), 5), flatness_of(16)
        (0.00898, 1.0)
    """
    return min(1.0, math.sqrt(2.0 * math.log(2.0 * dim / probability) / dim))


def rotate(*, seed: int = 0) -> Stage:
    """Multiply by random public signs and a Hadamard matrix; the server turns the sum back.

    A clipped vector may have all of its length in one value, and a ring that holds the sum of such
    values is mostly empty. After a random rotation every value is about length / sqrt(dim), and
    the same ring holds sums of far finer integers: distributed noise at 16 bits.

    Args:
        seed: of the signs, which are public and fresh each round. Choose it without looking at the
            data.

    Returns:
        A stage that pads the vector with zeros to a power of two, which is the ``dim`` of all
        that follows, and sets ``flatness``. It carries the number of the round.

    Guarantees:
        A rotation keeps the L2 norm, so privacy is as without it: what is accounted is the norm
        that ``quantise`` checks on the integers. That every value is small is true except with
        probability 2^-40 a round over the signs, for vectors that were chosen without knowing
        them; it bounds how likely the sum wraps, which costs utility, and nothing else.

    Raises:
        SpecError: values that are not float, or more than 2^30 of them.

    Example:
        >>> stage = rotate()
        >>> spec = Spec(dim=3, num_clients=2, num_records=2, denominator=2.0)
        >>> state, spec = stage.init(spec)
        >>> turned = stage.client(state, None, jnp.array([3.0, 0.0, 4.0]))
        >>> spec.dim, turned.shape, round(float(jnp.linalg.norm(turned)), 4)
        (4, (4,), 5.0)
        >>> [round(x, 4) for x in stage.server(state, turned)[0].tolist()]
        [3.0, 0.0, 4.0]

    Source:
        Ailon, Chazelle 2009, "The Fast Johnson-Lindenstrauss Transform" (H D); Kairouz, Liu,
        Steinke 2021, arXiv 2102.06387, Algorithm 1 and section 4 (why, in distributed noise).
    """
    need(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64, _NAME,
         "a seed from 0 to 2**64 - 1", f"seed={seed!r}", "Leave it out.")
    public_key = device_keys([SeededSource(seed).key(_NAME)])[0]

    def width(dim: int) -> int:
        return 1 << (dim - 1).bit_length()

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype == "float32", _NAME, "float values", spec.dtype,
             "Put rotate() before quantise(...).")
        need(not spec.rotated, _NAME, "values that are not rotated yet", "rotated ones",
             "Keep one rotate() in the chain.")
        need(spec.dim <= _MOST_VALUES, _NAME, f"up to {_MOST_VALUES} values", f"{spec.dim}",
             "Leave rotate() out.")
        padded = width(spec.dim)
        flatness = flatness_of(padded)
        linf = None if spec.l2_bound is None else spec.l2_bound * flatness
        state = {"round": jnp.uint32(0), "dim": Static(spec.dim), "padded": Static(padded)}
        return state, spec.replace(dim=padded, rotated=True, flatness=flatness,
                                   linf_bound=linf)

    def signs(state: Any) -> jax.Array:
        count = state["padded"].value
        nonce = jnp.stack([state["round"], jnp.uint32(0), jnp.uint32(0)])
        words = chacha.keystream(jnp.asarray(public_key), nonce, -(-count // 32))
        bits = words[:, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
        return 1.0 - 2.0 * bits.reshape(-1)[:count].astype(jnp.float32)

    def client(state: Any, stream: Stream | None, value: jax.Array) -> jax.Array:
        padded = jnp.pad(value, (0, state["padded"].value - value.shape[0]))
        return hadamard(padded * signs(state))

    def server(state: Any, total: jax.Array) -> tuple[jax.Array, Any, dict]:
        turned = (hadamard(total) * signs(state))[:state["dim"].value]
        return turned, {**state, "round": state["round"] + jnp.uint32(1)}, {}

    return Stage(_NAME, init, client, server, carries=("round",), width=width)
