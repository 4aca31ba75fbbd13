"""Selections that keep a client's rounds apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import Sampling, SpecError, source
from fedjax_secure.selection import (
    Candidates,
    available,
    require_separated,
    separated_clients,
)


def drawn(selection, population, rounds, seed=0):
    state, found = selection.init(population), []
    for number in range(1, rounds + 1):
        cohort = selection.draw(source(seed), number, population, state)
        state = selection.observe(state, cohort, None)
        found.append(cohort.taking_part.tolist())
    return found


@settings(deadline=None, max_examples=40)
@given(clients=st.integers(1, 4), separation=st.integers(1, 6), spare=st.integers(0, 5),
       most=st.none() | st.integers(1, 4), seed=st.integers(0, 99))
def test_no_draw_breaks_the_promise(clients, separation, spare, most, seed):
    population = Candidates(tuple(f"c{i}" for i in range(clients * separation + spare)),
                            np.arange(0, 3 * (clients * separation + spare) + 1, 3))
    selection = separated_clients(clients, separation=separation, most_rounds=most)
    rounds = drawn(selection, population, 15, seed)
    for number, cohort in enumerate(rounds, start=1):
        history = [(n, [f"c{c}" for c in past]) for n, past in enumerate(rounds[:number - 1], 1)]
        require_separated(selection.sampling, number, [f"c{c}" for c in cohort], history)
        assert most is not None or len(cohort) == clients  # enough clients for full cohorts
    times = np.bincount(np.concatenate([np.array(c, int) for c in rounds]),
                        minlength=len(population.clients))
    if most is not None:
        assert times.max(initial=0) <= most
    assert selection.sampling == Sampling("public", 1.0, "client", separation, most)


def test_everyone_takes_part_about_equally_often():
    population = Candidates(tuple(map(str, range(23))), np.arange(0, 24))
    rounds = drawn(separated_clients(4, separation=5), population, 46)
    times = np.bincount(np.concatenate(rounds), minlength=23)
    assert times.sum() == 4 * 46 and times.max() - times.min() <= 1
    orders = {tuple(cohort) for cohort in rounds}
    assert len(orders) > 40  # chance decides among those who have waited as long


def test_those_who_cannot_are_not_drawn():
    population = Candidates(tuple("abcdefgh"), np.arange(9))
    trace = np.ones((2, 8), bool)
    trace[1, :4] = False
    rounds = drawn(available(separated_clients(2, separation=3), trace), population, 12)
    # Both pairs that can may have taken part in the last two rounds: then nobody is left.
    assert all(client >= 4 for cohort in rounds[1::2] for client in cohort)
    assert {client for cohort in rounds[1::2] for client in cohort} == {4, 5, 6, 7}
    assert all(len(cohort) <= 2 for cohort in rounds)
    assert all(not set(a) & (set(b) | set(c)) for a, b, c in
               zip(rounds, rounds[1:], rounds[2:], strict=False))


@pytest.mark.parametrize("given, said", [
    ({"clients": 0, "separation": 2}, "clients"), ({"clients": 2, "separation": 0}, "separation"),
    ({"clients": 2, "separation": 2, "most_rounds": 0}, "most_rounds"),
    ({"clients": 2.5, "separation": 2}, "clients")])
def test_numbers_that_make_no_sense_are_refused(given, said):
    with pytest.raises(SpecError, match=said):
        separated_clients(given.pop("clients"), **given)


def test_too_few_clients_for_the_separation_are_refused():
    with pytest.raises(SpecError, match="12 clients or more"):
        separated_clients(3, separation=4).expected_clients(11)
    assert separated_clients(3, separation=4).expected_clients(12) == 3.0


def test_a_broken_promise_names_the_clients():
    promise = Sampling("public", 1.0, "client", 3, 2)
    history = [(1, ["a"]), (2, ["b"]), (3, []), (4, ["a"])]
    require_separated(promise, 5, ["b"], history)
    with pytest.raises(SpecError, match=r"b \(last in round 2, 1 in all\)"):
        require_separated(promise, 4, ["b"], history[:3])
    with pytest.raises(SpecError, match=r"a \(last in round 4, 2 in all\)"):
        require_separated(promise, 8, ["b", "a"], [*history, (5, []), (6, []), (7, [])])
    with pytest.raises(SpecError, match="the clients of the 4 rounds before"):
        require_separated(promise, 5, ["b"], history[:2])
    require_separated(Sampling("public", 1.0, "client"), 5, ["a"], [])  # promises nothing
