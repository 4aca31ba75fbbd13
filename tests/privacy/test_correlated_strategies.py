"""Strategies: what they publish is post-processing of noised rows, with the noise that they say."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_secure.core import ParameterError, SpecError
from fedjax_secure.privacy.correlated import banded, tree

STRATEGIES = [
    tree(rounds=1), tree(rounds=13), tree(rounds=16), tree(rounds=16, restart_every=5),
    banded(rounds=13, bands=1), banded(rounds=13, bands=4), banded(rounds=13, bands=13),
    banded(rounds=9, bands=3, optimiser="square-root", grid_bits=2),
    banded(rounds=6, bands=3, band=np.array(
        [[1.0, 0, 0], [0.9, 0.5, 0], [1, 0.4, 0.3], [0.8, -0.2, 0.3], [1, 0.6, 0.1],
         [1, 0.5, 0.4]])),
]


def play(strategy, draws: list[np.ndarray]) -> np.ndarray:
    """The noise of every round, where the i-th draw of the run is ``draws[i]``."""
    table, used = jnp.asarray(np.array(draws), jnp.int32), 0
    step = jax.jit(lambda memory, first: strategy.noise(memory, lambda i: table[first + i]))
    memory, found = strategy.memory(len(draws[0])), []
    for count in strategy.rows_by_round:
        noise, memory = step(memory, used)
        found.append(np.asarray(noise))
        used = int(count)
    return np.array(found)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_noise_has_the_variance_that_is_said(strategy):
    """Each draw alone in a coordinate of its own: what comes out is the matrix itself."""
    rows, large = int(strategy.rows_by_round[-1]), 1 << 20
    draws = list(large * np.eye(rows, dtype=np.int64))
    noise = play(strategy, draws) / large
    np.testing.assert_allclose(np.sum(np.cumsum(noise, 0) ** 2, 1), strategy.prefix_variance,
                               rtol=2e-3)
    assert np.max(np.sum(noise**2, 1)) == pytest.approx(strategy.round_variance, rel=2e-3)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_nothing_on_the_way_is_larger_than_what_is_said(strategy):
    rows = int(strategy.rows_by_round[-1])
    random = np.random.default_rng(1)
    draws = random.choice([-1000, 1000], size=(rows, 500))
    assert np.max(np.abs(play(strategy, list(draws)))) <= strategy.largest_noise(1000.0)


def published_of_noised_nodes(rounds, period, sums, draws):
    """Honaker's estimates from below, computed of noised node sums alone, as the paper has it."""
    totals, used, found = {}, 0, []
    base = np.zeros_like(sums[0])
    for t in range(rounds):
        start, place = t - t % period, t % period + 1
        if place == 1:
            base, totals = (found[-1] if found else np.zeros_like(sums[0])), {}
        height = (place & -place).bit_length() - 1
        estimate = None
        for h in range(height + 1):
            first = start + place - (1 << h)
            own = sums[first:t + 1].sum(0) + draws[used]  # what is released of this node
            used += 1
            if h == 0:
                estimate = own
            else:
                children = totals[first, h - 1] + estimate
                weight = np.float32(float(Fraction(2**h, 2 ** (h + 1) - 1)))
                part = np.rint(weight * (own - children).astype(np.float32))
                estimate = children + part.astype(np.int64)
        totals[start + place - (1 << height), height] = estimate
        running, first, left = base.copy(), start, place
        for h in reversed(range(place.bit_length())):
            if left >> h & 1:
                running += totals[first, h]
                first += 1 << h
        found.append(running)
    return np.diff(np.array(found), axis=0, prepend=0)


@pytest.mark.parametrize("rounds, period", [(1, 1), (8, 8), (21, 21), (21, 6)])
def test_trees_publish_a_function_of_noised_nodes(rounds, period):
    """Bit for bit: sums plus integer noise equal the estimates made of noised sums alone."""
    random = np.random.default_rng(3)
    strategy = tree(rounds=rounds, restart_every=period)
    draws = random.integers(-9000, 9000, (int(strategy.rows_by_round[-1]), 40))
    sums = random.integers(-50_000, 50_000, (rounds, 40))
    ours = sums + play(strategy, list(draws))
    assert np.array_equal(ours, published_of_noised_nodes(rounds, period, sums, draws))


@pytest.mark.parametrize("bands", [1, 3, 8])
def test_bands_publish_a_function_of_noised_rows(bands):
    """Of w = C x + Z alone, in exact integers: each round's rows less what was published before."""
    rounds, random = 20, np.random.default_rng(bands)
    strategy = banded(rounds=rounds, bands=bands)
    draws = random.integers(-90_000, 90_000, (rounds, 30))
    sums = random.integers(-5_000, 5_000, (rounds, 30))
    ours = sums + play(strategy, list(draws))
    matrix = _matrix(strategy.squared_sensitivity.keywords["band"], rounds)
    rows = matrix @ sums + draws
    made = np.zeros_like(sums)
    for t in range(rounds):
        left = rows[t] - matrix[t, :t] @ made[:t]
        made[t] = (left + matrix[t, t] // 2) // matrix[t, t]
    assert np.array_equal(ours, made)


def _matrix(band, rounds):
    matrix = np.zeros((rounds, rounds), np.int64)
    for j in range(band.shape[1]):
        matrix[np.arange(j, rounds), np.arange(rounds - j)] = band[j:, j]
    return matrix


def test_one_band_is_independent_noise():
    strategy, draws = banded(rounds=5, bands=1), np.arange(15).reshape(5, 3)
    assert np.array_equal(play(strategy, list(draws)), draws)
    assert strategy.sensitivity(separation=2) ** 2 == pytest.approx(3)


@pytest.mark.parametrize("make, said", [
    (lambda: tree(rounds=0), "rounds"), (lambda: tree(rounds=True), "rounds"),
    (lambda: tree(rounds=10, restart_every=11), "restart_every"),
    (lambda: tree(rounds=8193), "8192"),
    (lambda: banded(rounds=5, bands=6), "bands"), (lambda: banded(rounds=5, bands=0), "bands"),
    (lambda: banded(rounds=5, bands=2, grid_bits=17), "grid_bits"),
    (lambda: banded(rounds=5, bands=2, optimiser="best"), "optimiser"),
    (lambda: banded(rounds=3, bands=2, band=np.ones((3, 3))), "shape"),
    (lambda: banded(rounds=3, bands=1, band=np.array([[1.0], [0.0], [1.0]])), "diagonal"),
    (lambda: banded(rounds=3000, bands=1, band=np.linspace(1, 2, 3000)[:, None]), "equal rows"),
])
def test_what_makes_no_strategy_is_refused_in_words(make, said):
    with pytest.raises(SpecError, match=said):
        make()


def test_jax_privacy_is_asked_for_by_name_where_it_is_missing():
    try:
        import jax_privacy  # noqa: F401
    except ImportError:
        with pytest.raises(ParameterError, match=r"fedjax-secure\[matrix\]"):
            banded(rounds=5, bands=2, optimiser="jax-privacy")
    else:
        assert banded(rounds=5, bands=2, optimiser="jax-privacy").rounds == 5
