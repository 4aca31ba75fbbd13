"""Who adds noise where: the part that every noise stage has in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax

from ...core import Mechanism, Spec, Stage, Stream
from ...core.spec import Trust
from ...core.stage import need


class Draws(NamedTuple):
    """How many independent draws of noise there are in each value.

    Attributes:
        counted: in what one guarantee is about, at the very least.
        in_sum: in the sum, when every client answers.
    """

    counted: int
    in_sum: int


def draws_of(name: str, spec: Spec, trust: Trust, missing_shares: int) -> Draws:
    """Draws by who adds them.

    - distributed: each client adds a share; ``missing_shares`` of them are not counted on.
    - central: whoever opens the sum adds one draw.
    - local: each client adds one draw, and its message alone is what is protected.

    Raises:
        SpecError: no share would be left.
    """
    if trust == "central":
        return Draws(1, 1)
    if trust == "local":
        return Draws(1, spec.num_clients)
    shares = spec.num_clients - missing_shares
    need(shares >= 1, name, "at least one share left",
         f"{spec.num_clients} clients with missing_shares={missing_shares}",
         "Lower missing_shares.")
    return Draws(shares, spec.num_clients)


def need_trust(name: str, trust: object, missing_shares: object = 0, *,
               among: tuple[Trust, ...] = get_args(Trust)) -> None:
    """Refuse settings that no noise stage has."""
    need(trust in among, name, f"trust among {', '.join(map(repr, among))}", f"trust={trust!r}",
         "Say who adds the noise: each client a share, whoever opens the sum, or each client all "
         "that its own message needs." if len(among) == 3 else
         "Sums of shares of this noise have another distribution: use discrete_gaussian(...) or "
         "skellam(...) for distributed noise.")
    whole = isinstance(missing_shares, int) and not isinstance(missing_shares, bool)
    need(whole and missing_shares >= 0, name, "missing_shares of 0 or more",  # type: ignore[operator]
         f"{missing_shares!r}", "Give a whole number.")
    need(trust == "distributed" or missing_shares == 0, name,
         "missing_shares only where noise is made of shares",
         f"missing_shares={missing_shares} with trust={trust!r}", "Leave missing_shares out.")


def need_multiplier(name: str, noise_multiplier: object) -> None:
    """Refuse what is no positive noise multiplier."""
    number = isinstance(noise_multiplier, int | float) and not isinstance(noise_multiplier, bool)
    need(number and math.isfinite(noise_multiplier) and noise_multiplier > 0,  # type: ignore
         name, "a positive noise_multiplier", f"{noise_multiplier!r}",
         "Ask fs.privacy.calibrate(...) for the one that meets your epsilon.")


def need_integers(name: str, spec: Spec) -> None:
    """Refuse values that are no bounded integers, or have their noise already."""
    need(spec.dtype == "int32", name, "integer values", spec.dtype,
         "Put quantise(...) before it." if spec.dtype == "float32" else
         "Put it before encrypt(...).")
    need(spec.mechanism is None, name, "a value without noise", "one that has its noise",
         "Keep one noise stage in the chain.")


def noised(name: str, spec: Spec, mechanism: Mechanism, draws: Draws, *,
           tail_scale: float = 0.0, tail_variance: float | None = None) -> Spec:
    """The spec after the noise.

    Args:
        name: of the stage.
        spec: before.
        mechanism: of the noise.
        draws: how many there are.
        tail_scale, tail_variance: c, and v of one draw if that is not its variance, such that the
            moments of a draw X keep ``log E exp(tX) <= (v t^2 / 2) / (1 - c t)`` for 0 <= t < 1/c.
            Then n of them keep it with n v, and by Chernoff's bound exceed x in magnitude with
            probability at most ``2 exp(-x^2 / (2 (n v + c x)))``.

    Raises:
        SpecError: the ring has no room for the noise.
    """
    shares = draws.counted if mechanism.trust == "distributed" else 1
    variance = mechanism.share_stddev**2
    changed = dataclasses.replace(
        spec, mechanism=mechanism, noise_stddev=math.sqrt(variance * draws.in_sum),
        noise_tail_shape=(draws.in_sum * (variance if tail_variance is None else tail_variance),
                          tail_scale),
        min_clients=max(spec.min_clients, shares))
    if spec.modulus is not None:
        reach = changed.sum_linf_bound()
        need(2.0 * reach < spec.modulus, name,
             f"2 * (sum + noise) below the ring's {spec.modulus}", f"{2.0 * reach:.0f}",
             "Raise quantise(bits=...) or lower its scale.")
    return changed


def noise_stage(name: str, trust: Trust, init: Callable[[Spec], tuple[Any, Spec]],
                draw: Callable[[Any, Stream, int], jax.Array]) -> Stage:
    """A stage that adds what ``draw(state, stream, count)`` gives, where ``trust`` says.

    Sums in a ring wrap: adding before or after taking residues is the same.
    """

    def add(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        return value + draw(state, stream, value.shape[0]).astype(value.dtype)

    def nothing(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        return value

    if trust == "central":
        return Stage(name, init, nothing, release=add)
    return Stage(name, init, add)


def l1_bound(spec: Spec) -> float:
    """One unit's L1 norm on the integers, from its L2 norm.

    Each of d values at most: ``sum |x_i| <= sqrt(d) |x|`` (Cauchy-Schwarz); for integers also
    ``|x_i| <= x_i^2``, so ``sum |x_i| <= |x|^2`` (Agarwal, Kairouz, Liu 2021, section 4).

    Example:
        >>> l1_bound(Spec(dim=100, num_clients=1, num_records=1, denominator=1.0, l2_bound=5.0))
        25.0
    """
    assert spec.l2_bound is not None
    return min(spec.l2_bound * math.sqrt(spec.dim), spec.l2_bound**2)
