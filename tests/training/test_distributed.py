"""Two processes that `jax.distributed` joins train the model that one process trains."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("distributed_run.py")
SECONDS = 400  # a process that waits for the other in vain is killed, and the test fails


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _start(folder, port, process, parts):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                   "JAX_NUM_CPU_DEVICES": "1"}
    # Neither of JAX's processes dies of SIGTERM, nor do both end when one is killed: log to files,
    # so that no pipe keeps the test waiting.
    with open(folder / f"{process}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder / f"{process}.npz"), str(port), str(process),
             parts],
            stdout=log, stderr=subprocess.STDOUT, env=environment)


def _run_both(folder, parts):
    port, deadline = _free_port(), time.monotonic() + SECONDS
    processes = [_start(folder, port, number, parts) for number in range(2)]
    try:
        codes = [p.wait(timeout=max(1, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"{number}.log").read_text() for number in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    return [dict(np.load(folder / f"{number}.npz")) for number in range(2)]


@pytest.mark.parametrize(
    "parts, count", [("few", 6), pytest.param("all", 11, marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives_to_the_last_bit(tmp_path, parts, count):
    """Sums over devices are added up in the devices' order, wherever these are."""
    if len(jax.devices()) != 2:
        pytest.skip("compares with two devices in this process")
    wanted = runpy.run_path(str(SCRIPT))["results"](parts)
    first, second = _run_both(tmp_path, parts)
    assert len(wanted) == count and set(wanted) == set(first) == set(second)
    for name, value in wanted.items():
        assert value.dtype == first[name].dtype
        np.testing.assert_array_equal(first[name], value, name)
        np.testing.assert_array_equal(second[name], value, name)
        assert np.any(value), name
