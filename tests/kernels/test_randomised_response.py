"""Randomised response: exact probabilities, and the words that decide."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy import stats

from fedjax_kernels import chacha
from fedjax_kernels.randomised_response import Response, respond, response
from fedjax_kernels.randomised_response.cases import TEST_CASES

KEY = chacha.key_from_bytes(bytes(range(32)))


def words_for(answers: int, stream: int = 0) -> np.ndarray:
    nonce = np.array([stream, 3, 0], np.uint32)
    return np.asarray(chacha.keystream(KEY, nonce, 4 * answers)).reshape(4, answers)


@pytest.mark.parametrize("case", TEST_CASES, ids=str)
def test_xla_equals_the_reference_and_epsilon_is_kept(case):
    made = response(case.epsilon, case.num_values)
    values = (np.arange(case.answers) % case.num_values).astype(np.uint32)
    words = words_for(case.answers)
    answers = respond(made, values, words)
    assert int(answers.max()) < case.num_values
    np.testing.assert_array_equal(
        answers, respond(made, values, words, implementation="reference"))
    assert case.epsilon * (1 - 1e-9) - 1e-12 < made.epsilon <= case.epsilon
    expected = math.exp(case.epsilon) / (math.exp(case.epsilon) + case.num_values - 1)
    assert abs(made.truth_probability - expected) < 1e-12


@pytest.mark.parametrize("num_values", [2, 3, 5, 8])
def test_all_outcomes_of_the_last_words_are_counted(num_values):
    """The exact probabilities by the words at both ends of each other value's share."""
    made = response(1.0, num_values)
    others = num_values - 1
    edges = [-(-(step << 64) // others) for step in range(others)]
    ends = sorted({(edge + shift) % 2**64 for edge in edges for shift in (-1, 0, 1)})
    rows = [[0, 0, end >> 32, end & 0xFFFFFFFF] for end in ends]  # a lie, as 0 < lies
    words = np.array(rows, np.uint32).T
    answers = np.asarray(respond(made, np.zeros(len(ends), np.uint32), words))
    assert answers.tolist() == [1 + (end * others >> 64) for end in ends]
    assert set(answers.tolist()) == set(range(1, num_values))
    # The share of each is within one of 2^64 / others, so the stated epsilon counts the least.
    counts = [b - a for a, b in zip(edges, [*edges[1:], 2**64], strict=True)]
    least = Fraction(made.lies * min(counts), 2**128)
    truth = 1 - Fraction(made.lies, 2**64)
    assert min(counts) == 2**64 // others
    assert math.log(truth / least) <= made.epsilon <= 1.0


def test_a_lie_begins_exactly_at_its_threshold():
    made = response(0.7, 4)
    for draw, lies in ((made.lies - 1, True), (made.lies, False), (0, True), (2**64 - 1, False)):
        words = np.array([[draw >> 32], [draw & 0xFFFFFFFF], [0], [0]], np.uint32)
        assert int(respond(made, np.uint32([2]), words)[0]) == (3 if lies else 2)


def test_frequencies():
    """Chi-square at a false-alarm rate of 1e-6."""
    made, answers = response(1.5, 6), 1 << 18
    found = np.bincount(respond(made, np.full(answers, 4, np.uint32), words_for(answers, 1)))
    share = (1 - made.truth_probability) / 5
    expected = np.full(6, share * answers)
    expected[4] = made.truth_probability * answers
    assert stats.chi2.sf(((found - expected) ** 2 / expected).sum(), 5) > 1e-6


def test_under_jit_and_vmap():
    made, values = response(1.0), np.arange(12, dtype=np.uint32).reshape(3, 4) % 2
    words = words_for(12).reshape(4, 3, 4)
    many = jax.jit(jax.vmap(lambda v, w: respond(made, v, w), in_axes=(0, 1)))(values, words)
    for i in range(3):
        np.testing.assert_array_equal(many[i], respond(made, values[i], words[:, i]))
    with pytest.raises(ValueError, match="needs concrete arrays"):
        jax.jit(lambda v: respond(made, v, words[:, 0], implementation="reference"))(values[0])


def test_wrong_arguments_are_refused():
    for epsilon in (0.0, -1.0, 31.0, math.nan, "1", True):
        with pytest.raises(ValueError, match="`epsilon` needs a number from 1e-06 to 30"):
            response(epsilon)
    for count in (1, 65_537, 2.0, True):
        with pytest.raises(ValueError, match="`num_values` needs a whole number from 2 to"):
            response(1.0, count)
    made, words = response(1.0), np.zeros((4, 2), np.uint32)
    assert isinstance(made, Response)
    with pytest.raises(ValueError, match=r"`values` needs uint32\[n\], got int64\[2\]"):
        respond(made, np.zeros(2, np.int64), words)
    with pytest.raises(ValueError, match=r"`words` needs uint32\[4, n\], got uint32\[3, 2\]"):
        respond(made, np.zeros(2, np.uint32), words[:3])
    with pytest.raises(ValueError, match="a column a value, got 2 for 3"):
        respond(made, np.zeros(3, np.uint32), words)
    with pytest.raises(ValueError, match="`made` needs a Response, got float"):
        respond(1.0, np.zeros(2, np.uint32), words)
    with pytest.raises(ValueError, match="'pallas'"):
        respond(made, np.zeros(2, np.uint32), words, implementation="pallas")


@pytest.mark.parametrize("epsilon", [np.float16(1), np.float32(0.1)])
def test_a_short_float_is_not_exceeded_either(epsilon):
    """NumPy compares a float with a shorter one in the shorter type."""
    assert response(epsilon).epsilon <= float(epsilon)
