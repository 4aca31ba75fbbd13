"""The budget: what was acknowledged is on disk, what would overspend is refused, by anyone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_secure.core.errors import BudgetError, SpecError
from fedjax_secure.privacy.accounting import Spend, compose
from fedjax_secure.privacy.accounting.arguments import rounded_up
from fedjax_secure.privacy.budget import Budget

ROUND = Spend(noise_multiplier=2.0, sampling_rate=0.1, unit="patient")


def open_budget(folder, **changes) -> Budget:
    arguments = {"fingerprint": "sha256:12ab", "unit": "patient", "epsilon": 1.0,
                 "dp_delta": 1e-3, "folder": folder, **changes}
    return Budget.open(arguments.pop("fingerprint"), arguments.pop("unit"), **arguments)


def start(code: str, *arguments: str) -> subprocess.Popen:
    """Another process that can import the toolkit; it prints what the test waits for."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels")])
    head = "import sys, time\nfrom fedjax_secure.privacy.budget import Budget\n" \
           "from fedjax_secure.privacy.accounting import Spend\n" \
           "ROUND = Spend(2.0, 0.1, 'patient')\n" \
           "def budget(**k): return Budget.open('sha256:12ab', 'patient', " \
           "**{'epsilon': 1.0, 'dp_delta': 1e-3, 'folder': sys.argv[1], **k})\n"
    return subprocess.Popen([sys.executable, "-c", head + code, *arguments], text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


def wait_for(process: subprocess.Popen, word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def finish(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    return output


# One process


def test_spends_add_up_across_openings(tmp_path):
    first = open_budget(tmp_path)
    assert first.spent == 0.0
    for number in range(3):
        entry = first.spend("run-1", number, ROUND)
    again = open_budget(tmp_path)
    again.spend("run-2", 0, ROUND)
    assert first.spent == again.spent == compose([ROUND] * 4, 1e-3)
    assert [e.run_id for e in again.entries()] == ["run-1"] * 3 + ["run-2"]
    assert again.entries()[2] == entry
    assert entry.epsilon == compose([ROUND] * 3, 1e-3)


def test_budgets_of_other_data_units_and_labels_are_apart(tmp_path):
    open_budget(tmp_path).spend("run", 0, ROUND)
    others = [open_budget(tmp_path, label="simulation"), open_budget(tmp_path, label="demo"),
              open_budget(tmp_path, fingerprint="sha256:ffff"),
              open_budget(tmp_path, unit="record")]
    assert [other.spent for other in others] == [0.0] * 4
    assert len({other.path for other in others}) == 4
    assert (others[2].fingerprint, others[3].unit) == ("sha256:ffff", "record")
    assert others[0].label == "simulation" and "simulation" in repr(others[0])
    with pytest.raises(BudgetError, match="simulation"):
        others[0].check(ROUND, 100_000)


def test_the_round_that_overspends_is_refused(tmp_path):
    budget = open_budget(tmp_path, epsilon=0.65)
    fits = budget.remaining_rounds(ROUND)
    assert compose([ROUND] * fits, 1e-3) <= 0.65 < compose([ROUND] * (fits + 1), 1e-3)
    budget.check(ROUND, fits)
    with pytest.raises(BudgetError, match=f"{fits} such rounds still fit"):
        budget.check(ROUND, fits + 1)
    for number in range(fits):
        budget.spend("run", number, ROUND)
    before = budget.path.read_bytes()
    with pytest.raises(BudgetError) as refused:
        budget.spend("run", fits, ROUND)
    message = str(refused.value)
    total = compose([ROUND] * (fits + 1), 1e-3)
    for part in ("epsilon 0.65", f"spent so far: {rounded_up(budget.spent, 6)}",
                 f"{rounded_up(total, 6)} with round",
                 "0 such rounds still fit", "Take more noise or a smaller sampling rate"):
        assert part in message
    assert budget.path.read_bytes() == before
    assert budget.remaining_rounds(ROUND) == 0
    budget.spend("run", fits - 1, ROUND)  # what is on file already costs nothing


@pytest.mark.parametrize("epsilon", [0.4, 3.0, 6.0])
def test_remaining_rounds_is_the_last_that_fits(tmp_path, epsilon):
    budget = open_budget(tmp_path, epsilon=epsilon)
    budget.spend("run", 0, Spend(3.0, 0.2, "patient", count=2))
    counted = [entry.spend for entry in budget.entries()]
    fits = budget.remaining_rounds(ROUND)
    assert fits > 0
    at_most = [*counted, *[ROUND] * fits]
    assert compose(at_most, 1e-3) <= epsilon < compose([*at_most, ROUND], 1e-3)


def test_a_repeated_release_counts_once_and_another_attempt_counts_again(tmp_path):
    budget = open_budget(tmp_path)
    first = budget.spend("run", 0, ROUND)
    assert budget.spend("run", 0, ROUND) == first
    assert open_budget(tmp_path).spend("run", 0, ROUND) == first
    assert len(budget.entries()) == 1
    with pytest.raises(BudgetError, match="attempt="):
        budget.spend("run", 0, Spend(3.0, 0.1, "patient"))
    budget.spend("run", 0, ROUND, attempt=1)
    assert budget.spent == compose([ROUND] * 2, 1e-3)


def test_an_existing_budget_cannot_be_changed(tmp_path):
    open_budget(tmp_path)
    for change in ({"epsilon": 2.0}, {"dp_delta": 1e-2}, {"adjacency": "replace_one"}):
        with pytest.raises(BudgetError, match=f"{next(iter(change))}.*simulation"):
            open_budget(tmp_path, **change)


def test_other_units_and_adjacencies_are_refused(tmp_path):
    budget = open_budget(tmp_path)
    for change in ({"unit": "record"}, {"adjacency": "replace_one"}):
        other = Spend(**{**ROUND.to_dict(), **change})
        for act in (lambda s=other: budget.spend("run", 0, s), lambda s=other: budget.check(s, 1),
                    lambda s=other: budget.remaining_rounds(s)):
            with pytest.raises(BudgetError, match=next(iter(change))):
                act()
    assert budget.entries() == ()


def test_a_reset_is_recorded_and_counts_anew(tmp_path):
    budget = open_budget(tmp_path, epsilon=0.6)
    while budget.remaining_rounds(ROUND):
        budget.spend("run", len(budget.entries()), ROUND)
    used = len(budget.entries())
    for arguments in ({"reason": "", "by": "A. Nurse"}, {"reason": "new consent", "by": " "}):
        with pytest.raises(BudgetError, match="who decides"):
            budget.reset(**arguments)
    budget.reset(reason="new consent", by="A. Nurse")
    assert budget.spent == 0.0
    budget.spend("run", 0, ROUND)  # the earlier one no longer counts, so this one must
    entries = open_budget(tmp_path, epsilon=0.6).entries()
    assert len(entries) == used + 2
    assert (entries[used].kind, entries[used].reason, entries[used].by) == (
        "reset", "new consent", "A. Nurse")
    assert [entry.kind for entry in entries[:used]] == ["spend"] * used


@pytest.mark.parametrize("bad", [
    {"epsilon": 0.0}, {"epsilon": float("inf")}, {"dp_delta": 0.0}, {"adjacency": "swap"},
    {"unit": ""}, {"fingerprint": ""}, {"label": " "}, {"label": "a\nb"}])
def test_bad_settings_are_refused(tmp_path, bad):
    with pytest.raises(SpecError, match=next(iter(bad))):
        open_budget(tmp_path, **bad)
    assert list(tmp_path.iterdir()) == []


def test_bad_rounds_are_refused(tmp_path):
    budget = open_budget(tmp_path)
    for arguments in (("", 0), ("run", -1), ("run", 1.0), ("run", True)):
        with pytest.raises(SpecError):
            budget.spend(*arguments, ROUND)
    with pytest.raises(SpecError, match="rounds"):
        budget.check(ROUND, 0)


def test_where_budgets_lie(tmp_path, monkeypatch):
    def folder():
        return open_budget(None).path.parent

    monkeypatch.setenv("FEDJAX_SECURE_HOME", str(tmp_path / "home"))
    assert folder() == tmp_path / "home" / "budgets"
    monkeypatch.delenv("FEDJAX_SECURE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "fedjax_secure" / "budgets"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert folder() == tmp_path / "user" / ".local" / "share" / "fedjax_secure" / "budgets"
    assert oct(open_budget(None).path.stat().st_mode & 0o777) == "0o600"


# A damaged file


def test_any_damage_is_refused(tmp_path):
    budget = open_budget(tmp_path)
    for number in range(3):
        budget.spend("run", number, ROUND)
    good = budget.path.read_bytes()
    lines = good.split(b"\n")
    document = json.loads(lines[2])
    document["spend"]["noise_multiplier"] = 200.0
    damaged = {
        "empty": b"", "one line": lines[0] + b"\n",
        "no last entry": b"\n".join([*lines[:3], lines[4], b""]),
        "no last lines": b"\n".join([*lines[:3], b""]),
        "swapped": b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "edited": b"\n".join([*lines[:2], json.dumps(document, sort_keys=True).encode(),
                              *lines[3:]]),
        "repeated": b"\n".join([*lines[:2], lines[1], *lines[2:]]),
        "not text": b"\xff" + good, "a list": b"[]\n[]\n",
    }
    damaged |= {f"torn at {cut}": good[:cut] for cut in range(1, len(good), 97)}
    for place in range(0, len(good), 41):
        damaged[f"byte {place}"] = (
            good[:place] + bytes([good[place] ^ 1]) + good[place + 1:])
    for name, content in damaged.items():
        budget.path.write_bytes(content)
        for act in (lambda: budget.spent, lambda: budget.spend("run", 9, ROUND),
                    lambda: open_budget(tmp_path)):
            with pytest.raises(BudgetError, match="backup"):
                act()
        assert budget.path.read_bytes() == content, name
    assert "unreadable" in repr(budget)
    budget.path.write_bytes(good)
    assert open_budget(tmp_path).spent == compose([ROUND] * 3, 1e-3)


def test_the_file_of_another_budget_and_a_missing_one_are_refused(tmp_path):
    budget = open_budget(tmp_path)
    other = open_budget(tmp_path, label="demo")
    budget.path.write_bytes(other.path.read_bytes())
    with pytest.raises(BudgetError, match="label"):
        budget.entries()
    budget.path.unlink()
    with pytest.raises(BudgetError, match="no such file"):
        budget.spend("run", 0, ROUND)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BudgetError, match="FEDJAX_SECURE_HOME"):
        open_budget(tmp_path / "file" / "below")


# Several processes


def test_two_processes_share_one_budget(tmp_path):
    budget = open_budget(tmp_path, epsilon=0.7)
    fits = budget.remaining_rounds(ROUND)
    code = """
from fedjax_secure.core.errors import BudgetError
b = budget(epsilon=0.7, lock_timeout_seconds=60.0)
print("ready", flush=True)
done = 0
try:
    while True:
        b.spend(sys.argv[2], done, ROUND)
        done += 1
except BudgetError as error:
    assert "still fit" in str(error), error
print(done)
"""
    processes = [start(code, str(tmp_path), name) for name in ("a", "b")]
    for process in processes:
        wait_for(process, "ready")
    done = [int(finish(process)) for process in processes]
    assert sum(done) == fits == len(budget.entries())
    names = [entry.run_id for entry in budget.entries()]
    assert [names.count("a"), names.count("b")] == done
    assert budget.spent == compose([ROUND] * fits, 1e-3)


def test_a_second_spender_waits_and_then_hears_who_holds_it(tmp_path):
    budget = open_budget(tmp_path, lock_timeout_seconds=0.3)
    # The other process stops in the middle of a spend, with the lock held.
    code = """
b = budget()
write = b._file.write
def slow(history):
    print("holding", flush=True)
    time.sleep(float(sys.argv[2]))
    write(history)
b._file.write = slow
b.spend("the other run", 7, ROUND)
"""
    process = start(code, str(tmp_path), "600")
    try:
        wait_for(process, "holding")
        started = time.monotonic()
        with pytest.raises(BudgetError) as refused:
            budget.spend("run", 0, ROUND)
        assert 0.3 <= time.monotonic() - started < 30
        assert f"process {process.pid} (run 'the other run', round 7)" in str(refused.value)
        assert budget.entries() == ()  # reading needs no lock
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    budget.spend("run", 0, ROUND)  # a dead holder holds nothing

    process = start(code, str(tmp_path), "0.2")
    wait_for(process, "holding")
    open_budget(tmp_path, lock_timeout_seconds=60.0).spend("run", 1, ROUND)
    finish(process)
    assert [e.run_id for e in budget.entries()] == ["run", "the other run", "run"]


def test_a_killed_spender_loses_nothing_it_was_told_is_spent(tmp_path):
    budget = open_budget(tmp_path, epsilon=50.0)
    code = """
b = budget(epsilon=50.0)
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    b.spend("run", number, ROUND)
    print(number, flush=True)
    number += 1
"""
    acknowledged: set[int] = set()
    for attempt in range(4):
        process = start(code, str(tmp_path), str(len(budget.entries())))
        wait_for(process, "ready")
        time.sleep(0.12 + 0.043 * attempt)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        acknowledged |= {int(line) for line in output.splitlines() if line}
        on_file = [entry.round for entry in open_budget(tmp_path, epsilon=50.0).entries()]
        assert on_file == list(range(len(on_file)))
        assert acknowledged <= set(on_file)
    assert acknowledged
    # A writer killed between its temporary file and the rename leaves that file; the next
    # spend removes it.
    left_over = budget.path.with_name(budget.path.stem + "abc.tmp")
    left_over.write_text("half a li")
    budget.spend("run", 10_000, ROUND)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".lock"]


def test_a_spend_is_synced_before_it_is_acknowledged(tmp_path, monkeypatch):
    budget = open_budget(tmp_path)
    steps = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle):
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    budget.spend("run", 0, ROUND)
    assert steps == ["file", "rename", "folder"]

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BudgetError, match="No space left.*decrypt nothing"):
        budget.spend("run", 1, ROUND)
    monkeypatch.undo()
    assert len(open_budget(tmp_path).entries()) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".lock"]


def test_a_budget_of_the_first_release_opens_and_goes_on(tmp_path):
    written = Path(__file__).parents[1] / "vectors" / "budget_of_release_1.jsonl"
    options = {"epsilon": 3.0, "dp_delta": 1e-5, "label": "simulation", "folder": tmp_path}
    path = Budget.open("sha256:12ab", "patient", **options).path
    shutil.copy(written, path)
    budget = Budget.open("sha256:12ab", "patient", **options)
    kinds = [entry.kind for entry in budget.entries()]
    assert kinds == ["spend", "spend", "reset", "spend"]
    assert budget.entries()[1].spend.count == 2 and budget.entries()[1].spend.kind == "gaussian"
    assert budget.spent == pytest.approx(budget.entries()[3].epsilon)
    again = Spend(noise_multiplier=1.25, sampling_rate=0.1, unit="patient")
    assert budget.spend("run-2", 0, again, attempt=1).index == 3  # known, and not paid twice
    vote = Spend(None, 1.0, "patient", kind="pure", parameters={"epsilon": 0.25})
    budget.spend("run-3", 0, vote)
    assert Budget.open("sha256:12ab", "patient", **options).entries()[-1].spend == vote
    # What the first release wrote stays byte for byte, but for the last line.
    assert path.read_text().startswith("\n".join(written.read_text().splitlines()[:-1]) + "\n")


def test_kinds_and_samplings_share_a_budget_and_its_messages(tmp_path):
    budget = Budget.open("sha256:12ab", "client", epsilon=2.0, dp_delta=1e-5, folder=tmp_path)
    skellam = Spend(None, 1.0, "client", kind="skellam",
                    parameters={"l1": 300.0, "l2": 50.0, "variance": 40_000.0})
    fixed = Spend(4.0, 0.1, "client", sampling="fixed_size")
    budget.spend("run-1", 0, fixed)
    by_loss = budget.spent
    budget.spend("run-1", 1, skellam)
    assert by_loss < budget.spent == compose([fixed, skellam], 1e-5, accountant="rdp")
    with pytest.raises(BudgetError, match="skellam l1 300, l2 50, variance 4e.04, sampling"):
        budget.check(skellam, 50)
    with pytest.raises(BudgetError, match="fixed size"):
        budget.check(fixed, 5000)
