"""Scaling a float32 vector down to a norm, for every finite vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ...core import Spec
from ...core.stage import need

#: The bounds for which float32 squares neither vanish nor overflow in :func:`scaled_down`.
SMALLEST_BOUND, LARGEST_BOUND = 1e-12, 1e12
_SHRINK = 2.0**-80  # the square of the largest float32 times this is 2^96: 2^31 of them fit


def scaled_down(value: jax.Array, l2_bound: jax.Array | float) -> jax.Array:
    """A vector, scaled down to a norm where it is longer.

    The sum of squares of a vector longer than 1.8e19 is infinite in float32. Its norm is taken
    of the vector times 2^-80 instead, in a branch that is entered only then.

    Args:
        value: float32 [dim], finite.
        l2_bound: from 1e-12 to 1e12; may be traced.

    Returns:
        float32 [dim]. Its norm is at most ``l2_bound (1 + (dim + 7) / 2^25)``: a sum of dim
        squares has a relative error of at most dim units in the last place (2^-24), of which the
        square root leaves half; 7 more half units cover the square root, division and products.

    Example:
        >>> scaled_down(jnp.array([3e30, -4e30]), 10.0).tolist()
        [6.0, -8.0]
        >>> scaled_down(jnp.array([0.6, 0.8]), 10.0).tolist() == jnp.array([0.6, 0.8]).tolist()
        True
    """
    bound = jnp.asarray(l2_bound, jnp.float32)
    square = jnp.sum(jnp.square(value))

    def huge() -> jax.Array:
        shrunk = value * jnp.float32(_SHRINK)
        return shrunk * (bound / jnp.sqrt(jnp.sum(jnp.square(shrunk))))

    def usual() -> jax.Array:
        return value * jnp.minimum(1.0, bound / jnp.maximum(jnp.sqrt(square), 1e-30))

    return jax.lax.cond(jnp.isfinite(square), usual, huge)


def is_within(value: jax.Array, l2_bound: jax.Array | float) -> jax.Array:
    """Whether :func:`scaled_down` leaves a vector as it is; a bool.

    Example:
        >>> bool(is_within(jnp.array([3.0, 4.0]), 5.0)), bool(is_within(jnp.array([3e30]), 1e12))
        (True, False)
    """
    return jnp.sqrt(jnp.sum(jnp.square(value))) <= jnp.asarray(l2_bound, jnp.float32)


def need_bound(stage: str, name: str, bound: object) -> None:
    """Refuse what is no clipping norm that float32 can hold."""
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    need(number and SMALLEST_BOUND <= bound <= LARGEST_BOUND, stage,  # type: ignore[operator]
         f"{name} from {SMALLEST_BOUND:g} to {LARGEST_BOUND:g}", f"{name}={bound!r}",
         "Give a norm such as 1.0.")


def need_unit(stage: str, unit: object) -> None:
    """Refuse what is no unit of privacy that a chain clips."""
    need(unit in ("client", "record"), stage, "unit='client' or unit='record'", f"unit={unit!r}",
         "Say whose vector is to be clipped.")


def need_unclipped(stage: str, spec: Spec) -> None:
    """Refuse values that are no floats, or were clipped before."""
    need(spec.dtype == "float32", stage, "float values", spec.dtype,
         f"Put {stage}(...) before quantise(...).")
    need(spec.unit is None, stage, "a value that has not been clipped yet",
         f"one clipped per {spec.unit}", "Keep one clipping stage in the chain.")
