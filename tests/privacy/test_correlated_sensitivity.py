"""Sensitivities under participation schemas: against brute force, and against jax-privacy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fedjax_secure.privacy.correlated import banded, best_coefficients, tree
from fedjax_secure.privacy.correlated.coefficients import integer_band
from fedjax_secure.privacy.correlated.separation import (
    Schema,
    band_sensitivity,
    tree_sensitivity,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/correlated_noise.json").read_text())


def patterns(schema: Schema) -> list[tuple[int, ...]]:
    """Every set of rounds that a schema allows."""
    return [chosen for count in range(schema.most + 1)
            for chosen in itertools.combinations(range(schema.rounds), count)
            if all(b - a >= schema.separation for a, b in itertools.pairwise(chosen))]


def node_matrix(rounds: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """All whole nodes of the trees, one a row, and the round that closes each."""
    rows, closed = [], []
    for start in range(0, rounds, period):
        length = min(period, rounds - start)
        for height in range(length.bit_length()):
            for place in range(length >> height):
                row = np.zeros(rounds, np.int64)
                first = start + (place << height)
                row[first:first + (1 << height)] = 1
                rows.append(row)
                closed.append(first + (1 << height))
    return np.array(rows), np.array(closed)


def dense(band: np.ndarray) -> np.ndarray:
    rounds, bands = band.shape
    matrix = np.zeros((rounds, rounds), np.int64)
    for j in range(bands):
        matrix[np.arange(j, rounds), np.arange(rounds - j)] = band[j:, j]
    return matrix


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 6, 8, 9])
@pytest.mark.parametrize("separation", [1, 2, 3, 4, 7])
def test_trees_are_the_worst_of_all_patterns(rounds, separation):
    for most, period in itertools.product((1, 2, None), {2, 3, rounds} & set(range(1, rounds + 1))):
        schema = Schema.of(rounds, separation, most)
        matrix, closed = node_matrix(rounds, period)
        worst = [max(int(np.sum(matrix[closed <= t][:, list(chosen)].sum(1) ** 2))
                     for chosen in patterns(schema)) for t in range(1, rounds + 1)]
        assert tree_sensitivity(schema, period).tolist() == worst
        made = tree(rounds=rounds, restart_every=period)
        assert made.rows_by_round.tolist() == [int((closed <= t).sum())
                                               for t in range(1, rounds + 1)]
        assert np.all(made.rows_by_round <= made.rows_per_round * np.arange(1, rounds + 1))


@pytest.mark.parametrize("bands, separation, most", [
    (1, 1, None), (1, 3, 2), (2, 2, None), (3, 3, None), (3, 5, None), (4, 4, 1), (2, 4, 2)])
def test_bands_are_the_worst_of_all_patterns(bands, separation, most):
    rounds = 9
    random = np.random.default_rng(bands * 100 + separation)
    band = random.integers(-9, 10, (rounds, bands))
    band[np.arange(bands) > np.arange(rounds)[:, None]] = 0
    schema, matrix = Schema.of(rounds, separation, most), dense(band)
    # Columns of one client share no row, so its vectors' directions do not matter.
    worst = [max(int(np.sum(matrix[:t, list(chosen)] ** 2)) for chosen in patterns(schema))
             for t in range(1, rounds + 1)]
    assert band_sensitivity(schema, band).tolist() == worst


def test_no_vectors_of_one_client_move_the_rows_farther():
    """The bound is on all vectors of norm 1 or less, in any directions, in any allowed rounds."""
    rounds, random = 8, np.random.default_rng(5)
    nodes, _ = node_matrix(rounds, rounds)
    coefficients = integer_band(np.tril(np.ones((rounds, 3))) * [1.0, 0.7, 0.6], 4)
    for matrix, schema, squared in (
            (nodes, Schema.of(rounds, 2, None), tree_sensitivity(Schema.of(rounds, 2, None), 8)),
            (dense(coefficients), Schema.of(rounds, 3, None),
             band_sensitivity(Schema.of(rounds, 3, None), coefficients))):
        farthest = 0.0
        for chosen in patterns(schema):
            vectors = np.zeros((rounds, 3))
            for trial in range(4):
                directions = random.normal(size=(len(chosen), 3)) if trial else np.ones((1, 3))
                vectors[list(chosen)] = directions / np.linalg.norm(directions, axis=-1,
                                                                    keepdims=True)
                farthest = max(farthest, float(np.sum((matrix @ vectors) ** 2)))
        assert farthest <= squared[-1] * (1 + 1e-12)
        assert farthest >= squared[-1] * (1 - 1e-12)  # equal vectors reach it


@pytest.mark.parametrize("case", VECTORS["trees"], ids=lambda case: f"{case['rounds']}")
def test_trees_are_within_the_bound_of_jax_privacy(case):
    ours = tree(rounds=case["rounds"]).sensitivity(
        separation=case["separation"], most=case["most"])
    # Theirs is an upper bound for any matrix; where it is reached they agree.
    assert 0.98 * case["at_most"] <= ours <= case["at_most"] * (1 + 1e-6)


@pytest.mark.parametrize("case", VECTORS["trees in epochs"], ids=lambda case: f"{case['rounds']}")
def test_trees_in_epochs_are_those_of_jax_privacy(case):
    """A fixed order in every epoch is one of the patterns that lie an epoch apart."""
    ours = tree(rounds=case["rounds"]).sensitivity(separation=case["rounds"] // case["epochs"])
    assert ours == pytest.approx(case["sensitivity"], rel=1e-6)


@pytest.mark.parametrize("case", VECTORS["toeplitz"],
                         ids=lambda case: f"{case['rounds']}-{case['bands']}")
def test_the_best_coefficients_and_their_cost_are_those_of_jax_privacy(case):
    rounds, bands = case["rounds"], case["bands"]
    ours = best_coefficients(rounds, bands)
    np.testing.assert_allclose(ours / np.linalg.norm(ours), case["coefficients"], atol=2e-5)
    fine = banded(rounds=rounds, bands=bands, grid_bits=14)
    variance = fine.prefix_variance
    for most, squared in case["squared_sensitivity"].items():
        found = fine.sensitivity(separation=bands, most=None if most == "None" else int(most)) ** 2
        times = squared / case["squared_sensitivity"]["1"]
        assert found * variance.mean() == pytest.approx(times * case["mean_error"], rel=1e-3)
        assert found * variance.max() == pytest.approx(times * case["max_error"], rel=1e-3)
    # What users get by default: integers of six bits, within a thousandth.
    rough = banded(rounds=rounds, bands=bands).error(separation=bands, most=1) ** 2
    assert case["mean_error"] * (1 - 1e-6) <= rough <= 1.001 * case["mean_error"]


@pytest.mark.parametrize("case", VECTORS["banded"],
                         ids=lambda case: f"{case['rounds']}-{case['bands']}")
def test_a_matrix_of_jax_privacy_costs_what_it_says(case):
    made = banded(rounds=case["rounds"], bands=case["bands"], band=np.array(case["band"]),
                  grid_bits=14)
    squared = made.sensitivity(separation=case["bands"], most=1) ** 2
    assert squared * made.prefix_variance.mean() == pytest.approx(case["mean_error"], rel=1e-3)
    assert squared * made.prefix_variance.max() == pytest.approx(case["max_error"], rel=1e-3)


def test_jax_privacy_itself_gives_these_matrices():
    pytest.importorskip("jax_privacy")
    case = VECTORS["banded"][0]
    made = banded(rounds=case["rounds"], bands=case["bands"], optimiser="jax-privacy")
    error = made.error(separation=case["bands"], most=1) ** 2
    assert error == pytest.approx(case["mean_error"], rel=2e-2)


@pytest.mark.parametrize("rounds", [16, 64, 256])
def test_correlated_noise_beats_trees_and_trees_beat_independent_noise(rounds):
    """One participation each: trees grow with log n, the best matrices half as fast."""
    once = {"separation": rounds, "most": 1}
    independent = banded(rounds=rounds, bands=1).error(**once)
    binary, best = tree(rounds=rounds).error(**once), banded(rounds=rounds, bands=rounds).error(
        **once)
    assert best < 0.7 * binary < 0.7 * independent
    assert independent == pytest.approx(np.sqrt((rounds + 1) / 2))
    assert binary < 0.6 * np.log2(rounds) + 1 and best < 1 + np.log(rounds) / np.pi
