"""Parts in the wrong place are refused in words, before anything runs."""

from __future__ import annotations

import re

import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import BudgetError, DataError, ResumeError, SpecError

DATA = fs.data.heart_disease()
MODEL = fs.models.logistic_regression(DATA)
NOISE = (fs.privacy.clip(1.0), fs.privacy.quantise(bits=24), fs.privacy.discrete_gaussian(1.0))
AVERAGE = fs.algorithms.fed_avg(0.1)
PLAN = fs.privacy.individual.scale(
    {"a": 0.5, "b": 2.0}, shares={"a": 0.5, "b": 0.5}, sampling_rate=0.1, rounds=2, dp_delta=1e-3)


@pytest.mark.parametrize(
    "stages, message",
    [
        (([fs.privacy.clip(1.0)],), r"got list\. Write chain\(\*stages\)"),
        ((fs.privacy.clip,), r"got function\. Call it: clip\(\.\.\.\)"),
        ((*NOISE, fs.he.public_key()), r"fs\.he\.encrypt"),
        ((fs.privacy.clip(1.0), fs.privacy.clip(2.0)), r"Keep one `clip`"),
    ],
)
def test_chains(stages, message):
    with pytest.raises(SpecError, match=message):
        fs.chain(*stages)


def test_a_selection_that_reads_losses_has_no_guarantee_in_a_simulation_either():
    with pytest.raises(SpecError, match="oort.*one that reads their losses"):
        fs.Simulation(MODEL, DATA, AVERAGE, fs.chain(*NOISE), selection=fs.selection.oort(2))
    fs.Simulation(MODEL, DATA, AVERAGE, fs.chain(), selection=fs.selection.oort(2))


@pytest.mark.parametrize("budget", [2.0, "epsilon", object()])
def test_what_is_no_budget(budget):
    with pytest.raises(SpecError, match=r"Budget\.open"):
        fs.Federation(MODEL, DATA, AVERAGE, fs.chain(*NOISE), budget=budget, seed=0)


def test_a_budget_without_noise(tmp_path):
    budget = fs.privacy.Budget.open(
        DATA.population_fingerprint, DATA.client_unit, epsilon=1.0, dp_delta=1e-3,
        folder=tmp_path, label="simulation")
    with pytest.raises(SpecError, match="a chain that adds noise.*leave budget= out"):
        fs.Federation(MODEL, DATA, AVERAGE, fs.chain(NOISE[0]), budget=budget, seed=0)
    assert budget.entries() == ()


@pytest.mark.parametrize("run", [MODEL, [1], None])
def test_audits_of_other_things(run):
    with pytest.raises(SpecError, match=r"a simulation or a federation.*fs\.Simulation"):
        fs.audit(run, rounds=1)


def test_audits_of_chains_of_other_things():
    federation = fs.Federation(MODEL, DATA, AVERAGE, fs.chain(), seed=0)
    with federation, pytest.raises(SpecError, match=r"federation\.spec"):
        fs.audit_chain(fs.chain(*NOISE), federation)
    with pytest.raises(SpecError, match=r"a chain.*fs\.chain"):
        fs.audit_chain(NOISE, federation.spec)


def test_individual_plans_and_rules(tmp_path):
    with pytest.raises(SpecError, match=r"a plan.*got dict.*from_dict"):
        fs.privacy.individual.IndividualBudget.open(
            DATA.population_fingerprint, DATA.unit, PLAN.to_dict(), folder=tmp_path,
            groups=np.zeros(len(DATA.y), int), label="simulation")
    with pytest.raises(DataError, match=r"a rule.*got list"):
        fs.privacy.individual.assign(DATA.x, ["a"] * len(DATA.y), PLAN.names)


def test_layers_of_no_model():
    with pytest.raises(SpecError, match=r"clip_layers\(model, total=1\.0\)"):
        fs.privacy.clip_layers(None, total=1.0)


@pytest.mark.parametrize("unit, delta", [("client", 0.25), ("record", 0.01)])
def test_a_delta_that_protects_nobody_is_told(unit, delta, tmp_path):
    name = DATA.unit if unit == "record" else DATA.client_unit
    people = len(DATA.y) if unit == "record" else DATA.num_clients
    budget = fs.privacy.Budget.open(DATA.population_fingerprint, name, epsilon=100.0,
                                    dp_delta=delta, folder=tmp_path, label="simulation")
    chain = fs.chain(fs.privacy.clip(1.0, unit=unit), *NOISE[1:])
    algorithm = AVERAGE if unit == "client" else fs.algorithms.fed_sgd(optax.sgd(0.1))
    with pytest.warns(fs.privacy.LargeDeltaWarning, match=f"not below 1/{people}, .*{name}"):
        fs.Federation(MODEL, DATA, algorithm, chain, budget=budget, seed=0).close()


def test_a_delta_is_compared_with_all_people_not_with_those_of_a_round(tmp_path):
    data = fs.data.iid(DATA, num_clients=50, seed=0)
    budget = fs.privacy.Budget.open(data.population_fingerprint, data.client_unit, epsilon=100.0,
                                    dp_delta=0.05, folder=tmp_path, label="simulation")
    with pytest.warns(fs.privacy.LargeDeltaWarning, match="not below 1/50"):
        fs.Federation(MODEL, data, AVERAGE, fs.chain(*NOISE), budget=budget, seed=0,
                      selection=fs.selection.uniform_clients(10)).close()


# -- going on with a run ------------------------------------------------------------------------


def _going_on(folder, budget="budget", algorithm=AVERAGE, label="simulation"):
    opened = fs.privacy.Budget.open(DATA.population_fingerprint, DATA.client_unit, epsilon=1e3,
                                    dp_delta=1e-3, folder=folder / budget, label=label)
    return fs.Federation(MODEL, DATA, algorithm, fs.chain(*NOISE), budget=opened,
                         folder=folder / "run", seed=0)


def test_a_run_that_is_built_again_knows_its_rounds(tmp_path):
    with _going_on(tmp_path) as federation:
        for _ in federation.run(federation.init(), rounds=2):
            pass
        spent = fs.privacy.spent(federation.records)
    with _going_on(tmp_path) as federation:
        assert [record.round for record in federation.records] == [1, 2]
        assert fs.privacy.spent(federation.records) == spent
        assert "for 2 rounds" in fs.privacy.report(federation).markdown()
        with pytest.warns(UserWarning, match="2 are finished: .*rounds=3 for 1 more"):
            assert list(federation.run(federation.init(), rounds=1)) == []
        assert list(federation.run(federation.init(), rounds=2)) == []


@pytest.mark.parametrize("other", [{"budget": "another"}, {"label": "another"}])
def test_a_run_does_not_go_on_with_another_budget(other, tmp_path):
    with _going_on(tmp_path) as federation:
        next(federation.run(federation.init(), rounds=2))
    with pytest.raises(BudgetError, match="paid for its finished rounds, got one .* 1 of 1"):
        _going_on(tmp_path, **other)
    with _going_on(tmp_path) as federation:
        next(federation.run(federation.init(), rounds=2))


def test_a_run_does_not_go_on_with_other_bounds_or_rates(tmp_path):
    def bounded(factor):
        return fs.algorithms.with_client_bounds(AVERAGE, np.full(4, 0.5) * factor)

    _going_on(tmp_path, algorithm=bounded(1)).close()
    with pytest.raises(ResumeError, match="certain bounds for clients"):
        _going_on(tmp_path, algorithm=bounded(0.5))
    _going_on(tmp_path / "plain").close()
    with pytest.raises(ResumeError, match="learning rate") as caught:
        _going_on(tmp_path / "plain", algorithm=fs.algorithms.fed_avg(0.2))
    assert not re.search("[0-9a-f]{32}", str(caught.value))  # digests say nothing to people


def test_a_report_of_no_round_claims_nothing(tmp_path):
    with _going_on(tmp_path) as federation:
        assert "No round has been run" in fs.privacy.report(federation).markdown()
