"""Discrete Laplace noise, also called geometric: epsilon without any delta."""

from __future__ import annotations

import math
from typing import Any

import jax

from fedjax_kernels import discrete_laplace as kernel

from ...core import Mechanism, Spec, Stage, Stream
from ...core.spec import Trust
from ...core.stage import need
from .placing import draws_of, l1_bound, need_integers, need_trust, noise_stage, noised

_NAME = "discrete_laplace"
_NARROWEST = 0.2  # above 1 / (2 pi), which the tail bound needs


def discrete_laplace(epsilon: float, *, trust: Trust = "central") -> Stage:
    r"""Add discrete Laplace noise to integers: pure epsilon-differential privacy a round.

    For few values: counts, histograms, means of a handful of figures. Its noise follows a unit's L1
    norm, which is up to sqrt(dim) times the L2 norm that is clipped, so for a model's gradients
    `discrete_gaussian` is far better.

    Args:
        epsilon: of one round, for one unit; 1e-6 to 50.
        trust: ``"central"``: whoever opens the sum adds the noise. ``"local"``: each client adds
            all of the noise to its own message.

    Returns:
        A stage that sets ``noise_stddev`` and ``mechanism`` (of kind ``"pure"``).

    Guarantees:
        In each value the noise z has probability proportional to :math:`e^{-|z|/b}` with b the
        L1 distance of neighbours over epsilon, so neighbouring sums have a ratio of at most
        :math:`e^{\epsilon}` everywhere, up to the sampler's stated total variation. Neighbours are
        one unit's L1 norm apart, or two where one client's value is replaced (``"local"``).

        Tail, for the ring: with s = 1/b, :math:`\log E e^{tX} = 2\log\sinh\frac s2 -
        \log\sinh\frac{s+t}2 - \log\sinh\frac{s-t}2`. With
        :math:`\sinh x = x\prod_k(1 + x^2/\pi^2k^2)` this is :math:`-\log(1 - t^2/s^2)` plus, for
        each k and with :math:`a = 1/4\pi^2k^2`, the term
        :math:`-\log\frac{(1 + a(s+t)^2)(1 + a(s-t)^2)}{(1 + as^2)^2}`, whose numerator exceeds the
        denominator by :math:`2at^2 + a^2t^4 - 2a^2s^2t^2 \ge 0` where :math:`s \le 2\pi`. So it is
        at most :math:`-\log(1 - t^2/s^2) \le b^2t^2/(1 - bt)`: v = 2 b^2 and c = b.

    Raises:
        SpecError: the values are not integers, epsilon is so large that the noise is narrower
            than a unit's rounding, or the ring has no room.

    Example:
        >>> import fedjax_secure as fs
        >>> chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=20, scale=64.0),
        ...                  discrete_laplace(0.5))
        >>> _, spec = chain.init(Spec(dim=3, num_clients=4, num_records=4, denominator=4.0))
        >>> round(dict(spec.mechanism.parameters)["epsilon"], 6)
        0.5

    Source:
        Ghosh, Roughgarden, Sundararajan 2012, "Universally Utility-Maximizing Privacy Mechanisms"
        (the geometric mechanism); Dwork, McSherry, Nissim, Smith 2006 (the L1 sensitivity).
    """
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    need(number and 1e-6 <= epsilon <= 50, _NAME, "an epsilon from 1e-6 to 50",
         f"epsilon={epsilon!r}", "Give 1.0, for example.")
    need_trust(_NAME, trust, among=("central", "local"))

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_integers(_NAME, spec)
        assert spec.l2_bound is not None
        draws = draws_of(_NAME, spec, trust, 0)
        replaced = trust == "local" and spec.unit == "client"
        distance = l1_bound(spec) * (2.0 if replaced else 1.0)
        scale = distance / epsilon * (1.0 + 1e-12)
        need(_NARROWEST <= scale <= kernel.MAX_SCALE, _NAME,
             f"noise of scale {_NARROWEST} to {kernel.MAX_SCALE:.0f} integer units",
             f"{scale:.3g}", "Quantise on a finer grid (more bits), or lower epsilon."
             if scale < 1 else "Lower quantise(scale=...), or raise epsilon.")
        table = kernel.sampler(scale)
        stddev = math.sqrt(2.0 * math.exp(-1.0 / scale)) / -math.expm1(-1.0 / scale)
        mechanism = Mechanism(
            noise_multiplier=None,
            log_ratio=float(table.log_ratio) * spec.dim * draws.counted,
            total_variation=float(table.total_variation) * spec.dim * draws.counted,
            rounded_unit_l2=spec.l2_bound, share_stddev=stddev, num_shares=draws.counted,
            kind="pure", parameters=(("epsilon", distance / scale),), trust=trust)
        return {"table": table}, noised(_NAME, spec, mechanism, draws, tail_scale=scale,
                                        tail_variance=2.0 * scale**2)

    def draw(state: Any, stream: Stream, count: int) -> jax.Array:
        return kernel.draw(state["table"], stream.key, stream.nonce(), count)

    return noise_stage(_NAME, trust, init, draw)
