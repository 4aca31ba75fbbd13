"""The environment that OpenFHE's processes run in: found, made, or clearly missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedjax_secure.core import PartyError
from fedjax_secure.he import encrypt, openfhe_bgv
from fedjax_secure.he.openfhe import KeyHolder, KeyHolders, env, plan_for


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """A machine on which no Python but this one can be found, and nothing was set up."""
    for name in ("XDG_CACHE_HOME", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv(env.VARIABLE, raising=False)
    if env.find() is not None:
        pytest.skip("openfhe imports in this interpreter, so it is never missing")


def test_where_openfhe_is_missing_the_error_has_the_command(bare_machine):
    with pytest.raises(PartyError, match=env.COMMAND) as missing:
        KeyHolder(plan_for("openfhe_bgv", 16, 4))
    assert missing.value.found
    with pytest.raises(PartyError, match=env.COMMAND):
        KeyHolders(plan_for("openfhe_ckks", 16, 4, 3))
    assert encrypt(openfhe_bgv()).name == "encrypt"  # only a run needs OpenFHE


def test_a_variable_that_names_a_python_without_openfhe_is_an_error(bare_machine, monkeypatch):
    monkeypatch.setenv(env.VARIABLE, sys.executable)
    with pytest.raises(PartyError, match="openfhe") as failed:
        KeyHolder(plan_for("openfhe_bgv", 16, 4))
    assert env.COMMAND in failed.value.fix
    assert "No module named 'openfhe'" in failed.value.found or "ImportError" in failed.value.found
    monkeypatch.setenv(env.VARIABLE, "/no/such/python")
    with pytest.raises(PartyError, match="No such file"):
        KeyHolder(plan_for("openfhe_bgv", 16, 4))


def test_the_set_up_says_so_where_no_python_will_do_and_exits_with_0(bare_machine):
    done = subprocess.run([sys.executable, env.__file__], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert "OpenFHE is left out: " in done.stdout and env.COMMAND in done.stdout
    assert not env.folder().exists()


def test_another_system_is_told_apart(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux on x86-64" in env.why_not()


def test_only_wheels_for_this_glibc_are_tried(monkeypatch):
    def pythons(text):
        monkeypatch.setattr(os, "confstr", lambda name: text)
        return [build.python for build in env._usable_builds()]

    assert pythons("glibc 2.31") == [] and "glibc 2.35" in env.why_not()
    assert pythons("glibc 2.36") == [(3, 10)]
    assert pythons("glibc 2.39") == [(3, 10), (3, 12)]
    assert pythons(None) == []


@pytest.mark.openfhe
def test_a_second_set_up_does_nothing():
    environment = env.find()
    if environment is None:
        pytest.skip(env.why_not() or "OpenFHE is not set up")
    before = environment.stat().st_mtime_ns, environment.parent.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-W", "error", env.__file__], capture_output=True, text=True,
        check=True)
    assert done.stdout == f"OpenFHE is ready: {environment}\n" and done.stderr == ""
    assert before == (environment.stat().st_mtime_ns, environment.parent.stat().st_mtime_ns)


def test_the_script_before_installation_is_the_same_file():
    script = os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "openfhe_env.py")
    done = subprocess.run([sys.executable, "-c", f"import runpy; print(runpy.run_path({script!r}, "
                           "run_name='read')['ENVIRONMENT'])"], capture_output=True, text=True,
                          check=True)
    assert os.path.samefile(done.stdout.strip(), env.__file__)
