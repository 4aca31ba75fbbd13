"""Stages' states from round to round, and noise that is added when a sum is opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import BudgetError, OpeningError, ResumeError, SpecError, model_digest
from fedjax_secure.he.openfhe import env

DATA = fs.data.heart_disease()
LINEAR = fs.models.logistic_regression(DATA)
SCRIPT = Path(__file__).with_name("killed_adaptive_run.py")


def _chain(trust="distributed", *, seal=False, missing=0):
    options = {"missing_shares": missing} if missing else {}
    stages = [fs.privacy.rotate(), fs.privacy.adaptive_clip(0.05, 0.9, quantile_share=0.9),
              fs.privacy.quantise(bits=24),
              fs.privacy.discrete_gaussian(1.0, trust=trust, **options)]
    if seal:
        stages.append(fs.he.encrypt(fs.he.public_key()))
    return fs.chain(*stages)


def _budget(folder, adjacency="add_remove"):
    return fs.privacy.Budget.open(
        DATA.population_fingerprint, DATA.client_unit, epsilon=1e4, dp_delta=1e-3,
        adjacency=adjacency, folder=folder, label="simulation")


def _federation(folder, trust="distributed", *, seed=2, **options):
    adjacency = "replace_one" if trust == "local" else "add_remove"
    chain = {name: options.pop(name) for name in ("seal", "missing") if name in options}
    return fs.Federation(
        LINEAR, DATA, fs.algorithms.fed_avg(0.1), _chain(trust, **chain), seed=seed,
        budget=_budget(folder / "budget", adjacency), folder=folder / "run", **options)


def _finish(federation, rounds):
    state = federation.init()
    for state, _ in federation.run(state, rounds=rounds):
        pass
    return state


def test_a_state_moves_each_round_and_clients_of_the_next_use_it(tmp_path):
    with _federation(tmp_path) as federation:
        state = _finish(federation, 3)
        bounds = [record.metrics["adaptive_clip/l2_bound"] for record in federation.records]
    # Everybody's update is longer than 0.05, so the norm rises by exp(0.2 * (0.9 - fraction)).
    assert bounds[0] == pytest.approx(0.05)
    last = float(state.stage_states["adaptive_clip"]["l2_bound"])
    assert bounds[0] < bounds[1] < bounds[2] < last
    assert int(state.stage_states["rotate"]["round"]) == 3
    assert set(state.stage_states) == {"rotate", "adaptive_clip"}  # no table, no constant


@pytest.mark.parametrize(
    "trust", ["distributed", "central", pytest.param("local", marks=pytest.mark.slow)])
def test_a_simulation_comes_to_the_federation_s_model_and_states(tmp_path, trust):
    simulation = fs.Simulation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), _chain(trust), seed=2)
    for simulated, report in simulation.run(simulation.init(), rounds=2):
        pass
    with _federation(tmp_path, trust) as federation:
        state = _finish(federation, 2)
        record = federation.records[-1]
    assert model_digest(state.params) == model_digest(simulated.params)
    assert model_digest(state.stage_states) == model_digest(simulated.stage_states)
    names = {"adaptive_clip/l2_bound", "adaptive_clip/fraction_within"}
    assert set(report.stages) == names
    assert all(record.metrics[name] == report.stages[name] for name in names)
    assert record.dp["trust"] == trust and record.dp["arithmetic"] == "integer"
    assert record.dp["unit"] == DATA.client_unit


@pytest.mark.parametrize("seal", [False, True])
def test_a_round_resumed_from_disk_has_the_states_it_began_with(tmp_path, seal):
    with _federation(tmp_path / "whole", seal=seal) as federation:
        whole = _finish(federation, 3)
    with _federation(tmp_path / "halves", seal=seal) as federation:
        half = _finish(federation, 1)
    with _federation(tmp_path / "halves", seal=seal) as federation:
        again = federation.init()
        assert model_digest(again.stage_states) == model_digest(half.stage_states)
        for again, _ in federation.run(again, rounds=3):
            pass
    assert model_digest(again.params) == model_digest(whole.params)
    assert model_digest(again.stage_states) == model_digest(whole.stage_states)


class _Interrupted(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_central_noise_is_drawn_once_for_a_sum_and_stored_with_it(tmp_path, aggregator):
    # In secure mode every draw is another: a second draw for the same sum would show here.
    budget = fs.privacy.Budget.open(DATA.population_fingerprint, DATA.client_unit, epsilon=1e4,
                                    dp_delta=1e-3, folder=tmp_path / "budget")

    def build():
        return fs.Federation(
            LINEAR, DATA, fs.algorithms.fed_avg(0.1), _chain("central", seal=True), budget=budget,
            folder=tmp_path / "run", aggregator=aggregator)

    def crash(*arguments):
        raise _Interrupted

    with build() as federation:
        state = federation.init()
        federation._journal.finish = crash
        with pytest.raises(_Interrupted):
            next(federation.run(state, rounds=1))
        released = federation._opener.opened(1)
        again = federation._opener.opened(1)
        assert again is released
    with build() as federation:
        state, record = next(federation.run(federation.init(), rounds=1))
        assert federation._opener.opened(1).digest == released.digest
        assert record.sum_digest == released.digest.hex()
        assert [entry.round for entry in budget.entries()] == [1]
        assert record.dp["noise_stddev_in_sum"] == record.dp["noise_stddev_accounted"]


def _unopened(build):
    """A round whose messages are on disk, and whose sum nobody has opened."""
    def crash(*arguments):
        raise _Interrupted

    with build() as federation:
        federation._opener.open = crash
        with pytest.raises(_Interrupted):
            next(federation.run(federation.init(), rounds=1))


def _central(kind):
    noise = (fs.privacy.discrete_gaussian(1.0, trust="central") if kind == "independent" else
             fs.privacy.correlated_noise(4.0, fs.privacy.tree(rounds=2)))
    return fs.chain(fs.privacy.clip(0.1), fs.privacy.quantise(bits=28, scale=2.0**12), noise)


@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_copies_of_a_folder_release_one_noised_sum_for_one_spend(tmp_path, kind):
    # Two draws for one sum would have half the variance in their mean. In secure mode.
    budget = fs.privacy.Budget.open(DATA.population_fingerprint, DATA.client_unit, epsilon=1e4,
                                    dp_delta=1e-3, folder=tmp_path / "budget")

    def build(name="run"):
        return fs.Federation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), _central(kind),
                             budget=budget, folder=tmp_path / name)

    _unopened(build)
    for name in ("copy", "lost"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    sums = []
    for name in ("run", "copy"):
        with build(name) as federation:
            _, record = next(federation.run(federation.init(), rounds=1))
            sums.append(record.sum_digest)
        assert not (tmp_path / name / "opener" / "noise-key-000001").exists()
    assert sums[0] == sums[1]
    assert [entry.round for entry in budget.entries()] == [1]
    # Without the key it is not known what was released: that costs again, or cannot go on.
    (tmp_path / "lost" / "opener" / "noise-key-000001").unlink()
    with build("lost") as federation:
        run = federation.run(federation.init(), rounds=1)
        if kind == "independent":
            assert next(run)[1].sum_digest != sums[0]
        else:
            with pytest.raises(ResumeError, match="not released before"):
                next(run)
    assert [entry.round for entry in budget.entries()] == [1] * (1 + (kind == "independent"))


@pytest.mark.openfhe
@pytest.mark.skipif(env.find() is None, reason=f"OpenFHE is not set up; run: {env.COMMAND}")
def test_copies_whose_keys_are_gone_release_twice_and_pay_twice(tmp_path):
    # OpenFHE's keys end with its process: clients of each copy answer anew, with other noise.
    budget = fs.privacy.Budget.open(DATA.population_fingerprint, DATA.client_unit, epsilon=1e4,
                                    dp_delta=1e-3, folder=tmp_path / "budget")

    def build(name="run"):
        chain = fs.chain(fs.privacy.clip(0.1), fs.privacy.quantise(bits=24),
                         fs.privacy.discrete_gaussian(1.0, trust="central"),
                         fs.he.encrypt(fs.he.openfhe_bgv()))
        return fs.Federation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), chain, budget=budget,
                             folder=tmp_path / name)

    _unopened(build)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    sums = []
    for name in ("run", "copy"):
        with build(name) as federation:
            sums.append(next(federation.run(federation.init(), rounds=1))[1].sum_digest)
    assert sums[0] != sums[1]
    rounds = [(entry.round, entry.attempt) for entry in budget.entries()]
    # the round before the crash was paid for, and never opened: nobody can know that
    assert len(set(rounds)) == len(rounds) == 3 and {number for number, _ in rounds} == {1}


def test_other_messages_of_a_round_get_other_noise(tmp_path):
    budget = fs.privacy.Budget.open(DATA.population_fingerprint, DATA.client_unit, epsilon=1e4,
                                    dp_delta=1e-3, folder=tmp_path / "budget")
    with fs.Federation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), _central("independent"),
                       budget=budget, folder=tmp_path / "run") as federation:
        release, total = federation._opener._release, np.zeros(LINEAR.dim, np.uint32)
        release.prepare(1)
        drawn = [release(1, total, digest).tolist() for digest in (b"a", b"a", b"b")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_state_of_another_chain_is_refused():
    options = LINEAR, DATA, fs.algorithms.fed_avg(0.1)
    plain, moving = fs.Simulation(*options), fs.Simulation(*options, _chain())
    for simulation, state in ((plain, moving.init()), (moving, plain.init())):
        with pytest.raises(SpecError, match="the state is of another chain"):
            next(simulation.run(state, rounds=1))


def test_what_the_opener_stores_and_the_record_names_is_the_noised_sum(tmp_path):
    with _federation(tmp_path, "central") as federation:
        _finish(federation, 1)
        opened = federation._opener.opened(1).total.astype(np.int64)
        spec = federation.spec
        payloads = fs.Simulation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), fs.chain(
            fs.privacy.rotate(), fs.privacy.adaptive_clip(0.05, 0.9, quantile_share=0.9),
            fs.privacy.quantise(bits=24, scale=spec.scale)), seed=2)
        state = payloads.init()
        states = payloads._states
        cohort = payloads.rounds.draw(1, state)
        plain = np.asarray(payloads.rounds.total(cohort, state, payloads._keys(cohort), states)[0])
    half = spec.modulus // 2
    noise = (opened - plain.astype(np.int64) + half) % spec.modulus - half
    # 16 values: a mean square outside a factor of 8 has probability below 1e-6 (chi-square).
    assert 1 / 8 < np.mean(noise**2) / spec.noise_stddev**2 < 8


def test_records_say_how_much_noise_was_there(tmp_path):
    with _federation(tmp_path, missing=1) as federation:
        _finish(federation, 1)
        dp, spec = federation.records[0].dp, federation.spec
    assert spec.min_clients == dp["noise_shares_accounted"] == 3
    assert dp["noise_stddev_in_sum"] == pytest.approx(dp["noise_stddev_accounted"] * (4 / 3)**0.5)
    assert dp["assumes"] == "at most 1 noise share missing or known"
    json.dumps(dict(dp), allow_nan=False)


def test_a_sum_with_too_few_shares_is_not_opened(tmp_path):
    with _federation(tmp_path, missing=1) as federation:
        state = federation.init()
        draw = federation._rounds.selection.draw

        def two_answer(source, round, candidates, memory):
            cohort = draw(source, round, candidates, memory)
            return cohort._replace(alive=np.array([True, True, False, False]))

        federation._rounds.selection = federation._rounds.selection._replace(draw=two_answer)
        with pytest.raises(OpeningError, match="at least 3 clients that take part, got 2"):
            next(federation.run(state, rounds=1))
        assert not federation.budget.entries()


def test_local_noise_needs_a_budget_of_its_adjacency(tmp_path):
    with pytest.raises(BudgetError, match="adjacency 'replace_one'"):
        fs.Federation(LINEAR, DATA, fs.algorithms.fed_avg(0.1), _chain("local"), seed=2,
                      budget=_budget(tmp_path / "budget"), folder=tmp_path / "run")


def test_another_trust_is_another_run(tmp_path):
    _federation(tmp_path).close()
    with pytest.raises(ResumeError, match="mechanism="):
        _federation(tmp_path, "central")


# -- killed at any moment --------------------------------------------------------------------------


def _run(folder, kill_at=0, rounds=3):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(rounds), str(kill_at)],
        capture_output=True, text=True, timeout=300, env=dict(os.environ))


def _killed_and_resumed(folder, kill_at):
    killed = _run(folder, kill_at)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    done = _run(folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_killed_between_its_rounds_ends_alike(tmp_path):
    whole = json.loads(_run(tmp_path / "whole").stdout)
    for place, fraction in enumerate((0.5, 0.9)):
        found = _killed_and_resumed(tmp_path / str(place), int(fraction * whole["fsyncs"]))
        assert (found["model"], found["states"]) == (whole["model"], whole["states"])
        assert found["bounds"] == whole["bounds"]


@pytest.mark.slow
def test_a_run_killed_at_every_durable_step_ends_alike(tmp_path):
    whole = json.loads(_run(tmp_path / "whole").stdout)
    for kill_at in range(1, whole["fsyncs"] + 1):
        found = _killed_and_resumed(tmp_path / str(kill_at), kill_at)
        assert (found["model"], found["states"]) == (whole["model"], whole["states"]), kill_at
