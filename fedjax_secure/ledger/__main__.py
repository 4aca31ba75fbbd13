"""The command line: ``python -m fedjax_secure.ledger verify PATH``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.verification import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if the history verifies, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m fedjax_secure.ledger", description="Check a federation's history offline."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="replay a log and check everything in it")
    check.add_argument("path", help="the ledger's log")
    check.add_argument("--head", help="a head that you know, 64 hexadecimal digits")
    check.add_argument(
        "--checkpoint", help="the signed checkpoint (default: PATH.checkpoint where it exists)"
    )
    options = parser.parse_args(arguments)
    try:
        outcome = verify(options.path, head=options.head, checkpoint=options.checkpoint)
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1
    print(outcome.summary(), file=sys.stdout if outcome.ok else sys.stderr)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
