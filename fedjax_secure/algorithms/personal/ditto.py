"""Ditto: a personal model for each client, held near the global one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...core import Cohort
from ...training import (
    ClientResult,
    ClientWork,
    Phase,
    descend,
    difference,
    mean_loss,
    mean_over_steps,
)
from ..algorithm import (
    Algorithm,
    Model,
    Params,
    check_number,
    example_weights,
    only_params,
    server_optimizer,
)
from ..fed_avg import check_local


def ditto(
    learning_rate: float,
    *,
    lam: float = 0.1,
    personal_learning_rate: float | None = None,
    local_epochs: int = 1,
    personal_epochs: int | None = None,
    batch_size: int = 32,
    server: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg, and beside it a personal model v of each client: loss(v) + lam/2 ||v - w||^2.

    w is the global model that the client received. A large ``lam`` gives everyone nearly the
    global model, 0 gives everyone a model of its own. Clients of unlike data gain accuracy, and
    one client's bad update harms others' personal models less.

    Guarantees:
        The personal models never leave the clients and change nothing in what is sent: the global
        model is FedAvg's.

    Assumes:
        Clients send the change of the global model, times their weight. With ``weighted``, counts
        are used in the clear. A client that has never taken part has the first global model as its
        personal one.

    Args:
        learning_rate: of the clients' SGD on the global model.
        lam: strength of the pull towards the global model, 0 or more.
        personal_learning_rate: of the SGD on the personal model; None takes ``learning_rate``.
        local_epochs: passes over a client's examples each round, for the global model.
        personal_epochs: the same for the personal model; None takes ``local_epochs``.
        batch_size: examples a step.
        server, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`; clients keep ``[dim]``, their personal model. Metrics: ``loss`` of
        the global model's local training, ``personal_loss`` without the pull.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> ditto(0.1, lam=1.0).personal is None
        False

    Source:
        Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
        algorithm 1.
    """
    personal_rate = learning_rate if personal_learning_rate is None else personal_learning_rate
    personal_passes = local_epochs if personal_epochs is None else personal_epochs
    check_local("ditto", learning_rate, local_epochs, batch_size)
    check_local("ditto", personal_rate, personal_passes, batch_size)
    check_number("ditto", least=0, lam=lam)

    def work(model, aggregation):
        def start(shared, own, state):
            return shared["params"], model.unravel(state), jnp.float32(0), jnp.float32(0)

        def step(shared, own, carry, batch):
            params, personal, total, personal_total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            params = descend(params, gradient, learning_rate)
            return params, personal, total + loss, personal_total

        def personal_step(shared, own, carry, batch):
            params, personal, total, personal_total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(personal)
            personal = jax.tree.map(
                lambda v, g, w: v - personal_rate * (g + lam * (v - w)),
                personal, gradient, shared["params"])
            return params, personal, total, personal_total + loss

        def finish(shared, own, state, carry, done):
            params, personal, total, personal_total = carry
            metrics = {"loss": mean_over_steps(total, done.steps[0]),
                       "personal_loss": mean_over_steps(personal_total, done.steps[1])}
            value = difference(shared["params"], params, own["weight"])
            return ClientResult(value, personal, metrics)

        phases = (Phase(step, local_epochs), Phase(personal_step, personal_passes))
        return ClientWork("ditto", model.dim, start, phases, finish, model.dim)

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    def client_state(model: Model, params: Params) -> np.ndarray:
        return np.asarray(model.ravel(params))

    def personal(model: Model, params: Params, state: jax.Array) -> Params:
        return model.unravel(state)

    init, step = server_optimizer(optax.sgd(1.0) if server is None else server)
    settings = f"{learning_rate=}, {lam=}, {personal_rate=}, {local_epochs=}, {personal_passes=}, "
    settings += f"{batch_size=}, {weighted=}"
    return Algorithm("ditto", settings, batch_size, work, init, only_params, step, own,
                     client_state=client_state, personal=personal)
