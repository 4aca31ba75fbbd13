"""Amplification by shuffling: against the authors' published figures, an exact computation that
shares no step with ours, and randomised response, whose shuffled reports are known exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_secure.core import SeededSource, SpecError
from fedjax_secure.privacy import Spend, compose
from fedjax_secure.privacy.accounting import renyi_of
from fedjax_secure.privacy.shuffle import (
    amplified_epsilon,
    local_epsilon_for,
    profile,
    shuffled,
)


def hockey_stick(p: dict, q: dict, epsilon: float) -> float:
    outcomes = p.keys() | q.keys()
    return sum(max(p.get(o, 0.0) - math.exp(epsilon) * q.get(o, 0.0), 0.0) for o in outcomes)


def clones_pair(local_epsilon: float, reports: int) -> tuple[dict, dict]:
    """The two distributions of (C, A + X) and (C, A + 1 - X), outcome by outcome, in fractions."""
    keep = Fraction(math.exp(-local_epsilon))
    right = 1 / (1 + keep)
    p: dict = {}
    q: dict = {}
    n = reports - 1
    for c in range(n + 1):
        weight = math.comb(n, c) * keep**c * (1 - keep) ** (n - c)
        for a in range(c + 1):
            mass = weight * Fraction(math.comb(c, a), 2**c)
            for x, probability in ((1, right), (0, 1 - right)):
                p[c, a + x] = p.get((c, a + x), 0) + mass * probability
                q[c, a + 1 - x] = q.get((c, a + 1 - x), 0) + mass * probability
    return ({k: float(v) for k, v in p.items()}, {k: float(v) for k, v in q.items()})


@pytest.mark.parametrize("local_epsilon", [0.3, 1.0, 3.0, 45.0])
@pytest.mark.parametrize("reports", [1, 2, 9, 24])
def test_the_profile_is_the_exact_divergence_of_the_pair(local_epsilon, reports):
    p, q = clones_pair(local_epsilon, reports)
    for epsilon in (0.0, 0.05, 0.2, 0.7, 1.5, 38.0, 44.0):
        exact = max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon))
        found = float(profile(epsilon, local_epsilon=local_epsilon, reports=reports))
        assert exact - 1e-14 <= found <= exact * (1 + 1e-6) + 1e-13


def test_the_authors_published_example():
    """README of the authors' program: between 0.16754 and 0.17279; closed form 0.53780402..."""
    setting = {"local_epsilon": 4.0, "reports": 10**5, "dp_delta": 1e-6}
    assert 0.1675385583317841 <= amplified_epsilon(**setting) <= 0.172790550755978
    assert amplified_epsilon(**setting, bound="closed_form") == pytest.approx(
        0.53780402423745121, abs=1e-12)


@pytest.mark.parametrize(
    ("local_epsilon", "reports", "dp_delta", "low", "high"),
    # Lower and upper bounds that the authors' program printed, run for this test.
    [(1.0, 1000, 1e-6, 0.18241483539001963, 0.19025456018184284),
     (2.0, 10**4, 1e-5, 0.13024380643421707, 0.13577813986868853),
     (0.5, 100, 1e-3, 0.1118316650390625, 0.12567901611328125),
     (1.0, 10**4, 1e-6, 0.05293466103442859, 0.054821116813627564)],
)
def test_figures_lie_between_the_authors_bounds(local_epsilon, reports, dp_delta, low, high):
    found = amplified_epsilon(local_epsilon=local_epsilon, reports=reports, dp_delta=dp_delta)
    assert low * (1 - 3e-5) <= found <= high  # their bisection stops at 2^-16 of the interval


def shuffled_responses(local_epsilon: float, reports: int, first: int, ones: int) -> dict:
    """How many of the shuffled binary responses are 1, exactly: `ones` of the others answer 1."""
    right = 1 / (1 + math.exp(-local_epsilon))
    others = np.convolve(stats.binom.pmf(range(ones + 1), ones, right),
                         stats.binom.pmf(range(reports - ones), reports - 1 - ones, 1 - right))
    own = [1 - right, right] if first else [right, 1 - right]
    return dict(enumerate(np.convolve(others, own)))


@pytest.mark.parametrize("local_epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("reports", [5, 40, 400])
def test_no_shuffled_randomised_response_costs_more_than_the_bound(local_epsilon, reports):
    for ones in {0, reports // 2, reports - 1}:
        p = shuffled_responses(local_epsilon, reports, 1, ones)
        q = shuffled_responses(local_epsilon, reports, 0, ones)
        for epsilon in (0.0, 0.1, 0.4, 1.0):
            truth = max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon))
            bound = float(profile(epsilon, local_epsilon=local_epsilon, reports=reports))
            assert truth <= bound + 1e-13


def test_the_bound_is_not_far_above_what_randomised_response_really_costs():
    """A lower bound: the true divergence of shuffled binary responses is reached within 2x."""
    p = shuffled_responses(1.0, 2000, 1, 0)
    q = shuffled_responses(1.0, 2000, 0, 0)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        truth = max(hockey_stick(p, q, middle), hockey_stick(q, p, middle))
        low, high = (middle, high) if truth > 1e-6 else (low, middle)
    bound = amplified_epsilon(local_epsilon=1.0, reports=2000, dp_delta=1e-6)
    assert 0.5 * bound < high <= bound


@settings(max_examples=25)
@given(st.floats(0.05, 6.0), st.integers(1, 10**6), st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_more_reports_and_less_local_epsilon_never_cost_more(local_epsilon, reports, dp_delta):
    cost = amplified_epsilon(local_epsilon=local_epsilon, reports=reports, dp_delta=dp_delta)
    assert 0 <= cost <= local_epsilon
    more = amplified_epsilon(local_epsilon=local_epsilon, reports=2 * reports, dp_delta=dp_delta)
    assert more <= cost * (1 + 1e-3) + 1e-9  # groups of clones differ a little
    less = amplified_epsilon(local_epsilon=local_epsilon / 2, reports=reports, dp_delta=dp_delta)
    assert less <= cost * (1 + 1e-3) + 1e-9
    closed = amplified_epsilon(local_epsilon=local_epsilon, reports=reports, dp_delta=dp_delta,
                               bound="closed_form")
    assert cost <= closed * (1 + 1e-9)


def test_the_local_epsilon_that_meets_a_target():
    found = local_epsilon_for(target_epsilon=0.3, reports=5000, dp_delta=1e-6)
    cost = amplified_epsilon(local_epsilon=found, reports=5000, dp_delta=1e-6)
    assert 0.3 * (1 - 1e-3) < cost <= 0.3
    # One report alone gains only what its delta pays for, so far off that the search stops there.
    alone = local_epsilon_for(target_epsilon=0.3, reports=1, dp_delta=1e-6)
    assert 0.3 <= alone < 0.3 + 1e-4


def spend(local_epsilon: float, reports: int, rounds: int = 1) -> Spend:
    return Spend(None, 1.0, "person", rounds, "replace_one", kind="shuffled",
                 parameters={"epsilon": local_epsilon, "reports": reports})


def test_one_accounted_round_costs_what_the_profile_says():
    for local_epsilon, reports, dp_delta in ((4.0, 10**5, 1e-6), (0.5, 30, 1e-3), (2.0, 2, 1e-4)):
        direct = amplified_epsilon(local_epsilon=local_epsilon, reports=reports, dp_delta=dp_delta)
        assert compose([spend(local_epsilon, reports)], dp_delta) == pytest.approx(
            direct, rel=1e-3)


def test_several_rounds_compose_as_the_exact_pairs_do():
    """The product of three rounds' pairs, outcome by outcome, for four people."""
    p, q = clones_pair(1.0, 4)
    keys = sorted(p.keys() | q.keys())
    one_p = np.array([p.get(k, 0.0) for k in keys])
    one_q = np.array([q.get(k, 0.0) for k in keys])
    three_p = np.einsum("i,j,k->ijk", one_p, one_p, one_p).ravel()
    three_q = np.einsum("i,j,k->ijk", one_q, one_q, one_q).ravel()
    for dp_delta in (1e-2, 1e-4):
        epsilon = compose([spend(1.0, 4, rounds=3)], dp_delta)
        truth = np.maximum(three_p - math.exp(epsilon) * three_q, 0).sum()
        assert truth <= dp_delta * (1 + 1e-9)
        tighter = np.maximum(three_p - math.exp(epsilon - 0.02) * three_q, 0).sum()
        assert tighter > dp_delta  # and no more than 0.02 is lost


def test_a_hundred_rounds_cost_about_ten_times_one():
    one, hundred = (compose([spend(4.0, 10**5, rounds)], 1e-6) for rounds in (1, 100))
    assert 8 * one < hundred < 13 * one


def test_what_is_no_shuffled_local_mechanism_is_refused():
    with pytest.raises(SpecError, match="replace_one"):
        Spend(None, 1.0, "person", kind="shuffled", parameters={"epsilon": 1.0, "reports": 10})
    with pytest.raises(SpecError, match="covers"):
        Spend(None, 0.5, "person", adjacency="replace_one", kind="shuffled",
              parameters={"epsilon": 1.0, "reports": 10})
    with pytest.raises(SpecError, match="accepted bound"):
        renyi_of(spend(1.0, 10))
    for wrong in ({"local_epsilon": 0.0}, {"local_epsilon": math.nan}, {"reports": 0},
                  {"reports": 2.5}, {"dp_delta": 0.0}, {"bound": "exact"}):
        with pytest.raises(SpecError):
            amplified_epsilon(**{"local_epsilon": 1.0, "reports": 10, "dp_delta": 1e-6, **wrong})


def test_a_shuffle_keeps_the_messages_and_every_place_is_as_likely():
    """One message's place over 4,000 shuffles of five; false alarms below 1e-6."""
    counts = np.zeros(5)
    for seed in range(4000):
        order = shuffled(list(range(5)), source_of_keys=SeededSource(seed))
        assert sorted(order) == list(range(5))
        counts[order.index(0)] += 1
    assert stats.chisquare(counts).pvalue > 1e-6
    assert shuffled([]) == []
