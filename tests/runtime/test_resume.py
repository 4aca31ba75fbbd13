"""A run killed at any moment goes on from its last finished round, and releases nothing twice."""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")
ROUNDS = 3


def _run(folder, encryption, seed, kill_at=0):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), encryption, str(seed), str(ROUNDS),
         str(kill_at)],
        capture_output=True, text=True, timeout=300, env=dict(os.environ))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What uninterrupted runs end with, one for each encryption, made when first asked for."""
    results = {}

    def get(encryption):
        if encryption not in results:
            done = _run(tmp_path_factory.mktemp("whole") / "run", encryption, 11)
            assert done.returncode == 0, done.stderr
            results[encryption] = json.loads(done.stdout)
        return results[encryption]

    return get


def _finish(folder, encryption, seed):
    done = _run(folder, encryption, seed)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check_history(result):
    assert result["rounds"] == list(range(1, ROUNDS + 1))
    # Each round is paid for once, and what each client submitted is taken once.
    rounds = [round for _, round, _ in result["spends"]]
    assert sorted(rounds) == list(range(1, ROUNDS + 1))
    counts = collections.Counter(map(tuple, result["events"]))
    for number in range(1, ROUNDS + 1):
        assert counts["UpdateSubmitted", number] == 4
        assert counts["RoundConfirmed", number] == 1


def _killed_then_resumed(folder, encryption, seed, kill_at):
    killed = _run(folder, encryption, seed, kill_at)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    result = _finish(folder, encryption, seed)
    _check_history(result)
    return result


def test_seeded_run_killed_once_ends_with_the_same_model(tmp_path, whole):
    fsyncs = whole("lattice")["fsyncs"]
    kill_at = random.randint(fsyncs // 4, fsyncs - 1)
    print("killed at", kill_at, "of", fsyncs)
    result = _killed_then_resumed(tmp_path / "run", "lattice", 11, kill_at)
    assert result["model"] == whole("lattice")["model"]


def test_encryption_on_or_off_gives_the_same_model(whole):
    assert whole("lattice")["model"] == whole("off")["model"]
    assert whole("lattice")["epsilon"] == whole("off")["epsilon"]


def test_secure_run_killed_once_goes_on(tmp_path, whole):
    fsyncs = whole("lattice")["fsyncs"]
    result = _killed_then_resumed(tmp_path / "run", "lattice", "none", fsyncs // 2)
    assert result["model"] != whole("lattice")["model"]


@pytest.mark.slow
@pytest.mark.parametrize("encryption", ["lattice", "off"])
def test_seeded_run_killed_at_every_durable_step(tmp_path, whole, encryption):
    # A kill at step k of a run that is resumed and killed again at its own step 3, and so on.
    for kill_at in range(1, whole(encryption)["fsyncs"] + 1):
        folder = tmp_path / f"run{kill_at}"
        killed = _run(folder, encryption, 11, kill_at)
        assert killed.returncode == -9, killed.stdout + killed.stderr
        again = _run(folder, encryption, 11, 3)
        assert again.returncode in (0, -9), again.stderr
        result = _finish(folder, encryption, 11)
        _check_history(result)
        assert result["model"] == whole(encryption)["model"], kill_at
