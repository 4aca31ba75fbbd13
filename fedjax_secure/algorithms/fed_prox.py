"""FedProx: local training that is held near the global model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Cohort
from ..training import ClientResult, ClientWork, Phase, difference, mean_loss, mean_over_steps
from .algorithm import Algorithm, check_number, example_weights, only_params, server_optimizer
from .fed_avg import check_local


def fed_prox(
    learning_rate: float,
    *,
    mu: float,
    local_epochs: int = 1,
    batch_size: int = 32,
    server: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg with a proximal term: each client minimises its loss + mu/2 ||w - w_global||^2.

    The term holds clients near the global model where their data differ, and makes clients that
    complete unequal shares of their work (``Cohort.share``: slow devices) safe to average. A
    client that completes a share executes that share of its steps, rounded up, and sends what it
    has.

    Assumes:
        Clients send the change of their model, times their weight. With ``weighted``, their counts
        are used in the clear.

    Args:
        learning_rate: of the clients' SGD.
        mu: strength of the proximal term, 0 or more; 0 is FedAvg.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        server: as in `fed_avg`.
        weighted: weigh each client by its share of the round's examples. The paper draws clients
            in proportion to their examples and weighs them equally.

    Returns:
        An :class:`Algorithm`. Its metric ``loss`` is without the proximal term.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_prox(0.1, mu=0.01, local_epochs=5).name
        'fed_prox'

    Source:
        Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2.
    """
    check_local("fed_prox", learning_rate, local_epochs, batch_size)
    check_number("fed_prox", least=0, mu=mu)

    def work(model, aggregation):
        def start(shared, own, state):
            return shared["params"], jnp.float32(0)

        def step(shared, own, carry, batch):
            params, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            params = jax.tree.map(
                lambda p, g, x: p - learning_rate * (g + mu * (p - x)),
                params, gradient, shared["params"])
            return params, total + loss

        def finish(shared, own, state, carry, done):
            params, total = carry
            return ClientResult(
                difference(shared["params"], params, own["weight"]),
                metrics={"loss": mean_over_steps(total, done.steps[0])})

        return ClientWork("fed_prox", model.dim, start, (Phase(step, local_epochs),), finish)

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    init, step = server_optimizer(optax.sgd(1.0) if server is None else server)
    settings = f"{learning_rate=}, {mu=}, {local_epochs=}, {batch_size=}, {weighted=}"
    return Algorithm("fed_prox", settings, batch_size, work, init, only_params, step, own)
