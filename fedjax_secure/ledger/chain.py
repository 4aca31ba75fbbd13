"""The rules of the embedded chain: what makes a signed transaction part of the history.

The log of signed transactions is the chain. The same code decides when an entry is appended, when
a log is opened again, and when it is verified offline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import checksum_address
from fedjax_secure.ledger.contracts import registry
from fedjax_secure.ledger.contracts.registry import Event, RawLog, Value
from fedjax_secure.ledger.machine import GAS_LIMIT, Machine, Reverted, new_machine
from fedjax_secure.ledger.transaction import (
    SignedTransaction,
    contract_address,
    decode_transaction,
)

_EVENTS_TAG = hashlib.sha256(b"fedjax_secure/ledger/events/v1").digest()


@dataclass(frozen=True)
class Applied:
    """What one transaction did: the transaction, its events, and the digest of its raw logs."""

    signed: SignedTransaction
    events: tuple[Event, ...]
    events_digest: bytes


class Chain:
    """The state after a sequence of signed transactions, of which the first deploys the registry.

    Guarantees:
        A transaction is taken only if its signature is valid with low s, its chain id is the
        chain's, its nonce is the sender's next, it is free (no fee, no value) with the fixed gas
        limit, it is addressed to the registry, and the registry accepts it. Whatever is refused
        changes nothing. The outcome depends on the sequence alone: there is no clock and no
        randomness.
    """

    def __init__(self) -> None:
        self.size = 0
        self.chain_id: int | None = None
        self.address: bytes | None = None
        self._machine: Machine | None = None
        self._nonces: dict[bytes, int] = {}

    def nonce(self, sender: bytes) -> int:
        """The nonce of the sender's next transaction."""
        return self._nonces.get(sender, 0)

    def apply(self, raw: bytes) -> Applied:
        """Checks and executes one raw transaction.

        Args:
            raw: a signed EIP-1559 transaction.

        Returns:
            What it did.

        Raises:
            LedgerError: a rule is broken, or the registry refuses; the state is as before.
        """
        signed = decode_transaction(raw)
        transaction, sender = signed.transaction, signed.sender
        if self.chain_id is not None and transaction.chain_id != self.chain_id:
            raise _refusal(
                f"chain id {self.chain_id}",
                f"{transaction.chain_id}",
                "Sign it for this ledger: ledger.chain_id.",
            )
        if transaction.nonce != self.nonce(sender):
            raise _refusal(
                f"nonce {self.nonce(sender)} from {checksum_address(sender)}",
                f"{transaction.nonce}",
                "Every transaction is taken once and in its sender's order.",
            )
        fees = (
            transaction.value,
            transaction.max_fee_per_gas,
            transaction.max_priority_fee_per_gas,
        )
        if any(fees) or transaction.gas_limit != GAS_LIMIT:
            raise _refusal(
                f"no value, no fees and a gas limit of {GAS_LIMIT}",
                "others",
                "Nothing is paid on the embedded ledger.",
            )
        logs = self._call(signed) if self._machine else self._deploy(signed)
        events = tuple(registry.decode_event(self.size, log) for log in logs)
        self._nonces[sender] = transaction.nonce + 1
        self.size += 1
        return Applied(signed, events, _events_digest(logs))

    def view(self, name: str, *args: Value) -> Value:
        """Asks one of the registry's views.

        Raises:
            LedgerError: the registry is not deployed yet, or an argument is malformed.
        """
        if self._machine is None or self.address is None:
            raise _refusal(
                "an opened ledger",
                "one without a registry",
                "Call ledger.open(coordinator, min_clients=...) first.",
            )
        return registry.decode_result(
            name, self._machine.view(self.address, registry.encode_call(name, *args))
        )

    def _deploy(self, signed: SignedTransaction) -> tuple[RawLog, ...]:
        transaction = signed.transaction
        if transaction.to or not registry.is_registry(transaction.data):
            raise _refusal(
                "the deployment of the registry as the first transaction",
                "another transaction",
                "Use the version of fedjax_secure that wrote this ledger.",
            )
        if not 0 < transaction.chain_id < 2**63:
            raise _refusal(
                "a chain id between 1 and 2^63 - 1",
                f"{transaction.chain_id}",
                "Leave chain_id out: a fresh one is drawn.",
            )
        machine = new_machine(transaction.chain_id)
        try:
            address = machine.deploy(signed.sender, transaction.data)
        except Reverted as error:
            raise registry.refusal(error.reason) from None
        if address != contract_address(signed.sender, 0):
            raise _refusal(
                "the registry at the address that CREATE gives it",
                "another address",
                "Report this: the EVM engine does not follow the rules.",
            )
        self._machine, self.chain_id, self.address = machine, transaction.chain_id, address
        return ()

    def _call(self, signed: SignedTransaction) -> tuple[RawLog, ...]:
        assert self._machine is not None and self.address is not None
        if signed.transaction.to != self.address:
            raise _refusal(
                f"a call of the registry at {checksum_address(self.address)}",
                "another recipient",
                "Address it to ledger.contract_address.",
            )
        try:
            return self._machine.call(signed.sender, self.address, signed.transaction.data)
        except Reverted as error:
            raise registry.refusal(error.reason) from None


def _events_digest(logs: tuple[RawLog, ...]) -> bytes:
    digest = hashlib.sha256(_EVENTS_TAG)
    for log in logs:
        digest.update(bytes([len(log.topics)]) + b"".join(log.topics))
        digest.update(len(log.data).to_bytes(4, "big") + log.data)
    return digest.digest()


def _refusal(need: str, found: str, fix: str) -> LedgerError:
    return LedgerError("the ledger", need=need, found=found, fix=fix)
