"""Power-of-Choice and Oort: who they choose, what they remember, and that they claim no privacy."""

from __future__ import annotations

import numpy as np
import pytest

from fedjax_secure.core import SpecError, source
from fedjax_secure.selection import (
    Candidates,
    Devices,
    Observed,
    available,
    devices,
    oort,
    power_of_choice,
)

COUNTS = np.array([3, 1, 7, 4, 2, 5, 6, 8, 9, 10])
LOSSES = np.array([0.3, 2.0, 0.9, 1.1, 0.1, 3.0, 0.2, 0.4, 1.5, 0.6])


def people(losses=LOSSES, asked=None, counts=COUNTS) -> Candidates:
    def losses_of(clients):
        if asked is not None:
            asked.append(np.asarray(clients).tolist())
        return losses[np.asarray(clients)]

    return Candidates(tuple(map(str, range(len(counts)))),
                      np.concatenate([[0], np.cumsum(counts)]), losses_of)


def test_power_of_choice_takes_the_largest_losses_of_those_it_asked():
    asked = []
    selection = power_of_choice(3, candidates=6)
    for round in range(1, 30):
        cohort = selection.draw(source(0), round, people(asked=asked), ())
        candidates = asked[-1]
        assert len(set(candidates)) == 6
        best = sorted(candidates, key=lambda c: -LOSSES[c])[:3]
        assert sorted(best) == cohort.taking_part.tolist()
    everyone = power_of_choice(3, candidates=10).draw(source(0), 1, people(), ())
    assert everyone.taking_part.tolist() == [1, 5, 8]


def test_candidates_are_drawn_by_size():
    """One candidate: probability n_k / n; chi-square of 4,000 rounds, false alarm 1e-6."""
    from scipy.stats import chi2

    selection, rounds, seen = power_of_choice(1, candidates=1), 4000, np.zeros(10)
    for round in range(1, rounds + 1):
        seen += selection.draw(source(2), round, people(), ()).alive
    truth = rounds * COUNTS / COUNTS.sum()
    assert ((seen - truth) ** 2 / truth).sum() < chi2.isf(1e-6, 9)


def test_losses_that_are_not_finite_come_last_and_equal_ones_by_chance():
    bad = np.where(np.arange(10) < 5, np.nan, LOSSES)
    draw = power_of_choice(5, candidates=10).draw
    assert draw(source(0), 1, people(bad), ()).taking_part.tolist() == [5, 6, 7, 8, 9]
    flat = {tuple(draw(source(0), r, people(np.ones(10)), ()).taking_part) for r in range(1, 9)}
    assert len(flat) > 4


def test_loss_guided_selections_claim_no_privacy():
    for selection in (power_of_choice(2, candidates=4), oort(2), available(oort(2), np.ones(
            (1, 10), bool))):
        assert selection.reads_data and selection.sampling is None


def test_an_oort_that_only_exploits_ranks_by_count_times_loss_with_a_bonus_for_long_unseen():
    selection = oort(2, exploration=0.0, least_exploration=0.0, cutoff=1.0, clip_percentile=100.0)
    state = selection.init(people())
    took = np.ones(10, bool)
    cohort = selection.draw(source(0), 1, people(), state)._replace(
        alive=took, indices=tuple(np.arange(n) for n in COUNTS))
    state = selection.observe(state, cohort, Observed(LOSSES, COUNTS))
    np.testing.assert_allclose(state["utility"], COUNTS * LOSSES)
    assert selection.draw(source(0), 2, people(), state).taking_part.tolist() == [5, 8]
    # by hand: utilities scaled to [0, 1], plus sqrt(0.1 ln R / L)
    state["last_round"][:] = 100
    state["last_round"][2] = 1
    scaled = (state["utility"] - state["utility"].min()) / np.ptp(state["utility"])
    score = scaled + np.sqrt(0.1 * np.log(101) / state["last_round"])
    assert set(np.argsort(-score)[:2]) == {2, 5}
    assert selection.draw(source(0), 101, people(), state).taking_part.tolist() == [2, 5]


def test_oort_lowers_the_utility_of_the_slow_by_the_power_of_preferred_over_needed_time():
    seconds = np.ones(10)
    seconds[5] = 4.0
    times = Devices(np.zeros(10), seconds, np.zeros(10))
    selection = oort(1, devices=times, exploration=0.0, least_exploration=0.0, cutoff=1.0,
                     clip_percentile=100.0)
    state = selection.init(people())
    state["utility"], state["last_round"] = COUNTS * LOSSES, np.full(10, 1000, np.int32)
    cohort = selection.draw(source(0), 1, people(), state)
    assert cohort.taking_part.tolist() == [8] and cohort.seconds == 1.0
    gentle = oort(1, devices=times, exploration=0.0, least_exploration=0.0, cutoff=1.0,
                  straggler_penalty=0.05, clip_percentile=100.0)
    assert gentle.draw(source(0), 1, people(), state).taking_part.tolist() == [5]


def test_oort_explores_less_over_time_and_the_fast_first():
    times = devices(np.full(400, 10), speed_spread=1.5, bandwidth_spread=0.0, seed=1)
    crowd = people(np.ones(400), counts=np.full(400, 10))
    selection = oort(20, devices=times, exploration=0.9, exploration_decay=0.8)
    state, fresh_shares, first = selection.init(crowd), [], None
    for round in range(1, 16):
        cohort = selection.draw(source(0), round, crowd, state)
        assert cohort.alive.sum() == 20
        fresh_shares.append(np.mean(state["last_round"][cohort.alive] == 0))
        first = cohort.alive if first is None else first
        losses = np.where(cohort.alive, 1.0, np.nan)
        state = selection.observe(state, cohort, Observed(losses, cohort.counts))
    expected = [1.0] + [np.ceil(20 * max(0.2, 0.9 * 0.8 ** (r - 1))) / 20 for r in range(2, 16)]
    np.testing.assert_allclose(fresh_shares, expected)
    assert np.median(times.seconds[first]) < np.median(times.seconds)


def test_oorts_pacer_gives_slow_clients_time_when_utility_falls():
    selection = oort(2, pacer_rounds=3)
    state = selection.init(people())
    percentiles = []
    for round in range(1, 13):
        cohort = selection.draw(source(0), round, people(), state)
        losses = np.where(cohort.alive, 10.0 / cohort.counts.clip(1) / round, np.nan)
        state = selection.observe(state, cohort, Observed(losses, cohort.counts))
        percentiles.append(float(state["percentile"]))
    assert percentiles == [30.0] * 5 + [40.0] * 3 + [50.0] * 3 + [60.0]


def test_oort_remembers_in_arrays_whose_shapes_never_change():
    selection = oort(3)
    state = selection.init(people())
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    before = {name: value.copy() for name, value in state.items()}
    cohort = selection.draw(source(0), 1, people(), state)
    new = selection.observe(state, cohort, Observed(np.where(cohort.alive, 1.0, np.nan), COUNTS))
    assert {name: (np.shape(v), np.asarray(v).dtype) for name, v in new.items()} == shapes
    assert all(np.array_equal(state[name], before[name]) for name in state)  # a new state
    assert (new["last_round"] == cohort.alive).all()


def test_nobody_available_is_a_round_of_nobody():
    nobody = people()._replace(available=np.zeros(10, bool))
    for selection in (oort(2), power_of_choice(2, candidates=4)):
        cohort = selection.draw(source(0), 1, nobody, selection.init(nobody))
        assert not cohort.alive.any()
        state = selection.init(nobody)
        selection.observe(state, cohort, Observed(np.full(10, np.nan), np.zeros(10, int)))


def test_bad_settings_are_refused():
    for make in (lambda: power_of_choice(3, candidates=2), lambda: power_of_choice(0, candidates=2),
                 lambda: oort(0), lambda: oort(2, exploration=1.5), lambda: oort(2, cutoff=-1),
                 lambda: oort(2, pacer_rounds=0)):
        with pytest.raises(SpecError):
            make()
    with pytest.raises(SpecError, match="at least 11 clients"):
        power_of_choice(2, candidates=11).expected_clients(10)
    with pytest.raises(SpecError, match="at least 11 clients"):
        oort(11).expected_clients(10)
    with pytest.raises(SpecError, match="devices of 10 clients"):
        oort(2, devices=devices([1, 2])).expected_clients(10)
    with pytest.raises(SpecError, match="candidates' losses"):
        power_of_choice(1, candidates=2).draw(source(0), 1, people()._replace(losses=None), ())
    selection = oort(2)
    cohort = selection.draw(source(0), 1, people(), selection.init(people()))
    with pytest.raises(SpecError, match="report their training loss"):
        selection.observe(selection.init(people()), cohort, Observed(np.full(10, np.nan), COUNTS))


def test_oort_and_power_of_choice_run_in_simulations_and_remember_what_clients_reported():
    import fedjax_secure as fs
    from fedjax_secure.data import FederatedDataset

    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNTS.sum(), 2))
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    y = (x[:, 0] > 0).astype(np.int32)
    data = FederatedDataset(
        name="made up", clients=tuple("abcdefghij"), x=x, y=y, offsets=offsets, test_x=x, test_y=y,
        test_offsets=offsets, feature_names=("p", "q"), classes=("0", "1"))
    model, algorithm = fs.models.logistic_regression(data), fs.algorithms.fed_avg(0.5)
    made = fs.Simulation(model, data, algorithm, selection=oort(3))
    state = made.init()
    for state, report in made.run(state, rounds=3):
        assert report.clients == 3
    tried = state.selection["last_round"] > 0
    assert 3 <= tried.sum() <= 9 and (state.selection["utility"][tried] > 0).all()
    assert not state.selection["utility"][~tried].any()

    made = fs.Simulation(model, data, algorithm, selection=power_of_choice(2, candidates=10))
    state = made.init()
    for state, _ in made.run(state, rounds=2):
        worst = np.argsort(-made.rounds.losses(state.params, range(10)))[:2]
        cohort = made.rounds.draw(state.round + 1, state)
        assert sorted(worst.tolist()) == cohort.taking_part.tolist()
