"""Models that the engine can train: pure functions over a pytree of parameters."""

from __future__ import annotations

from fedjax_secure.models.images import emnist_cnn, resnet
from fedjax_secure.models.layers import (
    Conv,
    ConvReluPool,
    Embed,
    Lstm,
    avg_pool,
    conv,
    conv_relu_pool,
    max_pool,
)
from fedjax_secure.models.linear import logistic_regression
from fedjax_secure.models.mlp import mlp
from fedjax_secure.models.model import Model, from_flax
from fedjax_secure.models.sequences import char_lstm, sensor_cnn

__all__ = [
    "Conv",
    "ConvReluPool",
    "Embed",
    "Lstm",
    "Model",
    "avg_pool",
    "char_lstm",
    "conv",
    "conv_relu_pool",
    "emnist_cnn",
    "from_flax",
    "logistic_regression",
    "max_pool",
    "mlp",
    "resnet",
    "sensor_cnn",
]
