"""pfl-research's federated averaging with PyTorch, in one process or two: a worker of the engine
benchmark.

With two processes this one is the first of pfl's `torch.distributed` workers and starts the other,
as pfl's guide to distributed simulations says: `PFL_WORKER_ADDRESSES` and `PFL_WORKER_RANK`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import engine_work
import numpy as np

OTHER = "PFL_BENCHMARK_OTHER"  # set in the second process: the arguments that it makes itself from


class Started:
    """Imports of torch and pfl: pfl joins its process group when it is imported."""

    def __init__(self, processes: int, threads: int):
        os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
        if processes > 1 and OTHER not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            os.environ["PFL_WORKER_ADDRESSES"] = ",".join([f"127.0.0.1:{port}"] * processes)
            os.environ["PFL_WORKER_RANK"] = "0"
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch

        torch.set_num_threads(threads)


def network(model: str, layout: str) -> Any:
    """A torch module of the benchmark with pfl's `loss` and `metrics`."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = engine_work.SHAPES[model][::2]
            self.convolutions = nn.ModuleList(
                nn.Conv2d(shape[2], shape[3], 3) for shape in shapes if len(shape) == 4
            )
            self.layers = nn.ModuleList(
                nn.Linear(shape[0], shape[1]) for shape in shapes if len(shape) == 2
            )
            if layout == "channels_last":
                self.convolutions.to(memory_format=torch.channels_last)

        def forward(self, x: Any) -> Any:
            if len(self.convolutions):
                x = x.reshape(-1, 1, engine_work.SIDE, engine_work.SIDE)
                for convolution in self.convolutions:
                    x = torch.relu(convolution(x))
                x = nn.functional.max_pool2d(x, 2).flatten(1)
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)

        def loss(self, x: Any, y: Any, is_eval: bool = False) -> Any:
            return nn.functional.cross_entropy(self(x), y)

        def metrics(self, x: Any, y: Any, is_eval: bool = False) -> Any:
            from pfl.metrics import Weighted

            right = (self(x).argmax(dim=1) == y).sum().item()
            return {"accuracy": Weighted(right, len(y))}

        def parts(self) -> list[Any]:
            """Kernels and biases, layer by layer."""
            return [
                part
                for layer in (*self.convolutions, *self.layers)
                for part in (layer.weight, layer.bias)
            ]

    return Network()


def faster_layout(model: str) -> str:
    """Which layout of convolutions' memory makes a step cost less CPU time here, best of five."""
    import torch

    if model != "cnn":
        return "contiguous"
    x = torch.ones(engine_work.BATCH_SIZE, engine_work.FEATURES)
    y = torch.zeros(engine_work.BATCH_SIZE, dtype=torch.int64)

    def seconds(layout: str) -> float:
        made, found = network(model, layout), []
        for _ in range(6):
            started = time.process_time()
            made.loss(x, y).backward()
            found.append(time.process_time() - started)
        return min(found)

    return min(("contiguous", "channels_last"), key=seconds)


def to_torch(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The common order and layout to torch's: out before in, channels before pixels."""
    out, flattened = [], len(parts) == 8
    for part in parts:
        if part.ndim == 4:
            part = part.transpose(3, 2, 0, 1)
        elif part.ndim == 2:
            if flattened:
                part = part.reshape(12, 12, 64, -1).transpose(2, 0, 1, 3).reshape(part.shape)
                flattened = False
            part = part.T
        out.append(np.ascontiguousarray(part))
    return out


def from_torch(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The other way."""
    out, flattened = [], len(parts) == 8
    for part in parts:
        if part.ndim == 4:
            part = part.transpose(2, 3, 1, 0)
        elif part.ndim == 2:
            part = part.T
            if flattened:
                part = part.reshape(64, 12, 12, -1).transpose(1, 2, 0, 3).reshape(part.shape)
                flattened = False
        out.append(part)
    return out


class FedAvg:
    """`pfl.algorithm.federated_averaging` on users' tensors in memory.

    Args:
        work: the data file.
        processes: 1, or 2 with users dealt by their numbers of batches (`user_id_to_weight`).
        threads: of torch in each process.
    """

    def __init__(
        self,
        work: str,
        processes: int = 1,
        threads: int = 1,
    ):
        arguments = {
            "work": work,
            "processes": processes,
            "threads": threads,
        }
        Started(processes, threads)
        self.others: list[Any] = []
        if processes > 1 and OTHER not in os.environ:
            for rank in range(1, processes):
                self.others.append(_start_other(arguments, rank))
        clients, self.cohorts = engine_work.read_clients(work)
        self.clients = {"timed": clients, "check": engine_work.check_clients(clients)}
        from pfl.internal.ops import pytorch_ops

        self.facts = {
            "version": importlib.metadata.version("pfl"),
            "with": f"torch {importlib.metadata.version('torch')}",
            "processes": pytorch_ops.distributed.world_size,
        }

    def _data(self, name: str, order: np.ndarray) -> Any:
        """A federated dataset whose users come in an order, over and over.

        pfl samples ahead, in a process of its own where it deals users to processes.
        """
        import torch
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.data.pytorch import PyTorchTensorDataset

        clients = self.clients[name]
        users = {}
        for client in range(len(clients.sizes)):
            x, y = clients.of(client)
            users[client] = (torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
        coming = itertools.cycle(order.tolist())

        def make(client: int) -> Any:
            return PyTorchTensorDataset(users[client], user_id=str(client))

        batches = -(-clients.sizes // engine_work.BATCH_SIZE)
        weights = {client: int(count) for client, count in enumerate(batches)}
        return FederatedDataset(make, lambda: next(coming), user_id_to_weight=weights)

    def _run(self, name: str, rounds: int, cohort_size: int) -> None:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.aggregate.weighting import WeightByDatapoints
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.hyperparam import NNTrainHyperParams

        data = self.data[name]
        if self.rounds_done == 0:
            self.algorithm = FederatedAveraging()
        algorithm = FederatedAveraging() if name == "check" else self.algorithm
        algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=self.rounds_done + rounds,
                evaluation_frequency=10**9,  # evaluates before the first round, and never again
                train_cohort_size=cohort_size,
                val_cohort_size=None,
            ),
            SimulatedBackend(
                training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]
            ),
            self.pfl_model,
            NNTrainHyperParams(
                local_learning_rate=engine_work.LEARNING_RATE,
                local_num_epochs=1,
                local_batch_size=engine_work.BATCH_SIZE,
            ),
            None,
            send_metrics_to_platform=False,
        )

    # Every call goes to the other processes as well, before this one does its part.

    def check(self) -> None:
        """One round of the compared clients, each in the order of its records."""
        self._everywhere("_check")

    def rounds(self, first: int, count: int) -> None:
        self._everywhere("_rounds", first=first, count=count)

    def start(self, model: str) -> None:
        """A model's first parameters."""
        self._everywhere("_start", model=model)

    def params(self) -> np.ndarray:
        """The parameters in the common order."""
        parts = [part.detach().numpy() for part in self.network.parts()]
        return engine_work.flat(from_torch(parts))

    def _everywhere(self, method: str, **arguments: Any) -> None:
        for other in self.others:
            other.stdin.write(json.dumps([method, arguments]) + "\n")
            other.stdin.flush()
        getattr(self, method)(**arguments)
        for other in self.others:
            if other.stdout.readline() != "done\n":
                raise RuntimeError(f"pfl's other process ended, exit status {other.wait()}")

    def _check(self) -> None:
        self._run("check", 1, len(engine_work.CHECK_SIZES))

    def _rounds(self, first: int, count: int) -> None:
        if first != self.rounds_done:
            raise ValueError(f"pfl samples ahead: round {self.rounds_done} is next, not {first}")
        self._run("timed", count, self.cohorts.shape[1])
        self.rounds_done += count

    def _start(self, model: str) -> None:
        import torch
        from pfl.model.pytorch import PyTorchModel

        self.network = network(model, faster_layout(model))
        with torch.no_grad():
            first = to_torch(engine_work.first_params(model))
            for part, value in zip(self.network.parts(), first, strict=True):
                part.copy_(torch.from_numpy(value))
        self.pfl_model = PyTorchModel(
            self.network,
            torch.optim.SGD,
            central_optimizer=torch.optim.SGD(self.network.parameters(), lr=1.0),
        )
        self.data = {
            "timed": self._data("timed", self.cohorts.ravel()),
            "check": self._data("check", np.arange(len(engine_work.CHECK_SIZES))),
        }
        self.rounds_done, self.algorithm = 0, None


def _start_other(arguments: dict[str, Any], rank: int) -> subprocess.Popen[str]:
    environment = dict(os.environ, PFL_WORKER_RANK=str(rank))
    environment[OTHER] = json.dumps(arguments)
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def follow(make: Callable[..., FedAvg]) -> None:
    """The second process: does what the first one does, until its input is closed."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    system = make(**json.loads(os.environ[OTHER]))
    for line in sys.stdin:
        method, arguments = json.loads(line)
        getattr(system, method)(**arguments)
        replies.write("done\n")
        replies.flush()


if __name__ == "__main__":
    if OTHER in os.environ:
        follow(FedAvg)
    else:
        from worker import serve

        serve({"fed_avg": FedAvg})
