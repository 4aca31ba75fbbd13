"""Writes the kernels' figures on this machine: ``make bench-kernels``.

What is timed, and how, is beside each kernel: `fedjax_kernels.bench` and `bench.py` of its folder.
"""

from __future__ import annotations

import inspect
import os
import time

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    # One core, chosen before JAX starts its threads: two take more CPU time for the same work.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from report import Row, versions_of, write

from fedjax_kernels import bench
from fedjax_kernels.ntt import xla as ntt


def tries() -> str:
    """What was tried for the transform: the table in its module's text."""
    paragraphs = inspect.cleandoc(ntt.__doc__ or "").split("\n\n")
    at = next(i for i, text in enumerate(paragraphs) if text.startswith("What was tried"))
    table = inspect.cleandoc("\n" + paragraphs[at + 1])
    return f"{paragraphs[at]}\n\n```text\n{table}\n```\n\n{paragraphs[at + 2]}"


def main() -> None:
    """Times every kernel and writes the page."""
    start, before = time.time(), os.getloadavg()
    figures = list(bench.all_rows())
    load = " and ".join(f"{least:.1f}" for least in (before[0], os.getloadavg()[0]))
    path = write(
        "kernels",
        title="Kernels on a CPU",
        about=[
            f"CPU time on one core, as the median (lowest to highest) of {bench.REPETITIONS} "
            "calls; the first call, which traces and compiles, is a column of its own. Figures "
            '"per 2^20" are for that many 32-bit words, whatever the case holds; of encryption, '
            "for the whole update of 2^20 values of 16 bits.",
            f"The load average was {load} before and after.",
            tries(),
        ],
        rows=[Row(**figure._asdict()) for figure in figures],
        ratios=bench.ratios(figures),
        versions=versions_of("jax", "numpy"),
    )
    print(f"{len(figures)} rows in {time.time() - start:.0f} s: {path}")


if __name__ == "__main__":
    main()
