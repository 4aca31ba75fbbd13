"""What ``make demo`` does: variables of make's command line become parameters of the notebook.

``make demo ROUNDS=50`` reaches this script through MAKEFLAGS, where make lists the variables of its
command line (also those that no rule uses), so that an unknown one is refused and not ignored.

    demo.py check     refuse a wrong parameter; needs the standard library alone
    demo.py run       execute the notebook
"""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "first_federation.ipynb"
NOT_PARAMETERS = ("PYTHON", "SHELL")


def command_line_variables(makeflags: str) -> dict[str, str]:
    """The NAME=VALUE part of MAKEFLAGS: after a ``--``, blanks and backslashes escaped, $ doubled.

    Example:
        >>> command_line_variables(r"s -- NAME=a\\ b ROUNDS=50")
        {'NAME': 'a b', 'ROUNDS': '50'}
        >>> command_line_variables("sk")
        {}
    """
    _, separator, text = f" {makeflags}".partition(" -- ")
    words = re.findall(r"(?:\\.|[^\\\s])+", text) if separator else []
    assignments = (re.sub(r"\\(.)", r"\1", word).replace("$$", "$") for word in words)
    pairs = (word.partition("=") for word in assignments if "=" in word)
    return {name.rstrip(":+?!"): value for name, _, value in pairs}


def import_without_jax() -> None:
    """Let a file of ``fedjax_secure.runtime`` be imported where JAX is not installed yet.

    The packages' ``__init__`` files import everything; bare packages in their place do not. A run
    starts sooner for it too: only the notebook's own process needs JAX.
    """
    for name in ("fedjax_secure", "fedjax_secure.core", "fedjax_secure.runtime"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules[name] = package


def main(task: str) -> int:
    """Check the parameters, or run the notebook with them."""
    variables = command_line_variables(os.environ.get("MAKEFLAGS", ""))
    parameters = {
        name: value for name, value in variables.items() if name not in NOT_PARAMETERS
    }
    import_without_jax()
    if task == "check":
        from fedjax_secure.runtime import notebook_parameters

        try:
            notebook_parameters.check_parameters(NOTEBOOK, parameters)
        except notebook_parameters.ParameterError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    from fedjax_secure.runtime import notebook

    flags = [text for pair in parameters.items() for text in ("-p", *pair)]
    return notebook.main(["run", str(NOTEBOOK), *flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
