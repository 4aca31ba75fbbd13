"""Typed transactions of EIP-1559: encoding, signing, and decoding of the canonical form only."""

from __future__ import annotations

from dataclasses import dataclass

import coincurve

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import SECP256K1_ORDER, Account, keccak256

TRANSACTION_TYPE = b"\x02"

RLP = bytes | list["RLP"]


def rlp_encode(item: RLP) -> bytes:
    """Recursive length prefix encoding of byte strings and nested lists.

    Example:
        >>> rlp_encode([b"cat", b"dog"]).hex()
        'c88363617483646f67'

    Source: Ethereum Yellow Paper, appendix B.
    """
    if isinstance(item, list):
        payload = b"".join(map(rlp_encode, item))
        return _rlp_prefix(len(payload), 0xC0) + payload
    if len(item) == 1 and item[0] < 0x80:
        return item
    return _rlp_prefix(len(item), 0x80) + item


def rlp_decode(data: bytes) -> RLP:
    """Decodes one item, and accepts nothing but its one canonical encoding.

    Args:
        data: exactly one encoded item.

    Returns:
        A byte string, or a nested list of them.

    Raises:
        ValueError: truncated input, bytes left over, or an encoding that is not the shortest.
    """
    item, end = _rlp_item(data, 0)
    if end != len(data):
        raise ValueError("bytes are left over after the RLP item")
    if rlp_encode(item) != data:
        raise ValueError("the RLP item is not in its canonical form")
    return item


def _rlp_prefix(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    width = (length.bit_length() + 7) // 8
    return bytes([offset + 55 + width]) + length.to_bytes(width, "big")


def _rlp_item(data: bytes, start: int, depth: int = 0) -> tuple[RLP, int]:
    if start >= len(data) or depth > 8:
        raise ValueError("the RLP item is truncated or nested too deeply")
    prefix, start = data[start], start + 1
    if prefix < 0x80:
        return bytes([prefix]), start
    length = (prefix - 0x80) % 0x40
    if length > 55:
        width, length = length - 55, 0
        length = int.from_bytes(data[start : start + width], "big")
        start += width
    end = start + length
    if end > len(data):
        raise ValueError("the RLP item is truncated")
    if prefix < 0xC0:
        return data[start:end], end
    items: list[RLP] = []
    while start < end:
        item, start = _rlp_item(data[:end], start, depth + 1)
        items.append(item)
    return items, end


@dataclass(frozen=True)
class Transaction:
    """What an account signs: a call of a contract, or a deployment where ``to`` is empty.

    Access lists are always empty here: nothing on the ledger needs one.

    Source: EIP-2718 (typed transactions) and EIP-1559.
    """

    chain_id: int
    nonce: int
    to: bytes
    data: bytes
    gas_limit: int
    value: int = 0
    max_fee_per_gas: int = 0
    max_priority_fee_per_gas: int = 0

    def signing_digest(self) -> bytes:
        """The Keccak-256 digest that the sender signs."""
        return keccak256(TRANSACTION_TYPE + rlp_encode(self._fields()))

    def sign(self, account: Account) -> bytes:
        """Signs the transaction and returns its raw form, ready for any EVM chain."""
        signature = account.sign_digest(self.signing_digest())
        return TRANSACTION_TYPE + rlp_encode([*self._fields(), *map(_minimal, signature)])

    def _fields(self) -> list[RLP]:
        return [
            _minimal(self.chain_id),
            _minimal(self.nonce),
            _minimal(self.max_priority_fee_per_gas),
            _minimal(self.max_fee_per_gas),
            _minimal(self.gas_limit),
            self.to,
            _minimal(self.value),
            self.data,
            [],
        ]


@dataclass(frozen=True)
class SignedTransaction:
    """A transaction whose signature was checked.

    Attributes:
        transaction: what was signed.
        sender: the signer's address, 20 bytes.
        hash: the transaction's hash, 32 bytes.
    """

    transaction: Transaction
    sender: bytes
    hash: bytes


def decode_transaction(raw: bytes) -> SignedTransaction:
    """Decodes a raw transaction and recovers who signed it.

    Guarantees:
        One signed transaction has one accepted form: RLP must be canonical, integers minimal, and
        ``s`` at most half of the group order, so that nobody can make a second form of it.

    Args:
        raw: the type byte 2 and the RLP list of EIP-1559.

    Returns:
        The transaction, its sender and its hash.

    Raises:
        LedgerError: another type, a malformed field, or a signature that is not valid.
    """
    if raw[:1] != TRANSACTION_TYPE:
        raise _refusal("an EIP-1559 transaction (type 2)", f"type {raw[:1].hex() or 'nothing'}")
    try:
        fields = rlp_decode(raw[1:])
        if not isinstance(fields, list) or len(fields) != 12 or fields[8] != []:
            raise ValueError("the fields are not those of EIP-1559 with an empty access list")
        if any(isinstance(field, list) for i, field in enumerate(fields) if i != 8):
            raise ValueError("a field is a list")
        transaction = Transaction(
            chain_id=_integer(fields[0]),
            nonce=_integer(fields[1]),
            max_priority_fee_per_gas=_integer(fields[2]),
            max_fee_per_gas=_integer(fields[3]),
            gas_limit=_integer(fields[4]),
            to=bytes(fields[5]),  # type: ignore[arg-type]
            value=_integer(fields[6]),
            data=bytes(fields[7]),  # type: ignore[arg-type]
        )
        parity, r, s = map(_integer, fields[9:])
        if len(transaction.to) not in (0, 20):
            raise ValueError("the recipient is not 20 bytes")
    except ValueError as error:
        raise _refusal("a well-formed EIP-1559 transaction", str(error)) from None
    if parity > 1 or not (0 < r < SECP256K1_ORDER and 0 < s < SECP256K1_ORDER):
        raise _refusal("a valid signature", "a parity, r or s outside its range")
    if s > SECP256K1_ORDER // 2:
        raise _refusal("a signature with low s (EIP-2)", "a high s")
    compact = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            compact, transaction.signing_digest(), hasher=None
        )
    except Exception:  # coincurve raises bare Exception where no curve point fits
        raise _refusal("a valid signature", "one that no key can have made") from None
    sender = keccak256(key.format(compressed=False)[1:])[12:]
    return SignedTransaction(transaction, sender, keccak256(raw))


def contract_address(sender: bytes, nonce: int) -> bytes:
    """The address of the contract that a sender deploys with a given nonce.

    Source: Ethereum Yellow Paper, equation 88 (CREATE).
    """
    return keccak256(rlp_encode([sender, _minimal(nonce)]))[12:]


def _minimal(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _integer(field: RLP) -> int:
    if isinstance(field, list) or len(field) > 32 or field[:1] == b"\0":
        raise ValueError("an integer is not in its minimal form of at most 32 bytes")
    return int.from_bytes(field, "big")


def _refusal(need: str, found: str) -> LedgerError:
    return LedgerError(
        "the ledger", need=need, found=found, fix="Sign it with Transaction.sign(account)."
    )
