"""Run by test_dropping_out_of_rounds: a federation that loses clients, and may kill itself.

    python killed_dropping_out.py FOLDER AGGREGATOR SEED ROUNDS KILL_AT

As in killed_run: SEED is a number or "none", and with KILL_AT = k > 0 the process kills itself just
before its k-th call of os.fsync. A round that is refused for lack of shares is run again.
"""

from __future__ import annotations

import json
import os
import signal
import sys

folder, aggregator, seed, rounds, kill_at = sys.argv[1:]
left = int(kill_at)
fsync = os.fsync
when = []


def fsync_or_die(descriptor: int) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    when.append(where)
    fsync(descriptor)


os.fsync = fsync_or_die
where = "set-up"

import numpy as np  # noqa: E402

import fedjax_secure as fs  # noqa: E402
from fedjax_secure.core import OpeningError, model_digest  # noqa: E402
from fedjax_secure.data import FederatedDataset  # noqa: E402

x = np.random.default_rng(0).normal(size=(60, 2))
y, offsets = (x[:, 0] > 0).astype(np.int32), np.arange(0, 61, 5)
data = FederatedDataset(
    name="made up", clients=tuple(f"c{i}" for i in range(12)), x=x, y=y, offsets=offsets,
    test_x=x, test_y=y, test_offsets=offsets, feature_names=("p", "q"), classes=("0", "1"))
seed = None if seed == "none" else int(seed)
label = None if seed is None else "simulation"
budget = fs.privacy.Budget.open(
    data.population_fingerprint, data.client_unit, epsilon=1000.0, dp_delta=1e-5, label=label,
    folder=folder + "/budget")
ledger = None if aggregator == "semi-honest" else fs.ledger.embedded(folder + "/ledger")
drawn = fs.selection.poisson_clients(0.5, everyone_answers=True)
federation = fs.Federation(
    fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(0.1),
    fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=16),
             fs.privacy.discrete_gaussian(1.0, missing_shares=3),
             fs.he.encrypt(fs.he.public_key())),
    selection=fs.selection.dropping_out(drawn, 0.25), budget=budget, ledger=ledger,
    folder=folder + "/run", seed=seed, aggregator=aggregator)
refused = []
with federation:
    state = federation.init()
    resumed = state.round
    while state.round < int(rounds):
        where = f"round {state.round + 1}"
        try:
            state, record = next(federation.run(state, rounds=int(rounds)))
        except OpeningError as error:
            assert "clients that take part" in str(error), error
            assert state.round + 1 not in [entry.round for entry in budget.entries()]
            refused.append(state.round + 1)
    print(json.dumps({
        "resumed": resumed, "refused": refused, "when": when,
        "model": model_digest(state.params).hex(),
        "clients": [record.clients for record in federation.records],
        "noise": [[record.dp["noise_stddev_in_sum"], record.dp["noise_stddev_accounted"]]
                  for record in federation.records],
        "spends": [[entry.round, entry.attempt] for entry in budget.entries()],
        "epsilon": federation.records[-1].dp["epsilon"], "spent": budget.spent,
        "submitted": [] if ledger is None else [
            event.args["round"] for event in ledger.events() if event.name == "UpdateSubmitted"],
    }))
