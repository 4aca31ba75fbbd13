"""q-FedAvg: clients with larger losses count more, by a power of the loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Cohort
from ..algorithm import Algorithm, Model, Params, check_number, example_weights, only_params
from ..fed_avg import check_local
from .loss_first import Looked, look_then_train

_TINY = 1e-10  # a loss of zero has no power below 0


def q_fed_avg(
    learning_rate: float,
    *,
    q: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    weighted: bool = True,
) -> Algorithm:
    """Federated averaging of the losses' (q + 1)-th powers: more even, the larger q is.

    The objective is the sum of p_k F_k^(q+1) / (q + 1). Each client multiplies its change by its
    loss at the global model to the power q, and sends an estimate of how far a step may go; the
    server divides one sum by the other, so that no learning rate has to be tuned for each q.

    Assumes:
        Clients send [F^q change, h], ``[dim + 1]``, times their weight, clipped as a whole, where
        h = F^q + q F^(q-1) ||change||^2 / learning_rate: the paper's vectors times the learning
        rate, so that q = 0 is FedAvg with h = 1. With ``weighted`` the counts are used in the
        clear. Where noise makes the sum of h negative, the model stays.

    Args:
        learning_rate: of the clients' SGD; its inverse stands for the Lipschitz constant L.
        q: how much fairness: 0 or more; 0 is FedAvg.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        weighted: p_k in proportion to examples; else every client counts the same.

    Returns:
        An :class:`Algorithm`. A client looks at all of its examples once before it trains.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> q_fed_avg(0.1, q=2.0).name
        'q_fed_avg'

    Source:
        Li, Sanjabi, Beirami, Smith 2020, "Fair Resource Allocation in Federated Learning",
        algorithm 2 (q-FedAvg).
    """
    check_local("q_fed_avg", learning_rate, local_epochs, batch_size)
    check_number("q_fed_avg", least=0, q=q)

    def send(shared, own, looked: Looked) -> jax.Array:
        loss = looked.loss + jnp.float32(_TINY)
        size = jnp.sum(jnp.square(looked.changed)) / learning_rate
        power = loss ** jnp.float32(q)
        h = power + q * loss ** jnp.float32(q - 1) * size
        return jnp.append(power * looked.changed, h) * own["weight"]

    def work(model, aggregation):
        return look_then_train(model, "q_fed_avg", 1, send, learning_rate=learning_rate,
                               local_epochs=local_epochs)

    def init(model: Model, params: Params) -> Any:
        return ()

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        h = mean[model.dim]
        moved = jnp.where(h > 0, mean[: model.dim] / jnp.where(h > 0, h, 1), 0)
        return jax.tree.map(jnp.add, params, model.unravel(moved)), state

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    settings = f"{learning_rate=}, {q=}, {local_epochs=}, {batch_size=}, {weighted=}"
    return Algorithm("q_fed_avg", settings, batch_size, work, init, only_params, step, own)
