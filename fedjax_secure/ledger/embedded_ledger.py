"""The embedded ledger: a real EVM and a log on disk inside this process, without a server."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import Account, checksum_address
from fedjax_secure.ledger.chain import Applied, Chain
from fedjax_secure.ledger.contracts import registry
from fedjax_secure.ledger.contracts.registry import Event, Value
from fedjax_secure.ledger.log import (
    Checkpoint,
    LogFile,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from fedjax_secure.ledger.machine import GAS_LIMIT
from fedjax_secure.ledger.transaction import Transaction

_notices = logging.getLogger("fedjax_secure.ledger")


@dataclass(frozen=True)
class Receipt:
    """What the ledger did with one transaction.

    Attributes:
        index: the entry of the log that holds it.
        transaction_hash: 64 hexadecimal digits.
        sender: the address of who signed it.
        events: the events it emitted.
        head: the Merkle root of the log after it, 64 hexadecimal digits.
    """

    index: int
    transaction_hash: str
    sender: str
    events: tuple[Event, ...]
    head: str


def embedded(path: str | os.PathLike[str], *, chain_id: int | None = None) -> EmbeddedLedger:
    """Opens the ledger in a file, or makes a new one.

    Args:
        path: the log; a checkpoint is kept beside it as ``PATH.checkpoint``.
        chain_id: the chain id of a new ledger. By default a fresh random one is drawn, so that no
            transaction of one ledger can be replayed on another.

    Returns:
        The ledger, restored to the end of its log. Call its ``open`` next.

    Raises:
        LedgerError: another process writes to it, it is damaged, shorter than its checkpoint, of
            another chain, or no EVM is installed.

    Example:
        >>> import hashlib, secrets, tempfile
        >>> hospital, coordinator = Account.generate(), Account.generate()
        >>> with tempfile.TemporaryDirectory() as folder, embedded(f"{folder}/ledger") as ledger:
        ...     ledger.open(coordinator, min_clients=1)
        ...     _ = ledger.register(hospital, secrets.token_bytes(32))
        ...     commitment = registry.commit(bytes(32), secrets.token_bytes(32))
        ...     _ = ledger.submit_update(hospital, 1, commitment)
        ...     receipt = ledger.confirm_round(coordinator, 1, hashlib.sha256(b"model").digest())
        ...     receipt.events[0].name, ledger.confirmed_rounds(), receipt.index
        ('RoundConfirmed', 1, 3)
    """
    return EmbeddedLedger(Path(path), chain_id=chain_id)


class EmbeddedLedger:
    """The history of one federation as a log of signed transactions, executed by a local EVM.

    Rounds are numbered from 1. A client submits once in an attempt at a round; where a round was
    interrupted, :meth:`reopen_round` starts the next attempt and keeps the fact on record.

    Repeating a call that already succeeded (the same key, the same commitment in the same attempt,
    the same model digest) returns the first receipt and appends nothing, so a run that continues
    after a crash may simply repeat its last step.

    Guarantees:
        When a call returns, its transaction is on disk (in a :meth:`batch`: when the block ends).
        What is refused leaves no trace. A process killed at any moment leaves at most one
        incomplete entry, which is dropped with a notice when the ledger is opened again; any other
        damage is refused.
    """

    def __init__(self, path: Path, *, chain_id: int | None = None):
        self.path = path
        self.notice: str | None = None
        self._wanted_chain_id = chain_id
        self._coordinator: Account | None = None
        self._chain = Chain()
        self._receipts: list[Receipt] = []
        self._by_content: dict[tuple[Value, ...], Receipt] = {}
        self._mutex = threading.RLock()
        self._batching = False
        self._log = LogFile(path)
        try:
            self._restore()
        except BaseException:
            self._log.close()
            raise

    # ------------------------------------------------------------------ open and close

    def open(self, coordinator: Account, *, min_clients: int) -> None:
        """Deploys the registry on a new ledger; on an existing one, checks that it is the same.

        Args:
            coordinator: the account that confirms rounds and signs checkpoints.
            min_clients: the fewest submissions with which a round may be confirmed.

        Raises:
            LedgerError: the ledger belongs to another coordinator, or has another min_clients.
        """
        with self._mutex:
            if not self._chain.size:
                chain_id = self._wanted_chain_id or _draw_chain_id()
                code = registry.init_code(min_clients, coordinator.checkpoint_public_key)
                self._send(coordinator, chain_id, b"", code)
            found = (self.coordinator, self._view("MIN_CLIENTS"))
            if found != (coordinator.address, min_clients):
                raise LedgerError(
                    f"the ledger {self.path}",
                    need=f"coordinator {found[0]} with min_clients={found[1]}, as it was opened",
                    found=f"{coordinator.address} with min_clients={min_clients}",
                    fix="Use the same account and setting, or another path for a new federation.",
                )
            self._coordinator = coordinator
            self._sign_head(coordinator)

    def close(self) -> None:
        """Signs a last checkpoint, closes the log and gives up its lock."""
        with self._mutex:
            try:
                if self._coordinator is not None:
                    self._sign_head(self._coordinator)
            finally:
                self._coordinator = None
                self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------ transactions

    def register(self, account: Account, submission_key: bytes) -> Receipt:
        """Binds a client's Ed25519 public key to its account, once.

        Args:
            account: the client's account.
            submission_key: 32 bytes, the key with which the client signs its updates.

        Returns:
            The receipt; the first one where this very key is registered already.

        Raises:
            LedgerError: the account has another key, or another account has this one.
        """
        content = ("Registered", account.address, submission_key)
        return self._once(content, account, "register", submission_key)

    def submit_update(self, account: Account, round: int, commitment: bytes) -> Receipt:
        """Commits a client to its update of the open round.

        Args:
            account: a registered client's account.
            round: the open round, ``confirmed_rounds() + 1``.
            commitment: 32 bytes from :func:`fedjax_secure.ledger.commit`.

        Returns:
            The receipt; the first one where this very commitment was taken already.

        Raises:
            LedgerError: not registered, not the open round, or another commitment was submitted
                in this attempt.
        """
        content = ("UpdateSubmitted", round, self.attempt(round), account.address, commitment)
        return self._once(content, account, "submitUpdate", round, commitment)

    def reopen_round(self, coordinator: Account, round: int) -> Receipt:
        """Starts a new attempt at an interrupted round, which begins with no submissions.

        Args:
            coordinator: the coordinator's account.
            round: the open round.

        Returns:
            The receipt; its event says how many submissions were set aside.

        Raises:
            LedgerError: not the coordinator, not the open round, or nothing was submitted yet.
        """
        receipt = self._send_call(coordinator, "reopenRound", round)
        self._sign_head(coordinator)
        return receipt

    def confirm_round(self, coordinator: Account, round: int, model_digest: bytes) -> Receipt:
        """Confirms the model of the open round, and signs a checkpoint of the log.

        Args:
            coordinator: the coordinator's account.
            round: the open round.
            model_digest: 32 bytes, the digest of the model after this round.

        Returns:
            The receipt; the first one where this very model was confirmed for this round already.

        Raises:
            LedgerError: not the coordinator, not the open round, or too few submissions.
        """
        content = ("RoundConfirmed", round, coordinator.address, model_digest)
        receipt = self._once(content, coordinator, "confirmRound", round, model_digest)
        self._sign_head(coordinator)
        return receipt

    def append(self, raw: bytes) -> Receipt:
        """Takes a transaction that was signed elsewhere.

        Args:
            raw: a signed EIP-1559 transaction for this ledger's chain id and registry.

        Returns:
            The receipt.

        Raises:
            LedgerError: the transaction is refused, or could not be written.
        """
        with self._mutex:
            self._require_open_file()
            applied = self._chain.apply(raw)
            with self._disk():
                self._log.append(applied.events_digest, raw)
                if not self._batching:
                    self._log.sync()
            return self._remember(applied, self._log.root)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Waits for the disk once for all transactions in a ``with`` block, at its end.

        Waiting is most of what a transaction costs. Inside the block a killed process loses
        nothing; a loss of power may lose the block's last transactions, and only those.

        Raises:
            LedgerError: the disk reports an error.

        Example:
            >>> import tempfile
            >>> coordinator, hospitals = Account.generate(), [Account.generate() for _ in range(4)]
            >>> with tempfile.TemporaryDirectory() as folder, embedded(f"{folder}/l") as ledger:
            ...     ledger.open(coordinator, min_clients=2)
            ...     with ledger.batch():
            ...         for hospital in hospitals:
            ...             _ = ledger.register(hospital, secrets.token_bytes(32))
            ...     ledger.num_clients()
            4
        """
        with self._mutex:
            outer, self._batching = self._batching, True
            try:
                yield
            finally:
                self._batching = outer
                if not outer and not self._log.closed:
                    with self._disk():
                        self._log.sync()

    # ------------------------------------------------------------------ queries

    @property
    def head(self) -> str:
        """The Merkle root over all entries, 64 hexadecimal digits; a copy shows what is missing."""
        return self._receipts[-1].head if self._receipts else self._log.root.hex()

    @property
    def size(self) -> int:
        """How many entries the log holds."""
        return self._chain.size

    @property
    def chain_id(self) -> int | None:
        """The chain id that transactions are signed for; None before the first ``open``."""
        return self._chain.chain_id

    @property
    def contract_address(self) -> str | None:
        """The registry's address; None before the first ``open``."""
        return checksum_address(self._chain.address) if self._chain.address else None

    @property
    def coordinator(self) -> str:
        """The coordinator's address."""
        return self._view("COORDINATOR")  # type: ignore[return-value]

    def registered(self, address: str) -> bool:
        """Whether an account is a registered client."""
        return self.submission_key(address) is not None

    def submission_key(self, address: str) -> bytes | None:
        """The Ed25519 key that an account registered, or None."""
        return _or_none(self._view("submission_key", address))

    def num_clients(self) -> int:
        """How many clients are registered."""
        return self._view("num_clients")  # type: ignore[return-value]

    def confirmed_rounds(self) -> int:
        """The last confirmed round; the open one is the next."""
        return self._view("confirmed_rounds")  # type: ignore[return-value]

    def attempt(self, round: int) -> int:
        """The current attempt at a round, from 1."""
        return self._view("reopened", round) + 1  # type: ignore[operator,return-value]

    def num_submissions(self, round: int) -> int:
        """How many clients submitted in the current attempt at a round."""
        return self._view("num_submissions", round)  # type: ignore[return-value]

    def commitment(self, round: int, address: str) -> bytes | None:
        """What a client committed to in the current attempt at a round, or None."""
        return _or_none(self._view("commitment", round, address))

    def model_digest(self, round: int) -> bytes | None:
        """The model that was confirmed for a round, or None."""
        return _or_none(self._view("model_digest", round))

    def events(self) -> tuple[Event, ...]:
        """All events so far, in order."""
        return tuple(event for receipt in self._receipts for event in receipt.events)

    # ------------------------------------------------------------------ inside

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._log.close()  # the EVM is ahead of the log now; opening again restores it
            self._coordinator = None
            raise LedgerError(
                f"the ledger {self.path}",
                need="to write its entries to disk",
                found=error.strerror or "an error",
                fix="Restore the log from a copy, or choose another path."
                if error.errno == errno.ESTALE
                else "Make room, then open the ledger again: what is in the log is kept.",
            ) from error

    def _restore(self) -> None:
        for entry in self._log.entries:
            try:
                applied = self._chain.apply(entry.raw)
                found = applied.events_digest
            except LedgerError as error:
                raise self._damage(f"a bad entry {entry.index}: {error}") from None
            if found != entry.events_digest:
                raise self._damage(f"other events in entry {entry.index}")
            self._remember(applied, entry.root)
        wanted = self._wanted_chain_id
        if self._chain.size and wanted is not None and wanted != self._chain.chain_id:
            raise LedgerError(
                f"the ledger {self.path}",
                need=f"chain id {self._chain.chain_id}, as it was made",
                found=f"{wanted}",
                fix="Leave chain_id out, or choose another path.",
            )
        self._check_checkpoint()
        self.notice = self._log.drop_torn_tail()
        if self.notice:
            _notices.warning("%s", self.notice)
        self._log.entries.clear()

    def _check_checkpoint(self) -> None:
        path = checkpoint_path(self.path)
        if not path.exists():
            return
        if not self._chain.size:
            raise self._damage("a checkpoint beside an empty log")
        try:
            key: bytes = self._view("CHECKPOINT_KEY")  # type: ignore[assignment]
            checkpoint = read_checkpoint(path.read_bytes(), origin(self._chain), key)
        except ValueError as error:
            raise self._damage(f"a bad checkpoint: {error}") from None
        if checkpoint.size > self._chain.size:
            raise self._damage(
                f"{self._chain.size} entries where the signed checkpoint has {checkpoint.size}"
            )
        head = self._receipts[checkpoint.size - 1].head if checkpoint.size else ""
        if head != checkpoint.root.hex():
            raise self._damage("another history than the one its checkpoint signs")

    def _view(self, name: str, *args: Value) -> Value:
        with self._mutex:  # an EVM must not answer in the middle of another thread's transaction
            return self._chain.view(name, *args)

    def _damage(self, found: str) -> LedgerError:
        return LedgerError(
            f"the ledger {self.path}",
            need="an undamaged log",
            found=found,
            fix="Restore the log and its checkpoint from a copy, or choose another path.",
        )

    def _once(self, content: tuple[Value, ...], account: Account, name: str, *args: Value):
        with self._mutex:
            return self._by_content.get(content) or self._send_call(account, name, *args)

    def _send_call(self, account: Account, name: str, *args: Value) -> Receipt:
        if self._chain.address is None or self._chain.chain_id is None:
            self._view("num_clients")  # says that the ledger must be opened first
        data = registry.encode_call(name, *args)
        return self._send(account, self._chain.chain_id, self._chain.address, data)  # type: ignore[arg-type]

    def _send(self, account: Account, chain_id: int, to: bytes, data: bytes) -> Receipt:
        with self._mutex:
            nonce = self._chain.nonce(account.address_bytes)
            transaction = Transaction(chain_id, nonce, to, data, gas_limit=GAS_LIMIT)
            return self.append(transaction.sign(account))

    def _remember(self, applied: Applied, root: bytes) -> Receipt:
        sender = checksum_address(applied.signed.sender)
        receipt = Receipt(
            index=len(self._receipts),
            transaction_hash=applied.signed.hash.hex(),
            sender=sender,
            events=applied.events,
            head=root.hex(),
        )
        self._receipts.append(receipt)
        for event in applied.events:
            content = _content(event, sender)
            if content is not None:
                self._by_content[content] = receipt
        return receipt

    def _sign_head(self, coordinator: Account) -> None:
        with self._mutex:
            self._require_open_file()
            with self._disk():
                self._log.sync()
            head = Checkpoint(self._log.size, self._log.root)
            try:
                write_checkpoint(self.path, coordinator, origin(self._chain), head)
            except OSError as error:
                raise LedgerError(
                    f"the ledger {self.path}",
                    need="to write its checkpoint to disk",
                    found=error.strerror or "an error",
                    fix="Make room and repeat the call: its entry is on disk already.",
                ) from error

    def _require_open_file(self) -> None:
        if self._log.closed:
            raise LedgerError(
                f"the ledger {self.path}",
                need="to be open",
                found="a closed one",
                fix="Open it again with fs.ledger.embedded(path).",
            )


def origin(chain: Chain) -> str:
    """The name of a log in its checkpoints: its chain id and its registry's address."""
    address = checksum_address(chain.address) if chain.address else "none"
    return f"fedjax_secure/ledger/{chain.chain_id}/{address}"


def _draw_chain_id() -> int:
    # Above the ids of public networks, and exact in the floating point numbers of JavaScript.
    return 2**32 + secrets.randbelow(2**53 - 2**32)


def _or_none(value: Value) -> bytes | None:
    return value if value != bytes(32) else None  # type: ignore[return-value]


def _content(event: Event, sender: str) -> tuple[Value, ...] | None:
    """What makes a repeated call the same call; None for an event that may be repeated."""
    args = event.args
    match event.name:
        case "Registered":
            return (event.name, args["client"], args["submission_key"])
        case "UpdateSubmitted":
            attempt = (args["round"], args["attempt"])
            return (event.name, *attempt, args["client"], args["commitment"])
        case "RoundConfirmed":
            return (event.name, args["round"], sender, args["model_digest"])
    return None
