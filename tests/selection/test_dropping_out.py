"""Clients that are lost within a round: who is left, what it means for means, and refusals."""

from __future__ import annotations

import math

import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.algorithms import example_weights
from fedjax_secure.core import Sampling, SpecError, source
from fedjax_secure.selection import (
    Candidates,
    Devices,
    Selection,
    all_records,
    arrivals,
    available,
    dropping_out,
    fed_cs,
    importance_clients,
    oort,
    poisson_clients,
    poisson_clients_by_group,
    poisson_records,
    power_of_choice,
    separated_clients,
    timed,
    uniform_clients,
)

COUNTS = np.array([3, 1, 7, 4, 2, 5, 6, 8, 9, 10])
PEOPLE = Candidates(tuple("abcdefghij"), np.concatenate([[0], np.cumsum(COUNTS)]),
                    losses=lambda clients: np.arange(10.0)[list(clients)])
DEVICES = Devices(np.ones(10), COUNTS.astype(float), np.ones(10))
SELECTIONS = {
    "all_records": all_records(),
    "poisson_records": poisson_records(0.5),
    "uniform": uniform_clients(4),
    "poisson": poisson_clients(0.6),
    "poisson, everyone answers": poisson_clients(0.6, everyone_answers=True),
    "importance": importance_clients(4.0, by=COUNTS),
    "available": available(uniform_clients(4), np.arange(20).reshape(2, 10) % 3 > 0),
    "timed": timed(uniform_clients(4), DEVICES, deadline_seconds=8.0),
    "fed_cs": fed_cs(30.0, DEVICES, candidates=6),
    "separated": separated_clients(3, separation=2),
    "power_of_choice": power_of_choice(3, candidates=6),
    "oort": oort(3),
}


def z(false_alarm: float) -> float:
    """How many standard errors a normal value exceeds (either side) with this probability."""
    from scipy.stats import norm

    return float(norm.isf(false_alarm / 2))


def rounds_of(selection: Selection, rounds: int, seed: int = 0):
    """Cohorts of a selection that is told of no losses."""
    state = selection.init(PEOPLE)
    return [selection.draw(source(seed), number, PEOPLE, state) for number in range(1, rounds + 1)]


@pytest.mark.parametrize("name", SELECTIONS)
def test_who_is_lost_was_asked_and_sends_nothing_and_the_others_do_what_they_did(name):
    inner, outer = SELECTIONS[name], dropping_out(SELECTIONS[name], 0.4)
    seen = lost = 0
    for asked, left in zip(rounds_of(inner, 30), rounds_of(outer, 30), strict=True):
        assert not np.any(left.alive & ~asked.alive)
        gone = asked.alive & ~left.alive
        seen, lost = seen + asked.alive.sum(), lost + gone.sum()
        for client in range(10):
            rows = left.indices[client]
            expected = asked.indices[client] if not gone[client] else np.zeros(0, np.int32)
            assert np.array_equal(rows, expected)
        weights, before = example_weights(left), example_weights(asked)
        np.testing.assert_allclose(weights, np.where(gone, 0.0, before), rtol=1e-6)
        assert left.seconds == asked.seconds
    assert abs(lost - 0.4 * seen) < z(1e-7) * math.sqrt(0.24 * seen)


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_draw_repeats_under_a_seed_and_nobody_is_lost_at_rate_0(name):
    outer = dropping_out(SELECTIONS[name], 0.4)
    alike = [[cohort.alive.tolist() for cohort in rounds_of(outer, 8, seed)] for seed in (1, 1, 2)]
    assert alike[0] == alike[1] != alike[2]
    nobody = dropping_out(SELECTIONS[name], 0.0)
    assert nobody.sampling == SELECTIONS[name].sampling
    for asked, left in zip(rounds_of(SELECTIONS[name], 5), rounds_of(nobody, 5), strict=True):
        assert np.array_equal(asked.alive, left.alive)


def test_coins_are_fair_at_each_clients_own_rate_and_independent():
    """Frequencies and pairs over 4,000 rounds; false alarm below 1e-6 altogether."""
    rates, rounds = np.linspace(0.0, 0.9, 10), 4000
    lost = np.array([~cohort.alive for cohort in rounds_of(dropping_out(all_records(), rates),
                                                           rounds)], float)
    limit = z(1e-8) * np.sqrt(rounds * rates * (1 - rates))
    assert np.all(np.abs(lost.sum(0) - rounds * rates) <= limit)
    apart = (lost - rates).T @ (lost - rates)
    spread = np.sqrt(rates * (1 - rates))
    allowed = z(1e-8) * math.sqrt(rounds) * np.outer(spread, spread)
    assert np.all((np.abs(apart) <= allowed)[~np.eye(10, dtype=bool)])


def test_who_is_lost_does_not_depend_on_who_was_drawn():
    """Where all answer, drawn and not drawn are lost alike; false alarm below 1e-6."""
    inner, rounds = SELECTIONS["poisson, everyone answers"], 2000
    outer = dropping_out(inner, 0.3)
    counts = np.zeros(2), np.zeros(2)
    for asked, left in zip(rounds_of(inner, rounds), rounds_of(outer, rounds), strict=True):
        drawn = asked.counts > 0
        for place, group in enumerate((drawn, ~drawn)):
            counts[0][place] += np.sum(group)
            counts[1][place] += np.sum(group & ~left.alive)
    assert np.all(np.abs(counts[1] - 0.3 * counts[0]) < z(1e-7) * np.sqrt(0.21 * counts[0]))
    assert outer.hides_drawn and outer.sampling.rate == 0.6


@pytest.mark.parametrize("name", ["all_records", "uniform", "poisson", "importance",
                                  "poisson, everyone answers"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_over_the_expected_clients_is_that_of_nobody_lost(name, weighted):
    """The estimated mean over 4,000 rounds against that of the selection itself."""
    values, rounds = np.random.default_rng(0).normal(size=10) * 10, 4000
    means = {}
    for what, selection in (("inner", SELECTIONS[name]),
                            ("outer", dropping_out(SELECTIONS[name], 0.3))):
        expected = selection.expected_clients(10)
        means[what] = np.array([
            example_weights(cohort, weighted=weighted) @ values / expected
            for cohort in rounds_of(selection, rounds)])
    if not weighted and name == "poisson, everyone answers":
        assert SELECTIONS[name].expected_clients(10) == 6.0  # every answer weighs 1, drawn or not
    difference = means["outer"] - means["inner"]
    assert np.std(difference) > 0
    assert abs(difference.mean()) < z(1e-7) * np.std(difference) / math.sqrt(rounds)


def test_a_public_constant_of_clients_is_expected_to_be_left():
    assert dropping_out(all_records(), 0.25).expected_clients(10) == 7.5
    assert dropping_out(poisson_clients(0.6), 0.5).expected_clients(10) == 3.0
    rates = np.linspace(0.0, 0.9, 10)
    each = dropping_out(all_records(), rates)
    assert each.expected_clients(10) == pytest.approx(5.5)
    some = np.arange(10) < 5
    assert each.expected_clients(10, some) == pytest.approx(4.0)
    assert each.expected_clients(10, np.zeros(10, bool)) == 0
    assert dropping_out(uniform_clients(4), 0.25).most_clients(10) == 4
    awake = np.arange(20).reshape(2, 10) % 3 > 0
    both = available(dropping_out(all_records(), 0.5), awake)
    assert both.expected_clients(10) == pytest.approx(awake.sum(1).mean() / 2)
    assert not both.draw(source(0), 1, PEOPLE, ()).alive[~awake[0]].any()


def test_what_the_accountant_is_told():
    told = {name: dropping_out(selection, 0.1) for name, selection in SELECTIONS.items()}
    assert told["poisson"].sampling == Sampling("poisson", 0.6, "client", drops_out=True)
    assert told["poisson_records"].sampling == Sampling("poisson", 0.5, "record", drops_out=True)
    assert told["all_records"].sampling == Sampling("public", 1.0, "record", drops_out=True)
    assert told["separated"].sampling == Sampling("public", 1.0, "client", 2, drops_out=True)
    assert told["oort"].reads_data and told["oort"].sampling is None
    assert not told["poisson"].hides_drawn


def test_who_is_lost_was_not_seen_by_a_selection_that_remembers():
    selection = dropping_out(separated_clients(5, separation=2), 0.5)
    state = selection.init(PEOPLE)
    last = np.zeros(10, int)
    for number in range(1, 60):
        cohort = selection.draw(source(0), number, PEOPLE, state)
        assert np.all((last == 0)[cohort.alive] | (number - last[cohort.alive] >= 2))
        last[cohort.alive] = number
        state = selection.observe(state, cohort, None)
        assert np.array_equal(state["last"], last)


def test_settings_tell_one_rate_from_another():
    made = [dropping_out(poisson_clients(0.5), rate) for rate in (0.1, 0.2, [0.1, 0.2], [0.2, 0.1])]
    assert len({selection.settings for selection in made}) == 4
    assert made[0].settings == "rate=0.5, everyone_answers=False, lost at rate 0.1"
    assert made[0].name == "dropping_out(poisson_clients)"
    assert dropping_out(all_records(), np.float32(0.5)).settings == "lost at rate 0.5"
    given = np.array([0.1, 0.2])
    kept = dropping_out(all_records(), given)
    given[:] = 0.9
    assert kept.expected_clients(2) == pytest.approx(1.7)


@pytest.mark.parametrize("rate", [
    1.0, -0.1, math.nan, math.inf, True, "0.1", None, [], [0.1, 1.0], [[0.1]], [[0.1], 0.2],
    [True, False], 10], ids=repr)
def test_rates_that_make_no_sense_are_refused(rate):
    with pytest.raises(SpecError, match="from 0 to below 1"):
        dropping_out(all_records(), rate)


def test_rates_of_other_clients_and_clients_that_others_replace_are_refused():
    with pytest.raises(SpecError, match="a rate for each of 10 clients, got 2"):
        dropping_out(all_records(), [0.1, 0.2]).expected_clients(10)
    with pytest.raises(SpecError, match="a rate for each of 10 clients, got 2"):
        dropping_out(all_records(), [0.1, 0.2]).draw(source(0), 1, PEOPLE, ())
    queue = dropping_out(arrivals(DEVICES, concurrency=3), 0.1)
    with pytest.raises(SpecError, match="others fill the place"):
        queue.draw(source(0), 1, PEOPLE, ())
    with pytest.raises(SpecError, match="a selection"):
        dropping_out(0.1, all_records())


def test_layers_of_loss_toss_coins_of_their_own():
    """699 of 1,000 would answer twice at rate 0.3 if both layers tossed the same coins."""
    people = Candidates(tuple(map(str, range(1000))), np.arange(1001))
    twice = dropping_out(dropping_out(all_records(), 0.3), 0.3)
    assert twice.expected_clients(1000) == pytest.approx(490.0)
    answered = len(twice.draw(source(0), 1, people, ()).taking_part)
    assert abs(answered - 490) < 6 * math.sqrt(1000 * 0.49 * 0.51)


def test_clients_drawn_by_group_are_expected_by_their_groups_rates():
    """Who is drawn often is lost often here: a plain mean of the losses would expect 1.2."""
    groups, lost = [0, 0, 1, 1], [0.0, 0.0, 0.8, 0.8]
    drawn = poisson_clients_by_group(groups, (0.1, 0.9), mean_rate=0.5, everyone_answers=True)
    assert dropping_out(drawn, lost).expected_clients(4) == pytest.approx(2 * 0.1 + 2 * 0.9 * 0.2)


@pytest.mark.parametrize("kind", ["lost", "away"])
def test_sums_of_records_are_divided_by_those_of_who_answers(kind):
    data = fs.data.heart_disease()
    there = np.array([0.9, 0.1, 0.2, 0.5])
    trace = np.arange(10)[:, None] < 10 * there
    chosen = poisson_records(0.1)
    selection = dropping_out(chosen, 1 - there) if kind == "lost" else available(chosen, trace)
    simulation = fs.Simulation(
        fs.models.logistic_regression(data), data, fs.algorithms.fed_sgd(optax.sgd(0.1)),
        fs.chain(), selection=selection, seed=0)
    assert simulation.spec.denominator == pytest.approx(0.1 * np.dot(data.counts, there))
