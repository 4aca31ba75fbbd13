"""Bound how far one unit of privacy can move the sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core import Spec, Stage, Stream
from ..core.spec import Unit
from ..core.stage import need


def clip(l2_bound: float, *, unit: Unit = "client") -> Stage:
    """Scale a vector down to a given L2 norm where it is longer.

    Args:
        l2_bound: the largest L2 norm that passes unchanged, in model units; 1e-12 to 1e12, where
            float32 squares neither vanish nor overflow.
        unit: whose vector is clipped. ``"client"``: each client's whole update. ``"record"``:
            each record's gradient at the global model, inside the training engine; quantise(...)
            must follow, so that records are rounded one by one before they are summed.

    Returns:
        A stage that sets ``unit``, ``l2_bound`` and ``linf_bound``.

    Guarantees:
        In exact arithmetic the norm is at most ``l2_bound``. In float32 it may be larger, by a
        relative ``(dim + 7) / 2^25`` at the worst (4e-7 was seen), and a vector longer than 1.8e19
        becomes zero. The sensitivity that is accounted is therefore not this one but the norm
        that ``quantise`` checks on the integers.

    Raises:
        SpecError: the bound is not a number in that range, ``unit`` is unknown, or the value is
            no longer a float vector.

    Example:
        >>> stage = clip(1.0)
        >>> stage.client((), None, jnp.array([3.0, 4.0])).tolist()
        [0.6000000238418579, 0.800000011920929]

    Source:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """
    need(unit in ("client", "record"), "clip", "unit='client' or unit='record'", f"unit={unit!r}",
         "Say whose vector is to be clipped.")
    need(isinstance(l2_bound, int | float) and 1e-12 <= l2_bound <= 1e12, "clip",
         "l2_bound from 1e-12 to 1e12", f"l2_bound={l2_bound!r}", "Give a norm such as 1.0.")

    def init(spec: Spec) -> tuple[tuple, Spec]:
        need(spec.dtype == "float32", "clip", "float values", spec.dtype,
             "Put clip(...) before quantise(...).")
        need(spec.unit is None, "clip", "a value that has not been clipped yet",
             f"one clipped per {spec.unit}", "Keep one clip(...) in the chain.")
        return (), spec.replace(unit=unit, l2_bound=float(l2_bound), linf_bound=float(l2_bound))

    def client(state: tuple, stream: Stream | None, value: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(value)))
        return value * jnp.minimum(1.0, l2_bound / jnp.maximum(norm, 1e-30)).astype(value.dtype)

    return Stage("clip", init, client, per_record=unit == "record")
