"""FedNova: updates divided by how many steps they took."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Cohort
from ..training import ClientResult, ClientWork, Phase, difference, mean_loss, mean_over_steps
from .algorithm import Algorithm, Model, Params, check_number, example_weights, only_params
from .fed_avg import check_local


def fed_nova(
    learning_rate: float,
    *,
    momentum: float = 0.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    typical_steps: float = 1.0,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg without its bias towards clients that take more steps.

    Where clients take unequal numbers of steps (unequal data, or devices that complete a share),
    FedAvg ends at the optimum of another objective, in which those with more steps count more.
    Here each client sends its change divided by its own number of (effective) steps, and the
    server multiplies the mean of these by the mean number of steps.

    Assumes:
        Clients send [change / a, a] times their weight: ``[dim + 1]``, where a is the normaliser,
        the number of steps if there is no momentum. The vector is clipped as a whole. The server
        multiplies two sums over the public denominator: a round in which not as many take part as
        expected moves the model by the square of their ratio. With ``weighted``, counts are used
        in the clear.

    Args:
        learning_rate: of the clients' SGD.
        momentum: heavy-ball momentum of the clients, anew each round; from 0 up to below 1.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        typical_steps: a public guess of a client's steps a round. The change is sent times this,
            and a divided by it, so that the two are of like size where the chain clips or rounds;
            without either it changes nothing.
        weighted: weigh each client by its share of the round's examples.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_nova(0.1, typical_steps=20).name
        'fed_nova'

    Source:
        Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
        Optimization", FedNova with tau_eff the mean of the clients' normalisers.
    """
    check_local("fed_nova", learning_rate, local_epochs, batch_size)
    check_number("fed_nova", least=0, below=1, momentum=momentum)
    check_number("fed_nova", above=0, typical_steps=typical_steps)

    def work(model, aggregation):
        def start(shared, own, state):
            params = shared["params"]
            buffer = jax.tree.map(jnp.zeros_like, params) if momentum else ()
            return params, buffer, jnp.float32(0)

        def step(shared, own, carry, batch):
            params, buffer, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            if momentum:
                gradient = buffer = jax.tree.map(lambda b, g: momentum * b + g, buffer, gradient)
            params = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)
            return params, buffer, total + loss

        def finish(shared, own, state, carry, done):
            params, _, total = carry
            steps = done.steps[0].astype(jnp.float32)
            # Step j of t moves the model by (1 - rho^(t - j + 1)) / (1 - rho) times its gradient;
            # the normaliser is the sum of these.
            lag = momentum * (1 - momentum**steps) / (1 - momentum)
            normaliser = (steps - lag) / (1 - momentum) / typical_steps
            per_step = jnp.where(steps > 0, own["weight"] / jnp.maximum(normaliser, 1e-30), 0)
            return ClientResult(
                (difference(shared["params"], params, per_step), normaliser * own["weight"]),
                metrics={"loss": mean_over_steps(total, done.steps[0])})

        return ClientWork(
            "fed_nova", model.dim + 1, start, (Phase(step, local_epochs),), finish)

    def init(model: Model, params: Params) -> Any:
        return ()

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        moved = model.unravel(mean[: model.dim] * mean[model.dim])
        return jax.tree.map(jnp.add, params, moved), state

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    settings = f"{learning_rate=}, {momentum=}, {local_epochs=}, {batch_size=}, "
    settings += f"{typical_steps=}, {weighted=}"
    return Algorithm("fed_nova", settings, batch_size, work, init, only_params, step, own)
