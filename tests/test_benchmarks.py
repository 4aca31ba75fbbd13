"""Published benchmarks say what was measured, and their pages are rendered from it alone."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "benchmarks"
# gpu.json has compilers' reports, and a page of its own making.
PUBLISHED = sorted(path for path in FOLDER.glob("*.json") if path.stem != "gpu")
ROW_KEYS = {"case", "system", "metric", "median", "min", "max", "unit"}
HE_RATIOS = {
    "pk_encrypt_vs_openfhe_ckks",
    "pk_encrypt_vs_openfhe_bgv",
    "pk_decrypt_vs_openfhe_ckks",
    "pk_decrypt_vs_openfhe_bgv",
    "seeded_encrypt_vs_openfhe_ckks",
    "pk_encrypt_vs_tenseal",
    "bytes_per_param_seeded",
    "bytes_per_param_pk",
    "cnn_common_a_over_plain_round",
    "cnn_pk_over_plain_round",
    "mlp_common_a_over_plain_round",
    "mlp_pk_over_plain_round",
}
ENGINE_RATIOS = {
    f"{model}_{ratio}"
    for model in ("lr", "mlp", "cnn")
    for ratio in (
        "vs_fedjax",
        "vs_pfl",
        "vs_pfl_two_processes",
        "vs_flower",
        "over_plain_loop",
        "over_matmul_floor",
        "federation_over_simulation",
    )
}


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of tests/bench, as its scripts import one another."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and "tests/bench" in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def load(path: Path) -> dict:
    def refuse(constant: str):
        raise ValueError(f"{path.name} holds {constant}, which is no figure")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("name", ["he", "engine"])
def test_a_benchmark_is_published(name):
    assert FOLDER / f"{name}.json" in PUBLISHED


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_figures_are_complete(path):
    report = load(path)
    assert {"machine", "versions", "commit", "rows", "ratios"} <= set(report)
    assert report["commit"] != "unknown" and report["machine"]["processor"]
    assert "python" in report["versions"]
    seen = set()
    for row in report["rows"]:
        if row["metric"] == "not measured":
            assert set(row) == {*ROW_KEYS, "note"} and row["note"] and row["median"] is None, row
            continue
        assert set(row) == ROW_KEYS and row["unit"], row
        assert 0 <= row["min"] <= row["median"] <= row["max"] < math.inf, row
        name = (row["case"], row["system"], row["metric"], row["unit"])
        assert name not in seen, f"two rows for {name}"
        seen.add(name)
    assert seen


def test_compiled_kernels_are_published_and_those_for_new_gpus_spill_nothing():
    report, page = load(FOLDER / "gpu.json"), (FOLDER / "gpu.md").read_text(encoding="utf-8")
    assert {"machine", "versions", "commit", "rows", "ratios"} <= set(report)
    assert report["machine"]["gpu"] is None and "No figure on this page was measured" in page
    assert set(report["machine"]["compiled_for"]) == {"h100", "a100"}
    ours = [row for row in report["rows"] if row["system"].startswith("Mosaic GPU")]
    spills = [row["median"] for row in ours if row["metric"] == "spill_bytes"]
    assert spills and not any(spills)
    for row in report["rows"]:
        assert set(row) == ROW_KEYS and f"| {row['case']} |" in page, row
    kernels = {row["case"].split(".")[0] for row in ours}
    assert kernels == {"modular", "ntt", "chacha", "discrete_gaussian", "rlwe"}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_page_is_what_the_figures_render_to(path, bench):
    report = bench("report")
    rendered = report.page(load(path), path.stem)
    again = f"run: python tests/bench/report.py {path.relative_to(ROOT)}"
    assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered, again
    if load(path)["panels"]:
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ratios_and_goals_of_the_encryption_benchmark_follow_from_its_rows(bench):
    report, bench_he = bench("report"), bench("bench_he")
    published = load(FOLDER / "he.json")
    rows = [report.Row(**row) for row in published["rows"]]
    assert set(published["ratios"]) == HE_RATIOS
    assert bench_he.ratios_of(rows) == published["ratios"]
    goals = [report.Goal(**goal) for goal in published["goals"]]
    assert bench_he.goals_of(rows) == goals
    assert {goal.ratio for goal in goals} <= HE_RATIOS | {""}


def test_every_row_of_an_encryption_states_its_summands():
    rows = load(FOLDER / "he.json")["rows"]
    cases = {row["case"] for row in rows if row["metric"] not in ("round", "not measured")}
    assert cases
    assert all("K = " in case for case in cases), cases


def test_the_errors_of_exact_schemes_are_the_quantisers():
    rows = load(FOLDER / "he.json")["rows"]
    errors = {}
    for row in rows:
        if row["unit"] == "model units":
            errors.setdefault((row["case"], row["system"]), {})[row["metric"]] = row["median"]
    ours = {key: found for key, found in errors.items() if key[1].startswith("ours")}
    assert len(ours) >= 3
    for key, found in ours.items():
        assert found["largest error of the sum"] == found["the quantiser's error"], key


def test_ratios_and_goals_of_the_engine_benchmark_follow_from_its_rows(bench):
    report, bench_engine = bench("report"), bench("bench_engine")
    published = load(FOLDER / "engine.json")
    rows = [report.Row(**row) for row in published["rows"]]
    assert ENGINE_RATIOS | {f"{name}_wall" for name in ENGINE_RATIOS} <= set(published["ratios"])
    assert bench_engine.ratios_of(rows) == published["ratios"]
    goals = [report.Goal(**goal) for goal in published["goals"]]
    assert bench_engine.goals_of(rows) == goals
    assert {goal.ratio for goal in goals} <= set(published["ratios"])


def test_every_engine_that_was_timed_had_learned_the_same(bench):
    bench_engine = bench("bench_engine")
    floors = {bench_engine.PLAIN, bench_engine.PRODUCTS}
    rows = load(FOLDER / "engine.json")["rows"]
    rows = [row for row in rows if "clients a round (" in row["case"]]
    timed = {(row["case"], row["system"]) for row in rows if row["metric"] == "round"}
    lost = {(row["case"], row["system"]) for row in rows if row["metric"] == "not measured"}
    for title in bench_engine.TITLES.values():
        (case,) = {row["case"] for row in rows if row["case"].startswith(title)}
        found = {system for at, system in timed | lost if at == case}
        assert found == {system.name for system in bench_engine.SYSTEMS}, case
        assert (case, bench_engine.OURS) in timed or not [at for at, _ in timed if at == case]
    differences, shares = {}, {}
    for row in rows:
        key = (row["case"], row["system"])
        if row["metric"] == "difference after one round":
            differences[key] = row["max"]
        elif row["metric"].startswith("accuracy after"):
            shares[key] = row["median"]
    # a system that failed later may have been compared and not timed, but none was timed uncompared
    assert set(shares) == {key for key in timed if key[1] not in floors}
    assert set(shares) <= set(differences) <= set(shares) | lost
    assert max(differences.values()) <= bench_engine.PARAMETER_BOUND
    for (case, system), share in shares.items():
        ours_share = shares[case, bench_engine.OURS]
        assert abs(share - ours_share) <= bench_engine.ACCURACY_BOUND, (case, system)
        assert share > 10 / 62, f"{system} has learned nothing in {case}"


# -- the harness -----------------------------------------------------------------------------------

SCRIPT = """
import os
import numpy as np
from worker import serve

class Adder:
    def __init__(self, updates, offset=0.0):
        self.updates, self.offset, self.facts = np.load(updates), offset, {"version": "1"}

    def encrypt(self, client):
        print("a library's own words")
        assert 0 <= client < len(self.updates)

    def add(self):
        self.total = self.updates.astype(np.float64).sum(axis=0) + self.offset

    def decrypt(self): pass
    def to_wire(self): pass
    def from_wire(self): pass
    def wire_bytes(self): return self.updates[0].nbytes
    def sum(self): return self.total
    def die(self): os._exit(3)

serve({"adder": Adder})
"""


@pytest.fixture
def adder(tmp_path, monkeypatch):
    """A worker's script that adds up in the clear, and the updates that it adds."""
    script = tmp_path / "adder.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "bench"))
    updates = tmp_path / "updates.npy"
    rng = np.random.default_rng(0)
    np.save(updates, (rng.integers(-(2**14), 2**14, (16, 100)) / 2.0**16).astype(np.float32))
    return script, updates


def test_a_worker_answers_times_and_reports_what_went_wrong(adder, bench):
    worker = bench("worker")
    script, updates = adder
    with worker.Worker(sys.executable, script, {0}) as adding:
        assert adding.open("one", "adder", updates=str(updates)) == {"version": "1"}
        timing = adding.run("one", "encrypt", client=3)
        assert 0 <= timing.cpu_ms and 0 < timing.wall_ms
        adding.call("one", "add")
        total = adding.array("one", "sum", updates.with_name("sum.npy"))
        np.testing.assert_array_equal(total, np.load(updates).astype(np.float64).sum(axis=0))
        with pytest.raises(worker.WorkerError, match="one in adder: AssertionError"):
            adding.run("one", "encrypt", client=16)
        with pytest.raises(worker.WorkerError, match="adder ended with exit status 3"):
            adding.call("one", "die")


@pytest.mark.parametrize(("offset", "wrong"), [(0.0, False), (2.0**-16, True)])
def test_a_wrong_sum_ends_the_run(adder, bench, monkeypatch, offset, wrong):
    bench_he = bench("bench_he")
    script, updates = adder
    monkeypatch.setattr(bench_he, "DIM", 100)
    monkeypatch.setattr(bench_he, "BENCH", script.parent)
    system = bench_he.System("adder", script.name, "adder", {"offset": offset})
    exact = np.load(updates).astype(np.float64)
    run = bench_he.Pass({0}, updates, exact, lambda text: None)
    pythons = {script.name: Path(sys.executable)}
    if wrong:
        with pytest.raises(bench_he.WrongSum, match="adder, 16 bits.*off by up to"):
            run.measure([system], pythons, 1)
        assert run.rows == []
    else:
        run.measure([system], pythons, 1)
        sizes = [row.median for row in run.rows if row.metric == "size"]
        assert sizes == [4.0]
        encrypt = next(row for row in run.rows if row.metric == "encrypt")
        assert encrypt.min <= encrypt.median <= encrypt.max and encrypt.unit == "ms CPU"


def test_a_peer_that_is_missing_and_a_goal_not_reached_are_said_plainly(bench, tmp_path):
    report = bench("report")
    rows = [
        report.Row.of("a case", "ours", "encrypt", [20.0, 10.0, 60.0], "ms CPU"),
        report.Row.missing("a case", "peer", "no wheel for this Python"),
    ]
    goals = [
        report.Goal("speed", "speed", 18, limited_by="The multiplier."),
        report.Goal("size", "size", 8.1, at_least=False),
        report.Goal("other", "other", 1),
    ]
    path = report.write(
        "sample",
        title="Sample",
        about=["How."],
        rows=rows,
        ratios={"speed": 12.5, "size": 7.5, "other": None},
        versions={"python": "3.12"},
        goals=goals,
        panels=[report.Panel("Encrypt", "encrypt", "ms CPU", {"a case": ""})],
        folder=tmp_path,
    )
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| ours | 20.0 (10.0 to 60.0) |" in text
    assert "| peer (not measured: no wheel for this Python) |" in text
    assert "| speed | at least 18 | 12.5 | **falls short** |" in text
    assert "- speed: 12.5 instead of 18. The multiplier." in text
    assert "| size | at most 8.1 | 7.50 | met |" in text
    assert "| other | at least 1 |  | not measured |" in text
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_cpu_time_counts_children_and_theirs(bench):
    worker = bench("worker")
    spin = "while True: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    child = subprocess.Popen([sys.executable, "-c", nested], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            seconds = worker.children_seconds()
            grown = {process: spent for process, spent in seconds.items() if spent > 0.3}
            if set(grown) - {child.pid}:
                break
            time.sleep(0.05)
        assert child.pid in seconds
        assert set(grown) - {child.pid}, "the grandchild's time did not grow"
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert child.pid not in worker.children_seconds()


ENGINE_SCRIPT = """
import engine_work
import numpy as np
from worker import serve

class Softmax:
    # Federated averaging of a softmax regression in numpy.
    def __init__(self, work, rate=0.1, dies=False):
        self.clients, self.cohorts = engine_work.read_clients(work)
        self.rate, self.dies, self.facts = rate, dies, {"version": "1", "with": "numpy"}

    def start(self, model):
        self.now = engine_work.first_params(model)

    def check(self):
        self.now = self.round(engine_work.check_clients(self.clients), range(8))

    def rounds(self, first, count):
        if self.dies:
            raise RuntimeError("out of memory")
        for number in range(first, first + count):
            self.now = self.round(self.clients, self.cohorts[number])

    def params(self):
        return engine_work.flat(self.now)

    def in_order(self):
        return engine_work.flat(self.round(engine_work.check_clients(self.clients), range(8)))

    def round(self, clients, cohort):
        out, whole = [0.0, 0.0], sum(clients.sizes[c] for c in cohort)
        for client in cohort:
            x, y = clients.of(client)
            w, b = (part.astype(np.float64) for part in self.now)
            for start in range(0, len(y), 20):
                xs, ys = x[start:start + 20], y[start:start + 20]
                scores = xs @ w + b
                share = np.exp(scores - scores.max(axis=1, keepdims=True))
                share /= share.sum(axis=1, keepdims=True)
                share[np.arange(len(ys)), ys] -= 1
                w = w - self.rate * xs.T @ share / len(ys)
                b = b - self.rate * share.mean(axis=0)
            out[0] += w * len(y) / whole
            out[1] += b * len(y) / whole
        return [part.astype(np.float32) for part in out]

serve({"softmax": Softmax})
"""


@pytest.fixture
def engine(tmp_path, monkeypatch, bench):
    """The driver of the engine benchmark on little work, and a system in numpy."""
    bench_engine, work = bench("bench_engine"), bench("engine_work")
    script = tmp_path / "softmax.py"
    script.write_text(ENGINE_SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "bench"))
    for name, value in (("NUM_CLIENTS", 60), ("COHORT", 4), ("NUM_ROUNDS", 5)):
        monkeypatch.setattr(work, name, value)
    monkeypatch.setattr(bench_engine, "BENCH", tmp_path)
    monkeypatch.setattr(bench_engine.peer_env, "ready", lambda *_, **__: (sys.executable, ""))

    def system(name, **changes):
        return bench_engine.System(name, script.name, "softmax", **changes)

    run = bench_engine.Run(tmp_path, {"lr": (2, 2)}, lambda text: None)
    return bench_engine, run, system


def test_engines_are_compared_timed_and_a_peer_that_dies_is_reported(engine):
    bench_engine, run, system = engine
    systems = [
        system(bench_engine.OURS),
        system(bench_engine.PLAIN, reference=""),
        system(bench_engine.PFL, python=("pfl", "pfl")),
        system(bench_engine.FEDJAX, arguments={"dies": True}, python=("fedjax", "jax")),
    ]
    run.measure(systems, ["lr"])
    rounds = {row.system for row in run.rows if (row.metric, row.unit) == ("round", "ms CPU")}
    assert rounds == {bench_engine.OURS, bench_engine.PLAIN, bench_engine.PFL}
    (lost,) = [row for row in run.rows if row.metric == "not measured"]
    assert lost.system == bench_engine.FEDJAX and "RuntimeError: out of memory" in lost.note
    ratios = bench_engine.ratios_of(run.rows)
    assert ratios["lr_vs_pfl"] > 0 and ratios["lr_vs_fedjax"] is None
    shares = {row.median for row in run.rows if row.metric == "accuracy after 5 rounds"}
    assert len(shares) == 1


def test_an_engine_that_learns_something_else_ends_the_run(engine):
    bench_engine, run, system = engine
    systems = [
        system(bench_engine.OURS),
        system(bench_engine.PLAIN, reference=""),
        system(bench_engine.PFL, arguments={"rate": 0.101}, python=("pfl", "pfl")),
    ]
    with pytest.raises(bench_engine.WrongRound, match="pfl, one process, lr: after one round"):
        run.measure(systems, ["lr"])


def test_torch_gets_the_same_networks(bench):
    work, peer = bench("engine_work"), bench("peer_pfl")
    for model in work.MODELS:
        parts = work.first_params(model)
        there = peer.to_torch(parts)
        back = peer.from_torch(there)
        assert [part.shape for part in back] == list(work.SHAPES[model])
        for part, other in zip(parts, back, strict=True):
            np.testing.assert_array_equal(part, other)
    kernel = work.first_params("cnn")[4]  # pixels before channels; in torch, channels before them
    pixel, channel, out = 17, 5, 3
    there = peer.to_torch(work.first_params("cnn"))[4]
    assert there[out, channel * 144 + pixel] == kernel[pixel * 64 + channel, out]


def test_a_peer_whose_python_is_missing_is_told(bench, monkeypatch, tmp_path):
    peer_env = bench("peer_env")
    monkeypatch.setattr(peer_env, "BENCH", tmp_path)
    monkeypatch.setattr(peer_env, "ROOT", tmp_path)
    (tmp_path / "requirements-none.txt").write_text("")
    python, why = peer_env.ready("none", "sys", python="3.2")
    assert python is None and "its environment" in why
    assert not (tmp_path / ".venv-none" / "requirements.txt").exists()
    python, why = peer_env.ready("none", "sys")
    assert why == "" and python is not None and python.exists()
    assert peer_env.ready("none", "no_such_module") == (python, "")  # made before, not again
