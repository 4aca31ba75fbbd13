"""Selections whose clients count unequally, and algorithms that cannot make up for it."""

from __future__ import annotations

import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Cohort, SpecError

CLIENTS = 6


@pytest.fixture(scope="module")
def data(made_up_clients):
    return made_up_clients(CLIENTS)


def test_sums_over_records_refuse_clients_drawn_unequally(data):
    model = fs.models.logistic_regression(data)
    algorithm = fs.algorithms.fed_sgd(optax.sgd(0.1))
    unequal = fs.selection.importance_clients(2.0, by=np.arange(1.0, CLIENTS + 1))
    simulation = fs.Simulation(model, data, algorithm, selection=unequal)
    with pytest.raises(SpecError, match="equal probabilities"):
        next(simulation.run(simulation.init(), rounds=1))
    equal = fs.Simulation(model, data, algorithm, selection=fs.selection.poisson_clients(0.5))
    _, report = next(equal.run(equal.init(), rounds=1))
    assert report.round == 1


def test_domain_shares_make_up_for_unequal_probabilities():
    algorithm = fs.algorithms.agnostic_fed_avg(0.1, domains=[0, 0, 1]).for_federation(3, 2.0)
    rows = tuple(np.arange(first, first + 4) for first in (0, 4, 8))
    alive, keys = np.ones(3, bool), np.zeros((3, 8), np.uint32)
    cohort = Cohort(1, ("a", "b", "c"), rows, alive, mean_count=4.0,
                    scale=np.array([0.1, 0.3, 0.05], np.float32))
    np.testing.assert_allclose(algorithm.own(cohort, keys)["share"], [0.25, 0.75, 1.0], rtol=1e-6)
    equal = algorithm.own(cohort._replace(scale=None, mean_count=None), keys)
    np.testing.assert_allclose(equal["share"], [0.5, 0.5, 1.0])


def noisy(data, algorithm, selection) -> fs.Federation:
    budget = fs.privacy.Budget.open(
        data.population_fingerprint, data.client_unit, epsilon=100.0, dp_delta=1e-5,
        label="simulation")
    chain = fs.chain(
        fs.privacy.clip(1.0), fs.privacy.quantise(bits=24),
        fs.privacy.discrete_gaussian(noise_multiplier=2.0))
    return fs.Federation(fs.models.logistic_regression(data), data, algorithm, chain,
                         selection=selection, budget=budget, seed=1)


def test_weights_relative_to_the_cohort_are_refused_under_secret_coins(data):
    secret = fs.selection.poisson_clients(0.5, everyone_answers=True)
    with pytest.raises(SpecError, match="do not depend on who else was drawn"):
        noisy(data, fs.algorithms.agnostic_fed_avg(0.1), secret)
    for algorithm, selection in (
            (fs.algorithms.agnostic_fed_avg(0.1), fs.selection.uniform_clients(3)),
            (fs.algorithms.fed_avg(0.1), secret)):
        with noisy(data, algorithm, selection) as made:
            assert made.spend is not None


def test_one_client_moves_nobody_elses_weight_under_secret_coins():
    """The reason of the refusal, and that the weights of other algorithms are free of it."""
    rows = tuple(np.arange(first, first + 4) for first in (0, 4, 8))
    keys, drawn = np.zeros((3, 8), np.uint32), np.array([True, True, False])
    nothing = np.zeros(0, np.int32)
    fewer = Cohort(1, ("a", "b", "c"), (*rows[:2], nothing), drawn,
                   scale=np.ones(3, np.float32), mean_count=4.0)
    more = fewer._replace(indices=rows, alive=np.ones(3, bool))
    for algorithm in (fs.algorithms.fed_avg(0.1), fs.algorithms.fed_nova(0.1),
                      fs.algorithms.q_fed_avg(0.1), fs.algorithms.tilted_fed_avg(0.1),
                      fs.algorithms.scaffold(0.1), fs.algorithms.fed_dyn(0.1),
                      fs.algorithms.ditto(0.1), fs.algorithms.apfl(0.1),
                      fs.algorithms.fed_prox(0.1, mu=0.1), fs.algorithms.fed_buff(0.1),
                      fs.algorithms.fed_async(0.1), fs.algorithms.mime_lite(optax.sgd(0.1))):
        assert not algorithm.cohort_weights
        found = [algorithm.own(cohort, keys)["weight"][:2] for cohort in (fewer, more)]
        np.testing.assert_array_equal(*found)
    one_domain = fs.algorithms.agnostic_fed_avg(0.1, domains=[0, 0, 0]).for_federation(3, 2.0)
    assert one_domain.cohort_weights
    found = [one_domain.own(cohort, keys)["share"][0] for cohort in (fewer, more)]
    assert found == pytest.approx([1 / 2, 1 / 3])
