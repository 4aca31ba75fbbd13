"""FedBuff and FedAsync: who arrives when, from how old a model, and what that comes to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.algorithms import staleness_weights
from fedjax_secure.core import Sampling, SpecError, source
from fedjax_secure.data import FederatedDataset
from fedjax_secure.selection import (
    Candidates,
    Devices,
    Selection,
    arrivals,
    available,
    devices,
    timed,
    uniform_clients,
)
from fedjax_secure.selection.drawing import cohort_of

SIZES = np.array([6, 10, 3, 8, 5, 7])
RATE = 0.3


def dataset(sizes=SIZES) -> FederatedDataset:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(sum(sizes), 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=len(x)) > 0).astype(np.int32)
    offsets = np.cumsum([0, *sizes])
    return FederatedDataset(
        name="made up", clients=tuple(f"c{i}" for i in range(len(sizes))), x=x, y=y,
        offsets=offsets, test_x=x, test_y=y, test_offsets=offsets,
        feature_names=("p", "q", "r"), classes=("0", "1"))


DATA = dataset()
MODEL = fs.models.logistic_regression(DATA)
PEOPLE = Candidates(DATA.clients, DATA.offsets)


def times(seconds) -> Devices:
    seconds = np.asarray(seconds, float)
    return Devices(np.zeros(len(seconds)), seconds, np.zeros(len(seconds)))


def scripted(script) -> Selection:
    """Round r has the clients of script[r - 1], a mapping from client to staleness."""

    def draw(source, round, candidates, state):
        ages = script[(round - 1) % len(script)]
        staleness = np.zeros(len(candidates.clients), np.int32)
        staleness[list(ages)] = list(ages.values())
        return cohort_of(source, round, candidates, np.array(sorted(ages)), staleness=staleness)

    return Selection("scripted", Sampling("public", 1.0, "client"), draw,
                     expected_clients=lambda n, available=None: float(len(script[0])))


def play(algorithm, selection, rounds, data=DATA, **options):
    made = fs.Simulation(MODEL, data, algorithm, selection=selection, **options)
    state = made.init()
    states, reports = [np.asarray(MODEL.ravel(state.params), np.float64)], []
    for state, report in made.run(state, rounds=rounds):
        states.append(np.asarray(MODEL.ravel(state.params), np.float64))
        reports.append(report)
    assert set(made.rounds.engine.traces.values()) == {1}  # one program for every age
    return states, reports


# -- plain numpy ---------------------------------------------------------------------------------


def trained(flat, c, number=2, rho=0.0):
    """A client's model after some steps on all of its records, from ``flat``."""
    params = MODEL.unravel(jnp.asarray(flat, jnp.float32))
    at_bias = [i for i, leaf in enumerate(jax.tree.leaves(params)) if leaf.ndim == 1]
    bias = 0 if at_bias == [0] else 3  # where ravel puts it
    place = [i for i in range(4) if i != bias]
    rows = slice(DATA.offsets[c], DATA.offsets[c + 1])
    x, y = DATA.x[rows].astype(np.float64), DATA.y[rows]
    flat = first = np.array(flat, np.float64)
    for _ in range(number):
        p = 1 / (1 + np.exp(-(x @ flat[place] + flat[bias])))
        gradient = np.zeros(4)
        gradient[place], gradient[bias] = x.T @ (p - y) / len(y), (p - y).mean()
        flat = flat - RATE * (gradient + rho * (flat - first))
    return flat


SCRIPT = [{0: 0, 3: 0}, {1: 1, 2: 0}, {0: 2, 4: 1}, {3: 0, 5: 3}, {1: 4, 2: 1}]


def test_rounds_of_fed_buff_by_hand():
    """Algorithm 1: the mean of the changes, each from the model of its own age."""
    past, expected = [np.zeros(4)], []
    for ages in SCRIPT:
        moved = sum((1 + age) ** -0.5 * (trained(past[-1 - age], c) - past[-1 - age])
                    for c, age in ages.items() if age <= 3)  # 4 is too old, and counts as zero
        past.append(past[-1] + 0.8 * moved / 2)
        expected.append(past[-1])
    algorithm = fs.algorithms.fed_buff(RATE, server_learning_rate=0.8, local_epochs=2,
                                       batch_size=16, max_staleness=3)
    states, _ = play(algorithm, scripted(SCRIPT), 5)
    np.testing.assert_allclose(states[1:], expected, atol=2e-6)


def test_rounds_of_fed_async_by_hand():
    """Algorithm 1: x <- (1 - alpha_t) x + alpha_t x_new, with a proximal term."""
    script = [{0: 0}, {3: 1}, {1: 2}, {2: 0}, {5: 3}]
    x = [np.zeros(4)]
    for ages in script:
        (c, age), = ages.items()
        alpha = 0.6 * (1.0 if age <= 1 else 1 / (2.0 * (age - 1) + 1))
        alpha = alpha if age <= 2 else 0.0
        x.append((1 - alpha) * x[-1] + alpha * trained(x[-1 - age], c, rho=0.2))
    algorithm = fs.algorithms.fed_async(
        RATE, mixing=0.6, rho=0.2, local_epochs=2, batch_size=16, staleness="hinge", a=2.0, b=1.0,
        max_staleness=2)
    states, _ = play(algorithm, scripted(script), 5)
    np.testing.assert_allclose(states, x, atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_where_every_model_is_fresh_fed_buff_is_fed_avg(weighted):
    settings = {"local_epochs": 2, "batch_size": 4, "weighted": weighted}
    for selection in (arrivals(times(np.zeros(6)), concurrency=1, buffer_size=3),
                      uniform_clients(3)):
        fresh = selection._replace(draw=lambda *a, s=selection: s.draw(*a)._replace(staleness=None))
        one, _ = play(fs.algorithms.fed_buff(RATE, **settings), selection, 5)
        other, _ = play(fs.algorithms.fed_avg(RATE, **settings), fresh, 5)
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_by_age():
    ages = np.arange(6)
    assert staleness_weights(ages, "constant").tolist() == [1.0] * 6
    np.testing.assert_allclose(staleness_weights(ages, a=0.5), 1 / np.sqrt(1 + ages))
    np.testing.assert_allclose(staleness_weights(ages, "hinge", a=10, b=4), [1] * 5 + [1 / 11])
    for kind, a, b in (("old", 1, 1), ("hinge", -1, 1), ("hinge", 1, float("nan"))):
        with pytest.raises(SpecError):
            staleness_weights(ages, kind, a=a, b=b)


# -- who arrives when ----------------------------------------------------------------------------


def test_staleness_by_hand():
    """All three always train, at 1, 2.4 and 9.1 seconds an update; every arrival is a step."""
    selection = arrivals(times([1.0, 2.4, 9.1]), concurrency=3)
    people = Candidates(("a", "b", "c"), np.array([0, 1, 2, 3]))
    clock, found = 0.0, []
    for round in range(1, 16):
        cohort = selection.draw(source(0), round, people, ())
        (c,) = cohort.taking_part
        clock += cohort.seconds
        found.append((people.clients[c], round_to(clock), int(cohort.staleness[c])))
    assert found == [
        ("a", 1.0, 0), ("a", 2.0, 0), ("b", 2.4, 2), ("a", 3.0, 1), ("a", 4.0, 0), ("b", 4.8, 2),
        ("a", 5.0, 1), ("a", 6.0, 0), ("a", 7.0, 0), ("b", 7.2, 3), ("a", 8.0, 1), ("a", 9.0, 0),
        ("c", 9.1, 12), ("b", 9.6, 3), ("a", 10.0, 2)]


def round_to(seconds: float) -> float:
    return round(seconds, 9)


@pytest.mark.parametrize("buffer_size", [1, 4, 17, 30])
def test_where_everyone_always_trains_the_queue_is_that_of_another_simulation(buffer_size):
    """No event queue: each client's end and version in arrays, and the next ends by sorting."""
    people = Candidates(tuple(map(str, range(30))), np.arange(0, 301, 10))
    phones = devices(np.full(30, 10), seed=6)
    selection = arrivals(phones, concurrency=30, buffer_size=buffer_size)
    ends, versions, clock = phones.seconds.copy(), np.zeros(30, int), 0.0
    for version in range(150):
        cohort = selection.draw(source(0), version + 1, people, ())
        first = np.sort(np.argsort(ends)[:buffer_size])
        assert cohort.taking_part.tolist() == first.tolist()
        assert cohort.staleness[first].tolist() == (version - versions[first]).tolist()
        now = ends[first].max()
        assert cohort.seconds == pytest.approx(now - clock, abs=1e-9)
        ends[first], versions[first], clock = now + phones.seconds[first], version + 1, now


@pytest.mark.parametrize("concurrency, buffer_size, jitter", [
    (1, 1, 0.0), (5, 1, 0.0), (8, 3, 0.0), (20, 7, 0.4), (30, 30, 0.0), (3, 10, 0.2)])
def test_each_update_began_when_its_version_was_the_newest(concurrency, buffer_size, jitter):
    """Starts and ends are rebuilt from the cohorts alone: an update that ended in this step began
    its client's time earlier, which has to be in its version's time."""
    people = Candidates(tuple(map(str, range(30))), np.arange(0, 301, 10))
    phones = devices(np.full(30, 10), jitter=jitter, seed=3)
    selection = arrivals(phones, concurrency=concurrency, buffer_size=buffer_size, seed=2)
    clock, steps_at = 0.0, [0.0]
    begun_at = {}  # the earliest and latest times at which each update can have begun
    for round in range(1, 120):
        cohort = selection.draw(source(0), round, people, ())
        took = cohort.taking_part
        assert len(took) == buffer_size and cohort.seconds >= 0
        clock += cohort.seconds
        for c in took:
            version = round - 1 - cohort.staleness[c]
            assert 0 <= version < round
            if not jitter:  # it ended in this step's time, so it began in its version's
                ended = (steps_at[-1], clock)
                earliest = ended[0] - phones.seconds[c]
                latest = ended[1] - phones.seconds[c]
                after = steps_at[version + 1] if version + 1 < len(steps_at) else clock
                assert latest >= steps_at[version] - 1e-9 and earliest <= after + 1e-9
            begun_at.setdefault(c, []).append(version)
        steps_at.append(clock)
    for versions in begun_at.values():
        assert all(a < b for a, b in zip(versions, versions[1:], strict=False))
    if concurrency == 1:
        assert not any(selection.draw(source(0), r, people, ()).staleness.any()
                       for r in range(1, 120))


def test_the_same_after_a_resume_and_in_any_order():
    phones = devices(np.full(6, 10), jitter=0.3)

    def told(selection, round):
        cohort = selection.draw(source(round), round, PEOPLE, ())
        return cohort.taking_part.tolist(), cohort.staleness.tolist(), cohort.seconds

    one, other = (arrivals(phones, concurrency=4, buffer_size=2) for _ in range(2))
    forwards = [told(one, r) for r in range(1, 12)]
    assert told(other, 11) == forwards[10] and told(other, 4) == forwards[3]
    elsewhere = arrivals(phones, concurrency=4, buffer_size=2, seed=1)
    assert [told(elsewhere, r) for r in range(1, 12)] != forwards


def test_with_stragglers_the_target_is_reached_in_less_time():
    """The slowest of five is seldom quick: the synchronous round waits for it each time."""
    data = dataset(np.full(40, 20))
    phones = devices(data.counts, speed_spread=1.5, seed=4)
    plain = timed(uniform_clients(5), phones)
    queue = arrivals(phones, concurrency=10, buffer_size=5)

    def seconds_to(target, algorithm, selection):
        made = fs.Simulation(MODEL, data, algorithm, selection=selection)
        state, clock = made.init(), 0.0
        x, y = jnp.asarray(data.x), jnp.asarray(data.y)
        for state, report in made.run(state, rounds=60):
            clock += report.simulated_seconds
            if float(MODEL.loss(state.params, x, y).mean()) < target:
                return clock
        raise AssertionError("the target was not reached")

    settings = {"local_epochs": 2, "batch_size": 10}
    waiting = seconds_to(0.3, fs.algorithms.fed_avg(RATE, **settings), plain)
    going_on = seconds_to(0.3, fs.algorithms.fed_buff(RATE, **settings), queue)
    assert going_on < 0.5 * waiting


def test_what_arrivals_tell_and_refuse():
    phones = devices(np.full(6, 10))
    selection = arrivals(phones, concurrency=4, buffer_size=3)
    assert selection.sampling == Sampling("public", 1.0, "client") and not selection.reads_data
    assert (selection.expected_clients(6), selection.most_clients(6)) == (3.0, 3)
    for settings in ({"concurrency": 0}, {"concurrency": 2, "buffer_size": 1.5}):
        with pytest.raises(SpecError, match="a whole number of 1 or more"):
            arrivals(phones, **settings)
    with pytest.raises(SpecError, match="at least 7 clients"):
        arrivals(phones, concurrency=7).expected_clients(6)
    with pytest.raises(SpecError, match="devices of 5 clients"):
        selection.expected_clients(5)
    traced = available(selection, np.ones((1, 6), bool))
    with pytest.raises(SpecError, match="keep its own time"):
        traced.draw(source(0), 1, PEOPLE, ())
    with pytest.raises(SpecError, match="an asynchronous algorithm"):
        play(fs.algorithms.fed_avg(0.1), selection, 1)
