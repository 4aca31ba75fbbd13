"""Work over a batch, a few records at a time, so that what lies between stays in a core's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError

# Measured on 20 records of 8 x 8 x 64 to 32 x 32 x 64: below the first figure the whole batch is
# faster in one piece, above it in blocks that a core's second-level cache holds.
WHOLE_BYTES = 12 << 20
CACHE_BYTES = 1 << 20


def chosen(implementation: str | None) -> str:
    """Returns ``"products"`` or ``"lax"``: what is asked for, or what suits JAX's default device.

    Raises:
        SpecError: another name.
    """
    if implementation is None:
        device = jax.config.jax_default_device
        platform = getattr(device, "platform", device) or jax.default_backend()
        return "products" if platform == "cpu" else "lax"
    if implementation not in ("products", "lax"):
        raise SpecError(
            "a layer",
            need="implementation None, 'products' or 'lax'",
            found=repr(implementation),
            fix="Leave it out: the platform decides.",
        )
    return implementation


def block_size(records: int, bytes_per_record: int) -> int:
    """Returns how many records to work on at a time: all, or a divisor that fits the cache."""
    if records * bytes_per_record <= WHOLE_BYTES:
        return records
    most = max(1, min(records, CACHE_BYTES // max(1, bytes_per_record)))
    return next(size for size in range(most, 0, -1) if records % size == 0)


def map_blocks(function: Callable[[Any], Any], arrays: Any, size: int) -> Any:
    """Applies a function to ``size`` records of ``arrays`` at a time, and joins its results."""
    records = jax.tree.leaves(arrays)[0].shape[0]
    if size == records:
        return function(arrays)
    return _joined(lax.map(function, _split(arrays, size)))


def map_and_sum_blocks(
    function: Callable[[Any], tuple[jax.Array, Any]], arrays: Any, size: int
) -> tuple[jax.Array, Any]:
    """As `map_blocks` for a function with two results, of which the first is summed."""
    records = jax.tree.leaves(arrays)[0].shape[0]
    if size == records:
        return function(arrays)
    blocks = _split(arrays, size)
    total, _ = jax.eval_shape(function, jax.tree.map(lambda a: a[0], blocks))
    start = zeros_as(total)

    def body(so_far, block):
        more, result = function(block)
        return so_far + more, result

    total, results = lax.scan(body, start, blocks)
    return total, _joined(results)


def zeros_as(array: Any) -> jax.Array:
    """Zeros of an array's shape and dtype, as the start of a loop that will hold such arrays.

    Inside `shard_map`, a loop's state must differ from device to device from the start if it does
    at the end.
    """
    zeros = jnp.zeros(array.shape, array.dtype)
    kind = jax.typeof(array) if isinstance(array, jax.Array) else array
    axes = getattr(kind.manual_axis_type, "varying", None)
    return lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def aligned(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, all of one kind inside `shard_map`: different on each device if any is.

    A gradient rule of our own must give each argument a gradient of its kind; JAX sums the
    gradient of what was the same on all devices.
    """
    kinds = [jax.typeof(array).manual_axis_type for array in arrays]
    varying = [getattr(kind, "varying", None) or frozenset() for kind in kinds]
    union = frozenset().union(*varying)
    return tuple(
        lax.pcast(array, tuple(union - axes), to="varying") if union - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    )


def _split(arrays: Any, size: int) -> Any:
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // size, size, *a.shape[1:]), arrays)


def _joined(arrays: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), arrays)
