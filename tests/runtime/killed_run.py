"""Run by test_resume in a process of its own: a small federation that may kill itself.

    python killed_run.py FOLDER ENCRYPTION SEED ROUNDS KILL_AT

SEED is a number or "none". With KILL_AT = k > 0 the process kills itself with SIGKILL just before
its k-th call of os.fsync, so that every place where something becomes durable can be the last one
reached. Without, it runs to the end and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys

folder, encryption, seed, rounds, kill_at = sys.argv[1:]
left = int(kill_at)
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

plan = fs.FederationPlan(rounds=int(rounds), target_epsilon=4.0, dp_delta=1e-3,
                         encryption=encryption, seed=None if seed == "none" else int(seed))
with plan.build(folder) as federation:
    state = federation.init()
    resumed = state.round
    for state, _ in federation.run(state, rounds=plan.rounds):
        pass
    entries = federation.budget.entries()
    print(json.dumps({
        "resumed": resumed, "model": model_digest(state.params).hex(),
        "rounds": [record.round for record in federation.records],
        "spends": [[entry.run_id, entry.round, entry.attempt] for entry in entries],
        "head": federation.ledger.head, "epsilon": federation.records[-1].dp["epsilon"],
        "events": [[event.name, event.args["round"]] for event in
                   federation.ledger.events() if "round" in event.args],
        "fsyncs": -left,
    }))
