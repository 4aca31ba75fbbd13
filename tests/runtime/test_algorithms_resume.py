"""What clients and selections remember survives a kill at any moment; each round counts once."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedjax_secure.runtime.storage import ClientStates, Journal

SCRIPT = Path(__file__).with_name("killed_algorithm_run.py")
_program = runpy.run_path(str(SCRIPT))
build, finish = _program["build"], _program["finish"]
NAMES = ["scaffold", "fed_dyn", "ditto, encrypted", "oort"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run ends with, and how often it calls os.fsync."""
    found = {}

    def get(name):
        if name not in found:
            calls, fsync = [0], os.fsync

            def counted(descriptor):
                calls[0] += 1
                fsync(descriptor)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", counted)
                with build(tmp_path_factory.mktemp("whole"), name) as federation:
                    result = finish(federation)
            found[name] = result, calls[0]
        return found[name]

    return get


def _killed(folder, name, kill_at):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), name, str(kill_at)], capture_output=True,
        text=True, timeout=600, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9, done.stdout + done.stderr


def _resumed_equals(folder, name, wanted):
    with build(folder, name) as federation:
        found = finish(federation)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(folder.glob("clients/staged-*")) and not list(folder.glob("sent-*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_once_ends_with_the_same_model_and_states(tmp_path, whole, name):
    wanted, fsyncs = whole(name)
    kill_at = random.randint(fsyncs // 3, fsyncs)
    print("killed at", kill_at, "of", fsyncs)
    _killed(tmp_path, name, kill_at)
    _resumed_equals(tmp_path, name, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_at_every_durable_step(tmp_path, whole, name):
    wanted, fsyncs = whole(name)
    for kill_at in range(1, fsyncs + 1):
        folder = tmp_path / str(kill_at)
        _killed(folder, name, kill_at)
        _resumed_equals(folder, name, wanted)


class Killed(BaseException):
    """The end of the process, at a place that no fsync marks."""


def _dies(*_, **__):
    raise Killed


PLACES = [
    (Journal, "store_sent", "staged, and nothing is sent"),
    (ClientStates, "sync", "staged, and not yet on disk"),
    (Journal, "finish", "sent, and the round is not finished"),
    (ClientStates, "commit", "finished, and the states are not yet the clients'"),
    (ClientStates, "_write", "the states are half written"),
]


@pytest.mark.parametrize(("owner", "method", "when"), PLACES, ids=[place[2] for place in PLACES])
def test_a_run_that_ends_between_two_steps_goes_on(tmp_path, whole, monkeypatch, owner, method,
                                                   when):
    """In round 2, of clients that have a state of their own already."""
    federation = build(tmp_path, "scaffold")
    runs = federation.run(federation.init(), rounds=3)
    next(runs)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, _dies)
        with pytest.raises(Killed):
            next(runs)
    staged = list((tmp_path / "clients").glob("staged-000002"))
    assert len(staged) == 1  # both chunks have been staged
    federation.close()
    _resumed_equals(tmp_path, "scaffold", whole("scaffold")[0])
