"""Individual epsilons by group: plans against dp-accounting and exact sums, budgets for random
histories, and a federation that charges each group its own."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import numpy as np
import optax
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.core import BudgetError, DataError, ResumeError, SpecError, source
from fedjax_secure.privacy import Budget, Spend, compose
from fedjax_secure.privacy.individual import (
    IndividualBudget,
    IndividualPlan,
    assign,
    sample,
    scale,
)
from fedjax_secure.selection import Candidates, poisson_records_by_group

TARGETS = {"careful": 1.0, "others": 3.0}
SHARES = {"careful": 0.4, "others": 0.6}
SETTING = {"shares": SHARES, "sampling_rate": 0.1, "rounds": 12, "dp_delta": 1e-4}


@pytest.fixture(scope="module")
def plan() -> IndividualPlan:
    return sample(TARGETS, **SETTING)


def by_dp_accounting(multiplier: float, rate: float, rounds: int, dp_delta: float) -> float:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return accountant.get_epsilon(dp_delta)


@pytest.mark.parametrize("method", [sample, scale])
def test_every_group_ends_at_its_own_epsilon(method):
    plan = method(TARGETS, **SETTING)
    for group in plan.groups:
        assert group.target_epsilon * (1 - 1e-3) < group.epsilon <= group.target_epsilon
        independent = by_dp_accounting(plan.noise_multiplier / group.l2_share,
                                       group.sampling_rate, 12, 1e-4)
        assert independent == pytest.approx(group.target_epsilon, rel=1e-3)
    assert plan.mean_rate == pytest.approx(0.1, rel=2e-3)
    bounds = plan.l2_bounds(mean=2.0)
    assert sum(SHARES[name] * bound for name, bound in bounds.items()) == pytest.approx(2.0)


def test_equal_targets_are_the_uniform_run():
    plan = sample({"a": 2.0, "b": 2.0}, **{**SETTING, "shares": {"a": 0.5, "b": 0.5}})
    uniform = fs.privacy.calibrate(target_epsilon=2.0, dp_delta=1e-4, rounds=12,
                                   sampling_rate=0.1)
    assert plan.noise_multiplier == pytest.approx(uniform, rel=2e-3)
    assert plan.sampling_rates == pytest.approx((0.1, 0.1), rel=2e-3)


def test_laxer_groups_make_for_less_noise_than_uniform_privacy_at_the_strictest(plan):
    strictest = fs.privacy.calibrate(target_epsilon=1.0, dp_delta=1e-4, rounds=12,
                                     sampling_rate=0.1)
    assert plan.noise_multiplier < strictest
    assert scale(TARGETS, **SETTING).noise_multiplier < strictest


def discrete_gaussian(stddev: float, reach: int) -> np.ndarray:
    grid = np.arange(-reach, reach + 1)
    mass = np.exp(-(grid**2) / (2 * stddev**2))
    return mass / mass.sum()


@pytest.mark.parametrize("place", [0, 1])
def test_the_exact_sums_with_and_without_a_person_keep_the_groups_guarantee(plan, place):
    """One round of five others with coins of their own groups; every output's probability."""
    norm, reach = 6, 400
    stddev = plan.noise_multiplier * norm

    def with_coins(mass: np.ndarray, group: int, value: int) -> np.ndarray:
        rate = plan.groups[group].sampling_rate
        return (1 - rate) * mass + rate * np.roll(mass, value)

    without = discrete_gaussian(stddev, reach)
    for group, value in ((0, 6), (1, -6), (1, 3), (0, 5), (1, 6)):
        without = with_coins(without, group, value)
    present = with_coins(without, place, norm)
    spend = Spend(plan.noise_multiplier, plan.groups[place].sampling_rate, "person")
    for dp_delta in (1e-2, 1e-4, 1e-6):
        epsilon = compose([spend], dp_delta)
        for p, q in ((present, without), (without, present)):
            assert np.maximum(p - math.exp(epsilon) * q, 0).sum() <= dp_delta * (1 + 1e-6)
    # The pair without others is the worst one; there the claim is reached, to a few per cent.
    alone = discrete_gaussian(stddev, reach)
    drawn = with_coins(alone, place, norm)
    epsilon = 0.95 * compose([spend], 1e-3)
    assert np.maximum(drawn - math.exp(epsilon) * alone, 0).sum() > 1e-3


def test_a_plan_is_read_back_as_it_was_written(plan):
    assert IndividualPlan.from_dict(plan.to_dict()) == plan
    assert list(plan.to_dataframe().index) == ["careful", "others"]
    assert "careful" in plan._repr_html_()


@pytest.mark.parametrize("wrong", [
    {"target_epsilons": {}}, {"target_epsilons": {"a": 0.0, "b": 1.0}},
    {"shares": {"careful": 0.9, "others": 0.6}}, {"shares": {"careful": 1.0}},
    {"sampling_rate": 1.5}, {"rounds": 0}, {"dp_delta": 0.0}])
def test_what_a_plan_refuses(wrong):
    with pytest.raises(SpecError):
        sample(**{"target_epsilons": TARGETS, **SETTING, **wrong})


def test_a_rule_sees_one_record_and_names_a_group():
    records = np.array([[1.0], [5.0], [3.0]])
    assert assign(records, lambda row: "ab"[int(row[0] > 2)], "ab").tolist() == [0, 1, 1]
    with pytest.raises(DataError):
        assign(records, lambda row: "c", ("a", "b"))


# -- who is drawn -----------------------------------------------------------------------------


def test_records_are_drawn_at_their_own_groups_rate():
    """4,000 rounds of 40 records; a group's count is binomial (false alarms below 1e-6)."""
    groups = np.array([0, 1, 2, 3] * 10)
    selection = poisson_records_by_group(groups, (0.05, 0.5, 0.0, 1.0), mean_rate=0.2)
    population = Candidates(("a", "b"), np.array([0, 12, 40]))
    counts = np.zeros(4)
    for number in range(4000):
        cohort = selection.draw(source(3), number, population, ())
        rows = np.concatenate(cohort.indices)
        assert len(set(rows.tolist())) == len(rows) and cohort.alive.all()
        counts += np.bincount(groups[rows], minlength=4)
    trials = 4000 * 10
    for rate, count in zip((0.05, 0.5), counts[:2], strict=True):
        assert abs(count - rate * trials) < 5.5 * math.sqrt(trials * rate * (1 - rate))
    assert counts[2] == 0 and counts[3] == trials
    assert selection.sampling.rate == 1.0 and selection.by_group.mean_rate == 0.2


@pytest.mark.parametrize(("groups", "rates", "mean"), [
    ([0, 2], (0.1, 0.2), 0.1), ([0.0, 1.0], (0.1, 0.2), 0.1), ([0], (1.1,), 0.5),
    ([0], (0.0,), 0.1), ([0], (0.2,), 0.3), ([], (0.2,), 0.1), ([0], (-0.1, 0.2), 0.1),
    ([0], (1e-30, 0.2), 0.1)])
def test_what_a_draw_by_groups_refuses(groups, rates, mean):
    with pytest.raises(SpecError):
        poisson_records_by_group(groups, rates, mean_rate=mean)


def test_records_without_a_group_are_refused():
    selection = poisson_records_by_group([0, 0], (0.5,), mean_rate=0.5)
    with pytest.raises(SpecError, match="a group for every record"):
        selection.draw(source(0), 1, Candidates(("a",), np.array([0, 3])), ())


# -- budgets ------------------------------------------------------------------------------------


def opened(plan, folder, groups=(0, 1, 1, 0), **changes) -> IndividualBudget:
    return IndividualBudget.open(**{
        "fingerprint": "sha256:aa", "unit": "patient", "plan": plan, "groups": groups,
        "folder": folder, **changes})


def cost(plan, **changes) -> Spend:
    return dataclasses.replace(
        Spend(plan.noise_multiplier, max(plan.sampling_rates), "patient"), **changes)


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(["run a", "run b"]), st.integers(0, 20),
                          st.floats(1.0, 3.0)), max_size=24))
def test_no_history_takes_anybody_above_their_own_budget(tmp_path_factory, plan, history):
    budget = opened(plan, tmp_path_factory.mktemp("budget"))
    accepted: dict[str, list[Spend]] = {name: [] for name in plan.names}
    seen = set()
    for run, number, factor in history:
        spend = cost(plan, noise_multiplier=plan.noise_multiplier * factor)
        try:
            budget.spend(run, number, spend)
        except BudgetError:
            continue
        if (run, number) not in seen:
            seen.add((run, number))
            for name, part in plan.spends(spend).items():
                accepted[name].append(part)
    for name, target in TARGETS.items():
        assert compose(accepted[name], 1e-4) <= target
        assert budget.spent_by_group[name] == pytest.approx(compose(accepted[name], 1e-4))


def test_a_refused_round_is_charged_to_nobody(plan, tmp_path):
    budget = opened(plan, tmp_path)
    for number in range(12):
        budget.spend("run", number, cost(plan))
    before = budget.spent_by_group
    assert all(TARGETS[name] * (1 - 1e-3) < spent <= TARGETS[name]
               for name, spent in before.items())
    with pytest.raises(BudgetError, match=r"patient \(careful\)"):
        budget.spend("run", 12, cost(plan))
    assert budget.spent_by_group == before and budget.remaining_rounds(cost(plan)) == 0
    assert budget.spend("run", 3, cost(plan)).round == 3  # the same release costs nothing


def test_a_payment_that_was_cut_short_is_completed_and_counts_once(plan, tmp_path):
    budget = opened(plan, tmp_path)
    for number in range(1, 12):
        budget.spend("run", number, cost(plan))
    first = plan.spends(cost(plan))["careful"]
    budget.parts["careful"].spend("run", 12, dataclasses.replace(first, unit="patient (careful)"))
    again = opened(plan, tmp_path)
    assert {entry.round for entry in again.entries()} == set(range(1, 12))  # not paid for by all
    again.check(cost(plan), 1)
    again.spend("run", 12, cost(plan))
    assert again.report()["rounds"].tolist() == [12, 12]
    with pytest.raises(BudgetError):
        again.check(cost(plan), 1)


def test_who_used_up_their_budget_is_drawn_no_more(plan, tmp_path):
    budget = opened(plan, tmp_path)
    for number in range(12):
        budget.spend("run", number, cost(plan))
    with pytest.raises(SpecError, match="a group that has some"):
        budget.limited_plan()
    # Further people: the careful have spent all, the others half of their rounds.
    spent = {"careful": [plan.spends(cost(plan, count=12))["careful"]],
             "others": [plan.spends(cost(plan, count=6))["others"]]}
    limited = plan.limited(spent)
    careful, others = limited.groups
    assert careful.sampling_rate == 0 and list(limited.spends(
        cost(plan, sampling_rate=others.sampling_rate))) == ["others"]
    assert 0 < others.sampling_rate < plan.groups[1].sampling_rate
    assert 3.0 * (1 - 1e-2) < others.epsilon <= 3.0
    whole = [*spent["others"], cost(plan, sampling_rate=others.sampling_rate, count=12)]
    assert compose(whole, 1e-4) <= 3.0


def test_people_whose_privacy_was_spent_uniformly_are_refused(plan, tmp_path):
    uniform = Budget.open("sha256:aa", "patient", epsilon=9.0, dp_delta=1e-4, folder=tmp_path)
    opened(plan, tmp_path)  # nothing was spent yet
    uniform.spend("run", 0, Spend(2.0, 0.1, "patient"))
    with pytest.raises(BudgetError, match="uniformly"):
        opened(plan, tmp_path)


def test_groups_are_settled_by_the_first_spend(plan, tmp_path):
    opened(plan, tmp_path, groups=(1, 1, 1, 0))  # nothing was spent yet
    budget, late = opened(plan, tmp_path), opened(plan, tmp_path, groups=(1, 0, 0, 1))
    uniform = Budget.open("sha256:aa", "patient", epsilon=9.0, dp_delta=1e-4, folder=tmp_path)
    budget.spend("run", 0, cost(plan))
    renamed = dataclasses.replace(plan, groups=tuple(
        dataclasses.replace(group, name=group.name + " people") for group in plan.groups))
    with pytest.raises(BudgetError, match="first run"):
        late.spend("run", 1, cost(plan))
    for other, groups in ((plan, (1, 0, 0, 1)), (plan, (0, 1, 1)), (renamed, (0, 1, 1, 0))):
        with pytest.raises(BudgetError, match="first run"):
            opened(other, tmp_path, groups=groups)
    with pytest.raises(BudgetError, match="by groups"):
        uniform.spend("run", 0, Spend(2.0, 0.1, "patient"))
    assert uniform.spent == 0 and opened(plan, tmp_path).report()["rounds"].tolist() == [1, 1]
    (settled,) = tmp_path.glob("*.groups")
    assert settled.stat().st_mode & 0o077 == 0
    opened(plan, tmp_path, groups=(1, 0, 0, 1), label="demo")  # another budget
    budget.reset(reason="new consent", by="the board")
    opened(plan, tmp_path, groups=(1, 0, 0, 1)).spend("run", 1, cost(plan))


def test_spends_that_are_not_the_plans_are_refused(plan, tmp_path):
    budget = opened(plan, tmp_path)
    for wrong in ({"noise_multiplier": 0.9 * plan.noise_multiplier}, {"sampling_rate": 0.05},
                  {"adjacency": "replace_one"}):
        with pytest.raises(SpecError):
            budget.spend("run", 0, cost(plan, **wrong))
    with pytest.raises(BudgetError, match="unit"):
        budget.spend("run", 0, cost(plan, unit="hospital"))
    for groups in ([0, 5], [], [0.5]):
        with pytest.raises(SpecError):
            opened(plan, tmp_path, groups=groups)


def test_the_report_is_of_groups_and_a_person_sees_their_row(plan, tmp_path):
    budget = opened(plan, tmp_path)
    budget.spend("run", 0, cost(plan))
    table = budget.report()
    assert table["epsilon allowed"].tolist() == [1.0, 3.0] and table["rounds"].tolist() == [1, 1]
    assert table["epsilon spent"].tolist() == pytest.approx(list(budget.spent_by_group.values()))
    people = budget.report_people()
    assert people["group"].tolist() == ["careful", "others", "others", "careful"]
    assert people.loc[0, "epsilon allowed"] == 1.0
    assert "careful" in repr(budget) and "<table" in budget._repr_html_()


# -- a federation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospitals():
    data = fs.data.heart_disease()
    groups = assign(data.x, lambda row: "careful" if row[0] > 0.35 else "others", list(TARGETS))
    return data, groups


def federation(hospitals, plan, folder, **changes) -> fs.Federation:
    data, groups = hospitals
    budget = IndividualBudget.open(data.population_fingerprint, data.unit, plan, groups=groups,
                                   label="simulation", folder=folder / "budget")
    parts = {
        "selection": poisson_records_by_group(groups, plan.sampling_rates,
                                              mean_rate=plan.mean_rate),
        "budget": budget, "folder": folder / "run", "seed": 0, **changes}
    return fs.Federation(
        fs.models.logistic_regression(data), data, fs.algorithms.fed_sgd(optax.sgd(0.5)),
        fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24),
                 fs.privacy.discrete_gaussian(plan.noise_multiplier, missing_shares=1)), **parts)


def test_a_federation_charges_each_group_its_own_and_resumes(hospitals, plan, tmp_path):
    with federation(hospitals, plan, tmp_path) as first:
        for _, record in first.run(first.init(), rounds=5):
            pass
    figures = record.dp["groups"]
    assert figures["careful"]["epsilon"] < figures["others"]["epsilon"] == record.dp["epsilon"]
    with federation(hospitals, plan, tmp_path) as second:
        state = second.init()
        assert state.round == 5
        for state, record in second.run(state, rounds=12):
            pass
        for name, target in TARGETS.items():
            assert target * (1 - 1e-3) < record.dp["groups"][name]["epsilon"] <= target
        with pytest.raises(BudgetError, match="careful"):
            second.run(state, rounds=13)
        assert second.spec.denominator == pytest.approx(plan.mean_rate * len(hospitals[0].y))


def test_a_federation_clips_each_group_to_its_own_bound(hospitals, tmp_path):
    data, groups = hospitals
    plan, model = scale(TARGETS, **SETTING), fs.models.logistic_regression(data)
    widest = max(plan.l2_bounds(mean=1.0).values())
    bounds = plan.record_bounds(groups, l2_bound=widest, scale=2.0**12, dim=model.dim)
    assert bounds[groups == 1] == pytest.approx(widest)
    assert bounds[groups == 0] == pytest.approx(plan.groups[0].l2_share * widest, rel=0.02)

    def run(folder, record_bounds, clip=None):
        budget = IndividualBudget.open(data.population_fingerprint, data.unit, plan, groups=groups,
                                       label="simulation", folder=folder / "budget")
        return fs.Federation(
            model, data, fs.algorithms.fed_sgd(optax.sgd(0.5), record_bounds=record_bounds),
            fs.chain(clip or fs.privacy.clip(widest, unit="record"),
                     fs.privacy.quantise(bits=26, scale=2.0**12),
                     fs.privacy.discrete_gaussian(plan.noise_multiplier, missing_shares=1)),
            selection=fs.selection.poisson_records(0.1), budget=budget, folder=folder / "run",
            seed=0)

    with run(tmp_path / "right", bounds) as federation:
        for _, record in federation.run(federation.init(), rounds=12):
            pass
        for name, target in TARGETS.items():
            assert target * (1 - 1e-3) < record.dp["groups"][name]["epsilon"] <= target
    for wrong in (None, bounds * np.float32(1.001), np.full_like(bounds, widest)):
        with pytest.raises(BudgetError, match="its own bound"):
            run(tmp_path / "wrong", wrong)
    with pytest.raises(SpecError, match="a bound for each"):
        run(tmp_path / "wrong", bounds[1:])
    # Once the norm has fallen to a group's bound, its records are as long as anybody's.
    adaptive = fs.privacy.adaptive_clip(widest, unit="record")
    with pytest.raises(BudgetError, match="its own bound"):
        run(tmp_path / "wrong", bounds * np.float32(0.9), adaptive)


def test_a_record_of_any_direction_stays_within_its_groups_integers():
    """The rounding's own worst case, by 2,000 random gradients of 33 values."""
    plan = scale(TARGETS, **SETTING)
    bounds = plan.record_bounds([0, 1], l2_bound=2.0, scale=512.0, dim=33)
    random = np.random.default_rng(5)
    directions = random.normal(size=(2000, 33))
    scaled = directions / np.linalg.norm(directions, axis=1)[:, None] * bounds[0] * 512.0
    away = np.sign(scaled) * np.ceil(np.abs(scaled))  # farther than any rounding
    allowed = plan.groups[0].l2_share * fs.privacy.rounded_l2_bound(2.0 * 512.0, 33)
    assert 0.95 * allowed < np.linalg.norm(away, axis=1).max() <= allowed


def test_reports_tell_nothing_of_groups_but_a_run_knows_its_own(hospitals, plan, tmp_path):
    data, groups = hospitals
    uniform = Budget.open(data.population_fingerprint, data.unit, epsilon=9.0, dp_delta=1e-4,
                          label="simulation", folder=tmp_path / "uniform")

    def run(numbers):
        selection = poisson_records_by_group(numbers, plan.sampling_rates,
                                             mean_rate=plan.mean_rate)
        return federation(hospitals, plan, tmp_path, selection=selection, budget=uniform)

    with run(groups) as first:
        facts = first.privacy_facts()
        assert facts.selection.startswith("poisson_records_by_group (rates=")
        assert first.selection.by_group.digest not in f"{facts.selection} {facts.algorithm}"
        described = facts.selection
    with pytest.raises(ResumeError):
        run(1 - groups)
    other = poisson_records_by_group(1 - groups, plan.sampling_rates, mean_rate=plan.mean_rate)
    assert described == f"{other.name} ({other.settings})"
    bounds = np.where(groups == 0, 0.5, 1.0)
    algorithms = [fs.algorithms.fed_sgd(optax.sgd(0.5), record_bounds=found)
                  for found in (bounds, 1.5 - bounds)]
    assert algorithms[0].settings == algorithms[1].settings


def test_a_federation_that_draws_others_than_it_charges_is_refused(hospitals, plan, tmp_path):
    data, groups = hospitals
    for selection in (
            fs.selection.poisson_records(max(plan.sampling_rates)),
            poisson_records_by_group(1 - groups, plan.sampling_rates, mean_rate=plan.mean_rate),
            poisson_records_by_group(groups, plan.sampling_rates[::-1],
                                     mean_rate=plan.mean_rate)):
        with pytest.raises(BudgetError, match="draws"):
            federation(hospitals, plan, tmp_path, selection=selection)
    by_bounds = scale(TARGETS, **SETTING)
    with pytest.raises(BudgetError, match="its own bound"):
        federation(hospitals, by_bounds, tmp_path / "scale",
                   selection=fs.selection.poisson_records(0.1))
    # A budget of all alike charges everyone for the largest rate, which covers all.
    uniform = Budget.open(data.population_fingerprint, data.unit, epsilon=9.0, dp_delta=1e-4,
                          label="simulation", folder=tmp_path / "uniform")
    with federation(hospitals, plan, tmp_path, budget=uniform) as run:
        assert run.spend.sampling_rate == max(plan.sampling_rates)
