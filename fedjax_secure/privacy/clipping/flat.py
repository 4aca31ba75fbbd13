"""Clip the whole of one unit's vector to one norm."""

from __future__ import annotations

from typing import Literal

import jax

from ...core import Spec, Stage, Stream
from ...core.spec import Unit
from ...core.stage import RecordClip, need
from .float_sums import with_float_sums
from .norms import need_bound, need_unclipped, need_unit, scaled_down


def clip(
    l2_bound: float,
    *,
    unit: Unit = "client",
    method: Literal["exact", "ghost"] = "exact",
    batch_size: int = 64,
) -> Stage:
    """Scale a vector down to a given L2 norm where it is longer.

    Args:
        l2_bound: the largest L2 norm that passes unchanged, in model units; 1e-12 to 1e12, where
            float32 squares neither vanish nor overflow.
        unit: whose vector is clipped. ``"client"``: each client's whole update. ``"record"``:
            each record's gradient at the global model, inside the training engine; quantise(...)
            must follow, so that records are rounded one by one before they are summed.
        method: of records. ``"exact"``: each record's gradient is made, rounded to integers and
            checked by itself. ``"ghost"``: a batch of records is clipped and summed in one pass,
            tens of times faster; see below. Clients' updates are always clipped exactly.
        batch_size: records whose gradients are computed together, with ``"ghost"``.

    Returns:
        A stage that sets ``unit``, ``l2_bound`` and ``linf_bound``.

    Guarantees:
        The vector that comes out has a norm of at most ``l2_bound``, for every finite vector, also
        where squares overflow float32. The sensitivity that is accounted is nevertheless not this
        one but the norm that ``quantise`` checks on the integers.

        With ``method="ghost"`` no record's gradient is made, so none is checked. Records are
        clipped and summed in float32, and a client's sum is rounded once. The error of the sum is
        bounded, and ``l2_bound`` is raised by it (`float_sums`, with proofs): the mechanism is
        labelled ``arithmetic="float sums"``, and what is assumed of the machine is in the threat
        model.

    Raises:
        SpecError: the bound is not a number in that range (from 1e-3 with ``"ghost"``), ``unit``
            or ``method`` is unknown, clients are to be clipped by ``"ghost"``, the value is no
            longer a float vector, or sums are of so many records that their error is too large.

    Example:
        >>> import jax.numpy as jnp
        >>> stage = clip(1.0)
        >>> [round(x, 4) for x in stage.client((), None, jnp.array([3.0, 4.0])).tolist()]
        [0.6, 0.8]

    Source:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1; Li et al. 2022,
        "Large language models can be strong differentially private learners" (ghost clipping).
    """
    need_unit("clip", unit)
    need_bound("clip", "l2_bound", l2_bound)
    need(method in ("exact", "ghost"), "clip", "method='exact' or 'ghost'", f"{method!r}",
         "'exact' checks every record on integers; 'ghost' is faster.")
    if method == "ghost":
        return _ghost_clip(l2_bound, unit, batch_size)

    def init(spec: Spec) -> tuple[tuple, Spec]:
        need_unclipped("clip", spec)
        return (), spec.replace(unit=unit, l2_bound=float(l2_bound),
                                linf_bound=float(l2_bound) * spec.flatness)

    def client(state: tuple, stream: Stream | None, value: jax.Array) -> jax.Array:
        return scaled_down(value, l2_bound)

    return Stage("clip", init, client, per_record=unit == "record")


def _ghost_clip(l2_bound: float, unit: Unit, batch_size: int) -> Stage:
    need(unit == "record", "clip", "unit='record' with method='ghost'", f"unit={unit!r}",
         "A client's update is one vector: clip it with method='exact'.")
    need(l2_bound >= 1e-3, "clip", "l2_bound of 1e-3 or more with method='ghost'",
         f"{l2_bound!r}", "Scale the loss up, or use method='exact'.")
    need(isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1,
         "clip", "a batch_size of 1 or more", f"{batch_size!r}", "Try 64.")

    def init(spec: Spec) -> tuple[tuple, Spec]:
        need_unclipped("clip", spec)
        return (), with_float_sums(spec, float(l2_bound), batch_size)

    def client(state: tuple, stream: Stream | None, total: jax.Array) -> jax.Array:
        return total

    return Stage("clip", init, client, record_clip=RecordClip(float(l2_bound), batch_size))
