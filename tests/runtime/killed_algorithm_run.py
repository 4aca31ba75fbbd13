"""Run by test_algorithms_resume: federations whose clients or selections remember, that may be
killed.

    python killed_algorithm_run.py FOLDER NAME KILL_AT

With KILL_AT = k the process kills itself with SIGKILL just before its k-th call of os.fsync.
"""

from __future__ import annotations

import os
import signal
import sys

ROUNDS = 3


def build(folder, name):
    """A small seeded federation; its name says what is in it."""
    import fedjax_secure as fs

    data = fs.data.heart_disease()
    model = fs.models.logistic_regression(data)
    some = fs.selection.uniform_clients(3)
    integers = (fs.privacy.clip(1.0), fs.privacy.quantise(bits=24))
    algorithm, selection, aggregation, more = {
        "scaffold": (fs.algorithms.scaffold(0.05), some, fs.chain(), {"chunk_clients": 2}),
        "fed_dyn": (fs.algorithms.fed_dyn(0.05), some, fs.chain(), {"aggregator": "semi-honest"}),
        "ditto, encrypted": (fs.algorithms.ditto(0.1), some,
                             fs.chain(*integers, fs.he.encrypt(fs.he.public_key())),
                             {"chunk_clients": 2}),
        "oort": (fs.algorithms.fed_avg(0.1), fs.selection.oort(2), fs.chain(), {}),
    }[name]
    return fs.Federation(model, data, algorithm, aggregation, selection=selection, seed=11,
                         folder=folder, **more)


def finish(federation):
    """Runs to the end; returns the model, the clients' states and the selection's memory."""
    import jax
    import numpy as np

    state = federation.init()
    for state, _ in federation.run(state, rounds=ROUNDS):
        pass
    assert [record.round for record in federation.records] == list(range(1, ROUNDS + 1))
    states = federation._rounds.states
    everyone = range(federation.data.num_clients)
    kept = [] if states is None else [states.read(everyone), [states.known(c) for c in everyone]]
    leaves = jax.tree.leaves((state.params, state.opt_state, state.selection))
    return [np.asarray(part) for part in (*leaves, *kept)]


if __name__ == "__main__":
    folder, name, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    calls, fsync = 0, os.fsync

    def fsync_or_die(descriptor: int) -> None:
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die
    with build(folder, name) as federation:
        finish(federation)
