"""Times the kernels on this machine: ``python -m fedjax_kernels.bench`` runs all of them.

Each kernel's `bench` module has `rows()`. A figure is CPU time, so that other work on the machine
disturbs it less; the first call, which compiles, is a row of its own. With ``--write FOLDER`` the
figures are written to ``kernels.json`` there, and a page is rendered from that file alone.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

KERNELS = ("modular", "ntt", "chacha", "discrete_gaussian", "rlwe")
REPETITIONS = 11
#: What a row's figures are divided by, and its unit: a million 32-bit words.
MILLION = 1 << 20


class Row(NamedTuple):
    """One figure: the repetitions' median, least and most, in `unit`."""

    case: str
    system: str
    metric: str
    median: float
    min: float
    max: float
    unit: str


def uniform_words(*shape: int, seed: int = 0) -> jax.Array:
    """uint32 words to time with; nothing depends on their quality."""
    return jax.numpy.asarray(
        np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint32)
    )


def timed(
    case: str, metric: str, function: Callable[..., Any], *args: Any, scale: float = 1.0
) -> list[Row]:
    """CPU ms of `jax.jit(function)(*args)`, times `scale`, and of its first call, unscaled.

    Args:
        case: the sizes, for the table.
        metric: what is timed.
        function: takes the arrays.
        args: arrays, made beforehand.
        scale: 2^20 over the number of words, for a figure per million words.
    """

    def once() -> float:
        start = time.process_time()
        jax.block_until_ready(compiled(*args))
        return (time.process_time() - start) * 1e3

    compiled = jax.jit(function)
    first = once()
    samples = [once() * scale for _ in range(REPETITIONS)]
    unit = "ms CPU" if scale == 1.0 else "ms CPU per 2^20"
    system = f"{jax.default_backend()}, jax {jax.__version__}"
    figures = (statistics.median(samples), min(samples), max(samples))
    return [
        Row(case, system, metric, *(round(figure, 4) for figure in figures), unit),
        Row(case, system, f"{metric}, first call", *[round(first, 1)] * 3, "ms CPU"),
    ]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| case | what | median | min | max | unit |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = " | ".join(f"{figure:.4g}" for figure in (row.median, row.min, row.max))
        lines.append(f"| {row.case} | {row.metric} | {figures} | {row.unit} |")
    return "\n".join(lines)


def all_rows() -> Iterator[Row]:
    """The rows of every kernel."""
    for name in KERNELS:
        yield from importlib.import_module(f"fedjax_kernels.{name}.bench").rows()


def ratios(rows: Iterable[Row]) -> dict[str, float]:
    """How the transform compares with the product that bounds it, and encryption with its parts."""
    least = {(row.case, row.metric): row.min for row in rows}
    transform = {case: ms for (case, metric), ms in least.items() if metric == "ntt.forward"}
    whole = {case: ms for (case, metric), ms in least.items() if metric == "encrypt_lanes"}
    found = {
        f"ntt_inverse_over_forward {case}": least[case, "ntt.inverse"] / ms
        for case, ms in transform.items()
    }
    for case, ms in whole.items():
        found[f"keystream_share_of_encryption {case}"] = least[case, "keystream"] / ms
    return {name: round(value, 3) for name, value in found.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


def _commit() -> str:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def document(rows: list[Row]) -> dict[str, Any]:
    """What is written: the machine, versions, commit, rows and ratios."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": {"processor": _processor(), "cores": cores, "system": platform.system()},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "commit": _commit(),
        "rows": [row._asdict() for row in rows],
        "ratios": ratios(rows),
    }


def page(found: dict[str, Any]) -> str:
    """The page of a document of :func:`document`, as Markdown."""
    machine, versions = found["machine"], found["versions"]
    lines = [
        "# Kernels on a CPU",
        "",
        "Written by `make bench-kernels`; every figure is in `kernels.json`.",
        "",
        f"{machine['processor']}, {machine['cores']} cores, jax {versions['jax']}, Python "
        f"{versions['python']}, commit {found['commit']}. {REPETITIONS} repetitions.",
        "",
        table(Row(**row) for row in found["rows"]),
        "",
        "| ratio | |",
        "|---|---|",
        *(f"| {name} | {value:.3g} |" for name, value in found["ratios"].items()),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Prints the table; ``--write FOLDER`` writes the file and the page."""
    rows = list(all_rows())
    print(table(rows))
    if arguments[:1] == ["--write"]:
        folder = Path(arguments[1])
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "kernels.json"
        file.write_text(json.dumps(document(rows), indent=1) + "\n")
        (folder / "kernels.md").write_text(page(json.loads(file.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
