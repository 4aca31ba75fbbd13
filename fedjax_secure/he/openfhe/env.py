"""The small Python environment in which OpenFHE loads: ``python -m fedjax_secure.he.openfhe.env``.

OpenFHE's wheels load only on Python 3.10 with glibc 2.35 or newer, or on Python 3.12 with glibc
2.38 or newer (Linux, x86-64), though pip installs them anywhere. So OpenFHE runs as a party in a
process of its own, on an interpreter that this file finds or sets up. It needs nothing but the
standard library, so that it also runs before the toolkit is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VARIABLE = "FEDJAX_SECURE_OPENFHE_PYTHON"
COMMAND = "python -m fedjax_secure.he.openfhe.env"

_OPENFHE = "1.6.1.0"
_READY = "ready.json"


class Build(NamedTuple):
    """A wheel of OpenFHE and what it needs."""

    python: tuple[int, int]
    glibc: tuple[int, int]
    requirement: str


BUILDS = (
    Build((3, 10), (2, 35), f"openfhe=={_OPENFHE}.22.4"),
    Build((3, 12), (2, 38), f"openfhe=={_OPENFHE}.24.4"),
)

_PROBE = ("import sys; sys.path[:] = [entry for entry in sys.path if entry]; "
          "import openfhe, numpy, msgpack; print(openfhe.__version__)")


def folder() -> Path:
    """Where the set-up puts the environment: in the user's cache, one for every project."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fedjax_secure" / f"openfhe-{_OPENFHE}"


def find() -> Path | None:
    """The interpreter that OpenFHE's parties run on, or None.

    This interpreter, if openfhe imports here (tried in a process of its own, since the import may
    abort); else the one that ``FEDJAX_SECURE_OPENFHE_PYTHON`` names, whether it works or not, so
    that a wrong name is an error and not silence; else the environment that the set-up made.

    Example:
        >>> find() is None or find().is_absolute()
        True
    """
    if importlib.util.find_spec("openfhe") is not None and loads(Path(sys.executable)):
        return Path(sys.executable)
    named = os.environ.get(VARIABLE)
    if named:
        return Path(shutil.which(named) or named).absolute()
    return _ready(folder())


def loads(python: Path) -> bool:
    """Whether openfhe, numpy and msgpack import in an interpreter."""
    return _output([str(python), "-E", "-c", _PROBE]) is not None


def why_not() -> str:
    """What is missing for the set-up on this machine; empty if nothing is."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"OpenFHE's wheels are for Linux on x86-64, this is {sys.platform} on " \
               f"{platform.machine()}"
    if not _usable_builds():
        return f"OpenFHE's wheels need glibc 2.35 or newer, this machine has {_glibc_text()}"
    if not any(True for _ in _bases()):
        versions = " or ".join(_dotted(build.python) for build in _usable_builds())
        return f"OpenFHE loads only on Python {versions} here (glibc {_glibc_text()}), and none " \
               "was found on PATH, in pyenv or in uv"
    return ""


def set_up() -> Path | None:
    """Make the environment, unless it is there; say what happens; None where it cannot be.

    Returns:
        The environment's interpreter.
    """
    present = find()
    if present is not None and loads(present):
        print(f"OpenFHE is ready: {present}")
        return present
    if os.environ.get(VARIABLE):
        print(f"OpenFHE does not load on {present}, which {VARIABLE} names.")
    reason = why_not()
    if reason:
        print(f"OpenFHE is left out: {reason}. Everything else works. Install such a Python and "
              f"run: {COMMAND}")
        return None
    problems = []
    for base, build in _bases():
        print(f"Setting up {build.requirement} with {base} in {folder()} ...", flush=True)
        problem = _make(base, build)
        python = _ready(folder())
        if not problem and python is not None:
            print(f"OpenFHE is ready: {python}")
            return python
        problems.append(f"{base}: {problem}")
    print("OpenFHE is left out: the set-up failed. Everything else works.", *problems, sep="\n  ")
    print(f"Mend this and run: {COMMAND}")
    return None


def _make(base: Path, build: Build) -> str:
    """Make the environment beside its place and move it there whole; what went wrong, or ''."""
    target = folder()
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    python = unfinished / "bin" / "python"
    wanted = [build.requirement, "numpy>=1.26", "msgpack>=1.0"]
    # Debian's Python may lack ensurepip, so this interpreter's pip installs, where it has one.
    version = _output([sys.executable, "-m", "pip", "--version"]) or ""
    own_pip = version.startswith("pip ") and int(version.split()[1].split(".")[0]) >= 23
    bare = ["--without-pip"] if own_pip else []
    pip = ([sys.executable, "-m", "pip", "--python", str(python)] if own_pip
           else [str(python), "-m", "pip"])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for command in ([str(base), "-m", "venv", "--clear", *bare, str(unfinished)],
                        [*pip, "install", "--quiet", "--disable-pip-version-check", *wanted]):
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  timeout=900)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                return said[-1]
        if not loads(python):
            return f"{build.requirement} was installed but does not import"
        (unfinished / _READY).write_text(json.dumps({"requirement": build.requirement}))
        present = _ready(target)
        if present is not None and loads(present):
            return ""  # another set-up was faster
        if target.exists():
            shutil.rmtree(target)
        os.replace(unfinished, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ""


def _ready(target: Path) -> Path | None:
    python = target / "bin" / "python"
    return python if (target / _READY).exists() and python.exists() else None


def _bases() -> Iterator[tuple[Path, Build]]:
    """Interpreters that a usable wheel can load on, each once."""
    seen = set()
    for candidate in _candidates():
        shown = _output([str(candidate), "-E", "-c", "import sys; print(sys.version_info[0], "
                         "sys.version_info[1], sys.implementation.name, sys.executable)"])
        if shown is None:
            continue  # such as a pyenv shim without a selected version
        major, minor, implementation, path = shown.split(maxsplit=3)
        for build in _usable_builds():
            if (int(major), int(minor), implementation) == (*build.python, "cpython") \
                    and path not in seen:
                seen.add(path)
                yield Path(path), build


def _candidates() -> Iterator[Path]:
    for build in _usable_builds():
        name = f"python{_dotted(build.python)}"
        for entry in os.environ.get("PATH", "").split(os.pathsep):
            if entry and (Path(entry) / name).exists():
                yield Path(entry) / name
        homes = [Path(os.environ.get("PYENV_ROOT") or _output(["pyenv", "root"])
                      or Path.home() / ".pyenv") / "versions",
                 Path(os.environ.get("UV_PYTHON_INSTALL_DIR")
                      or Path.home() / ".local/share/uv/python")]
        for home in homes:
            yield from sorted(home.glob(f"*/bin/{name}"), reverse=True)


def _usable_builds() -> list[Build]:
    glibc = tuple(int(part) for part in _glibc_text().split(".")[:2] if part.isdigit())
    return [build for build in BUILDS if glibc >= build.glibc]


def _glibc_text() -> str:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return version if name == "glibc" else "none"
    except (AttributeError, OSError, ValueError):
        return "none"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    set_up()
