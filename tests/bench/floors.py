"""What a round cannot be faster than: its SGD steps alone, and their matrix products alone.

A worker of the engine benchmark. It also has the reference that every system's parameters are
compared with: federated averaging as two nested loops.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import engine_work
import jax
import jax.numpy as jnp
import numpy as np
from engine_work import BATCH_SIZE, LEARNING_RATE
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from our_engine import from_common, load_clients, network, to_common
from worker import serve

AXIS = "devices"


class PlainLoop:
    """Our model's SGD steps in one compiled loop on each device, and nothing else.

    Whole batches lie ready, one after another; nobody's data is gathered, no batch is masked, no
    client begins anew, nothing is averaged. A call runs as many steps as the round has.
    """

    def __init__(self, work: str):
        self.clients, self.cohorts = engine_work.read_clients(work)
        self.work = work
        self.mesh = Mesh(np.array(jax.devices()), (AXIS,))
        self.facts = {"version": jax.__version__, "devices": len(jax.devices())}

    def start(self, model: str) -> None:
        """A model's first parameters."""
        self.name, self.model = model, network(model, load_clients(self.clients))
        devices = self.mesh.devices.size
        most = max(steps_of(self.clients, cohort) for cohort in self.cohorts)
        shape = (devices, most // devices + 1, BATCH_SIZE)
        rows = np.arange(np.prod(shape)) % len(self.clients.y)
        dealt, everywhere = NamedSharding(self.mesh, P(AXIS)), NamedSharding(self.mesh, P())
        self.x = jax.device_put(self.clients.x[rows].reshape(*shape, -1), dealt)
        self.y = jax.device_put(self.clients.y[rows].reshape(shape), dealt)
        self.params = jax.device_put(
            from_common(self.model, model, engine_work.first_params(model)), everywhere
        )
        self.program = self._compiled()

    def rounds(self, first: int, count: int) -> None:
        out = None
        for number in range(first, first + count):
            steps = steps_of(self.clients, self.cohorts[number])
            devices = self.mesh.devices.size
            share = np.array([steps // devices + (d < steps % devices) for d in range(devices)])
            out = self.program(self.params, self.x, self.y, share.astype(np.int32))
        jax.block_until_ready(out)

    def in_order(self) -> np.ndarray:
        """The parameters after the compared round, each client in the order of its records."""
        return self._reference(BATCH_SIZE, 1)

    def in_one_batch(self) -> np.ndarray:
        """The parameters after three passes, each of one batch: there order does not matter."""
        return self._reference(max(engine_work.CHECK_SIZES), 3)

    def _reference(self, batch_size: int, epochs: int) -> np.ndarray:
        """Federated averaging, weighted by examples, as nested Python loops."""
        clients = engine_work.check_clients(self.clients)
        first = from_common(self.model, self.name, engine_work.first_params(self.name))
        step = jax.jit(partial(sgd_step, self.model))
        total = np.zeros(self.model.dim)
        for client, count in enumerate(clients.sizes):
            x, y = clients.of(client)
            params = first
            for _ in range(epochs):
                for start in range(0, count, batch_size):
                    rows = slice(start, start + batch_size)
                    params = step(params, x[rows], y[rows])
            share = count / clients.sizes.sum()
            total += share * to_common(self.model, self.name, params).astype(np.float64)
        return total.astype(np.float32)

    def _compiled(self) -> Any:
        model = self.model

        def device(params, x, y, share):
            def step(t, params):
                return sgd_step(model, params, x[0, t], y[0, t])

            params = lax.fori_loop(jnp.int32(0), share[0], step, params)
            return jax.tree.map(lambda part: part[None], params)

        specs = (P(), P(AXIS), P(AXIS), P(AXIS))
        return jax.jit(
            jax.shard_map(
                device, mesh=self.mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
            )
        )


class MatrixProducts:
    """The matrix products of as many SGD steps as a round has, in numpy's BLAS, two threads.

    Forwards, for the gradient of every kernel, and for the gradient of every layer's input but the
    first; a convolution is a product over its patches, which lie ready. Results are written to
    arrays that are there, and nothing is done with them. Steps are dealt to threads, each of which
    multiplies with one BLAS thread.
    """

    def __init__(self, work: str):
        self.clients, self.cohorts = engine_work.read_clients(work)
        self.facts = {"version": np.__version__, "threads": len(os.sched_getaffinity(0))}
        self.pool = ThreadPoolExecutor(self.facts["threads"])

    def start(self, model: str) -> None:
        """The arrays of every product, for each thread its own."""
        x = self.clients.x[:BATCH_SIZE]
        inputs = engine_work.forward(model, engine_work.first_params(model), x)
        self.products = [self._products(model, inputs) for _ in range(self.facts["threads"])]

    def rounds(self, first: int, count: int) -> None:
        threads = self.facts["threads"]
        for number in range(first, first + count):
            steps = steps_of(self.clients, self.cohorts[number])
            shares = [steps // threads + (t < steps % threads) for t in range(threads)]
            list(self.pool.map(_multiply, self.products, shares))

    def _products(self, model: str, inputs: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        params, products = engine_work.first_params(model), []
        for layer, kernel in enumerate(params[::2]):
            matrix = kernel.reshape(-1, kernel.shape[-1]).copy()
            image = inputs[layer + (kernel.ndim == 2 and model == "cnn")]
            if kernel.ndim == 4:
                image = engine_work.patches(image.reshape(len(image), *_square(image, kernel)))
            rows = image
            rows = np.ascontiguousarray(rows.reshape(-1, matrix.shape[0]), np.float32)
            out = np.ones((len(rows), matrix.shape[1]), np.float32)
            products += [(rows, matrix, out), (rows.T, out.copy(), np.empty_like(matrix))]
            if layer:
                products.append((out.copy(), matrix.T, np.empty_like(rows)))
        return products


def _square(image: np.ndarray, kernel: np.ndarray) -> tuple[int, int, int]:
    """Height, width and channels of the images that a kernel is moved over."""
    channels = kernel.shape[2]
    side = math.isqrt(image[0].size // channels)
    return side, side, channels


def _multiply(products: list[tuple[np.ndarray, ...]], steps: int) -> None:
    for _ in range(steps):
        for left, right, out in products:
            np.matmul(left, right, out=out)


def steps_of(clients: engine_work.Clients, cohort: np.ndarray) -> int:
    """SGD steps of a round."""
    return int((-(-clients.sizes[cohort] // BATCH_SIZE)).sum())


def sgd_step(model: Any, params: Any, x: jax.Array, y: jax.Array) -> Any:
    """One step of plain SGD on the mean loss of a batch."""
    gradient = jax.grad(lambda p: jnp.mean(model.loss(p, x, y)))(params)
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)


if __name__ == "__main__":
    serve({"plain_loop": PlainLoop, "matrix_products": MatrixProducts})
