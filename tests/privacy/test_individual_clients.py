"""Clients that allow different epsilons: drawn or clipped by group, charged and reported each."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import numpy as np
import optax
import pytest
from dp_accounting.pld import PLDAccountant

import fedjax_secure as fs
from fedjax_secure.core import BudgetError, OpeningError, SpecError, UpdateError, source
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.privacy.individual import IndividualBudget, assign, sample, scale
from fedjax_secure.selection import Candidates, poisson_clients_by_group

CLIENTS, ROUNDS, DELTA = 20, 8, 1e-4
TARGETS = {"careful": 1.0, "others": 4.0}
SETTING = {"shares": {"careful": 0.4, "others": 0.6}, "sampling_rate": 0.3, "rounds": ROUNDS,
           "dp_delta": DELTA}
GROUPS = np.array([0, 1, 1, 0, 1] * 4)


@pytest.fixture(scope="module")
def plan():
    return sample(TARGETS, **SETTING)


@pytest.fixture(scope="module")
def data(made_up_clients):
    return made_up_clients(CLIENTS)


def selected(plan, groups=GROUPS, **changes):
    return poisson_clients_by_group(groups, plan.sampling_rates, **{
        "mean_rate": plan.mean_rate, "everyone_answers": True, **changes})


def federation(data, plan, folder, *, stages=(), l2_bound=1.0, bits=24, missing=2,
               unit="client", **changes) -> fs.Federation:
    secure = "seed" in changes and changes["seed"] is None
    budget = IndividualBudget.open(
        data.population_fingerprint, data.client_unit, plan, groups=GROUPS,
        label=None if secure else "simulation", folder=folder / "budget")
    chain = fs.chain(
        fs.privacy.clip(l2_bound, unit=unit), fs.privacy.quantise(bits=bits, scale=2.0**12),
        fs.privacy.discrete_gaussian(plan.noise_multiplier, missing_shares=missing), *stages)
    parts = {"algorithm": fs.algorithms.fed_avg(0.1), "selection": selected(plan),
             "budget": budget, "folder": folder / "run", "seed": 0, **changes}
    return fs.Federation(fs.models.logistic_regression(data), data, parts.pop("algorithm"), chain,
                         **parts)


# -- who is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("everyone_answers", [True, False])
def test_clients_are_drawn_at_their_own_groups_rate_and_alone(everyone_answers):
    """4,000 rounds of 20 clients; frequencies and pairs, false alarm below 1e-6."""
    groups, rates = np.array([0, 1, 2, 3] * 5), (0.05, 0.5, 0.0, 1.0)
    made = poisson_clients_by_group(groups, rates, mean_rate=0.4, everyone_answers=everyone_answers)
    people = Candidates(tuple(map(str, range(20))), np.arange(0, 61, 3))
    cohorts = [made.draw(source(3), number, people, ()) for number in range(4000)]
    assert all(cohort.alive.all() for cohort in cohorts) is everyone_answers
    drawn = np.array([cohort.counts > 0 for cohort in cohorts], float)
    assert drawn[:, groups == 3].all() and not drawn[:, groups == 2].any()
    for number in (0, 1):
        rate, found = rates[number], drawn[:, groups == number]
        spread = math.sqrt(4000 * rate * (1 - rate))
        assert np.all(np.abs(found.sum(0) - 4000 * rate) < 6 * spread)
        apart = (found - rate).T @ (found - rate)
        assert np.abs(apart[~np.eye(5, dtype=bool)]).max() < 6 * spread**2 / math.sqrt(4000)
    assert made.sampling.rate == 1.0 and made.hides_drawn is everyone_answers
    assert made.expected_clients(20) == pytest.approx(8.0)
    assert made.expected_clients(20, np.arange(20) < 5) == pytest.approx(2.0)
    assert all(np.all(cohort.scale == 1) and cohort.mean_count == 3 for cohort in cohorts[:5])


def test_equal_groups_are_drawn_as_poisson_clients_draw():
    people = Candidates(tuple("abcdef"), np.arange(0, 70, 10))
    for everyone in (True, False):
        by_group = poisson_clients_by_group([0] * 6, (0.3,), mean_rate=0.3,
                                            everyone_answers=everyone)
        alike = fs.selection.poisson_clients(0.3, everyone_answers=everyone)
        for number in range(1, 20):
            one, other = (made.draw(source(1), number, people, ()) for made in (by_group, alike))
            assert np.array_equal(one.alive, other.alive)
            assert np.array_equal(one.counts, other.counts)
        assert by_group.expected_clients(6) == alike.expected_clients(6)


@pytest.mark.parametrize(("groups", "rates", "mean"), [
    ([0, 2], (0.1, 0.2), 0.1), ([0.0, 1.0], (0.1, 0.2), 0.1), ([0], (1.1,), 0.5),
    ([0], (0.0,), 0.1), ([0], (0.2,), 0.3), ([], (0.2,), 0.1), ([0], (-0.1, 0.2), 0.1),
    ([0, 1], (1e-20, 0.2), 0.1), ([0], (math.nan,), 0.1)])
def test_what_a_draw_by_groups_refuses(groups, rates, mean):
    with pytest.raises(SpecError):
        poisson_clients_by_group(groups, rates, mean_rate=mean)


def test_clients_without_a_group_are_refused():
    made = poisson_clients_by_group([0, 0], (0.5,), mean_rate=0.5)
    with pytest.raises(SpecError, match="a group for each of 3 clients, got 2"):
        made.expected_clients(3)
    with pytest.raises(SpecError, match="a group for each of 3 clients, got 2"):
        made.draw(source(0), 1, Candidates(tuple("abc"), np.arange(0, 7, 2)), ())


# -- a federation that draws by group -------------------------------------------------------------


def by_dp_accounting(multiplier: float, rate: float, rounds: int) -> float:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return accountant.get_epsilon(DELTA)


def test_each_client_ends_at_its_own_epsilon_and_a_resumed_run_goes_on(data, plan, tmp_path):
    with federation(data, plan, tmp_path) as first:
        *_, (state, record) = first.run(first.init(), rounds=3)
        assert first.spec.denominator == pytest.approx(plan.mean_rate * CLIENTS)
        assert first.spec.unit == "client" and len(record.clients) == CLIENTS
    with federation(data, plan, tmp_path) as made:
        state = made.init()
        assert state.round == 3
        for state, record in made.run(state, rounds=ROUNDS):
            for group in plan.groups:
                figures = record.dp["groups"][group.name]
                independent = by_dp_accounting(plan.noise_multiplier, group.sampling_rate,
                                               record.round)
                assert figures["epsilon"] == pytest.approx(independent, rel=1e-3)
                assert figures["sampling_rate"] == group.sampling_rate
        for name, target in TARGETS.items():
            spent = record.dp["groups"][name]["epsilon"]
            assert target * (1 - 1e-3) < spent <= target
        people = made.budget.report_people()
        assert people["group"].tolist() == [plan.names[group] for group in GROUPS]
        for place, group in enumerate(plan.names[group] for group in GROUPS):
            row = people.loc[place]
            assert row["epsilon allowed"] == TARGETS[group]
            assert row["epsilon spent"] == record.dp["groups"][group]["epsilon"]
        with pytest.raises(BudgetError, match=r"client \(careful\)"):
            made.run(state, rounds=ROUNDS + 1)
        report = fs.privacy.report(made)
        for text in (report.markdown(), report.html(), report.json()):
            assert "careful" in text and "others" in text
        assert report.values["guarantee"]["groups"] == record.dp["groups"]
        assert "| careful | 1.000 | 1 |" in report.markdown()
        assert "or less, by group, a round" in report.markdown()
        facts = made.privacy_facts()
        assert made.selection.by_group.digest not in facts.selection


def test_amplification_is_what_a_group_gains(plan):
    """Drawn at the others' rate, the careful would spend several times what they allow."""
    careful, others = plan.sampling_rates
    assert careful < others
    assert by_dp_accounting(plan.noise_multiplier, others, ROUNDS) > 3.9
    assert by_dp_accounting(plan.noise_multiplier, careful, ROUNDS) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_under_encryption_with_fresh_secrets_and_clients_that_drop_out(
        data, plan, tmp_path, aggregator):
    lossy = fs.selection.dropping_out(selected(plan), 0.1)
    with federation(data, plan, tmp_path, stages=[fs.he.encrypt(fs.he.public_key())], seed=None,
                    missing=4, selection=lossy, aggregator=aggregator) as made:
        state = made.init()
        while state.round < 3:
            try:
                state, record = next(made.run(state, rounds=3))
            except OpeningError as error:
                assert "clients that take part" in str(error)
        for group in plan.groups:
            assert record.dp["groups"][group.name]["epsilon"] == pytest.approx(
                by_dp_accounting(plan.noise_multiplier, group.sampling_rate, 3), rel=1e-3)
        assert record.mode == "secure" and made.budget.label is None
        assert made.spec.denominator == pytest.approx(0.9 * plan.mean_rate * CLIENTS)


def test_rates_gain_nothing_where_messages_tell_who_was_drawn(data, plan, tmp_path):
    told = selected(plan, everyone_answers=False)
    with pytest.raises(BudgetError, match="count as if everyone took part.*everyone_answers=True"):
        federation(data, plan, tmp_path, selection=told)
    with pytest.raises(BudgetError, match="count as if everyone took part"):
        federation(data, plan, tmp_path,
                   selection=fs.selection.available(told, np.ones((1, CLIENTS), bool)))
    # A budget of all alike takes it, at rate 1.
    uniform = fs.privacy.Budget.open(
        data.population_fingerprint, data.client_unit, epsilon=99.0, dp_delta=DELTA,
        label="simulation", folder=tmp_path / "uniform")
    with federation(data, plan, tmp_path, selection=told, budget=uniform) as made:
        assert made.spend.sampling_rate == 1.0
    with federation(data, plan, tmp_path / "all", budget=uniform) as made:
        assert made.spend.sampling_rate == max(plan.sampling_rates)


def test_a_federation_that_draws_others_than_it_charges_is_refused(data, plan, tmp_path):
    for wrong in (selected(plan, 1 - GROUPS),
                  fs.selection.poisson_clients(max(plan.sampling_rates), everyone_answers=True),
                  poisson_clients_by_group(GROUPS, plan.sampling_rates[::-1],
                                           mean_rate=plan.mean_rate, everyone_answers=True)):
        with pytest.raises(BudgetError, match="by the plan's rates"):
            federation(data, plan, tmp_path, selection=wrong)
    budget = IndividualBudget.open(
        data.population_fingerprint, data.unit, plan, groups=[0] * len(data.y),
        label="simulation", folder=tmp_path / "records")
    records = {"unit": "record", "budget": budget,
               "algorithm": fs.algorithms.fed_sgd(optax.sgd(0.1))}
    with pytest.raises(SpecError, match="Clip the same unit that the federation samples"):
        federation(data, plan, tmp_path, **records)
    with pytest.raises(BudgetError, match="coins for another unit than each record"):
        federation(data, plan, tmp_path, selection=selected(plan, everyone_answers=False),
                   **records)
    with pytest.raises(BudgetError, match="the budget of this dataset's clients"):
        federation(data, plan, tmp_path, budget=budget)


# -- a federation that clips by group -------------------------------------------------------------


@pytest.fixture(scope="module")
def by_bound():
    return scale(TARGETS, **SETTING)


def scaled(data, plan, folder, bounds=None, *, algorithm=None, **changes):
    if bounds is None:
        bounds = plan.client_bounds(GROUPS, l2_bound=1.0, scale=2.0**12, dim=3)
    algorithm = algorithm or fs.algorithms.fed_avg(0.1)
    return federation(data, plan, folder, **{
        "algorithm": fs.algorithms.with_client_bounds(algorithm, bounds),
        "selection": fs.selection.poisson_clients(0.3, everyone_answers=True), **changes})


def test_clients_clipped_by_group_end_at_their_own_epsilons_and_resume(data, by_bound, tmp_path):
    with scaled(data, by_bound, tmp_path) as first:
        assert first.model.dim == first.spec.dim == 3
        *_, (state, record) = first.run(first.init(), rounds=3)
    with scaled(data, by_bound, tmp_path) as made:
        for state, record in made.run(made.init(), rounds=ROUNDS):
            pass
        for group in by_bound.groups:
            figures = record.dp["groups"][group.name]
            assert group.target_epsilon * (1 - 1e-3) < figures["epsilon"] <= group.target_epsilon
            assert figures["epsilon"] == pytest.approx(by_dp_accounting(
                by_bound.noise_multiplier / group.l2_share, 0.3, ROUNDS), rel=1e-3)
        with pytest.raises(BudgetError, match="careful"):
            made.run(state, rounds=ROUNDS + 1)
        assert all(count == 1 for count in made.traces.values()), made.traces


def test_full_participation_can_be_clipped_by_group(data, tmp_path):
    plan = scale(TARGETS, **{**SETTING, "sampling_rate": 1.0})
    with scaled(data, plan, tmp_path, selection=fs.selection.all_records()) as made:
        *_, (_, record) = made.run(made.init(), rounds=2)
        assert record.dp["groups"]["careful"]["epsilon"] < record.dp["groups"]["others"]["epsilon"]


def test_wider_bounds_than_the_plans_are_refused(data, by_bound, tmp_path):
    bounds = by_bound.client_bounds(GROUPS, l2_bound=1.0, scale=2.0**12, dim=3)
    assert np.array_equal(
        bounds, by_bound.record_bounds(GROUPS, l2_bound=1.0, scale=2.0**12, dim=3))
    wide = np.where(np.arange(CLIENTS) == 3, bounds * np.float32(1.01), bounds)
    with pytest.raises(BudgetError, match="'careful' clipped to its own bound"):
        scaled(data, by_bound, tmp_path, wide)
    with pytest.raises(BudgetError, match="with_client_bounds"):
        federation(data, by_bound, tmp_path,
                   selection=fs.selection.poisson_clients(0.3, everyone_answers=True))
    with pytest.raises(BudgetError, match="largest sampling rate of 0.3"):
        scaled(data, by_bound, tmp_path, selection=fs.selection.poisson_clients(0.3))
    with pytest.raises(SpecError, match="a bound for each of 20 clients"):
        scaled(data, by_bound, tmp_path, bounds[:-1])


ALGORITHMS = {
    "fed_avg": fs.algorithms.fed_avg(5.0, local_epochs=3),
    "scaffold": fs.algorithms.scaffold(5.0),
    "fed_sgd": fs.algorithms.fed_sgd(optax.sgd(1.0)),
    "q_fed_avg": fs.algorithms.q_fed_avg(1.0, q=1.0),
    "ditto": fs.algorithms.ditto(5.0, personal_learning_rate=0.1),
}


@pytest.mark.parametrize("layout", ["ragged", "lanes"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_a_client_sends_keeps_its_own_norm_in_every_algorithm(data, name, layout):
    bounds = np.geomspace(0.01, 1e3, CLIENTS)
    model = fs.models.logistic_regression(data)

    def sums(algorithm):
        simulation = fs.Simulation(model, data, algorithm, layout=layout)
        state = simulation.init()
        keys = device_keys([source(0).key("client", client=str(c)) for c in range(CLIENTS)])
        found = []
        for client in range(CLIENTS):
            cohort = simulation.rounds.draw(1, state)
            cohort = cohort._replace(alive=np.arange(CLIENTS) == client, scale=np.ones(CLIENTS),
                                     mean_count=5.0)
            if simulation.rounds.states is not None:
                simulation.rounds.states.begin(1)
            total, _, _ = simulation.rounds.total(cohort, state, keys, simulation._states)
            found.append(np.asarray(total, np.float64))
        return np.array(found)

    as_they_are = sums(ALGORITHMS[name])
    clipped = sums(fs.algorithms.with_client_bounds(ALGORITHMS[name], bounds))
    norms = np.linalg.norm(as_they_are, axis=1)
    assert np.any(norms > bounds) and np.any(norms < bounds)
    short = np.minimum(1.0, bounds / norms)[:, None]
    np.testing.assert_allclose(clipped, as_they_are * short, rtol=1e-4, atol=1e-7)
    assert np.all(np.linalg.norm(clipped, axis=1) <= bounds * (1 + 1e-6))


def test_a_clipped_client_that_is_not_finite_is_named(data):
    model = fs.models.logistic_regression(data)
    broken = data.x.copy()
    broken[5:10] = np.float32(3e38)
    algorithm = fs.algorithms.with_client_bounds(
        fs.algorithms.fed_avg(1e30, local_epochs=3), np.ones(CLIENTS))
    simulation = fs.Simulation(model, dataclasses.replace(data, x=broken), algorithm)
    with pytest.raises(UpdateError, match="c1"):
        next(simulation.run(simulation.init(), rounds=1))


@pytest.mark.parametrize("bounds", [
    [], [0.0], [-1.0, 1.0], [math.nan], [math.inf], [[1.0]], ["1"], None, [1e13]], ids=repr)
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(SpecError, match="client_bounds"):
        fs.algorithms.with_client_bounds(fs.algorithms.fed_avg(0.1), bounds)


def test_bounds_twice_and_of_records_are_refused(data):
    once = fs.algorithms.with_client_bounds(fs.algorithms.fed_avg(0.1), np.ones(CLIENTS))
    with pytest.raises(SpecError, match="no bounds of their own yet"):
        fs.algorithms.with_client_bounds(once, np.ones(CLIENTS))
    with pytest.raises(SpecError, match="no bounds of their own yet"):
        fs.algorithms.with_client_bounds(np.ones(CLIENTS), once)
    chain = fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24))
    model = fs.models.logistic_regression(data)
    with pytest.raises(SpecError, match="one that clips records"):
        fs.Simulation(model, data, fs.algorithms.with_client_bounds(
            fs.algorithms.fed_sgd(optax.sgd(1.0)), np.ones(CLIENTS)), chain)
    assert once.settings == f"{fs.algorithms.fed_avg(0.1).settings}, client_bounds"


def test_a_rule_may_name_clients_groups():
    sizes = np.array([[12], [400], [90]])
    groups = assign(sizes, lambda size: "careful" if size[0] < 100 else "others", tuple(TARGETS))
    assert groups.tolist() == [0, 1, 0]
