"""The bytes of OpenFHE's ``Serialize(object, BINARY)``, for public keys and ciphertexts.

OpenFHE serialises with the cereal library: fields one after another, little-endian, without names.
A type's version number precedes its first object; a shared object is written where it first occurs,
after a number with the top bit set, and is that number without the top bit from then on. The order
of the fields is OpenFHE's own and may change with any release: the versions that were tested are in
`TESTED_VERSIONS`, and everything that is read is compared with what they write.

Pure Python and NumPy: OpenFHE is not needed.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...core import ParameterError

TESTED_VERSIONS = ("1.6.1",)
CKKS, BGV = "CKKSRNS", "BGVRNS"

_SHARED = 0x40000000  # cereal's polymorphic id of an object whose static type is its own
_NEW = 0x80000000
_EVALUATION = 0
_LITTLE_ENDIAN = 1  # the first byte of cereal's portable archive
COEFFICIENT_PACKED, CKKS_PACKED = 1, 4  # OpenFHE's PlaintextEncodings
_MAX_LIMBS, _MAX_RING_DEGREE = 64, 1 << 17


@dataclasses.dataclass(frozen=True)
class Header:
    """What a serialised object says of its crypto context.

    Attributes:
        scheme: ``"CKKSRNS"`` or ``"BGVRNS"``.
        ring_degree: N.
        primes, roots: of the ciphertext modulus, each with OpenFHE's primitive 2N-th root.
        plaintext_modulus: BGV: t. CKKS: the scaling factor's bits.
        scaling_technique: 0 for FIXEDMANUAL.
        error_stddev: the standard deviation of its errors.
        secret_distribution: 0 Gaussian, 1 uniform ternary; others are sparse.
        ids: the numbers by which polynomials refer to the moduli, those of all primes last.
        encoded: the context's own bytes.
    """

    scheme: str
    ring_degree: int
    primes: tuple[int, ...]
    roots: tuple[int, ...]
    plaintext_modulus: int
    scaling_technique: int
    error_stddev: float
    secret_distribution: int
    ids: tuple[int, ...]
    encoded: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Tail:
    """What follows a ciphertext's polynomials."""

    slots: int
    level: int
    hops: int
    noise_degree: int
    scaling_factor: float
    scaling_factor_int: int
    encoding: int


def check_version(where: str, version: str) -> None:
    """Refuse a version of OpenFHE whose bytes were not tested.

    Raises:
        ParameterError: another version than `TESTED_VERSIONS`.

    Example:
        >>> check_version("import", "1.6.1.0")
        >>> check_version("import", "1.7.0")
        Traceback (most recent call last):
        fedjax_secure.core.errors.ParameterError: import needs OpenFHE 1.6.1, got '1.7.0'. Use that\
 version on the other side, or exchange values in the clear.
    """
    match = re.fullmatch(r"v?(\d+\.\d+\.\d+)([.+-].*)?", str(version))
    if match is None or match.group(1) not in TESTED_VERSIONS:
        raise ParameterError(
            where, need=f"OpenFHE {' or '.join(TESTED_VERSIONS)}", found=f"{version!r:.40}",
            fix="Use that version on the other side, or exchange values in the clear.")


class _Unreadable(Exception):
    pass


class _Reader:
    def __init__(self, content: bytes):
        self.content, self.position = memoryview(content), 0
        self._versions: set[str] = set()
        self.defined: dict[int, tuple[Any, ...]] = {}

    def take(self, size: int) -> memoryview:
        if size > len(self.content) - self.position:
            raise _Unreadable("the end")
        self.position += size
        return self.content[self.position - size:self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]

    def expect(self, layout: str, *wanted: int | float) -> Any:
        value = self.number(layout)
        if value not in wanted:
            raise _Unreadable("another value than the tested versions write")
        return value

    def version(self, name: str, wanted: int = 0) -> None:
        if name not in self._versions:
            self._versions.add(name)
            self.expect("I", wanted)

    def text(self, limit: int) -> str:
        size = self.number("Q")
        if size > limit:
            raise _Unreadable("a longer text")
        try:
            return bytes(self.take(size)).decode("ascii")
        except UnicodeDecodeError:
            raise _Unreadable("another text") from None

    def shared(self, read: Callable[[], Any]) -> tuple[int, Any]:
        """A shared object and its number: read where it is written, else looked up."""
        self.expect("I", _SHARED)
        number = self.number("I")
        if number & _NEW:
            number ^= _NEW
            self.defined[number] = (read(),)
        if number not in self.defined:
            raise _Unreadable("a reference to nothing")
        return number, self.defined[number][0]

    def big_integer(self) -> int:
        self.version("BigInteger")
        count = self.number("Q")
        if count > 2 * _MAX_LIMBS:
            raise _Unreadable("a longer integer")
        value = int.from_bytes(self.take(8 * count), "little")
        self.number("I")  # its bits
        return value

    def native_parameters(self) -> tuple[int, int, int]:
        """(N, q, root) of one prime."""
        self.version("ILNativeParams")
        self.version("ElemParams<NativeInteger>")
        degree = self._degree()
        self.version("NativeInteger")
        prime, root = self.number("Q"), self.number("Q")
        self.expect("Q", 0)
        self.expect("Q", 0)
        return degree, prime, root

    def _degree(self) -> int:
        order, degree = self.number("I"), self.number("I")
        if order != 2 * degree or not 2 <= degree <= _MAX_RING_DEGREE or degree & (degree - 1):
            raise _Unreadable("a ring that is no power of two")
        return degree

    def crt_parameters(self) -> tuple[int, tuple[tuple[int, tuple[int, int, int]], ...]]:
        """(N, (id, (N, q, root)) of every prime)."""
        self.version("ILDCRTParams")
        self.version("ElemParams<BigInteger>")
        degree, _ = self._degree(), [self.big_integer() for _ in range(4)]
        count = self.number("Q")
        if not 1 <= count <= _MAX_LIMBS:
            raise _Unreadable("no primes, or too many")
        limbs = tuple(self.shared(self.native_parameters) for _ in range(count))
        if any(limb[0] != degree for _, limb in limbs):
            raise _Unreadable("primes of another ring")
        return degree, limbs

    def context(self) -> Header:
        start = self.position
        self.expect("I", _SHARED)
        self.expect("I", _NEW | 2)
        self.version("CryptoContext", 1)
        self.expect("I", _NEW | 1)
        name = self.text(64)
        schemes = {f"lbcrypto::CryptoParameters{scheme}": scheme for scheme in (CKKS, BGV)}
        if name not in schemes:
            raise _Unreadable("a scheme that is neither CKKS nor BGV")
        scheme = schemes[name]
        self.expect("I", _NEW | 3)
        for base in ("CryptoParameters" + scheme, "CryptoParametersRNS", "CryptoParametersRLWE",
                     "CryptoParametersBase"):
            self.version(base)
        whole, (degree, limbs) = self.shared(self.crt_parameters)
        _, plaintext_modulus = self.shared(self._encoding_parameters)
        error_stddev = self.number("f")
        self.take(4)  # assurance
        self.expect("Q", plaintext_modulus if scheme == BGV else 1)  # the error's factor
        self.take(4 + 8 + 4 * 4)  # digit size, noise estimate, counts
        self.number("I")  # technique of proxy re-encryption
        secret_distribution = self.number("I")
        self.take(4 * 4 + 4 + 8 + 8 + 8 + 4)
        self.number("I")  # key switching technique
        scaling_technique = self.number("I")
        self.take(4 * 9)  # of further techniques, digits and depths
        self.expect("I", _NEW | 2)
        if self.text(64) != f"lbcrypto::Scheme{scheme}":
            raise _Unreadable("another scheme")
        self.number("I")
        for base in ("Scheme" + scheme, "SchemeRNS", "SchemeBase"):
            self.version(base)
        self.expect("I", 0)
        self.expect("I", 0)
        self.number("I")  # enabled features
        self.number("I")  # the scheme's number
        primes = tuple(limb[1] for _, limb in limbs)
        roots = tuple(limb[2] for _, limb in limbs)
        return Header(scheme, degree, primes, roots, plaintext_modulus, scaling_technique,
                      error_stddev, secret_distribution,
                      (*(number for number, _ in limbs), whole),
                      bytes(self.content[start:self.position]))

    def _encoding_parameters(self) -> int:
        self.version("EncodingParams")
        modulus = self.number("Q")
        self.take(3 * 8 + 2 * 4)
        return modulus

    def polynomials(self, header: Header) -> np.ndarray:
        """The residues of a vector of polynomials in evaluation form, uint64 [2, limb, N]."""
        self.expect("Q", 2)
        if 16 * len(header.primes) * header.ring_degree > len(self.content) - self.position:
            raise _Unreadable("too few bytes for its residues")
        residues = np.empty((2, len(header.primes), header.ring_degree), np.uint64)
        for polynomial in residues:
            self.version("DCRTPoly")
            self.expect("Q", len(header.primes))
            for prime, root, limb in zip(header.primes, header.roots, polynomial, strict=True):
                self.version("NativePoly")
                self.expect("I", _SHARED)
                self.expect("B", 1)
                self.version("NativeVector")
                self.expect("Q", header.ring_degree)
                limb[:] = np.frombuffer(self.take(8 * header.ring_degree), "<u8")
                self.expect("Q", prime)
                if (limb >= prime).any():
                    raise _Unreadable("residues that are not below their prime")
                self.expect("I", _EVALUATION)
                _, made_in = self.shared(self.native_parameters)
                if made_in != (header.ring_degree, prime, root):
                    raise _Unreadable("a polynomial of another prime")
            self.expect("I", _EVALUATION)
            _, (_, limbs) = self.shared(self.crt_parameters)
            if tuple(limb[1] for _, limb in limbs) != header.primes:
                raise _Unreadable("a polynomial of other primes")
        return residues

    def end(self) -> None:
        if self.position != len(self.content):
            raise _Unreadable("bytes after the end")


def read_public_key(content: bytes) -> tuple[Header, str, np.ndarray]:
    """The context, the key's tag, and (b, a) as uint64 [2, limb, N] in OpenFHE's order.

    Raises:
        ParameterError: the bytes are no public key that a tested version wrote.
    """
    return _read("reading an OpenFHE public key", content, _public_key)


def _public_key(reader: _Reader) -> tuple[Header, str, np.ndarray]:
    reader.expect("I", _SHARED)
    reader.expect("I", _NEW | 1)
    for base in ("PublicKey", "Key", "CryptoObject"):
        reader.version(base)
    header, tag = reader.context(), reader.text(64)
    return header, tag, reader.polynomials(header)


def read_ciphertext(content: bytes) -> tuple[Header, str, np.ndarray, Tail]:
    """The context, the key's tag, (c0, c1) as uint64 [2, limb, N] in OpenFHE's order, the rest.

    Raises:
        ParameterError: the bytes are no ciphertext of two polynomials that a tested version wrote.
    """
    return _read("reading an OpenFHE ciphertext", content, _ciphertext)


def _ciphertext(reader: _Reader) -> tuple[Header, str, np.ndarray, Tail]:
    reader.expect("I", _SHARED)
    reader.expect("I", _NEW | 1)
    reader.version("Ciphertext", 1)
    reader.version("CryptoObject")
    header, tag = reader.context(), reader.text(64)
    residues = reader.polynomials(header)
    tail = Tail(*(reader.number(layout) for layout in "IIIIdQI"))
    reader.number("I")
    reader.expect("Q", 0)  # no metadata
    return header, tag, residues, tail


def _read(where: str, content: bytes, read: Callable[[_Reader], Any]) -> Any:
    reader = _Reader(content)
    try:
        reader.expect("B", _LITTLE_ENDIAN)
        found = read(reader)
        reader.end()
    except _Unreadable as reason:
        raise ParameterError(
            where, need="what Serialize(object, BINARY) of OpenFHE "
            f"{' or '.join(TESTED_VERSIONS)} writes", found=f"{reason} at byte {reader.position} "
            f"of {len(content)}", fix="Send the whole bytes of a public key or a fresh ciphertext "
            "of CKKSRNS or BGVRNS.") from None
    return found


def write_public_key(header: Header, tag: str, residues: np.ndarray) -> bytes:
    """The bytes that OpenFHE's DeserializePublicKeyString(..., BINARY) reads."""
    start = struct.pack("<B5I", _LITTLE_ENDIAN, _SHARED, _NEW | 1, 0, 0, 0)
    return b"".join([start, header.encoded, _text(tag), *_polynomials(header, residues)])


def write_ciphertext(header: Header, tag: str, residues: np.ndarray, tail: Tail) -> bytes:
    """The bytes that OpenFHE's DeserializeCiphertextString(..., BINARY) reads."""
    start = struct.pack("<B4I", _LITTLE_ENDIAN, _SHARED, _NEW | 1, 1, 0)
    end = struct.pack("<IIIIdQI", *dataclasses.astuple(tail))
    metadata = struct.pack("<IQ", _NEW | (max(_all_ids(header)) + 1), 0)
    return b"".join([start, header.encoded, _text(tag), *_polynomials(header, residues), end,
                     metadata])


def _all_ids(header: Header) -> Sequence[int]:
    """Numbers in use: the moduli's, the encoding's and the scheme's, which come after them."""
    reader = _Reader(header.encoded)
    reader.context()
    return [*reader.defined, max(reader.defined) + 1]


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode("ascii")


def _polynomials(header: Header, residues: np.ndarray) -> list[bytes]:
    pieces = [struct.pack("<Q", 2)]
    first = True
    for polynomial in residues:
        pieces.append(struct.pack("<IQ", 0, len(header.primes)) if first
                      else struct.pack("<Q", len(header.primes)))
        for prime, number, limb in zip(header.primes, header.ids[:-1], polynomial, strict=True):
            pieces += [
                struct.pack("<IIBIQ", 0, _SHARED, 1, 0, len(limb)) if first
                else struct.pack("<IBQ", _SHARED, 1, len(limb)),
                np.ascontiguousarray(limb, "<u8").tobytes(),
                struct.pack("<QIII", prime, _EVALUATION, _SHARED, number)]
            first = False
        pieces.append(struct.pack("<III", _EVALUATION, _SHARED, header.ids[-1]))
    return pieces
