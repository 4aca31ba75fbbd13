"""The log on disk: framed entries under a Merkle tree, and the signed checkpoint beside it.

A log is the line :data:`MAGIC` and then frames::

    length of body (4) | CRC-32 of length and index (4) | body | Merkle root after this entry (32)
    body = digest of the transaction's events (32) | raw signed transaction

Integers are big endian. The root is that of RFC 9162 (SHA-256) over all bodies so far, so every
byte of the file is covered. The CRC is no security: it tells an append that was cut short (the
length is right, bytes are missing) from a length that was changed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import Account

MAGIC = b"fedjax_secure ledger 1\n"

_HEADER_BYTES, _ROOT_BYTES, _DIGEST_BYTES = 8, 32, 32
_MAX_BODY_BYTES = 1 << 16
_ED25519 = b"\x01"  # the signature type of C2SP signed-note


class MerkleTree:
    """An append-only Merkle tree that keeps only the roots of its complete subtrees.

    Example:
        >>> tree = MerkleTree()
        >>> tree.root().hex()[:16]
        'e3b0c44298fc1c14'

    Source: RFC 9162, section 2.1.1, with SHA-256.
    """

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Adds one leaf."""
        node = hashlib.sha256(b"\x00" + leaf).digest()
        carries = (~self.size & (self.size + 1)).bit_length() - 1  # trailing one bits of size
        for _ in range(carries):
            node = hashlib.sha256(b"\x01" + self._subtrees.pop() + node).digest()
        self._subtrees.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves, 32 bytes; SHA-256 of nothing for the empty tree."""
        if not self._subtrees:
            return hashlib.sha256().digest()
        *rest, node = self._subtrees
        for left in reversed(rest):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return node


@dataclass(frozen=True)
class Entry:
    """One entry that was read: its place, content, the root after it, and where it ends."""

    index: int
    events_digest: bytes
    raw: bytes
    root: bytes
    end: int


class DamagedEntry(Exception):
    """An entry that cannot be read as it was written.

    Attributes:
        index: the entry.
        reason: what is wrong.
        torn: whether it looks like an append that was cut short.
    """

    def __init__(self, index: int, reason: str, *, torn: bool = False):
        self.index, self.reason, self.torn = index, reason, torn
        super().__init__(f"entry {index}: {reason}")


def scan(data: bytes) -> Iterator[Entry]:
    """Reads the entries of a log and checks every frame and root.

    Args:
        data: the whole file.

    Yields:
        The entries, in order.

    Raises:
        DamagedEntry: at the first entry that is not as it was written.
    """
    if not data.startswith(MAGIC):
        torn = MAGIC.startswith(data)
        raise DamagedEntry(0, "the file does not begin as a ledger does", torn=torn)
    tree, start = MerkleTree(), len(MAGIC)
    while start < len(data):
        index, header = tree.size, data[start : start + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES:
            raise DamagedEntry(index, "it was cut short", torn=True)
        length = int.from_bytes(header[:4], "big")
        if header != _header(index, length) or not _DIGEST_BYTES < length <= _MAX_BODY_BYTES:
            raise DamagedEntry(index, "its length field was changed")
        middle = start + _HEADER_BYTES + length
        end = middle + _ROOT_BYTES
        if end > len(data):
            raise DamagedEntry(index, "it was cut short", torn=True)
        body = data[start + _HEADER_BYTES : middle]
        tree.append(body)
        root = tree.root()
        if data[middle:end] != root:
            raise DamagedEntry(index, "its content does not match its Merkle root")
        yield Entry(index, body[:_DIGEST_BYTES], body[_DIGEST_BYTES:], root, end)
        start = end


class LogFile:
    """A log opened for appending, locked against every other writer.

    Args:
        path: the file; it and its folder are made where they are missing.

    Raises:
        LedgerError: another writer holds it, or it is damaged other than by a cut append.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(
                f"the ledger {path}",
                need="a file that it can write",
                found=error.strerror or "an error",
                fix="Choose a path in a folder that you may write to.",
            ) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(
                f"the ledger {self.path}",
                need="to be its only writer",
                found="another open ledger on the same file",
                fix="Close the other one (ledger.close()), or choose another path.",
            ) from None

    def _read(self) -> None:
        data = self.path.read_bytes()
        self.entries: list[Entry] = []
        self._torn_bytes = 0
        self._unsynced = False
        self._tree, self._end = MerkleTree(), len(MAGIC)
        try:
            for entry in scan(data):
                self.entries.append(entry)
                self._tree.append(entry.events_digest + entry.raw)
                self._end = entry.end
        except DamagedEntry as damage:
            if not damage.torn:
                raise LedgerError(
                    f"the ledger {self.path}",
                    need="an undamaged log",
                    found=f"a bad entry {damage.index}: {damage.reason}",
                    fix="Restore the log from a copy; `python -m fedjax_secure.ledger verify` "
                    "checks one.",
                ) from None
            if data.startswith(MAGIC):
                self._torn_bytes = len(data) - self._end
            else:
                self._create()

    def _create(self) -> None:
        os.ftruncate(self._file, 0)
        _write_all(self._file, MAGIC)
        os.fsync(self._file)
        _sync_folder(self.path)

    def drop_torn_tail(self) -> str | None:
        """Cuts off what an interrupted append left; says so, or returns None."""
        if not self._torn_bytes:
            return None
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        notice = (
            f"the ledger {self.path}: an append was interrupted; dropped {self._torn_bytes} bytes "
            f"of the incomplete entry {self._tree.size}"
        )
        self._torn_bytes = 0
        return notice

    @property
    def size(self) -> int:
        """How many entries the log holds."""
        return self._tree.size

    @property
    def root(self) -> bytes:
        """The Merkle root over all entries."""
        return self._tree.root()

    def append(self, events_digest: bytes, raw: bytes) -> None:
        """Appends one entry, which is on disk for good after the next :meth:`sync`.

        Raises:
            OSError: the entry could not be written; the file is as before where that was possible.
        """
        body = events_digest + raw
        if len(body) > _MAX_BODY_BYTES:
            raise LedgerError(
                "the ledger",
                need=f"an entry of at most {_MAX_BODY_BYTES} bytes",
                found=f"{len(body)} bytes",
                fix="Put digests on the ledger, not data.",
            )
        header = _header(self.size, len(body))
        self._tree.append(body)  # after an OSError the tree is ahead: the file must be read again
        frame = header + body + self._tree.root()
        os.lseek(self._file, self._end, os.SEEK_SET)
        try:
            _write_all(self._file, frame)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(frame)
        self._unsynced = True

    def sync(self) -> None:
        """Waits until every entry is on disk, safe from a loss of power.

        Raises:
            OSError: the disk reports an error; ESTALE where the log was removed from its path, or
                replaced there, so that what was written would be lost with this process.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._file)):
                return self._sync()
        raise OSError(errno.ESTALE, "that the log was removed or replaced while it was open")

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._file < 0

    def close(self) -> None:
        """Closes the file and gives up the lock; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass(frozen=True)
class Checkpoint:
    """A head of the log that the coordinator signed: how many entries, and the root over them."""

    size: int
    root: bytes


def checkpoint_path(path: Path) -> Path:
    """Where the checkpoint of a log lies: beside it."""
    return path.with_name(path.name + ".checkpoint")


def write_checkpoint(path: Path, account: Account, origin: str, checkpoint: Checkpoint) -> None:
    """Signs a checkpoint and puts it beside its log, whole or not at all.

    Source: C2SP tlog-checkpoint and signed-note (Ed25519).
    """
    root = base64.b64encode(checkpoint.root).decode()
    text = f"{origin}\n{checkpoint.size}\n{root}\n"
    key = account.checkpoint_public_key
    signature = _key_id(origin, key) + account.sign_checkpoint(text.encode())
    note = f"{text}\n\u2014 {origin} {base64.b64encode(signature).decode()}\n"
    target = checkpoint_path(path)
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        file.write(note.encode())
        file.flush()
        os.fsync(file.fileno())
    # The folder is not synced: after a loss of power the checkpoint before is as good.
    os.replace(part, target)


def read_checkpoint(note: bytes, origin: str, public_key: bytes) -> Checkpoint:
    """Reads a checkpoint and checks that the coordinator signed it.

    Args:
        note: the file's bytes.
        origin: the log's name.
        public_key: the coordinator's Ed25519 key, 32 bytes.

    Returns:
        The checkpoint.

    Raises:
        ValueError: it is malformed, of another log, or not signed by that key.
    """
    lines = open_note(note, origin, public_key).split("\n")
    if len(lines) < 4 or lines[0] != origin:
        raise ValueError("the checkpoint is of another log")
    size, root = lines[1], _decode_base64(lines[2])
    if not (size.isascii() and size.isdigit()) or str(int(size)) != size or len(root) != 32:
        raise ValueError("the checkpoint's size or root is malformed")
    return Checkpoint(int(size), root)


def open_note(note: bytes, name: str, public_key: bytes) -> str:
    """Checks a signed note and returns its text, which ends in a newline.

    Signatures by other keys are ignored; the one by this key must be there and be valid.

    Raises:
        ValueError: the note is malformed, or not signed by this key.

    Source: C2SP signed-note.
    """
    text, separator, tail = note.decode("utf-8").rpartition("\n\n")
    text += "\n"
    if not separator or not tail.endswith("\n"):
        raise ValueError("the note has no signature")
    signed = False
    for line in tail[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        signer, _, encoded = rest.partition(" ")
        if dash != "\u2014" or not signer:
            raise ValueError("a signature line of the note is malformed")
        signature = _decode_base64(encoded)
        if signer == name and signature[:4] == _key_id(name, public_key):
            try:
                key = Ed25519PublicKey.from_public_bytes(public_key)
                key.verify(signature[4:], text.encode())
            except InvalidSignature:
                raise ValueError("the note's signature is wrong") from None
            signed = True
    if not signed:
        raise ValueError("the note is not signed by the expected key")
    return text


def _key_id(name: str, public_key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def _decode_base64(text: str) -> bytes:
    data = base64.b64decode(text.encode(), validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 that is not in its canonical form")
    return data


def _header(index: int, length: int) -> bytes:
    field = length.to_bytes(4, "big")
    return field + zlib.crc32(field + index.to_bytes(8, "big")).to_bytes(4, "big")


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
