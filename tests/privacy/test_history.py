"""What a history has cost, read from records: the same as the budget says, or refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

import fedjax_secure as fs
from fedjax_secure.core import RoundRecord, SpecError
from fedjax_secure.privacy.accounting import Spend, compose, spent

ONE = Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient", log_ratio=1e-9)


def record(number=1, run="00ab", spend=ONE, **figures) -> RoundRecord:
    dp = {"spend": spend.to_dict(), "dp_delta": 1e-3, "label": "", "releases": number, **figures}
    return RoundRecord(run=run, round=number, mode="secure", clients=("a",), model_before="",
                       model_after="", sum_digest="", dp=dp)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three rounds with noise, a budget and a ledger."""
    plan = fs.FederationPlan(rounds=3, dp_delta=1e-3, seed=5, encryption="off")
    with plan.build(tmp_path_factory.mktemp("run")) as federation:
        for _ in federation.run(federation.init(), rounds=3):
            pass
        yield federation


def test_a_runs_records_cost_what_its_budget_says(finished):
    result = fs.privacy.spent(finished.records)
    assert result.epsilon == pytest.approx(finished.budget.spent, rel=1e-12)
    assert (result.rounds, result.releases, result.unit) == (3, 3, "patient")
    assert result.label == "simulation" and not result.notes
    assert compose(result.spends, 1e-3) == result.epsilon
    lines = [json.loads(one.to_json()) for one in finished.records]
    assert spent(reversed(lines)) == result == spent([*finished.records, *finished.records])


def test_the_ledger_is_a_witness_of_how_often_rounds_went_out(finished):
    ledger = finished.ledger
    releases = {number: ledger.attempt(number)
                for number in range(1, ledger.confirmed_rounds() + 1)}
    assert spent(finished.records, releases=releases).epsilon == pytest.approx(
        finished.budget.spent, rel=1e-12)
    with pytest.raises(SpecError, match=r"none of rounds \[3\]"):
        spent(finished.records[:2], releases=releases)
    twice = spent(finished.records, releases={**releases, 2: 2})
    assert twice.releases == 4 and twice.epsilon > finished.budget.spent


def test_a_round_that_was_paid_for_twice_counts_twice(tmp_path):
    plan = fs.FederationPlan(rounds=2, dp_delta=1e-3, encryption="off", own_budget=True)
    for attempt in (1, 2):
        with plan.build(tmp_path) as federation:
            for _ in federation.run(federation.init(), rounds=1):
                pass
            records, budget_spent = federation.records, federation.budget.spent
        result = spent(records)
        assert (result.rounds, result.releases) == (1, attempt)
        assert result.epsilon == pytest.approx(budget_spent, rel=1e-12)
        for pattern in ("run/state-*", "run/opener/*", "run/records.jsonl", "ledger.log*"):
            for path in tmp_path.glob(pattern):
                path.unlink()


def test_runs_of_different_noise_and_kind_are_one_history():
    vote = Spend(None, 1.0, "patient", kind="pure", parameters={"epsilon": 0.1})
    records = [record(1), record(2), record(1, run="00cd", spend=vote)]
    result = spent(records)
    assert result.runs == ("00ab", "00cd") and result.releases == 3
    assert result.epsilon == compose([ONE, ONE, vote], 1e-3)
    assert spent(records, 1e-6).epsilon == compose([ONE, ONE, vote], 1e-6)
    assert spent(records, accountant="rdp").accountant == "rdp"
    assert fs.privacy.explain(result).epsilon == result.epsilon


def test_what_cannot_be_added_is_refused_and_named():
    client = dataclasses.replace(ONE, unit="client")
    replaced = dataclasses.replace(ONE, adjacency="replace_one")
    for other, name in ((client, "unit"), (replaced, "adjacency")):
        with pytest.raises(SpecError, match=f"spends of one {name}"):
            spent([record(1), record(2, spend=other)])
    bare = dataclasses.replace(record(2), dp={})
    with pytest.raises(SpecError, match=r"run 00ab round 2 \(1 of 2 rounds\)"):
        spent([record(1), bare])
    with pytest.raises(SpecError, match="dp_delta"):
        spent([record(1), record(2, dp_delta=1e-5)])
    assert spent([record(1), record(2, dp_delta=1e-5)], 1e-4).epsilon > 0
    with pytest.raises(SpecError, match="one label"):
        spent([record(1), record(2, label="simulation")])
    with pytest.raises(SpecError, match="two that differ"):
        spent([record(1), record(1, label="demo")])
    with pytest.raises(SpecError, match="no records"):
        spent([])
    with pytest.raises(SpecError, match="compose"):
        spent([ONE])
    with pytest.raises(SpecError, match="2 runs"):
        spent([record(1), record(1, run="00cd")], releases={1: 1})
    with pytest.raises(SpecError, match="Restore the record"):
        spent([dataclasses.replace(record(1), dp={"dp_delta": 1e-3, "epsilon": 0.1})])


def test_records_of_the_first_release_are_read_with_a_note():
    # As version 0.1.0 wrote them.
    dp = {"unit": "patient", "adjacency": "add_remove", "sampling_rate": 0.1,
          "noise_multiplier": 1.0, "epsilon": 0.65, "dp_delta": 1e-3, "label": ""}
    result = spent([{"run": "00ab", "round": number, "dp": dp} for number in (1, 2)])
    assert result.epsilon == compose([Spend(1.0, 0.1, "patient", 2)], 1e-3)
    assert len(result.notes) == 1 and "2 rounds" in result.notes[0]
