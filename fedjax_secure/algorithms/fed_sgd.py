"""FedSGD: each client sends one gradient at the global model, and the server steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Cohort, SpecError
from ..training import ghost_sums, record_sums
from .algorithm import Algorithm, server_optimizer


def fed_sgd(
    server: optax.GradientTransformation, *, record_bounds: np.ndarray | None = None,
) -> Algorithm:
    """One gradient a client and round, at the global model; the server optimiser steps.

    With records clipped one by one in the chain this is central DP-SGD over all clients' records,
    although nobody sees any client's gradient.

    Args:
        server: an optax optimiser that takes the mean gradient.
        record_bounds: ``[records]``, by row number in the dataset: norms to which each record's
            own gradient is clipped first, for people who allow different epsilons; see
            ``fs.privacy.individual.scale``. A record's bound must depend on that record alone.

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

    bounded = record_bounds is not None
    bounds = _checked_bounds(record_bounds) if bounded else None

    def work(model, aggregation):
        clips = [stage.record_clip for stage in aggregation.stages if stage.record_clip]
        if clips:
            return ghost_sums(model, clips[0].l2_bound, batch_size=clips[0].batch_size,
                              with_record_bounds=bounded)
        if aggregation.num_record_stages:
            return record_sums(model, aggregation.encode_record, jnp.int32, with_states=True,
                               width=aggregation.record_width(model.dim),
                               with_record_bounds=bounded)
        return record_sums(model, _as_it_is, jnp.float32, with_states=True,
                           with_record_bounds=bounded)

    def shared(model, params, server_state, stage_states):
        own_bounds = {"record_bounds": jnp.asarray(bounds)} if bounded else {}
        return {"params": params, "states": stage_states, **own_bounds}

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        if cohort.scale is not None and np.any(np.asarray(cohort.scale) != 1):
            raise SpecError(
                "fed_sgd", need="clients drawn with equal probabilities, as every record counts "
                "the same", found="a selection that makes up for unequal ones by weights",
                fix="Use poisson_clients(...), or an algorithm that weighs clients: fed_avg(...).")
        return {"key": keys}

    init, step = server_optimizer(server, direction=1.0)
    # Settings are shown in reports: bounds tell records' groups, of which not even a digest may.
    return Algorithm("fed_sgd", "record_bounds" if bounded else "", 1, work, init, shared, step,
                     own, one_step=True, record_bounds=bounds)


def _checked_bounds(bounds: np.ndarray) -> np.ndarray:
    found = np.asarray(bounds)
    numbers = found.ndim == 1 and np.issubdtype(found.dtype, np.number)
    if not numbers or not np.all(np.isfinite(found) & (found >= 0)):
        raise SpecError("fed_sgd", need="record_bounds, a finite number of 0 or more a record",
                        found=f"{found.dtype}{list(found.shape)}, or some that are not",
                        fix="Give plan.record_bounds(...).")
    kept = found.astype(np.float32)
    kept.flags.writeable = False
    return kept


def _as_it_is(states, key, slot: jax.Array, gradient: jax.Array) -> jax.Array:
    return gradient
