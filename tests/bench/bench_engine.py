"""Rounds of simulated federated learning: ours beside FedJAX, pfl and Flower (`make bench-engine`).

Every system runs in a worker process of its own interpreter, and the workers take turns, a few
rounds at a time, over the same cohorts of the same clients from the same first parameters. Before
anything is timed, each system's parameters after one round are compared with a reference; after
the last round, accuracies are compared. A system that is off ends the run, and nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine_work
import numpy as np
import peer_env
from report import Goal, Panel, Row, figure, versions_of, write
from worker import Worker, WorkerError

BENCH = Path(__file__).resolve().parent
#: Largest difference of a parameter after the compared round, as a share of the largest change of
#: one: float32 sums differ in their order, and the CNN's steps are long enough to magnify that.
PARAMETER_BOUND = 1e-3
#: Largest difference of the share of 2,000 test records: orders within clients are each system's.
ACCURACY_BOUND = 0.05
PARAMETERS = {
    name: sum(int(np.prod(shape)) for shape in shapes)
    for name, shapes in engine_work.SHAPES.items()
}
TITLES = {"lr": "Logistic regression", "mlp": "MLP 784-200-200-62", "cnn": "EMNIST CNN"}

OURS, FEDERATION = "ours, fs.Simulation", "ours, fs.Federation with ledger and signatures"
PLAIN, PRODUCTS = "plain loop of the same steps", "matrix products alone"
FEDJAX, FEDJAX_OLD = "FedJAX, jit backend", "FedJAX, jit backend, on JAX 0.4"
PFL, PFL_TWO, FLOWER = "pfl, one process", "pfl, two processes", "Flower, two Ray workers"

#: Of each model: repetitions, and rounds in one; and with --quick.
PLAN = {"lr": (9, 6), "mlp": (7, 4), "cnn": (5, 1)}
QUICK = {"lr": (3, 4), "mlp": (3, 2), "cnn": (2, 1)}

#: The scaling part: population, records of a client, and of each cohort the rounds of a repetition.
POPULATION, MEAN_RECORDS = 10_000, 50.0
COHORTS = {10: 60, 100: 12, 1000: 2, 10_000: 1}
SCALING = f"MLP, 10 to {POPULATION:,} clients a round"


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A system under measurement.

    Args:
        name: in tables and the picture.
        script, factory, arguments: what the worker makes it from.
        environment: of the worker; see `Worker`.
        reference: the method of the plain loop that says what its compared round comes to; empty
            for a floor, which is no federated learning.
        python: its interpreter: ``(environment, module to import)``; empty for ours.
        apart: measured after the others have ended, since it uses the processor while it waits.
    """

    name: str
    script: str
    factory: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    reference: str = "in_order"
    python: tuple[str, str] = ("", "")
    apart: bool = False


#: Our package asks JAX for one device a core by itself.
_OWN = {"JAX_NUM_CPU_DEVICES": None}
#: One BLAS thread each, of the kernels that numpy's own BLAS chooses for this processor.
_BLAS = {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": None, "OPENBLAS_L2_SIZE": None}
_TORCH = {"OMP_NUM_THREADS": "1"}
SYSTEMS = (
    System(OURS, "our_engine.py", "simulation", {}, _OWN, "in_one_batch"),
    System(FEDERATION, "our_engine.py", "federation", {}, _OWN, "in_one_batch"),
    System(PLAIN, "floors.py", "plain_loop", {}, _OWN, ""),
    System(PRODUCTS, "floors.py", "matrix_products", {}, _OWN | _BLAS, ""),
    System(FEDJAX, "peer_fedjax.py", "fed_avg", python=("fedjax", "jax")),
    System(FEDJAX_OLD, "peer_fedjax.py", "fed_avg", python=("fedjax-0.4", "jax")),
    System(PFL, "peer_pfl.py", "fed_avg", {}, _TORCH, python=("pfl", "pfl")),
    System(PFL_TWO, "peer_pfl.py", "fed_avg", {"processes": 2}, _TORCH, python=("pfl", "pfl")),
    System(FLOWER, "peer_flower.py", "fed_avg", {}, _TORCH, python=("flower", "flwr"), apart=True),
)


class WrongRound(Exception):
    """A system learned something else than the others."""


# -- measuring -------------------------------------------------------------------------------------


class Run:
    """All systems on one machine: workers, samples, rows."""

    def __init__(self, folder: Path, plan: Mapping[str, tuple[int, int]], log: Callable):
        self.folder, self.plan, self.log = folder, plan, log
        self.work = str(engine_work.write_work(folder))
        clients, self.cohorts = engine_work.read_clients(self.work)
        self.steps = -(-clients.sizes // engine_work.BATCH_SIZE)
        self.rows: list[Row] = []
        self.facts: dict[System, dict[str, Any]] = {}
        self.workers: dict[System, Worker] = {}
        self.references: dict[tuple[str, str], np.ndarray] = {}
        self.accuracy: dict[str, float] = {}
        self.cores = set(sorted(os.sched_getaffinity(0))[:2])

    def case(self, model: str) -> str:
        """The case of a model's rows."""
        repeats, rounds = self.plan[model]
        steps = self.steps[self.cohorts[1 : 1 + repeats * rounds]].sum(axis=1).mean()
        return (
            f"{TITLES[model]}, {PARAMETERS[model]:,} parameters, {engine_work.COHORT} of "
            f"{engine_work.NUM_CLIENTS:,} clients a round ({steps:.0f} steps), {len(self.cores)} "
            "cores"
        )

    def measure(self, systems: Sequence[System], models: Sequence[str]) -> None:
        """Start these systems' workers, measure every model, end them."""
        with contextlib.ExitStack() as stack:
            here = []
            for system in systems:
                self.log(f"  {system.name}: start")
                try:
                    self._start(system, stack)
                    here.append(system)
                except WorkerError as error:
                    self._give_up(system, models, str(error))
            for model in models:
                here = self._measure(model, here, models[models.index(model) :])
            self.workers.clear()

    def _start(self, system: System, stack: contextlib.ExitStack) -> None:
        environment, module = system.python
        python, why = Path(sys.executable), ""
        if environment:
            python, why = peer_env.ready(environment, module, python="3.11", locked=True)
        if python is None:
            raise WorkerError(why)
        worker = Worker(python, BENCH / system.script, self.cores, system.environment)
        self.workers[system] = stack.enter_context(worker)
        self.facts[system] = worker.open(
            system.name, system.factory, work=self.work, **system.arguments
        )

    def _give_up(self, system: System, models: Sequence[str], why: str) -> None:
        """A row a model that says why; ours and the floors must not fail."""
        self.log(f"  {system.name}: {why}")
        if not system.python[0]:
            raise WorkerError(why)
        lines = why.splitlines()
        self.rows += [
            Row.missing(self.case(model), system.name, lines[0] if lines else "no message")
            for model in models
        ]

    def _measure(
        self, model: str, systems: Sequence[System], models: Sequence[str]
    ) -> list[System]:
        """Compare, warm up, take turns, compare; returns the systems that still work."""
        samples: dict[System, list[Any]] = {system: [] for system in systems}
        repeats, rounds = self.plan[model]

        def prepare(system: System) -> None:
            self._call(system, "start", model=model)
            if system.reference:
                self._compare(model, system)
            self._call(system, "rounds", first=0, count=1)

        def repeat(system: System) -> None:
            first = 1 + len(samples[system]) * rounds
            timing = self.workers[system].run(system.name, "rounds", first=first, count=rounds)
            samples[system].append(timing)

        def finish(system: System) -> None:
            cpu, wall = zip(*samples[system], strict=True)
            for unit, figures in (("ms CPU", cpu), ("ms wall", wall)):
                figures = [sample / rounds for sample in figures]
                self.rows.append(Row.of(self.case(model), system.name, "round", figures, unit))
            if system.reference:
                self._judge(model, system)

        steps: list[tuple[str, Callable[[System], None]]] = [("prepare", prepare)]
        steps += [(f"{number + 1} of {repeats}", repeat) for number in range(repeats)]
        for name, step in [*steps, ("accuracy", finish)]:
            self.log(f"  {model}: {name}")
            for system in list(samples):
                try:
                    step(system)
                except WorkerError as error:
                    self._give_up(system, models, str(error))
                    del samples[system]
        return list(samples)

    def scaling(self, repeats: int) -> None:
        """CPU time a step and memory of our rounds, from few clients to all."""
        system = System("scaling", "our_engine.py", "scaling", {}, _OWN)
        with Worker(sys.executable, BENCH / system.script, self.cores, _OWN) as worker:
            facts = worker.open(
                system.name, "scaling", work="", num_clients=POPULATION, mean=MEAN_RECORDS
            )
            case = f"{SCALING}, of {POPULATION:,} with {facts['records']:,} records in all"
            for cohort, rounds in COHORTS.items():
                self.log(f"  {cohort} clients a round")
                worker.call(system.name, "start", cohort=cohort)
                cpu, wall = [], []
                for _ in range(repeats):
                    timing = worker.run(system.name, "rounds", count=rounds)
                    steps = worker.call(system.name, "steps_done")
                    cpu.append(timing.cpu_ms / steps)
                    wall.append(timing.wall_ms / steps)
                grown = worker.call(system.name, "grown_mib", count=1)
                name = f"ours, {cohort:,} clients a round"
                self.rows += [
                    Row.of(case, name, "step", cpu, "ms CPU"),
                    Row.of(case, name, "step", wall, "ms wall"),
                    Row.of(case, name, "memory of a round", [grown], "MiB"),
                ]

    def _call(self, system: System, method: str, **arguments: Any) -> Any:
        return self.workers[system].call(system.name, method, **arguments)

    def _array(self, system: System, method: str) -> np.ndarray:
        path = self.folder / "array.npy"
        return self.workers[system].array(system.name, method, path)

    def _compare(self, model: str, system: System) -> None:
        """One round's parameters against the reference's, and back to the first ones."""
        wanted = self._reference(model, system.reference)
        self._call(system, "check")
        error = float(np.abs(self._array(system, "params") - wanted).max())
        moved = float(np.abs(wanted - engine_work.flat(engine_work.first_params(model))).max())
        self.log(f"  {model}, {system.name}: {error:.2g} from the reference, moved {moved:.2g}")
        if not error <= PARAMETER_BOUND * moved:
            raise WrongRound(
                f"{system.name}, {model}: after one round a parameter is {error:.3g} away from the "
                f"reference, which itself moved by {moved:.3g}; at most "
                f"{PARAMETER_BOUND} of that is right"
            )
        self.rows.append(
            Row.of(
                self.case(model),
                system.name,
                "difference after one round",
                [error],
                "largest of a parameter",
            )
        )
        self._call(system, "start", model=model)

    def _reference(self, model: str, method: str) -> np.ndarray:
        if (model, method) not in self.references:
            plain = next(system for system in self.workers if system.name == PLAIN)
            self._call(plain, "start", model=model)
            self.references[model, method] = self._array(plain, method)
        return self.references[model, method]

    def _judge(self, model: str, system: System) -> None:
        """Accuracy after all rounds against ours, which comes first."""
        repeats, rounds = self.plan[model]
        done = 1 + repeats * rounds
        share = engine_work.accuracy(model, self._array(system, "params"), self.work)
        ours = self.accuracy.setdefault(model, share)
        self.log(f"  {model}, {system.name}: accuracy {share:.3f} after {done} rounds")
        if not abs(share - ours) <= ACCURACY_BOUND:
            raise WrongRound(
                f"{system.name}, {model}: accuracy {share:.3f} after {done} rounds, ours has "
                f"{ours:.3f}; they may differ by {ACCURACY_BOUND}"
            )
        metric = f"accuracy after {done} rounds"
        self.rows.append(Row.of(self.case(model), system.name, metric, [share], "share"))


# -- figures of figures ----------------------------------------------------------------------------


def _median(rows: Sequence[Row], title: str, system: str, metric: str, unit: str) -> float | None:
    found = [
        row.median
        for row in rows
        if row.case.startswith(title)
        and (row.system, row.metric, row.unit) == (system, metric, unit)
    ]
    return found[0] if found else None


def _over(one: float | None, other: float | None) -> float | None:
    return float(f"{one / other:.4g}") if one and other else None


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The ratios that `make bench-engine` promises, from its rows; None where one is not measured.

    Speed-ups are a peer's time over ours, floors are ours over theirs, medians of CPU time; those
    ending in `_wall` are of wall time. FedJAX's is the faster of the two that were measured.
    """
    ratios: dict[str, float | None] = {}
    for unit, end in (("ms CPU", ""), ("ms wall", "_wall")):
        for model, title in TITLES.items():
            time_of = {
                system.name: _median(rows, title, system.name, "round", unit) for system in SYSTEMS
            }
            ours = time_of[OURS]
            fedjax = [time for time in (time_of[FEDJAX], time_of[FEDJAX_OLD]) if time]
            theirs = {
                "fedjax": min(fedjax, default=None),
                "pfl": time_of[PFL],
                "pfl_two_processes": time_of[PFL_TWO],
                "flower": time_of[FLOWER],
            }
            for peer, time_ in theirs.items():
                ratios[f"{model}_vs_{peer}{end}"] = _over(time_, ours)
            ratios[f"{model}_over_plain_loop{end}"] = _over(ours, time_of[PLAIN])
            ratios[f"{model}_over_matmul_floor{end}"] = _over(ours, time_of[PRODUCTS])
            ratios[f"{model}_federation_over_simulation{end}"] = _over(time_of[FEDERATION], ours)
    steps = {
        cohort: _median(rows, SCALING, f"ours, {cohort:,} clients a round", "step", "ms CPU")
        for cohort in COHORTS
    }
    for cohort in list(COHORTS)[:-1]:
        ratios[f"linear_{cohort}_to_{POPULATION}"] = _over(steps[POPULATION], steps[cohort])
    return ratios


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """What the ratios are to reach, and what bounds them by the figures of this run."""

    def told(model: str, *systems: str) -> str:
        """A round's CPU time and wall time by these systems."""
        parts = []
        for system in (OURS, *systems):
            cpu, wall = (
                _median(rows, TITLES[model], system, "round", unit)
                for unit in ("ms CPU", "ms wall")
            )
            if cpu and wall:
                parts.append(f"{system} {figure(cpu)} ms CPU and {figure(wall)} ms wall")
        return f"A round: {'; '.join(parts)}." if len(parts) == 1 + len(systems) else ""

    goals = []
    for model, name in (("lr", "logistic regression"), ("mlp", "MLP")):
        goals += [
            Goal(
                f"{name}, times faster than FedJAX",
                f"{model}_vs_fedjax",
                6,
                True,
                told(model, FEDJAX, FEDJAX_OLD, PLAIN),
            ),
            Goal(
                f"{name}, times faster than pfl in one process",
                f"{model}_vs_pfl",
                8,
                True,
                told(model, PFL, PLAIN),
            ),
            Goal(
                f"{name}, times faster than Flower",
                f"{model}_vs_flower",
                40,
                True,
                told(model, FLOWER, PLAIN),
            ),
            Goal(
                f"{name}, over the plain loop",
                f"{model}_over_plain_loop",
                1.15,
                False,
                told(model, PLAIN),
            ),
        ]
    goals += [
        Goal("CNN, times faster than FedJAX", "cnn_vs_fedjax", 2, True,
             told("cnn", FEDJAX, FEDJAX_OLD, PLAIN)),
        Goal("CNN, times faster than pfl in two processes", "cnn_vs_pfl_two_processes", 1, True,
             told("cnn", PFL_TWO, PLAIN)),
        Goal("CNN, over its matrix products alone", "cnn_over_matmul_floor", 1.3, False,
             told("cnn", PLAIN, PRODUCTS)),
        Goal(f"CPU time a step with {POPULATION:,} clients a round over 10",
             f"linear_10_to_{POPULATION}", 1.05, False),
    ]  # fmt: skip
    return goals


def about(note: str) -> list[str]:
    """How it was measured, and with which settings."""
    parts = [
        f"{engine_work.NUM_CLIENTS:,} clients of EMNIST's shape (28 x 28 x 1, 62 classes; "
        "synthetic; log-normal sizes, mean 100, median 58, largest 907; classes skewed by client), "
        f"{engine_work.COHORT} a round, batches of {engine_work.BATCH_SIZE}, one local epoch, SGD "
        f"{engine_work.LEARNING_RATE}, federated averaging weighted by examples. Every system "
        "reads the same file, begins with the same parameters and trains the same cohorts in the "
        "same order. They take turns, a few rounds at a time (Flower, which is busy even while "
        "it waits, runs after the others have ended); compiling and starting are left out. "
        "Figures are of a whole round, median (lowest to highest). CPU time is that of all threads "
        "of a system's process and of its children, read from the kernel's clock of each process; "
        "Ray's and pfl's workers are such children.",
        "Before timing, every system trained "
        f"{len(engine_work.CHECK_SIZES)} clients for one round, and its parameters were compared "
        f"with a loop that federates nothing but arithmetic: they may be {PARAMETER_BOUND:g} of "
        "the largest change apart. Peers took records in order; ours, which always shuffles, made "
        "three passes of one batch each, where order does not matter. After the last timed round, "
        f"accuracies on 2,000 held-out records may differ by {ACCURACY_BOUND:g}: each system "
        "shuffles in its own way (pfl does not).",
        "What each system is. "
        "FedJAX 0.0.17: its `federated_averaging` on in-memory data with the jit backend, on the "
        "newest JAX that it can be made to run on (one name put back) and on JAX 0.4.30, whichever "
        "is faster; its pmap backend on two CPU devices runs on the older one only, and took 2.2 "
        "(LR) and 1.5 times (MLP) the jit backend's CPU time; a last batch is filled up with "
        "records drawn again, as FedJAX does; of XLA's convolution and a product over patches, the "
        "faster. pfl 0.6.0: its "
        "`FederatedAveraging` and `SimulatedBackend` on tensors in memory, PyTorch with one thread "
        "a process, of two memory layouts the faster; two processes by its own "
        "`torch.distributed` route (gloo), users dealt by numbers of batches as its guide says. "
        "Flower 1.42: its simulation with 1,000 nodes, two "
        "Ray workers of one core, its FedAvg strategy; clients train in PyTorch with network, "
        "optimiser and data kept in the worker between messages, without a data loader.",
        "The plain loop runs our model's SGD steps, as many as the round has, in one compiled loop "
        "on each of two devices, over whole batches that lie ready: no clients, no gathering, no "
        "averaging. Matrix products alone are those of the same steps (forwards, kernels' and "
        "inputs' gradients; a convolution's patches lie ready) in numpy's BLAS, two threads.",
        f"Scaling: 10 to {POPULATION:,} clients a round of {POPULATION:,} clients with 8-bit "
        "pixels, the MLP. Memory of a round is how far the process's peak lies above where it was "
        "before the round.",
    ]
    return [note, *parts] if note else parts


PANEL_TITLES = {
    "lr": "Round, logistic regression",
    "mlp": "Round, MLP",
    "cnn": "Round, EMNIST CNN",
}


# -- the run ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print progress, and write docs/benchmarks/engine.*."""
    parser = argparse.ArgumentParser(description="Rounds, beside FedJAX, pfl and Flower.")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--models", nargs="+", choices=engine_work.MODELS, help="only these")
    parser.add_argument("--without-peers", action="store_true", help="ours and the floors only")
    parser.add_argument("--without-scaling", action="store_true", help="50 clients a round only")
    parser.add_argument("--note", default="", help="a first paragraph for the page")
    parser.add_argument("--folder", type=Path, help="where to write; default docs/benchmarks")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s {text}", flush=True)

    systems = [s for s in SYSTEMS if not (options.without_peers and s.python[0])]
    note = options.note
    if options.quick:
        note = " ".join(filter(None, [note, "A quick run, with few repetitions."]))
    models = options.models or list(engine_work.MODELS)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), QUICK if options.quick else PLAN, log)
        for apart in (False, True):
            together = [system for system in systems if system.apart == apart]
            run.measure(together, models)
        if not options.without_scaling:
            log("scaling")
            run.scaling(3 if options.quick else 5)
    versions = versions_of("jax", "jaxlib", "numpy", "flax")
    for system, found in run.facts.items():
        if system.python[0]:
            versions[system.python[0]] = f"{found['version']} ({found['with']})"
    keep = {"folder": options.folder} if options.folder else {}
    cases = {model: run.case(model) for model in models}
    path = write(
        "engine",
        title="Rounds of simulated federated learning",
        about=about(note),
        rows=sorted(run.rows, key=_order),
        ratios=ratios_of(run.rows),
        versions=versions,
        goals=goals_of(run.rows),
        panels=[
            Panel(f"{PANEL_TITLES[model]}", "round", unit, {case: ""})
            for model, case in cases.items()
            for unit in ("ms CPU", "ms wall")
        ],
        **keep,
    )
    log(f"wrote {path}")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def _order(row: Row) -> tuple[int, int]:
    """Models as they are listed, then systems; the rest stays as it was measured."""
    cases = [place for place, title in enumerate(TITLES.values()) if row.case.startswith(title)]
    names = [system.name for system in SYSTEMS]
    return (
        cases[0] if cases else len(TITLES),
        names.index(row.system) if row.system in names else len(names),
    )


if __name__ == "__main__":
    main()
