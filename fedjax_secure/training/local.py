"""What one client computes: local SGD, and sums over its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fedjax_secure.core.finite import all_finite
from fedjax_secure.training.contracts import (
    Batch,
    ClientResult,
    ClientWork,
    Params,
    Phase,
    TrainableModel,
)
from fedjax_secure.training.ghost.clipped import gradient_of_one, norms_of


def mean_loss(model: TrainableModel, params: Params, batch: Batch) -> jax.Array:
    """The mean loss of a batch's records; unused places count for nothing.

    Args:
        model: the model.
        params: its parameters.
        batch: as a step of `ClientWork` gets it.

    Returns:
        A float32 scalar.
    """
    losses = model.loss(params, batch.x, batch.y)
    weights = batch.valid.astype(losses.dtype)
    return jnp.sum(jnp.where(batch.valid, losses, 0)) / jnp.maximum(jnp.sum(weights), 1)


def sum_loss(model: TrainableModel, params: Params, batch: Batch) -> jax.Array:
    """The summed loss of a batch's records; unused places count for nothing."""
    losses = model.loss(params, batch.x, batch.y)
    return jnp.sum(jnp.where(batch.valid, losses, 0))


def local_sgd(
    model: TrainableModel,
    *,
    passes: int = 1,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
    name: str = "local_sgd",
) -> ClientWork:
    """Local SGD: a client trains from ``shared["params"]`` and sends what changed.

    Args:
        model: what is trained.
        passes: over the client's records.
        learning_rate: of plain SGD; None takes ``shared["learning_rate"]``.
        optimizer: instead of it, any optax transform; its state starts anew at every client.
        name: under which the engine counts traces.

    Returns:
        Work that sends ``[dim]``: parameters after less parameters before, times
        ``own["weight"]``. Its metric ``loss`` is the mean over the steps of the batch's loss
        before the step.

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", algorithm 1 (ClientUpdate).
    """

    def start(shared, own, state):
        params = shared["params"]
        return params, () if optimizer is None else optimizer.init(params), jnp.float32(0)

    def step(shared, own, carry, batch):
        params, state, total = carry
        loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
        if optimizer is None:
            rate = shared["learning_rate"] if learning_rate is None else learning_rate
            params = descend(params, gradient, rate)
        else:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params, state, total + loss

    def finish(shared, own, state, carry, done):
        params, _, total = carry
        return ClientResult(
            difference(shared["params"], params, own["weight"]),
            metrics={"loss": mean_over_steps(total, done.steps[0])},
        )

    return ClientWork(name, model.dim, start, (Phase(step, passes),), finish)


def descend(params: Params, gradient: Params, rate: Any) -> Params:
    """One step of plain gradient descent."""
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def difference(before: Params, after: Params, weight: Any = 1.0) -> Params:
    """The parameters after less those before, times a weight: a pytree, as `ClientResult` takes."""
    return jax.tree.map(lambda a, b: (a - b) * weight, after, before)


def mean_over_steps(total: jax.Array, steps: jax.Array) -> jax.Array:
    """A total over steps, divided by their number; NaN where there was none."""
    counted = total / jnp.maximum(steps, 1).astype(jnp.float32)
    return jnp.where(steps > 0, counted, jnp.float32(np.nan))


def record_sums(
    model: TrainableModel,
    encode_record: Callable[..., jax.Array],
    out_dtype: Any = jnp.int32,
    *,
    with_states: bool = False,
    width: int | None = None,
    with_record_bounds: bool = False,
) -> ClientWork:
    """Each record's gradient at ``shared["params"]``, encoded by itself and summed.

    This is the client's half of differentially private SGD: each record's own gradient is clipped
    and rounded to integers before anything is summed, so that one record can move the sum by no
    more than its bound.

    Args:
        model: the model.
        encode_record: ``(key [8] uint32, slot uint32, gradient [dim] float32) -> [dim]``, after
            ``shared["states"]`` if ``with_states``.
        out_dtype: what it returns.
        with_states: whether it takes states.
        width: how many values it returns; None for ``dim``.
        with_record_bounds: a record's gradient is first scaled down to an L2 norm of
            ``shared["record_bounds"][row]`` where it is longer: ``[num_records] float32``, by row
            number in the dataset. Float32 may leave it longer by a relative 1e-5; what
            ``encode_record`` checks on the integers stays as it is.

    Returns:
        Work that sends ``[width]`` of ``out_dtype``; ``own["key"]`` is each client's key.

    Source:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1.
    """

    width = model.dim if width is None else width

    def start(shared, own, state):
        return jnp.zeros(width, out_dtype), jnp.int32(0)

    def step(shared, own, carry, batch):
        # One record by itself: in a batch, the last bit of a gradient depends on the place in the
        # batch, and so on which other records were drawn.
        total, bad = carry
        gradient = model.ravel(gradient_of_one(model, shared["params"], batch.x, batch.y))
        gradient = lax.optimization_barrier(gradient)  # else XLA makes it anew for each use
        finite = jnp.all(jnp.isfinite(gradient))
        gradient = jnp.where(finite, gradient, jnp.float32(0))
        if with_record_bounds:
            (norm,) = norms_of(gradient[None])
            bound = jnp.maximum(shared["record_bounds"][batch.rows[0]], 0)
            gradient = gradient * jnp.minimum(1, bound / jnp.maximum(norm, jnp.float32(1e-30)))
        head = (shared["states"],) if with_states else ()
        encoded = encode_record(*head, own["key"], batch.first.astype(jnp.uint32), gradient)
        total = total + jnp.where(finite, encoded, jnp.zeros_like(encoded))
        return total, bad + (~finite).astype(jnp.int32)

    def finish(shared, own, state, carry, done):
        total, bad = carry
        overflow = ~all_finite(total) & (bad == 0)  # finite records whose sum is not
        return ClientResult(total, nonfinite=bad + overflow.astype(jnp.int32))

    phases = (Phase(step, partial=False),)
    return ClientWork("record_sums", width, start, phases, finish, batch_size=1)


def local_loss(model: TrainableModel) -> ClientWork:
    """The mean loss of ``shared["params"]`` over each client's drawn records.

    Returns:
        Work that sends ``[1]``, the mean loss; NaN without records.
    """

    def step(shared, own, carry, batch):
        return carry + sum_loss(model, shared["params"], batch)

    def finish(shared, own, state, carry, done):
        return ClientResult(mean_over_steps(carry, done.count)[None], nonfinite=jnp.int32(0))

    return ClientWork(
        "local_loss", 1, lambda shared, own, state: jnp.float32(0), (Phase(step),), finish
    )
