"""Compiles every case for GPUs that need not be there; runs in `.venv-gpu`.

``python scripts/gpu/compile_kernels.py OUT.json [--only TEXT]`` writes, for each kernel, what the
compiler reports (registers, spills, shared memory) and what the program says about itself: integer
instructions, counted in the jaxpr with its loops and its grid, and the bytes that have to move.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
DUMP = Path(tempfile.mkdtemp(prefix="gpu-compile-"))
os.environ.update(  # before JAX starts
    JAX_PLATFORMS="cpu",
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
    TF_CPP_MIN_LOG_LEVEL="3",
    XLA_FLAGS=f"--xla_dump_to={DUMP} --xla_dump_emitter_re=.*",  # the latter dumps the PTX
    MOSAIC_GPU_DUMP_PTX="1",
    MOSAIC_GPU_DUMP_PTXAS="1",
    MOSAIC_GPU_DUMP_TO=str(DUMP),
)
sys.path[:0] = [str(FOLDER), str(FOLDER.parent.parent / "kernels")]

import jax  # noqa: E402
import nvidia.cuda_nvcc  # noqa: E402
from cases import Case, cases  # noqa: E402
from jax._src.mesh import AbstractDevice  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.extend.core import Var  # noqa: E402
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec  # noqa: E402

PTXAS = Path(next(iter(nvidia.cuda_nvcc.__path__))) / "bin" / "ptxas"
MULTIPLIES = {"mul", "mulhi"}
OTHER = {
    "add", "sub", "neg", "min", "max", "and", "or", "xor", "not", "shift_left",
    "shift_right_logical", "shift_right_arithmetic", "lt", "le", "gt", "ge", "eq", "ne",
    "select_n", "population_count", "gather",
}  # fmt: skip


class Target:
    """A GPU described by a file beside this one."""

    def __init__(self, name: str, architecture: str):
        text = (FOLDER / f"{name}.txtpb").read_text()
        self.name, self.architecture = name, architecture
        self.kind = self.field(text, 'device_description_str: "(.*)"')
        self.cores = int(self.field(text, r"core_count: (\d+)"))
        self.clock_ghz = float(self.field(text, r"clock_rate_ghz: ([\d.]+)"))
        self.bytes_per_second = int(self.field(text, r"memory_bandwidth: (\d+)"))
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name=name, target_config=text, topology="1x1x1"
        )
        self.sharding = NamedSharding(Mesh(topology.devices, ("x",)), PartitionSpec())
        device = AbstractDevice(device_kind=self.kind, num_cores=self.cores, platform="cuda")
        self.mesh = AbstractMesh((1,), ("x",), abstract_device=device)

    @staticmethod
    def field(text: str, pattern: str) -> str:
        """One value of the description."""
        found = re.search(pattern, text)
        if not found:
            raise ValueError(f"the target's description needs {pattern!r}, and has none.")
        return found.group(1)

    def compile(self, function: Any, arguments: Any) -> tuple[Any, list[Path]]:
        """The compiled program, and the files that the compilers left."""
        before = set(DUMP.iterdir())
        with jax.sharding.use_abstract_mesh(self.mesh):
            jitted = jax.jit(function, in_shardings=self.sharding, out_shardings=self.sharding)
            compiled = jitted.lower(*arguments).compile()
        return compiled, sorted(set(DUMP.iterdir()) - before)


def inner_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def count(jaxpr: Any, times: int = 1) -> collections.Counter:
    """Integer instructions on arrays: multiplications, and all others.

    The upper half of a product counts as one multiplication, and a rotation by its two shifts as
    one instruction; numbers that all threads share count as nothing, as they take one instruction
    for a whole warp or more.
    """
    total: collections.Counter = collections.Counter()
    shifted = {}  # what was shifted, by the result
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
        size = math.prod(getattr(out, "shape", ()) or (1,))
        wide = str(getattr(out, "dtype", "")) == "uint64"
        if size > 1 and name in MULTIPLIES:
            total["multiplies"] += size * times
        elif size > 1 and name in OTHER and not wide:
            total["others"] += size * times
            if name in ("shift_left", "shift_right_logical"):
                shifted[equation.outvars[0]] = equation.invars[0]
            operands = [shifted.get(v) for v in equation.invars if isinstance(v, Var)]
            if name == "or" and len(operands) == 2 and operands[0] is operands[1] is not None:
                total["others"] -= 2 * size * times
        again = times * (equation.params["length"] if name == "scan" else 1)
        if name == "mpmd_map":
            mesh = equation.params["meshes"][0]
            again *= math.prod(mesh.grid) * (mesh.num_threads or 1)
        parts = [count(inner, again) for inner in inner_jaxprs(equation)]
        if name == "cond":  # one branch runs: the longest is counted
            parts = [max(parts, key=lambda part: part.total())]
        total += sum(parts, collections.Counter())
    return total


def launches(jaxpr: Any) -> dict[str, Any]:
    """The equations that launch Mosaic kernels, by the kernels' names."""
    found = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mpmd_map":
            found[equation.params["name"]] = equation
        for inner in inner_jaxprs(equation):
            found |= launches(inner)
    return found


def num_bytes(variables: Any) -> int:
    """The size of arrays."""
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)


def resources(report: str) -> dict[str, int]:
    """Registers, spilled bytes and static shared memory of all kernels in a ptxas report."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    if not registers:
        raise ValueError(f"ptxas's report names no registers: {report!r}")
    return {
        "kernels": len(registers),
        "registers": max(registers),
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report))),
        "shared_bytes": max([0, *map(int, re.findall(r"(\d+) bytes smem", report))]),
    }


def mosaic_rows(case: Case, target: Target) -> list[dict]:
    """One row for each Mosaic kernel of a case."""
    _, files = target.compile(case.pallas, case.arguments)
    equations = launches(jax.make_jaxpr(case.pallas)(*case.arguments).jaxpr)
    rows = []
    for name, equation in equations.items():
        reports = [f for f in files if re.fullmatch(rf"{name}_\d+\.ptxas", f.name)]
        if len(reports) != 1:
            raise ValueError(f"one compiler report of {name} is needed, got {reports}.")
        found = resources(reports[0].read_text())
        scratch = reports[0].with_suffix(".resources.txt").read_text()
        found["shared_bytes"] = int(Target.field(scratch, r"smem_scratch_bytes=(\d+)"))
        work = count(equation.params["jaxprs"][0])
        mesh = equation.params["meshes"][0]
        blocks = math.prod(mesh.grid) * (mesh.num_threads or 1)
        rows.append(
            {
                "case": case.name, "kernel": name, "implementation": "Mosaic GPU",
                "target": target.name, **found,
                "bytes": num_bytes(equation.invars) + num_bytes(equation.outvars),
                "multiplies": work["multiplies"] * blocks, "others": work["others"] * blocks,
            }
        )  # fmt: skip
    return rows


def bytes_between_kernels(program: str) -> int | None:
    """What the kernels of an optimised XLA program read and write; None where it has loops."""
    if re.search(r"= .* while\(", program):
        return None
    item_bytes = {"u32": 4, "s32": 4, "u16": 2, "s16": 2, "u8": 1, "s8": 1, "pred": 1, "u64": 8}
    entry = program[program.index("\nENTRY ") :]
    sizes, total = {}, 0
    for name, shapes, operation, rest in re.findall(
        r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$", entry, re.MULTILINE
    ):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        sizes[name] = sum(
            item_bytes.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in arrays
        )
        if operation not in ("parameter", "constant", "tuple", "get-tuple-element", "bitcast"):
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def xla_row(case: Case, target: Target) -> dict:
    """One row for all the kernels that XLA makes of a case."""
    compiled, files = target.compile(case.xla, case.arguments)
    reports = []
    for ptx in (f for f in files if f.suffix == ".ptx"):
        command = [PTXAS, "-v", f"--gpu-name={target.architecture}", "-o", os.devnull, ptx]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"ptxas needs to accept {ptx.name}, and says: {done.stderr}")
        reports.append(done.stderr)
    work = count(jax.make_jaxpr(case.xla)(*case.arguments).jaxpr)
    return {
        "case": case.name, "kernel": "all", "implementation": "XLA", "target": target.name,
        **resources("".join(reports)),
        "bytes": bytes_between_kernels(compiled.as_text()),
        "multiplies": work["multiplies"], "others": work["others"],
    }  # fmt: skip


def main() -> None:
    """Compile, count, and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    h100, a100 = Target("h100", "sm_90a"), Target("a100", "sm_80")
    rows = []
    for case in cases():
        if options.only not in case.name:
            continue
        print(f"  {case.name}", file=sys.stderr, flush=True)
        if case.pallas:
            rows += mosaic_rows(case, h100)
        if case.xla:
            rows += [xla_row(case, target) for target in (h100, a100)]
    ptxas = subprocess.run([PTXAS, "--version"], capture_output=True, text=True, check=True)
    written = {
        "targets": {
            t.name: {
                "kind": t.kind, "multiprocessors": t.cores, "clock_ghz": t.clock_ghz,
                "bytes_per_second": t.bytes_per_second,
            }
            for t in (h100, a100)
        },
        "versions": {
            "jax": jax.__version__,
            "ptxas": Target.field(ptxas.stdout, r"release [\d.]+, V([\d.]+)"),
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
