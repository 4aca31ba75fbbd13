"""Clients drawn by chance: sizes, orders, probabilities, and what the accountant is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.algorithms import example_weights
from fedjax_secure.core import Sampling, SpecError, source
from fedjax_secure.core.errors import ParameterError
from fedjax_secure.core.randomness import host_shuffles
from fedjax_secure.selection import (
    Candidates,
    all_records,
    importance_clients,
    poisson_clients,
    poisson_records,
    uniform_clients,
)


def population(counts, **fields) -> Candidates:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Candidates(tuple(f"c{i}" for i in range(len(counts))), offsets, **fields)


PEOPLE = population([3, 1, 7, 4, 2, 5, 6, 8, 9, 10])
SELECTIONS = {
    "all_records": all_records(),
    "poisson_records": poisson_records(0.5),
    "uniform": uniform_clients(4),
    "poisson": poisson_clients(0.4),
    "poisson, everyone answers": poisson_clients(0.4, everyone_answers=True),
    "importance": importance_clients(4.0, by=PEOPLE.counts),
}


def z(false_alarm: float) -> float:
    """How many standard errors a normal value exceeds (either side) with this probability."""
    from scipy.stats import norm

    return float(norm.isf(false_alarm / 2))


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_draw_repeats_under_a_seed_and_differs_between_rounds_and_seeds(name):
    draw = SELECTIONS[name].draw

    def flat(seed, round):
        cohort = draw(source(seed), round, PEOPLE, ())
        return [rows.tolist() for rows in cohort.indices]

    assert flat(1, 1) == flat(1, 1)
    assert flat(1, 1) != flat(1, 2) and flat(1, 1) != flat(2, 1)


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name != "poisson_records"])
def test_a_chosen_client_uses_each_of_its_examples_once_and_others_share_an_empty_array(name):
    cohort = SELECTIONS[name].draw(source(0), 5, PEOPLE, ())
    empty = [rows for rows, alive in zip(cohort.indices, cohort.alive, strict=True) if not alive]
    assert all(rows is empty[0] for rows in empty)
    assert all(rows.dtype == np.int32 for rows in cohort.indices)
    for c in cohort.taking_part:
        if "everyone answers" in name and not len(cohort.indices[c]):
            continue
        first, last = PEOPLE.offsets[c], PEOPLE.offsets[c + 1]
        assert sorted(cohort.indices[c].tolist()) == list(range(first, last))
    if empty:
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(empty[0]).resize(0)
            empty[0][...] = 1


@pytest.mark.parametrize("name", SELECTIONS)
def test_nobody_is_drawn_who_is_not_available(name):
    mask = np.arange(10) % 3 == 0
    for round in range(1, 20):
        cohort = SELECTIONS[name].draw(source(0), round, PEOPLE._replace(available=mask), ())
        assert not cohort.alive[~mask].any()
        assert all(len(cohort.indices[c]) == 0 for c in np.flatnonzero(~mask))
    nobody = SELECTIONS[name].draw(
        source(0), 1, PEOPLE._replace(available=np.zeros(10, bool)), ())
    assert not nobody.alive.any() and nobody.counts.sum() == 0


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 3), st.binary(min_size=32,
                                                                              max_size=32))
def test_shuffles_permute_every_group_in_every_pass(counts, passes, key):
    orders = host_shuffles(key, np.array(counts, np.int64), passes=passes)
    assert orders.shape == (passes, sum(counts))
    for order in orders:
        for part, count in zip(np.split(order, np.cumsum(counts)[:-1]) if counts else [], counts,
                               strict=True):
            assert sorted(part.tolist()) == list(range(count))


def test_every_order_of_three_is_equally_likely_in_every_group():
    """Chi-square of 6 orders, in each of two groups; false alarm 1e-6 altogether."""
    from scipy.stats import chi2

    rounds = 6000
    orders = host_shuffles(bytes(range(32)), np.array([3, 3]), passes=rounds)
    for group in (orders[:, :3], orders[:, 3:]):
        _, seen = np.unique(group @ [9, 3, 1], return_counts=True)
        assert len(seen) == 6
        statistic = float(((seen - rounds / 6) ** 2 / (rounds / 6)).sum())
        assert statistic < chi2.isf(5e-7, 5)


def test_shuffles_that_would_hardly_be_random_are_refused():
    with pytest.raises(ParameterError, match="groups x largest group"):
        host_shuffles(bytes(32), np.array([2**57]))


def test_a_uniform_draw_has_its_size_and_every_client_the_same_chance():
    """Each client's frequency over 4,000 rounds; false alarm 1e-6 over the ten clients."""
    rounds, selection = 4000, uniform_clients(4)
    seen = np.zeros(10)
    for round in range(1, rounds + 1):
        alive = selection.draw(source(3), round, PEOPLE, ()).alive
        assert alive.sum() == 4
        seen += alive
    limit = z(1e-7) * math.sqrt(rounds * 0.4 * 0.6)
    assert np.abs(seen - 0.4 * rounds).max() < limit


def test_poisson_coins_are_fair_and_independent_and_never_cut_off():
    """Frequencies, pairs and sizes over 4,000 rounds; false alarm below 1e-6 altogether."""
    rounds, rate = 4000, 0.4
    alive = np.array([poisson_clients(rate).draw(source(4), r, PEOPLE, ()).alive
                      for r in range(1, rounds + 1)], float)
    limit = z(1e-8) * math.sqrt(rounds)
    assert np.abs((alive - rate).sum(0)).max() < limit * math.sqrt(rate * (1 - rate))
    products = (alive - rate).T @ (alive - rate)
    off = products[~np.eye(10, dtype=bool)]
    assert np.abs(off).max() < limit * rate * (1 - rate)
    sizes = alive.sum(1)
    assert sizes.min() <= 1 and sizes.max() >= 8  # a binomial's, not a fixed size
    assert poisson_clients(1.0).draw(source(0), 1, PEOPLE, ()).alive.all()


def test_where_everyone_answers_coins_are_as_fair_and_weights_the_same():
    """Frequencies and the mean over examples, 3,000 rounds; false alarm below 1e-6."""
    rounds, rate, values = 3000, 0.4, np.random.default_rng(1).normal(size=10)
    for everyone_answers in (True, False):
        selection = poisson_clients(rate, everyone_answers=everyone_answers)
        cohorts = [selection.draw(source(6), r, PEOPLE, ()) for r in range(1, rounds + 1)]
        assert not everyone_answers or all(cohort.alive.all() for cohort in cohorts)
        drawn = np.array([cohort.counts > 0 for cohort in cohorts])
        limit = z(1e-8) * math.sqrt(rounds * rate * (1 - rate))
        assert np.abs(drawn.sum(0) - rate * rounds).max() < limit
        means = [float(example_weights(cohort) @ values) / selection.expected_clients(10)
                 for cohort in cohorts]
        error = abs(np.mean(means) - np.average(values, weights=PEOPLE.counts))
        assert 0 < error < z(1e-7) * np.std(means) / math.sqrt(rounds)


def test_importance_sampling_leaves_the_mean_unbiased_by_examples_and_by_clients():
    """The estimated means over 4,000 rounds against the true ones; false alarm 1e-6 altogether."""
    rng, rounds = np.random.default_rng(0), 4000
    values = rng.normal(size=10) * 10
    selection = importance_clients(3.0, by=PEOPLE.counts)
    expected = selection.expected_clients(10)
    assert expected == 3.0
    truths = {True: np.average(values, weights=PEOPLE.counts), False: values.mean()}
    estimates = {True: [], False: []}
    for round in range(1, rounds + 1):
        cohort = selection.draw(source(5), round, PEOPLE, ())
        for weighted in estimates:
            weights = example_weights(cohort, weighted=weighted)
            estimates[weighted].append(float(weights @ values) / expected)
    for weighted, found in estimates.items():
        error = abs(np.mean(found) - truths[weighted])
        assert error < z(5e-7) * np.std(found) / math.sqrt(rounds)
        assert np.std(found) > 0
    naive = np.mean([values[selection.draw(source(5), r, PEOPLE, ()).alive].mean()
                     for r in range(1, 400)
                     if selection.draw(source(5), r, PEOPLE, ()).alive.any()])
    assert abs(naive - values.mean()) > 0.3  # without the weights the mean is another


def test_importance_probabilities_follow_the_numbers_and_stop_at_one():
    selection = importance_clients(4.0, by=[1, 1, 1, 1, 96])
    people = population([5] * 5)
    cohorts = [selection.draw(source(0), r, people, ()) for r in range(1, 30)]
    assert all(cohort.alive[4] for cohort in cohorts)
    scale = cohorts[0].scale
    np.testing.assert_allclose(scale, (4 / 5) / np.array([0.75, 0.75, 0.75, 0.75, 1.0]), rtol=1e-6)
    assert selection.sampling == Sampling("poisson", 1.0, "client")
    even = importance_clients(2.0, by=[1, 2, 1, 2, 2])
    assert even.sampling.rate == pytest.approx(0.5)


def test_what_the_accountant_is_told():
    assert uniform_clients(4).sampling == Sampling("public", 1.0, "client")
    assert poisson_clients(0.25).sampling == Sampling("poisson", 0.25, "client")
    assert all_records().sampling.rate == 1.0
    told = importance_clients(3.0, by=PEOPLE.counts).sampling
    assert (told.kind, told.unit) == ("poisson", "client")
    assert told.rate == pytest.approx(3.0 * 10 / 55)
    assert not any(selection.reads_data for selection in SELECTIONS.values())


def test_expected_and_most_clients():
    assert (uniform_clients(4).expected_clients(10), uniform_clients(4).most_clients(10)) == (4, 4)
    assert (poisson_clients(0.4).expected_clients(10), poisson_clients(0.4).most_clients(10)) == (
        4.0, 10)
    assert importance_clients(3, by=PEOPLE.counts).most_clients(10) == 10
    mask = np.arange(10) < 3
    assert uniform_clients(4).expected_clients(10, mask) == 3
    assert poisson_clients(0.5).expected_clients(10, mask) == 1.5
    assert importance_clients(5.5, by=PEOPLE.counts).expected_clients(10, mask) == pytest.approx(
        1.1)
    assert all_records().expected_clients(10, mask) == 3


@pytest.mark.parametrize("make, said", [
    (lambda: uniform_clients(0), "a whole number of clients"),
    (lambda: uniform_clients(2.5), "got 2.5"),
    (lambda: uniform_clients(True), "got True"),
    (lambda: poisson_clients(0.0), "a rate above 0 and up to 1, got 0.0"),
    (lambda: poisson_clients(1.1), "got 1.1"),
    (lambda: poisson_clients(float("nan")), "got nan"),
    (lambda: poisson_clients("half"), "got 'half'"),
    (lambda: importance_clients(2, by=[1, 0, 1]), "a positive finite number for each client"),
    (lambda: importance_clients(2, by=[[1, 2]]), "of shape"),
    (lambda: importance_clients(4, by=[1, 2, 3]), "above 0 and up to 3"),
    (lambda: importance_clients(1, by=[1, 1e300]), "of comparable size"),
])
def test_bad_settings_are_refused(make, said):
    with pytest.raises(SpecError, match=said):
        make()


def test_more_clients_than_exist_are_refused_before_any_work():
    selection = uniform_clients(11)
    for call in (selection.expected_clients, selection.most_clients):
        with pytest.raises(SpecError, match="at least 11 clients to choose from, got 10"):
            call(10)
    with pytest.raises(SpecError, match="Ask for 10 or fewer"):
        selection.draw(source(0), 1, PEOPLE, ())
    with pytest.raises(SpecError, match="a number for each of 10 clients, got 3"):
        importance_clients(1, by=[1, 2, 3]).expected_clients(10)


def test_a_coin_for_a_client_amplifies_nothing_for_records_and_the_other_way_round():
    from fedjax_secure.core import Spec

    spec = Spec(dim=3, num_clients=10, num_records=55, denominator=4.0)
    rates = {(unit, drawn): spec.replace(unit=unit, sampling=Sampling("poisson", 0.1, drawn))
             .sampling_rate for unit in ("record", "client") for drawn in ("record", "client")}
    assert rates == {("record", "record"): 0.1, ("record", "client"): 1.0,
                     ("client", "record"): 1.0, ("client", "client"): 0.1}
    public = spec.replace(unit="client", sampling=Sampling("public", 1.0, "client"))
    assert public.sampling_rate == 1.0
    with pytest.raises(SpecError, match="exactly 1 unless kind is 'poisson'"):
        Sampling("public", 0.1, "client")
