"""Run by test_stage_states in a process of its own: adaptive clipping and central noise.

    python killed_adaptive_run.py FOLDER ROUNDS KILL_AT

With KILL_AT = k > 0 the process kills itself just before its k-th call of os.fsync. Without, it
runs to the end and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

folder, rounds, kill_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
left = kill_at
fsync = os.fsync


def fsync_or_die(descriptor: int) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)


os.fsync = fsync_or_die

import fedjax_secure as fs  # noqa: E402
from fedjax_secure.core import model_digest  # noqa: E402

data = fs.data.heart_disease()
chain = fs.chain(
    fs.privacy.rotate(), fs.privacy.adaptive_clip(0.05, 0.9, quantile_share=0.9),
    fs.privacy.quantise(bits=24), fs.privacy.discrete_gaussian(1.0, trust="central"))
budget = fs.privacy.Budget.open(
    data.population_fingerprint, data.client_unit, epsilon=1e4, dp_delta=1e-3,
    folder=folder / "budget", label="simulation")
with fs.Federation(fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(0.1), chain,
                   seed=9, budget=budget, folder=folder / "run") as federation:
    state = federation.init()
    for state, _ in federation.run(state, rounds=rounds):
        pass
    print(json.dumps({
        "model": model_digest(state.params).hex(),
        "states": model_digest(state.stage_states).hex(),
        "bounds": [record.metrics["adaptive_clip/l2_bound"] for record in federation.records],
        "spends": [entry.round for entry in budget.entries()], "fsyncs": -left,
    }))
