"""Opacus's steps of DP-SGD, and torch's without privacy: a worker of the DP benchmark."""

from __future__ import annotations

import importlib.metadata
import warnings

import dpsgd_work
import numpy as np
import torch
from dpsgd_work import BATCH_SIZE, L2_BOUND, LEARNING_RATE
from engine_work import NUM_CLASSES, SIDE, flat
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from worker import serve

# Torch says so of any first layer whose input needs no gradient.
warnings.filterwarnings("ignore", message="Full backward hook is firing")

POOLED = (12, 12, 64)  # what the first dense layer sees, channels last; torch has them first


def network() -> nn.Module:
    """The EMNIST CNN with the benchmark's first parameters."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(int(np.prod(POOLED)), 128),
        nn.ReLU(),
        nn.Linear(128, NUM_CLASSES),
    )
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), dpsgd_work.params(), strict=True):
            parameter.copy_(torch.from_numpy(to_torch(part)))
    return model


def to_torch(part: np.ndarray) -> np.ndarray:
    """A part in the common order, as torch has it."""
    if part.ndim == 4:
        return part.transpose(3, 2, 0, 1).copy()
    if part.ndim == 2 and part.shape[0] == np.prod(POOLED):
        channels_first = part.reshape(*POOLED, -1).transpose(3, 2, 0, 1)
        return channels_first.reshape(part.shape[1], -1).copy()
    return part.T.copy()


def from_torch(part: np.ndarray) -> np.ndarray:
    """The other way."""
    if part.ndim == 4:
        return part.transpose(2, 3, 1, 0)
    if part.ndim == 2 and part.shape[1] == np.prod(POOLED):
        height, width, channels = POOLED
        return part.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
    return part.T


class Steps:
    """Steps of one kind.

    ``"non_private"``: torch alone. ``"hooks"``: each record's gradient is made, Opacus's default.
    ``"ghost"``: its ghost clipping, with a second pass back. The noise multiplier is 0.
    """

    def __init__(self):
        x, y = dpsgd_work.batch()
        self.x = torch.from_numpy(x.reshape(-1, 1, SIDE, SIDE))
        self.y = torch.from_numpy(y.astype(np.int64))
        self.facts = {
            "version": importlib.metadata.version("opacus"),
            "with": f"torch {torch.__version__}",
        }

    def start(self, kind: str) -> None:
        """First parameters."""
        self.kind, self.inner = kind, network()
        self.model, self.loss = self.inner, nn.CrossEntropyLoss(reduction="sum")
        self.optimizer = torch.optim.SGD(
            self.inner.parameters(), lr=LEARNING_RATE / BATCH_SIZE
        )
        clipping = {
            "noise_multiplier": 0.0,
            "max_grad_norm": L2_BOUND,
            "expected_batch_size": BATCH_SIZE,
            "loss_reduction": "sum",
        }
        if kind == "hooks":
            self.model = GradSampleModule(self.inner, loss_reduction="sum")
            self.optimizer = DPOptimizer(self.optimizer, **clipping)
        elif kind == "ghost":
            self.model = GradSampleModuleFastGradientClipping(
                self.inner, loss_reduction="sum", max_grad_norm=L2_BOUND, use_ghost_clipping=True
            )
            self.optimizer = DPOptimizerFastGradientClipping(self.optimizer, **clipping)
            self.loss = DPLossFastGradientClipping(
                self.model, self.optimizer, self.loss, loss_reduction="sum"
            )
        elif kind != "non_private":
            raise ValueError(f"no kind {kind!r}")
        self.steps(1)

    def steps(self, count: int) -> None:
        """Takes steps, going on from where the last ones ended."""
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss(self.model(self.x), self.y).backward()
            self.optimizer.step()

    def clipped_sum(self) -> np.ndarray:
        """What the first step adds up, in the common order: what it leaves as gradients."""
        self.start(self.kind)
        sums = [parameter.grad.numpy() for parameter in self.inner.parameters()]
        return flat([from_torch(part) for part in sums])


if __name__ == "__main__":
    serve({"dpsgd": Steps})
