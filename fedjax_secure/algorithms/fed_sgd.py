"""FedSGD: each client sends one gradient at the global model, and the server steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Cohort, SpecError
from ..training import ghost_sums, record_sums
from .algorithm import Algorithm, server_optimizer


def fed_sgd(server: optax.GradientTransformation) -> Algorithm:
    """One gradient a client and round, at the global model; the server optimiser steps.

    With records clipped one by one in the chain this is central DP-SGD over all clients' records,
    although nobody sees any client's gradient.

    Args:
        server: an optax optimiser that takes the mean gradient.

    Returns:
        An :class:`Algorithm`. Clients send sums over their records, so the sum over clients is
        divided by the (expected) number of records. Every record counts the same, so clients that
        are drawn with unequal probabilities (importance_clients) are refused.

    Example:
        >>> fed_sgd(optax.sgd(0.5)).one_step
        True

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", FedSGD; Abadi et al. 2016, Algorithm 1 (with clipping and noise in the chain).
    """

    def work(model, aggregation):
        clips = [stage.record_clip for stage in aggregation.stages if stage.record_clip]
        if clips:
            return ghost_sums(model, clips[0].l2_bound, batch_size=clips[0].batch_size)
        if aggregation.num_record_stages:
            return record_sums(model, aggregation.encode_record, jnp.int32, with_states=True,
                               width=aggregation.record_width(model.dim))
        return record_sums(model, _as_it_is, jnp.float32, with_states=True)

    def shared(model, params, server_state, stage_states):
        return {"params": params, "states": stage_states}

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        if cohort.scale is not None and np.any(np.asarray(cohort.scale) != 1):
            raise SpecError(
                "fed_sgd", need="clients drawn with equal probabilities, as every record counts "
                "the same", found="a selection that makes up for unequal ones by weights",
                fix="Use poisson_clients(...), or an algorithm that weighs clients: fed_avg(...).")
        return {"key": keys}

    init, step = server_optimizer(server, direction=1.0)
    return Algorithm("fed_sgd", "", 1, work, init, shared, step, own, one_step=True)


def _as_it_is(states, key, slot: jax.Array, gradient: jax.Array) -> jax.Array:
    return gradient
