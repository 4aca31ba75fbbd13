"""What an account charges for its own arithmetic, and how it refuses what it cannot compute."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedjax_secure.core import SpecError
from fedjax_secure.privacy.accounting import Spend, compose, delta_profile, epsilon_by_unit, explain
from fedjax_secure.privacy.accounting.arguments import rounded_up


def _exact_delta(local: float, rounds: int, epsilon: float) -> float:
    """Composition of randomised response: a binomial sum (Kairouz, Oh, Viswanath 2015)."""
    losses = (2 * np.arange(rounds + 1) - rounds) * local
    above = losses > epsilon
    mass = stats.binom.pmf(np.arange(rounds + 1)[above], rounds, 1 / (1 + math.exp(-local)))
    return float(np.sum(mass * -np.expm1(epsilon - losses[above])))


@pytest.mark.parametrize("local, rounds, dp_delta", [
    (0.01, 10_000, 1e-12), (0.01, 10_000, 1e-10), (0.003, 100_000, 1e-10), (0.1, 100, 1e-12)])
def test_rounding_of_ffts_never_makes_epsilon_too_small(local, rounds, dp_delta):
    vote = Spend(None, 1.0, "client", rounds, kind="pure", parameters={"epsilon": local})
    found = compose([vote], dp_delta)
    assert _exact_delta(local, rounds, found) <= dp_delta * (1 + 1e-9)
    assert found < 7.6  # and it stays useful: Renyi divergences where FFTs end
    profile = delta_profile([vote], [found, 0.0])
    assert profile[0] >= _exact_delta(local, rounds, found)
    assert profile[1] >= 0.9 * _exact_delta(local, rounds, 0.0)


@pytest.mark.parametrize("spend", [
    Spend(1e-200, 1.0, "client"), Spend(1e200, 0.5, "client"),
    Spend(None, 1.0, "client", kind="pure", parameters={"epsilon": 800.0}),
    Spend(None, 0.1, "client", kind="skellam",
          parameters={"l1": 9e300, "l2": 1e200, "variance": 1e-200}),
    Spend(1.0, 0.5, "client", 10**30),
], ids=["tiny noise", "huge noise", "huge epsilon", "huge skellam", "huge count"])
def test_numbers_beyond_double_precision_are_refused_in_words(spend):
    with pytest.raises(SpecError, match="compose needs"):
        compose([spend], 1e-5)


def test_what_is_no_collection_of_spends_is_refused_in_words():
    for call in (lambda: compose(3, 1e-5), lambda: compose(Spend(1.0, 1.0, "client"), 1e-5),
                 lambda: explain(3, dp_delta=1e-5), lambda: epsilon_by_unit([1], 1e-5),
                 lambda: delta_profile([Spend(1.0, 1.0, "client")], ["x"]),
                 lambda: delta_profile([Spend(1.0, 1.0, "client")], [-1.0]),
                 lambda: Spend(1.0, 1.0, "client", kind=["a"]),
                 lambda: Spend(1.0, 1.0, "client", adjacency=["a"]),
                 lambda: explain(epsilon=1.0, dp_delta=1e-5, unit=5)):
        with pytest.raises(SpecError):
            call()


def test_printed_bounds_are_rounded_up():
    assert rounded_up(2.0) == "2" and rounded_up(float("inf")) == "inf"
    for value in np.random.default_rng(0).lognormal(sigma=6, size=2000):
        for digits in (3, 4, 6):
            shown = float(rounded_up(float(value), digits))
            assert value <= shown <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-12)
    note = explain(epsilon=1.00001, dp_delta=1.23401e-5)
    assert "epsilon 1.001 at delta 1.24e-05" in note.sentences[0]
    assert "at most 2.47e-05" in note.sentences[3]


def test_a_units_name_is_no_formula():
    drawn = explain(epsilon=1.0, dp_delta=1e-5, unit="$\\x$--><script>")._repr_html_()
    assert "<script>" not in drawn
