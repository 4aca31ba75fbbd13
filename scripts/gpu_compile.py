"""Compiles the GPU kernels on a machine without a GPU, and writes what the compilers report.

``python scripts/gpu_compile.py`` makes the environment `.venv-gpu` where it is missing, compiles
every case of `scripts/gpu/cases.py`, and writes `docs/benchmarks/gpu.json` and `gpu.md`. It ends
with status 1 where a kernel spills registers. ``--only TEXT`` takes some cases, ``--json FILE``
writes the figures there and nothing into the docs, ``--check-environment`` only says whether the
environment is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "scripts" / "gpu"
REQUIREMENTS = TOOLS / "requirements.txt"
VENV = ROOT / ".venv-gpu"
DOCS = ROOT / "docs" / "benchmarks"

#: 32-bit integer instructions a clock and multiprocessor, at compute capability 8.0 and 9.0.
INTEGER_LANES = 64


def environment() -> Path | None:
    """The interpreter of the environment, where it is complete."""
    python, stamp = VENV / "bin" / "python", VENV / "requirements.txt"
    complete = python.exists() and stamp.exists()
    return python if complete and stamp.read_text() == REQUIREMENTS.read_text() else None


def make_environment() -> Path:
    """The interpreter of the environment, made anew where it is missing or out of date."""
    if python := environment():
        return python
    if sys.version_info < (3, 12) or platform.system() != "Linux":
        raise SystemExit(
            "make gpu-compile needs Linux and Python 3.12 or newer, for jax 0.12; this is "
            f"{platform.system()} and Python {platform.python_version()}. "
            "Name another one: PYTHON=python3.12 make gpu-compile"
        )
    print(f"making {VENV.name} (about 1 GB)", file=sys.stderr, flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    python = VENV / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--only-binary=:all:", "-r", str(REQUIREMENTS)],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise SystemExit(
                f"{VENV.name} could not be made: {said[-1]}\nRun it again once mended."
            )
    (VENV / "requirements.txt").write_text(REQUIREMENTS.read_text())
    return python


def compile_all(python: Path, only: str) -> dict:
    """What the compilers report, from a process in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        command = [str(python), str(TOOLS / "compile_kernels.py"), str(out), "--only", only]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PYTHON"))}
        clean["TMPDIR"] = folder
        with log.open("w") as stream:
            done = subprocess.run(command, stdout=stream, stderr=stream, env=clean, check=False)
        if done.returncode:
            raise SystemExit(
                f"compiling needs to succeed, and ended with:\n{log.read_text()[-4000:]}"
            )
        return json.loads(out.read_text())


def estimate(row: dict, target: dict) -> tuple[float | None, float]:
    """The least microseconds for the bytes to move, and for the integer instructions to issue."""
    rate = target["multiprocessors"] * INTEGER_LANES * target["clock_ghz"] * 1e9
    memory = None if row["bytes"] is None else 1e6 * row["bytes"] / target["bytes_per_second"]
    return memory, 1e6 * (row["multiplies"] + row["others"]) / rate


def rows_of(found: dict) -> list[dict]:
    """One row for each figure, in the form that all benchmarks here share."""
    units = {
        "kernels": "kernels", "registers": "registers a thread", "spill_bytes": "bytes",
        "shared_bytes": "bytes a block", "bytes": "bytes", "multiplies": "instructions",
        "others": "instructions", "memory_us": "us", "integer_us": "us",
    }  # fmt: skip
    rows = []
    for row in found["rows"]:
        memory, integer = estimate(row, found["targets"][row["target"]])
        figures = row | {"memory_us": memory, "integer_us": integer}
        system = f"{row['implementation']} on {row['target']}: {row['kernel']}"
        for metric, unit in units.items():
            value = figures[metric]
            value = round(value, 3) if isinstance(value, float) else value
            rows.append(
                {"case": row["case"], "system": system, "metric": metric, "median": value,
                 "min": value, "max": value, "unit": unit}
            )  # fmt: skip
    return rows


def table(found: dict) -> list[str]:
    """The figures as lines of a Markdown table."""
    lines = [
        "| case | compiled as | registers | spills | shared KiB | MB moved | M multiplies "
        "| M other | memory us | integer us | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        memory, integer = estimate(row, found["targets"][row["target"]])
        kind = f"{row['implementation']}, {row['target'].upper()}"
        kind += f", `{row['kernel']}`" if row["kernel"] != "all" else f", {row['kernels']} kernels"
        moved = "loops" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        bound = "" if memory is None else ("memory" if memory > integer else "integers")
        lines.append(
            f"| {row['case']} | {kind} | {row['registers']} | {row['spill_bytes']} "
            f"| {row['shared_bytes'] / 1024:.0f} | {moved} | {row['multiplies'] / 1e6:.1f} "
            f"| {row['others'] / 1e6:.1f} | {'' if memory is None else f'{memory:.0f}'} "
            f"| {integer:.0f} | {bound} |"
        )
    return lines


def spills(found: dict) -> str:
    """A sentence on what spills."""
    xla = [row for row in found["rows"] if row["spill_bytes"] and row["implementation"] == "XLA"]
    parts = [
        f"{row['case']} on {row['target'].upper()} ({row['spill_bytes']} bytes)" for row in xla
    ]
    ours = any(row["spill_bytes"] for row in found["rows"] if row not in xla)
    first = "A Mosaic GPU kernel spills." if ours else "No Mosaic GPU kernel spills."
    return f"{first} Of XLA's own code generation, what spills is: {', '.join(parts) or 'nothing'}."


def page(found: dict) -> str:
    """The page of the docs."""
    targets = "\n".join(
        f"- {t['kind']}: {t['multiprocessors']} multiprocessors at {t['clock_ghz']} GHz, "
        f"{t['bytes_per_second'] / 1e12:.2f} TB/s."
        for t in found["targets"].values()
    )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""# GPU kernels, compiled without a GPU

No figure on this page was measured on a GPU. `make gpu-compile` compiles each kernel to machine
code and writes what the compilers report: registers, spilled bytes and shared memory. The times
are a **roofline estimate**. No run is faster than the memory time. The integer time is that of the
counted instructions at the stated rate: the machine does some pairs in one instruction, and the
upper half of a product may take two issue slots, so it can err either way. How near a run comes to
either is not known until one is made.

{chr(10).join(table(found))}

How to read it:

- *MB moved*: for a Mosaic GPU kernel, its operands and results once; for XLA, what its kernels
  read and write between them ("loops": the program has loops, and no estimate is made).
- *Multiplies, other*: 32-bit integer instructions, counted in the program with its loops and its
  grid, blocks padded to full size included. Address arithmetic, loads, stores and numbers that
  all threads share are not counted. The upper half of a product counts as one multiplication, a
  rotation as one instruction.
- *Memory us*: bytes over the bandwidth. *Integer us*: all counted instructions over
  {INTEGER_LANES} a clock and multiprocessor (CUDA C++ Programming Guide, "Arithmetic Instructions",
  throughput of 32-bit integer add and multiply at compute capability 8.0 and 9.0).
- Registers and shared memory of XLA's versions are the largest of their kernels; spills are summed.
- {spills(found)}
- Mosaic GPU kernels need compute capability 9.0; the XLA versions serve 8.0 and everything else.

{targets}

The targets' figures are those of XLA's device descriptions (`scripts/gpu/*.txtpb`). Versions:
{versions}. Commit {found["commit"]}.
"""


def commit() -> str:
    """The commit that was compiled, marked where files of the kernels differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "kernels", "scripts/gpu")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")


def main() -> int:
    """Compile, write, print, and say whether anything spills."""
    parser = argparse.ArgumentParser(prog="make gpu-compile")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here, and no page")
    parser.add_argument("--check-environment", action="store_true")
    options = parser.parse_args()
    if options.check_environment:
        return 0 if environment() else 1
    found = compile_all(make_environment(), options.only)
    found["commit"] = commit()
    written = {
        "machine": {"gpu": None, "compiled_for": found["targets"]},
        "versions": found["versions"],
        "commit": found["commit"],
        "rows": rows_of(found),
        "ratios": {},
    }
    if options.json:
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    else:
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / "gpu.json").write_text(json.dumps(written, indent=1) + "\n")
        (DOCS / "gpu.md").write_text(page(found))
    print("\n".join(table(found)))
    spilling = [row for row in found["rows"] if row["spill_bytes"]]
    for row in spilling:
        print(f"{row['kernel']} ({row['case']}) spills {row['spill_bytes']} bytes", file=sys.stderr)
    mosaic = any(row["implementation"] == "Mosaic GPU" for row in spilling)
    return 1 if mosaic else 0


if __name__ == "__main__":
    sys.exit(main())
