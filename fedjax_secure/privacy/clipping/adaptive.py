"""Clip to a norm that follows a quantile of the units' norms, itself learned privately."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ...core import Spec, Stage, Static, Stream
from ...core.spec import Unit
from ...core.stage import need
from .norms import (
    LARGEST_BOUND,
    SMALLEST_BOUND,
    is_within,
    need_bound,
    need_unclipped,
    need_unit,
    scaled_down,
)

_NAME = "adaptive_clip"


def adaptive_clip(
    initial: float, target_quantile: float = 0.5, *, learning_rate: float = 0.2,
    quantile_share: float = 0.01, unit: Unit = "client", expected_units: float | None = None,
) -> Stage:
    r"""Clip to a norm that moves, round by round, towards a quantile of the units' norms.

    It spares the search for a clipping norm, which on private data would have to be paid for too.

    Each unit sends its vector clipped to the present norm C, in units of C, and in one more value
    whether it was within C (+w/2) or not (-w/2). Both are rounded, noised and summed together, so
    the noise stage behind covers both. The server moves C by
    ``exp(-learning_rate * (fraction within C - target_quantile))``. C is computed from released
    sums only, so everybody may know it, and the integer scale, the ring and the noise stay as they
    are: only what one integer unit stands for changes.

    Args:
        initial: the first round's norm, in model units.
        target_quantile: the fraction of units that should be within the norm, in [0, 1].
        learning_rate: how fast the norm moves; 0.2 changes it by at most a fifth a round.
        quantile_share: the share of a unit's squared sensitivity that the fraction takes: noise on
            the update grows by 1/sqrt(1 - share), and the count of units within C has noise of
            stddev noise_multiplier / (2 sqrt(share)). Andrew et al. ask for a twentieth of the
            cohort: a share of (10 noise_multiplier / cohort)^2.
        unit: whose norm, as for `clip`.
        expected_units: how many units a round's sum holds, a public constant; None takes the
            sampling rate times all of them.

    Returns:
        A stage that adds one value to the vector, and carries ``l2_bound`` from round to round.
        Its metrics: ``l2_bound``, the norm that the round clipped to, and ``fraction_within``.

    Guarantees:
        A unit's part of the sum, in units of C, has a norm of at most
        :math:`\sqrt{1 + w^2/4} = 1/\sqrt{1 - \mathrm{share}}` =: u, because the vector's is at most
        1 and the last value's is w/2; a unit that is absent, or sends zeros, adds nothing. With
        noise of standard deviation z u in every value, the update's noise is
        :math:`z_\Delta = z u` times its sensitivity, and the count's (the last value over w) has
        :math:`\sigma_b = z u / w`. These are the two of Algorithm 1:
        :math:`z_\Delta^{-2} + (2\sigma_b)^{-2} = (1 + w^2/4)/(z u)^2 = z^{-2}`, that is
        :math:`z_\Delta = (z^{-2} - (2\sigma_b)^{-2})^{-1/2}` (their Theorem 1).
        Bounds of the chain after it are in units of C.

    Raises:
        SpecError: a setting out of range, or a value that is clipped or no longer float.

    Example:
        >>> stage = adaptive_clip(1.0, 0.5)
        >>> spec = Spec(dim=2, num_clients=10, num_records=10, denominator=10.0)
        >>> state, spec = stage.init(spec)
        >>> spec.dim, round(spec.l2_bound, 4)
        (3, 1.005)
        >>> total = 10 * stage.client(state, None, jnp.array([3.0, 4.0]))  # everybody is longer
        >>> update, state, metrics = stage.server(state, total)
        >>> [round(x, 3) for x in update.tolist()], round(float(state["l2_bound"]), 4)
        ([6.0, 8.0], 1.1052)
        >>> float(metrics["fraction_within"])
        0.0

    Source:
        Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially Private Learning with Adaptive
        Clipping", Algorithm 1 and Theorem 1.
    """
    need_unit(_NAME, unit)
    need_bound(_NAME, "initial", initial)
    _need_between("target_quantile", target_quantile, 0.0, 1.0)
    _need_between("learning_rate", learning_rate, 1e-6, 10.0)
    _need_between("quantile_share", quantile_share, 1e-8, 0.99)
    weight = 2.0 * math.sqrt(quantile_share / (1.0 - quantile_share))
    if expected_units is not None:
        _need_between("expected_units", expected_units, 1e-6, 1e12)

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_unclipped(_NAME, spec)
        changed = spec.replace(
            unit=unit, dim=spec.dim + 1, l2_bound=1.0 / math.sqrt(1.0 - quantile_share),
            linf_bound=max(spec.flatness, weight / 2.0), moving_bound=True)
        units = (changed.sampling_rate * changed.sum_terms if expected_units is None
                 else float(expected_units))
        state = {
            "l2_bound": jnp.float32(initial), "initial": Static(float(initial)),
            "settings": Static((float(target_quantile), float(learning_rate), weight, units))}
        return state, changed

    def client(state: Any, stream: Stream | None, value: jax.Array) -> jax.Array:
        bound = state["l2_bound"]
        side = jnp.where(is_within(value, bound), 0.5, -0.5)
        vote = jnp.where(jnp.any(value != 0), jnp.float32(weight) * side, 0.0)
        clipped = scaled_down(value, bound) / bound
        return jnp.concatenate([clipped, vote[None].astype(value.dtype)])

    def server(state: Any, total: jax.Array) -> tuple[jax.Array, Any, dict]:
        quantile, rate, weight, units = state["settings"].value
        bound = state["l2_bound"]
        fraction = jnp.clip(0.5 + total[-1] / (weight * units), 0.0, 1.0)
        moved = jnp.clip(bound * jnp.exp(-rate * (fraction - quantile)),
                         SMALLEST_BOUND, LARGEST_BOUND)
        metrics = {"l2_bound": bound, "fraction_within": fraction}
        return total[:-1] * bound, {**state, "l2_bound": moved}, metrics

    return Stage(_NAME, init, client, server, per_record=unit == "record", carries=("l2_bound",),
                 width=lambda dim: dim + 1)


def _need_between(name: str, value: object, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    need(number and least <= value <= most, _NAME,  # type: ignore[operator]
         f"{name} from {least:g} to {most:g}", f"{name}={value!r}",
         f"Leave {name} out for the paper's choice." if name != "expected_units" else
         "Give how many units a round holds on average.")
