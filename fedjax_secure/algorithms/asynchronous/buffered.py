"""FedBuff: the server steps when its buffer is full, however old the updates' models are."""

from __future__ import annotations

from typing import Any

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
from ..algorithm import Algorithm, Model, Params, check_number, check_optimizer
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


def fed_buff(
    learning_rate: float,
    *,
    server_learning_rate: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    staleness: Kind = "polynomial",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: int = 20,
    server: optax.GradientTransformation | None = None,
    weighted: bool = False,
) -> Algorithm:
    """Buffered asynchronous training: no client waits for another, and sums stay sums.

    Each client trains from the model that was newest when it began, and its change is added to a
    buffer. When as many changes as the buffer holds have come, the server steps by their mean,
    each multiplied by a weight that falls with its age. As only sums leave the buffer, clipping,
    noise and encryption work as in synchronous rounds.

    Use it with `fedjax_secure.selection.arrivals`, which simulates who arrives when. With another
    selection every model is fresh, and this is FedAvg.

    Args:
        learning_rate: of the clients' SGD.
        server_learning_rate: of the server's step (the paper's global learning rate).
        local_epochs: passes over a client's examples.
        batch_size: examples a step.
        staleness, a, b: the kind of weights by age and their numbers, see `staleness_weights`; the
            paper's 1 / sqrt(1 + staleness) by default.
        max_staleness: the server keeps so many past models, ``[max_staleness, dim]``. An update
            from an older model is dropped: it takes a place in the buffer and counts as zero.
        server: an optax optimiser that takes minus the mean change as a gradient, instead of plain
            steps; ``server_learning_rate`` then multiplies the changes.
        weighted: also weigh each client by its share of the buffer's examples, whose counts are
            then used in the clear. The paper does not.

    Returns:
        An :class:`Algorithm`; one compiled program serves models of every age.

    Assumes:
        Clients send the change of their model, times its weight by age: the server tells them how
        old their model is when they arrive, which it knows.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_buff(0.1, max_staleness=10).stale_versions
        10

    Source:
        Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm
        1 (FedBuff), and its section on staleness scaling.
    """
    check_local("fed_buff", learning_rate, local_epochs, batch_size)
    check_number("fed_buff", above=0, server_learning_rate=server_learning_rate)
    check_staleness("fed_buff", staleness, a, b)
    check_versions("fed_buff", max_staleness)
    optimizer = optax.sgd(1.0) if server is None else server
    check_optimizer("fed_buff's server", optimizer)

    def work(model, aggregation):
        def start(shared, own, state):
            params = version(model, shared, own)
            return params, params, jnp.float32(0)

        def step(shared, own, carry, batch):
            first, params, total = carry
            loss, gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch))(params)
            return first, descend(params, gradient, learning_rate), total + loss

        def finish(shared, own, state, carry, done):
            first, params, total = carry
            changed = difference(first, params, own["weight"])
            return ClientResult(
                jax.tree.map(lambda part: jnp.where(own["weight"] > 0, part, 0), changed),
                metrics={"loss": mean_over_steps(total, done.steps[0])})

        return ClientWork("fed_buff", model.dim, start, (Phase(step, local_epochs),), finish)

    def init(model: Model, params: Params) -> Any:
        return {"past": first_versions(model, params, max_staleness),
                "server": optimizer.init(params)}

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        gradient = model.unravel(-server_learning_rate * mean)
        updates, kept = optimizer.update(gradient, state["server"], params)
        past = next_versions(model, params, state["past"])
        return optax.apply_updates(params, updates), {"past": past, "server": kept}

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return stale_numbers(cohort, max_staleness, staleness, a, b, weighted=weighted)

    settings = (f"{learning_rate=}, {server_learning_rate=}, {local_epochs=}, {batch_size=}, "
                f"{staleness=}, {a=}, {b=}, {max_staleness=}, {weighted=}")
    return Algorithm("fed_buff", settings, batch_size, work, init, with_past, step, own,
                     stale_versions=max_staleness)
