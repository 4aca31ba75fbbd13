"""Skellam noise: differences of Poisson counts, whose shares add up to the very same kind."""

from __future__ import annotations

import math
from typing import Any

import jax

from fedjax_kernels import skellam as kernel

from ...core import Mechanism, Spec, Stage, Stream
from ...core.spec import Trust
from ...core.stage import need
from .placing import (
    draws_of,
    l1_bound,
    need_integers,
    need_multiplier,
    need_trust,
    noise_stage,
    noised,
)

_NAME = "skellam"


def skellam(noise_multiplier: float, *, missing_shares: int = 0,
            trust: Trust = "distributed") -> Stage:
    """Add Skellam noise to integers: the difference of two Poisson counts of equal mean.

    Sums of Skellam shares are Skellam, exactly: nothing is lost to summing, however narrow a
    share is, so it serves many clients at few bits, where discrete Gaussian shares would be
    narrower than two units. Its accounting costs a little more than a Gaussian's where a unit's L1
    norm is large against the noise's variance.

    Args:
        noise_multiplier: standard deviation over one unit's L2 sensitivity on the integers, of the
            noise that is there when ``missing_shares`` shares are not.
        missing_shares, trust: as for `discrete_gaussian`.

    Returns:
        A stage that sets ``noise_stddev`` and ``mechanism`` (of kind ``"skellam"``, with one
        unit's L1 and L2 norms and the variance of the noise counted on, in integer units), and, for
        distributed noise, raises ``min_clients``.

    Guarantees:
        What is protected has Skellam noise of at least the stated variance in every value, up to
        the sampler's stated total variation. Its Renyi divergences are bounded by the theorem
        below, which the accountant composes. Noise is integer and never clamped.

    Raises:
        SpecError: the values are not integers, no share would be left, or the ring has no room.

    Example:
        >>> import fedjax_secure as fs
        >>> chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=20), skellam(1.0))
        >>> _, spec = chain.init(Spec(dim=30, num_clients=4, num_records=4, denominator=4.0))
        >>> figures = dict(spec.mechanism.parameters)
        >>> round(figures["variance"] / figures["l2"]**2, 6)
        1.0

    Source:
        Agarwal, Kairouz, Liu 2021, "The Skellam Mechanism for Differentially Private Federated
        Learning", arXiv 2110.04995, Algorithm 1; Theorem 3.5 and its corollary for vectors.
    """
    need_multiplier(_NAME, noise_multiplier)
    need_trust(_NAME, trust, missing_shares)

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_integers(_NAME, spec)
        assert spec.l2_bound is not None
        draws = draws_of(_NAME, spec, trust, missing_shares)
        variance = (noise_multiplier * spec.l2_bound) ** 2 / draws.counted * (1.0 + 1e-12)
        need(kernel.MIN_VARIANCE <= variance <= kernel.MAX_VARIANCE, _NAME,
             f"draws of variance {kernel.MIN_VARIANCE:g} to {kernel.MAX_VARIANCE:.0f}, in integer "
             "units", f"{variance:.3g}", "Raise or lower quantise(scale=...), or noise_multiplier.")
        table = kernel.sampler(variance)
        parameters = {"l1": l1_bound(spec), "l2": spec.l2_bound,
                      "variance": variance * draws.counted}
        mechanism = Mechanism(
            noise_multiplier=None,
            log_ratio=float(table.log_ratio) * spec.dim * draws.counted,
            total_variation=float(table.total_variation) * spec.dim * draws.counted,
            rounded_unit_l2=spec.l2_bound, share_stddev=math.sqrt(variance),
            num_shares=draws.counted, kind=_NAME, parameters=tuple(sorted(parameters.items())),
            trust=trust)
        # log E exp(tX) = v (cosh t - 1) <= (v t^2 / 2) / (1 - t/3): the k-th term of the series of
        # 2 (cosh t - 1) / t^2, which is 2 t^2k / (2k + 2)!, is at most (t/3)^2k.
        return {"table": table}, noised(_NAME, spec, mechanism, draws, tail_scale=1.0 / 3.0)

    def draw(state: Any, stream: Stream, count: int) -> jax.Array:
        return kernel.draw(state["table"], stream.key, stream.nonce(), count)

    return noise_stage(_NAME, trust, init, draw)
