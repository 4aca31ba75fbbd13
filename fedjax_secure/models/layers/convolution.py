"""Convolution that is fast inside compiled loops on a CPU too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers import direct, winograd
from fedjax_secure.models.layers.blocks import aligned, chosen
from fedjax_secure.models.layers.pooling import max_pool
from fedjax_secure.models.layers.products import linear_own

_LEAST_CHANNELS = 32  # with fewer, transforms cost as much as the products that they save


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str = "VALID",
    implementation: str | None = None,
    own: jax.Array | None = None,
) -> jax.Array:
    """Convolution (cross-correlation, as networks have it) over one or two axes.

    A training engine runs whole rounds inside one compiled loop, and there XLA's own gradient of a
    convolution runs tens of times slower on a CPU than outside. On a CPU this one is made of
    matrix products: by Winograd's minimal filtering where the window is 3 x 3 and the stride 1, by
    patches elsewhere; on an accelerator it is `jax.lax.conv_general_dilated`.

    Guarantees:
        All implementations agree to rounding: within 2e-5 of the sum of the absolute products, in
        float32, for the value and for both gradients. Records do not affect each other.

    Args:
        x: ``[records, length, in]`` or ``[records, height, width, in]``, floats.
        kernel: ``[window, in, out]`` or ``[rows, columns, in, out]``.
        strides: one number, or one for each axis.
        padding: ``"VALID"``, or ``"SAME"`` for outputs of size ``ceil(size / stride)``.
        implementation: ``"products"``, ``"lax"``, or None to take what suits JAX's default device
            when the function is traced.
        own: zeros ``[records, *kernel.shape]``, a kernel for each record: their gradient is each
            record's own gradient of the kernel, as differentially private training needs it, and
            the kernel's is zero.

    Returns:
        ``[records, ..., out]``. It can be differentiated in reverse mode, any number of times.

    Raises:
        SpecError: shapes, dtypes, strides or padding that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 32))).shape
        (2, 26, 26, 32)

    Source: see `winograd`; K. Chellapilla, S. Puri and P. Simard, High performance convolutional
    neural networks for document processing, 2006, for products over patches.
    """
    strides, edges = _checked("a convolution", x, kernel, strides, padding)
    if chosen(implementation) == "lax":
        if own is not None:
            apply = partial(lax_convolution, strides, edges)
            own_of = partial(own_by_patches, strides, edges)
            return linear_own(apply, own_of, *aligned(x, kernel, own))
        return lax_convolution(strides, edges, x, kernel)
    x, kernel = aligned(x, kernel)
    if len(strides) == 1:  # an image of one row
        own = None if own is None else own[:, None]
        return _conv2d(x[:, None], kernel[None], (1, *strides), [(0, 0), *edges], own)[:, 0]
    return _conv2d(x, kernel, strides, edges, own)


def conv_relu_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    padding: str = "VALID",
    implementation: str | None = None,
    own: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """A convolution, its bias, ReLU, and the largest of each 2 x 2 (or 2): one layer of many CNNs.

    The same as the four in a row. Where a 3 x 3 window meets an even output, it is faster on a
    CPU: what lies between them never leaves the cache.

    Args:
        x: ``[records, length, in]`` or ``[records, height, width, in]``, floats.
        kernel: ``[window, in, out]`` or ``[rows, columns, in, out]``; the stride is 1.
        bias: ``[out]``.
        padding, implementation: as for `conv`.
        own: zeros, a kernel and a bias for each record, as for `conv`.

    Returns:
        ``[records, ..., out]``, half the size of the convolution's output, rounded down.

    Raises:
        SpecError: as `conv` does, or a bias of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> conv_relu_pool(jnp.ones((2, 26, 26, 32)), jnp.ones((3, 3, 32, 64)), jnp.zeros(64)).shape
        (2, 12, 12, 64)
    """
    strides, edges = _checked("a convolution", x, kernel, 1, padding)
    if bias.shape != kernel.shape[-1:] or bias.dtype != kernel.dtype:
        raise SpecError(
            "a convolution",
            need=f"a bias of shape {list(kernel.shape[-1:])} and dtype {kernel.dtype}",
            found=f"{list(bias.shape)} {bias.dtype}",
            fix="Give one number for each output channel.",
        )
    if chosen(implementation) == "products" and _minimal(x, kernel, strides, edges):
        padded = _padded(x, edges)
        if padded.shape[1] % 2 == 0 and padded.shape[2] % 2 == 0:
            if own is not None:
                return winograd.convolve_relu_pool_own(*aligned(padded, kernel, bias), own)
            return winograd.convolve_relu_pool(*aligned(padded, kernel, bias))
    own_kernel, own_bias = own or (None, None)
    y = conv(x, kernel, padding=padding, implementation=implementation, own=own_kernel)
    y = nn.relu(with_bias(y, bias, own_bias))
    return max_pool(y, 2, implementation=implementation)


def with_bias(y: jax.Array, bias: jax.Array, own: jax.Array | None = None) -> jax.Array:
    """``y + bias``, along the last axis; ``own [records, out]``: zeros, a bias for each record."""
    if own is not None:
        return y + (bias + own).reshape(y.shape[0], *(1,) * (y.ndim - 2), -1)
    return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class Conv(nn.Module):
    """`conv` as a flax layer; parameters ``kernel`` and ``bias``, as `flax.linen.Conv` names them.

    Attributes:
        features: output channels.
        kernel_size: the window, one number for each axis: one for series, two for images.
        strides: one number, or one for each axis.
        padding: ``"VALID"`` or ``"SAME"``.
        use_bias: whether a bias is added.
        kernel_init: how the kernel starts.
        bias_init: how the bias starts.
        implementation: as for `conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layer = Conv(4, (3, 3), padding="SAME")
        >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> y.shape, variables["params"]["kernel"].shape
        ((1, 8, 8, 4), (3, 3, 3, 4))
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: str = "VALID"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, x)
        y = conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            implementation=self.implementation,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,))
        return with_bias(y, bias)


class ConvReluPool(nn.Module):
    """`conv_relu_pool` as a flax layer; parameters as in `Conv`.

    Attributes:
        features, kernel_size, padding, kernel_init, bias_init, implementation: as in `Conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layer = ConvReluPool(64)
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 26, 26, 32)))[0].shape
        (1, 12, 12, 64)
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    padding: str = "VALID"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, x)
        bias = self.param("bias", self.bias_init, (self.features,))
        return conv_relu_pool(
            x, kernel, bias, padding=self.padding, implementation=self.implementation
        )


def _kernel(layer: Conv | ConvReluPool, x: jax.Array) -> jax.Array:
    shape = (*layer.kernel_size, x.shape[-1], layer.features)
    return layer.param("kernel", layer.kernel_init, shape)


def lax_convolution(
    strides: Sequence[int], edges: Sequence[tuple[int, int]], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """JAX's own convolution, over one to three axes, channels last."""
    numbers = _dimensions(len(strides))
    return lax.conv_general_dilated(x, kernel, strides, edges, dimension_numbers=numbers)


def own_by_patches(
    strides: Sequence[int],
    edges: Sequence[tuple[int, int]],
    x: jax.Array,
    gradient: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Each record's gradient of a kernel: a product of its patches with its output's gradient.

    Returns:
        ``[records, *shape]``.
    """
    patches = lax.conv_general_dilated_patches(
        x, shape[:-2], strides, edges, dimension_numbers=_dimensions(len(strides))
    )  # channels before places of the window
    patches = patches.reshape(x.shape[0], -1, patches.shape[-1])
    gradient = gradient.reshape(x.shape[0], -1, gradient.shape[-1])
    product = lax.dot_general(patches, gradient, (((1,), (1,)), ((0,), (0,))))
    product = product.reshape(-1, shape[-2], *shape[:-2], shape[-1])
    return jnp.moveaxis(product, 1, -2)


def _dimensions(axes: int) -> tuple[str, str, str]:
    letters = "HWD"[:axes]
    return f"N{letters}C", f"{letters}IO", f"N{letters}C"


def _conv2d(x, kernel, strides, edges, own=None):
    x_padded = _padded(x, edges)
    if not _minimal(x, kernel, strides, edges):
        if own is not None:
            return direct.convolve_own(*aligned(x_padded, kernel, own), strides)
        return direct.convolve(x_padded, kernel, strides)
    height, width = x_padded.shape[1] - 2, x_padded.shape[2] - 2
    if height % 2 or width % 2:  # tiles are whole: one row or column more, cut off afterwards
        x_padded = _padded(x_padded, [(0, height % 2), (0, width % 2)])
    if own is not None:
        return winograd.convolve_own(*aligned(x_padded, kernel, own))[:, :height, :width]
    return winograd.convolve(x_padded, kernel)[:, :height, :width]


def _minimal(x, kernel, strides, edges) -> bool:
    """Whether Winograd's filtering pays."""
    if kernel.shape[:-2] != (3, 3) or tuple(strides) != (1, 1):
        return False
    sizes = [size + sum(edge) - 2 for size, edge in zip(x.shape[1:3], edges, strict=True)]
    return min(kernel.shape[2:]) >= _LEAST_CHANNELS and min(sizes) >= 2


def _padded(x, edges):
    if not any(map(any, edges)):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *[(*e, 0) for e in edges], (0, 0, 0)])


def _checked(where, x, kernel, strides, padding):
    """The strides as one number an axis, and the padding as pairs."""

    def refuse(need, found, fix):
        return SpecError(where, need=need, found=found, fix=fix)

    axes = x.ndim - 2
    if axes not in (1, 2) or kernel.ndim != axes + 2:
        raise refuse(
            "x [records, length, in] with kernel [window, in, out], or x [records, height, width, "
            "in] with kernel [rows, columns, in, out]",
            f"x {list(x.shape)} with kernel {list(kernel.shape)}",
            "Reshape the records, or give the window one number for each axis.",
        )
    if x.shape[-1] != kernel.shape[-2] or x.dtype != kernel.dtype:
        raise refuse(
            "as many channels in x as the kernel takes, of one dtype",
            f"x {list(x.shape)} {x.dtype} with kernel {list(kernel.shape)} {kernel.dtype}",
            "Put the channels last.",
        )
    strides = (strides,) * axes if isinstance(strides, int) else tuple(strides)
    if len(strides) != axes or min(strides) < 1:
        raise refuse(f"{axes} strides of 1 or more", f"{strides}", "Give one for each axis.")
    if padding not in ("VALID", "SAME"):
        raise refuse("padding 'VALID' or 'SAME'", repr(padding), "Choose one of the two.")
    edges = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    for size, window, edge in zip(x.shape[1:-1], kernel.shape[:-2], edges, strict=True):
        if size + sum(edge) < window:
            raise refuse(
                f"an input of at least the window's size, {list(kernel.shape[:-2])}",
                f"{list(x.shape[1:-1])}",
                "Use padding='SAME', a smaller window, or fewer layers.",
            )
    return strides, [tuple(int(side) for side in edge) for edge in edges]
