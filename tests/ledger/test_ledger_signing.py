"""Accounts, hashes, RLP and transactions, against published vectors and other implementations."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import eth_account
import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import (
    SECP256K1_ORDER,
    Account,
    checksum_address,
    keccak256,
    parse_address,
)
from fedjax_secure.ledger.contracts import registry
from fedjax_secure.ledger.transaction import (
    Transaction,
    contract_address,
    decode_transaction,
    rlp_decode,
    rlp_encode,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ledger.json").read_text())
SECRETS = st.integers(1, SECP256K1_ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
WORDS = st.binary(min_size=32, max_size=32)


def items(value):
    """A vector's item: nested lists of hexadecimal text as nested lists of bytes."""
    return [items(v) for v in value] if isinstance(value, list) else bytes.fromhex(value)


@pytest.mark.parametrize("case", VECTORS["keccak256"]["cases"])
def test_keccak_vectors(case):
    assert keccak256(bytes.fromhex(case["input_hex"])).hex() == case["digest"]


@pytest.mark.parametrize("address", VECTORS["checksum_addresses"]["cases"])
def test_checksum_vectors(address):
    assert checksum_address(bytes.fromhex(address[2:])) == address
    assert parse_address(address) == parse_address(address.lower()) == bytes.fromhex(address[2:])


def test_an_address_with_a_wrong_checksum_is_refused():
    for text in ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", "0x5aae", "5a" * 20, b"", None):
        with pytest.raises(LedgerError, match="address"):
            parse_address(text)


def test_contract_address_vectors():
    vectors = VECTORS["contract_addresses"]
    sender = bytes.fromhex(vectors["sender"][2:])
    for case in vectors["cases"]:
        assert contract_address(sender, case["nonce"]).hex() == case["address"]


@pytest.mark.parametrize("case", VECTORS["rlp"]["cases"])
def test_rlp_vectors(case):
    assert rlp_encode(items(case["item"])).hex() == case["encoding"]
    assert rlp_decode(bytes.fromhex(case["encoding"])) == items(case["item"])


@pytest.mark.parametrize("encoding", VECTORS["rlp"]["refused"])
def test_rlp_refuses_what_is_not_canonical(encoding):
    with pytest.raises(ValueError, match="RLP"):
        rlp_decode(bytes.fromhex(encoding))


SHALLOW = st.lists(st.binary(max_size=70) | st.lists(st.binary(max_size=70)), max_size=5)


@given(st.binary(max_size=70) | SHALLOW | st.lists(SHALLOW, max_size=4))
def test_rlp_agrees_with_another_implementation(item):
    encoding = rlp_encode(item)
    assert encoding == rlp.encode(item)
    assert rlp_decode(encoding) == item


def test_rlp_refuses_deep_nesting():
    assert rlp_decode(b"\xc8\xc7\xc6\xc5\xc4\xc3\xc2\xc1\xc0")
    with pytest.raises(ValueError, match="too deeply"):
        rlp_decode(rlp_encode([[[[[[[[[[]]]]]]]]]]))


@given(st.binary(max_size=40))
def test_rlp_takes_nothing_that_it_would_encode_otherwise(data):
    try:
        item = rlp_decode(data)
    except ValueError:
        return
    assert rlp_encode(item) == data


@given(
    secret=SECRETS,
    chain_id=st.integers(1, 2**53),
    nonce=st.integers(0, 2**32),
    data=st.binary(max_size=200),
    to=st.binary(min_size=20, max_size=20),
    gas_limit=st.integers(21_000, 10**7),
)
def test_signed_transactions_agree_with_eth_account(secret, chain_id, nonce, data, to, gas_limit):
    account = Account.from_secret(secret)
    raw = Transaction(chain_id, nonce, to, data, gas_limit).sign(account)
    oracle = eth_account.Account.from_key(secret)
    assert account.address == oracle.address
    fields = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "to": checksum_address(to),
        "data": data,
        "gas": gas_limit,
        "value": 0,
        "maxFeePerGas": 0,
        "maxPriorityFeePerGas": 0,
    }
    signed = oracle.sign_transaction(fields)
    assert raw == bytes(signed.raw_transaction)  # RFC 6979: the same bytes
    decoded = decode_transaction(raw)
    assert decoded.hash == bytes(signed.hash)
    assert decoded.sender == account.address_bytes
    assert decoded.transaction == Transaction(chain_id, nonce, to, data, gas_limit)
    assert eth_account.Account.recover_transaction(raw) == account.address


ACCOUNT = Account.from_secret(bytes(31) + b"\x07")
TRANSACTION = Transaction(5, 0, bytes(20), b"call", 100_000)


def resigned(**changes):
    """The transaction with some of its encoded fields replaced by position."""
    fields = rlp_decode(TRANSACTION.sign(ACCOUNT)[1:])
    for name, value in changes.items():
        fields[int(name[1:])] = value
    return b"\x02" + rlp_encode(fields)


def test_the_high_s_form_of_a_signature_is_refused():
    parity, r, s = ACCOUNT.sign_digest(TRANSACTION.signing_digest())
    high = (SECP256K1_ORDER - s).to_bytes(32, "big")
    flipped = resigned(_9=b"" if parity else b"\x01", _11=high)
    # It is a valid signature of the same account for whoever does not check s.
    with pytest.raises(LedgerError, match="low s"):
        decode_transaction(flipped)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01" + TRANSACTION.sign(ACCOUNT)[1:],
        TRANSACTION.sign(ACCOUNT) + b"\0",
        TRANSACTION.sign(ACCOUNT)[:-1],
        b"\x02\xc0",
        b"\x02" + rlp_encode([b""] * 12),
        resigned(_1=b"\0"),
        resigned(_5=bytes(19)),
        resigned(_7=[b"call"]),
        resigned(_8=[[bytes(20), []]]),
        resigned(_9=b"\x02"),
        resigned(_10=b""),
        resigned(_11=b""),
        resigned(_10=SECP256K1_ORDER.to_bytes(32, "big")),
        resigned(_10=b"\x05"),
        resigned(_4=b"\x01" * 33),
    ],
)
def test_malformed_transactions_are_refused(raw):
    with pytest.raises(LedgerError, match="needs .*, got .*Transaction.sign"):
        decode_transaction(raw)


def test_a_changed_field_is_another_sender():
    changed = dataclasses.replace(TRANSACTION, nonce=1)
    fields = rlp_decode(changed.sign(ACCOUNT)[1:])
    fields[9:] = rlp_decode(TRANSACTION.sign(ACCOUNT)[1:])[9:]
    try:
        sender = decode_transaction(b"\x02" + rlp_encode(fields)).sender
    except LedgerError:
        return  # no key can have made it
    assert sender != ACCOUNT.address_bytes


def test_an_account_shows_no_secret():
    secret = bytes(range(32))
    account = Account.from_secret(secret)
    shown = f"{account!r} {account} {account.__class__.__dict__.get('__dict__')}"
    assert secret.hex() not in shown and str(int.from_bytes(secret, "big")) not in shown
    assert account.export_secret() == secret
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(account)


@pytest.mark.parametrize(
    "secret", [b"", bytes(32), bytes(31), SECP256K1_ORDER.to_bytes(32, "big"), "00" * 32, None]
)
def test_unusable_secrets_are_refused(secret):
    with pytest.raises(LedgerError, match="32 bytes between") as caught:
        Account.from_secret(secret)
    if isinstance(secret, bytes) and secret:
        assert secret.hex() not in str(caught.value)


def test_generated_accounts_differ():
    assert len({Account.generate().address for _ in range(20)}) == 20


def test_the_checkpoint_key_is_another_key_of_the_same_account():
    first, second = (Account.from_secret(bytes(31) + bytes([n])) for n in (1, 2))
    again = Account.from_secret(first.export_secret())
    assert first.checkpoint_public_key == again.checkpoint_public_key
    assert first.checkpoint_public_key != second.checkpoint_public_key


@given(WORDS, st.binary(min_size=16, max_size=40), WORDS, st.binary(min_size=16, max_size=40))
def test_a_commitment_is_to_one_digest_and_one_salt(digest, salt, other_digest, other_salt):
    same = (digest, salt) == (other_digest, other_salt)
    assert (registry.commit(digest, salt) == registry.commit(other_digest, other_salt)) == same
    assert registry.commit(digest, salt) not in (digest, salt)


@pytest.mark.parametrize(
    ("digest", "salt"),
    [(bytes(32), bytes(15)), (bytes(31), bytes(16)), ("0" * 32, bytes(16)), (bytes(32), "s" * 16)],
)
def test_a_commitment_needs_a_digest_and_a_long_salt(digest, salt):
    with pytest.raises(LedgerError, match="commit needs"):
        registry.commit(digest, salt)
