"""Gaussian noise in floating point, for comparison with papers; its guarantee is not exact."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ...core import Mechanism, Spec, Stage, Stream
from ...core.spec import Trust
from ...core.stage import need
from .placing import draws_of, need_multiplier, need_trust, noise_stage, noised

_NAME = "gaussian"


class FloatNoiseWarning(UserWarning):
    """Noise in floating point leaves gaps that can give a unit away.

    `gaussian` warns with it. Make it an error where only integer noise may run.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", FloatNoiseWarning)
        ...     gaussian(1.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fedjax_secure.privacy.noise.float_gaussian.FloatNoiseWarning: gaussian(...) draws noise ...
    """


def gaussian(noise_multiplier: float, *, missing_shares: int = 0,
             trust: Trust = "distributed") -> Stage:
    """Add float32 Gaussian noise to float values. Use `discrete_gaussian` instead.

    It is here to repeat what papers did. The floats that a sampler can return, and those that are
    left after adding a value, are few enough to tell neighbouring datasets apart: with float32
    noise 89% of the outputs of a query of 0 are impossible for a query of 1.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        missing_shares, trust: as for `discrete_gaussian`.

    Returns:
        A stage; its mechanism, and every record of its rounds, is marked ``arithmetic="float"``.

    Guarantees:
        That of the Gaussian mechanism, if floats were real numbers. They are not.

    Raises:
        SpecError: values that are not clipped floats.

    Warns:
        FloatNoiseWarning: always.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     stage = gaussian(1.0)
        >>> stage.name, "Mironov 2012" in str(caught[0].message)
        ('gaussian', True)

    Source:
        Mironov 2012, "On Significance of the Least Significant Bits for Differential Privacy"
        (the attack); Box, Muller 1958 (the sampler).
    """
    need_multiplier(_NAME, noise_multiplier)
    need_trust(_NAME, trust, missing_shares)
    warnings.warn(
        "gaussian(...) draws noise in floating point, which can give a unit away (Mironov 2012, "
        "least significant bits): its epsilon is that of real numbers. Use quantise(...) and "
        "discrete_gaussian(...) where privacy matters.", FloatNoiseWarning, stacklevel=2)

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype == "float32", _NAME, "float values", spec.dtype,
             "Leave quantise(...) out, or better: keep it, and use discrete_gaussian(...).")
        need(spec.mechanism is None, _NAME, "a value without noise", "one that has its noise",
             "Keep one noise stage in the chain.")
        need(spec.l2_bound is not None, _NAME, "a bounded L2 norm", "no bound",
             "Put clip(...) before it.")
        assert spec.l2_bound is not None
        draws = draws_of(_NAME, spec, trust, missing_shares)
        # Room for what float32 rounds after clipping, a rotation at the most.
        bound = spec.l2_bound * (1.0 + (spec.dim + 1024) / 2.0**25)
        stddev = noise_multiplier * bound / math.sqrt(draws.counted)
        mechanism = Mechanism(
            noise_multiplier=float(noise_multiplier), log_ratio=0.0, total_variation=0.0,
            rounded_unit_l2=bound, share_stddev=stddev, num_shares=draws.counted, trust=trust,
            arithmetic="float")
        return {"stddev": jnp.float32(stddev)}, noised(_NAME, spec, mechanism, draws)

    def draw(state: Any, stream: Stream, count: int) -> jax.Array:
        return state["stddev"] * standard_normal(stream.words(2 * count).reshape(2, count))

    return noise_stage(_NAME, trust, init, draw)


def standard_normal(words: jax.Array) -> jax.Array:
    """Standard normal floats from uniform words, [2, n] uint32 to [n] float32.

    Example:
        >>> f"{float(standard_normal(jnp.full((2, 1), 1 << 31, jnp.uint32))[0]):.4f}"
        '-1.1774'
    """
    uniform = ((words >> 8).astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(2.0**-24)
    radius = jnp.sqrt(-2.0 * jnp.log(uniform[0]))
    return radius * jnp.cos(jnp.float32(2.0 * math.pi) * uniform[1])
