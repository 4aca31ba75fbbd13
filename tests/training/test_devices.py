"""How many CPU devices the package asks for, and whom it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from fedjax_secure.training import devices


def in_a_fresh_process(code, **environment):
    ours = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", devices.VARIABLE)
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    clean |= {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=clean
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COUNT = "import fedjax_secure, jax; print(len(jax.devices('cpu')))"


@pytest.mark.parametrize(
    "environment, count",
    [
        ({}, devices.usable_cores()),
        ({devices.VARIABLE: "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
        ({"JAX_NUM_CPU_DEVICES": "4"}, 4),
    ],
    ids=["default", "our variable", "XLA_FLAGS", "JAX's variable"],
)
def test_importing_the_package_makes_the_devices(environment, count):
    assert in_a_fresh_process(COUNT, **environment) == [str(count)]


def test_a_started_backend_is_left_alone():
    code = f"import jax; jax.devices(); {COUNT}"
    assert in_a_fresh_process(code, **{devices.VARIABLE: "4"}) == ["1"]


@pytest.fixture
def asked(monkeypatch):
    """What use_all_cores would set, without setting it."""
    calls = []

    class Config:
        jax_num_cpu_devices = -1

        def update(self, name, value):
            calls.append((name, value))

    monkeypatch.setattr(jax, "config", Config())
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    return calls


def test_asks_for_every_usable_core(asked):
    assert devices.use_all_cores() == devices.usable_cores()
    assert asked == [("jax_num_cpu_devices", devices.usable_cores())]


def test_zero_means_leave_jax_alone(asked, monkeypatch):
    monkeypatch.setenv(devices.VARIABLE, "0")
    assert devices.use_all_cores() is None and asked == []


def test_a_number_chosen_in_jax_is_respected(asked):
    jax.config.jax_num_cpu_devices = 7
    assert devices.use_all_cores() is None and asked == []


@pytest.mark.parametrize("text", ["two", "-1", "1.5"])
def test_a_bad_variable_is_logged_and_ignored(asked, monkeypatch, caplog, text):
    monkeypatch.setenv(devices.VARIABLE, text)
    assert devices.use_all_cores() == devices.usable_cores()
    assert devices.VARIABLE in caplog.text


def test_never_raises(asked, monkeypatch):
    monkeypatch.setattr(jax, "config", object())
    assert devices.use_all_cores() is None


@pytest.mark.parametrize(
    "text, cores", [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_a_quota_caps_the_cores(monkeypatch, tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(devices, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert devices.usable_cores() == cores
