"""What holds for every test: two CPU devices, a home of its own, and how hypothesis searches."""

from __future__ import annotations

import os
import sys
import tempfile

# Before JAX starts, and inherited by every process that a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("MPLBACKEND", "agg")
_session_home = tempfile.TemporaryDirectory(prefix="fedjax-secure-tests-")
os.environ["FEDJAX_SECURE_HOME"] = _session_home.name
# Many tests build the same federation anew: what XLA compiled for one serves the others, and the
# processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _session_home.name + "/compiled")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Where Python is told to leave no bytecode beside its sources, each process that a test starts
# would read JAX's sources again, for seven seconds. It is kept in the session's folder instead.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _session_home.name + "/bytecode"
    sys.dont_write_bytecode = False

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Times vary with compilation and with the machine's load, so no example has a deadline. In CI the
# same examples run every time; at a desk each run tries others, and keeps those that failed.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Budgets, ledgers and runs of a test go to a folder of that test alone."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("FEDJAX_SECURE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def made_up_clients():
    """Datasets of so many clients of five records each, two features and two classes."""

    def make(num_clients: int):
        import numpy as np

        from fedjax_secure.data import FederatedDataset

        x = np.random.default_rng(0).normal(size=(5 * num_clients, 2))
        y, offsets = (x[:, 0] > 0).astype(np.int32), np.arange(0, 5 * num_clients + 1, 5)
        return FederatedDataset(
            name="made up", clients=tuple(f"c{i}" for i in range(num_clients)), x=x, y=y,
            offsets=offsets, test_x=x, test_y=y, test_offsets=offsets, feature_names=("p", "q"),
            classes=("0", "1"))

    return make


def pytest_collection_modifyitems(items):
    """Names of tests that hold an address differ between the processes that share the tests."""
    moving = sorted({item.nodeid.partition("[")[0] for item in items if " at 0x" in item.nodeid})
    if moving:
        raise pytest.UsageError(f"give ids= to the parameters of {', '.join(moving)}")


def pytest_ignore_collect(collection_path):
    """Programs that tests start are not searched for documentation examples."""
    if collection_path.suffix == ".py" and not collection_path.name.startswith("test_"):
        return True
    return None
