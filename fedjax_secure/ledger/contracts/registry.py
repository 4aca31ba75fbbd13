"""What the registry's calls and events look like: ABI, salted commitments, reasons of refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import checksum_address, keccak256, parse_address

Value = int | str | bytes

MIN_SALT_BYTES = 16

_COMMITMENT_TAG = hashlib.sha256(b"fedjax_secure/ledger/commitment/v1").digest()

# The contract's reasons, as (what was needed, the fix).
_REASONS: dict[str, tuple[str, str]] = {
    "registry: zero min_clients": ("min_clients of at least 1", "Pass a larger min_clients."),
    "registry: empty checkpoint key": (
        "the coordinator's checkpoint key",
        "Pass account.checkpoint_public_key.",
    ),
    "registry: empty key": ("a submission key", "Pass the client's Ed25519 public key."),
    "registry: already registered": (
        "one submission key for each account",
        "Keep the key that is registered, or register a new account.",
    ),
    "registry: key in use": (
        "a submission key that no other account uses",
        "Give every client an Ed25519 key of its own.",
    ),
    "registry: not registered": (
        "a registered client",
        "Call ledger.register(account, submission_key) first.",
    ),
    "registry: not the open round": (
        "the open round, which is ledger.confirmed_rounds() + 1",
        "Use that round.",
    ),
    "registry: empty commitment": (
        "a commitment",
        "Make one with fs.ledger.commit(payload_digest, salt).",
    ),
    "registry: already submitted": (
        "one submission by each client in an attempt at a round",
        "If the round was interrupted, call ledger.reopen_round(coordinator, round) first.",
    ),
    "registry: not the coordinator": (
        "the coordinator's account",
        "Sign with the account that opened the ledger.",
    ),
    "registry: nothing to reopen": (
        "a round with submissions",
        "Submit to the round as it is: nothing was taken for it yet.",
    ),
    "registry: empty model digest": ("a model digest", "Pass the digest of the new model."),
    "registry: too few submissions": (
        "at least min_clients submissions",
        "Wait for more clients, or reopen the round.",
    ),
}


@dataclass(frozen=True)
class Event:
    """One event that the registry emitted.

    Attributes:
        index: the log entry whose transaction emitted it.
        name: ``Registered``, ``UpdateSubmitted``, ``RoundReopened`` or ``RoundConfirmed``.
        args: the event's fields by name: integers, addresses as text, 32-byte values as bytes.
    """

    index: int
    name: str
    args: Mapping[str, Value]


@dataclass(frozen=True)
class RawLog:
    """One log of the EVM: topics of 32 bytes each, and data."""

    topics: tuple[bytes, ...]
    data: bytes


def commit(payload_digest: bytes, salt: bytes) -> bytes:
    """Commits to a digest without telling it: what a client submits for its update.

    A digest alone can be tested against guesses of the payload. The salt stops that. Whoever is
    given digest and salt later checks the commitment by computing it again.

    Guarantees:
        Binding as long as SHA-256 is collision resistant, and hiding (SHA-256 as a random oracle)
        as long as the salt is fresh, secret and random.

    Args:
        payload_digest: 32 bytes, for example the SHA-256 of the ciphertext.
        salt: at least 16 fresh random bytes, for example ``secrets.token_bytes(32)``.

    Returns:
        The commitment, 32 bytes.

    Raises:
        LedgerError: a digest that is not 32 bytes, or a salt that is too short.

    Example:
        >>> commit(bytes(32), bytes(16)).hex()[:16]
        'fc2d4727ce1545bf'

    Source: Boneh and Shoup, A Graduate Course in Applied Cryptography, chapter 8 (commitments
        from hash functions); the domain is separated by a tag as in BIP-340.
    """
    require_bytes32("commit", "payload_digest", payload_digest)
    if not isinstance(salt, bytes) or not MIN_SALT_BYTES <= len(salt) < 2**16:
        raise LedgerError(
            "commit",
            need=f"a salt of at least {MIN_SALT_BYTES} random bytes",
            found=f"{len(salt)} bytes" if isinstance(salt, bytes) else type(salt).__name__,
            fix="Draw it with secrets.token_bytes(32), anew for every commitment.",
        )
    message = len(salt).to_bytes(2, "big") + salt + payload_digest
    return hashlib.sha256(_COMMITMENT_TAG + _COMMITMENT_TAG + message).digest()


def require_bytes32(where: str, name: str, value: object) -> None:
    """Refuses what is not a byte string of 32 bytes."""
    if not isinstance(value, bytes) or len(value) != 32:
        found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise LedgerError(
            where,
            need=f"{name} of 32 bytes",
            found=found,
            fix="Pass a digest or key as bytes, for example hashlib.sha256(data).digest().",
        )


def init_code(min_clients: int, checkpoint_key: bytes) -> bytes:
    """The code that deploys the registry: byte code and the constructor's arguments."""
    return _artefact()["bytecode"] + _words(("uint256", "bytes32"), (min_clients, checkpoint_key))


def is_registry(code: bytes) -> bool:
    """Whether init code is the registry's own byte code and two words of arguments."""
    bytecode = _artefact()["bytecode"]
    return code.startswith(bytecode) and len(code) == len(bytecode) + 64


def encode_call(name: str, *args: Value) -> bytes:
    """The call data of one of the registry's functions."""
    function = _artefact()["functions"][name]
    return function["selector"] + _words(function["inputs"], args)


def decode_result(name: str, data: bytes) -> Value:
    """The one value that a view of the registry returns."""
    return _value(_artefact()["functions"][name]["output"], data)


def decode_event(index: int, log: RawLog) -> Event:
    """Reads one log of the registry.

    Raises:
        LedgerError: the log is none of the registry's events.
    """
    event = _artefact()["events"].get(log.topics[0] if log.topics else b"")
    if event is None:
        raise LedgerError(
            "the ledger",
            need="an event of the registry",
            found="an unknown event",
            fix="Use the version of fedjax_secure that wrote this ledger.",
        )
    topics = iter(log.topics[1:])
    words = (log.data[i : i + 32] for i in range(0, len(log.data), 32))
    args = {
        name: _value(kind, next(topics) if indexed else next(words))
        for name, kind, indexed in event["inputs"]
    }
    return Event(index, event["name"], MappingProxyType(args))


def refusal(reason: str) -> LedgerError:
    """The error for a reason that the contract gave."""
    need, fix = _REASONS.get(reason, ("a transaction that the registry accepts", "See the reason."))
    return LedgerError("the ledger", need=need, found=f"a refusal ({reason})", fix=fix)


@cache
def _artefact() -> dict:
    text = files("fedjax_secure.ledger.contracts").joinpath("round_registry.json").read_text()
    artefact = json.loads(text)
    functions, events = {}, {}
    for item in artefact["abi"]:
        kinds = tuple(field["type"] for field in item["inputs"])
        if item["type"] == "function":
            functions[item["name"]] = {
                "selector": keccak256(f"{item['name']}({','.join(kinds)})".encode())[:4],
                "inputs": kinds,
                "output": item["outputs"][0]["type"] if item["outputs"] else None,
            }
        elif item["type"] == "event":
            fields = tuple((f["name"], f["type"], f["indexed"]) for f in item["inputs"])
            topic = keccak256(f"{item['name']}({','.join(kinds)})".encode())
            events[topic] = {"name": item["name"], "inputs": fields}
    bytecode = bytes.fromhex(artefact["bytecode"].removeprefix("0x"))
    return {"bytecode": bytecode, "functions": functions, "events": events}


def _words(kinds: tuple[str, ...], values: tuple[Value, ...]) -> bytes:
    return b"".join(_word(kind, value) for kind, value in zip(kinds, values, strict=True))


def _word(kind: str, value: Value) -> bytes:
    if kind == "address":
        return parse_address(value).rjust(32, b"\0")  # type: ignore[arg-type]
    if kind == "bytes32":
        require_bytes32("the ledger", "a value", value)
        return value  # type: ignore[return-value]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**256:
        raise LedgerError(
            "the ledger",
            need="a whole number of 256 bits, not negative",
            found=repr(value),
            fix="Pass an int; rounds are numbered from 1.",
        )
    return value.to_bytes(32, "big")


def _value(kind: str, word: bytes) -> Value:
    if kind == "address":
        return checksum_address(word[12:32])
    return word[:32] if kind == "bytes32" else int.from_bytes(word[:32], "big")
