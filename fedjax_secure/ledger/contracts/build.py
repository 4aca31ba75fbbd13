"""Compiles the registry with Vyper and writes the artefact that the package ships.

Run ``python -m fedjax_secure.ledger.contracts.build`` after a change to the contract. Users need
no compiler: Vyper is a dependency of development only, and a test holds that the artefact is what
the source compiles to.
"""

from __future__ import annotations

import json
from pathlib import Path

SOURCE = Path(__file__).with_name("round_registry.vy")
ARTEFACT = Path(__file__).with_name("round_registry.json")


def compile_registry() -> str:
    """Compiles the contract; returns the artefact's text, JSON with ``abi`` and ``bytecode``."""
    import vyper

    outputs = vyper.compile_code(
        SOURCE.read_text(), output_formats=["abi", "bytecode", "bytecode_runtime"]
    )
    artefact = {
        "contract": SOURCE.name,
        "compiler": f"vyper {vyper.__version__.partition('+')[0]}",
        "evm_version": "london",
        **{name: outputs[name] for name in ("abi", "bytecode", "bytecode_runtime")},
    }
    return json.dumps(artefact, indent=1) + "\n"


if __name__ == "__main__":
    ARTEFACT.write_text(compile_registry())
    print(f"wrote {ARTEFACT.name}")
