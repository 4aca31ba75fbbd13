"""Writes one_run_audits.json: lower bounds on epsilon by jax_privacy, which the tests compare with.

Run it in an environment of its own, with jax_privacy 2.0.0 and what it imports (of which
``auditing`` itself needs numpy, scipy and dp_accounting only):

    python tests/vectors/make_one_run_audits.py > tests/vectors/one_run_audits.json

It calls the library's own bound for a fixed number of guesses (``auditing._epsilon_one_run``, and
``_epsilon_one_run_fdp`` for a Gaussian's trade-off curve), its p-value, and its Clopper-Pearson
bound with a threshold that is given.
"""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
from jax_privacy import auditing

ONE_RUN = ["canaries", "guesses", "correct", "dp_delta", "confidence", "p_value_at_epsilon_1",
           "epsilon", "gaussian_epsilon"]
RUNS = ["true_positives", "runs_with", "false_positives", "runs_without", "dp_delta",
        "confidence", "epsilon"]


def main() -> None:
    rows = []
    for canaries, guesses, correct in (
            (1, 1, 1), (1, 1, 0), (10, 10, 10), (10, 4, 0), (100, 100, 60), (1000, 100, 75),
            (1000, 100, 90), (1000, 100, 100), (1000, 1000, 600), (5000, 40, 40),
            (5000, 2000, 1500), (100_000, 1510, 1439)):
        for dp_delta in (1e-6, 1e-4, 1e-3):
            for confidence in (0.9, 0.95, 0.999):
                size = (0.0, canaries, guesses, correct, 1.0 - confidence, dp_delta)
                rows.append([
                    canaries, guesses, correct, dp_delta, confidence,
                    float(auditing._one_run_p_value(canaries, guesses, correct, 1.0, dp_delta)),
                    float(auditing._epsilon_one_run(*size)),
                    float(auditing._epsilon_one_run_fdp(*size))])
    runs = []
    random = np.random.default_rng(1)
    for shift, count, dp_delta in ((1.0, 2000, 1e-2), (3.0, 500, 1e-5), (0.0, 400, 1e-5)):
        scores_with = np.round(random.normal(size=count) + shift, 4)
        scores_without = np.round(random.normal(size=count), 4)
        auditor = auditing.CanaryScoreAuditor(scores_with, scores_without)
        epsilon = auditor.epsilon_clopper_pearson(
            0.05, dp_delta, threshold_strategy=auditing.Explicit(1.5))
        runs.append([
            int(np.sum(scores_with >= 1.5)), count, int(np.sum(scores_without >= 1.5)), count,
            dp_delta, 0.95, float(epsilon)])
    version = importlib.metadata.version("jax_privacy")
    parts = {
        "source": json.dumps(f"jax_privacy {version}, auditing.py; see make_one_run_audits.py"),
        "one_run_columns": json.dumps(ONE_RUN), "one_run": _lines(rows),
        "runs_columns": json.dumps(RUNS), "runs": _lines(runs)}
    print("{" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "}")


def _lines(rows: list[list]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


if __name__ == "__main__":
    main()
