"""Networks for images."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers import Conv, ConvReluPool
from fedjax_secure.models.model import Data, Model, from_flax, num_outputs, record_shape


class _EmnistCnn(nn.Module):
    outputs: int
    implementation: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Conv(32, implementation=self.implementation, name="Conv_0")(x))
        x = ConvReluPool(64, implementation=self.implementation, name="Conv_1")(x)
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs)(x)


def emnist_cnn(
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    shape: Sequence[int] | None = None,
    implementation: str | None = None,
) -> Model:
    """The convolutional network of the federated literature on EMNIST.

    Two 3 x 3 convolutions of 32 and 64 channels, 2 x 2 max pooling, a hidden layer of 128: with
    28 x 28 images and 62 classes, 1,206,590 parameters. Dropout, which Reddi et al. have before and
    after the hidden layer, is left out: the engine's clients draw no randomness of their own while
    they train.

    Args:
        data: a dataset whose records have a shape, or that shape: ``(height, width)`` or
            ``(height, width, channels)``, at least 6 x 6.
        classes: the classes or their number; taken from the dataset if there is one.
        shape: the shape of a record, if the dataset has none.
        implementation: of the convolutions; see `conv`.

    Returns:
        The model.

    Raises:
        SpecError: records that are not images, or classes that are not given or too few.

    Example:
        >>> from fedjax_secure.models import emnist_cnn
        >>> emnist_cnn((28, 28, 1), 62)
        Model('emnist_cnn', features=784, classes=62, dim=1206590)

    Source: S. Reddi et al., Adaptive federated optimization, ICLR 2021, appendix, table of the
    EMNIST character recognition model.
    """
    name = "emnist_cnn"
    shape = _image_shape(name, data, shape, least=6)
    module = _EmnistCnn(num_outputs(name, data, classes), implementation)
    return from_flax(module, data, classes, name=name, shape=shape)


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    features: int
    stride: int
    groups: int
    implementation: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _conv(self, self.features, self.stride)(x)
        y = nn.relu(nn.GroupNorm(self.groups)(y))
        y = nn.GroupNorm(self.groups)(_conv(self, self.features)(y))
        more = self.features - x.shape[-1]
        shortcut = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(shortcut, [(0, 0)] * 3 + [(more // 2, more - more // 2)]))


class _ResNet(nn.Module):
    outputs: int
    blocks: int
    width: int
    groups: int
    implementation: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(self.groups)(_conv(self, self.width)(x)))
        for stage in range(3):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                features = self.width * 2**stage
                x = _Block(features, stride, self.groups, self.implementation)(x)
        return nn.Dense(self.outputs)(x.mean((1, 2)))


def _conv(owner: _Block | _ResNet, features: int, stride: int = 1) -> Conv:
    return Conv(
        features,
        strides=stride,
        padding="SAME",
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        implementation=owner.implementation,
    )


def resnet(
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    depth: int = 8,
    width: int = 16,
    groups: int = 8,
    shape: Sequence[int] | None = None,
    implementation: str | None = None,
) -> Model:
    """A small residual network with group normalisation, for images like CIFAR's.

    Three stages of ``(depth - 2) / 6`` blocks, with ``width``, 2 ``width`` and 4 ``width``
    channels; shortcuts have no parameters. Group normalisation takes the place of batch
    normalisation, whose running averages are a state that clients with different data disagree
    about, and which makes a record's loss depend on the other records of its batch.

    Args:
        data: a dataset whose records have a shape, or that shape: ``(height, width)`` or
            ``(height, width, channels)``, at least 4 x 4.
        classes: the classes or their number; taken from the dataset if there is one.
        depth: layers with weights: 8, 14, 20, 26, ...
        width: channels of the first stage.
        groups: groups of channels that are normalised together; a divisor of ``width``.
        shape, implementation: as for `emnist_cnn`.

    Returns:
        The model.

    Raises:
        SpecError: records that are not images; a depth, width or groups that do not fit; classes
            that are not given or too few.

    Example:
        >>> from fedjax_secure.models import resnet
        >>> resnet((32, 32, 3), 10, depth=20)
        Model('resnet20', features=3072, classes=10, dim=269722)

    Source: K. He et al., Deep residual learning for image recognition, 2016, section 4.2, shortcuts
    of option A; Y. Wu and K. He, Group normalization, 2018; K. Hsieh et al., The non-IID data
    quagmire of decentralized machine learning, 2020, for why.
    """
    name = f"resnet{depth}"
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise _refuse(name, "a depth of 8, 14, 20, ...", f"{depth!r}", "Choose one of these.")
    if min(width, groups) < 1 or width % groups:
        raise _refuse(
            name,
            "a width that the groups divide",
            f"width={width}, groups={groups}",
            "Choose another number of groups.",
        )
    shape = _image_shape(name, data, shape, least=4)
    outputs = num_outputs(name, data, classes)
    module = _ResNet(outputs, (depth - 2) // 6, width, groups, implementation)
    return from_flax(module, data, classes, name=name, shape=shape)


def _image_shape(name, data, shape, *, least):
    """The shape of a record with its channels; a grey image may leave them out."""
    found = record_shape(name, data, shape)
    if len(found) == 2:
        found = (*found, 1)
    if len(found) != 3 or min(found[:2]) < least:
        raise _refuse(
            name,
            f"records of shape (height, width, channels), at least {least} x {least}",
            f"{found}" if found else "records without a shape",
            "Give shape=(28, 28, 1), for example.",
        )
    return found


def _refuse(name, need, found, fix):
    return SpecError(f"model `{name}`", need=need, found=found, fix=fix)
