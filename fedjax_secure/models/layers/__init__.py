"""Layers that stay fast inside compiled loops on a CPU."""

from __future__ import annotations

from fedjax_secure.models.layers.convolution import Conv, ConvReluPool, conv, conv_relu_pool
from fedjax_secure.models.layers.lstm import Lstm
from fedjax_secure.models.layers.pooling import avg_pool, max_pool
from fedjax_secure.models.layers.products import Embed

__all__ = [
    "Conv",
    "ConvReluPool",
    "Embed",
    "Lstm",
    "avg_pool",
    "conv",
    "conv_relu_pool",
    "max_pool",
]
