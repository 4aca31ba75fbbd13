"""Discrete Gaussian noise: in shares, added to the sum, or added to each message."""

from __future__ import annotations

from typing import Any

import jax

from fedjax_kernels import discrete_gaussian as kernel

from ...core import Mechanism, Spec, Stage, Stream
from ...core.spec import Trust
from ...core.stage import need
from ..accounting import DiscreteGaussianSum, share_stddev_for
from .placing import draws_of, need_integers, need_multiplier, need_trust, noise_stage, noised

_NAME = "discrete_gaussian"


def discrete_gaussian(noise_multiplier: float, *, missing_shares: int = 0,
                      trust: Trust = "distributed") -> Stage:
    """Add discrete Gaussian noise to integers.

    Args:
        noise_multiplier: standard deviation over sensitivity of the Gaussian that is accounted,
            when ``missing_shares`` shares are not there; positive.
        missing_shares: how many shares may be missing, because a client dropped out, or known to
            the attacker, because a client leaked its own. Each remaining share is larger for it.
        trust: ``"distributed"``: each client adds a share, and the shares make up the noise of the
            sum, so nobody ever holds the whole of it; for sums that are encrypted or masked.
            ``"central"``: whoever opens the sum adds all of the noise before it shows the sum:
            the least noise, for those who trust that one. ``"local"``: each client adds all of
            the noise that its own message needs, so whoever reads messages may be the attacker;
            the sum of n clients has sqrt(n) times the noise.

    Returns:
        A stage that sets ``noise_stddev`` and ``mechanism``. Distributed, it raises ``min_clients``
        so that no sum is opened with fewer shares than counted on.

    Guarantees:
        What is protected (the sum of the shares of any ``num_clients - missing_shares`` clients;
        the released sum; one message) hides one unit as well as a continuous Gaussian of
        ``noise_multiplier`` times the unit's L2 sensitivity on the integers, up to the slack that
        ``Mechanism`` carries and the accountant adds. Noise is integer, exact to the sampler's
        stated total variation, and never clamped. Central noise is drawn once for each sum that is
        opened, and stored with it.

    Raises:
        SpecError: the values are not integers, no share would be left, a share is too narrow or
            too wide, or the ring has no room for the noise.

    Example:
        >>> discrete_gaussian(noise_multiplier=1.0, missing_shares=1).name
        'discrete_gaussian'

    Source:
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387, Algorithm 1 and Theorem 1; Canonne, Kamath,
        Steinke 2020, arXiv 2004.00010, Definition 1.
    """
    need_multiplier(_NAME, noise_multiplier)
    need_trust(_NAME, trust, missing_shares)

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_integers(_NAME, spec)
        assert spec.l2_bound is not None
        draws = draws_of(_NAME, spec, trust, missing_shares)
        stddev = share_stddev_for(noise_multiplier, unit_l2=spec.l2_bound, dim=spec.dim,
                                  honest_shares=draws.counted)
        need(stddev <= kernel.MAX_WIDE_SIGMA, _NAME,
             f"draws of stddev up to {kernel.MAX_WIDE_SIGMA:.0f} integer units", f"{stddev:.0f}",
             "Lower quantise(scale=...), or lower noise_multiplier.")
        table = kernel.sampler(stddev)
        summed = DiscreteGaussianSum(
            share_stddev=stddev, num_shares=draws.counted, unit_l2=spec.l2_bound, dim=spec.dim,
            total_variation=float(table.total_variation))
        # The sampler's own log-ratio holds for each value of each share, so sums of it hold for
        # all of them together.
        sampler_log_ratio = float(table.log_ratio) * spec.dim * draws.counted
        mechanism = Mechanism(
            noise_multiplier=summed.noise_multiplier,
            log_ratio=summed.log_ratio + sampler_log_ratio,
            total_variation=summed.total_variation_per_round, rounded_unit_l2=spec.l2_bound,
            share_stddev=stddev, num_shares=draws.counted, trust=trust)
        return {"table": table}, noised(_NAME, spec, mechanism, draws)

    def draw(state: Any, stream: Stream, count: int) -> jax.Array:
        return kernel.draw(state["table"], stream.key, stream.nonce(), count)

    return noise_stage(_NAME, trust, init, draw)
