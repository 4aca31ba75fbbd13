"""Make .venv: the environment, the locked packages, this project, and OpenFHE's own environment.

Called by setup.sh with the Python that the environment is to be made of; needs nothing but its
standard library. A stamp written last says what the environment was made from, so that a second
run changes nothing, and one that was interrupted is done again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup-complete.json"
MARK = VENV / "made-by-setup"


class SetupError(Exception):
    """What stops the set-up, with the command that mends it."""


def main(arguments: list[str]) -> int:
    """Check the environment (``--check``: exit status 0 if it is complete), or make it so."""
    parser = argparse.ArgumentParser(prog="scripts/setup.sh")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--python", default="", help="the interpreter to use; empty: any")
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml")
    options = parser.parse_args(arguments)
    if options.check:
        return 0 if is_complete(options.python, options.extras) else 1
    try:
        with one_at_a_time():
            if not is_complete(options.python, options.extras):
                install(options.python or sys.executable, options.extras)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next run does it again.", file=sys.stderr)
        return 130
    return 0


def lock_file() -> Path:
    """The exact versions for the Python that runs this."""
    return ROOT / "requirements" / f"py{sys.version_info[0]}{sys.version_info[1]}.txt"


def inputs(python: str) -> dict[str, str]:
    """Everything that the environment's content depends on, apart from the extras."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return {
        "root": str(ROOT),
        "python": python,
        "version": sys.version.split()[0],
        "lock": digest(lock_file()),
        "pyproject": digest(ROOT / "pyproject.toml"),
    }


def read_stamp() -> dict:
    """What the environment was made from; empty when it was never finished."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def is_complete(python: str, extras: list[str]) -> bool:
    """Whether a finished environment has these extras, this Python (empty: any), these inputs."""
    stamp = read_stamp()
    expected = inputs(python or stamp.get("python", ""))
    return (
        {name: stamp.get(name) for name in expected} == expected
        and set(extras) <= set(stamp.get("extras", ()))
        and PYTHON.exists()
    )


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock on this file, so that two runs in two terminals do not build over each other."""
    with open(__file__) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up of this folder to finish ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install(python: str, extras: list[str]) -> None:
    """Make or renew the environment, and write the stamp last."""
    started = time.monotonic()
    stamp = read_stamp()
    wanted = inputs(python)
    same = all(stamp.get(name) == wanted[name] for name in ("root", "python", "version"))
    extras = sorted(set(extras) | (set(stamp.get("extras", ())) if same else set()))
    STAMP.unlink(missing_ok=True)  # from here on, an interrupted run is done again

    version = wanted["version"]
    if same:
        print(f"[1/3] .venv of Python {version}: bringing it up to date", flush=True)
    else:
        print(f"[1/3] making .venv with Python {version} ({python})", flush=True)
        make_environment(python)

    what = ".[" + ",".join(extras) + "]" if extras else "."
    print(f"[2/3] installing the packages of {lock_file().relative_to(ROOT)}", flush=True)
    install_packages(what)

    print("[3/3] OpenFHE", flush=True)
    set_up_openfhe()

    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps({**wanted, "extras": extras}, indent=2) + "\n")
    os.replace(partial, STAMP)
    print(f"set-up finished in {time.monotonic() - started:.0f} s", flush=True)


def make_environment(python: str) -> None:
    """A fresh .venv with pip in it."""
    if VENV.exists() and any(VENV.iterdir()) and not MARK.exists():
        raise SetupError(
            f"set-up needs a .venv of its own, got one that something else made ({VENV}). "
            "Move it away, or remove it with: make clean"
        )
    clear_environment()
    created = quietly(python, "-m", "venv", str(VENV))
    if created.returncode == 0:
        return
    # Debian and Ubuntu package ensurepip apart. A pip that is installed can serve in its place.
    clear_environment()
    if quietly(python, "-m", "venv", "--without-pip", str(VENV)).returncode == 0:
        for pip in ([python, "-m", "pip"], ["pip3"]):
            if quietly(*pip, "--python", str(PYTHON), "install", "pip").returncode == 0:
                return
    shutil.rmtree(VENV)
    short = "{}.{}".format(*sys.version_info[:2])
    raise SetupError(
        f"{created.stdout.strip()}\n\n"
        f"set-up needs the modules venv and ensurepip, got Python {short} ({python}) without them. "
        f"On Debian or Ubuntu: sudo apt-get install python{short}-venv. Or name another Python: "
        "PYTHON=/path/to/python3.12 make ..."
    )


def clear_environment() -> None:
    """An empty folder, marked as ours, so that no run ever removes an environment of the user's."""
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    MARK.touch()


def quietly(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with what it prints kept."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, stdout=str(error))


def install_packages(what: str) -> None:
    """Install this project, editable, with the exact versions of the lock.

    uv does in seconds what takes pip minutes, so pip installs uv first. Where pip is told to use
    another index, or uv fails for whatever reason, pip does the rest as well.
    """
    pip = [str(PYTHON), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    pinned = ["--constraint", str(lock_file()), "--editable", what]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    configured = quietly(*pip, "config", "list").stdout
    own_index = any(key in configured for key in (".index-url=", ".no-index=", ".proxy="))
    if not own_index and not quietly(*pip, "install", "-c", str(lock_file()), "uv").returncode:
        uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *pinned]
        if show(uv, environment) == 0:
            return
        print("      uv did not manage; pip goes on, which takes some minutes", flush=True)
    everything = [*pip, "install", *pinned]
    if subprocess.run(everything, cwd=ROOT, env=environment, check=False).returncode:
        raise SetupError(
            "set-up needs every package of the list to install, got the error above. If a download "
            "failed, check the network and run the same command again."
        )


def show(command: list[str], environment: dict[str, str]) -> int:
    """Run uv and pass on what it says, apart from its list of all that is installed."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith((" + ", " - ", " ~ ")):
                print(f"      {line.rstrip()}", flush=True)
    return process.returncode


def set_up_openfhe() -> None:
    """OpenFHE lives in an environment of its own: without it everything else works."""
    command = [str(PYTHON), str(ROOT / "scripts" / "openfhe_env.py")]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        print("      `make openfhe` tries again.", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
