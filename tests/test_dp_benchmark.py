"""The benchmark of differential privacy: its ratios, and that wrong results end it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent / "bench"


@pytest.fixture
def bench_dp(monkeypatch):
    """The driver, as `make bench-dp` imports it."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module("bench_dp")
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_ratios_and_goals_follow_from_the_rows(bench_dp):
    row, step, clip = bench_dp.Row.of, bench_dp.STEP, bench_dp.CLIP
    rows = [
        row(step, bench_dp.PLAIN, "step", [100.0], "ms CPU"),
        row(step, bench_dp.GHOST, "step", [110.0], "ms CPU"),
        row(step, "Opacus, ghost", "step", [99.0], "ms CPU"),
        row(step, "jax_privacy", "step", [3300.0], "ms CPU"),
        row(step, "jax_privacy, microbatch of 1", "step", [880.0], "ms CPU"),
        row(clip, bench_dp.OURS, "clip and sum", [40.0], "ms CPU"),
        row(clip, "torch, norm and gemv", "clip and sum", [32.0], "ms CPU"),
    ]
    for sigma, theirs in ((1.0, 5_000.0), (1000.0, 8_000.0)):
        case = bench_dp.law_case("discrete Gaussian", sigma)
        rows.append(row(case, bench_dp.OURS, "a million draws", [10.0], "ms CPU"))
        rows.append(row(case, "OpenDP", "a million draws", [theirs], "ms CPU"))
    assert bench_dp.ratios_of(rows) == {
        "dpsgd_over_nonprivate": 1.1,
        "dpsgd_vs_opacus_ghost": 0.9,
        "dpsgd_vs_opacus_hooks": None,
        "dpsgd_vs_jax_privacy": 8.0,
        "clip_sum_over_torch_gemv": 1.25,
        "clip_sum_vs_jax_privacy": None,
        "discrete_gaussian_vs_opendp": 500.0,
    }
    reached = [goal.reached(bench_dp.ratios_of(rows)) for goal in bench_dp.goals_of(rows)]
    assert reached == [True, True, True, True, True]
    assert {goal.ratio for goal in bench_dp.goals_of([])} <= {*bench_dp.ratios_of([]), ""}


def test_draws_of_another_law_are_refused(bench_dp):
    random = np.random.default_rng(0)
    drawn = np.rint(random.normal(0, 10, 100_000)).astype(np.int64)
    bench_dp.check_law("right", drawn, 10.0, 0.1)
    for wrong in (drawn + 1, drawn * 2, drawn[:50] * 5):
        with pytest.raises(bench_dp.WrongResult, match="standard errors off"):
            bench_dp.check_law("wrong", wrong, 10.0, 0.1)


def test_a_sum_that_is_off_is_refused(bench_dp):
    wanted = np.ones(100)
    assert bench_dp.check_sum("right", wanted.astype(np.float32), wanted, 1e-4) == 0
    with pytest.raises(bench_dp.WrongResult, match="wrong: 0.1 from the sum"):
        bench_dp.check_sum("wrong", wanted * 1.1, wanted, 1e-4)
    with pytest.raises(bench_dp.WrongResult):
        bench_dp.check_sum("none", wanted * np.nan, wanted, 1e-4)
