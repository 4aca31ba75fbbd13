"""Peers' own environments, `.venv-NAME`, each made once from its pinned requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent


def ready(
    name: str, module: str, *, python: str = "", locked: bool = False
) -> tuple[Path | None, str]:
    """A peer's interpreter, in an environment that is made if it is missing or out of date.

    Args:
        name: of the environment and of ``requirements-NAME.txt``.
        module: what has to be importable in it.
        python: a version such as ``"3.11"``; empty takes this interpreter's.
        locked: whether the requirements name every package, so that nothing else is looked for.

    Returns:
        The interpreter, or None; and what stands in the way.
    """
    requirements, venv = BENCH / f"requirements-{name}.txt", ROOT / f".venv-{name}"
    interpreter, stamp = venv / "bin" / "python", venv / "requirements.txt"
    wanted = requirements.read_text()
    if interpreter.exists() and stamp.exists() and stamp.read_text() == wanted:
        return interpreter, ""
    shutil.rmtree(venv, ignore_errors=True)
    options = ["--only-binary=:all:", "-r", str(requirements)]
    options += ["--no-deps"] if locked else []
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        make = [uv, "venv", "--quiet", "--no-python-downloads"]
        make += ["--python", python or sys.executable, str(venv)]
        install = [uv, "pip", "install", "--quiet", "--python", str(interpreter), *options]
    else:
        base = shutil.which(f"python{python}") if python else sys.executable
        if base is None:
            return None, f"its environment needs Python {python}, which is not there: install it"
        make = [base, "-m", "venv", str(venv)]
        install = [str(interpreter), "-m", "pip", "install", "--quiet"]
        install += ["--disable-pip-version-check", *options]
    for command in (make, install, [str(interpreter), "-c", f"import {module}"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            return None, f"its environment could not be made: {said[-1].strip()}"
    stamp.write_text(wanted)
    return interpreter, ""
