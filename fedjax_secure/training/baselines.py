"""The two baselines of a federation: each client alone, and all records in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from fedjax_secure.core.errors import SpecError, UpdateError
from fedjax_secure.training.contracts import ClientRecords, Params, TrainableModel
from fedjax_secure.training.engine import Engine


def epoch_orders(dataset: ClientRecords, *, epochs: int, seed: int) -> list[np.ndarray]:
    """Shuffles each client's records anew for each epoch.

    The order sorts the raw 64-bit output of PCG64, whose stream numpy keeps for ever.

    Args:
        dataset: the clients' records.
        epochs: how many orders for each client, 1 or more.
        seed: an integer of 0 or more. These orders are for baselines: they are not secret.

    Returns:
        For each client ``[epochs, count] int32`` row numbers, as `Engine.local_sgd` takes them.

    Raises:
        SpecError: fewer than one epoch, or a seed below 0.

    Example:
        >>> from fedjax_secure.data import heart_disease
        >>> [order.shape for order in epoch_orders(heart_disease(), epochs=2, seed=0)]
        [(2, 242), (2, 235), (2, 98), (2, 160)]
    """
    for name, value, least in (("epochs", epochs, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise SpecError(
                "the baseline",
                need=f"an integer {name} of {least} or more",
                found=repr(value),
                fix=f"Write {name}={least}.",
            )
    orders = []
    for c in range(len(dataset.clients)):
        first, last = int(dataset.offsets[c]), int(dataset.offsets[c + 1])
        stream = np.random.PCG64(np.random.SeedSequence([int(seed), c]))
        words = stream.random_raw(epochs * (last - first)).reshape(epochs, last - first)
        orders.append((first + np.argsort(words, axis=1, kind="stable")).astype(np.int32))
    return orders


def train_alone(
    model: TrainableModel,
    dataset: ClientRecords,
    params: Params,
    *,
    epochs: int,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 32,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
) -> np.ndarray:
    """Trains one model for each client on its own records only: what a client has without others.

    All clients run in one compiled program. It has no privacy.

    Args:
        model: what is trained.
        dataset: the clients' records.
        params: where every client starts.
        epochs: passes over each client's records, each in a new order.
        learning_rate: of plain SGD.
        optimizer: instead of it, any optax transform.
        batch_size: records in a batch.
        seed: of the orders.
        devices: as for `Engine`.

    Returns:
        ``[clients, dim] float32``, each client's parameters, as `evaluate` takes them.

    Raises:
        SpecError: as `Engine` and `epoch_orders` do.
        UpdateError: parameters that are not finite after training, with the clients' names.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> from fedjax_secure.training import evaluate, train_alone
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> own = train_alone(model, data, model.init(jax.random.key(0)), epochs=20,
        ...                   learning_rate=0.1)
        >>> bool(evaluate(model, own, data).auc.min() > 0.5)
        True
    """
    engine = Engine(model, dataset, batch_size=batch_size, devices=devices)
    orders = epoch_orders(dataset, epochs=epochs, seed=seed)
    trained = engine.local_sgd(params, orders, learning_rate=learning_rate, optimizer=optimizer)
    bad = np.flatnonzero(np.asarray(trained.nonfinite))
    if len(bad):
        raise UpdateError(
            "the baseline",
            need="finite parameters after training",
            found=f"NaN or infinity at {[dataset.clients[c] for c in bad]}",
            fix="Lower the learning rate.",
        )
    return np.asarray(model.ravel(params)) + np.asarray(trained.values)


def train_pooled(
    model: TrainableModel,
    dataset: ClientRecords,
    params: Params,
    *,
    epochs: int,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 32,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
) -> np.ndarray:
    """Trains one model on all records in one place: what a federation gives up, at most.

    Args:
        model, dataset, params, epochs, learning_rate, optimizer, batch_size, seed, devices: as in
            `train_alone`.

    Returns:
        ``[dim] float32``, the parameters. Evaluate them on ``dataset``, client by client.

    Raises:
        SpecError: as `Engine` and `epoch_orders` do.
        UpdateError: parameters that are not finite after training.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> train_pooled(model, data, model.init(jax.random.key(0)), epochs=5,
        ...              learning_rate=0.1).shape
        (31,)
    """
    return train_alone(
        model,
        dataset.pooled(),
        params,
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=optimizer,
        batch_size=batch_size,
        seed=seed,
        devices=devices,
    )[0]
