"""Each client's share of the noise that hides one unit in the sum."""

from __future__ import annotations

import math
from typing import Any

import jax

from fedjax_kernels import discrete_gaussian as kernel

from ..core import Mechanism, Spec, Stage, Static, Stream
from ..core.stage import need
from .accounting import DiscreteGaussianSum, share_stddev_for

#: The widest part of a share: the widest table, less room for the rounding of its stddev.
_PART_STDDEV = 0.999 * kernel.MAX_SIGMA
_MOST_PARTS = 1024


def discrete_gaussian(noise_multiplier: float, *, missing_shares: int = 0) -> Stage:
    """Add one client's share of discrete Gaussian noise to its integers.

    The shares of all clients make up the noise of the sum, so nobody ever holds the whole of it.

    Args:
        noise_multiplier: standard deviation over sensitivity of the Gaussian that is accounted
            when ``missing_shares`` shares are not there; positive.
        missing_shares: how many shares may be missing, because a client dropped out, or known to
            the attacker, because a client leaked its own. Each remaining share is larger for it.

    Returns:
        A stage that sets ``noise_stddev`` and ``mechanism``, and raises ``min_clients`` so that no
        sum is opened with fewer shares than counted on.

    Guarantees:
        The sum of the shares of any ``num_clients - missing_shares`` clients hides one unit as
        well as a continuous Gaussian of ``noise_multiplier`` times the unit's L2 sensitivity on
        the integers, up to the slack that ``Mechanism`` carries and the accountant adds. Noise is
        integer, exact to the sampler's stated total variation, and never clamped. A share wider
        than the sampler's table allows is the sum of equal independent parts, and is accounted as
        that sum.

    Raises:
        SpecError: the values are not integers, no share would be left, a share is too narrow or
            too wide, or the ring has no room for the noise.

    Example:
        >>> discrete_gaussian(noise_multiplier=1.0, missing_shares=1).name
        'discrete_gaussian'

    Source:
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Algorithm 1 and Theorem 1 (which covers the
        sum of all parts of all shares alike); Canonne, Kamath, Steinke 2020, arXiv 2004.00010,
        Definition 1.
    """
    name = "discrete_gaussian"
    need(math.isfinite(noise_multiplier) and noise_multiplier > 0, name,
         "a positive noise_multiplier", f"{noise_multiplier!r}",
         "Ask fs.privacy.calibrate(...) for the one that meets your epsilon.")
    need(isinstance(missing_shares, int) and missing_shares >= 0, name,
         "missing_shares of 0 or more", f"{missing_shares!r}", "Give a whole number.")

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype == "int32", name, "integer values", spec.dtype,
             "Put quantise(...) before it." if spec.dtype == "float32" else
             "Put it before encrypt(...).")
        need(spec.mechanism is None, name, "a value without noise", "one that has its noise",
             "Keep one noise stage in the chain.")
        assert spec.l2_bound is not None and spec.modulus is not None
        shares = spec.num_clients - missing_shares
        need(shares >= 1, name, "at least one share left",
             f"{spec.num_clients} clients with missing_shares={missing_shares}",
             "Lower missing_shares.")
        parts = _parts(share_stddev_for(noise_multiplier, unit_l2=spec.l2_bound, dim=spec.dim,
                                        honest_shares=shares))
        part_stddev = share_stddev_for(noise_multiplier, unit_l2=spec.l2_bound, dim=spec.dim,
                                       honest_shares=shares * parts)
        stddev = part_stddev * math.sqrt(parts)
        table = kernel.table(part_stddev)
        summed = DiscreteGaussianSum(share_stddev=part_stddev, num_shares=shares * parts,
                                     unit_l2=spec.l2_bound, dim=spec.dim,
                                     total_variation=float(table.total_variation))
        mechanism = Mechanism(
            noise_multiplier=summed.noise_multiplier, log_ratio=summed.log_ratio,
            total_variation=summed.total_variation_per_round,
            rounded_unit_l2=spec.l2_bound, share_stddev=stddev, num_shares=shares)
        changed = spec.replace(noise_stddev=stddev * math.sqrt(spec.num_clients),
                               noise_tail_shape=(stddev**2 * spec.num_clients, 0.0),
                               mechanism=mechanism,
                               min_clients=max(spec.min_clients, shares))
        reach = changed.sum_linf_bound()
        need(2.0 * reach < spec.modulus, name,
             f"2 * (sum + noise) below the ring's {spec.modulus}", f"{2.0 * reach:.0f}",
             "Raise quantise(bits=...) or lower its scale.")
        return {"table": table, "parts": Static(parts)}, changed

    def client(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        count = value.shape[0]

        def add_part(part: Any, total: jax.Array) -> jax.Array:
            words = stream.words(kernel.WORDS_PER_DRAW * count, draw=part)
            return total + kernel.sample(state["table"], words.reshape(-1, count))

        return jax.lax.fori_loop(0, state["parts"].value, add_part, value)

    return Stage(name, init, client)


def _parts(stddev: float) -> int:
    """How many equal parts a share takes, each narrow enough for the sampler's table."""
    parts = math.ceil((stddev / _PART_STDDEV) ** 2)
    need(parts <= _MOST_PARTS, "discrete_gaussian",
         f"shares of stddev up to {_PART_STDDEV * math.sqrt(_MOST_PARTS):.0f} integer units",
         f"{stddev:.0f}", "Lower quantise(scale=...), or lower noise_multiplier.")
    return max(parts, 1)
