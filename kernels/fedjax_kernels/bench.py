"""Times the kernels on this machine: ``python -m fedjax_kernels.bench`` runs all of them.

Each kernel's `bench` module has `rows()`. A figure is CPU time, so that other work on the machine
disturbs it less; the first call, which compiles, is a row of its own. ``make bench-kernels`` writes
the figures and a page of them.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

KERNELS = ("modular", "ntt", "chacha", "discrete_gaussian", "rlwe")
REPETITIONS = 7
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
    middle = {(row.case, row.metric): row.median for row in rows}
    transform = {case: ms for (case, metric), ms in middle.items() if metric == "ntt.forward"}
    whole = {case: ms for (case, metric), ms in middle.items() if metric == "encrypt_lanes"}
    found = {
        f"ntt_inverse_over_forward {case}": middle[case, "ntt.inverse"] / ms
        for case, ms in transform.items()
    }
    for case, ms in whole.items():
        found[f"keystream_share_of_encryption {case}"] = middle[case, "keystream"] / ms
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    print(table(all_rows()))
