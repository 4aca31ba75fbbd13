r"""Amplification by shuffling: what locally private reports cost once nobody knows who sent which.

n people each send one report made by the same epsilon0-locally private randomiser R. Somebody who
is trusted to do only this puts the reports in random order before anyone who is curious sees them.
The others' reports then hide each person's, and the guarantee of the order-less reports is much
stronger than epsilon0, at the price of a delta.

The analysis (Feldman, McMillan, Talwar 2021, "Hiding among the clones", arXiv 2012.12803), for two
datasets that differ in the first person's value, x0 or x1, step by step:

1. *The first person.* Any epsilon0-DP pair is a mixture of two distributions Q0, Q1 with odds
   e^epsilon0: R(x0) = a Q0 + (1 - a) Q1 and R(x1) = (1 - a) Q0 + a Q1, a = e^epsilon0 /
   (e^epsilon0 + 1) (Kairouz, Oh, Viswanath 2015).
2. *The others.* R(x) >= e^-epsilon0 R(x0) and R(x) >= e^-epsilon0 R(x1) for every x, so R(x) is a
   mixture that with probability e^-epsilon0 / 2 draws from R(x0), with the same probability from
   R(x1), and else from something that does not depend on the first person. As R(x0) + R(x1) =
   Q0 + Q1, this is: with probability e^-epsilon0 / 2 each a draw from Q0 and from Q1.
3. *Counting.* Tell the attacker more: who of the others drew from Q0 or Q1 (C of them, a binomial
   of n - 1 and e^-epsilon0), though not which, and all other reports. What is left to see of the
   C + 1 remaining reports is how many come from Q0: A + X under x0 and A + 1 - X under x1, with A
   binomial of C and 1/2, and X = 1 with probability a. The shuffled reports are a randomised
   function of (C, that number), so its hockey-stick divergences bound theirs.
4. *More clones hide better.* Given C = c + 1, the number is that for c plus a fair coin that tells
   nothing. So the divergence falls with c, and grouping values of C at their smallest only raises
   the bound. That is how :func:`profile` stays fast for millions of reports.

The tighter general bounds of Feldman, McMillan, Talwar 2023 ("Stronger privacy amplification by
shuffling", arXiv 2208.04591) are **not** used: the authors' erratum withdraws their proof for
general randomisers.

Who must be trusted: whoever shuffles does not tell the order, nor the senders, and does not
collude with whoever reads; of the n reports only those of people who do not collude count. Where
clients' messages are only ever *summed* under encryption, the opened sum is a function of the
multiset of messages, so the same guarantee holds with the opener in place of a shuffler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from scipy import stats

from fedjax_secure.core import Source, SpecError, source
from fedjax_secure.core.randomness import host_shuffles

_MOST_GROUPS = 1024  # of values of C
_TAIL = 1e-15  # of C, beyond which the worst is assumed
_MOST_REPORTS = 10**9


def profile(epsilon: float | np.ndarray, *, local_epsilon: float, reports: int) -> np.ndarray:
    """The delta at which shuffled reports are (epsilon, delta)-DP.

    Use it for the whole trade-off; :func:`amplified_epsilon` for one figure.

    Guarantees:
        The shuffled reports are (epsilon, result)-DP for every epsilon asked, under replacement of
        one person's value (steps 1 to 4 of the module). Values below 1e-13 are rounding noise.

    Args:
        epsilon: of the guarantee, 0 or more; any shape.
        local_epsilon: epsilon0 of the randomiser that everyone uses.
        reports: how many reports are shuffled whose senders do not collude.

    Returns:
        delta, float64 of the same shape.

    Raises:
        SpecError: a value out of range.

    Example:
        >>> round(float(profile(0.17, local_epsilon=4.0, reports=100_000)) / 1e-6, 1)
        1.0

    Source:
        Feldman, McMillan, Talwar 2021, arXiv 2012.12803, the reduction to counting clones.
    """
    _require(local_epsilon, reports)
    wanted = np.asarray(epsilon, np.float64)
    if wanted.size and not (np.all(np.isfinite(wanted)) and wanted.min() >= 0):
        raise SpecError("shuffle.profile", need="finite epsilon of 0 or more",
                        found=f"{wanted.ravel()[:5].tolist()}", fix="Give for example 0.5.")
    clones, weights = _clones(float(local_epsilon), int(reports))
    found = [_divergence(float(e), float(local_epsilon), clones) @ weights for e in wanted.ravel()]
    return np.minimum(np.array(found, np.float64) * (1 + 1e-9) + 1e-17, 1.0).reshape(wanted.shape)


def amplified_epsilon(
    *, local_epsilon: float, reports: int, dp_delta: float,
    bound: Literal["numerical", "closed_form"] = "numerical",
) -> float:
    """Epsilon of shuffled reports at ``dp_delta``; never above ``local_epsilon``.

    Use it to tell people what their reports cost together with the others'. To account several
    rounds, compose spends of kind ``"shuffled"``: their whole profile is far cheaper than the sum
    of their epsilons.

    Guarantees:
        The shuffled reports are (result, dp_delta)-DP under replacement of one person's value.

    Assumes:
        Everyone uses the same randomiser, or one that whoever shuffles hands out in turn without
        looking at who comes. Nobody who reads the reports learns who sent which.

    Args:
        local_epsilon: epsilon0 of the randomiser; it must be epsilon0-DP, with no delta.
        reports: how many reports are shuffled whose senders do not collude.
        dp_delta: the delta of the guarantee.
        bound: ``"numerical"``, or ``"closed_form"`` of the paper's theorem, which is several
            times larger, and is ``local_epsilon`` where the theorem says nothing.

    Returns:
        epsilon.

    Raises:
        SpecError: a value out of range.

    Example:
        >>> round(amplified_epsilon(local_epsilon=4.0, reports=100_000, dp_delta=1e-6), 3)
        0.17
        >>> round(amplified_epsilon(local_epsilon=4.0, reports=3, dp_delta=1e-6), 3)
        4.0

    Source:
        Feldman, McMillan, Talwar 2021, arXiv 2012.12803: the reduction to counting clones, and its
        closed form in the version that the authors' published program computes.
    """
    _require(local_epsilon, reports)
    if not (isinstance(dp_delta, Real) and 1e-12 <= float(dp_delta) < 1):
        raise SpecError("shuffle.amplified_epsilon", need="dp_delta from 1e-12 to 1",
                        found=f"dp_delta={dp_delta!r}",
                        fix="Give a probability well below one over the number of people.")
    if bound not in ("numerical", "closed_form"):
        raise SpecError("shuffle.amplified_epsilon", need='bound "numerical" or "closed_form"',
                        found=repr(bound), fix='Use "numerical" for the tighter figure.')
    local_epsilon, reports = float(local_epsilon), int(reports)
    if bound == "closed_form":
        return _closed_form(local_epsilon, reports, float(dp_delta))
    return _numerical(local_epsilon, reports, float(dp_delta))


def local_epsilon_for(*, target_epsilon: float, reports: int, dp_delta: float) -> float:
    """The largest local epsilon whose shuffled reports cost at most ``target_epsilon``.

    Guarantees:
        ``amplified_epsilon`` of the result is at most ``target_epsilon``.

    Args:
        target_epsilon: what one round of shuffled reports may cost.
        reports: how many reports are shuffled whose senders do not collude.
        dp_delta: the delta of the guarantee.

    Returns:
        epsilon0 for the randomiser; ``target_epsilon`` itself where shuffling gains nothing.

    Raises:
        SpecError: a value out of range.

    Example:
        >>> found = local_epsilon_for(target_epsilon=0.5, reports=10_000, dp_delta=1e-6)
        >>> round(found, 2), amplified_epsilon(
        ...     local_epsilon=found, reports=10_000, dp_delta=1e-6) <= 0.5
        (3.7, True)
    """
    _require(target_epsilon, reports)
    low, high = float(target_epsilon), float(target_epsilon)
    while high < 50 and amplified_epsilon(
            local_epsilon=high, reports=reports, dp_delta=dp_delta) <= target_epsilon:
        low, high = high, high + 1.0
    while high - low > 1e-5:
        middle = 0.5 * (low + high)
        cost = amplified_epsilon(local_epsilon=middle, reports=reports, dp_delta=dp_delta)
        low, high = (middle, high) if cost <= target_epsilon else (low, middle)
    return low


def shuffled(messages: Sequence[Any], *, source_of_keys: Source | None = None) -> list[Any]:
    """The messages in a uniformly random order: what a shuffler hands on.

    Args:
        messages: one a person. They must not tell who sent them, by their length or otherwise.
        source_of_keys: where randomness comes from; None takes fresh secrets.

    Returns:
        The same messages in another order.

    Example:
        >>> sorted(shuffled(["b", "a", "c"]))
        ['a', 'b', 'c']
    """
    keys = source() if source_of_keys is None else source_of_keys
    order = host_shuffles(keys.key("shuffle"), np.array([len(messages)]))[0]
    return [messages[place] for place in order]


def loss_stddev(local_epsilon: float, reports: int) -> float:
    """About the standard deviation of the privacy loss of shuffled reports.

    With c clones the number that is seen has the log-odds of about 2 tanh(epsilon0 / 2) (2 A - c)
    / c, whose variance is 4 tanh^2 / c.

    Args:
        local_epsilon: epsilon0 of the randomiser that everyone uses.
        reports: how many reports are shuffled.

    Example:
        >>> round(loss_stddev(1.0, 1000), 4), round(loss_stddev(1.0, 100_000), 5)
        (0.0482, 0.00482)
    """
    clones = max(1.0, (reports - 1) * math.exp(-local_epsilon))
    return min(local_epsilon, 2.0 * math.tanh(local_epsilon / 2.0) / math.sqrt(clones))


def loss_reach(local_epsilon: float, reports: int) -> float:
    """An epsilon beyond which the shuffled reports' delta is below 1e-15, or epsilon0.

    Args:
        local_epsilon: epsilon0 of the randomiser that everyone uses.
        reports: how many reports are shuffled.

    Example:
        >>> reach = loss_reach(1.0, 1000)
        >>> reach < 1.0, float(profile(reach, local_epsilon=1.0, reports=1000)) < 1e-13
        (True, True)
        >>> loss_reach(1.0, 2)
        1.0
    """
    reach = 8.5 * loss_stddev(local_epsilon, reports)
    while reach < local_epsilon and profile(
            reach, local_epsilon=local_epsilon, reports=reports) > 1e-15:
        reach *= 1.25
    return min(reach, local_epsilon)


# -- the two bounds -------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _clones(local_epsilon: float, reports: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of clones and their probabilities, grouped at the smallest of each group."""
    drawn = stats.binom(reports - 1, math.exp(-local_epsilon))
    low, high = int(drawn.ppf(_TAIL)), int(drawn.isf(_TAIL))
    low, high = max(low, 0), min(high, reports - 1)
    edges = np.unique(np.linspace(low, high + 1, min(_MOST_GROUPS, high + 1 - low) + 1,
                                  dtype=np.int64))
    # Below the first edge no clone is assumed; what lies above the last counts at the last edge.
    below = drawn.cdf(edges - 1)
    weights = np.diff(np.append(below, 1.0))
    return np.append(0, edges), np.append(below[0], weights)


def _divergence(epsilon: float, local_epsilon: float, clones: np.ndarray) -> np.ndarray:
    """The hockey-stick divergence between A + X and A + 1 - X, for each number of clones.

    The likelihood ratio at a is (a r + 1 - a) / (a + (1 - a) r) in terms of the odds a =
    e^epsilon0 / (1 + e^epsilon0) and r = a's number / (c + 1 - a's number): it rises with the
    number, so the divergence is a difference of two tails. By symmetry both directions agree. The
    tail's end is counted from above, where the odds of a large epsilon0 leave no digits below.
    """
    if epsilon >= local_epsilon:
        return np.zeros(len(clones))
    right = 1.0 / (1.0 + math.exp(-local_epsilon))
    lead = -right * math.expm1(epsilon - local_epsilon)
    lag = right * (math.exp(epsilon) - math.exp(-local_epsilon))
    first = clones + 1 - np.ceil((clones + 1) * (lead / (lead + lag)))  # the tail lies above
    with_one, without = stats.binom.sf([first - 1, first], clones, 0.5)
    return np.maximum(lead * with_one - lag * without, 0.0)


@lru_cache(maxsize=256)
def _numerical(local_epsilon: float, reports: int, dp_delta: float) -> float:
    def delta(epsilon: float) -> float:
        return float(profile(epsilon, local_epsilon=local_epsilon, reports=reports))

    low, high = 0.0, local_epsilon
    if delta(low) <= dp_delta:
        return 0.0
    while high - low > 1e-7 * max(high, 1e-3):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if delta(middle) <= dp_delta else (middle, high)
    return high


def _closed_form(local_epsilon: float, reports: int, dp_delta: float) -> float:
    log = math.log(4.0 / dp_delta)
    if local_epsilon > math.log(max(reports / (16.0 * log), 1.0)):
        return local_epsilon
    hidden = 8.0 * math.sqrt(math.exp(local_epsilon) * log / reports)
    hidden += 8.0 * math.exp(local_epsilon) / reports
    share = -math.expm1(-local_epsilon) / (1.0 + math.exp(-local_epsilon) / (1.0 + hidden))
    return min(local_epsilon, math.log1p(share * hidden))


def _require(epsilon: object, reports: object) -> None:
    if not (isinstance(epsilon, Real) and not isinstance(epsilon, bool)
            and 0 < float(epsilon) <= 50):
        raise SpecError("shuffling", need="an epsilon above 0 and up to 50", found=repr(epsilon),
                        fix="Give the epsilon of one report on its own.")
    if not (isinstance(reports, Integral) and not isinstance(reports, bool)
            and 1 <= int(reports) <= _MOST_REPORTS):
        raise SpecError("shuffling", need=f"a number of reports from 1 to {_MOST_REPORTS}",
                        found=repr(reports), fix="Count the reports whose senders do not collude.")
