"""Tree aggregation: noise on the nodes of a binary tree over the rounds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError

from .separation import MOST_ROUNDS, Schema, tree_sensitivity
from .strategy import Draw, Strategy


def tree(*, rounds: int, restart_every: int | None = None) -> Strategy:
    r"""The noise of DP-FTRL: a running total is made of few noisy nodes instead of many rounds.

    The nodes of a binary tree over the rounds are noised as they close. A running total after t
    rounds is the sum of the nodes of t's binary digits: at most log2(t) + 1 of them, where
    independent noise would add up over t rounds.

    A node's sum is known twice: by itself, and by its two children. The *efficient* estimate of a
    node of height h is the mean of both with the least variance, :math:`a_h = 2^h/(2^{h+1}-1)` of
    the node's own value and :math:`1-a_h` of its children's estimates, which has the variance
    :math:`a_h`; it nearly halves that of high nodes. It is computed as *children +
    round(a_h (own - children))*: own and children stand for the same sum, so their difference is
    the same whether it is taken of noisy sums or of their noise alone; so is the result's noise.

    Args:
        rounds: of the run, 1 to 8,192.
        restart_every: begin a new tree after so many rounds, as where clients go round in epochs: a
            client that takes part once in each epoch is then on one path of each tree, and on none
            twice. None keeps one tree.

    Returns:
        A :class:`Strategy` for `correlated_noise`, for any participation schema.

    Raises:
        SpecError: not such numbers.

    Example:
        >>> once = tree(rounds=1000)
        >>> round(once.sensitivity(most=1) ** 2)
        10
        >>> [round(float(once.prefix_variance[t - 1]), 2) for t in (511, 512)]
        [5.3, 0.5]

    Source:
        Kairouz et al. 2021, "Practical and Private (Deep) Learning without Sampling or Shuffling",
        arXiv 2103.00039 (DP-FTRL, and its restarts); Honaker 2015, "Efficient Use of Differentially
        Private Binary Trees" (the estimate from below); Dwork et al. 2010, "Differential Privacy
        Under Continual Observation" (the tree).
    """
    _require_rounds("tree", "rounds", rounds, MOST_ROUNDS)
    period = rounds if restart_every is None else restart_every
    _require_rounds("tree", "restart_every", period, rounds)
    heights = period.bit_length()
    weight = np.array([2.0**h / (2.0 ** (h + 1) - 1.0) for h in range(heights)])

    def memory(dim: int) -> Any:
        return {"round": jnp.int32(0), "waiting": jnp.zeros((heights, dim), jnp.int32)}

    def noise(memory: Any, draw: Draw) -> tuple[jax.Array, Any]:
        time, waiting = memory["round"] % period + 1, memory["waiting"]
        height = jax.lax.population_count((time & -time) - 1)

        def close(h: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            right, left_nodes = found
            own, left = draw(h), waiting[jnp.maximum(h - 1, 0)]
            children = left + right
            apart = (own - children).astype(jnp.float32)
            own_part = jnp.round(jnp.asarray(weight, jnp.float32)[h] * apart).astype(jnp.int32)
            node = jnp.where(h == 0, own, children + own_part)
            return node, jnp.where(h == 0, 0, left_nodes + left)

        # One loop for leaf and nodes: what draws is compiled once.
        nothing = jnp.zeros_like(waiting[0])
        closed, replaced = jax.lax.fori_loop(0, height + 1, close, (nothing, nothing))
        # The total gains the closed node, and loses the nodes that it is made of.
        after = {"round": memory["round"] + 1, "waiting": waiting.at[height].set(closed)}
        return closed - replaced, after

    return Strategy(
        name="tree", settings=f"{rounds=}, restart_every={period}", rounds=rounds,
        rows_by_round=_nodes_closed(rounds, period), rows_per_round=2, least_separation=1,
        memory=memory, noise=noise,
        squared_sensitivity=functools.partial(_sensitivity, restart_every=period),
        prefix_variance=_prefix_variance(rounds, period, weight),
        round_variance=_round_variance(weight),
        # Estimates are means; a total's change holds one, and less one for each lower height.
        largest_noise=lambda draw: (heights + 1) * (draw + 1) * 2)


@functools.lru_cache(maxsize=32)
def _remembered(schema: Schema, restart_every: int) -> np.ndarray:
    found = tree_sensitivity(schema, restart_every)
    found.flags.writeable = False
    return found


def _sensitivity(schema: Schema, restart_every: int) -> np.ndarray:
    return _remembered(schema, restart_every)


def _nodes_closed(rounds: int, period: int) -> np.ndarray:
    times = np.arange(rounds) % period + 1
    return np.cumsum(np.log2(times & -times).astype(np.int64) + 1)


def _prefix_variance(rounds: int, period: int, weight: np.ndarray) -> np.ndarray:
    """Digits of a round's place in its period, and all of the periods before."""
    times = np.arange(1, rounds + 1)
    place = (times - 1) % period + 1
    within = sum(((place >> h) & 1) * value for h, value in enumerate(weight))
    whole = sum(((period >> h) & 1) * value for h, value in enumerate(weight))
    return within + (times - 1) // period * whole


def _round_variance(weight: np.ndarray) -> float:
    """The largest variance of one round's change of the total, by the height that it closes."""
    largest = 0.0
    for height in range(len(weight)):
        kept = np.cumprod(1.0 - weight[1:height + 1][::-1])[::-1]  # of what height h - 1 gives
        kept = np.append(kept, 1.0)
        own = weight[: height + 1] * kept
        left = kept[:height] - 1.0
        largest = max(largest, float(np.sum(own**2) + np.sum(left**2 * weight[:height])))
    return largest


def _require_rounds(where: str, name: str, value: object, most: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and 1 <= value <= most):
        raise SpecError(where, need=f"{name}, a whole number from 1 to {most}", found=repr(value),
                        fix="Give the rounds that the run will have, for example rounds=200.")
