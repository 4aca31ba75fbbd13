"""Scaling a float32 vector down to a norm, for every finite vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_kernels import clip as kernel

from ...core import Spec
from ...core.stage import need

#: The bounds for which float32 squares neither vanish nor overflow.
SMALLEST_BOUND, LARGEST_BOUND = 1e-12, 1e12
_LARGEST_SLACK = 1e-4
_PADDING = 1024


def scaled_down(value: jax.Array, l2_bound: jax.Array | float) -> jax.Array:
    """A vector, scaled down to a norm where it is longer.

    Args:
        value: float32 [dim], finite.
        l2_bound: from 1e-12 to 1e12; may be traced.

    Returns:
        float32 [dim], whose norm is at most ``l2_bound`` in exact arithmetic: the kernel scales to
        a little less, by a proved bound on what float32 does. That bound is small for a number of
        values that has a divisor near its root; others are padded with zeros first.

    Example:
        >>> [round(x, 4) for x in scaled_down(jnp.array([3e30, -4e30]), 10.0).tolist()]
        [6.0, -8.0]
        >>> scaled_down(jnp.array([0.6, 0.8]), 10.0).tolist() == jnp.array([0.6, 0.8]).tolist()
        True
    """
    return _clipped(value, l2_bound)[0]


def is_within(value: jax.Array, l2_bound: jax.Array | float) -> jax.Array:
    """Whether a vector's norm is at most a bound, to the accuracy of float32; a bool.

    Example:
        >>> bool(is_within(jnp.array([3.0, 4.0]), 5.0)), bool(is_within(jnp.array([3e30]), 1e12))
        (True, False)
    """
    return _clipped(value, l2_bound)[1] <= jnp.asarray(l2_bound, jnp.float32)


def _clipped(value: jax.Array, l2_bound: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    dim = value.shape[0]
    if kernel.norm_slack(dim) > _LARGEST_SLACK:
        value = jnp.pad(value, (0, -dim % _PADDING))
    found = kernel.clip_rows(value.astype(jnp.float32), jnp.asarray(l2_bound, jnp.float32))
    return found.rows[:dim], found.norms


def need_bound(stage: str, name: str, bound: object) -> None:
    """Refuse what is no clipping norm that float32 can hold."""
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    need(number and SMALLEST_BOUND <= bound <= LARGEST_BOUND, stage,  # type: ignore[operator]
         f"{name} from {SMALLEST_BOUND:g} to {LARGEST_BOUND:g}", f"{name}={bound!r}",
         "Give a norm such as 1.0.")


def need_unit(stage: str, unit: object) -> None:
    """Refuse what is no unit of privacy that a chain clips."""
    need(unit in ("client", "record"), stage, "unit='client' or unit='record'", f"unit={unit!r}",
         "Take 'record' for each record, such as a patient, or 'client' for all that a client has.")


def need_unclipped(stage: str, spec: Spec) -> None:
    """Refuse values that are no floats, or were clipped before."""
    need(spec.dtype == "float32", stage, "float values", spec.dtype,
         f"Put {stage}(...) before quantise(...).")
    need(spec.unit is None, stage, "a value that has not been clipped yet",
         f"one clipped per {spec.unit}", "Keep one clipping stage in the chain.")
