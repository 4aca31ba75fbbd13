"""Lower bounds from guesses: closed forms, another implementation's values, and error rates."""

from __future__ import annotations

import bisect
import json
import math
from fractions import Fraction
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_secure.core import SpecError
from fedjax_secure.privacy.audit import (
    AuditResult,
    Rates,
    Tally,
    clopper_pearson,
    counts_ladder,
    gaussian_epsilon,
    gaussian_separation,
    guess,
    one_run_bound,
    one_run_epsilon,
    one_run_gaussian_epsilon,
    one_run_p_value,
    runs_bound,
    runs_epsilon,
    runs_gaussian_epsilon,
    tally,
)

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "one_run_audits.json").read_text())


def rows(part):
    return [dict(zip(VECTORS[f"{part}_columns"], row, strict=True)) for row in VECTORS[part]]


def test_one_run_bounds_are_those_of_jax_privacy():
    for row in rows("one_run"):
        score = Tally(row["canaries"], row["guesses"], row["correct"])
        how = {"dp_delta": row["dp_delta"], "confidence": row["confidence"]}
        p_value = one_run_p_value(score, epsilon=1.0, dp_delta=row["dp_delta"])
        assert p_value == pytest.approx(row["p_value_at_epsilon_1"], rel=1e-9)
        # their root is found to 1e-6
        assert one_run_epsilon(score, **how) == pytest.approx(row["epsilon"], abs=3e-6)
        assert one_run_gaussian_epsilon(score, **how) == pytest.approx(
            row["gaussian_epsilon"], abs=3e-6)


def test_bounds_from_rates_are_those_of_jax_privacy():
    for row in rows("runs"):
        # theirs is one-sided here: the rates of saying "in" alone
        epsilon, how = row.pop("epsilon"), {k: row.pop(k) for k in ("dp_delta", "confidence")}
        assert runs_epsilon(Rates(**row), **how) >= epsilon - 1e-9
        least, _ = clopper_pearson(row["true_positives"], row["runs_with"], confidence=0.975)
        _, most = clopper_pearson(row["false_positives"], row["runs_without"], confidence=0.975)
        one_sided = max(0.0, math.log((least - how["dp_delta"]) / most))
        assert one_sided == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize("size, dp_delta, printed", [
    ((1000, 100, 75), 1e-4, 0.673),  # Appendix D
    ((100_000, 1510, 1439), 1e-5, 2.675),  # section 7
])
def test_the_papers_own_figures(size, dp_delta, printed):
    """Steinke, Nasr, Jagielski 2023, arXiv 2305.08846: rounded or cut to three digits."""
    assert abs(one_run_epsilon(Tally(*size), dp_delta=dp_delta) - printed) < 1e-3


@pytest.mark.parametrize("guesses", [1, 5, 59, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_all_right_without_delta_has_a_closed_form(guesses, confidence):
    """e^epsilon / (1 + e^epsilon) to the power of the guesses is 1 - confidence."""
    chance = (1.0 - confidence) ** (1.0 / guesses)
    expected = max(0.0, math.log(chance / (1.0 - chance)))
    found = one_run_epsilon(Tally(guesses, guesses, guesses), dp_delta=0.0, confidence=confidence)
    assert found == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("dp_delta", [0.0, 1e-5, 0.1])
def test_one_canary_has_a_closed_form(epsilon, dp_delta):
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    right = one_run_p_value(Tally(1, 1, 1), epsilon=epsilon, dp_delta=dp_delta)
    assert right == pytest.approx(min(1.0, chance + 2.0 * dp_delta * (1.0 - chance)), rel=1e-12)
    assert one_run_p_value(Tally(1, 1, 0), epsilon=epsilon, dp_delta=dp_delta) == 1.0
    assert one_run_epsilon(Tally(1, 1, 1), dp_delta=dp_delta) == 0.0


@pytest.mark.parametrize("canaries", [1, 10, 1000])
def test_all_wrong_or_no_guess_shows_nothing(canaries):
    for score in (Tally(canaries, canaries, 0), Tally(canaries, 0, 0)):
        assert one_run_epsilon(score, dp_delta=1e-5) == 0.0
        assert one_run_gaussian_epsilon(score, dp_delta=1e-5) == 0.0


@st.composite
def tallies(draw, most=60):
    canaries = draw(st.integers(1, most))
    guesses = draw(st.integers(0, canaries))
    return Tally(canaries, guesses, draw(st.integers(0, guesses)))


@given(tallies(), st.fractions(Fraction(1, 2), Fraction(99, 100)), st.floats(0.0, 0.05))
def test_p_value_is_the_papers_formula_in_exact_arithmetic(score, chance, dp_delta):
    canaries, guesses, correct = score

    def at_least(v):
        return sum(math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k)
                   for k in range(max(v, 0), guesses + 1))

    slope = max((at_least(correct - i) - at_least(correct)) / i for i in range(1, canaries + 1))
    exact = min(1, at_least(correct) + 2 * canaries * Fraction(dp_delta) * slope)
    epsilon = math.log(chance / (1 - chance))
    assert one_run_p_value(score, epsilon=epsilon, dp_delta=dp_delta) == pytest.approx(
        float(exact), rel=1e-9)


@settings(max_examples=200)
@given(tallies(2000), st.floats(0.0, 8.0), st.floats(0.0, 1.0), st.floats(-7.0, -1.0))
def test_p_values_rise_with_epsilon_below_one_half(score, epsilon, step, log_delta):
    """Then every epsilon below the first that is not refused is refused."""
    low, high = (one_run_p_value(score, epsilon=e, dp_delta=10.0**log_delta)
                 for e in (epsilon, epsilon + step))
    assert low <= high * (1 + 1e-12) or low > 0.5


@pytest.mark.parametrize("guesses", [10, 100, 1000])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_error_rate_against_randomised_response_is_exact(guesses, epsilon):
    """Randomised response is as easy to guess as epsilon allows: the bound is wrong with at most
    the stated probability, computed and not sampled, and a bound that is any sharper would be wrong
    too often."""
    def wrong(correct):
        score = Tally(guesses, guesses, correct)
        return one_run_epsilon(score, dp_delta=0.0) > epsilon

    first = bisect.bisect_left(range(guesses + 1), True, key=wrong)  # bounds rise with the count
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    assert stats.binom.sf(first - 1, guesses, chance) <= 0.05 + 1e-6
    assert stats.binom.sf(first - 2, guesses, chance) > 0.05


def test_guesses_are_the_extremes_and_ties_know_nothing_of_the_coins():
    scores = np.array([0.0, 3.0, 1.0, 3.0, -2.0, 0.0])
    assert guess(scores, positive=1, negative=2).tolist() == [-1, 0, 0, 1, -1, 0]
    assert guess(np.zeros(4), positive=2, negative=1).tolist() == [-1, 0, 1, 1]
    included = np.array([False, True, True, False, False, True])
    assert tally(included, np.array([-1, 1, 0, 1, 0, -1])) == Tally(6, 4, 2)


def test_several_numbers_of_guesses_are_paid_for():
    """The ladder depends on the number of canaries alone, and each rung gets its part of the error:
    on scores that say nothing, the best of all rungs is above 0 no more often than stated."""
    assert counts_ladder(1000)[0] == (500, 500) and len(counts_ladder(10**6)) == 8
    assert counts_ladder(1000, two_sided=False)[1] == (250, 0)
    assert counts_ladder(1) == ((0, 0),) and counts_ladder(3) == ((1, 1),)
    scores = np.arange(200.0)
    one = one_run_bound(scores, scores >= 100, dp_delta=0.0, counts=[(100, 100)])
    ten = one_run_bound(scores, scores >= 100, dp_delta=0.0, counts=[(100, 100)] * 10)
    exact = one_run_epsilon(Tally(200, 200, 200), dp_delta=0.0, confidence=0.995)
    assert ten.epsilon == pytest.approx(exact) and ten.epsilon < one.epsilon
    random = np.random.default_rng(5)
    alarms = sum(one_run_bound(random.normal(size=200), random.random(200) < 0.5,
                               dp_delta=1e-5).epsilon > 0.0 for _ in range(400))
    assert alarms <= 46  # P[Binomial(400, 0.05) > 46] < 1e-7


@pytest.mark.parametrize("trials", [1, 7, 40])
def test_clopper_pearson_covers_every_probability(trials):
    counts = np.arange(trials + 1)
    limits = np.array([clopper_pearson(int(k), trials, confidence=0.95) for k in counts])
    for chance in np.linspace(0.0, 1.0, 101):
        mass = stats.binom.pmf(counts, trials, chance)
        assert mass[limits[:, 0] > chance + 1e-12].sum() <= 0.05 + 1e-9
        assert mass[limits[:, 1] < chance - 1e-12].sum() <= 0.05 + 1e-9


def test_the_threshold_is_chosen_on_other_runs_than_those_that_count():
    random = np.random.default_rng(2)
    with_it, without = random.normal(size=(2, 4000)) + np.array([[1.0], [0.0]])
    found = runs_bound(with_it, without, dp_delta=1e-2)
    assert found.rates.runs_with == found.rates.runs_without == 2000
    changed = with_it.copy()
    changed[2000:] = -100.0
    other = runs_bound(changed, without, dp_delta=1e-2)
    assert other.threshold == found.threshold and other.rates.true_positives == 0
    given_one = runs_bound(with_it, without, dp_delta=1e-2, threshold=2.0)
    assert given_one.rates.runs_with == 4000 and given_one.threshold == 2.0


def test_bounds_from_runs_stay_below_the_truth_and_come_near():
    """With confidence 1 - 1e-8 each, twenty pairs of bounds fail by chance with below 1e-6."""
    random, truth = np.random.default_rng(3), gaussian_epsilon(1.0, 1e-2)
    for _ in range(20):
        with_it, without = random.normal(size=(2, 4000)) + np.array([[1.0], [0.0]])
        found = runs_bound(with_it, without, dp_delta=1e-2, confidence=1 - 1e-8)
        assert found.epsilon <= truth
        assert runs_gaussian_epsilon(found.rates, dp_delta=1e-2, confidence=1 - 1e-8) <= truth
    with_it, without = random.normal(size=(2, 400_000)) + np.array([[1.0], [0.0]])
    found = runs_bound(with_it, without, dp_delta=1e-2)
    assert 0.85 * truth < found.epsilon <= truth * 1.02


def test_rates_of_saying_out_count_too():
    """A canary that is nearly always seen when it is there, and sometimes when it is not."""
    rates = Rates(10_000, 10_000, 5000, 10_000)
    assert runs_epsilon(rates, dp_delta=1e-5) > 7.0
    assert runs_epsilon(Rates(5000, 10_000, 0, 10_000), dp_delta=1e-5) > 7.0


@pytest.mark.parametrize("separation", [0.05, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("dp_delta", [1e-10, 1e-5, 1e-2])
def test_gaussian_epsilon_is_dp_accountings(separation, dp_delta):
    expected = dp_accounting.get_epsilon_gaussian(1.0 / separation, dp_delta)
    found = gaussian_epsilon(separation, dp_delta)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    if found > 0:
        assert gaussian_separation(found, dp_delta) == pytest.approx(separation, rel=1e-6)
    assert gaussian_epsilon(0.0, dp_delta) == 0.0


@pytest.mark.parametrize("separation", [0.3, 1.7])
def test_one_run_gaussian_bounds_stay_below_the_truth_and_come_near(separation):
    """Confidence 1 - 1e-8 for each of 20 runs: fails by chance with below 1e-6."""
    random, truth, found = np.random.default_rng(4), gaussian_epsilon(separation, 1e-5), []
    for _ in range(20):
        included = random.random(2000) < 0.5
        scores = random.normal(size=2000) + separation * included
        bound = one_run_bound(scores, included, dp_delta=1e-5, confidence=1 - 1e-8,
                              epsilon_of=one_run_gaussian_epsilon)
        assert bound.epsilon <= truth
        found.append(one_run_bound(scores, included, dp_delta=1e-5,
                                   epsilon_of=one_run_gaussian_epsilon).epsilon)
    assert np.median(found) > 0.4 * truth


@pytest.mark.parametrize("call, said", [
    (lambda: guess(np.zeros(3), positive=2, negative=2), "together at most the canaries"),
    (lambda: guess(np.array([0.0, np.nan]), positive=1), "none of them NaN"),
    (lambda: tally(np.zeros(2, bool), np.zeros(3)), "a coin and a guess for each canary"),
    (lambda: one_run_epsilon(Tally(10, 5, 6), dp_delta=0.0), "correct <= guesses <= canaries"),
    (lambda: one_run_epsilon(Tally(10, 5, 5), dp_delta=0.0, confidence=0.3), "confidence from 0.5"),
    (lambda: one_run_bound(np.zeros(3), np.zeros(3, bool), dp_delta=0.0, counts=[]), "one pair"),
    (lambda: clopper_pearson(3, 2, confidence=0.9), "successes out of at least one trial"),
    (lambda: runs_bound(np.zeros(2), np.zeros(9), dp_delta=0.0), "4 runs or more"),
    (lambda: gaussian_epsilon(-1.0, 1e-5), "a separation of 0 or more"),
])
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(SpecError, match=said):
        call()


def result(**changes):
    return AuditResult(**{**dict(
        audited="chain(<clip>)", unit="client", attack="gradient canaries", method="one run",
        canaries=1000, runs=1, rounds=10, evidence="95 of 100 guesses right", epsilon=2.1,
        claimed_epsilon=8.0, dp_delta=1e-5, confidence=0.95), **changes})


def test_a_result_says_what_it_shows_and_what_it_does_not():
    text = str(result())
    assert text.startswith("Not refuted") and "A better attack may show more." in text
    few = str(result(attainable=1.5))
    assert "could not have refuted" in few and "all right show 1.5" in few
    assert "A better attack" in str(result(attainable=9.0))
    assert "epsilon at least" in text and "1,000 canaries, 10 rounds" in text
    assert result(epsilon=9.0).verdict.startswith("REFUTED: epsilon is at least 9, and 8")
    assert result(gaussian_epsilon=9.5).refuted and "9.5" in result(gaussian_epsilon=9.5).verdict
    assert not result(gaussian_epsilon=3.0).refuted
    nothing = result(claimed_epsilon=math.inf)
    assert not nothing.refuted and nothing.share == 0.0
    assert nothing.verdict.startswith("Nothing is claimed")


def test_a_result_shows_itself_in_a_notebook_and_goes_through_a_file():
    page = result()._repr_html_()
    assert "<table>" in page and "chain(&lt;clip&gt;)" in page and "<clip>" not in page
    assert AuditResult(**json.loads(json.dumps(result().to_dict()))) == result()
    assert repr(result()) == "AuditResult(epsilon=2.1, claimed_epsilon=8, refuted=False)"
