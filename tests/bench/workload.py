"""Work for benchmarks of whole rounds: image clients of unequal sizes, and the networks of the
literature on it.

The images are synthetic, of the shape of EMNIST's (28 x 28, 62 classes): speed does not depend on
what they show.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.data import FederatedDataset
from fedjax_secure.models import Model, from_flax

SIDE, NUM_CLASSES, BATCH_SIZE, LEARNING_RATE = 28, 62, 20, 0.05


def images(num_clients: int, *, seed: int = 0) -> FederatedDataset:
    """Clients with log-normal numbers of images: mean near 100, median near 60, at most 1,500."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(np.log(100) - 0.5, 1.0, num_clients), 5, 1500).astype(np.int64)
    prototypes = rng.normal(size=(NUM_CLASSES, SIDE * SIDE)).astype(np.float32)
    y = rng.integers(0, NUM_CLASSES, sizes.sum()).astype(np.int32)
    x = prototypes[y] + rng.normal(size=(len(y), SIDE * SIDE)).astype(np.float32)
    held = NUM_CLASSES
    return FederatedDataset(
        name=f"images-{num_clients}",
        clients=tuple(f"client-{place:05d}" for place in range(num_clients)),
        x=x,
        y=y,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        test_x=prototypes[np.arange(held)],
        test_y=np.arange(held, dtype=np.int32),
        test_offsets=np.concatenate([np.zeros(num_clients, np.int64), [held]]),
        feature_names=tuple(f"pixel {place}" for place in range(SIDE * SIDE)),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
    )


class Mlp(nn.Module):
    """784-200-200-62: 209,662 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (200, 200):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(NUM_CLASSES)(x)


class Cnn(nn.Module):
    """Two 3 x 3 convolutions, 2 x 2 pooling, 128 hidden units: 1,206,590 parameters.

    Convolutions are matrix products over patches, and pooling is a maximum over a reshaped axis:
    XLA's own are a hundred times slower inside a compiled loop on a CPU.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, SIDE, SIDE, 1)
        for width in (32, 64):
            x = nn.relu(nn.Dense(width)(_patches(x)))
        records, height, breadth, channels = x.shape
        x = x.reshape(records, height // 2, 2, breadth // 2, 2, channels)
        x = jnp.maximum(
            jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]),
            jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]),
        )
        x = nn.relu(nn.Dense(128)(x.reshape(records, -1)))
        return nn.Dense(NUM_CLASSES)(x)


def _patches(x: jax.Array) -> jax.Array:
    """[records, height, breadth, channels] to 3 x 3 patches without padding, channels last."""
    height, breadth = x.shape[1] - 2, x.shape[2] - 2
    return jnp.concatenate(
        [x[:, i : i + height, j : j + breadth] for i in range(3) for j in range(3)], axis=-1
    )


def network(name: str) -> Model:
    """A network by its name in the tables: ``"mlp"`` or ``"cnn"``."""
    return from_flax({"mlp": Mlp, "cnn": Cnn}[name](), SIDE * SIDE, NUM_CLASSES, name=name)
