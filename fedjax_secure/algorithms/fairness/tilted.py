"""TERM: clients count by the exponential of their loss, between the mean and the worst client."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Cohort
from ..algorithm import Algorithm, Model, Params, check_number, example_weights
from ..fed_avg import check_local
from .loss_first import Looked, look_then_train

_LARGEST = 40.0  # of an exponent: e^40 is far from overflowing a float32, in any sum


def tilted_fed_avg(
    learning_rate: float,
    *,
    t: float = 1.0,
    estimate_rate: float = 0.5,
    local_epochs: int = 1,
    batch_size: int = 32,
    weighted: bool = True,
) -> Algorithm:
    """Federated averaging of a tilted objective, (1/t) log of the mean of exp(t F_k) over clients.

    With t > 0 the worst-served clients count more, and as t grows only the worst; t = 0 is FedAvg;
    t < 0 plays down clients of large loss, which helps against outliers. Each client's change is
    multiplied by exp(t F_k - offset); the server divides by a running estimate of the mean of these
    and keeps the offset near the tilted loss, so that nothing overflows.

    Assumes:
        Clients send [a change, a, 1], ``[dim + 2]``, times their weight, clipped as a whole, where
        a = exp(t F_k - offset) with an exponent cut at +-40. The first offset is t log(classes),
        the tilted loss of a model that guesses. With ``weighted`` the counts are used in the
        clear. Tilting is between clients; within a client it is the mean loss.

    Args:
        learning_rate: of the clients' SGD.
        t: the tilt, any finite number.
        estimate_rate: share of this round in the running estimate, above 0 and up to 1; with 1 the
            weights of each round add up to one. The first round's share is 1.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.
        weighted: the mean over examples is tilted, else that over clients.

    Returns:
        An :class:`Algorithm`. A client looks at all of its examples once before it trains.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> tilted_fed_avg(0.1, t=5.0).name
        'tilted_fed_avg'

    Source:
        Li, Beirami, Sanjabi, Smith 2021, "Tilted Empirical Risk Minimization": the stochastic
        solver with a running estimate of the tilted loss (section on solving TERM), for groups
        that are clients; several local steps and an estimate rate of a half as in the authors'
        federated program.
    """
    check_local("tilted_fed_avg", learning_rate, local_epochs, batch_size)
    check_number("tilted_fed_avg", t=t)
    check_number("tilted_fed_avg", above=0, most=1, estimate_rate=estimate_rate)

    def send(shared, own, looked: Looked) -> jax.Array:
        exponent = jnp.clip(t * looked.loss - shared["offset"], -_LARGEST, _LARGEST)
        tilt = jnp.where(jnp.isnan(looked.loss), looked.loss, jnp.exp(exponent))
        return jnp.concatenate(
            [tilt * looked.changed, tilt[None], jnp.ones(1)]) * own["weight"]

    def work(model, aggregation):
        return look_then_train(model, "tilted_fed_avg", 2, send, learning_rate=learning_rate,
                               local_epochs=local_epochs)

    def init(model: Model, params: Params) -> Any:
        return {"offset": jnp.float32(t * np.log(model.num_classes)), "known": jnp.float32(0)}

    def shared(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
        return {"params": params, "offset": server_state["offset"]}

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        tilt, weight = mean[model.dim], mean[model.dim + 1]
        heard = (tilt > 0) & (weight > 0)
        ratio = jnp.where(heard, tilt, 1) / jnp.where(heard, weight, 1)
        rate = jnp.where(state["known"] > 0, jnp.float32(estimate_rate), jnp.float32(1))
        estimate = (1 - rate) + rate * ratio  # of the mean tilt, over e^offset
        moved = jnp.where(heard, mean[: model.dim] / estimate, 0)
        state = {
            "offset": state["offset"] + jnp.where(heard, jnp.log(estimate), 0),
            "known": jnp.where(heard, jnp.float32(1), state["known"]),
        }
        return jax.tree.map(jnp.add, params, model.unravel(moved)), state

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {"weight": example_weights(cohort, weighted=weighted)}

    settings = f"{learning_rate=}, {t=}, {estimate_rate=}, {local_epochs=}, {batch_size=}, "
    settings += f"{weighted=}"
    return Algorithm("tilted_fed_avg", settings, batch_size, work, init, shared, step, own)
