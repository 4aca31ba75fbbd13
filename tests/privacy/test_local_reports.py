"""Local privacy by client API: what is sent is as private as is said, and tells the means."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedjax_secure.core import SeededSource, SpecError
from fedjax_secure.privacy import compose
from fedjax_secure.privacy.local import Category, bounded, in_ball


def keys(count: int, seed: int = 0) -> list[bytes]:
    return [SeededSource(seed).key("local", client=str(person)) for person in range(count)]


@given(st.integers(2, 300), st.floats(1e-3, 20.0))
def test_the_largest_ratio_of_answers_is_at_most_what_was_asked(k, epsilon):
    """In fractions: of the 2^64 words, each other category has m, the true one the rest."""
    category = Category(range(k), epsilon=epsilon)
    ratio = Fraction(category._true, category._each)
    assert category._true + (k - 1) * category._each == 2**64
    assert 1 < ratio <= Fraction(math.exp(epsilon))
    assert ratio > Fraction(math.exp(epsilon)) * (1 - Fraction(1, 10**9))
    assert math.log(ratio) <= category.epsilon <= epsilon * (1 + 1e-12)


def test_every_word_is_taken_as_the_account_has_it():
    """The decision, word by word, at the borders of every category's share of the words."""
    category = Category("abcd", epsilon=1.0)
    each = category._each
    counted = {0: "a", each - 1: "a", each: "b", 2 * each - 1: "b", 2 * each: "d",
               3 * each - 1: "d", 3 * each: "c", 2**64 - 1: "c"}

    def answer(word: int, monkeypatch) -> str:
        monkeypatch.setattr("fedjax_secure.privacy.local.category.host_words",
                            lambda key, words: np.array([word], "<u8").view("<u4"))
        return category.privatise("c")

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert {word: answer(word, monkeypatch) for word in counted} == counted


def test_answers_come_as_often_as_they_should():
    """Chi-square over 200,000 answers; false alarms below 1e-6."""
    category = Category(("no", "yes", "unsure"), epsilon=1.5)
    sent = category.privatise_all(["yes"] * 200_000, key=bytes(range(32)))
    counts = [sent.count(answer) for answer in category.categories]
    other = category._each / 2**64
    expected = [other, category.probability_true, other]
    assert stats.chisquare(counts, np.array(expected) * len(sent)).pvalue > 1e-6


def test_shares_are_estimated_without_bias_within_their_errors():
    """Mean of 80 estimates within 5.5 standard errors of the truth (false alarms below 1e-6)."""
    category = Category(tuple("abc"), epsilon=1.0)
    truth = np.array([0.6, 0.3, 0.1])
    people = list("a" * 300 + "b" * 150 + "c" * 50)
    found = [category.estimate(category.privatise_all(people, key=key)) for key in keys(80)]
    shares = np.array([table["share"] for table in found])
    spread = shares.std(axis=0, ddof=1)
    assert np.all(np.abs(shares.mean(axis=0) - truth) < 5.5 * spread / math.sqrt(80))
    assert np.array(found[0]["standard_error"]) == pytest.approx(spread, rel=0.5)
    assert shares.sum(axis=1) == pytest.approx(1.0)


def test_one_person_answers_for_real_with_fresh_secrets():
    category = Category(("no", "yes"), epsilon=0.5)
    assert len({tuple(category.privatise("yes") for _ in range(64)) for _ in range(3)}) == 3


def test_what_a_category_refuses():
    for wrong in ({"epsilon": 0.0}, {"epsilon": 21.0}, {"epsilon": True}, {"epsilon": 1e-18}):
        with pytest.raises(SpecError):
            Category(("a", "b"), **wrong)
    for names in (("a",), ("a", "a")):
        with pytest.raises(SpecError, match="different categories"):
            Category(names, epsilon=1.0)
    with pytest.raises(SpecError) as refused:
        Category(("a", "b"), epsilon=1.0).privatise("a secret")
    assert "secret" not in str(refused.value)
    with pytest.raises(SpecError):
        Category(("a", "b"), epsilon=1.0).estimate([])


def test_a_bounded_number_has_exactly_discrete_laplace_noise():
    """Chi-square of 4,096 people's reports of one value; false alarms below 1e-6."""
    number = bounded(0.0, 1.0, epsilon=2.0, levels=8)
    reports = number.privatise_all(np.full((4096, 1), 1.0), keys=keys(4096))[:, 0]
    noise = reports - round(0.5 * number.spec.scale)
    scale = number.spec.l2_bound * 2 / number.epsilon
    grid = np.arange(-12, 13)
    mass = np.exp(-np.abs(grid) / scale) * np.tanh(0.5 / scale)
    tails = (1 - mass.sum()) / 2
    counts = [(noise < -12).sum(), *((noise == z).sum() for z in grid), (noise > 12).sum()]
    expected = np.array([tails, *mass, tails]) * len(noise)
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-6


def test_the_ratio_of_the_farthest_numbers_is_within_epsilon():
    """From the noise's own variance, 1 / (2 sinh^2(1 / 2b)): the log-ratio of ends is 64 / b."""
    number = bounded(-3.0, 5.0, epsilon=1.0, levels=64)
    assert number.spec.scale == 8.0  # the ends lie at -32 and 32
    scale = 0.5 / math.asinh(1 / (math.sqrt(2.0) * number.spec.noise_stddev))
    assert 64 / scale < number.epsilon == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("low", "width", "dim"), [(-50.0, 0.5, 1), (3.0, 30.0, 3)])
def test_means_of_bounded_numbers_are_found(low, width, dim):
    """Within 6.2 standard errors in each number; false alarms below 1e-6."""
    vector = bounded(low, low + width, epsilon=8.0, dim=dim, levels=64)
    values = low + width * np.linspace(0, 1, 64)[:, None] * np.linspace(0.3, 1, dim)
    found = vector.estimate(vector.privatise_all(values, keys=keys(64)))
    assert found.reports == 64 and found.mean.shape == (dim,)
    assert np.all(np.abs(found.mean - values.mean(axis=0)) < 6.2 * found.standard_error)


def test_a_vector_costs_what_was_asked_and_is_found():
    vector = in_ball(2.0, dim=6, epsilon=3.0, dp_delta=1e-6)
    assert 3.0 * (1 - 1e-3) < vector.epsilon <= 3.0
    assert compose([vector.spend("person", rounds=2)], 1e-6) > vector.epsilon
    values = np.tile([1.0, -1.0, 0.5, 0.0, 0.0, 0.2], (3000, 1))
    found = vector.estimate(vector.privatise_all(values, keys=keys(3000)))
    assert np.all(np.abs(found.mean - values[0]) < 6.0 * found.standard_error)
    assert vector.noise_stddev == pytest.approx(
        found.standard_error.mean() * math.sqrt(3000), rel=0.05)


def test_what_lies_outside_of_the_bounds_is_moved_to_them():
    age = bounded(20, 80, epsilon=20.0, levels=64)
    far = age.privatise_all(np.array([[1e30], [-1e30]] * 200), keys=keys(400))
    assert age.estimate(far[::2]).mean[0] == pytest.approx(80, abs=3)
    assert age.estimate(far[1::2]).mean[0] == pytest.approx(20, abs=3)


def test_reports_differ_each_time_and_repeat_with_a_key():
    age = bounded(20, 80, epsilon=1.0)
    assert len({int(age.privatise(50.0)[0]) for _ in range(20)}) > 5
    assert age.privatise(50.0, key=bytes(32)) == age.privatise(50.0, key=bytes(32))


def test_what_a_vector_refuses():
    for wrong in ({"low": 1.0, "high": 1.0}, {"high": math.inf}, {"levels": 0}, {"dim": 0},
                  {"epsilon": 0.0}, {"levels": 10**6}):
        with pytest.raises(SpecError):
            bounded(**{"low": 0.0, "high": 1.0, "epsilon": 1.0, **wrong})
    age = bounded(20, 80, epsilon=1.0)
    for value in ([1.0, 2.0], math.nan):
        with pytest.raises(SpecError) as refused:
            age.privatise(value)
        assert "nan" not in str(refused.value)
    with pytest.raises(SpecError, match="keys"):
        age.privatise_all([[1.0]], keys=[])
    with pytest.raises(SpecError, match="two or more"):
        age.estimate([[1]])


@pytest.mark.parametrize("private", ["63 years", [[1.0, 2.0], [3.0]], None, 1j, "nan"])
def test_a_refusal_never_repeats_what_is_private(private):
    age = bounded(20, 80, epsilon=1.0)
    for refused in (lambda: age.privatise(private), lambda: age.privatise_all(private),
                    lambda: Category(("no", "yes"), epsilon=1.0).privatise([private])):
        with pytest.raises(SpecError) as said:
            refused()
        assert "63" not in str(said.value) and said.value.__cause__ is said.value.__context__


def test_numbers_of_any_size_are_moved_into_the_ball():
    ball = in_ball(1.0, dim=3, epsilon=20.0, dp_delta=1e-3)
    for large in (1e30, 3e38, 1e300):
        report = ball.privatise([0.0, -large, 0.0]) / ball.spec.scale
        assert np.linalg.norm(report - [0, -1, 0]) < 14 * ball.noise_stddev  # 1e-6 many times over


def test_bounds_of_senseless_size_are_refused():
    for low, high in ((-1e308, 1e308), (0.0, 1e-320), (0.0, math.inf)):
        with pytest.raises(SpecError, match="bounds"):
            bounded(low, high, epsilon=1.0)
    with pytest.raises(SpecError, match="epsilon"):
        bounded(0, 1, epsilon="one")
    for bound in (1e-320, "one", math.nan):
        with pytest.raises(SpecError, match="l2_bound"):
            in_ball(bound, dim=2, epsilon=1.0, dp_delta=1e-5)
    with pytest.raises(SpecError, match="32 bytes"):
        bounded(0, 1, epsilon=1.0).privatise(0.5, key=b"short")
    with pytest.raises(SpecError, match="whole numbers"):
        bounded(0, 1, epsilon=1.0).estimate([[math.nan], [1.0]])
    for unhashable in (5, ([1], [2])):
        with pytest.raises(SpecError, match="categories"):
            Category(unhashable, epsilon=1.0)
