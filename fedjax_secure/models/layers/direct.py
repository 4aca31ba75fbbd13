"""Convolution as matrix products over patches, for compiled loops on a CPU.

Patches run along the columns only where that moves less memory: the rows of the window then become
more outputs of one product, and their results are summed one row apart. Patches are made again for
the gradient rather than kept.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.models.layers.blocks import block_size, map_and_sum_blocks, map_blocks

_PLAIN = (((1,), (0,)), ((), ()))
_LEFT = (((0,), (0,)), ((), ()))
_LEFT_OWN = (((1,), (1,)), ((0,), (0,)))
_RIGHT = (((1,), (1,)), ((), ()))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Cross-correlation without padding.

    Args:
        x: ``[records, h, w, in]``.
        kernel: ``[rows, columns, in, out]``.
        strides: of rows and columns.

    Returns:
        ``[records, (h - rows) // strides[0] + 1, (w - columns) // strides[1] + 1, out]``.
    """
    return _forward(x, kernel, strides)[0]


def _forward(x, kernel, strides):
    form = _Form(x.shape[1:], kernel.shape, strides, x.dtype.itemsize)
    matrix = form.matrix(kernel)

    def block(x):
        return form.gather(lax.dot_general(form.patches(x), matrix, _PLAIN), x.shape[0])

    return map_blocks(block, x, form.block_size(x.shape[0])), (x, kernel)


def _backward(strides, saved, gradient, *, own=False):
    x, kernel = saved
    form = _Form(x.shape[1:], kernel.shape, strides, x.dtype.itemsize)
    matrix = form.matrix(kernel)

    def block(arrays):
        x, gradient = arrays
        patches, spread = form.patches(x), form.spread(gradient)
        if own:
            apart = [part.reshape(x.shape[0], -1, part.shape[-1]) for part in (patches, spread)]
            to_matrix = jax.vmap(form.kernel)(lax.dot_general(*apart, _LEFT_OWN))
        else:
            to_matrix = lax.dot_general(patches, spread, _LEFT)
        to_patches = lax.dot_general(spread, matrix, _RIGHT)
        return to_matrix, form.unpatch(to_patches, x.shape[0])

    blocks, size = (x, gradient), form.block_size(x.shape[0])
    if own:
        to_own, to_input = map_blocks(block, blocks, size)
        return to_input, to_own
    total, to_input = map_and_sum_blocks(block, blocks, size)
    return to_input, form.kernel(total)


convolve.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve_own(
    x: jax.Array, kernel: jax.Array, own: jax.Array, strides: tuple[int, int]
) -> jax.Array:
    """As `convolve`; the gradient goes to ``own [records, *kernel.shape]``, each record's apart.

    The value of ``own`` is not looked at, and the kernel's gradient is zero.
    """
    return _forward(x, kernel, strides)[0]


def _own_forward(x, kernel, own, strides):
    return _forward(x, kernel, strides)


def _own_backward(strides, saved, gradient):
    to_input, to_own = _backward(strides, saved, gradient, own=True)
    return to_input, jnp.zeros_like(saved[1]), to_own


convolve_own.defvjp(_own_forward, _own_backward)


class _Form:
    """How one shape of convolution is laid out: patches along both axes, or along columns only."""

    def __init__(self, image, window, strides, itemsize):
        self.height, self.width, self.channels = image
        self.rows, self.columns, _, self.features = window
        self.row_stride, self.column_stride = strides
        self.out_height = (self.height - self.rows) // self.row_stride + 1
        self.out_width = (self.width - self.columns) // self.column_stride + 1
        whole = self.out_height * (self.rows * self.columns * self.channels + self.features)
        along = self.height * (self.columns * self.channels + self.rows * self.features)
        self.summed = self.row_stride == 1 and self.rows > 1 and along < whole
        self.itemsize = itemsize * self.out_width * (along if self.summed else whole)

    def block_size(self, records: int) -> int:
        return block_size(records, self.itemsize)

    def taps(self):
        """Places of the window that patches hold, in their order."""
        rows = (0,) if self.summed else range(self.rows)
        return [(row, column) for row in rows for column in range(self.columns)]

    def patch_height(self):
        return self.height if self.summed else self.out_height

    def matrix(self, kernel: jax.Array) -> jax.Array:
        """The kernel as the right side of the product."""
        if self.summed:  # [columns * in, rows * out]
            return kernel.transpose(1, 2, 0, 3).reshape(-1, self.rows * self.features)
        return kernel.reshape(-1, self.features)

    def kernel(self, matrix: jax.Array) -> jax.Array:
        """The inverse of `matrix`."""
        shape = (self.columns, self.channels, self.rows, self.features)
        if self.summed:
            return matrix.reshape(shape).transpose(2, 0, 1, 3)
        return matrix.reshape(self.rows, self.columns, self.channels, self.features)

    def patches(self, x: jax.Array) -> jax.Array:
        """``[records * patch height * out width, taps * in]``."""
        parts = []
        for row, column in self.taps():
            last_row = row + (self.patch_height() - 1) * self.row_stride
            last_column = column + (self.out_width - 1) * self.column_stride
            parts.append(
                lax.slice(
                    x,
                    (0, row, column, 0),
                    (x.shape[0], last_row + 1, last_column + 1, self.channels),
                    (1, self.row_stride, self.column_stride, 1),
                )
            )
        joined = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
        return joined.reshape(-1, joined.shape[-1])

    def unpatch(self, patches: jax.Array, records: int) -> jax.Array:
        """The transpose of `patches`."""
        height, zero = self.patch_height(), jnp.zeros((), patches.dtype)
        parts = patches.reshape(records, height, self.out_width, -1, self.channels)
        total = None
        for number, (row, column) in enumerate(self.taps()):
            rows_used = (height - 1) * self.row_stride + 1
            columns_used = (self.out_width - 1) * self.column_stride + 1
            edges = [
                (0, 0, 0),
                (row, self.height - row - rows_used, self.row_stride - 1),
                (column, self.width - column - columns_used, self.column_stride - 1),
                (0, 0, 0),
            ]
            part = lax.pad(parts[:, :, :, number], zero, edges)
            total = part if total is None else total + part
        return total

    def gather(self, product: jax.Array, records: int) -> jax.Array:
        """The product as the output: rows of the window are summed one row apart."""
        if not self.summed:
            return product.reshape(records, self.out_height, self.out_width, self.features)
        parts = product.reshape(records, self.height, self.out_width, self.rows, self.features)
        return sum(parts[:, row : row + self.out_height, :, row] for row in range(self.rows))

    def spread(self, gradient: jax.Array) -> jax.Array:
        """The transpose of `gather`, as the left side of a product."""
        if not self.summed:
            return gradient.reshape(-1, self.features)
        zero = jnp.zeros((), gradient.dtype)
        parts = [
            lax.pad(gradient, zero, [(0, 0, 0), (row, self.rows - 1 - row, 0), *[(0, 0, 0)] * 2])
            for row in range(self.rows)
        ]
        return jnp.concatenate(parts, -1).reshape(-1, self.rows * self.features)
