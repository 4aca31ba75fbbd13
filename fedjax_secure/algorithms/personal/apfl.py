"""APFL: each client mixes a model of its own with the global one."""

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


def apfl(
    learning_rate: float,
    *,
    alpha: float = 0.5,
    adaptive: bool = False,
    local_epochs: int = 1,
    batch_size: int = 32,
    server: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg, and beside it a personal model of each client: alpha v + (1 - alpha) w.

    w is the (local copy of the) global model and v a model of the client's own, trained so that
    the mixture does well on the client's examples. With ``adaptive``, each client also learns its
    alpha: those whose data are like everyone's rely on w.

    Guarantees:
        v and alpha never leave the clients and change nothing in what is sent: the global model is
        FedAvg's.

    Assumes:
        Clients send the change of the global model, times their weight. With ``weighted``, counts
        are used in the clear. A client that has never taken part has the first global model as v.

    Args:
        learning_rate: of the clients' SGD on w, on v, and on alpha if it is adaptive.
        alpha: share of v in the mixture, from 0 to 1; where every client's begins if adaptive.
        adaptive: each step also moves the client's alpha along its own gradient, within [0, 1].
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        server, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`; clients keep ``[dim + 1]``: v and alpha. Metrics: ``loss`` of w's
        local training and ``personal_loss`` of the mixture's. A client's personal model mixes its
        v with the latest global model.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> apfl(0.1, alpha=0.25, adaptive=True).name
        'apfl'

    Source:
        Deng, Kamani, Mahdavi 2020, "Adaptive Personalized Federated Learning", algorithm 1; the
        gradient in v is alpha times the gradient at the mixture (chain rule).
    """
    check_local("apfl", learning_rate, local_epochs, batch_size)
    check_number("apfl", least=0, most=1, alpha=alpha)

    def mixed(a, v, w):
        return jax.tree.map(lambda v, w: a * v + (1 - a) * w, v, w)

    def work(model, aggregation):
        def start(shared, own, state):
            zero = jnp.float32(0)
            return shared["params"], model.unravel(state[:-1]), state[-1], zero, zero

        def step(shared, own, carry, batch):
            params, own_params, a, total, mixed_total = carry

            def loss_of(p):
                return mean_loss(model, p, batch)

            loss, gradient = jax.value_and_grad(loss_of)(params)
            mixture_loss, at_mixture = jax.value_and_grad(loss_of)(mixed(a, own_params, params))
            moved = descend(own_params, at_mixture, learning_rate * a)
            if adaptive:
                slopes = jax.tree.map(
                    lambda v, w, g: jnp.sum((v - w) * g), own_params, params, at_mixture)
                slope = jax.tree.reduce(jnp.add, slopes)
                a = jnp.clip(a - learning_rate * slope, 0, 1)
            params = descend(params, gradient, learning_rate)
            return params, moved, a, total + loss, mixed_total + mixture_loss

        def finish(shared, own, state, carry, done):
            params, own_params, a, total, mixed_total = carry
            metrics = {"loss": mean_over_steps(total, done.steps[0]),
                       "personal_loss": mean_over_steps(mixed_total, done.steps[0])}
            value = difference(shared["params"], params, own["weight"])
            return ClientResult(value, (own_params, a), metrics)

        phases = (Phase(step, local_epochs),)
        return ClientWork("apfl", model.dim, start, phases, finish, model.dim + 1)

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    def client_state(model: Model, params: Params) -> np.ndarray:
        return np.append(np.asarray(model.ravel(params)), np.float32(alpha))

    def personal(model: Model, params: Params, state: jax.Array) -> Params:
        return mixed(state[-1], model.unravel(state[:-1]), params)

    init, step = server_optimizer(optax.sgd(1.0) if server is None else server)
    settings = f"{learning_rate=}, {alpha=}, {adaptive=}, {local_epochs=}, {batch_size=}, "
    settings += f"{weighted=}"
    return Algorithm("apfl", settings, batch_size, work, init, only_params, step, own,
                     client_state=client_state, personal=personal)
