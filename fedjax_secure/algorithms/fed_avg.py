"""FedAvg: each client trains locally, and the server averages what changed."""

from __future__ import annotations

import numpy as np
import optax

from ..core import SpecError
from ..core.randomness import host_words
from .algorithm import Algorithm, Work


def fed_avg(
    learning_rate: float,
    *,
    local_epochs: int = 1,
    batch_size: int = 32,
    server: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """Local SGD on each client, then the mean of the changes.

    Args:
        learning_rate: of the clients' SGD.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        server: an optax optimiser that takes minus the mean change as a gradient; None adds the
            mean change to the model (learning rate 1), as the paper does.
        weighted: weigh each client by its share of the round's examples, so that the mean over
            clients is the mean over examples. The counts are then used in the clear.

    Returns:
        An :class:`Algorithm`. It cannot be combined with records clipped one by one.

    Raises:
        SpecError: a learning rate, number of epochs or batch size that makes no sense.

    Example:
        >>> fed_avg(0.1, local_epochs=2).one_step
        False

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", Algorithm 1 (FederatedAveraging).
    """
    if not learning_rate > 0 or local_epochs < 1 or batch_size < 1:
        raise SpecError("fed_avg", need="learning_rate > 0, local_epochs >= 1, batch_size >= 1",
                        found=f"{learning_rate=}, {local_epochs=}, {batch_size=}",
                        fix="Start with fed_avg(0.1).")

    def local(engine, params, cohort, keys, aggregation, states, source, into) -> Work:
        # Only the orders of the sink's clients are drawn; the engine ignores the others.
        epochs = [first[:0] for first in cohort.indices]
        for place in into.clients:
            first = cohort.indices[place]
            orders = [first]
            for epoch in range(1, local_epochs):
                key = source.key(f"order {epoch}", round=cohort.round,
                                 client=cohort.clients[place])
                orders.append(first[np.argsort(host_words(key, len(first)), kind="stable")])
            epochs[place] = np.stack(orders)
        weights = None
        if weighted:
            counts = np.array([len(rows) for rows in cohort.indices], np.float64)
            weights = counts * len(counts) / max(counts.sum(), 1.0)
        trained = engine.local_sgd(params, epochs, learning_rate=learning_rate, weights=weights,
                                   into=into)
        return Work(trained.values, np.asarray(trained.nonfinite))

    settings = f"{learning_rate=}, {local_epochs=}, {batch_size=}, {weighted=}"
    return Algorithm("fed_avg", server or optax.sgd(1.0), -1.0, False, batch_size, settings, local)
