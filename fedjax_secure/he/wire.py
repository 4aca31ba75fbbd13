"""Ciphertexts and public keys as bytes: a versioned header, bit-packed residues, a checksum.

Layout, little-endian: the header (see :class:`_Header`), then for each component and limb the
residues of all coefficients and polynomials, each in as many bits as its prime has (see
`pack_bits`), then BLAKE2b-256 (RFC 7693) over all that comes before. Every message has exactly one
form: what is read back and written again is the same bytes.

The checksum finds damage in transit and nothing else: who sent a message is shown by the signature
of the submission that carries it, and a public key is known by its SHA-256, the key's id. Nothing
is read from a message before its length is what it must be, and nothing is allocated by what a
message claims.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, NamedTuple

import numpy as np

from fedjax_kernels import rlwe

from ..core import ParameterError, SecureFederationError, UpdateError
from .packing import Packing

MAGIC = b"FSLATTIC"
VERSION = 2
_PUBLIC_KEY, _CIPHERTEXT = 1, 2
_KINDS = {_PUBLIC_KEY: "a public key", _CIPHERTEXT: "a ciphertext"}
_COMPONENTS = 2
_NO_KEY = bytes(32)
_NO_PACKING = (0, 0, 0, 0, 0, 0)
_NAME_BYTES = 32
_CHECKSUM_BYTES = 32
_FORMAT = struct.Struct(f"<8sHBB{_NAME_BYTES}s{_NAME_BYTES}s32sIIIQHIHHHQ")
_WORDS = np.dtype("<u4")


class _Header(NamedTuple):
    """What precedes the residues; every field is one fixed value for a plan and a key.

    Clients encrypt under one parameter set; the residues of a ciphertext may be under another,
    smaller one, under which it travels.
    """

    magic: bytes
    version: int
    kind: int
    components: int
    parameter_set: bytes
    residues_set: bytes
    key_id: bytes
    limbs: int
    ring_degree: int
    polynomials: int
    dim: int
    ring_bits: int
    max_summands: int
    lane_bits: int
    num_lanes: int
    noise_bits: int
    payload_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.components, self.limbs, self.ring_degree, self.polynomials)

    @property
    def packing(self) -> tuple[int, ...]:
        return self[10:16]


def key_id_of(public_key: bytes) -> bytes:
    """SHA-256 of a public key's bytes: what submissions name as their key."""
    return hashlib.sha256(public_key).digest()


def public_key_to_bytes(parameters: str, key: rlwe.PublicKey) -> bytes:
    """Serialise a public key.

    Args:
        parameters: name of its parameter set.
        key: the key.

    Returns:
        The message.

    Raises:
        ParameterError: residues of another type or shape, or not below their primes.

    Example:
        >>> params = rlwe.parameters("rlwe-1024-26")
        >>> words = np.zeros(rlwe.key_words_needed(params), np.uint32)
        >>> _, key = rlwe.generate_key(params, words)
        >>> content = public_key_to_bytes("rlwe-1024-26", key)
        >>> public_key_from_bytes(content)[0]
        'rlwe-1024-26'
    """
    params = rlwe.parameters(parameters)
    header = _header(_PUBLIC_KEY, params, params, _NO_KEY, 1, _NO_PACKING)
    residues = np.stack([np.asarray(key.b), np.asarray(key.a)])
    return _to_bytes("writing a public key", ParameterError, header, params, residues)


def public_key_from_bytes(content: bytes) -> tuple[str, rlwe.PublicKey]:
    """Read a public key.

    Args:
        content: the message. Whoever encrypts under it has to know its :func:`key_id_of` from the
            key holder: a message alone does not show whose key it is.

    Returns:
        The name of the parameter set, and the key as host arrays.

    Raises:
        ParameterError: the bytes are cut, too long, damaged, foreign, of another version, or hold
            a residue that is not below its prime.
    """
    where = "reading a public key"
    found = _read_header(where, ParameterError, content)
    known = {_name_field(name): name for name in rlwe.PARAMETER_SETS}
    if found.parameter_set not in known:
        raise ParameterError(
            where,
            need=f"a parameter set: {', '.join(rlwe.PARAMETER_SETS)}",
            found="one that this release does not know",
            fix="Ask the key holder for its key again, or update fedjax_secure.",
        )
    params = rlwe.parameters(known[found.parameter_set])
    wanted = _header(_PUBLIC_KEY, params, params, _NO_KEY, 1, _NO_PACKING)
    residues = _from_bytes(where, ParameterError, content, found, wanted, params)
    return params.name, rlwe.PublicKey(residues[0], residues[1])


def ciphertext_to_bytes(packing: Packing, key_id: bytes, ciphertext: Any) -> bytes:
    """Serialise one client's ciphertext.

    Args:
        packing: the plan under which it was packed.
        key_id: of the public key under which it was encrypted, 32 bytes.
        ciphertext: uint32 [2, limb, N, polynomial], residues under ``packing.transport``.

    Returns:
        The message, ``packing.ciphertext_bytes`` and a constant long.

    Raises:
        UpdateError: another shape or type, or a residue that is not below its prime.
    """
    header = _ciphertext_header(packing, key_id)
    return _to_bytes(
        "writing a ciphertext", UpdateError, header, packing.transport, np.asarray(ciphertext)
    )


def ciphertext_from_bytes(content: bytes, packing: Packing, key_id: bytes) -> np.ndarray:
    """Read one client's ciphertext.

    Args:
        content: the message.
        packing: the plan under which it must have been packed.
        key_id: the key under which it must have been encrypted.

    Returns:
        uint32 [2, limb, N, polynomial], every residue below its prime.

    Raises:
        UpdateError: the bytes are cut, too long, damaged, foreign, of another version, plan or
            key, or hold a residue that is not below its prime.
    """
    where = "reading a ciphertext"
    found = _read_header(where, UpdateError, content)
    wanted = _ciphertext_header(packing, key_id)
    return _from_bytes(where, UpdateError, content, found, wanted, packing.transport)


def _ciphertext_header(packing: Packing, key_id: bytes) -> _Header:
    code = packing.encoding
    fields = (
        packing.dim,
        packing.ring_bits,
        packing.max_summands,
        code.lane_bits,
        code.num_lanes,
        code.noise_bits,
    )
    return _header(
        _CIPHERTEXT, packing.params, packing.transport, key_id, packing.num_polynomials, fields
    )


def _header(
    kind: int,
    params: rlwe.Parameters,
    residues_of: rlwe.Parameters,
    key_id: bytes,
    polynomials: int,
    packing: tuple[int, ...],
) -> _Header:
    widths = [q.bit_length() for q in residues_of.moduli.primes]
    count = residues_of.ring_degree * polynomials
    return _Header(
        MAGIC,
        VERSION,
        kind,
        _COMPONENTS,
        _name_field(params.name),
        _name_field(residues_of.name),
        key_id,
        residues_of.num_limbs,
        residues_of.ring_degree,
        polynomials,
        *packing,
        payload_bytes=_COMPONENTS * sum(packed_bytes(count, width) for width in widths),
    )


def _name_field(name: str) -> bytes:
    return name.encode().ljust(_NAME_BYTES, b"\0")


def _to_bytes(
    where: str,
    error: type[SecureFederationError],
    header: _Header,
    params: rlwe.Parameters,
    residues: np.ndarray,
) -> bytes:
    if residues.shape != header.shape or residues.dtype != np.uint32:
        raise error(
            where,
            need=f"uint32 {list(header.shape)}",
            found=f"{residues.dtype} {list(residues.shape)}",
            fix="Make it with the same plan.",
        )
    size = _FORMAT.size + header.payload_bytes + _CHECKSUM_BYTES
    content = bytearray(size)
    _FORMAT.pack_into(content, 0, *header)
    start, count = _FORMAT.size, header.ring_degree * header.polynomials
    for component in range(_COMPONENTS):
        for limb, q in enumerate(params.moduli.primes):
            values = residues[component, limb].reshape(-1)
            require_below(where, error, values, q)
            stop = start + packed_bytes(count, q.bit_length())
            pack_bits(values, q.bit_length(), memoryview(content)[start:stop])
            start = stop
    content[start:] = _checksum(memoryview(content)[:start])
    return bytes(content)


def _read_header(where: str, error: type[SecureFederationError], content: bytes) -> _Header:
    again = "Have it sent again."
    if not isinstance(content, bytes) or len(content) < _FORMAT.size + _CHECKSUM_BYTES:
        size = f"{len(content)} bytes, cut short" if isinstance(content, bytes) else "no bytes"
        raise error(where, need="a whole message", found=size, fix=again)
    header = _Header(*_FORMAT.unpack_from(content))
    if header.magic != MAGIC:
        raise error(
            where,
            need="a message of fedjax_secure's lattice encryption",
            found="foreign bytes",
            fix=again,
        )
    if header.version != VERSION:
        raise error(
            where,
            need=f"version {VERSION}",
            found=f"version {header.version}",
            fix="Use the same release on both sides.",
        )
    return header


def _from_bytes(
    where: str,
    error: type[SecureFederationError],
    content: bytes,
    found: _Header,
    wanted: _Header,
    params: rlwe.Parameters,
) -> np.ndarray:
    again, same_plan = "Have it sent again.", "Plan the chain alike on both sides."
    size = _FORMAT.size + wanted.payload_bytes + _CHECKSUM_BYTES
    for what, same, fix in (
        ("kind", found.kind == wanted.kind, "Send the right message."),
        ("parameter set", found.parameter_set == wanted.parameter_set, same_plan),
        ("parameter set", found.residues_set == wanted.residues_set, same_plan),
        ("key", found.key_id == wanted.key_id, "Encrypt under the run's public key."),
        ("shape", found.shape == wanted.shape, same_plan),
        ("packing", found.packing == wanted.packing, same_plan),
        ("length", (found, len(content)) == (wanted, size), again),
    ):
        if not same:
            raise error(
                where,
                need=f"{_KINDS[wanted.kind]} of this {what}",
                found=f"one of another {what}",
                fix=fix,
            )
    view = memoryview(content)
    if _checksum(view[:-_CHECKSUM_BYTES]) != view[-_CHECKSUM_BYTES:]:
        raise error(
            where, need="bytes that match their checksum", found="damaged bytes", fix=again
        )
    residues, start = np.empty(wanted.shape, np.uint32), _FORMAT.size
    for component in range(_COMPONENTS):
        for limb, q in enumerate(params.moduli.primes):
            values = residues[component, limb].reshape(-1)
            stop = start + packed_bytes(values.size, q.bit_length())
            unpack_bits(view[start:stop], q.bit_length(), values)
            require_below(where, error, values, q)
            start = stop
    return residues


def require_below(
    where: str, error: type[SecureFederationError], values: np.ndarray, q: int
) -> None:
    """Raise an error of the given class where a residue is not below its prime."""
    if int(values.max()) >= q:
        raise error(
            where,
            need=f"residues below {q}",
            found="a larger one",
            fix="Have it made again by whoever sent it.",
        )


def _checksum(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()


def packed_bytes(count: int, width: int) -> int:
    """Bytes of values of some bits; a multiple of 32 values, as every ring degree here is."""
    return count // 32 * width * 4


def pack_bits(values: np.ndarray, width: int, out: memoryview) -> None:
    """Write values of 1 to 32 bits side by side, 32 of them into as many 32-bit words as bits.

    The values are cut into 32 runs of one length. The g-th values of all runs, the first run's
    lowest, make one number of 32 * width bits; its words are the g-th of `width` runs of words,
    lowest first. So one step of the loop shifts a whole run, which the processor does in vectors.
    """
    runs = values.reshape(32, -1)
    words = np.frombuffer(out, _WORDS).reshape(width, -1)
    shifted = np.empty(runs.shape[1], np.uint32)
    for i, run in enumerate(runs):
        index, shift = divmod(i * width, 32)
        if shift:
            np.left_shift(run, np.uint32(shift), out=shifted)
            np.bitwise_or(words[index], shifted, out=words[index])
        else:
            words[index] = run
        if shift + width > 32:
            np.right_shift(run, np.uint32(32 - shift), out=words[index + 1])


def unpack_bits(content: memoryview, width: int, out: np.ndarray) -> None:
    """Read what `pack_bits` wrote into uint32 `out`."""
    runs = out.reshape(32, -1)
    words = np.frombuffer(content, _WORDS).reshape(width, -1)
    shifted = np.empty(runs.shape[1], np.uint32)
    mask = np.uint32((1 << width) - 1)
    for i, run in enumerate(runs):
        index, shift = divmod(i * width, 32)
        np.right_shift(words[index], np.uint32(shift), out=run)
        if shift + width > 32:
            np.left_shift(words[index + 1], np.uint32(32 - shift), out=shifted)
            np.bitwise_or(run, shifted, out=run)
        np.bitwise_and(run, mask, out=run)
