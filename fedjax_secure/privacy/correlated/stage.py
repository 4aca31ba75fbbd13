"""The stage that adds correlated noise: whoever opens sums draws it and remembers it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import discrete_gaussian as kernel

from ...core import Mechanism, Spec, SpecError, Stage, Stream
from ...core.stage import need
from ..accounting import DiscreteGaussianSum, share_stddev_for
from ..noise.placing import Draws, need_integers, need_multiplier, noised
from .separation import Schema
from .strategy import Strategy

_NAME = "correlated_noise"
#: The part of the whole that every round is charged at the least, so that each has its entry.
_LEAST_SHARE = 1e-9


def correlated_noise(noise_multiplier: float, strategy: Strategy) -> Stage:
    """Add noise that partly cancels in the running totals of a run's rounds: DP-FTRL, BandMF.

    A model is the running total of what rounds add to it. Independent noise adds up in it; noise
    that later rounds take back does not, for the same privacy. This needs no sampling: the rounds
    in which one client takes part are few, or far apart, and that is what is counted on. Use it
    with a selection that promises it, such as ``fs.selection.separated_clients(...)``, and any
    server that adds up what it gets: `fed_avg` is DP-FTRL then, `fed_avg_m` is DP-FTRL with
    momentum.

    Args:
        noise_multiplier: of the run as a whole: standard deviation over sensitivity of the one
            Gaussian that all of its rounds together are accounted as;
            ``fs.privacy.calibrate(target_epsilon=..., dp_delta=..., rounds=1, sampling_rate=1)``.
        strategy: how noise is correlated: `tree` or `banded`, for so many rounds as the run has.

    Returns:
        A stage that whoever opens sums applies (``trust="central"``); the last in the chain, or
        right before an encryption.

    Guarantees:
        All rounds together are accounted as one Gaussian of this multiplier (up to the slack of
        integer noise): see :mod:`~fedjax_secure.privacy.correlated.strategy` for the proof. A
        budget is charged round by round, by what was released so far. The epsilon of the run is
        known before it begins, and a run that stops early has paid for no more than it showed.
        Noise is discrete and everything done with it is integer arithmetic, or a function of
        integers that is the same whether it is computed of the noise or of the noised sums.
        The opener alone remembers noise, and keeps on disk only the keys it was drawn with.

    Assumes:
        Whoever opens the sums adds the noise as planned, and is trusted with the sums. Not made
        of clients' shares: those of later rounds would have to take back what those of earlier
        rounds have added, and remember it. No draw of clients amplifies this; none is claimed.

    Raises:
        SpecError: values that are no integers; sampling by secret coins; rounds of one client that
            may be closer than the strategy allows; noise too wide for the sampler or the ring.

    Example:
        >>> from fedjax_secure.privacy.correlated import tree
        >>> correlated_noise(noise_multiplier=1.0, strategy=tree(rounds=100)).name
        'correlated_noise'

    Source:
        Kairouz et al. 2021, arXiv 2103.00039 (DP-FTRL); Denisov et al. 2022, arXiv 2202.08312
        (adaptive streams); Choquette-Choo et al. 2023, arXiv 2306.08153 (BandMF).
    """
    need_multiplier(_NAME, noise_multiplier)
    need(isinstance(strategy, Strategy), _NAME, "a strategy", f"{strategy!r:.80}",
         "Give fs.privacy.tree(rounds=...) or fs.privacy.banded(rounds=..., bands=...).")

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_integers(_NAME, spec)
        assert spec.l2_bound is not None
        squares = strategy.squared_sensitivity(_schema(strategy, spec))
        sensitivity = spec.l2_bound * math.sqrt(int(squares[-1]))
        stddev = share_stddev_for(noise_multiplier, unit_l2=sensitivity, dim=spec.dim,
                                  honest_shares=1)
        need(stddev <= kernel.MAX_WIDE_SIGMA, _NAME,
             f"draws of stddev up to {kernel.MAX_WIDE_SIGMA:.0f} integer units", f"{stddev:.0f}",
             "Lower quantise(scale=...), noise_multiplier or banded(grid_bits=...).")
        table = kernel.sampler(stddev)
        need(strategy.largest_noise(float(table.max_magnitude)) < 2.0**31, _NAME,
             "noise that fits 32 bits on the way", f"draws up to {table.max_magnitude}",
             "Lower quantise(scale=...), noise_multiplier or banded(grid_bits=...).")
        row = DiscreteGaussianSum(share_stddev=stddev, num_shares=1, unit_l2=sensitivity,
                                  dim=spec.dim, total_variation=float(table.total_variation))
        rows = strategy.rows_per_round
        in_a_round = stddev * math.sqrt(strategy.round_variance)
        mechanism = Mechanism(
            noise_multiplier=row.noise_multiplier,
            log_ratio=rows * (row.log_ratio + float(table.log_ratio) * spec.dim),
            total_variation=rows * row.total_variation_per_round, rounded_unit_l2=spec.l2_bound,
            share_stddev=in_a_round, num_shares=1, trust="central", schedule=_shares(squares))
        # The sum of independent draws keeps their bound; rounding moves it by a unit or less.
        changed = noised(_NAME, spec, mechanism, Draws(1, 1), tail_variance=(in_a_round + 1.0)**2)
        return {"table": table}, changed

    def nothing(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        return value

    def memory(state: Any, dim: int) -> Any:
        return strategy.memory(dim)

    def release(state: Any, stream: Stream, total: jax.Array, memory: Any) -> tuple[Any, Any]:
        def draw(number: Any) -> jax.Array:
            return kernel.draw(state["table"], stream.key, stream.nonce(number), total.shape[0])

        noise, after = strategy.noise(memory, draw)
        return jnp.asarray(total) + noise.astype(total.dtype), after

    return Stage(_NAME, init, nothing, release=release, memory=memory)


def _schema(strategy: Strategy, spec: Spec) -> Schema:
    """What the selection promises of one client's rounds, and so of its records'."""
    if spec.sampling_rate != 1.0:
        raise SpecError(
            f"stage `{_NAME}`", need="a selection by which nothing is amplified",
            found="secret coins, whose amplification is not known for this noise",
            fix="Use fs.selection.separated_clients(...).")
    told = spec.sampling
    separation = 1 if told is None else told.separation
    most = None if told is None else told.most_rounds
    if separation < strategy.least_separation:
        raise SpecError(
            f"stage `{_NAME}` with {strategy!r}", need="rounds of one client at least "
            f"{strategy.least_separation} apart", found=f"a selection that promises {separation}",
            fix="Use fs.selection.separated_clients(..., separation="
            f"{strategy.least_separation}), fewer bands, or tree(...).")
    return Schema.of(strategy.rounds, separation, most)


def _shares(squares: np.ndarray) -> tuple[float, ...]:
    """Each round's share of the squared loss of the run: see `strategy`, "Each round's part".

    A round after which no more is known of anyone still has a share of a billionth on top, so that
    every round has an entry in the budget; that much more than the whole is charged.
    """
    steps = np.diff(squares, prepend=0) / float(squares[-1])
    return tuple(float(step) + _LEAST_SHARE for step in steps)
