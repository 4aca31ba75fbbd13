"""Accounts of the ledger: secp256k1 keys, their addresses, and the key for checkpoints."""

from __future__ import annotations

import re
import secrets

import coincurve
from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_secure.core.errors import LedgerError

SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it, which is not the SHA3-256 of FIPS 202."""
    return keccak.new(digest_bits=256, data=data).digest()


def checksum_address(address: bytes) -> str:
    """Writes 20 bytes as an address with the checksum of EIP-55.

    Args:
        address: 20 bytes.

    Returns:
        ``0x`` and 40 hexadecimal digits, whose upper and lower case is the checksum.

    Example:
        >>> checksum_address(bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"))
        '0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed'

    Source: EIP-55.
    """
    digits = address.hex()
    case = keccak256(digits.encode()).hex()
    pairs = zip(digits, case[:40], strict=True)
    return "0x" + "".join(d.upper() if int(c, 16) >= 8 else d for d, c in pairs)


def parse_address(text: str) -> bytes:
    """Reads an address; where it mixes upper and lower case, its checksum must be right.

    Args:
        text: ``0x`` and 40 hexadecimal digits.

    Returns:
        The 20 bytes of the address.

    Raises:
        LedgerError: the text is no address, or its checksum is wrong.
    """
    if isinstance(text, str) and _ADDRESS.fullmatch(text):
        address = bytes.fromhex(text[2:])
        if text[2:] in (text[2:].lower(), text[2:].upper()) or text == checksum_address(address):
            return address
    raise LedgerError(
        "the ledger",
        need="an address: 0x and 40 hexadecimal digits with a right EIP-55 checksum",
        found=repr(text),
        fix="Pass account.address.",
    )


class Account:
    """A key that signs the transactions of one client or of the coordinator.

    An account owns two keys. The secp256k1 key signs transactions, and its address names the
    account. An Ed25519 key, derived from the same secret by HKDF-SHA256, signs checkpoints of the
    log: tools for transparency logs read Ed25519. The secret appears in no repr, and an account
    cannot be pickled.

    Example:
        >>> account = Account.from_secret(bytes(31) + b"\\x01")
        >>> account
        Account('0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf')

    Source: Ethereum Yellow Paper, appendix F (addresses); RFC 5869 (HKDF); RFC 8032 (Ed25519).
    """

    __slots__ = ("_checkpoint_key", "_key", "address", "address_bytes")

    def __init__(self, key: coincurve.PrivateKey):
        self._key = key
        point = key.public_key.format(compressed=False)
        self.address_bytes: bytes = keccak256(point[1:])[12:]
        self.address: str = checksum_address(self.address_bytes)
        seed = HKDF(SHA256(), 32, salt=None, info=b"fedjax_secure/ledger/checkpoint/v1")
        self._checkpoint_key = Ed25519PrivateKey.from_private_bytes(seed.derive(key.secret))

    @classmethod
    def generate(cls) -> Account:
        """Draws a fresh account from the operating system's randomness."""
        return cls(coincurve.PrivateKey(_draw_secret()))

    @classmethod
    def from_secret(cls, secret: bytes) -> Account:
        """Restores an account from its secret.

        Args:
            secret: 32 bytes, big endian, between 1 and the order of secp256k1 less 1.

        Returns:
            The account.

        Raises:
            LedgerError: the secret has another length, or lies outside that range.
        """
        usable = isinstance(secret, bytes | bytearray) and len(secret) == 32
        if not usable or not 0 < int.from_bytes(secret, "big") < SECP256K1_ORDER:
            found = f"{len(secret)} bytes" if isinstance(secret, bytes | bytearray) else "no bytes"
            raise LedgerError(
                "the account",
                need="a secret of 32 bytes between 1 and the order of secp256k1 less 1",
                found=found if not usable else "32 bytes outside that range",
                fix="Make a new one with Account.generate().",
            )
        return cls(coincurve.PrivateKey(bytes(secret)))

    def export_secret(self) -> bytes:
        """The secret of 32 bytes, for whoever keeps it in a safe place between two runs."""
        return self._key.secret

    @property
    def checkpoint_public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes, that checks this account's checkpoints."""
        return self._checkpoint_key.public_key().public_bytes_raw()

    def sign_digest(self, digest: bytes) -> tuple[int, int, int]:
        """Signs a digest with ECDSA; the nonce is that of RFC 6979 and ``s`` is low.

        Args:
            digest: 32 bytes.

        Returns:
            The parity of the curve point (0 or 1), r and s.
        """
        signature = self._key.sign_recoverable(digest, hasher=None)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        return signature[64], r, s

    def sign_checkpoint(self, text: bytes) -> bytes:
        """Signs the text of a checkpoint with Ed25519 and returns the 64 bytes."""
        return self._checkpoint_key.sign(text)

    def __repr__(self) -> str:
        return f"Account({self.address!r})"

    def __reduce__(self):
        raise TypeError("an Account holds a secret and cannot be pickled; keep export_secret()")


def _draw_secret() -> bytes:
    while True:
        secret = secrets.token_bytes(32)
        if 0 < int.from_bytes(secret, "big") < SECP256K1_ORDER:
            return secret
