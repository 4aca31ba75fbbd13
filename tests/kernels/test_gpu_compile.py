"""The GPU kernels compile for real GPUs, and spill no register. Needs `make gpu-compile` once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "gpu_compile.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.gpu_compile
@pytest.mark.parametrize("case", ["modular", "ntt", "chacha", "discrete_gaussian", "rlwe"])
def test_kernels_compile_and_spill_nothing(case, tmp_path):
    if run("--check-environment").returncode:
        pytest.skip("the environment that compiles for GPUs is made by `make gpu-compile`")
    out = tmp_path / "gpu.json"
    done = run("--only", case, "--json", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    of = {(row["system"], row["case"], row["metric"]): row["median"] for row in rows}
    mosaic = [key for key in of if key[0].startswith("Mosaic GPU on h100")]
    xla = {key[0] for key in of if key[0].startswith("XLA on")}
    assert xla == {"XLA on h100: all", "XLA on a100: all"}
    assert {key[2] for key in mosaic} >= {"registers", "spill_bytes", "shared_bytes"}
    for system, name, metric in mosaic:
        if metric == "spill_bytes":
            assert of[system, name, metric] == 0, (system, name)
        if metric == "shared_bytes":  # what a block of an H100 can have
            assert of[system, name, metric] <= 227 * 1024, (system, name)
        if metric in ("registers", "multiplies", "others"):
            assert of[system, name, metric] > 0 or metric == "multiplies", (system, name)


def test_the_published_figures_spill_nothing_and_cover_every_kernel():
    """What the docs say was written by the script, and says it of all kernels there are."""
    published = json.loads((ROOT / "docs" / "benchmarks" / "gpu.json").read_text())
    spills = {
        row["system"]: row["median"]
        for row in published["rows"]
        if row["metric"] == "spill_bytes" and row["system"].startswith("Mosaic GPU")
    }
    assert set(spills.values()) == {0}
    kernels = " ".join(spills)
    for name in ("modular", "ntt_forward_4096", "ntt_inverse_4096", "chacha", "discrete_gaussian",
                 "rlwe_expand_and_sample", "rlwe_encrypt", "rlwe_phase"):  # fmt: skip
        assert name in kernels
    page = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    for system in spills:
        assert re.search(rf"`{system.split(': ')[1]}` \| \d+ \| 0 \|", page), system
