"""The direction of published effects, in small: the same code as `make bench-published`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import source
from fedjax_secure.selection import Candidates

BENCH = Path(__file__).resolve().parents[1] / "bench"
SMALL = np.full(30, 60)


@pytest.fixture
def comparisons(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import comparisons

    yield comparisons
    sys.modules.pop("comparisons", None)


@pytest.mark.parametrize(("late", "alive"), [("partial", 10), ("dropped", 1)])
def test_stragglers_are_as_many_as_asked_and_finish_whole_epochs(comparisons, late, alive):
    people = Candidates(tuple(f"{c}" for c in range(30)), np.arange(0, 310, 10))
    selection = comparisons.with_stragglers(
        fs.selection.uniform_clients(10), share=0.9, epochs=20, late=late)
    assert selection.expected_clients(30) == alive
    for round in range(1, 6):
        cohort = selection.draw(source(0), round, people, ())
        everyone = fs.selection.uniform_clients(10).draw(source(0), round, people, ())
        assert set(cohort.taking_part) <= set(everyone.taking_part)
        assert len(cohort.taking_part) == alive
        assert sum(len(rows) for rows in cohort.indices) == 10 * alive
        if late == "partial":
            epochs = cohort.share[cohort.taking_part] * 20
            assert np.sum(epochs == 20) == 1
            np.testing.assert_allclose(epochs, np.rint(epochs), atol=1e-4)
            assert epochs.min() >= 1 and np.all(cohort.share[~cohort.alive] == 1)


def test_partial_work_of_stragglers_beats_dropping_them(comparisons):
    # Li et al. 2020 (FedProx), figure 1 and abstract.
    run = {"alpha": 1.0, "stragglers": 0.9, "rounds": 30, "sizes": SMALL}
    dropped = comparisons.fed_prox_run(0, mu=None, **run)
    held = comparisons.fed_prox_run(0, mu=1.0, **run)
    assert held["accuracy"] > dropped["accuracy"] + 5
    assert held["training loss"] < dropped["training loss"]
    assert held["swing"] < dropped["swing"]


def test_control_variates_need_fewer_rounds_on_sorted_labels(comparisons):
    # Karimireddy et al. 2020 (SCAFFOLD), abstract.
    data = comparisons.digits_with_similarity(50, 0.0, seed=0)
    assert all(len(np.unique(data.y[data.rows(c)])) <= 2 for c in range(data.num_clients))
    needed = {
        name: comparisons.rounds_to_accuracy(
            data, comparisons.local_method(name, 0.3, epochs=5, batch_size=6), target=0.85,
            rounds=60, clients=10, seed=0)
        for name in ("FedAvg", "SCAFFOLD")
    }
    assert needed["SCAFFOLD"] < needed["FedAvg"]


def test_similar_clients_have_all_labels(comparisons):
    data = comparisons.digits_with_similarity(20, 1.0, seed=0)
    assert all(len(np.unique(data.y[data.rows(c)])) >= 8 for c in range(20))
    assert sum(data.counts) == len(fs.data.digits().y)


def test_personal_models_are_more_accurate_and_more_even_on_skewed_clients(comparisons):
    # Li et al. 2021 (Ditto), abstract.
    found = comparisons.personal_run(0, lam=1.0, rounds=20)
    personal, everyones = found["personal"], found["global"]
    assert personal["average"] > everyones["average"]
    assert personal["variance"] < everyones["variance"]
    assert personal["worst 10%"] > everyones["worst 10%"]
