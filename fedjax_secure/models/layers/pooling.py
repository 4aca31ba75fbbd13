"""Pooling that is fast inside compiled loops on a CPU too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers.blocks import chosen


def max_pool(
    x: jax.Array,
    window: int | Sequence[int] = 2,
    *,
    strides: int | Sequence[int] | None = None,
    padding: str = "VALID",
    implementation: str | None = None,
) -> jax.Array:
    """The largest value of each window, channel by channel.

    Guarantees:
        The value is exact. Of equal values the first takes the whole gradient, by rows, as with
        `jax.lax.reduce_window`.

    Args:
        x: ``[records, length, channels]`` or ``[records, height, width, channels]``, floats.
        window: one number, or one for each axis.
        strides: the same; by default the window's size, so that windows do not overlap.
        padding: ``"VALID"`` drops what does not fill a window; ``"SAME"`` pads with -infinity.
        implementation: as for `conv`.

    Returns:
        ``[records, ..., channels]``.

    Raises:
        SpecError: shapes, windows, strides or padding that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).reshape(2, 2)
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    window, strides, edges = _checked(x, window, strides, padding)
    if chosen(implementation) == "lax":
        return nn.max_pool(x, window, strides, edges)
    if any(map(any, edges)):
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        low = jnp.array(-jnp.inf if floats else jnp.iinfo(x.dtype).min, x.dtype)
        x = lax.pad(x, low, [(0, 0, 0), *[(*edge, 0) for edge in edges], (0, 0, 0)])
    return _largest(x, window, strides)


def avg_pool(
    x: jax.Array,
    window: int | Sequence[int] = 2,
    *,
    strides: int | Sequence[int] | None = None,
) -> jax.Array:
    """The mean of each window, channel by channel; what does not fill a window is dropped.

    Args:
        x, window, strides: as for `max_pool`.

    Returns:
        ``[records, ..., channels]``.

    Raises:
        SpecError: shapes, windows or strides that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> avg_pool(jnp.arange(8.0).reshape(1, 8, 1), 4).reshape(2)
        Array([1.5, 5.5], dtype=float32)
    """
    window, strides, _ = _checked(x, window, strides, "VALID")
    parts = _parts(x, window, strides)
    return sum(parts[1:], parts[0]) / len(parts)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _largest(x, window, strides):
    parts = _parts(x, window, strides)
    largest = parts[0]
    for part in parts[1:]:
        largest = jnp.maximum(largest, part)
    return largest


def _largest_forward(x, window, strides):
    largest = _largest(x, window, strides)
    return largest, (x, largest)


def _largest_backward(window, strides, saved, gradient):
    x, largest = saved
    free, shares = jnp.ones(largest.shape, bool), []
    for part in _parts(x, window, strides):
        first = free & (part == largest)
        shares.append(jnp.where(first, gradient, 0))
        free &= ~first
    if strides != window:  # windows overlap, or leave gaps: each place's shares are summed
        return (_scattered(shares, x.shape, window, strides),)
    for axis in reversed(range(1, x.ndim - 1)):  # else they fit together like tiles
        count = window[axis - 1]
        shares = [jnp.stack(shares[k : k + count], axis + 1) for k in range(0, len(shares), count)]
        shares = [s.reshape(*s.shape[:axis], -1, *s.shape[axis + 2 :]) for s in shares]
    rest = [(0, size - used, 0) for size, used in zip(x.shape, shares[0].shape, strict=True)]
    return (lax.pad(shares[0], jnp.zeros((), x.dtype), rest),)


_largest.defvjp(_largest_forward, _largest_backward)


def _parts(x, window, strides):
    """For each place in the window, by rows, its value in all windows."""
    sizes = x.shape[1:-1]
    counts = [(n - w) // s + 1 for n, w, s in zip(sizes, window, strides, strict=True)]
    if strides == window:
        tiled = x[(slice(None), *[slice(n * w) for n, w in zip(counts, window, strict=True)])]
        pairs = [side for n, w in zip(counts, window, strict=True) for side in (n, w)]
        tiled = tiled.reshape(x.shape[0], *pairs, x.shape[-1])
        return [
            tiled[(slice(None), *[i for place in at for i in (slice(None), place)])]
            for at in product(*map(range, window))
        ]
    ends = [(n - 1) * s + 1 for n, s in zip(counts, strides, strict=True)]
    return [
        lax.slice(
            x,
            (0, *at, 0),
            (x.shape[0], *[a + e for a, e in zip(at, ends, strict=True)], x.shape[-1]),
            (1, *strides, 1),
        )
        for at in product(*map(range, window))
    ]


def _scattered(shares, shape, window, strides):
    total = jnp.zeros(shape, shares[0].dtype)
    for at, share in zip(product(*map(range, window)), shares, strict=True):
        edges = [
            (start, size - start - (count - 1) * stride - 1, stride - 1)
            for start, size, count, stride in zip(
                at, shape[1:-1], share.shape[1:-1], strides, strict=True
            )
        ]
        total += lax.pad(share, jnp.zeros((), share.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return total


def _checked(x, window, strides, padding):
    def refuse(need, found, fix):
        return SpecError("pooling", need=need, found=found, fix=fix)

    axes = x.ndim - 2
    if axes not in (1, 2):
        raise refuse(
            "x [records, length, channels] or [records, height, width, channels]",
            f"{list(x.shape)}",
            "Reshape the records.",
        )
    window = (window,) * axes if isinstance(window, int) else tuple(window)
    strides = window if strides is None else strides
    strides = (strides,) * axes if isinstance(strides, int) else tuple(strides)
    if len(window) != axes or len(strides) != axes or min(window + strides) < 1:
        raise refuse(
            f"a window and strides of {axes} numbers, 1 or more",
            f"{window} and {strides}",
            "Give one number for each axis.",
        )
    if padding not in ("VALID", "SAME"):
        raise refuse("padding 'VALID' or 'SAME'", repr(padding), "Choose one of the two.")
    edges = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    if any(n + sum(e) < w for n, e, w in zip(x.shape[1:-1], edges, window, strict=True)):
        raise refuse(
            f"an input of at least the window's size, {list(window)}",
            f"{list(x.shape[1:-1])}",
            "Pool less often, or use padding='SAME'.",
        )
    return window, strides, [tuple(int(side) for side in edge) for edge in edges]
