"""Ciphertexts and public keys as bytes: a versioned header, bit-packed residues, a checksum.

Layout, little-endian: the header (see `_HEADER`), then for each component and limb the residues of
all coefficients and polynomials, each in as many bits as its prime has, then SHA-256 over all that
comes before. The checksum finds damage in transit; who sent a message is shown by the signature of
the submission that carries it. Nothing is read from a message before its length is what it must be.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np

from fedjax_kernels import rlwe

from ..core import ParameterError, SecureFederationError, UpdateError
from .packing import Packing

MAGIC = b"FSLATTIC"
VERSION = 1
_PUBLIC_KEY, _CIPHERTEXT = 1, 2
_KINDS = {_PUBLIC_KEY: "a public key", _CIPHERTEXT: "a ciphertext"}
_NO_KEY = bytes(32)

# magic, version, kind, components, parameter set, key id, limbs, N, polynomials,
# dim, ring_bits, max_summands, lane_bits, num_lanes, noise_bits, payload length
_HEADER = struct.Struct("<8sHBB32s32sHIIQHIHHHQ")
_CHECKSUM_BYTES = 32
_NO_PACKING = (0, 0, 0, 0, 0, 0)


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

    Example:
        >>> params = rlwe.parameters("rlwe-1024-26")
        >>> words = np.zeros(rlwe.key_words_needed(params), np.uint32)
        >>> _, key = rlwe.generate_key(params, words)
        >>> content = public_key_to_bytes("rlwe-1024-26", key)
        >>> public_key_from_bytes(content)[0]
        'rlwe-1024-26'
    """
    residues = np.stack([np.asarray(key.b), np.asarray(key.a)])
    return _to_bytes(_PUBLIC_KEY, rlwe.parameters(parameters), _NO_KEY, residues, _NO_PACKING)


def public_key_from_bytes(content: bytes) -> tuple[str, rlwe.PublicKey]:
    """Read a public key.

    Args:
        content: the message.

    Returns:
        The name of the parameter set, and the key as host arrays.

    Raises:
        ParameterError: the bytes are cut, too long, damaged, foreign, of another version, or hold
            a residue that is not below its prime.
    """
    where = "reading a public key"
    name = content[12:44].rstrip(b"\0") if len(content) >= _HEADER.size else b""
    known = {known_name.encode(): known_name for known_name in rlwe.PARAMETER_SETS}
    if content[:8] == MAGIC and name not in known:
        raise ParameterError(
            where,
            need=f"a parameter set: {', '.join(rlwe.PARAMETER_SETS)}",
            found="one that this release does not know, or a message cut short",
            fix="Ask the key holder for its key again, or update fedjax_secure.",
        )
    params = rlwe.parameters(known.get(name, rlwe.PARAMETER_SETS[0]))
    residues = _from_bytes(
        where, ParameterError, content, _PUBLIC_KEY, params, _NO_KEY, 1, _NO_PACKING
    )
    return params.name, rlwe.PublicKey(residues[0], residues[1])


def ciphertext_to_bytes(packing: Packing, key_id: bytes, ciphertext: Any) -> bytes:
    """Serialise one client's ciphertext.

    Args:
        packing: the plan under which it was packed.
        key_id: of the public key under which it was encrypted, 32 bytes.
        ciphertext: uint32 [2, limb, N, polynomial].

    Returns:
        The message, ``packing.ciphertext_bytes`` and a constant long.

    Raises:
        UpdateError: another shape or type.
    """
    array = np.asarray(ciphertext)
    if array.shape != packing.ciphertext_shape or array.dtype != np.uint32:
        raise UpdateError(
            "writing a ciphertext",
            need=f"uint32 {list(packing.ciphertext_shape)}",
            found=f"{array.dtype} {list(array.shape)}",
            fix="Encrypt with the same packing.",
        )
    return _to_bytes(_CIPHERTEXT, packing.transport, key_id, array, _packing_fields(packing))


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
    return _from_bytes(
        "reading a ciphertext",
        UpdateError,
        content,
        _CIPHERTEXT,
        packing.transport,
        key_id,
        packing.num_polynomials,
        _packing_fields(packing),
    )


def _packing_fields(packing: Packing) -> tuple[int, ...]:
    code = packing.encoding
    return (
        packing.dim,
        packing.ring_bits,
        packing.max_summands,
        code.lane_bits,
        code.num_lanes,
        code.noise_bits,
    )


def _payload_bytes(params: rlwe.Parameters, polynomials: int) -> int:
    bits = sum(-(-params.ring_degree // 32) * 4 * q.bit_length() for q in params.moduli.primes)
    return 2 * polynomials * bits


def _to_bytes(kind, params, key_id, residues, packing_fields) -> bytes:
    components, limbs, degree, polynomials = residues.shape
    parts = [
        _pack_bits(residues[component, limb], q.bit_length())
        for component in range(components)
        for limb, q in enumerate(params.moduli.primes)
    ]
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        kind,
        components,
        params.name.encode(),
        key_id,
        limbs,
        degree,
        polynomials,
        *packing_fields,
        sum(map(len, parts)),
    )
    body = b"".join([header, *parts])
    return body + hashlib.sha256(body).digest()


def _from_bytes(where, error, content, kind, params, key_id, polynomials, packing_fields):
    def refuse(need: str, found: str, fix: str) -> SecureFederationError:
        return error(where, need=need, found=found, fix=fix)

    again = "Have it sent again."
    if len(content) < _HEADER.size + _CHECKSUM_BYTES:
        raise refuse("a whole message", f"{len(content)} bytes, cut short", again)
    fields = _HEADER.unpack_from(content)
    if fields[0] != MAGIC:
        raise refuse("a message of fedjax_secure's lattice encryption", "foreign bytes", again)
    if fields[1] != VERSION:
        raise refuse(
            f"version {VERSION}", f"version {fields[1]}", "Use the same release on both sides."
        )
    payload_bytes = _payload_bytes(params, polynomials)
    size = _HEADER.size + payload_bytes + _CHECKSUM_BYTES
    shape = (2, params.num_limbs, params.ring_degree, polynomials)
    same_plan = "Plan the chain alike on both sides."
    wanted = (
        ("kind", fields[2], kind, "Send the right message."),
        ("parameter set", fields[4].rstrip(b"\0"), params.name.encode(), same_plan),
        ("key", fields[5], key_id, "Encrypt under the run's public key."),
        ("shape", (fields[3], *fields[6:9]), shape, same_plan),
        ("packing", fields[9:15], packing_fields, same_plan),
        ("length", (fields[15], len(content)), (payload_bytes, size), again),
    )
    for what, found, expected, fix in wanted:
        if found != expected:
            raise refuse(f"{_KINDS[kind]} of this {what}", f"one of another {what}", fix)
    view = memoryview(content)
    if hashlib.sha256(view[:-_CHECKSUM_BYTES]).digest() != view[-_CHECKSUM_BYTES:]:
        raise refuse("bytes that match their checksum", "damaged bytes", again)
    residues, start = np.empty(shape, np.uint32), _HEADER.size
    for component in range(2):
        for limb, q in enumerate(params.moduli.primes):
            stop = start + shape[2] * polynomials * q.bit_length() // 8
            flat = _unpack_bits(view[start:stop], q.bit_length())
            if int(flat.max()) >= q:
                raise refuse(
                    f"residues below {q}", "a larger one", "Have the client encrypt again."
                )
            residues[component, limb] = flat.reshape(shape[2:])
            start = stop
    return residues


def _pack_bits(values: np.ndarray, width: int) -> bytes:
    """32-bit words, `width` bits of each, side by side; 32 values make `width` words."""
    groups = values.reshape(-1, 32)
    words = np.zeros((len(groups), width), "<u4")
    for i in range(32):
        index, shift = divmod(i * width, 32)
        words[:, index] |= groups[:, i] << np.uint32(shift)
        if shift + width > 32:
            words[:, index + 1] |= groups[:, i] >> np.uint32(32 - shift)
    return words.tobytes()


def _unpack_bits(content: memoryview, width: int) -> np.ndarray:
    words = np.frombuffer(content, "<u4").astype(np.uint32).reshape(-1, width)
    groups = np.empty((len(words), 32), np.uint32)
    mask = np.uint32((1 << width) - 1)
    for i in range(32):
        index, shift = divmod(i * width, 32)
        value = words[:, index] >> np.uint32(shift)
        if shift + width > 32:
            value = value | (words[:, index + 1] << np.uint32(32 - shift))
        groups[:, i] = value & mask
    return groups.reshape(-1)
