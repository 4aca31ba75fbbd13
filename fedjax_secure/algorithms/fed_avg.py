"""FedAvg: each client trains locally, and the server averages what changed."""

from __future__ import annotations

import numpy as np
import optax

from ..core import Cohort, SpecError
from ..training import local_sgd
from .algorithm import Algorithm, check_optimizer, example_weights, only_params, server_optimizer


def fed_avg(
    learning_rate: float,
    *,
    local_epochs: int = 1,
    batch_size: int = 32,
    server: optax.GradientTransformation | None = None,
    client: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """Local SGD on each client, then the mean of the changes.

    Args:
        learning_rate: of the clients' SGD.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        server: an optax optimiser that takes minus the mean change as a gradient; None adds the
            mean change to the model (learning rate 1), as the paper does.
        client: an optax optimiser for the clients instead of plain SGD; its state starts anew each
            round, and ``learning_rate`` then multiplies its updates.
        weighted: weigh each client by its share of the round's examples, so that the mean over
            clients is the mean over examples. The counts are then used in the clear.

    Returns:
        An :class:`Algorithm`. It cannot be combined with records clipped one by one.

    Raises:
        SpecError: a learning rate, number of epochs or batch size that makes no sense, or no optax
            optimiser where one is asked.

    Example:
        >>> fed_avg(0.1, local_epochs=2).one_step
        False

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", Algorithm 1 (FederatedAveraging).
    """
    check_local("fed_avg", learning_rate, local_epochs, batch_size)
    if client is not None:
        check_optimizer("fed_avg's client", client)
    optimizer = None if client is None else optax.chain(client, optax.scale(learning_rate))

    def work(model, aggregation):
        return local_sgd(
            model, passes=local_epochs, optimizer=optimizer,
            learning_rate=learning_rate if optimizer is None else None)

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    init, step = server_optimizer(optax.sgd(1.0) if server is None else server)
    settings = f"{learning_rate=}, {local_epochs=}, {batch_size=}, {weighted=}"
    if client is not None:
        settings += ", client optimiser"
    return Algorithm("fed_avg", settings, batch_size, work, init, only_params, step, own)


def check_local(name: str, learning_rate: float, local_epochs: int, batch_size: int) -> None:
    """Refuse settings of local training that make no sense.

    Raises:
        SpecError: a learning rate that is not positive and finite, or numbers of epochs or records
            that are not whole and positive.
    """
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
                for value in (local_epochs, batch_size))
    rate = isinstance(learning_rate, int | float | np.number) and np.isfinite(learning_rate)
    rate = rate and not isinstance(learning_rate, bool)
    if not (whole and rate and learning_rate > 0):
        raise SpecError(name, need="learning_rate > 0, local_epochs >= 1, batch_size >= 1",
                        found=f"{learning_rate=}, {local_epochs=}, {batch_size=}",
                        fix=f"Start with {name}(0.1).")
