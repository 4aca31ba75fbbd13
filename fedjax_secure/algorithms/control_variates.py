"""Algorithms that correct client drift by what each client keeps: SCAFFOLD and FedDyn."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

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


def scaffold(
    learning_rate: float,
    *,
    server_learning_rate: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    option: Literal[1, 2] = 2,
) -> Algorithm:
    """Local SGD whose every step is corrected by how this client's gradient differs from all.

    Where clients' data differ, several local steps draw each client towards its own optimum, and
    FedAvg ends up at none of use. Each client keeps a control variate, an estimate of its own
    gradient; the server keeps their mean over the whole population; every local step subtracts the
    one and adds the other.

    Guarantees:
        The server's control variate is the mean of all clients' (of N, not of those who took
        part), whoever takes part and however many: each round adds their summed changes over N.
        With clipping, noise or lost messages it is so up to what these change.

    Assumes:
        Clients send [change of the model, change of the control variate]: ``[2 * dim]``, which is
        clipped as a whole. Every client counts the same, as in the paper: no counts are used.
        The model moves by the summed changes over the public denominator.

    Args:
        learning_rate: of the clients' SGD.
        server_learning_rate: of the mean change; 1 adds it to the model.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        option: how a client renews its control variate: 2, the mean gradient of its local steps,
            which costs nothing more; 1, the gradient over all its examples at the global model,
            which costs one more pass and is steadier.

    Returns:
        An :class:`Algorithm`; clients keep ``[dim]``, zeros before their first round.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> scaffold(0.05, local_epochs=5).name
        'scaffold'

    Source:
        Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated
        Learning", algorithm 1.
    """
    check_local("scaffold", learning_rate, local_epochs, batch_size)
    check_number("scaffold", above=0, server_learning_rate=server_learning_rate)
    if option not in (1, 2):
        raise SpecError("scaffold", need="option 1 or 2", found=repr(option), fix="Leave it out.")

    def work(model, aggregation):
        def start(shared, own, state):
            correction = model.unravel(shared["control"] - state)
            sums = jax.tree.map(jnp.zeros_like, correction) if option == 1 else ()
            return shared["params"], correction, sums, jnp.float32(0)

        def look(shared, own, carry, batch):
            params, correction, sums, total = carry
            gradient = jax.grad(lambda p: sum_loss(model, p, batch))(shared["params"])
            return params, correction, jax.tree.map(jnp.add, sums, gradient), total

        def step(shared, own, carry, batch):
            params, correction, sums, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            params = jax.tree.map(
                lambda p, g, c: p - learning_rate * (g + c), params, gradient, correction)
            return params, correction, sums, total + loss

        def finish(shared, own, state, carry, done):
            params, correction, sums, total = carry
            kept, steps = model.unravel(state), done.steps[-1]
            if option == 1:
                count = jnp.maximum(done.count, 1).astype(jnp.float32)
                renewed = jax.tree.map(lambda part: part / count, sums)
            else:
                taken = learning_rate * jnp.maximum(steps, 1).astype(jnp.float32)
                renewed = jax.tree.map(
                    lambda x, p, c: (x - p) / taken - c, shared["params"], params, correction)
            renewed = jax.tree.map(lambda new, old: jnp.where(steps > 0, new, old), renewed, kept)
            value = difference(shared["params"], params, own["weight"]), difference(kept, renewed)
            return ClientResult(value, renewed, {"loss": mean_over_steps(total, steps)})

        phases = (Phase(step, local_epochs),)
        if option == 1:
            phases = (Phase(look, partial=False), *phases)
        return ClientWork("scaffold", 2 * model.dim, start, phases, finish, model.dim)

    def shared(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
        return {"params": params, "control": server_state["control"]}

    def bound(share: float | None) -> Algorithm:
        def init(model: Model, params: Params) -> Any:
            _require_share("scaffold", share)
            return {"control": jnp.zeros(model.dim, jnp.float32)}

        def step(model: Model, params: Params, state: Any, mean: jax.Array):
            moved, renewed = mean[: model.dim], mean[model.dim :]
            params = _added(params, model.unravel(server_learning_rate * moved))
            return params, {"control": state["control"] + share * renewed}

        return Algorithm("scaffold", settings, batch_size, work, init, shared, step, _same_weights,
                         client_state=_zeros, bind=lambda n, denominator: bound(denominator / n))

    settings = f"{learning_rate=}, {server_learning_rate=}, {local_epochs=}, {batch_size=}, "
    settings += f"{option=}"
    return bound(None)


def fed_dyn(
    learning_rate: float,
    *,
    alpha: float = 0.1,
    local_epochs: int = 1,
    batch_size: int = 32,
) -> Algorithm:
    """Local losses with a linear and a quadratic term whose sums share the global optimum.

    A client's loss L_k becomes L_k(w) - <g_k, w> + alpha/2 ||w - w_global||^2, where g_k is what it
    keeps: the gradient at its own last model. Once all clients agree, these terms leave the global
    optimum where it is. Clients send one vector only.

    Guarantees:
        The server's h is -alpha times the mean over the whole population (of N) of all changes
        that clients ever sent, whoever takes part: each round adds their sum over N. With
        clipping, noise or lost messages it is so up to what these change, and where clients are
        drawn with unequal probabilities in expectation.

    Assumes:
        Clients send the change of their model. Every client counts the same, as in the paper: no
        counts are used. The paper solves each local problem exactly; here it is ``local_epochs``
        of SGD, so let them be several. ``learning_rate * alpha`` should be well below 1.

    Args:
        learning_rate: of the clients' SGD.
        alpha: strength of the quadratic term, above 0.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.

    Returns:
        An :class:`Algorithm`; clients keep ``[dim]``, zeros before their first round. Its metric
        ``loss`` is without the added terms.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_dyn(0.05, alpha=0.1, local_epochs=5).name
        'fed_dyn'

    Source:
        Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", algorithm 1.
    """
    check_local("fed_dyn", learning_rate, local_epochs, batch_size)
    check_number("fed_dyn", above=0, alpha=alpha)

    def work(model, aggregation):
        def start(shared, own, state):
            return shared["params"], model.unravel(state), jnp.float32(0)

        def step(shared, own, carry, batch):
            params, kept, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            params = jax.tree.map(
                lambda p, g, k, x: p - learning_rate * (g - k + alpha * (p - x)),
                params, gradient, kept, shared["params"])
            return params, kept, total + loss

        def finish(shared, own, state, carry, done):
            params, kept, total = carry
            renewed = jax.tree.map(
                lambda k, p, x: k - alpha * (p - x), kept, params, shared["params"])
            return ClientResult(difference(shared["params"], params, own["weight"]), renewed,
                                {"loss": mean_over_steps(total, done.steps[0])})

        return ClientWork(
            "fed_dyn", model.dim, start, (Phase(step, local_epochs),), finish, model.dim)

    def shared(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
        return {"params": params}

    def bound(share: float | None) -> Algorithm:
        def init(model: Model, params: Params) -> Any:
            _require_share("fed_dyn", share)
            return {"h": jnp.zeros(model.dim, jnp.float32)}

        def step(model: Model, params: Params, state: Any, mean: jax.Array):
            h = state["h"] - alpha * share * mean
            return _added(params, model.unravel(mean - h / alpha)), {"h": h}

        return Algorithm("fed_dyn", settings, batch_size, work, init, shared, step, _same_weights,
                         client_state=_zeros, bind=lambda n, denominator: bound(denominator / n))

    settings = f"{learning_rate=}, {alpha=}, {local_epochs=}, {batch_size=}"
    return bound(None)


def _require_share(name: str, share: float | None) -> None:
    """Refuses to start without the expected share of the population that takes part in a round."""
    if share is None:
        raise SpecError(
            name, need="the number of clients of its federation, over which its state is a mean",
            found="none", fix="Run algorithm.for_federation(num_clients, denominator), as "
            "fs.Simulation and fs.Federation do.")


def _added(params: Params, moved: Params) -> Params:
    return jax.tree.map(jnp.add, params, moved)


def _zeros(model: Model, params: Params) -> np.ndarray:
    return np.zeros(model.dim, np.float32)


def _same_weights(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
    return {"weight": example_weights(cohort, weighted=False)}
