"""Flower's simulation of federated averaging, two Ray workers: a worker of the engine benchmark.

The server app and the strategy run in this process, in a thread of Flower's; clients run in Ray's
worker processes, which are this one's children and count with it. Clients train with PyTorch, whose
module, data and tensors stay in memory between messages.
"""

from __future__ import annotations

import importlib.metadata
import os
import queue
import threading
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import engine_work  # noqa: E402
import numpy as np  # noqa: E402
import peer_pfl  # noqa: E402  (the same torch networks; it imports neither torch nor pfl)
from flwr.app import (  # noqa: E402
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg as FedAvgStrategy  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

# -- a client, in one of Ray's processes -----------------------------------------------------------

_loaded: dict[tuple[str, ...], Any] = {}


def clients_of(work: str, name: str) -> dict[int, tuple[Any, Any]]:
    """Every client's tensors, read once in each process."""
    import torch

    if (work, name) not in _loaded:
        clients, _ = engine_work.read_clients(work)
        clients = clients if name == "timed" else engine_work.check_clients(clients)
        _loaded[work, name] = {
            client: tuple(
                torch.from_numpy(part.astype(kind))
                for part, kind in zip(clients.of(client), (np.float32, np.int64), strict=True)
            )
            for client in range(len(clients.sizes))
        }
    return _loaded[work, name]


def network_of(model: str, layout: str) -> Any:
    """A network and its optimizer, made once in each process."""
    import torch

    if (model, layout) not in _loaded:
        torch.set_num_threads(1)
        network = peer_pfl.network(model, layout)
        sgd = torch.optim.SGD(network.parameters(), lr=engine_work.LEARNING_RATE)
        _loaded[model, layout] = network, sgd
    return _loaded[model, layout]


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch over a client's records, shuffled unless it is the compared round."""
    import torch

    settings = message.content["config"]
    network, sgd = network_of(settings["model"], settings["layout"])
    with torch.no_grad():
        for part, value in zip(
            network.parts(), message.content["arrays"].to_numpy_ndarrays(), strict=True
        ):
            part.copy_(torch.from_numpy(value))
    x, y = clients_of(settings["work"], settings["name"])[settings["client"]]
    if settings["name"] == "timed":
        order = torch.randperm(len(y))
        x, y = x[order], y[order]
    for xs, ys in zip(
        x.split(engine_work.BATCH_SIZE), y.split(engine_work.BATCH_SIZE), strict=True
    ):
        sgd.zero_grad()
        network.loss(xs, ys).backward()
        sgd.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord([part.detach().numpy() for part in network.parts()]),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
    )
    return Message(content=content, reply_to=message)


# -- the server ------------------------------------------------------------------------------------


class Strategy(FedAvgStrategy):
    """Flower's FedAvg; its sample of nodes trains the clients of the benchmark's cohorts."""

    def __init__(self, settings: dict[str, Any], cohorts: np.ndarray, num_nodes: int):
        super().__init__(
            fraction_train=cohorts.shape[1] / num_nodes,
            fraction_evaluate=0.0,
            min_train_nodes=cohorts.shape[1],
            min_available_nodes=num_nodes,
        )
        self.settings, self.cohorts = settings, cohorts

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = super().configure_train(server_round, arrays, config, grid)
        cohort = self.cohorts[server_round - 1]
        return [
            Message(
                content=RecordDict(
                    {
                        "arrays": arrays,
                        "config": ConfigRecord({**self.settings, "client": int(client)}),
                    }
                ),
                message_type=MessageType.TRAIN,
                dst_node_id=message.metadata.dst_node_id,
            )
            for message, client in zip(messages, cohort, strict=True)
        ]


class FedAvg:
    """A simulation that waits for rounds to run.

    Args:
        work: the data file.
        nodes: how many SuperNodes Flower simulates.
    """

    def __init__(self, work: str, nodes: int = engine_work.NUM_CLIENTS):
        self.nodes = nodes
        self.settings = {"work": work}
        with np.load(work) as data:
            self.cohorts = data["cohorts"]
        self.wanted: queue.Queue[tuple[str, np.ndarray] | None] = queue.Queue()
        self.done: queue.Queue[Exception | None] = queue.Queue()
        self.simulation = threading.Thread(target=self._simulate, daemon=True)
        self.simulation.start()
        self.facts = {
            "version": importlib.metadata.version("flwr"),
            "with": f"ray {importlib.metadata.version('ray')}, "
            f"torch {importlib.metadata.version('torch')}",
        }

    def start(self, model: str) -> None:
        """A model's first parameters."""
        self.settings |= {"model": model, "layout": peer_pfl.faster_layout(model)}
        self.arrays = peer_pfl.to_torch(engine_work.first_params(model))

    def check(self) -> None:
        """One round of the compared clients, each in the order of its records."""
        self._ask("check", np.arange(len(engine_work.CHECK_SIZES))[None])

    def rounds(self, first: int, count: int) -> None:
        self._ask("timed", self.cohorts[first : first + count])

    def params(self) -> np.ndarray:
        """The parameters in the common order."""
        return engine_work.flat(peer_pfl.from_torch(self.arrays))

    def close(self) -> None:
        """Ends the simulation and Ray."""
        self.wanted.put(None)
        self.simulation.join()

    def _ask(self, name: str, cohorts: np.ndarray) -> None:
        self.wanted.put((name, cohorts))
        failure = self.done.get()
        if failure is not None:
            raise failure

    def _simulate(self) -> None:
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            while (work := self.wanted.get()) is not None:
                name, cohorts = work
                strategy = Strategy({**self.settings, "name": name}, cohorts, self.nodes)
                try:
                    result = strategy.start(grid, ArrayRecord(self.arrays), num_rounds=len(cohorts))
                    self.arrays = result.arrays.to_numpy_ndarrays()
                    if len(result.train_metrics_clientapp) != len(cohorts):
                        raise RuntimeError("a round of Flower's failed")
                    self.done.put(None)
                except Exception as error:
                    self.done.put(error)

        try:
            run_simulation(
                server,
                app,
                num_supernodes=self.nodes,
                backend_config={
                    "init_args": {"num_cpus": len(os.sched_getaffinity(0))},
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        except Exception as error:
            self.done.put(error)


if __name__ == "__main__":
    import peer_flower  # by its name, which Ray's processes can import
    from worker import serve

    serve({"fed_avg": peer_flower.FedAvg})
