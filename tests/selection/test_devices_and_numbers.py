"""Plausible bad input of selections and algorithms: lists for arrays, numpy's numbers, threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import SpecError, source
from fedjax_secure.selection import Candidates, Devices, arrivals, fed_cs, oort, timed

ONES = np.ones(3)


@pytest.mark.parametrize("devices", [
    Devices([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
    Devices(ONES, np.array([1.0, np.nan, 1.0]), ONES),
    Devices(ONES, np.array([1.0, -5.0, 1.0]), ONES),
    Devices(ONES, np.ones(2), ONES),
    Devices(ONES, ONES, ONES, jitter=-0.1),
], ids=["lists", "nan", "negative", "lengths", "jitter"])
@pytest.mark.parametrize("make", [
    lambda devices: arrivals(devices, concurrency=2),
    lambda devices: fed_cs(100.0, devices),
    lambda devices: timed(fs.selection.all_records(), devices),
    lambda devices: oort(2, devices=devices),
], ids=["arrivals", "fed_cs", "timed", "oort"])
def test_times_that_make_no_sense_are_refused(make, devices):
    with pytest.raises(SpecError, match="three numpy arrays of seconds"):
        make(devices)


def test_clients_that_take_no_time_are_refused_only_where_time_divides():
    nothing = Devices(np.zeros(3), np.array([0.0, 1.0, 1.0]), np.zeros(3), jitter=0.1)
    people = Candidates(("a", "b", "c"), np.arange(0, 8, 2))
    cohort = arrivals(nothing, concurrency=3).draw(source(0), 1, people, ())
    assert cohort.taking_part.tolist() == [0] and cohort.seconds == 0.0
    partial = timed(fs.selection.all_records(), nothing, deadline_seconds=5.0)
    assert partial.expected_clients(3) == 3.0
    with pytest.raises(SpecError, match="clients that take some time"):
        oort(2, devices=nothing)


def test_whole_numbers_of_numpy_describe_a_run_as_plain_ones_do():
    devices = Devices(ONES, ONES, ONES)
    for numpy, plain in (
            (arrivals(devices, concurrency=np.int64(3), buffer_size=np.int32(2)),
             arrivals(devices, concurrency=3, buffer_size=2)),
            (fed_cs(100.0, devices, candidates=np.int64(2)),
             fed_cs(100.0, devices, candidates=2))):
        assert json.dumps(numpy.most_clients(3)) == "2"
        assert numpy.settings == plain.settings
    data = fs.data.heart_disease()
    algorithm = fs.algorithms.fed_avg(0.1, batch_size=np.int64(32))
    simulation = fs.Simulation(fs.models.logistic_regression(data), data, algorithm)
    assert simulation.rounds.engine.batch_size == 32


def test_one_queue_serves_simulations_in_several_threads():
    devices = Devices(np.zeros(20), np.linspace(1.0, 9.0, 20), np.zeros(20), jitter=0.5)
    people = Candidates(tuple(map(str, range(20))), np.arange(0, 42, 2))

    def cohorts(selection):
        drawn = [selection.draw(source(0), round, people, ()) for round in range(1, 120)]
        return [(cohort.taking_part.tolist(), cohort.staleness.tolist()) for cohort in drawn]

    alone = cohorts(arrivals(devices, concurrency=8, buffer_size=3))
    shared = arrivals(devices, concurrency=8, buffer_size=3)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(cohorts, [shared] * 4))


@pytest.mark.parametrize("make", [
    lambda: fs.algorithms.fed_sgd(0.1),
    lambda: fs.algorithms.fed_avg(0.1, server=0.1),
    lambda: fs.algorithms.fed_avg(0.1, client=optax.sgd),
    lambda: fs.algorithms.fed_prox(0.1, mu=0.1, server=0.1),
    lambda: fs.algorithms.fed_buff(0.1, server=0.1),
    lambda: fs.algorithms.ditto(0.1, server="adam"),
])
def test_what_is_no_optimiser_is_refused_when_the_algorithm_is_made(make):
    with pytest.raises(SpecError, match="an optax optimiser"):
        make()


def test_true_is_no_learning_rate():
    with pytest.raises(SpecError, match="learning_rate > 0"):
        fs.algorithms.fed_avg(True)
