"""What is said of a guarantee: never more than the exact testing problem allows."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_secure.core.errors import SpecError
from fedjax_secure.privacy.accounting import (
    DiscreteGaussianSum,
    Spend,
    compose,
    delta_profile,
    explain,
    total,
)

RATES = np.array([1e-4, 0.01, 0.05, 0.3, 0.8])


def gaussian_power(shift: float, rates: np.ndarray) -> np.ndarray:
    """Of the best test between N(0,1) and N(shift,1), by the lemma of Neyman and Pearson."""
    return stats.norm.sf(stats.norm.isf(rates) - shift)


def power_of_pair(p: np.ndarray, q: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The best test between two distributions on a grid, with a coin at the edge."""
    order = np.argsort(-(p / q))
    false = np.concatenate([[0.0], np.cumsum(q[order])])
    true = np.concatenate([[0.0], np.cumsum(p[order])])
    return np.interp(rates, false, true)


@pytest.mark.parametrize("multiplier, rounds", [(1.0, 1), (2.0, 3), (0.7, 2), (8.0, 1)])
def test_the_curve_of_a_gaussian_is_that_of_the_best_test(multiplier, rounds):
    note = explain([Spend(multiplier, 1.0, "patient", rounds)], dp_delta=1e-5)
    best = gaussian_power(math.sqrt(rounds) / multiplier, RATES)
    ours = note.true_positive_rate(RATES)
    assert (best <= ours * (1 + 1e-9) + 1e-9).all()
    np.testing.assert_allclose(ours, best, rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(note.false_negative_rate(RATES), 1 - ours)
    # The best guess between equally likely cases errs where the densities cross.
    exact = stats.norm.cdf(math.sqrt(rounds) / multiplier / 2)
    assert exact <= note.accuracy <= exact + 1e-3


def test_the_curve_of_a_sampled_round_is_between_the_exact_test_and_a_little_more():
    grid = np.linspace(-9, 11, 20_001)
    step = grid[1] - grid[0]
    q = stats.norm.pdf(grid) * step
    p = 0.7 * q + 0.3 * stats.norm.pdf(grid, 1 / 0.6, 1) * step
    note = explain([Spend(0.6, 0.3, "client")], dp_delta=1e-4)
    exact = np.maximum(power_of_pair(p, q, RATES), power_of_pair(q, p, RATES))
    assert (exact <= note.true_positive_rate(RATES) + 1e-6).all()
    assert (note.true_positive_rate(RATES) <= 1.3 * exact + 1e-3).all()


@pytest.mark.parametrize("kind, parameters", [
    ("skellam", {"l1": 3.0, "l2": 3.0, "variance": 25.0}), ("pure", {"epsilon": 0.7}),
    ("approximate", {"epsilon": 0.7, "dp_delta": 1e-4}),
])
def test_other_kinds_are_never_flattered(kind, parameters):
    note = explain([Spend(None, 1.0, "client", kind=kind, parameters=parameters)], dp_delta=1e-3)
    if kind == "skellam":
        x = np.arange(-80, 81)
        p, q = stats.skellam.pmf(x - 3, 12.5, 12.5), stats.skellam.pmf(x, 12.5, 12.5)
        keep = (p > 0) & (q > 0)
        exact = power_of_pair(p[keep], q[keep], RATES)
        assert "Renyi" in note.sentences[-1]
    else:
        fails, right = parameters.get("dp_delta", 0.0), 1 / (1 + math.exp(-0.7))
        p = np.array([(1 - fails) * right, (1 - fails) * (1 - right), 1e-300])
        exact = np.minimum(power_of_pair(p, p[[1, 0, 2]], RATES) + fails, 1.0)
        np.testing.assert_allclose(note.true_positive_rate(RATES), exact, rtol=2e-3)
    assert (exact <= note.true_positive_rate(RATES) + 1e-9).all()


@settings(max_examples=50)
@given(epsilon=st.floats(0, 12), dp_delta=st.sampled_from([1e-9, 1e-5, 0.01]),
       rate=st.floats(0, 1))
def test_one_pair_tells_what_it_implies_and_no_more(epsilon, dp_delta, rate):
    note = explain(epsilon=epsilon, dp_delta=dp_delta)
    # The pair that attains (epsilon, dp_delta): randomised response that fails openly.
    right = (1 - dp_delta) / (1 + math.exp(-epsilon))
    p = np.array([dp_delta, right, 1 - dp_delta - right, 0.0])
    q = p[::-1]
    false = np.concatenate([[0.0], np.cumsum(q)])
    exact = np.interp(rate, false, np.cumsum(np.concatenate([[0.0], p])))
    if rate > 0:  # interpolation is not defined on the vertical start
        assert float(note.true_positive_rate(rate)) == pytest.approx(exact, rel=1e-6, abs=1e-9)
    assert note.accuracy == pytest.approx((p.sum() + np.abs(p - q).sum() / 2) / 2, rel=1e-9)
    assert note.belief == pytest.approx(1 / (1 + 0.5 * math.exp(-epsilon)), rel=1e-9)


def test_belief_holds_for_the_loss_of_a_gaussian():
    note = explain([Spend(1.0, 1.0, "patient")], dp_delta=1e-3)
    odds = math.log(note.belief / (1 - note.belief))
    # The loss of N(1,1) against N(0,1) is normal with mean 1/2 and variance 1.
    assert stats.norm.sf(odds, 0.5, 1) <= note.surprise == 2e-3
    assert stats.norm.sf(odds - 1.0, 0.5, 1) > note.surprise


def test_the_slack_of_discrete_noise_is_in_the_curve():
    exact = Spend(1.0, 0.2, "patient", 5)
    slack = Spend(1.0, 0.2, "patient", 5, log_ratio=0.01, total_variation=1e-6)
    epsilons = np.array([0.0, 0.05, 1.0, 3.0])
    plain, charged = delta_profile([exact], epsilons), delta_profile([slack], epsilons)
    assert charged[0] == charged[1] == 1.0  # below twice the log-ratio nothing is known
    assert charged[2:] == pytest.approx(
        math.exp(0.05) * delta_profile([exact], epsilons[2:] - 0.1)
        + (1 + np.exp(epsilons[2:])) * 5e-6, rel=1e-9)
    assert (charged > plain).all()
    assert explain([slack], dp_delta=1e-3).accuracy > explain([exact], dp_delta=1e-3).accuracy
    tiny = DiscreteGaussianSum(40.0, 3, 70.0, 14).spend(sampling_rate=0.2, unit="patient")
    assert explain([tiny], dp_delta=1e-3).epsilon == compose([tiny], 1e-3)


def test_it_takes_totals_and_one_or_the_other():
    spends = [Spend(1.0, 0.2, "patient", 5)]
    known = total(spends, 1e-3)
    assert str(explain(known)) == str(explain(spends, dp_delta=1e-3))
    for wrong in ({}, {"spends": spends, "epsilon": 1.0, "dp_delta": 1e-3}):
        with pytest.raises(SpecError, match="either spends or epsilon"):
            explain(wrong.pop("spends", None), **wrong)
    with pytest.raises(SpecError, match="dp_delta"):
        explain(epsilon=1.0)
    with pytest.raises(SpecError, match="finite epsilon"):
        explain(epsilon=math.inf, dp_delta=1e-5)
    with pytest.raises(SpecError, match="larger dp_delta"):
        explain([Spend(1.0, 0.2, "patient", 5, total_variation=1e-3)], dp_delta=1e-5)
    with pytest.raises(SpecError, match="Leave unit out"):
        explain(spends, dp_delta=1e-3, unit="client")


def test_words_are_of_the_case_and_bounds_are_rounded_up():
    words = str(explain([Spend(1.0, 1.0, "hospital", adjacency="replace_one")], dp_delta=1e-5))
    assert "one hospital's data were as they are or otherwise" in words
    assert "not measured risks" in words and "compl" not in words
    note = explain(epsilon=1.0, dp_delta=1e-5, unit="patient")
    # e^1 0.01 + 1e-5 = 2.7193%; e / (1 + e) = 73.106%
    assert "2.8%" in note.sentences[1] and "73.2%" in note.sentences[2]


def test_the_notebook_shows_text_and_a_picture_that_screen_readers_name():
    note = explain(epsilon=1.0, dp_delta=1e-5, unit="<patient>")
    page = note._repr_html_()
    assert "<patient>" not in page and "&lt;patient&gt;" in page
    assert 'role="img" aria-label="Detections' in page
    start, end = page.index("<svg"), page.index("</svg>") + len("</svg>")
    drawn = ElementTree.fromstring(page[start:end])
    assert drawn.tag.endswith("svg")
    axes = note.figure().axes[0]
    curve = axes.lines[0]
    np.testing.assert_allclose(curve.get_ydata(), note.true_positive_rate(curve.get_xdata()))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "at 1% false alarms: 2.8%" in labels
