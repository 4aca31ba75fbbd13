"""FedJAX's federated averaging: a worker of the engine benchmark."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import engine_work
import jax
import jax.numpy as jnp
import numpy as np

jax.tree_map = jax.tree_util.tree_map  # JAX took the name away in 0.6, FedJAX 0.0.17 needs it
import fedjax  # noqa: E402
from worker import serve  # noqa: E402


def scores(model: str, convolution: str, params: Any, x: jax.Array) -> jax.Array:
    """A network of the benchmark, on [records, 784]."""
    if model == "cnn":
        x = x.reshape(-1, engine_work.SIDE, engine_work.SIDE, 1)
        for kernel, bias in (params[:2], params[2:4]):
            x = jax.nn.relu(CONVOLUTIONS[convolution](x, kernel) + bias)
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        x, params = x.reshape(count, -1), params[4:]
    for place in range(0, len(params), 2):
        x = x @ params[place] + params[place + 1]
        x = jax.nn.relu(x) if place + 2 < len(params) else x
    return x


def lax_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)


def product_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = x.shape[1] - 2, x.shape[2] - 2
    parts = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


CONVOLUTIONS = {"lax": lax_convolution, "product": product_convolution}


def gradient_of(model: str, convolution: str) -> Callable[..., Any]:
    """The gradient that FedJAX's algorithms take: ``(params, batch, rng) -> gradient``."""

    def loss(params, batch):
        logits = jax.nn.log_softmax(scores(model, convolution, params, batch["x"]))
        return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1).mean()

    def gradient(params, batch, rng):
        del rng
        return jax.grad(loss)(params, batch)

    return gradient


def seconds_of(gradient: Callable[..., Any], params: Any, batch: Any) -> float:
    """CPU seconds of one compiled gradient, the best of five."""
    compiled, seconds = jax.jit(gradient), []
    jax.block_until_ready(compiled(params, batch, None))
    for _ in range(5):
        started = time.process_time()
        jax.block_until_ready(compiled(params, batch, None))
        seconds.append(time.process_time() - started)
    return min(seconds)


class FedAvg:
    """`fedjax.algorithms.fed_avg`, data in memory.

    Args:
        work: the data file.
        backend: of `fedjax.set_for_each_client_backend`.
    """

    def __init__(self, work: str, backend: str = "jit"):
        clients, self.cohorts = engine_work.read_clients(work)
        fedjax.set_for_each_client_backend(backend)
        self.data = self._data(clients)
        self.checked = self._data(engine_work.check_clients(clients))
        self.facts = {
            "version": importlib.metadata.version("fedjax"),
            "with": f"jax {jax.__version__}",
        }

    def start(self, model: str) -> None:
        """A model's first parameters; of two ways to convolve it takes the one that is faster."""
        first = [jnp.asarray(part) for part in engine_work.first_params(model)]
        ways = {name: gradient_of(model, name) for name in CONVOLUTIONS}
        batch = self.data.get_client(0).all_examples()
        batch = {name: np.resize(part, (20, *part.shape[1:])) for name, part in batch.items()}
        gradient = ways[min(ways, key=lambda name: seconds_of(ways[name], first, batch))]
        self.algorithms = {
            shuffled: fedjax.algorithms.fed_avg.federated_averaging(
                gradient,
                fedjax.optimizers.sgd(engine_work.LEARNING_RATE),
                fedjax.optimizers.sgd(1.0),
                fedjax.ShuffleRepeatBatchHParams(
                    batch_size=engine_work.BATCH_SIZE,
                    num_epochs=1,
                    seed=0 if shuffled else None,
                    skip_shuffle=not shuffled,
                ),
            )
            for shuffled in (True, False)
        }
        self.state = self.algorithms[True].init(first)

    def check(self) -> None:
        """One round of the compared clients, each in the order of its records."""
        everyone = np.arange(len(engine_work.CHECK_SIZES))
        self.state = self._round(self.algorithms[False], self.checked, everyone, 0)

    def rounds(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.state = self._round(self.algorithms[True], self.data, self.cohorts[number], number)
        jax.block_until_ready(self.state)

    def params(self) -> np.ndarray:
        """The parameters in the common order."""
        return engine_work.flat([np.asarray(part) for part in self.state.params])

    def _data(self, clients: engine_work.Clients) -> Any:
        examples = {}
        for client in range(len(clients.sizes)):
            x, y = clients.of(client)
            examples[client] = {"x": x, "y": y}
        return fedjax.InMemoryFederatedData(examples)

    def _round(self, algorithm: Any, data: Any, cohort: np.ndarray, number: int) -> Any:
        keys = jax.random.split(jax.random.PRNGKey(number), len(cohort))
        cohort = [int(client) for client in cohort]
        taking_part = [
            (client, dataset, key)
            for (client, dataset), key in zip(data.get_clients(cohort), keys, strict=True)
        ]
        return algorithm.apply(self.state, taking_part)[0]


if __name__ == "__main__":
    serve({"fed_avg": FedAvg})
