"""FedAsync: each arriving model is mixed into the server's, the less the older it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Cohort
from ...training import ClientResult, ClientWork, Phase, difference, mean_loss, mean_over_steps
from ..algorithm import Algorithm, Model, Params, check_number
from ..fed_avg import check_local
from .staleness import (
    Kind,
    check_staleness,
    check_versions,
    first_versions,
    next_versions,
    stale_numbers,
    version,
    with_past,
)


def fed_async(
    learning_rate: float,
    *,
    mixing: float = 0.6,
    rho: float = 0.005,
    local_epochs: int = 1,
    batch_size: int = 32,
    staleness: Kind = "polynomial",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: int = 20,
) -> Algorithm:
    """Fully asynchronous training: the server steps at every arrival.

    A client trains from the model it got, held near it by a proximal term, and the server mixes
    what arrives into its own: x <- (1 - alpha_t) x + alpha_t x_client, where alpha_t is ``mixing``
    times a weight that falls with the age of the client's model.

    Use it with `fedjax_secure.selection.arrivals` and a buffer of one. With more clients in a round
    the server mixes in the mean of theirs.

    Args:
        learning_rate: of the clients' SGD.
        mixing: alpha, above 0 and up to 1.
        rho: strength of the proximal term rho/2 ||x - x_start||^2, 0 or more.
        local_epochs: passes over a client's examples.
        batch_size: examples a step.
        staleness, a, b: the kind of weights by age and their numbers, see `staleness_weights`.
        max_staleness: the server keeps so many past models; an arrival from an older one is
            dropped: the model stays as it is.

    Returns:
        An :class:`Algorithm`; one compiled program serves models of every age.

    Assumes:
        A client's value is its model less the server's present one, times alpha_t. Outside a
        simulation a client sends its change, and the server adds the distance between the version
        that it gave out and its present one, which it knows. Clipping is of that whole difference.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_async(0.1, mixing=0.6, staleness="hinge", a=10.0, b=4.0).name
        'fed_async'

    Source:
        Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization", algorithm 1 (FedAsync), and
        section 5.2 for the weights by age.
    """
    check_local("fed_async", learning_rate, local_epochs, batch_size)
    check_number("fed_async", above=0, most=1, mixing=mixing)
    check_number("fed_async", least=0, rho=rho)
    check_staleness("fed_async", staleness, a, b)
    check_versions("fed_async", max_staleness)

    def work(model, aggregation):
        def start(shared, own, state):
            params = version(model, shared, own)
            return params, params, jnp.float32(0)

        def step(shared, own, carry, batch):
            first, params, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            params = jax.tree.map(
                lambda p, g, x: p - learning_rate * (g + rho * (p - x)),
                params, gradient, first)
            return first, params, total + loss

        def finish(shared, own, state, carry, done):
            _, params, total = carry
            apart = difference(shared["params"], params, own["weight"])
            # without examples nothing was learned: such a client does not pull the model back
            counts = (own["weight"] > 0) & (done.count > 0)
            return ClientResult(jax.tree.map(lambda part: jnp.where(counts, part, 0), apart),
                                metrics={"loss": mean_over_steps(total, done.steps[0])})

        return ClientWork("fed_async", model.dim, start, (Phase(step, local_epochs),), finish)

    def init(model: Model, params: Params) -> Any:
        return {"past": first_versions(model, params, max_staleness)}

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        moved = jax.tree.map(jnp.add, params, model.unravel(mean))
        return moved, {"past": next_versions(model, params, state["past"])}

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        numbers = stale_numbers(cohort, max_staleness, staleness, a, b, weighted=False)
        return {**numbers, "weight": numbers["weight"] * np.float32(mixing)}

    settings = (f"{learning_rate=}, {mixing=}, {rho=}, {local_epochs=}, {batch_size=}, "
                f"{staleness=}, {a=}, {b=}, {max_staleness=}")
    return Algorithm("fed_async", settings, batch_size, work, init, with_past, step, own,
                     stale_versions=max_staleness)
