"""Makes correlated_noise.json: what jax-privacy computes of banded and tree strategies.

Run it in an environment of its own: ``pip install jax-privacy==2.0.0``, then
``python tests/vectors/make_correlated_noise.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
from jax_privacy.matrix_factorization import banded, sensitivity, toeplitz

jax.config.update("jax_enable_x64", True)


def nodes(rounds: int) -> np.ndarray:
    """The matrix of all whole nodes of a binary tree over the rounds."""
    rows = []
    for height in range(rounds.bit_length()):
        for place in range(rounds >> height):
            row = np.zeros(rounds)
            row[place << height:(place + 1) << height] = 1
            rows.append(row)
    return np.array(rows)


def toeplitz_case(rounds: int, bands: int) -> dict:
    best = toeplitz.optimize_banded_toeplitz(rounds, bands)
    error = np.asarray(toeplitz.per_query_error(strategy_coef=best, n=rounds))
    squared = {str(most): float(toeplitz.minsep_sensitivity_squared(best, bands, most, rounds))
               for most in (1, 2, None)}
    return {"rounds": rounds, "bands": bands, "coefficients": np.asarray(best).tolist(),
            "mean_error": float(error.mean()), "max_error": float(error.max()),
            "squared_sensitivity": squared}


def banded_case(rounds: int, bands: int) -> dict:
    best = banded.optimize(rounds, bands=bands)
    error = np.asarray(banded.per_query_error(best))
    matrix = np.asarray(best.materialize())
    return {"rounds": rounds, "bands": bands, "mean_error": float(error.mean()),
            "max_error": float(error.max()),
            "band": [[float(matrix[t, t - j]) if j <= t else 0.0 for j in range(bands)]
                     for t in range(rounds)]}


def tree_case(rounds: int, separation: int, most: int | None) -> dict:
    bound = sensitivity.get_min_sep_sensitivity_upper_bound(
        jnp.asarray(nodes(rounds)), min_sep=separation, max_participations=most)
    return {"rounds": rounds, "separation": separation, "most": most, "at_most": float(bound)}


if __name__ == "__main__":
    made = {
        "made with": {"jax_privacy": "2.0.0", "jax": jax.__version__,
                      "module": jax_privacy.__name__ + ".matrix_factorization"},
        "toeplitz": [toeplitz_case(*case) for case in ((16, 4), (64, 8), (64, 64), (256, 16),
                                                       (1024, 32))],
        "banded": [banded_case(*case) for case in ((16, 4), (64, 8))],
        "trees": [tree_case(*case) for case in ((16, 4, None), (16, 16, 1), (16, 5, 2),
                                                (64, 16, None), (64, 8, 3))],
        "trees in epochs": [
            {"rounds": rounds, "epochs": epochs, "sensitivity": float(
                sensitivity.fixed_epoch_sensitivity(jnp.asarray(nodes(rounds)), epochs))}
            for rounds, epochs in ((16, 4), (64, 4))],
    }
    path = Path(__file__).with_name("correlated_noise.json")
    path.write_text(json.dumps(made, indent=1) + "\n")
