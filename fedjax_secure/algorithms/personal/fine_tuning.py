"""Local fine-tuning: each client trains the global model further on its own examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax

from ...core import SpecError, UpdateError
from ...training import ClientRecords, Engine, Rows, epoch_orders
from ..algorithm import Model, Params, check_number
from ..fed_avg import check_local

_CHUNK_VALUES = 1 << 23  # values of models that are in memory at once, unless asked otherwise


def fine_tune(
    model: Model,
    params: Params,
    data: ClientRecords,
    *,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    chunk_clients: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[[Sequence[int]], np.ndarray]:
    """Personal models by training the global one further on each client's own training examples.

    The simplest personalisation, and a hard one to beat. It takes place after (and outside of)
    the rounds, with any algorithm that made the global model; nothing leaves the clients. Models
    are made when they are asked for, some clients at a time, so that a large population fits.

    Args:
        model: whose parameters they are.
        params: the global model, e.g. ``state.params`` after the last round.
        data: the clients' records.
        learning_rate: of plain SGD.
        optimizer: instead of it, any optax transform; its state starts anew at every client.
        epochs: passes over a client's examples, each in an order of its own.
        batch_size: examples a step.
        seed: of the orders, as in `epoch_orders`.
        chunk_clients: clients trained in one call of the engine; None takes as many as hold 2^23
            values.
        devices: as for `Engine`.

    Returns:
        A function ``client numbers -> [numbers, dim] float32``, as `fs.training.evaluate` takes
        it. The same client gets the same model in any company.

    Raises:
        SpecError: not exactly one of learning_rate and optimizer, or a setting that makes no
            sense. The returned function: client numbers that do not exist.
        UpdateError: of the returned function: models that are not finite, with the clients' names.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> tuned = fine_tune(model, model.init(jax.random.key(0)), data, learning_rate=0.1)
        >>> tuned([0, 2]).shape
        (2, 31)

    Source:
        Yu, Bagdasaryan, Shmatikov 2020, "Salvaging Federated Learning by Local Adaptation",
        fine-tuning.
    """
    if (learning_rate is None) == (optimizer is None):
        raise SpecError("fine_tune", need="a learning_rate or an optimizer",
                        found="both" if optimizer is not None else "neither",
                        fix="Write learning_rate=0.1 or optimizer=optax.adam(1e-3).")
    check_local("fine_tune", 1.0 if learning_rate is None else learning_rate, epochs, batch_size)
    num_clients = len(data.clients)
    asked = max(1, _CHUNK_VALUES // model.dim) if chunk_clients is None else chunk_clients
    check_number("fine_tune", least=1, chunk_clients=asked)
    room = min(int(asked), num_clients)
    engine = Engine(model, data, batch_size=batch_size, devices=devices)
    orders = epoch_orders(data, epochs=epochs, seed=seed)
    flat = np.asarray(model.ravel(params))

    def tuned(clients: Sequence[int]) -> np.ndarray:
        numbers = np.asarray(clients, np.int64).reshape(-1)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < num_clients:
            raise SpecError("fine_tune", need=f"client numbers from 0 to {num_clients - 1}",
                            found=f"{numbers.min()} to {numbers.max()}",
                            fix="Number clients as the dataset does.")
        unique, place = np.unique(numbers, return_inverse=True)
        models = np.empty((len(unique), model.dim), np.float32)
        for first in range(0, len(unique), room):
            chunk = unique[first : first + room]
            out = engine.local_sgd(params, orders, learning_rate=learning_rate,
                                   optimizer=optimizer, into=Rows.of(chunk, room))
            bad = [data.clients[c] for c in chunk if np.asarray(out.nonfinite)[c]]
            if bad:
                raise UpdateError("fine_tune", need="finite parameters after training",
                                  found=f"NaN or infinity at {bad}", fix="Train more gently.")
            models[first : first + room] = flat + np.asarray(out.values)[: len(chunk)]
        return models[place]

    return tuned
