"""FedSGD: each client sends one gradient at the global model, and the server steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .algorithm import Algorithm, Work


def fed_sgd(server: optax.GradientTransformation) -> Algorithm:
    """One gradient a client and round, at the global model; the server optimiser steps.

    With records clipped one by one in the chain this is central DP-SGD over all clients' records,
    although nobody sees any client's gradient.

    Args:
        server: an optax optimiser that takes the mean gradient.

    Returns:
        An :class:`Algorithm`. Clients send sums over their records, so the sum over clients is
        divided by the (expected) number of records.

    Example:
        >>> fed_sgd(optax.sgd(0.5)).one_step
        True

    Source:
        McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", FedSGD; Abadi et al. 2016, Algorithm 1 (with clipping and noise in the chain).
    """

    def local(engine, params, cohort, keys, aggregation, states, source, into) -> Work:
        if aggregation.num_record_stages:
            encode, dtype = _record_encoder(aggregation), jnp.int32
        else:
            encode, dtype = _as_it_is, jnp.float32
        sums = engine.record_sums(params, cohort.indices, keys, encode, dtype, states=states,
                                  into=into)
        return Work(sums.values, np.asarray(sums.nonfinite))

    return Algorithm("fed_sgd", server, 1.0, True, 1, "", local)


@functools.lru_cache(maxsize=64)
def _record_encoder(aggregation):
    # One function object a chain, so that the engine compiles once.
    def encode(states, key, slot, gradient):
        return aggregation.encode_record(states, key, slot, gradient)

    return encode


def _as_it_is(states, key, slot: jax.Array, gradient: jax.Array) -> jax.Array:
    return gradient
