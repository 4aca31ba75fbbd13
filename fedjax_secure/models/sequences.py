"""Networks for sequences: series of measurements, and text."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers import ConvReluPool, Embed, Lstm
from fedjax_secure.models.model import Data, Model, from_flax, num_outputs, record_shape


class _SensorCnn(nn.Module):
    outputs: int
    channels: tuple[int, ...]
    window: int
    implementation: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in self.channels:
            layer = ConvReluPool(
                features, (self.window,), padding="SAME", implementation=self.implementation
            )
            x = layer(x)
        return nn.Dense(self.outputs)(x.mean(1))


def sensor_cnn(
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    channels: Sequence[int] = (32, 64),
    window: int = 5,
    shape: Sequence[int] | None = None,
    implementation: str | None = None,
) -> Model:
    """A one-dimensional convolutional network for series of measurements, such as a watch's.

    Each layer is a convolution over time, ReLU, and the larger of each two times; the mean over
    time goes to the output, so that a shift in time changes little.

    Args:
        data: a dataset whose records have the shape ``(time, channels)``, or that shape.
        classes: the classes or their number; taken from the dataset if there is one.
        channels: the channels of each layer; each layer halves the time.
        window: times that a convolution sees.
        shape, implementation: as for `emnist_cnn`.

    Returns:
        The model.

    Raises:
        SpecError: records that are not series, or too short; layers or a window below 1; classes
            that are not given or too few.

    Example:
        >>> from fedjax_secure.models import sensor_cnn
        >>> sensor_cnn((128, 9), 6)
        Model('sensor_cnn', features=1152, classes=6, dim=12166)
    """
    name = "sensor_cnn"
    widths = tuple(channels) if isinstance(channels, Sequence) else (channels,)
    if not widths or not all(_positive(n) for n in (*widths, window)):
        raise _refuse(
            name,
            "one or more layers, and a window, of 1 or more",
            f"channels={channels!r}, window={window!r}",
            "Write channels=(32, 64), window=5.",
        )
    found = record_shape(name, data, shape)
    if len(found) != 2 or found[0] < 2 ** len(widths):
        raise _refuse(
            name,
            f"records of shape (time, channels) with {2 ** len(widths)} times or more",
            f"{found}" if found else "records without a shape",
            "Give shape=(128, 9), for example, or fewer layers.",
        )
    module = _SensorCnn(num_outputs(name, data, classes), widths, window, implementation)
    return from_flax(module, data, classes, name=name, shape=found)


class _CharLstm(nn.Module):
    outputs: int
    vocabulary: int
    embedding: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = Embed(self.vocabulary, self.embedding, name="embedding")(tokens)
        for features in self.hidden:
            x = Lstm(features)(x)
        return nn.Dense(self.outputs)(x[:, -1])


def char_lstm(
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    vocabulary: int | None = None,
    embedding: int = 8,
    hidden: Sequence[int] = (256, 256),
) -> Model:
    """A character LSTM: from a row of characters, the one that comes next.

    An embedding of 8, two LSTM layers of 256, and one logit a character: the network of the
    federated literature on Shakespeare. With 90 characters, 820,522 parameters.

    Args:
        data: a dataset of token rows (``int32``, numbers in ``[0, vocabulary)``), or the length
            of a row.
        classes: the characters that may come next, or their number; taken from the dataset if
            there is one.
        vocabulary: how many tokens there are; by default as many as classes. A token outside it
            counts as no character.
        embedding: size of a character's vector.
        hidden: the size of each LSTM layer.

    Returns:
        The model; `apply` takes rows of int32.

    Raises:
        SpecError: records that are not token rows; sizes below 1; classes that are not given.

    Example:
        >>> from fedjax_secure.models import char_lstm
        >>> char_lstm(80, 90)
        Model('char_lstm', features=80, classes=90, dim=820522)

    Source: S. Reddi et al., Adaptive federated optimization, ICLR 2021, appendix, after
    B. McMahan et al., Communication-efficient learning of deep networks from decentralized data,
    2017; S. Caldas et al., LEAF: a benchmark for federated settings, 2018, for the task.
    """
    name = "char_lstm"
    layers = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    outputs = num_outputs(name, data, classes)
    vocabulary = max(outputs, 2) if vocabulary is None else vocabulary
    if not layers or not all(_positive(n) for n in (*layers, embedding, vocabulary)):
        raise _refuse(
            name,
            "sizes of 1 or more",
            f"vocabulary={vocabulary!r}, embedding={embedding!r}, hidden={hidden!r}",
            "Write embedding=8, hidden=(256, 256).",
        )
    found = getattr(getattr(data, "x", None), "dtype", None)
    if found is not None and not np.issubdtype(found, np.signedinteger):
        raise _refuse(
            name,
            "records of int32 token numbers",
            f"{found}",
            "Make the tokens int32, x.astype(numpy.int32), before the dataset; for measurements "
            "use sensor_cnn(...).",
        )
    module = _CharLstm(outputs, vocabulary, embedding, layers)
    return from_flax(module, data, classes, name=name, shape=(), dtype=jnp.int32)


def _positive(number: object) -> bool:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return whole and number >= 1


def _refuse(name, need, found, fix):
    return SpecError(f"model `{name}`", need=need, found=found, fix=fix)
