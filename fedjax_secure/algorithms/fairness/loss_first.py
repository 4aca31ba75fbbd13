"""Local SGD by a client that first looks up the global model's loss on all of its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...training import (
    ClientResult,
    ClientWork,
    Done,
    Phase,
    descend,
    difference,
    mean_loss,
    mean_over_steps,
    sum_loss,
)
from ..algorithm import Model


class Looked(NamedTuple):
    """What a client knows when it is done.

    Attributes:
        changed: ``[dim]``, its model less the global one.
        loss: float32, the global model's mean loss on all of its examples.
        some: bool, whether it has any.
    """

    changed: jax.Array
    loss: jax.Array
    some: jax.Array


def look_then_train(
    model: Model,
    name: str,
    extra: int,
    send: Callable[[Any, Any, Looked], jax.Array],
    *,
    learning_rate: float,
    local_epochs: int,
) -> ClientWork:
    """Work of two phases: the loss at the global model, in whole, and local SGD.

    Args:
        model: what is trained.
        name: under which the engine counts traces.
        extra: how many values a client sends besides ``dim``.
        send: ``(shared, own, Looked) -> [dim + extra]``. A client without examples sends zeros
            whatever it gives.
        learning_rate, local_epochs: of local SGD.

    Returns:
        The work. A client that completes only a share of its work still looks at all examples.
        Its metric ``loss`` is that of the training steps.
    """

    def start(shared, own, state):
        return shared["params"], jnp.float32(0), jnp.float32(0)

    def look(shared, own, carry, batch):
        params, found, total = carry
        return params, found + sum_loss(model, params, batch), total

    def train(shared, own, carry, batch):
        params, found, total = carry
        loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
        return descend(params, gradient, learning_rate), found, total + loss

    def finish(shared, own, state, carry, done: Done):
        params, found, total = carry
        some = done.count > 0
        loss = found / jnp.maximum(done.count, 1).astype(jnp.float32)
        changed = model.ravel(difference(shared["params"], params))
        value = send(shared, own, Looked(changed, loss, some))
        return ClientResult(
            jnp.where(some, value, 0), metrics={"loss": mean_over_steps(total, done.steps[1])})

    phases = (Phase(look, partial=False), Phase(train, local_epochs))
    return ClientWork(name, model.dim + extra, start, phases, finish)
