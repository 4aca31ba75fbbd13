"""The audit ledger: who took part, what each client committed to, which models were confirmed.

Only keys, salted commitments and digests go on it. The history is a log of signed transactions
that a real EVM executes, and anyone can verify it offline.
"""

from __future__ import annotations

from fedjax_secure.ledger.account import Account
from fedjax_secure.ledger.contracts.registry import Event, commit
from fedjax_secure.ledger.embedded_ledger import EmbeddedLedger, Receipt, embedded
from fedjax_secure.ledger.verification import Verification, verify

__all__ = [
    "Account",
    "EmbeddedLedger",
    "Event",
    "Receipt",
    "Verification",
    "commit",
    "embedded",
    "verify",
]
