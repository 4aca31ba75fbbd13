"""One step of DP-SGD on the EMNIST CNN, as every system of `make bench-dp` gets it.

This file runs in every worker, so it imports nothing but the standard library and numpy, and runs
on Python 3.11.

A step is the gradient of a batch of 64 and plain SGD with it; in a private step each record's
gradient is clipped first. Noise is left out everywhere: samplers are timed by themselves.
"""

from __future__ import annotations

import numpy as np
from engine_work import FEATURES, NUM_CLASSES, SHAPES, draw_records, first_params, prototypes

BATCH_SIZE, LEARNING_RATE, L2_BOUND = 64, 0.1, 1.0
#: How far a clipped sum may be from `reference`, over its norm: float32, and what Opacus adds to
#: norms. Ours of kind "exact" is rounded to integers at random: `ROUNDED_AGREEMENT`.
AGREEMENT, ROUNDED_AGREEMENT = 1e-4, 0.05


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Records ``[64, 784] float32`` and labels ``[64] int32``."""
    rng = np.random.default_rng(11)
    y = rng.integers(0, NUM_CLASSES, BATCH_SIZE).astype(np.int32)
    return draw_records(y, rng, prototypes()).astype(np.float32), y


def params() -> list[np.ndarray]:
    """First parameters: kernels and biases in the order of `SHAPES`, images channels last."""
    return first_params("cnn")


def sizes() -> list[int]:
    """Values of each part."""
    return [int(np.prod(shape)) for shape in SHAPES["cnn"]]


def disagreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """How far two clipped sums are apart, over the norm of the second."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def reference() -> np.ndarray:
    """The sum of the clipped gradients in float64, record by record, in numpy alone.

    Returns:
        ``[1206590] float64``, in the common order.
    """
    x, y = batch()
    weights = [part.astype(np.float64) for part in params()]
    total = np.zeros(sum(sizes()))
    for record, label in zip(x.astype(np.float64), y, strict=True):
        gradient = np.concatenate([part.ravel() for part in _gradient(weights, record, label)])
        total += gradient * min(1.0, L2_BOUND / np.linalg.norm(gradient))
    return total


def _gradient(weights: list[np.ndarray], record: np.ndarray, label: int) -> list[np.ndarray]:
    """The gradient of cross-entropy for one record, by hand."""
    kernel_1, bias_1, kernel_2, bias_2, dense_1, shift_1, dense_2, shift_2 = weights
    side = int(FEATURES**0.5)
    patches_1 = _patches(record.reshape(side, side, 1))
    before_1 = patches_1 @ kernel_1.reshape(-1, 32) + bias_1
    patches_2 = _patches(np.maximum(before_1, 0))
    before_2 = patches_2 @ kernel_2.reshape(-1, 64) + bias_2
    tiles = np.maximum(before_2, 0).reshape(12, 2, 12, 2, 64).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(12, 12, 64, 4)
    first = tiles.argmax(3)
    pooled = tiles.max(3).ravel()
    before_3 = pooled @ dense_1 + shift_1
    hidden = np.maximum(before_3, 0)
    logits = hidden @ dense_2 + shift_2
    share = np.exp(logits - logits.max())
    to_logits = share / share.sum()
    to_logits[label] -= 1
    to_3 = (dense_2 @ to_logits) * (before_3 > 0)
    to_tiles = np.zeros_like(tiles)
    np.put_along_axis(to_tiles, first[..., None], (dense_1 @ to_3).reshape(12, 12, 64, 1), 3)
    to_2 = to_tiles.reshape(12, 12, 64, 2, 2).transpose(0, 3, 1, 4, 2).reshape(24, 24, 64)
    to_2 = to_2 * (before_2 > 0)
    to_patches = (to_2 @ kernel_2.reshape(-1, 64).T).reshape(24, 24, 3, 3, 32)
    to_1 = np.zeros((26, 26, 32))
    for row in range(3):
        for column in range(3):
            to_1[row : row + 24, column : column + 24] += to_patches[:, :, row, column]
    to_1 = to_1 * (before_1 > 0)
    return [
        np.tensordot(patches_1, to_1, ((0, 1), (0, 1))),
        to_1.sum((0, 1)),
        np.tensordot(patches_2, to_2, ((0, 1), (0, 1))),
        to_2.sum((0, 1)),
        np.outer(pooled, to_3),
        to_3,
        np.outer(hidden, to_logits),
        to_logits,
    ]


def _patches(image: np.ndarray) -> np.ndarray:
    """``[height, width, channels]`` to 3 x 3 patches, without padding."""
    height, width = image.shape[0] - 2, image.shape[1] - 2
    return np.concatenate(
        [image[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )
