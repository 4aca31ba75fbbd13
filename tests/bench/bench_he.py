"""Encryption of model updates: ours beside OpenFHE and TenSEAL (`make bench-he`).

Every system runs in a worker process of its own interpreter, and the workers take turns, one
repetition at a time. Every sum is opened and compared with the exact one in the same run; a wrong
sum ends the run, and nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peer_env
from report import Goal, Panel, Row, figure, versions_of, write
from worker import Worker, WorkerError

BENCH = Path(__file__).resolve().parent
DIM = 1 << 20
CLIENTS = 16
#: Values lie within this, so a 16-bit value has the unit 2^-16.
VALUE_BOUND = 0.5
#: What an approximate scheme's sum may be off by before it counts as wrong.
APPROXIMATE_BOUND = 1e-4

OURS_PK = "ours, public key"
CKKS, BGV = "OpenFHE CKKS", "OpenFHE BGV"
OURS_THRESHOLD = "ours, threshold 2 of 3"
OURS_SEEDED, OURS_COMMON = "ours, seeded kernel", "ours, common-a kernel"
TENSEAL, TENSEAL_SMALL = "TenSEAL CKKS N=8192", "TenSEAL CKKS N=4096"
PARTS = "Parts of our public-key encryption and decryption"
PARTS_OF = {
    "pack": "pack",
    "keystream": "keystream",
    "transforms": "three transforms",
    "phase": "c0 + c1 s",
    "decode": "residues to lanes",
    "unpack": "lanes to values",
}


#: Columns of the tables after the encryption, by the workers' methods, in the order of running.
LABELS = {
    "expand": "expand a",
    "add": f"add {CLIENTS}",
    "decrypt": "decrypt",
    "partial": "partial decryption",
    "combine": "combine",
    "to_wire": "to bytes",
    "from_wire": "from bytes",
}


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A system under measurement.

    Args:
        name: in tables and the picture.
        script, factory, arguments: what the worker makes it from.
        bits, summands: of its case: a value's bits, and K, the summands that it has room for.
        operations: what is measured after the encryptions, by method.
        exact: whether sums must equal those of the quantised values.
        one_core_only: measured in the first pass only.
    """

    name: str
    script: str
    factory: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bits: int = 16
    summands: int = 1024
    operations: tuple[str, ...] = ("add", "decrypt", "to_wire", "from_wire")
    exact: bool = True
    one_core_only: bool = False

    @property
    def key(self) -> str:
        """Tells the systems of one worker apart."""
        return f"{self.name}, {self.bits} bits, K={self.summands}"

    def case(self, cores: int) -> str:
        """The case of its rows."""
        return case_name(self.bits, self.summands, cores)


def case_name(bits: int, summands: int, cores: int) -> str:
    """A case in words; every row states K."""
    count = {1: "one core", 2: "two cores"}.get(cores, f"{cores} cores")
    return f"{bits}-bit values, K = {summands:,} summands, {count}"


MAIN = case_name(16, 1024, 1)


def scale_of(bits: int) -> float:
    """Units per model unit of values within the bound."""
    return 2.0 ** (bits - 1) / VALUE_BOUND


def our_system(
    name: str,
    factory: str,
    bits: int,
    summands: int,
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> System:
    """One of our schemes; options are the worker's, changes those of the system."""
    arguments = {"scale": scale_of(bits), "bits": bits, "max_summands": summands}
    arguments |= dict(options or {})
    return System(name, "our_schemes.py", factory, arguments, bits, summands, **changes)


THRESHOLD_OPERATIONS = ("add", "partial", "combine", "to_wire", "from_wire")
SYSTEMS = (
    our_system(OURS_PK, "public_key", 16, 1024),
    our_system(OURS_PK, "public_key", 16, 256, one_core_only=True),
    our_system(OURS_PK, "public_key", 22, 1024, one_core_only=True),
    our_system(OURS_SEEDED, "seeded", 16, 1024, operations=("expand", "add", "decrypt")),
    our_system(OURS_COMMON, "common_a", 16, 1024, operations=("expand", "add", "decrypt")),
    our_system(
        OURS_THRESHOLD,
        "threshold",
        16,
        1024,
        options={"t": 2, "n": 3},
        operations=THRESHOLD_OPERATIONS,
    ),
    our_system(
        f"{OURS_THRESHOLD}, 8 openings a key",
        "threshold",
        16,
        1024,
        options={"t": 2, "n": 3, "max_openings": 8, "parameters": "rlwe-8192-212"},
        operations=THRESHOLD_OPERATIONS,
        one_core_only=True,
    ),
    System(CKKS, "peer_openfhe.py", "ckks", exact=False),
    System(BGV, "peer_openfhe.py", "bgv", {"scale": scale_of(16), "max_summands": 1024}),
    System(
        TENSEAL,
        "peer_tenseal.py",
        "ckks",
        {"ring_degree": 8192, "modulus_bits": [60, 40, 40]},
        exact=False,
    ),
    System(
        TENSEAL_SMALL,
        "peer_tenseal.py",
        "ckks",
        {"ring_degree": 4096, "modulus_bits": [60, 49]},
        exact=False,
        one_core_only=True,
    ),
)


# -- measuring -------------------------------------------------------------------------------------


class WrongSum(Exception):
    """A system opened a sum that is not the sum."""


def interpreters() -> tuple[dict[str, Path], dict[str, str]]:
    """The interpreter of each worker's script, and why a script has none."""
    from fedjax_secure.he.openfhe import env as openfhe_env

    found = {"our_schemes.py": Path(sys.executable)}
    missing = {}
    openfhe = openfhe_env.find()
    if openfhe is not None:
        found["peer_openfhe.py"] = openfhe
    else:
        missing["peer_openfhe.py"] = openfhe_env.why_not() or f"run: {openfhe_env.COMMAND}"
    tenseal, why = peer_env.ready("tenseal", "tenseal")
    if tenseal is not None:
        found["peer_tenseal.py"] = tenseal
    else:
        missing["peer_tenseal.py"] = why
    return found, missing


class Pass:
    """All systems on some cores: workers, samples, rows."""

    def __init__(self, cores: set[int], updates: Path, exact: np.ndarray, log: Any):
        self.cores, self.updates, self.exact, self.log = cores, updates, exact, log
        self.samples: dict[tuple[System, str], list[tuple[float, float]]] = {}
        self.rows: list[Row] = []
        self.facts: dict[System, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}

    def measure(self, systems: Sequence[System], pythons: Mapping[str, Path], repeats: int) -> None:
        """Open the systems, run every operation in turns, check every sum."""
        with contextlib.ExitStack() as stack:
            for script in dict.fromkeys(system.script for system in systems):
                worker = Worker(pythons[script], BENCH / script, self.cores)
                self.workers[script] = stack.enter_context(worker)
            systems = [system for system in systems if self._open(system)]
            for client in range(CLIENTS):
                self.log(f"  encrypt, client {client + 1} of {CLIENTS}")
                for system in systems:
                    self._time(system, "encrypt", client=client)
            for system in systems:
                if system.script == "our_schemes.py":
                    self._worker(system).call(system.key, "gather")
            for method, label in LABELS.items():
                taking_part = [system for system in systems if method in system.operations]
                self.log(f"  {label}")
                for system in taking_part:
                    self._worker(system).call(system.key, method)
                for _ in range(repeats):
                    for system in taking_part:
                        self._time(system, method, label)
            for system in systems:
                self._finish(system)
            for system in systems:
                if system.name == OURS_PK and system.case(len(self.cores)) == MAIN:
                    self._parts(system, repeats)

    def _open(self, system: System) -> bool:
        """Make a system and warm it up; a row says why one cannot be made."""
        self.log(f"  {system.key}: start")
        try:
            self.facts[system] = self._worker(system).open(
                system.key, system.factory, updates=str(self.updates), **system.arguments
            )
            self._worker(system).call(system.key, "encrypt", client=0)  # compiles
        except WorkerError as error:
            why = str(error).splitlines()[0]
            self.log(f"  {why}")
            self.rows.append(Row.missing(system.case(len(self.cores)), system.name, why))
            self.facts.pop(system, None)
            return False
        return True

    def _worker(self, system: System) -> Worker:
        return self.workers[system.script]

    def _time(self, system: System, method: str, label: str = "", **arguments: Any) -> None:
        timing = self._worker(system).run(system.key, method, **arguments)
        self.samples.setdefault((system, label or method), []).append(timing)

    def _finish(self, system: System) -> None:
        """Rows of a system, after its sum has been compared with the exact one."""
        case = system.case(len(self.cores))
        opened = self._worker(system).array(
            system.key, "sum", self.updates.with_name("opened.npy")
        )
        error = float(np.abs(opened - self.exact.sum(axis=0)).max())
        quantised = np.rint(self.exact * scale_of(system.bits)).sum(axis=0) / scale_of(system.bits)
        quantiser = float(np.abs(quantised - self.exact.sum(axis=0)).max())
        if opened.shape != (DIM,) or (
            not np.array_equal(opened, quantised) if system.exact else error > APPROXIMATE_BOUND
        ):
            raise WrongSum(f"{system.key}, {case}: the opened sum is off by up to {error:.3g}")
        for (of, label), timings in self.samples.items():
            if of is system:
                cpu, wall = zip(*timings, strict=True)
                self.rows.append(Row.of(case, system.name, label, cpu, "ms CPU"))
                if len(self.cores) > 1:  # on one core it is the CPU time and others' turns
                    self.rows.append(Row.of(case, system.name, label, wall, "ms wall"))
        size = self._worker(system).call(system.key, "wire_bytes") / DIM
        self.rows += [
            Row.of(case, system.name, "size", [size], "bytes a parameter"),
            Row.of(case, system.name, "largest error of the sum", [error], "model units"),
        ]
        if system.exact:  # an approximate system takes the floats as they are
            self.rows.append(
                Row.of(case, system.name, "the quantiser's error", [quantiser], "model units")
            )

    def _parts(self, system: System, repeats: int) -> None:
        """What our encryption and decryption consist of, each part as a program of its own."""
        self.log("  parts")
        worker, case = self._worker(system), f"{PARTS}: {system.case(1)}"
        samples: dict[str, list[float]] = {}
        try:
            worker.call(system.key, "prepare_parts")
            for _ in range(repeats):
                for part, label in PARTS_OF.items():
                    samples.setdefault(label, []).append(worker.run(system.key, part).cpu_ms)
        except WorkerError as error:
            self.rows.append(Row.missing(case, system.name, str(error).splitlines()[0]))
            return
        for label, timings in samples.items():
            self.rows.append(Row.of(case, system.name, label, timings, "ms CPU"))


def round_rows() -> list[Row]:
    """Whole rounds, encrypted and plain, in this process; or a row that says what stopped them."""
    try:
        import bench_round

        return list(bench_round.measure())
    except Exception as error:  # the schemes' figures are not lost with it
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Row.missing("Rounds", "all", why)]


# -- figures of figures ----------------------------------------------------------------------------


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The ratios that `make bench-he` promises, from its rows; None where one is not measured.

    Speed-ups are their CPU time over ours, medians, one core, room for 1,024 summands. The seeded
    form's is that of the common-a kernel: `a` is expanded once a round, not for every client.
    """

    def median(system: str, metric: str, unit: str) -> float | None:
        found = [
            row.median
            for row in rows
            if (row.case, row.system, row.metric, row.unit) == (MAIN, system, metric, unit)
        ]
        return found[0] if found else None

    def times(model: str, system: str) -> float | None:
        found = [
            row.median
            for row in rows
            if row.metric == "round" and row.system == system and row.case.startswith(model)
        ]
        return found[0] if found else None

    def speed_up(metric: str, theirs: str, ours: str) -> float | None:
        return _over(median(theirs, metric, "ms CPU"), median(ours, metric, "ms CPU"))

    ratios = {
        "pk_encrypt_vs_openfhe_ckks": speed_up("encrypt", CKKS, OURS_PK),
        "pk_encrypt_vs_openfhe_bgv": speed_up("encrypt", BGV, OURS_PK),
        "pk_decrypt_vs_openfhe_ckks": speed_up("decrypt", CKKS, OURS_PK),
        "pk_decrypt_vs_openfhe_bgv": speed_up("decrypt", BGV, OURS_PK),
        "seeded_encrypt_vs_openfhe_ckks": speed_up("encrypt", CKKS, OURS_COMMON),
        "pk_encrypt_vs_tenseal": speed_up("encrypt", TENSEAL, OURS_PK),
        "bytes_per_param_seeded": median(OURS_SEEDED, "size", "bytes a parameter"),
        "bytes_per_param_pk": median(OURS_PK, "size", "bytes a parameter"),
    }
    for model in ("cnn", "mlp"):
        for form, system in (("common_a", "common a"), ("pk", "public key")):
            ratios[f"{model}_{form}_over_plain_round"] = _over(
                times(model, system), times(model, "plain")
            )
    return ratios


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """What the ratios are to reach, and what bounds them by the figures of this run."""
    here = {(row.system, row.metric): row.median for row in rows if row.case == MAIN}
    parts = {row.metric: row.median for row in rows if row.case.startswith(PARTS)}

    def told(text: str, figures: Mapping[str, float | None]) -> str:
        """A text with its figures, or nothing where one was not measured."""
        if any(value is None for value in figures.values()):
            return ""
        return text.format(**{name: figure(value) for name, value in figures.items() if value})

    encrypting = told(
        "Of the {whole} ms of an encryption, three transforms of every limb take {transforms} ms, "
        "the ChaCha20 keystream {keystream} ms and the packing {pack} ms when run alone; the rest "
        "samples, multiplies and adds. All of it is 32-bit integer arithmetic on the processor's "
        "vector units, compiled by XLA.",
        {
            "whole": here.get((OURS_PK, "encrypt")),
            "transforms": parts.get("three transforms"),
            "keystream": parts.get("keystream"),
            "pack": parts.get("pack"),
        },
    )
    decrypting = told(
        "Of the {whole} ms of a decryption, two transforms of every limb and the product take "
        "{phase} ms, the exact conversion from residues to lanes {decode} ms and the lanes' "
        "centring {unpack} ms when run alone.",
        {
            "whole": here.get((OURS_PK, "decrypt")),
            "phase": parts.get("c0 + c1 s"),
            "decode": parts.get("residues to lanes"),
            "unpack": parts.get("lanes to values"),
        },
    )
    common = told(
        "The {whole} ms are one inverse transform of every limb (three forward and inverse ones "
        "take {transforms} ms), the packing ({pack} ms), and the errors with their keystream.",
        {
            "whole": here.get((OURS_COMMON, "encrypt")),
            "transforms": parts.get("three transforms"),
            "pack": parts.get("pack"),
        },
    )
    expanding = told(
        "Of the {whole} ms of an encryption, the ChaCha20 expansion of `a` takes {expand} ms "
        "(four words a residue, so that it is uniform to 2^-64 as a whole).",
        {
            "whole": here.get((OURS_SEEDED, "encrypt")),
            "expand": here.get((OURS_COMMON, "expand a")),
        },
    )
    sizes = "The modulus holds all lanes above the noise of K summands; the size follows from both."
    flooding = (
        "The flood hides the noise over every opening that a key allows, 256 unless said; with "
        "fewer it is narrower (the row with 8 openings)."
    )
    return [
        Goal("public-key encryption, times faster than OpenFHE CKKS",
             "pk_encrypt_vs_openfhe_ckks", 18, True, encrypting),
        Goal("public-key encryption, times faster than OpenFHE BGV",
             "pk_encrypt_vs_openfhe_bgv", 9, True, encrypting),
        Goal("decryption, times faster than OpenFHE CKKS",
             "pk_decrypt_vs_openfhe_ckks", 12, True, decrypting),
        Goal("decryption, times faster than OpenFHE BGV",
             "pk_decrypt_vs_openfhe_bgv", 5, True, decrypting),
        Goal("seeded encryption, one `a` for all clients of a round, times faster than OpenFHE "
             "CKKS", "seeded_encrypt_vs_openfhe_ckks", 70, True, common),
        Goal("the same with `a` expanded for every ciphertext", "", 70, True, expanding,
             _over(here.get((CKKS, "encrypt")), here.get((OURS_SEEDED, "encrypt")))),
        Goal("bytes a parameter, seeded", "bytes_per_param_seeded", 4.0, False, sizes),
        Goal("bytes a parameter, public key", "bytes_per_param_pk", 8.1, False, sizes),
        Goal("bytes a parameter, threshold with 40 bits of flooding", "", 10, False, flooding,
             here.get((OURS_THRESHOLD, "size"))),
        Goal("CNN, round with the common-a kernel over the plain round",
             "cnn_common_a_over_plain_round", 1.15, False),
        Goal("CNN, public-key round over the plain round",
             "cnn_pk_over_plain_round", 1.5, False),
        Goal("MLP, round with the common-a kernel over the plain round",
             "mlp_common_a_over_plain_round", 2, False),
        Goal("MLP, public-key round over the plain round",
             "mlp_pk_over_plain_round", 5, False),
    ]  # fmt: skip


def _over(theirs: float | None, ours: float | None) -> float | None:
    return float(f"{theirs / ours:.4g}") if theirs and ours else None


def about(facts: Mapping[System, Mapping[str, Any]]) -> list[str]:
    """How it was measured, and under which parameters."""
    rooms = []
    for system, found in facts.items():
        if "sum_below" in found:
            rooms.append(
                f"- {system.name}: N = {found['ring_degree']}, log2 Q = {found['log2_modulus']}, "
                f"sums below {found['sum_below']:,.0f} in model units, so room for "
                f"{found['sum_below'] / VALUE_BOUND:,.0f} summands."
            )
        else:
            rooms.append(f"- {system.key}: " + found["explain"].replace("\n", " "))
    return [
        f"One update of {DIM:,} float32 parameters for each of {CLIENTS} clients, normal with "
        f"standard deviation 0.05, within {VALUE_BOUND}: encrypted, added up, decrypted. "
        "CPU time is that of all threads of the worker's process; the systems take turns, one "
        f"repetition at a time, in one run. Every figure is the median (lowest to highest): an "
        f"encryption of each of the {CLIENTS} updates, and at least three repetitions of the rest. "
        "Each system's sum was opened and compared with the exact sum before a figure was written.",
        "Peers take numpy arrays and return them (TenSEAL converts to lists inside), at depth 0 "
        "and the smallest ring that they accept at 128 bits. Ours takes quantised ring elements, "
        "draws a fresh 256-bit key and expands it by ChaCha20 in the same compiled program that "
        "packs and encrypts. Bytes are those of the whole message, with its header.",
        "An exact system's error is the quantiser's, to the last bit. A 16-bit value has the unit "
        f"{figure(1 / scale_of(16))}, and a lane holds the whole sum of K such values. In a round, "
        "`quantise(bits)` opens sums modulo 2^bits: there `bits` has to cover the sum.",
        "\n".join(rooms),
    ]


# -- the run ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print progress, and write docs/benchmarks/he.*."""
    parser = argparse.ArgumentParser(description="Encryption of updates, beside OpenFHE, TenSEAL.")
    parser.add_argument("--quick", action="store_true", help="one core, few repetitions, no rounds")
    parser.add_argument("--without-rounds", action="store_true", help="the schemes only")
    parser.add_argument("--folder", type=Path, help="where to write; default docs/benchmarks")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s {text}", flush=True)

    pythons, missing = interpreters()
    systems = [system for system in SYSTEMS if system.script in pythons]
    rows: list[Row] = []
    facts: dict[System, dict[str, Any]] = {}
    allowed = sorted(os.sched_getaffinity(0))
    passes = [1] if options.quick or len(allowed) < 2 else [1, 2]
    with tempfile.TemporaryDirectory() as folder:
        updates = Path(folder) / "updates.npy"
        values = np.random.default_rng(0).normal(0, 0.05, (CLIENTS, DIM)).astype(np.float32)
        np.save(updates, np.clip(values, -VALUE_BOUND, VALUE_BOUND))
        exact = np.load(updates).astype(np.float64)
        for count in passes:
            log(f"{count} of {len(allowed)} cores")
            one = Pass(set(allowed[:count]), updates, exact, log)
            wanted = [system for system in systems if count == 1 or not system.one_core_only]
            one.measure(wanted, pythons, 2 if options.quick else 5)
            rows += one.rows
            facts.update(one.facts)
    for system in SYSTEMS:
        if system not in systems:
            rows.append(Row.missing(system.case(1), system.name, missing[system.script]))
    if not (options.quick or options.without_rounds):
        log("rounds")
        rows += round_rows()
    versions = versions_of("jax", "jaxlib", "numpy")
    versions |= {
        name: str(found["version"])
        for system, found in facts.items()
        for name in (system.name.split()[0],)
        if "version" in found
    }
    ratios = ratios_of(rows)
    keep = {"folder": options.folder} if options.folder else {}
    path = write(
        "he",
        title="Encryption of model updates",
        about=about(facts),
        rows=sorted(rows, key=_order),
        ratios=ratios,
        versions=versions,
        goals=goals_of(rows),
        panels=PANELS,
        **keep,
    )
    log(f"wrote {path}")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


_CASES = {
    MAIN: "",
    case_name(16, 256, 1): ", K = 256",
    case_name(22, 1024, 1): ", 22-bit values",
}
PANELS = (
    Panel("Encrypt one update", "encrypt", "ms CPU", _CASES),
    Panel(f"Add {CLIENTS} ciphertexts", f"add {CLIENTS}", "ms CPU", _CASES),
    Panel("Decrypt the sum", "decrypt", "ms CPU", _CASES),
    Panel("Size of a ciphertext", "size", "bytes a parameter", _CASES),
    Panel("Ciphertext to bytes", "to bytes", "ms CPU", _CASES),
    Panel("Largest error of the sum", "largest error of the sum", "model units", _CASES),
)


def _order(row: Row) -> tuple[int, int, int]:
    """The main case first, systems as they are listed, metrics as they are measured."""
    cases = [MAIN, case_name(16, 1024, 2), case_name(16, 256, 1), case_name(22, 1024, 1)]
    systems = [system.name for system in SYSTEMS]
    metrics = ["encrypt", *LABELS.values()]
    return tuple(
        known.index(name) if name in known else len(known)
        for known, name in ((cases, row.case), (systems, row.system), (metrics, row.metric))
    )


if __name__ == "__main__":
    main()
