"""Clients that come and go with the time of day, and devices that take their time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core import Sampling, SpecError, source
from fedjax_secure.selection import (
    Candidates,
    Devices,
    all_records,
    available,
    day_night,
    devices,
    fed_cs,
    importance_clients,
    poisson_clients,
    poisson_records,
    power_of_choice,
    timed,
    uniform_clients,
)
from fedjax_secure.selection.deadlines import packed

COUNTS = np.array([3, 1, 7, 4, 2, 5, 6, 8, 9, 10])
PEOPLE = Candidates(tuple("abcdefghij"), np.concatenate([[0], np.cumsum(COUNTS)]))
TRACE = np.random.default_rng(0).random((6, 10)) < 0.5
TRACE[3] = False


@pytest.mark.parametrize("inner", [
    all_records(), poisson_records(0.5), uniform_clients(3), poisson_clients(0.6),
    importance_clients(4.0, by=COUNTS)], ids=lambda selection: selection.name)
def test_only_who_is_available_at_the_rounds_time_takes_part(inner):
    selection = available(inner, TRACE)
    for round in range(1, 15):
        cohort = selection.draw(source(0), round, PEOPLE, ())
        now = TRACE[(round - 1) % 6]
        assert not cohort.alive[~now].any()
        if inner.name == "uniform_clients":
            assert cohort.alive.sum() == min(3, now.sum())
        assert cohort.alive.any() or inner.name == "poisson_clients" or (round - 1) % 6 == 3 or (
            inner.name == "importance_clients")


def test_the_traces_own_average_is_what_a_round_is_expected_to_have():
    at_a_time = TRACE.sum(1)
    assert available(uniform_clients(3), TRACE).expected_clients(10) == pytest.approx(
        np.minimum(3, at_a_time).mean())
    assert available(poisson_clients(0.6), TRACE).expected_clients(10) == pytest.approx(
        0.6 * at_a_time.mean())
    chances = importance_clients(4.0, by=COUNTS)
    scale = chances.draw(source(0), 1, PEOPLE, ()).scale
    np.testing.assert_allclose(
        available(chances, TRACE).expected_clients(10), (TRACE @ (0.4 / scale)).mean(), rtol=1e-6)
    assert available(poisson_clients(0.6), TRACE).most_clients(10) == at_a_time.max()
    assert available(uniform_clients(3), TRACE).most_clients(10) == 3


def test_traces_within_traces():
    both = available(available(all_records(), TRACE), np.arange(10)[None] < 5)
    assert np.array_equal(both.draw(source(0), 1, PEOPLE, ()).alive, TRACE[0] & (np.arange(10) < 5))
    assert both.expected_clients(10) == TRACE[:, :5].sum(1).mean()


def test_what_the_accountant_is_told_of_traces_and_times():
    rate = Sampling("poisson", 0.6, "client")
    assert available(poisson_clients(0.6), TRACE).sampling == rate
    assert available(poisson_records(0.5), TRACE).sampling == Sampling("poisson", 0.5, "record")
    assert available(all_records(), TRACE).sampling == Sampling("public", 1.0, "record")
    assert available(uniform_clients(3), TRACE).sampling == Sampling("public", 1.0, "client")
    assert available(power_of_choice(2, candidates=4), TRACE).reads_data
    slow = devices(COUNTS)
    assert timed(poisson_clients(0.6), slow).sampling == rate
    middle = float(np.median(slow.seconds))
    assert timed(all_records(), slow, deadline_seconds=middle, late="dropped").sampling == (
        Sampling("public", 1.0, "record"))
    assert fed_cs(100.0, slow).sampling == Sampling("public", 1.0, "client")


def test_the_day_goes_round_the_zones():
    trace = day_night(3000, rounds_a_day=24, awake=0.25, zones=4, seed=1)
    assert trace.shape == (24, 3000)
    hours = trace.sum(0)
    assert set(hours.tolist()) == {6}  # a quarter of the day, each
    starts = (trace & ~np.roll(trace, 1, axis=0)).sum(0)
    assert np.all(starts == 1)  # in one piece
    assert np.array_equal(trace, day_night(3000, rounds_a_day=24, awake=0.25, zones=4, seed=1))
    assert not np.array_equal(trace, day_night(3000, rounds_a_day=24, awake=0.25, zones=4, seed=2))


@pytest.mark.parametrize("trace, said", [
    (np.ones((3, 10)), r"dtype bool, got float64\[3, 10\]"),
    (np.ones(10, bool), r"got bool\[10\]"),
    (np.zeros((0, 10), bool), "got bool"),
    (np.zeros((3, 10), bool), "somebody is available at some time, got none"),
])
def test_wrong_traces_are_refused(trace, said):
    with pytest.raises(SpecError, match=said):
        available(uniform_clients(2), trace)


def test_a_trace_of_other_clients_and_more_clients_than_exist_are_refused():
    with pytest.raises(SpecError, match="a trace of 9 clients, got 10"):
        available(uniform_clients(2), TRACE).expected_clients(9)
    with pytest.raises(SpecError, match="at least 11 clients"):
        available(uniform_clients(11), TRACE).expected_clients(10)
    with pytest.raises(SpecError, match="awake in"):
        day_night(10, awake=0.0)


def test_a_round_lasts_as_long_as_its_slowest_client():
    times = Devices(np.full(10, 1.0), COUNTS.astype(float), np.full(10, 2.0))
    for round in range(1, 6):
        cohort = timed(uniform_clients(3), times).draw(source(0), round, PEOPLE, ())
        assert cohort.seconds == 3.0 + COUNTS[cohort.alive].max()
        assert cohort.share is None


def test_who_is_late_does_a_share_of_its_work_or_is_dropped():
    times = Devices(np.full(10, 1.0), COUNTS.astype(float), np.full(10, 2.0))
    times.download_seconds[9] = 50.0
    cohort = timed(all_records(), times, deadline_seconds=8.0).draw(source(0), 1, PEOPLE, ())
    assert cohort.alive.tolist() == [True] * 9 + [False] and len(cohort.indices[9]) == 0
    np.testing.assert_allclose(cohort.share[:9], np.minimum(1.0, 5.0 / COUNTS[:9]), rtol=1e-6)
    assert cohort.seconds == 8.0
    strict = timed(all_records(), times, deadline_seconds=8.0, late="dropped")
    dropped = strict.draw(source(0), 1, PEOPLE, ())
    assert np.array_equal(dropped.alive[:9], COUNTS[:9] < 5) and dropped.share is None
    assert strict.expected_clients(10) == dropped.alive.sum()
    quick = timed(all_records(), times, deadline_seconds=100.0).draw(source(0), 1, PEOPLE, ())
    assert quick.seconds == 62.0 and np.all(quick.share == 1.0)


def test_partial_work_is_fewer_steps_in_the_engine():
    from fedjax_secure.data import heart_disease
    from fedjax_secure.models import logistic_regression
    from fedjax_secure.training import Engine, local_sgd

    data = heart_disease()
    model = logistic_regression(data)
    people = Candidates(data.clients, data.offsets)
    times = devices(data.counts, speed_spread=2.0, model_bytes=1.0)
    deadline = float(np.median(times.seconds))
    cohort = timed(all_records(), times, deadline_seconds=deadline).draw(source(0), 1, people, ())
    import jax

    out = Engine(model, data, batch_size=8).train(
        local_sgd(model, learning_rate=0.1), {"params": model.init(jax.random.key(0))},
        cohort.indices, own={"weight": np.ones(4, np.float32)}, share=cohort.share)
    whole = -(-data.counts // 8)
    expected = np.ceil(whole * np.minimum(cohort.share, 1.0)).astype(int)
    assert np.abs(np.asarray(out.steps) - expected).max() <= 1
    assert (np.asarray(out.steps) < whole).any() and np.all(np.asarray(out.steps)[cohort.alive] > 0)


def test_jitter_varies_a_clients_time_from_round_to_round_and_repeats():
    times = devices(np.full(2000, 10), jitter=0.5, seed=3)
    first, again, second = times.factor(1), times.factor(1), times.factor(2)
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    # 2,000 normal draws: standard errors 0.011 and 0.008; limits at 6 of them, false alarm 1e-8
    assert abs(np.log(first).mean()) < 0.067 and abs(np.log(first).std() - 0.5) < 0.048
    deadline = float(np.median(times.seconds))
    selection = timed(all_records(), times, deadline_seconds=deadline, late="dropped")
    people = Candidates(tuple(map(str, range(2000))), np.arange(0, 20001, 10))
    kept = [selection.draw(source(0), r, people, ()).alive.sum() for r in range(1, 9)]
    # at most 2,000 x 8 coins of variance 1/4: six standard errors of the mean are 48
    assert abs(np.mean(kept) - selection.expected_clients(2000)) < 48


def test_devices_have_heavy_tails_and_depend_on_examples_and_passes():
    one = devices(np.full(5000, 100), records_per_second=50.0, seed=2)
    spread = np.log(one.compute_seconds)
    # 5,000 log-normal speeds: six standard errors, false alarm 2e-9
    assert abs(spread.mean() - np.log(2.0)) < 0.085 and abs(spread.std() - 1.0) < 0.06
    two = devices(np.full(5000, 200), records_per_second=50.0, passes=3, seed=2)
    np.testing.assert_allclose(two.compute_seconds, 6 * one.compute_seconds)
    np.testing.assert_allclose(two.upload_seconds, one.upload_seconds)
    assert one.digest() != two.digest() == devices(
        np.full(5000, 200), records_per_second=50.0, passes=3, seed=2).digest()


def test_fed_cs_takes_the_next_client_that_adds_least():
    """The schedule on paper: downloads together, then training beside each other's uploads."""
    download = np.array([1.0, 3.0, 1.0, 1.0])
    compute = np.array([2.0, 1.0, 9.0, 4.0])
    upload = np.array([2.0, 1.0, 2.0, 1.0])
    # costs at first: 1+2+2=5, 3+1+1=5, 1+2+9=12, 1+1+4=6: the first; then (1 down, sent at 4):
    # b 2+1+0=3, c 0+2+5=7, d 0+1+0=1: d, sent at 5; b again 3, c 0+2+4=6: b, 3 down, sent at 6;
    # c: 9 + 2 = 11 sent, 3 + 11 = 14
    assert packed(download, compute, upload, 14.0) == ([0, 3, 1, 2], 14.0)
    assert packed(download, compute, upload, 13.9) == ([0, 3, 1], 9.0)
    assert packed(download, compute, upload, 4.9) == ([], 0.0)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_fed_cs_keeps_its_deadline_and_its_time_is_that_of_an_event_simulation(n, seed):
    rng = np.random.default_rng(seed)
    times = rng.exponential(1.0, (3, n)) + 0.01
    taken, seconds = packed(*times, 5.0)
    free = down = max((times[0, c] for c in taken), default=0.0)
    for c in taken:  # the channel is free, or the client is ready: what comes last
        free = max(free, down + times[1, c]) + times[2, c]
    assert seconds == pytest.approx(free) and seconds <= 5.0 + 1e-9
    best = max((len(order) for k in range(n + 1) for order in itertools.permutations(range(n), k)
                if _lasts(times, order) <= 5.0), default=0)
    assert len(taken) <= best


def _lasts(times, order):
    free = down = max((times[0, c] for c in order), default=0.0)
    for c in order:
        free = max(free, down + times[1, c]) + times[2, c]
    return free


def test_fed_cs_rounds_keep_the_deadline_and_favour_the_fast():
    times = devices(COUNTS, records_per_second=2.0, seed=5)
    selection = fed_cs(12.0, times, candidates=6)
    sizes, seen = [], np.zeros(10)
    for round in range(1, 300):
        cohort = selection.draw(source(1), round, PEOPLE, ())
        assert cohort.seconds <= 12.0 and cohort.alive.sum() <= 6
        sizes.append(cohort.alive.sum())
        seen += cohort.alive
    assert seen[np.argmin(times.seconds)] > 100 and seen[np.argmax(times.seconds)] == 0
    assert abs(np.mean(sizes) - selection.expected_clients(10)) < 0.6
    assert selection.most_clients(10) == 6
    masked = selection.draw(source(1), 1, PEOPLE._replace(available=np.arange(10) < 2), ())
    assert not masked.alive[2:].any()


@pytest.mark.parametrize("make, said", [
    (lambda: devices([]), "counts"),
    (lambda: devices([1], jitter=-1.0), "spreads of 0 or more"),
    (lambda: timed(all_records(), devices(COUNTS), deadline_seconds=-1), "a positive number"),
    (lambda: timed(all_records(), devices(COUNTS), deadline_seconds=1e-9), "some client keeps"),
    (lambda: timed(all_records(), devices(COUNTS), late="never"), "partial"),
    (lambda: timed(all_records(), devices(COUNTS)).expected_clients(9), "devices of 9 clients"),
    (lambda: fed_cs(1e-9, devices(COUNTS)), "some client keeps"),
    (lambda: fed_cs(float("nan"), devices(COUNTS)), "a positive number"),
    (lambda: fed_cs(99.0, devices(COUNTS), candidates=0), "candidates, 1 or more"),
    (lambda: fed_cs(99.0, devices(COUNTS), candidates=11).expected_clients(10), "at least 11"),
])
def test_bad_settings_of_time_are_refused(make, said):
    with pytest.raises(SpecError, match=said):
        make()
