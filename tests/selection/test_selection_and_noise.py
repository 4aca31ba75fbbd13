"""Selections in federations that add noise: what is spent, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import OpeningError, SpecError

CLIENTS = 12


@pytest.fixture(scope="module")
def data(made_up_clients):
    return made_up_clients(CLIENTS)


def federation(data, selection, **options) -> fs.Federation:
    budget = fs.privacy.Budget.open(
        data.population_fingerprint, data.client_unit, epsilon=100.0, dp_delta=1e-5,
        label="simulation")
    chain = fs.chain(
        fs.privacy.clip(1.0, unit="client"), fs.privacy.quantise(bits=24),
        fs.privacy.discrete_gaussian(noise_multiplier=2.0))
    return fs.Federation(fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(0.1),
                         chain, selection=selection, budget=budget, seed=1, **options)


def spent(made, rounds=3) -> float:
    with made:
        records = [record for _, record in made.run(made.init(), rounds=rounds)]
    assert [record.round for record in records] == list(range(1, rounds + 1))
    return records[-1].dp["epsilon"]


def test_poisson_clients_that_all_answer_spend_less_than_a_fixed_size(data):
    poisson = federation(data, fs.selection.poisson_clients(0.25, everyone_answers=True))
    assert poisson.spend.sampling_rate == 0.25 and poisson.spec.denominator == 3.0
    fixed = federation(data, fs.selection.uniform_clients(3))
    assert fixed.spend.sampling_rate == 1.0
    # noise relative to one client's bound is the same; three rounds of twelve against three shares
    assert spent(poisson) < 0.8 * spent(fixed)


@pytest.mark.parametrize("selection", [
    fs.selection.importance_clients(3.0, by=np.arange(1.0, CLIENTS + 1)),
    fs.selection.poisson_clients(0.25),
    fs.selection.available(fs.selection.poisson_clients(0.25), np.ones((2, CLIENTS), bool))],
    ids=lambda selection: selection.name)
def test_coins_that_messages_tell_amplify_nothing(data, selection):
    assert selection.sampling.rate < 1.0
    with federation(data, selection) as made:
        assert made.spend.sampling_rate == 1.0
        told = str(made.threat_model())
    assert "the draw amplifies nothing" in told and "sampling rate 1 a round" in told
    hidden = fs.selection.poisson_clients(0.25, everyone_answers=True)
    hidden = fs.selection.available(hidden, np.ones((2, CLIENTS), bool))
    with federation(data, hidden) as made:
        assert made.spend.sampling_rate == 0.25


def test_rounds_that_lack_noise_shares_are_refused(data):
    made = federation(data, fs.selection.poisson_clients(0.25))
    with made, pytest.raises(OpeningError, match="at least 12 clients"):
        next(made.run(made.init(), rounds=1))


@pytest.mark.parametrize("selection", [
    fs.selection.power_of_choice(3, candidates=6), fs.selection.oort(3),
    fs.selection.timed(fs.selection.oort(3), fs.selection.devices([5] * CLIENTS)),
    fs.selection.available(fs.selection.oort(3), np.ones((2, CLIENTS), bool))],
    ids=lambda selection: selection.name)
def test_what_reads_losses_is_refused_with_noise(data, selection):
    with pytest.raises(SpecError, match="does not look at the clients' records"):
        federation(data, selection)


def test_coins_for_records_are_refused_where_clients_are_clipped(data):
    with pytest.raises(SpecError, match="the unit that rounds sample"):
        federation(data, fs.selection.poisson_records(0.5))


def test_the_threat_model_says_how_clients_are_drawn(data):
    with federation(data, fs.selection.poisson_clients(0.25, everyone_answers=True)) as made:
        told = str(made.spec.threat_model())
    assert "drawn or not" in told and "sampling rate 0.25 a round" in told
    with federation(data, fs.selection.uniform_clients(3)) as made:
        told = str(made.spec.threat_model())
    assert "the draw amplifies nothing" in told and "sampling rate 1 a round" in told
