"""jax_privacy's clipped gradients: a worker of the DP benchmark."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import dpsgd_work
import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
from dpsgd_work import BATCH_SIZE, L2_BOUND, LEARNING_RATE
from engine_work import SIDE, flat
from worker import serve


def losses(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Summed cross-entropy of the network, with XLA's own convolution and pooling."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = x.reshape(-1, SIDE, SIDE, 1)
    for kernel, bias in (params[:2], params[2:4]):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
        x = jax.nn.relu(x + bias)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ params[4] + params[5])
    scores = jax.nn.log_softmax(x @ params[6] + params[7])
    return -jnp.take_along_axis(scores, y[:, None], axis=1).sum()


class Steps:
    """Steps of one kind, each one compiled call: inside a loop XLA's convolutions are slower.

    ``"non_private"``: the gradient of the batch. ``"default"``: `jax_privacy.clipped_grad` as it
    comes. ``"microbatch"``: one record at a time, its fastest on a CPU.
    """

    def __init__(self):
        self.x, self.y = map(jnp.asarray, dpsgd_work.batch())
        version = importlib.metadata.version("jax-privacy")
        self.facts = {"version": version, "with": f"jax {jax.__version__}"}

    def start(self, kind: str) -> None:
        """First parameters, and the kind's program, compiled."""
        if kind == "non_private":
            gradient = jax.grad(losses)
        else:
            gradient = jax_privacy.clipped_grad(
                losses,
                l2_clip_norm=L2_BOUND,
                batch_argnums=(1, 2),
                keep_batch_dim=True,
                microbatch_size=1 if kind == "microbatch" else None,
            )
        self.first = [jnp.asarray(part) for part in dpsgd_work.params()]
        self.total = jax.jit(gradient)

        def step(params, x, y):
            rate = LEARNING_RATE / BATCH_SIZE
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient(params, x, y))

        self.step = jax.jit(step)
        self.steps(1)

    def steps(self, count: int) -> None:
        """Takes steps, all from the first parameters."""
        params = self.first
        for _ in range(count):
            params = self.step(params, self.x, self.y)
        jax.block_until_ready(params)

    def clipped_sum(self) -> np.ndarray:
        """What the first step adds up, in the common order."""
        return flat([np.asarray(part) for part in self.total(self.first, self.x, self.y)])


if __name__ == "__main__":
    serve({"dpsgd": Steps})
