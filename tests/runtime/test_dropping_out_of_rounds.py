"""Federations that lose clients within a round: how much noise is left, what is refused, and what
is spent; and runs that are killed between the loss and the opening."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import OpeningError, model_digest

CLIENTS, ROUNDS = 12, 3
SCRIPT = Path(__file__).with_name("killed_dropping_out.py")
EVERYONE = fs.selection.poisson_clients(0.5, everyone_answers=True)


@pytest.fixture(scope="module")
def data(made_up_clients):
    return made_up_clients(CLIENTS)


def chain_of(*, missing: int = 0, trust: str = "distributed", unit: str = "client"):
    return fs.chain(
        fs.privacy.clip(1.0, unit=unit), fs.privacy.quantise(bits=20),
        fs.privacy.discrete_gaussian(1.0, missing_shares=missing, trust=trust))


def federation(data, selection, folder, chain, *, seed=1, unit=None, **options) -> fs.Federation:
    budget = fs.privacy.Budget.open(
        data.population_fingerprint, unit or data.client_unit, epsilon=1000.0, dp_delta=1e-5,
        label="simulation", folder=folder / "budget")
    algorithm = options.pop("algorithm", None) or fs.algorithms.fed_avg(0.1)
    return fs.Federation(fs.models.logistic_regression(data), data, algorithm, chain,
                         selection=selection, budget=budget, seed=seed, folder=folder / "run",
                         **options)


def finish(made: fs.Federation, rounds: int, refused: list[str] | None = None):
    """Runs on after each refusal: the last state, and the messages of what was refused."""
    said = [] if refused is None else refused
    state = made.init()
    while state.round < rounds:
        try:
            state, _ = next(made.run(state, rounds=rounds))
        except OpeningError as error:
            said.append(str(error))
            assert len(said) < 200
    return state


@pytest.mark.parametrize("seed", [1, None], ids=["seeded", "secure"])
@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
@pytest.mark.parametrize("selection", [
    fs.selection.all_records(), fs.selection.uniform_clients(10), EVERYONE],
    ids=["all_records", "uniform_clients", "everyone answers"])
def test_records_say_how_much_noise_is_left_and_none_has_less_than_accounted(
        data, selection, aggregator, seed, tmp_path):
    lossy = fs.selection.dropping_out(selection, 0.2)
    asked = selection.most_clients(CLIENTS)
    with federation(data, lossy, tmp_path / "lossy", chain_of(missing=3), seed=seed,
                    aggregator=aggregator) as made:
        refused: list[str] = []
        finish(made, ROUNDS, refused)
        records, told = made.records, str(made.threat_model())
        assert made.spec.denominator == pytest.approx(
            0.8 * selection.expected_clients(CLIENTS))
        assert [entry.round for entry in made.budget.entries()] == list(range(1, ROUNDS + 1))
        rate = made.spend.sampling_rate
    for record in records:
        left = len(record.clients)
        assert asked - 3 <= left <= asked
        accounted = record.dp["noise_stddev_accounted"]
        share = accounted / math.sqrt(asked - 3)
        assert record.dp["noise_stddev_in_sum"] == pytest.approx(share * math.sqrt(left))
        assert record.dp["noise_stddev_in_sum"] >= accounted * (1 - 1e-12)
        assert record.dp["assumes"] == "at most 3 noise shares missing or known"
    assert all(f"at least {asked - 3} clients" in said for said in refused)
    assert "drops out of a round depends on no record" in told
    # Losing clients costs no privacy, and gains none.
    with federation(data, selection, tmp_path / "whole", chain_of(missing=3), seed=2) as made:
        finish(made, ROUNDS)
        assert made.records[-1].dp["epsilon"] == records[-1].dp["epsilon"]
        assert made.spend.sampling_rate == rate == (0.5 if selection is EVERYONE else 1.0)


@pytest.mark.parametrize("seed", [3, None], ids=["seeded", "secure"])
def test_a_round_with_too_little_noise_is_refused_and_costs_nothing_and_runs_again(
        data, seed, tmp_path):
    lossy = fs.selection.dropping_out(fs.selection.all_records(), 0.12)
    ledger = fs.ledger.embedded(tmp_path / "ledger")
    with federation(data, lossy, tmp_path, chain_of(missing=1), seed=seed, ledger=ledger) as made:
        state, refused = made.init(), 0
        while state.round < 6 or not refused:
            number, head = state.round + 1, ledger.head
            try:
                state, record = next(made.run(state, rounds=number))
            except OpeningError as error:
                refused += 1
                left = int(str(error).split("got ")[1].split(",")[0])
                assert left < 11 and str(error).startswith(f"round {number} needs at least 11")
                assert f"has {math.sqrt(left / 11):.0%} of the standard deviation" in str(error)
                assert ledger.head == head and ledger.num_submissions(number) == 0
                assert number not in [entry.round for entry in made.budget.entries()]
                assert not list((tmp_path / "run").glob("sent*"))
            else:
                assert record.round == number and len(record.clients) >= 11
                assert ledger.num_submissions(number) == len(record.clients)
        spends = [entry.round for entry in made.budget.entries()]
        assert spends == list(range(1, state.round + 1))


def test_a_simulation_loses_the_same_clients_as_the_federation_and_refuses_the_same_rounds(
        data, tmp_path):
    lossy = fs.selection.dropping_out(EVERYONE, 0.25)
    said: dict[str, list[str]] = {"federation": [], "simulation": []}
    with federation(data, lossy, tmp_path, chain_of(missing=2), seed=5) as made:
        end = finish(made, 6, said["federation"])
        answered = [len(record.clients) for record in made.records]
    simulation = fs.Simulation(
        fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(0.1),
        chain_of(missing=2), selection=lossy, seed=5)
    state, found = simulation.init(), []
    while state.round < 6:
        try:
            state, report = next(simulation.run(state, rounds=6))
        except OpeningError as error:
            said["simulation"].append(str(error))
        else:
            found.append(report.clients)
    assert said["simulation"] == said["federation"] != []
    assert found == answered and len(set(found)) > 1
    assert model_digest(state.params) == model_digest(end.params)


def test_records_of_lost_clients_are_not_in_the_sum_and_the_denominator_expects_it(
        data, tmp_path):
    lossy = fs.selection.dropping_out(fs.selection.poisson_records(0.4), 0.2)
    chain = chain_of(missing=4, unit="record")
    with federation(data, lossy, tmp_path, chain, unit=data.unit,
                    algorithm=fs.algorithms.fed_sgd(optax.sgd(0.5))) as made:
        finish(made, ROUNDS)
        assert made.spec.denominator == pytest.approx(0.4 * 60 * 0.8)
        assert made.spend.sampling_rate == 0.4
        assert any(len(record.clients) < CLIENTS for record in made.records)
        assert "nobody but the client learns which records a round drew" in str(
            made.threat_model())


def test_noise_that_the_opener_adds_does_not_depend_on_who_is_lost(data, tmp_path):
    lossy = fs.selection.dropping_out(EVERYONE, 0.25)
    with federation(data, lossy, tmp_path, chain_of(trust="central")) as made:
        assert made.spec.min_clients == 2  # half of the expected 12 x 0.5 x 0.75
        finish(made, ROUNDS)
        for record in made.records:
            assert record.dp["noise_stddev_in_sum"] == record.dp["noise_stddev_accounted"]


def test_noise_correlated_over_rounds_allows_for_rounds_that_a_client_misses(data, tmp_path):
    strategy = fs.privacy.banded(rounds=9, bands=3)
    chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=24),
                     fs.privacy.correlated_noise(1.0, strategy=strategy))
    separated = fs.selection.separated_clients(4, separation=3)
    ends = {}
    for name, selection in (("lossy", fs.selection.dropping_out(separated, 0.3)),
                            ("whole", separated)):
        with federation(data, selection, tmp_path / name, chain) as made:
            finish(made, 9)
            ends[name] = made.records
    assert ends["lossy"][-1].dp["epsilon"] == ends["whole"][-1].dp["epsilon"]
    assert sum(len(record.clients) for record in ends["lossy"]) < 36
    last: dict[str, int] = {}
    for record in ends["lossy"]:
        assert all(record.round - last.get(client, -3) >= 3 for client in record.clients)
        last |= dict.fromkeys(record.clients, record.round)


def test_selections_that_read_losses_lose_clients_too_without_noise(data):
    guided = fs.selection.dropping_out(fs.selection.oort(6), 0.4)
    simulation = fs.Simulation(fs.models.logistic_regression(data), data,
                               fs.algorithms.fed_avg(0.1), selection=guided, seed=2)
    counts = [report.clients for _, report in simulation.run(simulation.init(), rounds=12)]
    assert min(counts) < max(counts) <= 6
    assert simulation.spec.denominator == pytest.approx(3.6)


# -- killed between the loss and the opening ------------------------------------------------------


def _run(folder, aggregator, seed, kill_at=0):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), aggregator, str(seed), str(ROUNDS),
         str(kill_at)],
        capture_output=True, text=True, timeout=300, env=dict(os.environ))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What runs that nobody interrupts end with, made when first asked for."""
    results = {}

    def get(aggregator):
        if aggregator not in results:
            done = _run(tmp_path_factory.mktemp("whole"), aggregator, 3)
            assert done.returncode == 0, done.stderr
            results[aggregator] = json.loads(done.stdout)
            assert results[aggregator]["refused"] == [3]  # seed 3 loses too many in round 3
        return results[aggregator]

    return get


def _killed_then_resumed(folder, aggregator, seed, kill_at):
    killed = _run(folder, aggregator, seed, kill_at)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    done = _run(folder, aggregator, seed)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [round for round, _ in result["spends"]] == list(range(1, ROUNDS + 1))
    for clients, (in_sum, accounted) in zip(result["clients"], result["noise"], strict=True):
        assert len(clients) >= 9 and in_sum >= accounted * (1 - 1e-12)
    if aggregator == "untrusted":  # each message once, of those who were left when it was made
        assert result["submitted"] == [
            number for number, clients in enumerate(result["clients"], 1) for _ in clients]
    assert result["epsilon"] == pytest.approx(result["spent"])
    return result


def _in_round_3(result):
    return [place + 1 for place, where in enumerate(result["when"]) if where == "round 3"]


@pytest.mark.parametrize(("aggregator", "seed"), [("untrusted", "3"), ("semi-honest", "none")])
def test_a_run_killed_after_clients_were_lost_opens_the_sum_of_those_who_were_left(
        aggregator, seed, whole, tmp_path):
    kill_at = random.choice(_in_round_3(whole(aggregator))[:-1])
    print("killed at", kill_at)
    result = _killed_then_resumed(tmp_path, aggregator, seed, kill_at)
    if seed != "none":
        for what in ("model", "clients", "epsilon", "spends"):
            assert result[what] == whole(aggregator)[what]


@pytest.mark.slow
@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_a_run_killed_at_every_durable_step_of_such_a_round(aggregator, whole, tmp_path):
    for kill_at in _in_round_3(whole(aggregator)):
        result = _killed_then_resumed(tmp_path / str(kill_at), aggregator, 3, kill_at)
        for what in ("model", "clients", "epsilon", "spends"):
            assert result[what] == whole(aggregator)[what], kill_at
        if kill_at < _in_round_3(whole(aggregator))[-1]:  # fresh coins may take a step fewer
            _killed_then_resumed(tmp_path / f"secure {kill_at}", aggregator, "none", kill_at)


def test_encrypted_sums_of_an_untrusted_and_a_trusted_aggregator_agree(whole):
    for what in ("model", "clients", "noise", "epsilon", "refused"):
        assert whole("untrusted")[what] == whole("semi-honest")[what]
