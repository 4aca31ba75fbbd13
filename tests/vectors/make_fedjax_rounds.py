"""Makes fedjax_rounds.json: parameters after some rounds of FedJAX 0.0.17's algorithms.

FedJAX is no dependency of this package and runs in an environment of its own:

    uv venv --python 3.11 fedjax-env
    uv pip install --python fedjax-env/bin/python fedjax==0.0.17
    fedjax-env/bin/python tests/vectors/make_fedjax_rounds.py

Softmax regression on six clients of unequal sizes, four of them in each round; records are used
in their order. Sizes are multiples of the batch size: FedJAX fills a smaller last batch up with
further records of the client.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.tree_map = jax.tree_util.tree_map  # JAX took the name away in 0.6, FedJAX 0.0.17 needs it
import fedjax  # noqa: E402

SIZES = (8, 12, 4, 20, 8, 16)
COHORTS = ((0, 1, 2, 3), (1, 3, 4, 5), (0, 2, 4, 5), (2, 3, 5, 1))
FEATURES, CLASSES, BATCH_SIZE, LEARNING_RATE = 4, 3, 4, 0.2


def main() -> None:
    random = np.random.default_rng(17)
    x = random.normal(size=(sum(SIZES), FEATURES)).astype(np.float32)
    y = random.integers(0, CLASSES, sum(SIZES)).astype(np.int32)
    first = {
        "bias": random.normal(size=CLASSES).astype(np.float32),
        "kernel": random.normal(size=(FEATURES, CLASSES)).astype(np.float32),
    }
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    data = fedjax.InMemoryFederatedData(
        {c: {"x": x[a:b], "y": y[a:b]}
         for c, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))})

    def losses(params, batch, rng):
        logits = jax.nn.log_softmax(batch["x"] @ params["kernel"] + params["bias"])
        return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]

    batches = fedjax.ShuffleRepeatBatchHParams(
        batch_size=BATCH_SIZE, num_epochs=1, skip_shuffle=True)
    looks = fedjax.PaddedBatchHParams(batch_size=BATCH_SIZE)
    make, optimizers = fedjax.algorithms, fedjax.optimizers
    client = optimizers.sgd(LEARNING_RATE)

    def averaged(server):
        return make.fed_avg.federated_averaging(fedjax.grad(losses), client, server, batches)

    algorithms = {
        "fed_avg": averaged(optimizers.sgd(1.0)),
        "fed_avg, server sgd(0.7, momentum=0.8)": averaged(optimizers.sgd(0.7, momentum=0.8)),
        "fed_avg, server adam(0.05)": averaged(optimizers.adam(0.05)),
        "fed_avg, server yogi(0.05)": averaged(optimizers.yogi(0.05)),
        "fed_avg, server adagrad(0.3, initial_accumulator_value=0.1, eps=1e-12)": averaged(
            optimizers.adagrad(0.3, initial_accumulator_value=0.1, eps=1e-12)),
        "fed_prox, proximal_weight=0.5": make.fed_prox.fed_prox(
            losses, client, optimizers.sgd(1.0), batches, proximal_weight=0.5),
        "mime_lite, base sgd(0.1, momentum=0.9)": make.mime_lite.mime_lite(
            losses, optimizers.sgd(0.1, momentum=0.9), batches, looks, server_learning_rate=1.0),
        "mime_lite, base adam(0.02), server_learning_rate 0.6": make.mime_lite.mime_lite(
            losses, optimizers.adam(0.02), batches, looks, server_learning_rate=0.6),
    }
    after = {}
    for name, algorithm in algorithms.items():
        state = algorithm.init(jax.tree_util.tree_map(jnp.asarray, first))
        for number, cohort in enumerate(COHORTS):
            keys = jax.random.split(jax.random.PRNGKey(number), len(cohort))
            chosen = zip(data.get_clients(cohort), keys, strict=True)
            clients = [(c, part, key) for (c, part), key in chosen]
            state, _ = algorithm.apply(state, clients)
        after[name] = _listed(state.params)
    found = {
        "source": f"FedJAX {importlib.metadata.version('fedjax')}, jax {jax.__version__}; "
                  "made by make_fedjax_rounds.py",
        "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "cohorts": COHORTS,
        "sizes": SIZES, "x": _listed(x), "y": y.tolist(), "first": _listed(first), "after": after,
    }
    path = Path(__file__).with_name("fedjax_rounds.json")
    path.write_text(json.dumps(found, indent=1).replace("\n    ", " ") + "\n")


def _listed(tree):
    return jax.tree_util.tree_map(lambda part: np.round(np.asarray(part), 8).tolist(), tree)


if __name__ == "__main__":
    main()
