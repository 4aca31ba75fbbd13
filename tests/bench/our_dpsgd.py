"""Our steps of DP-SGD, and without privacy: a worker of the DP benchmark."""

from __future__ import annotations

from typing import Any

import dpsgd_work
import jax
import jax.numpy as jnp
import numpy as np
from dpsgd_work import BATCH_SIZE, L2_BOUND, LEARNING_RATE
from engine_work import NUM_CLASSES, SIDE
from jax import lax
from our_engine import from_common, to_common
from worker import serve

import fedjax_secure as fs
from fedjax_secure.core import Spec
from fedjax_secure.core.stage import chain
from fedjax_secure.training import clipped_sum
from fedjax_secure.training.ghost import gradient_of_one


class Steps:
    """Steps of one kind in one compiled loop, as the engine runs them.

    ``"non_private"``: the gradient of the batch. ``"ghost"`` and ``"vmap"``: `clipped_sum`.
    ``"exact"``: each record's gradient by itself, clipped, rounded to 24 bits and checked.
    """

    def __init__(self):
        self.model = fs.models.emnist_cnn((SIDE, SIDE, 1), NUM_CLASSES)
        self.x, self.y = map(jnp.asarray, dpsgd_work.batch())
        self.facts = {"version": fs.__version__, "with": f"jax {jax.__version__}"}

    def start(self, kind: str) -> None:
        """First parameters, and the kind's program, compiled."""
        model = self.model
        total = {"non_private": self._gradient, "exact": self._exact()}.get(kind)
        if total is None:

            def total(params):
                return clipped_sum(model, params, self.x, self.y, L2_BOUND, method=kind).total

        def step(params):
            rate = LEARNING_RATE / BATCH_SIZE
            return jax.tree.map(lambda p, g: p - rate * g, params, total(params))

        self.first = from_common(model, "cnn", dpsgd_work.params())
        self.total = jax.jit(total)
        self.loop = jax.jit(
            lambda params, count: lax.fori_loop(0, count, lambda _, p: step(p), params)
        )
        self.steps(1)

    def steps(self, count: int) -> None:
        """Takes steps, all from the first parameters."""
        jax.block_until_ready(self.loop(self.first, count))

    def clipped_sum(self) -> np.ndarray:
        """What the first step adds up, in the common order."""
        return to_common(self.model, "cnn", self.total(self.first))

    def _gradient(self, params: Any) -> Any:
        return jax.grad(lambda p: self.model.loss(p, self.x, self.y).sum())(params)

    def _exact(self) -> Any:
        model = self.model
        aggregation = chain(fs.privacy.clip(L2_BOUND, unit="record"), fs.privacy.quantise(bits=24))
        spec = Spec(dim=model.dim, num_clients=1, num_records=BATCH_SIZE, denominator=1.0)
        states, _ = aggregation.init(spec)
        key = jnp.arange(8, dtype=jnp.uint32)

        def total(params):
            def add(place, so_far):
                x, y = (lax.dynamic_slice_in_dim(part, place, 1) for part in (self.x, self.y))
                gradient = model.ravel(gradient_of_one(model, params, x, y))
                gradient = lax.optimization_barrier(gradient)
                slot = place.astype(jnp.uint32)
                return so_far + aggregation.encode_record(states, key, slot, gradient)

            zeros = jnp.zeros(model.dim, jnp.int32)
            integers = lax.fori_loop(jnp.int32(0), jnp.int32(BATCH_SIZE), add, zeros)
            return model.unravel(aggregation.decode(states, integers)[0])

        return total


if __name__ == "__main__":
    serve({"dpsgd": Steps})
