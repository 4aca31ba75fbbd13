"""TenSEAL's own environment in `.venv-tenseal`, made once from its pinned requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
REQUIREMENTS = BENCH / "requirements-tenseal.txt"
VENV = BENCH.parent.parent / ".venv-tenseal"


def ready() -> tuple[Path | None, str]:
    """The environment's interpreter, or None and what stands in the way."""
    python, stamp = VENV / "bin" / "python", VENV / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python, ""
    shutil.rmtree(VENV, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--only-binary=:all:", "-r", str(REQUIREMENTS)],
        [str(python), "-c", "import tenseal"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            return None, f"its environment could not be made: {said[-1]}"
    stamp.write_text(wanted)
    return python, ""
