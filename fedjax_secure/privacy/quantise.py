"""Turn one unit's float vector into integers whose norm is bounded, and sums back into floats."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Spec, Stage, Static, Stream
from ..core.ring import centre, modulus_of
from ..core.spec import NEGLIGIBLE
from ..core.stage import need
from .clipping.float_sums import SUM_FAILURE, rounded_sum_l2_bound

#: A rounding that exceeds the bound with more than this probability is bounded a little wider.
_REJECTION = 2.0**-20
_MAX_INTEGER_NORM = 53_000.0  # its square is below 0.655 * 2^32: see norm_within
_PIECE = 1 << 21


def rounded_l2_bound(l2_bound: float, dim: int, *, rejection: float = _REJECTION) -> float:
    """The norm that stochastically rounded vectors keep, in integer units.

    Args:
        l2_bound: norm of the scaled vector before rounding, integer units.
        dim: number of values.
        rejection: the probability b with which a rounding may be longer; it is then drawn again.

    Returns:
        ``min(c + sqrt(d), sqrt(c^2 + d/4 + sqrt(2 ln(1/b)) (c + sqrt(d)/2)))``.

    Example:
        >>> round(rounded_l2_bound(4096.0, 30), 2)
        4098.63

    Source:
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Algorithm 1 (the norm of a rounding).
    """
    root = math.sqrt(dim)
    spread = math.sqrt(2.0 * math.log(1.0 / rejection)) * (l2_bound + root / 2.0)
    return min(l2_bound + root, math.sqrt(l2_bound**2 + dim / 4.0 + spread))


def norm_within(values: jax.Array, squared_bound: int) -> jax.Array:
    """Whether the sum of squares of int32 values is at most an integer bound: exact, no x64.

    Let S be the sum. Modulo 2^32 it is one integer reduction. A sum F of the squares in float32
    says whether that is S itself: in pieces of at most 2^21 values, and these added up, F is S
    within a factor of 1 -+ g with g = n u / (1 - n u) < 0.144, for n = 2^21 + 2^9 + 2 roundings in
    any order and u = 2^-24 (Higham 2002, section 4.2). Where F is at most 3/4 * 2^32, S is below
    2^32. Where it is more, S is above 0.655 * 2^32, and so above the bound.

    Args:
        values: int32 [dim], dim at most 2^30.
        squared_bound: at most 53,000^2.

    Returns:
        bool [].

    Example:
        >>> bool(norm_within(jnp.array([3, 4]), 25)), bool(norm_within(jnp.array([3, 4]), 24))
        (True, False)
    """
    floats = values.astype(jnp.float32)
    if (dim := values.shape[0]) > _PIECE:
        floats = jnp.pad(floats, (0, -dim % _PIECE))
    pieces = floats.reshape(-1, min(dim, _PIECE))
    about = jnp.sum(lax.dot_general(pieces, pieces, (((1,), (1,)), ((0,), (0,))),
                                    precision=lax.Precision.HIGHEST))
    modulo = jnp.sum((values * values).astype(jnp.uint32), dtype=jnp.uint32)
    return (about <= 3.0 * 2.0**30) & (modulo <= jnp.uint32(squared_bound))


def stochastic_round(words: jax.Array, values: jax.Array) -> jax.Array:
    """Round each float to one of its two neighbouring integers, unbiased to 2^-24.

    Args:
        words: uint32 [dim], fresh random words.
        values: float32 [dim], magnitude below 2^23.

    Returns:
        int32 [dim].

    Example:
        >>> stochastic_round(jnp.zeros(2, jnp.uint32), jnp.array([1.5, -1.5])).tolist()
        [2, -1]
    """
    floor = jnp.floor(values)
    uniform = (words >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    return floor.astype(jnp.int32) + (uniform < values - floor).astype(jnp.int32)


def quantise(bits: int, *, scale: float | None = None,
             noise_multiplier: float | None = None) -> Stage:
    """Scale and stochastically round a clipped vector to integers that are summed modulo 2^bits.

    Rounding happens for each unit of privacy before anything is summed; rounded after the sum,
    one unit could move the result by its norm plus sqrt(dim) units.

    Args:
        bits: the ring is ``[0, 2^bits)``; 2 to 31.
        scale: integer units per model unit. None takes the largest power of two for which every
            clipped unit may take part at its worst without a wrap, with room for noise; of units
            that are drawn by coins, as many as ever are (but for 2^-40 a round). (After rotate()
            "at its worst" is meant but for 2^-40 a round, too.)
        noise_multiplier: of the noise stage behind, for whose noise there is to be room. None
            leaves half of the ring, and after rotate(), where rings are filled by noise rather
            than values, room for a multiplier of 1. Not to be given with ``scale``.

    Returns:
        A stage that turns float32 into int32 and sets ``scale``, ``modulus`` and the bounds.

    Guarantees:
        The L2 norm of each rounded vector, checked on the integers with exact arithmetic, is at
        most ``spec.l2_bound``. A rounding that is longer, which has a probability of at most 2^-20,
        is rounded towards zero instead; the work does not depend on the data.

    Raises:
        SpecError: nothing was clipped, the value is not float, the ring is too small, or both
            ``scale`` and ``noise_multiplier`` are given.

    Example:
        >>> from fedjax_secure.core import Spec
        >>> from fedjax_secure.privacy import clip
        >>> spec = Spec(dim=4, num_clients=2, num_records=10, denominator=2.0)
        >>> _, spec = clip(1.0).init(spec)
        >>> _, spec = quantise(bits=16).init(spec)
        >>> spec.scale, spec.modulus, spec.dtype
        (8192.0, 65536, 'int32')

    Source:
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Algorithm 1 (conditional rounding; there a
        rounding that is too long is drawn anew until one is not).
    """
    modulus = modulus_of(bits)
    need(scale is None or noise_multiplier is None, "quantise", "scale or noise_multiplier",
         "both", "Leave one out: a multiplier is what chooses the scale.")
    need(noise_multiplier is None or (isinstance(noise_multiplier, int | float)
                                      and 0 < noise_multiplier < math.inf), "quantise",
         "a positive noise_multiplier", f"{noise_multiplier!r}", "Give that of the noise stage.")

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype == "float32", "quantise", "float values", spec.dtype,
             "Keep one quantise(...) in the chain, after clip(...).")
        need(spec.l2_bound is not None, "quantise", "a bounded L2 norm", "no bound",
             "Put clip(...) before it.")
        need(spec.mechanism is None, "quantise", "values without noise", "noised floats",
             "Put integer noise after quantise(...), or leave quantise(...) out.")
        chosen = float(scale) if scale is not None else _largest_scale(
            spec, modulus, noise_multiplier)
        need(math.isfinite(chosen) and chosen > 0, "quantise", "a positive scale",
             f"scale={scale!r}", "Leave scale out, or give integer units per model unit.")
        summed = spec.float_sum_error > 0
        bound = (rounded_sum_l2_bound(spec.l2_bound * chosen, spec.dim) if summed else
                 rounded_l2_bound(spec.l2_bound * chosen, spec.dim))
        need(bound <= _MAX_INTEGER_NORM, "quantise", f"norms up to {_MAX_INTEGER_NORM:.0f} units",
             f"{bound:.0f}", "Lower scale or the clipping norm.")
        linf = min(bound, math.ceil(spec.linf_bound * chosen)) + summed
        need(2.0 * spec.most_drawn * linf < modulus, "quantise",
             f"2 * summed units * linf_bound below 2**bits = {modulus}",
             f"2 * {spec.most_drawn} * {linf:.0f} = {2 * spec.most_drawn * linf:.0f}",
             "Raise bits, or lower scale.")
        state = {"scale": Static(chosen), "modulus": Static(modulus),
                 "squared_bound": Static(None if summed else int(bound**2))}
        return state, spec.replace(dtype="int32", scale=chosen, modulus=modulus, l2_bound=bound,
                                   linf_bound=float(linf),
                                   rounding_failure=2 * SUM_FAILURE if summed else 0.0)

    def client(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        scaled = value.astype(jnp.float32) * jnp.float32(state["scale"].value)
        squared_bound = state["squared_bound"].value
        if squared_bound is None:  # a sum of records, none of which can be checked any more
            return stochastic_round(stream.words(value.shape[0]), scaled)
        # trunc(scaled) is never longer than scaled, whose own excess in float32 is far below
        # the room that rounded_l2_bound leaves.
        rounded = stochastic_round(stream.words(value.shape[0]), scaled)
        result = jnp.where(norm_within(rounded, squared_bound), rounded,
                           jnp.trunc(scaled).astype(jnp.int32))
        return jnp.where(norm_within(result, squared_bound), result, 0)

    def server(state: Any, total: jax.Array) -> tuple[jax.Array, Any, dict]:
        integers = centre(total, state["modulus"].value)
        return integers.astype(jnp.float32) / jnp.float32(state["scale"].value), state, {}

    return Stage("quantise", init, client, server, rounds=True)


def _largest_scale(spec: Spec, modulus: int, noise_multiplier: float | None) -> float:
    """The largest power of two for which the sum and its noise fit the ring."""
    assert spec.l2_bound is not None and spec.linf_bound is not None
    values = spec.most_drawn * spec.linf_bound
    if noise_multiplier is None and not spec.rotated:
        room = modulus / 4.0 / values
    else:
        # A quarter more: shares that are added beyond those counted on, and rounded norms.
        tail = math.sqrt(2.0 * math.log(2.0 * spec.dim / NEGLIGIBLE))
        noise = 1.25 * tail * (noise_multiplier or 1.0) * spec.l2_bound
        room = modulus / 2.0 / (values + noise)
    candidate = 2.0 ** math.floor(math.log2(min(room, _MAX_INTEGER_NORM / 2.0 / spec.l2_bound)))
    need(candidate * spec.l2_bound >= 1.0, "quantise",
         f"a ring with room for {spec.most_drawn} clipped units of at least one integer unit",
         f"modulus={modulus}", "Raise bits.")
    return candidate
