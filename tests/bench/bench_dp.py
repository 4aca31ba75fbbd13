"""Differential privacy: clipping, samplers and steps of DP-SGD beside peers (`make bench-dp`).

Every system runs in a worker process of its own interpreter on one core, and the workers take
turns. Before anything is timed, what a system makes is compared: sums with numpy's in double
precision, draws with the law's mean and variance. One of ours that is off ends the run, and nothing
is written. Steps of DP-SGD come from `our_dpsgd.py`, `peer_opacus.py` and `peer_jax_privacy.py`,
whose factory ``dpsgd`` has ``start(kind)``, ``steps(count)`` and ``clipped_sum()``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dpsgd_work
import numpy as np
import peer_env
from report import Goal, Panel, Row, figure, versions_of, write
from worker import Worker, WorkerError

BENCH = Path(__file__).resolve().parent
MILLION = 1_000_000

OURS = "ours"
ROWS, DIM, L2_BOUND = 1_000, 100_000, 3.0
CLIP = f"Clip and sum, {ROWS:,} x {DIM:,} float32, one core"
STEP = f"DP-SGD step, EMNIST CNN, batch of {dpsgd_work.BATCH_SIZE}, one core"
#: How far a clipped sum may be from the one in double precision, over its norm: ours is lowered by
#: a proved 2.0e-5, so that no row is above the bound.
CLIP_AGREEMENT = 1e-4
#: How far the exact path may be: every record is rounded to a 24-bit ring.
EXACT_AGREEMENT = 2e-2
#: A mean or a variance further off than this many standard errors is another law: 2e-9 by chance.
LIMIT = 6.0

SIGMAS = (1.0, 10.0, 100.0, 1000.0, 1e6)
#: Law, parameter, standard deviation, excess kurtosis at most.
LAWS = [
    *[("discrete Gaussian", sigma, sigma, 0.1) for sigma in SIGMAS],
    ("Skellam", 100.0, 10.0, 0.1),
    ("Skellam", 1e6, 1000.0, 0.1),
    ("discrete Laplace", 10.0, math.sqrt(2) * 10, 3.1),
    ("discrete Laplace", 1e4, math.sqrt(2) * 1e4, 3.1),
]

QUICK_LAWS = [("discrete Gaussian", 1.0), ("discrete Gaussian", 1000.0), ("Skellam", 100.0)]

#: Repetitions of clipping and sampling, of OpenDP's (20,000 draws each), and of steps.
PLAN, QUICK = (7, 3, 5), (3, 1, 3)
OPENDP_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class System:
    """A system under measurement.

    Args:
        name: in tables and the picture.
        script, factory: what the worker makes it from.
        python: its interpreter: ``(environment, module to import)``; empty for ours.
        kind: of a step of DP-SGD.
        draws: of one repetition of a sampler.
        steps: of DP-SGD in one repetition. A compiled loop gets its memory once, from the system;
            of a round of one step that is a quarter of the time.
    """

    name: str
    script: str
    factory: str
    python: tuple[str, str] = ("", "")
    kind: str = ""
    draws: int = MILLION
    steps: int = 8


_OPACUS, _JAX_PRIVACY = ("opacus", "opacus"), ("jax-privacy", "jax_privacy")
CLIPPERS = (
    System(OURS, "our_dp.py", "clip"),
    System("torch, norm and gemv", "peer_clip.py", "torch", _OPACUS),
    System("jax_privacy", "peer_clip.py", "jax_privacy", _JAX_PRIVACY),
)
OPENDP = System("OpenDP", "peer_opendp.py", "sampler", ("opendp", "opendp"), draws=OPENDP_DRAWS)
SAMPLERS = (
    System(OURS, "our_dp.py", "sampler"),
    OPENDP,
    System("jax.random.poisson twice", "our_dp.py", "poisson"),
)
GHOST, PLAIN = "ours, ghost", "ours, without privacy"
STEPPERS = (
    System(PLAIN, "our_dpsgd.py", "dpsgd", kind="non_private"),
    System(GHOST, "our_dpsgd.py", "dpsgd", kind="ghost"),
    System("ours, exact records", "our_dpsgd.py", "dpsgd", kind="exact", steps=1),
    System("ours, vmap", "our_dpsgd.py", "dpsgd", kind="vmap", steps=1),
    System("torch without privacy", "peer_opacus.py", "dpsgd", _OPACUS, "non_private"),
    System("Opacus, ghost", "peer_opacus.py", "dpsgd", _OPACUS, "ghost"),
    System("Opacus, hooks", "peer_opacus.py", "dpsgd", _OPACUS, "hooks"),
    System("jax without privacy", "peer_jax_privacy.py", "dpsgd", _JAX_PRIVACY, "non_private"),
    System("jax_privacy", "peer_jax_privacy.py", "dpsgd", _JAX_PRIVACY, "default", steps=1),
    System("jax_privacy, microbatch of 1", "peer_jax_privacy.py", "dpsgd", _JAX_PRIVACY,
           "microbatch", steps=1),
)  # fmt: skip


class WrongResult(Exception):
    """A system made something else than it should have."""


# -- measuring -------------------------------------------------------------------------------------


def law_case(law: str, parameter: float) -> str:
    """The case of a sampler's rows."""
    name = {"discrete Gaussian": "sigma", "Skellam": "variance", "discrete Laplace": "scale"}[law]
    return f"{law[0].upper()}{law[1:]}, {name} {parameter:,g}"


def check_law(name: str, drawn: np.ndarray, stddev: float, kurtosis: float) -> None:
    """Refuses draws whose mean or variance is not the law's.

    Raises:
        WrongResult: one is more than `LIMIT` standard errors away.
    """
    drawn = drawn.astype(np.float64)
    mean = drawn.mean() / stddev * math.sqrt(len(drawn))
    variance = (drawn.var() / stddev**2 - 1) / math.sqrt((kurtosis + 2) / len(drawn))
    if not max(abs(mean), abs(variance)) < LIMIT:
        raise WrongResult(
            f"{name}: mean and variance are {mean:.1f} and {variance:.1f} standard errors off")


def check_sum(name: str, found: np.ndarray, wanted: np.ndarray, most: float) -> float:
    """How far a sum is from the one in double precision, over its norm.

    Raises:
        WrongResult: further than `most`.
    """
    away = dpsgd_work.disagreement(found, wanted)
    if not away <= most:
        raise WrongResult(f"{name}: {away:.2g} from the sum in double precision, at most {most:g}")
    return away


class Run:
    """Workers, samples and rows of one run."""

    def __init__(self, folder: Path, plan: tuple[int, int, int], log: Callable[[str], None]):
        self.folder, self.log = folder, log
        self.repeats, self.opendp_repeats, self.step_repeats = plan
        self.rows: list[Row] = []
        self.versions: dict[str, str] = {}
        self.core = {min(os.sched_getaffinity(0))}

    @contextlib.contextmanager
    def opened(self, case: str, systems: Sequence[System], arguments: Mapping[str, Any]):
        """The workers of those systems that can be had; a row for each of the others."""
        with contextlib.ExitStack() as stack:
            workers: dict[System, Worker] = {}
            for system in systems:
                python, why = Path(sys.executable), ""
                if system.python[0]:
                    python, why = peer_env.ready(*system.python, python="3.11", locked=True)
                try:
                    if python is None:
                        raise WorkerError(why)
                    script = BENCH / system.script
                    worker = stack.enter_context(
                        Worker(python, script, self.core, {"MKL_NUM_THREADS": "1"}))
                    own = {"draws": system.draws} if "law" in arguments else {}
                    facts = worker.open("it", system.factory, **arguments, **own)
                    workers[system] = worker
                    if system.python[0]:
                        name = system.python[0]
                        self.versions[name] = f"{facts['version']} ({facts['with']})"
                except WorkerError as error:
                    self.lost(case, system, error)
            yield workers

    def lost(self, case: str, system: System, error: Exception) -> None:
        """A row that says why a peer has no figure; ours must not fail."""
        self.log(f"  {system.name}: {error}")
        if not system.python[0]:
            raise error
        why = (str(error).splitlines() or ["no message"])[0]
        self.rows.append(Row.missing(case, system.name, why))

    def in_turns(
        self, workers: Mapping[System, Worker], case: str, metric: str, method: str, repeats: int,
        scale: Callable[[System], float] = lambda system: 1.0, unit: str = "ms CPU",
        **arguments: Callable[[System], Any],
    ) -> None:
        """Times a method of all workers, one repetition of each after the other."""
        samples: dict[System, list[float]] = {system: [] for system in workers}
        for _ in range(repeats):
            for system, worker in workers.items():
                given = {name: value(system) for name, value in arguments.items()}
                timing = worker.run("it", method, **given)
                samples[system].append(timing.cpu_ms * scale(system))
        for system, found in samples.items():
            self.rows.append(Row.of(case, system.name, metric, found, unit))

    def array(self, worker: Worker, method: str) -> np.ndarray:
        """What a worker's method returns."""
        return worker.array("it", method, self.folder / "array.npy")

    def clipping(self) -> None:
        """Clip and sum by all who can."""
        random = np.random.default_rng(0)
        values = random.standard_normal((ROWS, DIM), np.float32)
        values *= np.exp(random.standard_normal((ROWS, 1))).astype(np.float32) * np.float32(0.01)
        path = self.folder / "rows.npy"
        np.save(path, values)
        wanted = np.zeros(DIM)
        for row in values:
            exact = row.astype(np.float64)
            wanted += exact * min(1.0, L2_BOUND / np.linalg.norm(exact))
        del values
        with self.opened(CLIP, CLIPPERS, {"values": str(path), "l2_bound": L2_BOUND}) as workers:
            for system, worker in workers.items():
                worker.call("it", "clip")
                name = f"{CLIP}, {system.name}"
                away = check_sum(name, self.array(worker, "total"), wanted, CLIP_AGREEMENT)
                self.rows.append(Row.of(CLIP, system.name, "distance from the sum in double "
                                        "precision", [away], "of its norm"))
            self.in_turns(workers, CLIP, "clip and sum", "clip", self.repeats)
        path.unlink()

    def sampling(self, law: str, parameter: float, stddev: float, kurtosis: float) -> None:
        """Draws of one law by all who have it."""
        case = law_case(law, parameter)
        systems = [
            system for system in SAMPLERS
            if (system is OPENDP) <= (law != "Skellam")
            and (system.factory == "poisson") <= (law == "Skellam")
        ]  # fmt: skip
        with self.opened(case, systems, {"law": law, "parameter": parameter}) as workers:
            for system, worker in list(workers.items()):
                worker.call("it", "draw")
                name = f"{case}, {system.name}"
                try:
                    check_law(name, self.array(worker, "drawn"), stddev, kurtosis)
                except WrongResult as error:
                    if system.name == OURS:
                        raise
                    # a peer that draws another law has no time for this one
                    self.rows.append(Row.missing(case, system.name, str(error)))
                    del workers[system]
            for slow in (False, True):
                group = {s: w for s, w in workers.items() if (s is OPENDP) == slow}
                self.in_turns(
                    group, case, "a million draws", "draw",
                    self.opendp_repeats if slow else self.repeats,
                    lambda system: MILLION / system.draws)  # fmt: skip
            ours = {s: w for s, w in workers.items() if s.name == OURS}
            self.in_turns(ours, case, "without the keystream", "search", self.repeats)

    def stepping(self) -> None:
        """Steps with and without privacy."""
        wanted = dpsgd_work.reference()
        with self.opened(STEP, STEPPERS, {}) as workers:
            for system, worker in list(workers.items()):
                try:
                    worker.call("it", "start", kind=system.kind)
                    if system.kind != "non_private":
                        found = self.array(worker, "clipped_sum")
                        exact = system.kind == "exact"
                        most = EXACT_AGREEMENT if exact else dpsgd_work.AGREEMENT
                        away = check_sum(f"{STEP}, {system.name}", found, wanted, most)
                        self.rows.append(Row.of(STEP, system.name, "distance from the sum in "
                                                "double precision", [away], "of its norm"))
                except WorkerError as error:
                    self.lost(STEP, system, error)
                    del workers[system]
            self.in_turns(
                workers, STEP, "step", "steps", self.step_repeats,
                lambda system: 1 / system.steps, count=lambda system: system.steps)  # fmt: skip


# -- figures of figures ----------------------------------------------------------------------------


def median_of(rows: Sequence[Row], case: str, system: str, metric: str) -> float | None:
    """The median of one figure; None where it was not measured."""
    found = [row.median for row in rows if (row.case, row.system, row.metric) ==
             (case, system, metric)]  # fmt: skip
    return found[0] if found else None


def _over(one: float | None, other: float | None) -> float | None:
    return float(f"{one / other:.4g}") if one and other else None


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """What `make bench-dp` promises, from its rows; None where one is not measured.

    A `vs` is a peer's CPU time over ours, an `over` is ours over the other, of medians.
    """
    step = {system.name: median_of(rows, STEP, system.name, "step") for system in STEPPERS}
    ours = step[GHOST]
    jax_privacy = [ms for name, ms in step.items() if name.startswith("jax_privacy") and ms]
    clipped = {s.name: median_of(rows, CLIP, s.name, "clip and sum") for s in CLIPPERS}
    gaussian = []
    for sigma in SIGMAS[:4]:
        case = law_case("discrete Gaussian", sigma)
        theirs, own = (median_of(rows, case, name, "a million draws") for name in ("OpenDP", OURS))
        if theirs and own:
            gaussian.append(theirs / own)
    return {
        "dpsgd_over_nonprivate": _over(ours, step[PLAIN]),
        "dpsgd_vs_opacus_ghost": _over(step["Opacus, ghost"], ours),
        "dpsgd_vs_opacus_hooks": _over(step["Opacus, hooks"], ours),
        "dpsgd_vs_jax_privacy": _over(min(jax_privacy, default=None), ours),
        "clip_sum_over_torch_gemv": _over(clipped[OURS], clipped["torch, norm and gemv"]),
        "clip_sum_vs_jax_privacy": _over(clipped["jax_privacy"], clipped[OURS]),
        "discrete_gaussian_vs_opendp": _over(min(gaussian), 1.0) if gaussian else None,
    }


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """What the ratios are to reach, and what bounds them by the figures of this run."""

    def told(case: str, metric: str, *systems: str) -> str:
        found = [(system, median_of(rows, case, system, metric)) for system in systems]
        return "; ".join(f"{system} {figure(ms)} ms CPU" for system, ms in found if ms) + "."

    slowest = [
        median_of(rows, law_case("discrete Gaussian", sigma), OURS, "a million draws")
        for sigma in SIGMAS[:4]
    ]
    slowest = [ms for ms in slowest if ms]
    step = told(STEP, "step", GHOST, PLAIN, "Opacus, ghost", "torch without privacy")
    return [
        Goal("DP-SGD, over the step without privacy", "dpsgd_over_nonprivate", 1.2, False, step),
        Goal("DP-SGD, Opacus's ghost clipping over ours", "dpsgd_vs_opacus_ghost",
             float(f"{1 / 1.2:.3g}"), True, step),
        Goal("Clip and sum, over torch's norm and gemv", "clip_sum_over_torch_gemv", 1.3, False,
             told(CLIP, "clip and sum", OURS, "torch, norm and gemv")),
        Goal("Discrete Gaussian up to sigma 1,000, times faster than OpenDP",
             "discrete_gaussian_vs_opendp", 400, True),
        Goal("A million draws up to sigma 1,000, keystream included, ms CPU", "", 25, False,
             value=max(slowest, default=None)),
    ]  # fmt: skip


def about(note: str) -> list[str]:
    """How it was measured."""
    parts = [
        "Every system runs in a process of its own interpreter on one core, and they take turns. "
        "Figures are CPU time of all threads, median (lowest to highest); compiling and starting "
        "are left out.",
        "Before timing, every clipped sum was compared with numpy's in double precision, and the "
        "draws' mean and variance with those of their law, by six standard errors. Ours clips to a "
        "bound that is lowered by the proved float error (2.0e-5 of it at 100,000 values), so that "
        "no row exceeds it; peers make no such promise.",
        "Samplers: a million draws of ours include the ChaCha20 keystream of a 256-bit key; "
        f"OpenDP's figure is of {OPENDP_DRAWS:,} draws, scaled. Skellam by `jax.random.poisson`, "
        "twice, is no secure noise, and floating-point inside.",
        "A step of DP-SGD is the clipped sum of a batch's gradients and plain SGD with it, without "
        "noise, on the same records from the same parameters. Ghost clipping never forms the "
        "gradient of a record; \"exact records\" clips and rounds each one to integers, which is "
        "what the exact guarantee needs. A repetition is 8 steps in one call, as a training engine "
        "takes them; of the four slowest systems, one step.",
    ]  # fmt: skip
    return [note, *parts] if note else parts


def panels() -> list[Panel]:
    """The picture's parts."""
    gaussian = {law_case("discrete Gaussian", sigma): f", sigma {sigma:,g}" for sigma in SIGMAS}
    return [
        Panel("Step of DP-SGD", "step", "ms CPU", {STEP: ""}),
        Panel("Clip and sum", "clip and sum", "ms CPU", {CLIP: ""}),
        *[Panel(case, "a million draws", "ms CPU", {case: ""}) for case in list(gaussian)[2:]],
        Panel(law_case("Skellam", 100.0), "a million draws", "ms CPU",
              {law_case("Skellam", 100.0): ""}),
    ]  # fmt: skip


# -- the run ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print progress, and write docs/benchmarks/dp.*."""
    parser = argparse.ArgumentParser(description="Differential privacy, beside peers.")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--only", nargs="+", choices=("clip", "samplers", "steps"), help="parts")
    parser.add_argument("--note", default="", help="a first paragraph for the page")
    parser.add_argument("--folder", type=Path, help="where to write; default docs/benchmarks")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s {text}", flush=True)

    note = options.note
    if options.quick:
        note = " ".join(filter(None, [note, "A quick run, with few repetitions."]))
    wanted = options.only or ("clip", "samplers", "steps")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), QUICK if options.quick else PLAN, log)
        if "steps" in wanted:
            log(STEP)
            run.stepping()
        if "clip" in wanted:
            log(CLIP)
            run.clipping()
        laws = [law for law in LAWS if not options.quick or law[:2] in QUICK_LAWS]
        for law in laws if "samplers" in wanted else ():
            log(law_case(*law[:2]))
            run.sampling(*law)
    present = {row.case for row in run.rows if row.median}
    shown = [panel for panel in panels() if present & set(panel.cases)]
    path = write(
        "dp",
        title="Differential privacy: clipping, samplers and DP-SGD",
        about=about(note),
        rows=run.rows,
        ratios=ratios_of(run.rows),
        versions=versions_of("jax", "jaxlib", "numpy") | run.versions,
        goals=goals_of(run.rows),
        panels=shown,
        **({"folder": options.folder} if options.folder else {}),
    )
    log(f"wrote {path}")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
