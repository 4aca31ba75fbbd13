"""The type of every federated algorithm: what a client computes, and how the server steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ..core import Aggregation, Cohort, Source
from ..core.stage import States
from ..training import Engine, Sink


class Work(NamedTuple):
    """What the clients of one round computed.

    Attributes:
        values: what the sink holds: [rows, dim], float32 updates or int32 sums of encoded records;
            or the payloads' sum.
        nonfinite: int32 [clients]: how many records or values were not finite.
    """

    values: jax.Array
    nonfinite: np.ndarray


class Algorithm(NamedTuple):
    """A federated algorithm.

    Attributes:
        name: for records and code.
        server: the optimiser that takes the decoded mean as a gradient.
        direction: +1 where clients send gradients, -1 where they send what to add to the model.
        one_step: each client takes one step at the global model, so its records can be clipped
            one by one.
        batch_size: how many examples the engine takes at once.
        settings: what else the clients' work depends on, as text: another text is another run.
        local: ``(engine, params, cohort, keys [clients, 8], aggregation, states, source, into) ->
            Work``: the work of the clients that the sink ``into`` names.
    """

    name: str
    server: optax.GradientTransformation
    direction: float
    one_step: bool
    batch_size: int
    settings: str
    local: Callable[[Engine, Any, Cohort, np.ndarray, Aggregation, States, Source, Sink],
                    Work]
