"""The EVM that executes the registry, behind a small interface, so that engines can be exchanged.

Nothing here checks a signature, a nonce or a chain id: :mod:`fedjax_secure.ledger.chain` does.
"""

from __future__ import annotations

import re
from typing import Protocol

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.contracts.registry import RawLog

# Each transaction may use this much gas, whatever it asks for. It is far above what the registry
# uses, so that no outcome depends on how an engine counts warm and cold storage slots.
GAS_LIMIT = 5_000_000

_ERROR_STRING = bytes.fromhex("08c379a0")  # selector of Error(string)


class Reverted(Exception):
    """The contract refused a call; ``reason`` is its own text."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


class Machine(Protocol):
    """One EVM (London rules) with its state. A failed call leaves no trace in the state."""

    def deploy(self, sender: bytes, init_code: bytes) -> bytes:
        """Deploys a contract as the sender's first transaction; returns its address."""
        ...

    def call(self, sender: bytes, to: bytes, data: bytes) -> tuple[RawLog, ...]:
        """Calls a contract, keeps the effects, and returns its logs; raises Reverted."""
        ...

    def view(self, to: bytes, data: bytes) -> bytes:
        """Calls a contract without effects and returns its answer."""
        ...


class PyrevmMachine:
    """The EVM of Rust (revm) through pyrevm: the default, about 90,000 calls a second."""

    _REVERT = re.compile(r"Revert \{.*output: 0x([0-9a-f]*) \}")

    def __init__(self, chain_id: int):
        import pyrevm

        environment = pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=chain_id))
        self._evm = pyrevm.EVM(env=environment, spec_id="LONDON")

    def deploy(self, sender: bytes, init_code: bytes) -> bytes:
        with_gas = {"deployer": _hex(sender), "code": init_code, "gas": GAS_LIMIT}
        return bytes.fromhex(self._run(self._evm.deploy, **with_gas)[2:])

    def call(self, sender: bytes, to: bytes, data: bytes) -> tuple[RawLog, ...]:
        self._run(
            self._evm.message_call,
            caller=_hex(sender),
            to=_hex(to),
            calldata=data,
            gas=GAS_LIMIT,
        )
        # pyrevm keeps the logs of the last call only, so they are taken at once.
        logs = (log.data for log in self._evm.result.logs)  # type: ignore[union-attr]
        return tuple(RawLog(tuple(map(bytes, topics)), bytes(data)) for topics, data in logs)

    def view(self, to: bytes, data: bytes) -> bytes:
        return bytes(
            self._run(
                self._evm.message_call,
                caller=_hex(bytes(20)),
                to=_hex(to),
                calldata=data,
                gas=GAS_LIMIT,
                is_static=True,
            )
        )

    def _run(self, function, **arguments):
        try:
            return function(**arguments)
        except RuntimeError as error:  # pyrevm's way to report a revert or a halt
            match = self._REVERT.match(str(error))
            raise Reverted(
                _reason(bytes.fromhex(match[1])) if match else "halted: " + str(error)
            ) from None


class PyEvmMachine:
    """The EVM of pure Python (py-evm): the fallback where pyrevm has no wheel (Python 3.13)."""

    def __init__(self, chain_id: int):
        from eth.constants import BLANK_ROOT_HASH  # pyright: ignore[reportMissingImports]
        from eth.db.atomic import AtomicDB  # pyright: ignore[reportMissingImports]
        from eth.vm.execution_context import ExecutionContext  # pyright: ignore[reportMissingImports]
        from eth.vm.forks.london.state import LondonState  # pyright: ignore[reportMissingImports]
        from eth.vm.message import Message  # pyright: ignore[reportMissingImports]
        from eth.vm.transaction_context import BaseTransactionContext  # pyright: ignore[reportMissingImports]

        self._message, self._context = Message, BaseTransactionContext
        context = ExecutionContext(
            coinbase=bytes(20),  # type: ignore[arg-type]
            timestamp=0,
            block_number=0,  # type: ignore[arg-type]
            difficulty=0,
            mix_hash=bytes(32),  # type: ignore[arg-type]
            gas_limit=2 * GAS_LIMIT,
            prev_hashes=(),
            chain_id=chain_id,
            base_fee_per_gas=0,
        )
        self._state = LondonState(AtomicDB(), context, BLANK_ROOT_HASH)

    def deploy(self, sender: bytes, init_code: bytes) -> bytes:
        from fedjax_secure.ledger.transaction import contract_address

        address = contract_address(sender, 0)
        self._state.increment_nonce(sender)  # type: ignore[arg-type]
        self._run(sender, b"", b"", create=address, code=init_code)
        return address

    def call(self, sender: bytes, to: bytes, data: bytes) -> tuple[RawLog, ...]:
        computation = self._run(sender, to, data)
        return tuple(
            RawLog(tuple(topic.to_bytes(32, "big") for topic in topics), data)
            for _, topics, data in computation.get_log_entries()
        )

    def view(self, to: bytes, data: bytes) -> bytes:
        return self._run(bytes(20), to, data, static=True).output

    def _run(self, sender, to, data, *, create=None, code=None, static=False):
        message = self._message(
            gas=GAS_LIMIT,
            to=to,
            sender=sender,
            value=0,
            data=data,
            code=code if create else self._state.get_code(to),  # type: ignore[arg-type]
            create_address=create,  # type: ignore[arg-type]
            is_static=static,
        )
        engine = self._state.computation_class
        apply = engine.apply_create_message if create else engine.apply_message
        computation = apply(self._state, message, self._context(gas_price=0, origin=sender))
        self._state.lock_changes()
        if computation.is_error:
            output = computation.output
            raise Reverted(_reason(output) if output else f"halted: {computation.error}")
        return computation


def new_machine(chain_id: int) -> Machine:
    """A fresh EVM: pyrevm where it is installed, otherwise py-evm.

    Args:
        chain_id: what the EVM's CHAINID answers.

    Returns:
        The machine, with an empty state.

    Raises:
        LedgerError: neither engine is installed.
    """
    for engine in (PyrevmMachine, PyEvmMachine):
        try:
            return engine(chain_id)
        except ImportError:
            continue
    raise LedgerError(
        "the ledger",
        need="an EVM: pyrevm (Python 3.11 and 3.12) or py-evm (Python 3.13)",
        found="neither installed",
        fix="Run `pip install pyrevm`, or `pip install --pre py-evm` on Python 3.13.",
    )


def _hex(address: bytes) -> str:
    return "0x" + address.hex()


def _reason(output: bytes) -> str:
    if output[:4] != _ERROR_STRING or len(output) < 68:
        return "no reason given"
    length = int.from_bytes(output[36:68], "big")
    return output[68 : 68 + length].decode("utf-8", "replace")
