"""Systems under measurement, each in a process of its own interpreter, one repetition at a time.

A peer may need another Python than ours, so every system runs in a worker process: the driver asks
the workers in turn, and whatever else the machine does hits all alike. This file runs on both
sides. In the worker it may import nothing but the standard library and numpy, and must run on
Python 3.10; requests and replies are lines of JSON, arrays travel as `.npy` files.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

Factory = Callable[..., Any]


class Timing(NamedTuple):
    """One repetition: CPU time of all threads of the worker and its children, and wall time."""

    cpu_ms: float
    wall_ms: float


# -- the worker ------------------------------------------------------------------------------------


def serve(factories: Mapping[str, Factory]) -> NoReturn:
    """Answer requests until the driver closes the pipe; the last line of a worker's script.

    Requests: ``open`` makes a system from a factory and keyword arguments and returns its
    ``facts``; ``run`` times one method; ``call`` calls one without timing it; ``save`` writes the
    array that a method returns.
    """
    requests, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a library prints does not reach the replies
    systems: dict[str, Any] = {}
    for line in requests:
        try:
            reply = {"result": _answer(json.loads(line), systems, factories)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    for system in systems.values():
        if hasattr(system, "close"):  # it has threads or processes to end
            system.close()
    sys.exit(0)


def _answer(request: dict, systems: dict[str, Any], factories: Mapping[str, Factory]) -> Any:
    what, name = request["what"], request["system"]
    arguments = request.get("arguments", {})
    if what == "open":
        systems[name] = factories[request["factory"]](**arguments)
        return systems[name].facts
    if what == "close":
        del systems[name]
        gc.collect()
        return None
    method = getattr(systems[name], request["method"])
    if what == "call":
        return method(**arguments)
    if what == "save":
        np.save(request["path"], method(**arguments))
        return None
    gc.collect()
    gc.disable()
    before = children_seconds()
    wall, cpu = time.perf_counter(), time.process_time()
    method(**arguments)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = children_seconds()
    gc.enable()
    cpu += sum(seconds - before.get(process, 0.0) for process, seconds in after.items())
    return Timing(1e3 * cpu, 1e3 * wall)


def children_seconds() -> dict[int, float]:
    """CPU seconds so far of this process's children and theirs, by process number.

    Read from each process's own CPU clock, to the nanosecond; a system's workers have to live
    longer than the repetition that is timed. Empty where there is no /proc.
    """
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
    family, seconds = {os.getpid()}, {}
    grown = True
    while grown:
        born = {child for child, parent in parents.items() if parent in family} - family
        family |= born
        grown = bool(born)
    for process in family - {os.getpid()}:
        with contextlib.suppress(OSError):
            # The kernel's number of a process's CPU clock: clock_getcpuclockid(3).
            seconds[process] = time.clock_gettime((~process << 3) | 2)
    return seconds


# -- the driver ------------------------------------------------------------------------------------


# Runs a script on some cores: chosen before any library starts its threads.
_PINNED = """
import os, runpy, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
del sys.argv[:2]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class WorkerError(Exception):
    """A worker died, or a system in it raised."""


class Worker:
    """A worker's process, bound to some cores; a context manager.

    Args:
        python: the interpreter.
        script: the file that ends with :func:`serve`.
        cores: the cores that it may use; libraries are told to start as many threads.
        environment: variables on top of those of this process; None takes one away.
    """

    def __init__(
        self,
        python: str | Path,
        script: Path,
        cores: set[int],
        environment: Mapping[str, str | None] | None = None,
    ):
        count = str(len(cores))
        variables = dict(
            os.environ,
            OMP_NUM_THREADS=count,
            OPENBLAS_NUM_THREADS=count,
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES="1",
        )
        # Programs are compiled for a number of threads, which a cache of them does not tell apart.
        variables.pop("JAX_COMPILATION_CACHE_DIR", None)
        for name, value in (environment or {}).items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        self._name = script.stem
        self._process = subprocess.Popen(
            [str(python), "-c", _PINNED, ",".join(map(str, sorted(cores))), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def open(self, system: str, factory: str, **arguments: Any) -> dict[str, Any]:
        """Make a system; returns what it says about itself."""
        return self._ask(what="open", system=system, factory=factory, arguments=arguments)

    def run(self, system: str, method: str, **arguments: Any) -> Timing:
        """Time one repetition of a method."""
        return Timing(*self._ask(what="run", system=system, method=method, arguments=arguments))

    def call(self, system: str, method: str, **arguments: Any) -> Any:
        """Call a method without timing it."""
        return self._ask(what="call", system=system, method=method, arguments=arguments)

    def array(self, system: str, method: str, path: Path, **arguments: Any) -> np.ndarray:
        """The array that a method returns, by way of a file."""
        self._ask(what="save", system=system, method=method, path=str(path), arguments=arguments)
        return np.load(path)

    def close(self) -> None:
        """End the process: it leaves when its input is closed."""
        with self._process:  # closes both pipes and waits
            pass

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self._name} ended with exit status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{request['system']} in {self._name}: {reply['error']}")
        return reply["result"]
