"""Clip the whole of one unit's vector to one norm."""

from __future__ import annotations

import jax

from ...core import Spec, Stage, Stream
from ...core.spec import Unit
from .norms import need_bound, need_unclipped, need_unit, scaled_down


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
        In exact arithmetic the norm is at most ``l2_bound``, for every finite vector. In float32 it
        may be larger, by a relative ``(dim + 7) / 2^25`` at the worst (4e-7 was seen). The
        sensitivity that is accounted is therefore not this one but the norm that ``quantise``
        checks on the integers.

    Raises:
        SpecError: the bound is not a number in that range, ``unit`` is unknown, or the value is
            no longer a float vector.

    Example:
        >>> import jax.numpy as jnp
        >>> stage = clip(1.0)
        >>> stage.client((), None, jnp.array([3.0, 4.0])).tolist()
        [0.6000000238418579, 0.800000011920929]

    Source:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """
    need_unit("clip", unit)
    need_bound("clip", "l2_bound", l2_bound)

    def init(spec: Spec) -> tuple[tuple, Spec]:
        need_unclipped("clip", spec)
        return (), spec.replace(unit=unit, l2_bound=float(l2_bound),
                                linf_bound=float(l2_bound) * spec.flatness)

    def client(state: tuple, stream: Stream | None, value: jax.Array) -> jax.Array:
        return scaled_down(value, l2_bound)

    return Stage("clip", init, client, per_record=unit == "record")
