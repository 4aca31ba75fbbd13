"""The work of `make bench-engine`, as every system gets it: clients, cohorts, first parameters.

This file runs in every worker, so it imports nothing but the standard library and numpy, and runs
on Python 3.11. The clients are synthetic, of EMNIST's shape; sizes are log-normal as in LEAF's
FEMNIST, classes are skewed by client, and every client has a brightness and a contrast of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIDE, NUM_CLASSES = 28, 62
FEATURES = SIDE * SIDE
NUM_CLIENTS, COHORT, NUM_ROUNDS = 1000, 50, 400
BATCH_SIZE, LEARNING_RATE = 20, 0.1
MODELS = ("lr", "mlp", "cnn")
#: Shapes of each model's parameters, in the order in which all systems return them: a kernel and a
#: bias a layer, convolutions as [height, width, in, out], images as [height, width, channels].
SHAPES = {
    "lr": ((FEATURES, NUM_CLASSES), (NUM_CLASSES,)),
    "mlp": ((FEATURES, 200), (200,), (200, 200), (200,), (200, NUM_CLASSES), (NUM_CLASSES,)),
    "cnn": (
        (3, 3, 1, 32),
        (32,),
        (3, 3, 32, 64),
        (64,),
        (12 * 12 * 64, 128),
        (128,),
        (128, NUM_CLASSES),
        (NUM_CLASSES,),
    ),
}
#: Records of the clients of the round in which all systems' parameters are compared. They are
#: multiples of the batch: FedJAX fills a client's last batch up with records drawn again.
CHECK_SIZES = (20, 40, 60, 80, 100, 20, 40, 60)


class Clients(NamedTuple):
    """Records [records, 784] float32 and labels [records] int32, contiguous by client."""

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Records of each client, [clients] int64."""
        return np.diff(self.offsets)

    def of(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """One client's records and labels."""
        rows = slice(self.offsets[client], self.offsets[client + 1])
        return self.x[rows], self.y[rows]


# -- making ----------------------------------------------------------------------------------------


def prototypes() -> np.ndarray:
    """One smooth image a class, [classes, 28, 28] float32 within -1 and 1: sums of six blobs."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:SIDE, :SIDE] / SIDE
    images = np.zeros((NUM_CLASSES, SIDE, SIDE), np.float32)
    for image in images:
        for _ in range(6):
            x, y, width = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.05, 0.15)
            blob = np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * width * width))
            image += rng.choice([-1, 1, 1]) * blob
    return images / np.abs(images).max((1, 2), keepdims=True)


def draw_records(y: np.ndarray, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Records of classes y: their prototypes, moved by up to two pixels, with noise."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    moved = np.stack(
        [padded[:, i : i + SIDE, j : j + SIDE] for i in range(5) for j in range(5)], axis=1
    )
    x = moved[y, rng.integers(0, 25, len(y))].reshape(len(y), FEATURES)
    return x + np.float32(0.35) * rng.standard_normal((len(y), FEATURES), dtype=np.float32)


def make_clients(num_clients: int, *, mean: float = 100.0, largest: int = 1500) -> Clients:
    """Clients with log-normal numbers of records, Dirichlet(0.5) classes, and a style each."""
    rng = np.random.default_rng(713)
    drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, num_clients)
    sizes = np.clip(drawn, 5, largest).astype(np.int64)
    y = np.concatenate(
        [rng.choice(NUM_CLASSES, n, p=rng.dirichlet(np.full(NUM_CLASSES, 0.5))) for n in sizes]
    )
    x = draw_records(y, rng, prototypes())
    contrast, brightness = rng.normal(size=(2, num_clients)).astype(np.float32)
    x *= np.repeat(1 + np.float32(0.2) * contrast, sizes)[:, None]
    x += np.repeat(np.float32(0.1) * brightness, sizes)[:, None]
    return Clients(x, y.astype(np.int32), np.concatenate([[0], np.cumsum(sizes)]))


def first_params(model: str) -> list[np.ndarray]:
    """He-normal kernels and zero biases, float32."""
    rng = np.random.default_rng(2)
    params = []
    for shape in SHAPES[model]:
        scale = np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1 else 0.0
        params.append((rng.normal(size=shape) * scale).astype(np.float32))
    return params


def write_work(folder: Path) -> Path:
    """Writes the data file that every system reads."""
    clients = make_clients(NUM_CLIENTS)
    rng = np.random.default_rng(1)
    cohorts = np.stack([rng.choice(NUM_CLIENTS, COHORT, replace=False) for _ in range(NUM_ROUNDS)])
    test_y = rng.integers(0, NUM_CLASSES, 2000).astype(np.int32)
    path = folder / "work.npz"
    np.savez(
        path,
        x=clients.x,
        y=clients.y,
        offsets=clients.offsets,
        cohorts=cohorts,
        test_x=draw_records(test_y, rng, prototypes()),
        test_y=test_y,
    )
    return path


# -- reading ---------------------------------------------------------------------------------------


def read_clients(work: str) -> tuple[Clients, np.ndarray]:
    """The clients, and the cohort of each round [rounds, 50]."""
    with np.load(work) as data:
        return Clients(data["x"], data["y"], data["offsets"]), data["cohorts"]


def check_clients(clients: Clients) -> Clients:
    """The clients of the compared round: the first records of large ones."""
    large = np.flatnonzero(clients.sizes >= max(CHECK_SIZES))[: len(CHECK_SIZES)]
    rows = np.concatenate(
        [
            clients.offsets[client] + np.arange(n)
            for client, n in zip(large, CHECK_SIZES, strict=True)
        ]
    )
    offsets = np.concatenate([[0], np.cumsum(CHECK_SIZES)])
    return Clients(clients.x[rows], clients.y[rows], offsets)


def flat(params: Sequence[np.ndarray]) -> np.ndarray:
    """Parameters in the common order as one float32 vector."""
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in params])


def unflat(model: str, vector: np.ndarray) -> list[np.ndarray]:
    """A vector's parts, in the common order."""
    sizes = [int(np.prod(shape)) for shape in SHAPES[model]]
    parts = np.split(vector, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES[model], strict=True)]


# -- judging: in numpy alone, so that no system judges itself --------------------------------------


def accuracy(model: str, vector: np.ndarray, work: str) -> float:
    """Share of the test records that parameters classify rightly."""
    with np.load(work) as data:
        x, y = data["test_x"], data["test_y"]
    params = unflat(model, vector)
    right = 0
    for start in range(0, len(y), 100):
        scores = forward(model, params, x[start : start + 100])[-1]
        right += int((scores.argmax(axis=1) == y[start : start + 100]).sum())
    return right / len(y)


def forward(model: str, params: Sequence[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Every layer's input, and the scores last."""
    inputs = [x]
    if model == "cnn":
        image = x.reshape(-1, SIDE, SIDE, 1)
        for kernel, bias in (params[:2], params[2:4]):
            image = np.maximum(patches(image) @ kernel.reshape(-1, kernel.shape[-1]) + bias, 0)
            inputs.append(image)
        count, height, width, channels = image.shape
        pooled = image.reshape(count, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        inputs.append(pooled.reshape(count, -1))
        params = params[4:]
    for place in range(0, len(params), 2):
        scores = inputs[-1] @ params[place] + params[place + 1]
        inputs.append(np.maximum(scores, 0) if place + 2 < len(params) else scores)
    return inputs


def patches(image: np.ndarray) -> np.ndarray:
    """[count, height, width, channels] to 3 x 3 patches, without padding."""
    height, width = image.shape[1] - 2, image.shape[2] - 2
    return np.concatenate(
        [image[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )
