"""MimeLite: clients step with the server's momentum or statistics, which stay fixed meanwhile."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Cohort, SpecError
from ..training import (
    ClientResult,
    ClientWork,
    Phase,
    difference,
    mean_loss,
    mean_over_steps,
    sum_loss,
)
from .algorithm import Algorithm, Model, Params, check_number, example_weights
from .fed_avg import check_local


def mime_lite(
    base: optax.GradientTransformation,
    *,
    server_learning_rate: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    weighted: bool = True,
) -> Algorithm:
    """An optimiser such as momentum or Adam, as if it ran on all data in one place.

    The optimiser's state belongs to the server. Clients use it in every local step and do not
    change it; the server renews it once a round by the gradient over all examples of the round's
    clients at the model they started from.

    Assumes:
        Clients send [change of the model, gradient over all their examples at the global model]
        times their weight: ``[2 * dim]``, which is clipped as a whole. The gradient costs each
        client one more pass. Both sums are over the public denominator. With ``weighted``, counts
        are used in the clear.

    Args:
        base: the optax optimiser to mimic, with its learning rate, e.g.
            ``optax.sgd(0.1, momentum=0.9)``.
        server_learning_rate: of the mean change; 1 adds it to the model, as in the paper.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        weighted: weigh each client by its share of the round's examples.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> mime_lite(optax.sgd(0.1, momentum=0.9)).name
        'mime_lite'

    Source:
        Karimireddy et al. 2020, "Mime: Mimicking Centralized Stochastic Algorithms in Federated
        Learning", MimeLite.
    """
    if not isinstance(base, optax.GradientTransformation):
        raise SpecError("mime_lite", need="an optax optimiser", found=repr(base),
                        fix="Start with optax.sgd(0.1, momentum=0.9).")
    check_local("mime_lite", 1.0, local_epochs, batch_size)
    check_number("mime_lite", above=0, server_learning_rate=server_learning_rate)

    def work(model, aggregation):
        def start(shared, own, state):
            params = shared["params"]
            return params, jax.tree.map(jnp.zeros_like, params), jnp.float32(0)

        def look(shared, own, carry, batch):
            params, sums, total = carry
            gradient = jax.grad(lambda p: sum_loss(model, p, batch))(shared["params"])
            return params, jax.tree.map(jnp.add, sums, gradient), total

        def step(shared, own, carry, batch):
            params, sums, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            updates, _ = base.update(gradient, shared["optimizer"], params)
            return optax.apply_updates(params, updates), sums, total + loss

        def finish(shared, own, state, carry, done):
            params, sums, total = carry
            share = own["weight"] / jnp.maximum(done.count, 1).astype(jnp.float32)
            gradient = jax.tree.map(lambda part: part * share, sums)
            return ClientResult((difference(shared["params"], params, own["weight"]), gradient),
                                metrics={"loss": mean_over_steps(total, done.steps[1])})

        phases = (Phase(look, partial=False), Phase(step, local_epochs))
        return ClientWork("mime_lite", 2 * model.dim, start, phases, finish)

    def init(model: Model, params: Params) -> Any:
        return base.init(params)

    def shared(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
        return {"params": params, "optimizer": server_state}

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        _, state = base.update(model.unravel(mean[model.dim :]), state, params)
        moved = model.unravel(server_learning_rate * mean[: model.dim])
        return jax.tree.map(jnp.add, params, moved), state

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    settings = f"{server_learning_rate=}, {local_epochs=}, {batch_size=}, {weighted=}"
    return Algorithm("mime_lite", settings, batch_size, work, init, shared, step, own)
