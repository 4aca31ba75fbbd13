"""Our rounds by the public API, simulated and federated: a worker of the engine benchmark."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engine_work
import jax
import jax.numpy as jnp
import numpy as np
from engine_work import BATCH_SIZE, FEATURES, LEARNING_RATE, NUM_CLASSES, SIDE
from worker import serve

import fedjax_secure as fs
from fedjax_secure.data import FederatedDataset
from fedjax_secure.models import Model
from fedjax_secure.selection.drawing import cohort_of


def load_clients(clients: engine_work.Clients) -> FederatedDataset:
    """The clients as a dataset; one held-out record, which nobody looks at."""
    count = len(clients.sizes)
    return FederatedDataset(
        name="emnist-shaped",
        clients=tuple(f"client-{place:05d}" for place in range(count)),
        x=clients.x,
        y=clients.y,
        offsets=clients.offsets,
        test_x=clients.x[:1],
        test_y=clients.y[:1],
        test_offsets=np.minimum(np.arange(count + 1), 1),
        feature_names=tuple(f"pixel {place}" for place in range(FEATURES)),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
        shape=(SIDE, SIDE, 1),
    )


def network(name: str, data: FederatedDataset) -> Model:
    """Our model of that name."""
    if name == "lr":
        return fs.models.logistic_regression(data)
    if name == "mlp":
        return fs.models.mlp(data, hidden=(200, 200))
    return fs.models.emnist_cnn(data)


def places(model: Model, name: str) -> list[int]:
    """For each part of the common order, which leaf of our parameters holds it.

    Both go layer by layer, so a part is the first leaf of its size that is not taken yet.
    """
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    free, found = list(range(len(leaves))), []
    for shape in engine_work.SHAPES[name]:
        place = next(leaf for leaf in free if leaves[leaf].size == int(np.prod(shape)))
        free.remove(place)
        found.append(place)
    if free:
        raise ValueError(f"model {name} has {len(leaves)} arrays, the benchmark's has {len(found)}")
    return found


def from_common(model: Model, name: str, parts: Sequence[np.ndarray]) -> Any:
    """Parameters in the common order as our pytree."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    out: list[Any] = [None] * len(leaves)
    for place, part in zip(places(model, name), parts, strict=True):
        out[place] = jnp.asarray(part.reshape(leaves[place].shape))
    return jax.tree.unflatten(tree, out)


def to_common(model: Model, name: str, params: Any) -> np.ndarray:
    """The other way, as one vector."""
    leaves = jax.tree.leaves(params)
    return engine_work.flat([np.asarray(leaves[place]) for place in places(model, name)])


def replaying(cohorts: np.ndarray) -> Any:
    """The selection that takes the benchmark's cohorts, each client's records in a fresh order."""
    everyone = cohorts.shape[1]

    def draw(source, round, candidates, state):
        return cohort_of(source, round, candidates, np.sort(cohorts[round - 1]))

    return fs.selection.uniform_clients(everyone)._replace(
        name="replaying", draw=draw, settings="the benchmark's cohorts"
    )


class Simulated:
    """`fs.Simulation`: selection, orders, packing, training and the server's step.

    Args:
        work: the data file.
    """

    def __init__(self, work: str):
        self.clients, self.cohorts = engine_work.read_clients(work)
        self.data = load_clients(self.clients)
        self.facts = {
            "version": fs.__version__,
            "with": f"jax {jax.__version__}",
            "devices": len(jax.devices()),
        }

    def start(self, model: str) -> None:
        """A model's first parameters."""
        self.name, self.model = model, network(model, self.data)
        algorithm = fs.algorithms.fed_avg(LEARNING_RATE, batch_size=BATCH_SIZE)
        self.run = self._made(self.data, algorithm, replaying(self.cohorts))
        self.state = self._begun(self.run)

    def check(self) -> None:
        """A round of the compared clients in which order does not matter: batches of everything,
        three of them a client."""
        clients = engine_work.check_clients(self.clients)
        algorithm = fs.algorithms.fed_avg(
            LEARNING_RATE, batch_size=max(engine_work.CHECK_SIZES), local_epochs=3
        )
        run = self._made(load_clients(clients), algorithm, fs.selection.all_records())
        for state, _ in run.run(self._begun(run), rounds=1):
            self.state = state

    def rounds(self, first: int, count: int) -> None:
        for state, _ in self.run.run(self.state, rounds=first + count):
            self.state = state
        if self.state.round != first + count:
            raise ValueError(f"after {self.state.round} rounds, round {first} is not the next")

    def params(self) -> np.ndarray:
        """The parameters in the common order."""
        return to_common(self.model, self.name, self.state.params)

    def traces(self) -> dict[str, int]:
        """How often each program was compiled."""
        return dict(self.run.traces)

    def _made(self, data: FederatedDataset, algorithm: Any, selection: Any) -> Any:
        return fs.Simulation(self.model, data, algorithm, selection=selection, seed=0)

    def _begun(self, run: Any) -> Any:
        first = from_common(self.model, self.name, engine_work.first_params(self.name))
        return run.init()._replace(params=first)


class Federated(Simulated):
    """`fs.Federation` with a trusted aggregator, in memory: with its ledger and signatures."""

    def _made(self, data: FederatedDataset, algorithm: Any, selection: Any) -> Any:
        return fs.Federation(
            self.model,
            data,
            algorithm,
            fs.chain(),
            selection=selection,
            aggregator="semi-honest",
            seed=0,
        )


class Scaling:
    """Simulated rounds of 10 to 10,000 clients, out of 10,000 small ones with 8-bit pixels.

    Args:
        work: not read.
        num_clients: of the population.
        mean: records of a client.
    """

    def __init__(self, work: str, num_clients: int, mean: float):
        del work
        clients = engine_work.make_clients(num_clients, mean=mean, largest=20 * int(mean))
        pixels = np.clip(64 + 96 * clients.x, 0, 255).astype(np.uint8)
        self.data = load_clients(clients._replace(x=pixels))
        self.model = network("mlp", self.data)
        self.run: Any = None
        self.facts = {"records": len(clients.y), "devices": len(jax.devices())}

    def start(self, cohort: int) -> None:
        """A simulation with that many clients a round; its first rounds compile."""
        self.run = self.state = None  # the last one's memory
        gc.collect()
        self.run = fs.Simulation(
            self.model,
            self.data,
            fs.algorithms.fed_avg(LEARNING_RATE, batch_size=BATCH_SIZE),
            selection=fs.selection.uniform_clients(cohort),
            seed=0,
        )
        self.state, self.steps = self.run.init(), 0
        self.rounds(2)
        self.steps = 0

    def rounds(self, count: int) -> None:
        last = int(self.state.round) + count
        for state, report in self.run.run(self.state, rounds=last):
            self.state = state
            self.steps += report.steps

    def steps_done(self) -> int:
        """SGD steps since this was asked last."""
        steps, self.steps = self.steps, 0
        return steps

    def grown_mib(self, count: int) -> float:
        """How far above where it was the memory of this process is at most during rounds, MiB."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _memory_mib("VmRSS")
        self.rounds(count)
        return max(_memory_mib("VmHWM") - before, 0.0)


def _memory_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    serve({"simulation": Simulated, "federation": Federated, "scaling": Scaling})
