"""What clients keep from round to round, against a dictionary, and after kills at any place."""

from __future__ import annotations

import gc
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import ResumeError, SpecError
from fedjax_secure.runtime.storage import ClientStates, client_states

INITIAL = np.array([1.5, -2.0, 0.25], np.float32)
CLIENTS = 7

_clients = st.lists(st.integers(0, CLIENTS - 1), unique=True, max_size=CLIENTS)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("stage"), st.integers(1, 3), _clients),
        st.tuples(st.sampled_from(["begin", "commit", "sync"]), st.integers(1, 3)),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


class Reference:
    """What `ClientStates` is to be: dictionaries."""

    def __init__(self):
        self.rows, self.staged = {}, {}

    def begin(self, round):
        self.staged.pop(round, None)

    def stage(self, round, clients, rows):
        for client, row in zip(clients, rows, strict=True):
            self.staged.setdefault(round, {})[client] = row

    def commit(self, round):
        self.rows |= self.staged.pop(round, {})

    def sync(self, round):
        pass

    def read(self, clients):
        return np.array([self.rows.get(client, INITIAL) for client in clients]).reshape(-1, 3)


@settings(max_examples=40)
@given(_steps, st.booleans())
def test_states_behave_like_a_dictionary(tmp_path_factory, steps, on_disk):
    folder = tmp_path_factory.mktemp("states") if on_disk else None
    found, wanted = ClientStates(CLIENTS, INITIAL, folder), Reference()
    number = 0.0
    for name, *arguments in steps:
        if name == "reopen":
            if on_disk:  # in memory, nothing is there to open again
                found = ClientStates(CLIENTS, INITIAL, folder)
            continue
        if name == "stage":
            number += 1
            rows = number + np.arange(3 * len(arguments[1]), dtype=np.float32).reshape(-1, 3)
            arguments.append(rows)
        for states in (found, wanted):
            getattr(states, name)(*arguments)
        np.testing.assert_array_equal(found.read(range(CLIENTS)), wanted.read(range(CLIENTS)))
        for client in range(CLIENTS):
            assert found.known(client) == (client in wanted.rows)


class Killed(BaseException):
    """Stands for the end of the process: whatever comes after it does not happen."""


def dies_at(monkeypatch, step):
    """Ends the process at the step-th call that changes what is on disk; returns the counter."""
    left = [step]

    def counted(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*arguments, **keywords)

        return call

    for owner, name in ((os, "fsync"), (os, "replace"), (np.memmap, "flush"), (Path, "unlink"),
                        (ClientStates, "_write")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return left


def two_rounds(folder):
    """Two rounds of a federation, as far as states are concerned."""
    states = ClientStates(CLIENTS, INITIAL, folder)
    for round in (1, 2):
        states.begin(round)
        for chunk in ((0, 1), (4,)):
            kept = states.read(chunk)
            states.stage(round, chunk, kept + round)
        states.sync(round)
        yield round  # the journal keeps what was sent, and the round is finished
        states.commit(round)


def test_a_kill_at_any_step_leaves_a_finished_rounds_states(tmp_path, monkeypatch):
    """Before a round is finished its rows change nothing; afterwards they are never lost."""
    expected = {0: INITIAL, 1: INITIAL + 1, 2: INITIAL + 3}
    step = 0
    while True:
        step += 1
        folder, finished = tmp_path / str(step), 0
        with monkeypatch.context() as patch:
            left = dies_at(patch, step)
            try:
                for finished in two_rounds(folder):
                    pass
            except Killed:
                pass
        if left[0] > 0:  # it never came to that step: the run ended
            break
        again = ClientStates(CLIENTS, INITIAL, folder)
        again.commit(finished)  # what a federation does when it is opened again
        for client in (0, 1, 4):
            np.testing.assert_array_equal(again.read([client])[0], expected[finished], str(step))
        np.testing.assert_array_equal(again.read([2, 6]), [INITIAL, INITIAL])
        # The interrupted round runs again from these states, and ends as if nothing had happened.
        for round in range(finished + 1, 3):
            again.begin(round)
            for chunk in ((0, 1), (4,)):
                again.stage(round, chunk, again.read(chunk) + round)
            again.commit(round)
        np.testing.assert_array_equal(again.read([0, 1, 4]), [expected[2]] * 3)
        assert not list(folder.glob("staged-*"))
    assert step > 15  # as many places were tried


def test_only_the_owner_can_read_the_files(tmp_path):
    states = ClientStates(CLIENTS, INITIAL, tmp_path / "clients")
    states.stage(1, [0], INITIAL[None])
    folder = tmp_path / "clients"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 4 and set(modes.values()) == {0o600}, modes


def test_rows_that_were_never_written_take_no_room(tmp_path):
    ClientStates(100_000, np.zeros(1000, np.float32), tmp_path)
    rows = (tmp_path / "rows.float32").stat()
    assert rows.st_size == 4 * 100_000 * 1000 and 512 * rows.st_blocks < 1e6


def test_large_states_without_a_folder_go_to_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr(client_states, "_IN_MEMORY_BYTES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = ClientStates(CLIENTS, INITIAL)
    (folder,) = tmp_path.iterdir()
    states.stage(1, [3], INITIAL[None] * 2)
    assert (folder / "staged-000001").exists()  # a cohort's new rows need no memory either
    states.commit(1)
    np.testing.assert_array_equal(states.read([3, 4]), [INITIAL * 2, INITIAL])
    del states
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_the_first_row_is_the_one_the_run_began_with(tmp_path):
    ClientStates(CLIENTS, INITIAL, tmp_path)
    other = ClientStates(CLIENTS, INITIAL + 9, tmp_path)
    np.testing.assert_array_equal(other.read([0])[0], INITIAL)


@pytest.mark.parametrize("clients, size", [(CLIENTS + 1, 3), (CLIENTS, 2)])
def test_a_folder_of_another_population_or_model_is_refused(tmp_path, clients, size):
    ClientStates(CLIENTS, INITIAL, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ResumeError, match=f"{clients} rows of {size} numbers") as error:
        ClientStates(clients, INITIAL[:size], tmp_path)
    assert error.value.fix
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("lost", ["rows.float32", "known.bool"])
def test_lost_files_are_not_taken_for_fresh_clients(tmp_path, lost):
    states = ClientStates(CLIENTS, INITIAL, tmp_path)
    states.stage(1, [0], INITIAL[None])
    states.commit(1)
    (tmp_path / lost).unlink()
    with pytest.raises(ResumeError, match="not all of them"):
        ClientStates(CLIENTS, INITIAL, tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:9], lambda b: b[:8] + b"\xff" * 8 + b[16:]],
    ids=["a row cut short", "cut within the numbers", "a client that does not exist"])
def test_a_damaged_file_of_staged_rows_is_refused(tmp_path, damage):
    states = ClientStates(CLIENTS, INITIAL, tmp_path)
    states.stage(1, [0, 5], np.ones((2, 3)))
    (path,) = tmp_path.glob("staged-*")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResumeError, match="damaged"):
        states.commit(1)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (3,)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_of_another_shape_are_refused_before_anything_is_staged(tmp_path, shape, on_disk):
    states = ClientStates(CLIENTS, INITIAL, tmp_path if on_disk else None)
    with pytest.raises(SpecError, match=r"rows of shape \[1, 3\]"):
        states.stage(1, [0], np.zeros(shape))
    states.commit(1)
    assert not states.known(0)
