"""Convolution with a 3 x 3 window by Winograd's minimal filtering, for compiled loops on a CPU.

The output is cut into tiles of 2 x 2. A tile depends on 4 x 4 inputs; after a linear transform of
these (B), of the window (G) and of the output (A), each with coefficients 0, 1 and 1/2, it takes
16 multiplications for each pair of channels where the direct sum takes 36::

    Y = A' [ (G w G') * (B' x B) ] A

The sums over channels become 16 matrix products over all tiles. Gradients are the same transforms
transposed, with the same 16 products. Transforms act on one axis at a time and write their four
parts side by side: XLA then emits plain loops over channels. A block of records at a time keeps
tiles and products in the cache; on batches of images that is worth as much as the saved
multiplications.

All functions here are for "valid" windows and even output sizes; `convolution` pads.

Source: S. Winograd, Arithmetic complexity of computations, 1980; A. Lavin and S. Gray, Fast
algorithms for convolutional neural networks, CVPR 2016, section 4.1, F(2 x 2, 3 x 3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.models.layers.blocks import block_size, map_and_sum_blocks, map_blocks

_BATCHED = (((2,), (1,)), ((0,), (0,)))  # [16, m, k] x [16, k, n]
_BATCHED_TRANSPOSED = (((1,), (1,)), ((0,), (0,)))  # [16, m, k] x [16, m, n]
_BATCHED_OWN = (((2,), (2,)), ((0, 1), (0, 1)))  # [16, records, m, k] x [16, records, m, n]


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation of ``[records, h + 2, w + 2, in]`` with ``[3, 3, in, out]``; h, w even.

    Returns:
        ``[records, h, w, out]``. It agrees with the direct sum to a few units of rounding.
    """
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    filters = _filters(kernel)

    def block(x):
        return _join(_outputs(_products(x, filters), x))

    return map_blocks(block, x, _block_size(x, kernel)), (x, kernel)


def _backward(saved, gradient, *, own=False):
    x, kernel = saved
    filters = _filters(kernel)

    def block(arrays):
        x, gradient = arrays
        spread = _spread(gradient, 1, 0)  # [4, records, h / 2, w, out]
        return _transposed(x, filters, _spread(spread, 3, 1), own)

    return _over_blocks(block, (x, gradient), kernel, own)


convolve.defvjp(_forward, _backward)


@jax.custom_vjp
def convolve_own(x: jax.Array, kernel: jax.Array, own: jax.Array) -> jax.Array:
    """As `convolve`; the gradient goes to ``own [records, 3, 3, in, out]``, each record's apart.

    The value of ``own`` is not looked at, and the kernel's gradient is zero: one of the two says
    all. It takes the same products as the sum over records, in smaller pieces.
    """
    return _forward(x, kernel)[0]


def _own_forward(x, kernel, own):
    return _forward(x, kernel)


def _own_backward(saved, gradient):
    to_input, to_own = _backward(saved, gradient, own=True)
    return to_input, jnp.zeros_like(saved[1]), to_own


convolve_own.defvjp(_own_forward, _own_backward)


@jax.custom_vjp
def convolve_relu_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """``max_pool(relu(convolve(x, kernel) + bias), 2)`` in one pass over the tiles.

    A tile is a pooling window, so that only its largest value leaves the cache, with one byte that
    says where it was. Of equal values the first wins, by rows.

    Returns:
        ``[records, h / 2, w / 2, out]``.
    """
    return _fused_forward(x, kernel, bias)[0]


def _fused_forward(x, kernel, bias):
    filters = _filters(kernel)

    def block(x):
        (a, b), (c, d) = _outputs(_products(x, filters), x)
        upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
        place = jnp.where(upper >= lower, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
        largest = jnp.maximum(upper, lower) + bias.reshape(1, 1, 1, -1)
        return jax.nn.relu(largest), jnp.where(largest > 0, place, 4).astype(jnp.int8)

    pooled, place = map_blocks(block, x, _block_size(x, kernel))
    return pooled, (x, kernel, place)


def _fused_backward(saved, gradient, *, own=False):
    x, kernel, place = saved
    filters = _filters(kernel)

    def block(arrays):
        x, place, gradient = arrays

        def at(number):
            return jnp.where(place == number, gradient, 0)

        left = jnp.stack(_spread_pair(at(0), at(2)))  # [4, records, h / 2, w / 2, out]
        right = jnp.stack(_spread_pair(at(1), at(3)))
        left, right = lax.optimization_barrier((left, right))  # else each is computed four times
        return _transposed(x, filters, jnp.stack(_spread_pair(left, right), 1), own)

    to_bias = jnp.where(place < 4, gradient, 0).sum((1, 2) if own else (0, 1, 2))
    return *_over_blocks(block, (x, place, gradient), kernel, own), to_bias


convolve_relu_pool.defvjp(_fused_forward, _fused_backward)


@jax.custom_vjp
def convolve_relu_pool_own(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, own: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """As `convolve_relu_pool`, with gradients to ``own``, a kernel and a bias for each record."""
    return _fused_forward(x, kernel, bias)[0]


def _fused_own_forward(x, kernel, bias, own):
    return _fused_forward(x, kernel, bias)


def _fused_own_backward(saved, gradient):
    to_input, *to_own = _fused_backward(saved, gradient, own=True)
    kernel = saved[1]
    return to_input, jnp.zeros_like(kernel), jnp.zeros_like(kernel[0, 0, 0]), tuple(to_own)


convolve_relu_pool_own.defvjp(_fused_own_forward, _fused_own_backward)


def _over_blocks(block, arrays, kernel, own):
    """The gradients of the input and of the kernel: the sum over records, or each record's."""
    size = _block_size(arrays[0], kernel)
    if own:
        to_own, to_input = map_blocks(block, arrays, size)
        return to_input, to_own
    total, to_input = map_and_sum_blocks(block, arrays, size)
    return to_input, _filters_transposed(total)


def _block_size(x: jax.Array, kernel: jax.Array) -> int:
    records, height, width, _ = x.shape
    tiles = (height // 2 - 1) * (width // 2 - 1)
    return block_size(records, 16 * tiles * sum(kernel.shape[2:]) * x.dtype.itemsize)


def _products(x: jax.Array, filters: jax.Array) -> jax.Array:
    """Tiles times filters: ``[16, tiles of all records, out]``."""
    return lax.dot_general(_tiles(x), filters, _BATCHED)


def _transposed(
    x: jax.Array, filters: jax.Array, spread: jax.Array, own: bool
) -> tuple[jax.Array, jax.Array]:
    """From the gradient of the products, ``[4, 4, records, h / 2, w / 2, out]``, those of the
    filters and of the input; or, of each record's own kernel and of the input."""
    products = spread.reshape(16, -1, spread.shape[-1])
    if own:
        apart = [part.reshape(16, x.shape[0], -1, part.shape[-1]) for part in (_tiles(x), products)]
        to_filters = jax.vmap(_filters_transposed, 1)(lax.dot_general(*apart, _BATCHED_OWN))
    else:
        to_filters = lax.dot_general(_tiles(x), products, _BATCHED_TRANSPOSED)
    to_tiles = lax.dot_general(products, filters.swapaxes(1, 2), _BATCHED)
    tiles = to_tiles.reshape(*spread.shape[:-1], -1)
    return to_filters, _tiles_transposed(_tiles_transposed(tiles, 1, 4), 0, 2)


def _tiles(x: jax.Array) -> jax.Array:
    """B' x B for each tile: ``[records, h + 2, w + 2, in]`` to ``[16, tiles, in]``."""
    rows = jnp.stack(_tile_axis(x, 1))  # [4, records, h / 2, w + 2, in]
    return jnp.stack(_tile_axis(rows, 3), 1).reshape(16, -1, x.shape[-1])


def _tile_axis(x: jax.Array, axis: int) -> list[jax.Array]:
    even, odd = _halves(x, axis)
    tiles = even.shape[axis] - 1

    def part(array, start):
        return lax.slice_in_dim(array, start, start + tiles, axis=axis)

    first, second, third, fourth = part(even, 0), part(odd, 0), part(even, 1), part(odd, 1)
    return [first - third, second + third, third - second, second - fourth]


def _tiles_transposed(tiles: jax.Array, stacked: int, axis: int) -> jax.Array:
    """The transpose of `_tile_axis`: tiles overlap by two, and sum where they do."""
    a, b, c, d = (lax.index_in_dim(tiles, k, stacked, keepdims=False) for k in range(4))
    axis -= axis > stacked

    def shifted(array, before):
        edges = [(0, 0, 0)] * array.ndim
        edges[axis] = (before, 1 - before, 0)
        return lax.pad(array, jnp.zeros((), array.dtype), edges)

    even = shifted(a, 0) + shifted(b + c - a, 1)
    odd = shifted(b - c + d, 0) - shifted(d, 1)
    joined = jnp.stack([even, odd], axis + 1)
    return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])


def _outputs(products: jax.Array, x: jax.Array) -> list[list[jax.Array]]:
    """A' m A for each tile: a 2 x 2 list of ``[records, h / 2, w / 2, out]``."""
    records, height, width, _ = x.shape
    m = products.reshape(4, 4, records, height // 2 - 1, width // 2 - 1, -1)
    rows = (
        [m[0, k] + m[1, k] + m[2, k] for k in range(4)],
        [m[1, k] - m[2, k] - m[3, k] for k in range(4)],
    )
    return [[r[0] + r[1] + r[2], r[1] - r[2] - r[3]] for r in rows]


def _join(outputs: list[list[jax.Array]]) -> jax.Array:
    """Interleaves the four outputs of each tile: ``[records, h, w, out]``."""
    joined = jnp.stack([jnp.stack(row, 3) for row in outputs], 2)
    records, height, _, width, _, channels = joined.shape
    return joined.reshape(records, 2 * height, 2 * width, channels)


def _spread_pair(first: jax.Array, second: jax.Array) -> list[jax.Array]:
    """The transpose of `_outputs` along one axis."""
    return [first, first + second, first - second, -second]


def _spread(gradient: jax.Array, axis: int, stacked: int) -> jax.Array:
    return jnp.stack(_spread_pair(*_halves(gradient, axis)), stacked)


def _halves(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The even and the odd places along an axis of even length."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    return (
        lax.index_in_dim(pairs, 0, axis + 1, keepdims=False),
        lax.index_in_dim(pairs, 1, axis + 1, keepdims=False),
    )


def _filters(kernel: jax.Array) -> jax.Array:
    """G w G': ``[3, 3, in, out]`` to ``[16, in, out]``."""

    def transform(a, b, c):
        return [a, (a + b + c) * 0.5, (a - b + c) * 0.5, c]

    rows = jnp.stack(transform(kernel[0], kernel[1], kernel[2]))
    both = jnp.stack(transform(rows[:, 0], rows[:, 1], rows[:, 2]), 1)
    return both.reshape(16, *kernel.shape[2:])


def _filters_transposed(filters: jax.Array) -> jax.Array:
    """The transpose of `_filters`: ``[16, in, out]`` to ``[3, 3, in, out]``."""

    def transform(a, b, c, d):
        plus, minus = (b + c) * 0.5, (b - c) * 0.5
        return [a + plus, minus, plus + d]

    u = filters.reshape(4, 4, *filters.shape[1:])
    columns = jnp.stack(transform(u[:, 0], u[:, 1], u[:, 2], u[:, 3]), 1)
    return jnp.stack(transform(columns[0], columns[1], columns[2], columns[3]))
