"""Keys and ciphertexts between our lattice kernels and other programs that use OpenFHE.

The other side needs its ordinary calls only: ``Serialize(object, BINARY)``,
``DeserializePublicKeyString(content, BINARY)`` and ``DeserializeCiphertextString(content, BINARY)``
in Python, whose bytes are those of ``Serial::Serialize`` with ``SerType::BINARY`` in C++ (the tests
use Python). Nothing here needs OpenFHE. What travels is public, a public key and ciphertexts, and
carries no checksum: send it over a channel that does.

A context of the other side has to use primes that our kernels take, below 2^30, and
``FIXEDMANUAL``. In Python::

    parameters = CCParamsCKKSRNS()            # or CCParamsBGVRNS() with SetPlaintextModulus(2**k)
    parameters.SetScalingTechnique(FIXEDMANUAL)
    parameters.SetKeySwitchTechnique(BV)
    parameters.SetFirstModSize(30)            # the first prime's bits
    parameters.SetScalingModSize(28)          # every further prime's bits; CKKS: also the scale's
    parameters.SetMultiplicativeDepth(2)      # how many further primes

CKKS ciphertexts hold up to N/2 real values in slots, BGV ciphertexts N integers as coefficients
(``MakeCoefPackedPlaintext``): primes that suit a packed plaintext modulus are above 2^30.

To encrypt here for the other side, with `content` its serialised public key::

    key = import_public_key(content, version="1.6.1.0")
    message = key.encode(values)                       # [batch, key.num_values]
    words = ...                                        # fresh secret words, as rlwe.encrypt needs
    ciphertext = rlwe.encrypt(key.params, key.public_key, message, words)
    contents = export_ciphertext(key, ciphertext)      # for DeserializeCiphertextString

To have the other side encrypt for us::

    secret, public = rlwe.generate_key(key.params, words)
    ours = adopt(key, public)
    content = export_public_key(ours)                  # for DeserializePublicKeyString
    ciphertext = import_ciphertext(ours, contents, version="1.6.1.0")
    values = ours.decrypt(secret, ciphertext)

How it works: OpenFHE transforms with its own root of unity, whose powers are ours in another order.
A BGV ciphertext is (b u + t e0 + m, a u + t e1): t times an encryption of m / t under the key
(b / t, a / t), with errors that are not multiplied, which is what our kernels make (J.
Alperin-Sheriff, C. Peikert, CRYPTO 2013, ePrint 2013/372, appendix A). All of it is exact.

Assumes: decrypted values of CKKS are approximate and are not published (Li, Micciancio, ePrint
2020/1533); the sums stay within the context's modulus, as between two OpenFHE programs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from fedjax_kernels import ntt, rlwe
from fedjax_kernels.modular import Moduli

from ...core import ParameterError
from . import encodings, serialised
from .serialised import BGV, TESTED_VERSIONS, Header, Tail

__all__ = [
    "TESTED_VERSIONS",
    "ContextKey",
    "adopt",
    "export_ciphertext",
    "export_public_key",
    "import_ciphertext",
    "import_public_key",
]

_MAX_PRIME = 1 << 30
_ASK_FOR = ("Ask the other side for SetFirstModSize(30), SetScalingModSize(28) and "
            "SetMultiplicativeDepth(n) for n + 1 primes")
_FIXED_MANUAL = 0
_DENSE = (0, 1)  # Gaussian and uniform ternary secrets
_LEAST_STDDEV = 3.18999  # of errors: OpenFHE's own is 3.19 in single precision


@dataclasses.dataclass(frozen=True, eq=False)
class ContextKey:
    """A public key in a crypto context of OpenFHE, as our kernels take it.

    Attributes:
        params: for :mod:`fedjax_kernels.rlwe`: the context's ring and primes.
        public_key: for ``rlwe.encrypt``. Of BGV it is divided by t, see the module.
        scheme: ``"CKKSRNS"`` or ``"BGVRNS"``.
        tag: OpenFHE's name of the key, in every ciphertext made under it.
    """

    params: rlwe.Parameters
    public_key: rlwe.PublicKey
    tag: str
    _header: Header = dataclasses.field(repr=False)

    @property
    def scheme(self) -> str:
        return self._header.scheme

    @property
    def moduli(self) -> Moduli:
        """The context's primes and ring degree."""
        return self.params.moduli

    @property
    def num_values(self) -> int:
        """Values in one ciphertext: N/2 slots of CKKS, N coefficients of BGV."""
        return self.params.ring_degree // (1 if self.scheme == BGV else 2)

    @property
    def scale(self) -> float:
        """CKKS: what values are multiplied by. BGV: 1."""
        return 1.0 if self.scheme == BGV else 2.0**self._header.plaintext_modulus

    @property
    def plaintext_modulus(self) -> int | None:
        """BGV: t. CKKS: None."""
        return self._header.plaintext_modulus if self.scheme == BGV else None

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values to the message that ``rlwe.encrypt`` takes.

        Args:
            values: [batch, num_values] float64 (CKKS), or integers within t/2 (BGV).

        Returns:
            uint32 [limb, N, batch].

        Raises:
            ParameterError: another shape, type or range.
        """
        values = np.asarray(values)
        wanted = np.integer if self.scheme == BGV else np.floating
        if values.ndim != 2 or values.shape[1] != self.num_values \
                or not np.issubdtype(values.dtype, wanted):
            raise ParameterError(
                "encoding for OpenFHE", need=f"{wanted.__name__} [batch, {self.num_values}]",
                found=f"{values.dtype} {list(values.shape)}", fix="Pad the last row with zeros.")
        t = self.plaintext_modulus
        if t is None:
            coefficients = np.rint(self.scale * encodings.embed(values, self.params.ring_degree))
            if not np.abs(coefficients).max(initial=0.0) < 2.0**62:  # NaN fails too
                raise ParameterError("encoding for OpenFHE", need="finite scaled values below 2^62",
                                     found="a larger one", fix="Use smaller values.")
            return encodings.to_residues(coefficients.astype(np.int64), self.moduli)
        if 2 * int(np.abs(values.astype(np.int64)).max(initial=0)) > t:
            raise ParameterError("encoding for OpenFHE", need=f"integers within {t // 2}",
                                 found="a larger one", fix="Use a larger plaintext modulus.")
        return _times(encodings.to_residues(values.T.astype(np.int64), self.moduli), self.moduli,
                      lambda q: pow(t, -1, q))

    def decrypt(self, secret_key: rlwe.SecretKey, ciphertext: np.ndarray) -> np.ndarray:
        """The values in a ciphertext, or a sum of them, under one of our own keys.

        Args:
            secret_key: the secret of ``public_key``.
            ciphertext: uint32 [2, limb, N, batch].

        Returns:
            [batch, num_values]: float64, approximate (CKKS; where the other side set a batch size,
            its values repeated); int64 in (-t/2, t/2] (BGV).
        """
        moduli = self.moduli
        c0, c1 = np.asarray(ciphertext)
        product = _pointwise(np.asarray(ntt.forward(c1, moduli)), np.asarray(secret_key.s), moduli)
        phase = np.asarray(ntt.inverse(product, moduli)).astype(np.uint64) + c0
        phase = (phase % _column(moduli)).astype(np.uint32)
        t = self.plaintext_modulus
        if t is None:
            floats = encodings.centred_floats(phase, moduli) / self.scale
            return encodings.project(floats, self.params.ring_degree)
        return encodings.centred_modulo(_times(phase, moduli, lambda q: t % q), moduli, t).T


def import_public_key(content: bytes, *, version: str) -> ContextKey:
    """Read a public key that OpenFHE serialised.

    Args:
        content: the bytes of ``Serialize(key_pair.publicKey, BINARY)``.
        version: the other side's ``openfhe.__version__`` or ``GetOPENFHEVersion()``: the bytes do
            not say it.

    Returns:
        The key, for ``rlwe.encrypt(key.params, key.public_key, key.encode(values), words)`` and
        :func:`export_ciphertext`.

    Raises:
        ParameterError: a version that was not tested; bytes that are no public key of it; primes
            that our kernels do not take; parameters below 128 bits of security, sparse secrets or
            errors narrower than 3.19, as its context says.

    Example:
        >>> import_public_key(b"", version="1.6.1.0")
        Traceback (most recent call last):
        fedjax_secure.core.errors.ParameterError: reading an OpenFHE public key needs what\
 Serialize(object, BINARY) of OpenFHE 1.6.1 writes, got the end at byte 0 of 0. Send the whole\
 bytes of a public key or a fresh ciphertext of CKKSRNS or BGVRNS.
    """
    serialised.check_version("importing an OpenFHE public key", version)
    header, tag, residues = serialised.read_public_key(content)
    params = _parameters(header)
    b, a = _from_their_order(residues, header, params.moduli)
    if header.scheme == BGV:
        b, a = (_times(part, params.moduli, lambda q: pow(header.plaintext_modulus, -1, q))
                for part in (b, a))
    return ContextKey(params, rlwe.PublicKey(b, a), tag, header)


def adopt(context: ContextKey, public_key: rlwe.PublicKey) -> ContextKey:
    """One of our public keys in the other side's context.

    Args:
        context: any public key of that context, imported; its own key pair need not be used.
        public_key: from ``rlwe.generate_key(context.params, words)``.

    Returns:
        The key, for :func:`export_public_key` and :func:`import_ciphertext`. Its tag is made from
        the key's bytes.

    Raises:
        ParameterError: a key of other parameters.
    """
    b, a = np.asarray(public_key.b), np.asarray(public_key.a)
    shape = (context.params.num_limbs, context.params.ring_degree, 1)
    if b.shape != shape or a.shape != shape:
        raise ParameterError(
            "adopting a key", need=f"a public key of shape {list(shape)}", found=str(list(b.shape)),
            fix="Make it with rlwe.generate_key(context.params, words).")
    tag = hashlib.sha256(b"fedjax_secure/openfhe" + b.tobytes() + a.tobytes()).hexdigest()[:32]
    return ContextKey(context.params, rlwe.PublicKey(b, a), tag, context._header)


def export_public_key(key: ContextKey) -> bytes:
    """The bytes that OpenFHE's ``DeserializePublicKeyString(content, BINARY)`` reads.

    Args:
        key: from :func:`adopt`, or an imported one.
    """
    parts = np.stack([np.asarray(key.public_key.b), np.asarray(key.public_key.a)])
    if key.plaintext_modulus is not None:
        parts = _times(parts, key.moduli, lambda q: key._header.plaintext_modulus % q)
    residues = _to_their_order(parts, key._header, key.moduli)[..., 0]
    return serialised.write_public_key(key._header, key.tag, residues)


def export_ciphertext(key: ContextKey, ciphertext: np.ndarray) -> list[bytes]:
    """Ciphertexts of our kernels as OpenFHE reads them.

    Args:
        key: under which they were encrypted.
        ciphertext: uint32 [2, limb, N, batch], from ``rlwe.encrypt``, or a sum.

    Returns:
        One serialised ciphertext a polynomial, for ``DeserializeCiphertextString(content,
        BINARY)``; a CKKS plaintext needs ``SetLength`` and a BGV one ``GetCoefPackedValue``.

    Raises:
        ParameterError: another type or shape.
    """
    moduli, header = key.moduli, key._header
    array = np.asarray(ciphertext)
    shape = (2, moduli.num_limbs, moduli.ring_degree)
    if array.dtype != np.uint32 or array.ndim != 4 or array.shape[:3] != shape:
        raise ParameterError(
            "exporting a ciphertext", need=f"uint32 {[*shape, 'batch']}",
            found=f"{array.dtype} {list(array.shape)}",
            fix="Encrypt with rlwe.encrypt(key.params, key.public_key, ...).")
    if key.plaintext_modulus is not None:
        array = _times(array, moduli, lambda q: header.plaintext_modulus % q)
        tail = Tail(0, 0, 0, 1, 1.0, 1, serialised.COEFFICIENT_PACKED)
    else:
        tail = Tail(key.num_values, 0, 0, 1, key.scale, 1, serialised.CKKS_PACKED)
    values = np.asarray(ntt.forward(array, moduli))
    theirs = _to_their_order(values, header, moduli)  # [2, limb, N, batch]
    return [serialised.write_ciphertext(header, key.tag, theirs[..., place], tail)
            for place in range(theirs.shape[-1])]


def import_ciphertext(key: ContextKey, contents: Sequence[bytes], *, version: str) -> np.ndarray:
    """Read ciphertexts that OpenFHE serialised.

    Args:
        key: under which they were encrypted.
        contents: the bytes of ``Serialize(ciphertext, BINARY)``, one a polynomial. Fresh ones, or
            sums of fresh ones.
        version: the other side's ``openfhe.__version__``.

    Returns:
        uint32 [2, limb, N, batch], for ``rlwe.add`` and :meth:`ContextKey.decrypt`.

    Raises:
        ParameterError: a version that was not tested, bytes that are no ciphertext of it, another
            key or context, a rescaled or multiplied ciphertext, or another packing.
    """
    where = "importing an OpenFHE ciphertext"
    serialised.check_version(where, version)
    if not contents:
        raise ParameterError(where, need="one or more", found="none", fix="Send the ciphertexts.")
    polynomials = []
    for content in contents:
        header, tag, residues, tail = serialised.read_ciphertext(content)
        ours = key._header
        same = [getattr(header, name) == getattr(ours, name)
                for name in ("scheme", "ring_degree", "primes", "roots", "plaintext_modulus",
                             "error_stddev", "secret_distribution")]
        if not all(same) or tag != key.tag:
            raise ParameterError(
                where, need=f"one of the key {key.tag}", fix="Encrypt under that key.",
                found="one of another context" if not all(same) else "one of another key")
        packing = serialised.COEFFICIENT_PACKED if key.scheme == BGV else serialised.CKKS_PACKED
        wanted = (0, 1, key.scale, 1, packing)
        found = (tail.level, tail.noise_degree, tail.scaling_factor, tail.scaling_factor_int,
                 tail.encoding)
        if found != wanted:
            raise ParameterError(
                where, need="a fresh ciphertext of "
                + ("coefficients" if key.scheme == BGV else "slots"),
                found="one that was multiplied, rescaled or packed otherwise",
                fix="Encrypt MakeCoefPackedPlaintext (BGV) or MakeCKKSPackedPlaintext (CKKS), and "
                "only add.")
        polynomials.append(residues)
    moduli = key.moduli
    values = _from_their_order(np.stack(polynomials, axis=-1), key._header, moduli)
    ciphertext = np.asarray(ntt.inverse(values, moduli))
    if key.plaintext_modulus is not None:
        ciphertext = _times(ciphertext, moduli, lambda q: pow(key._header.plaintext_modulus, -1, q))
    return ciphertext


def _parameters(header: Header) -> rlwe.Parameters:
    where = "importing an OpenFHE context"
    if header.scaling_technique != _FIXED_MANUAL:
        raise ParameterError(where, need="SetScalingTechnique(FIXEDMANUAL)", found="another one",
                             fix="Ask the other side for it: other techniques scale differently.")
    if max(header.primes) >= _MAX_PRIME:
        raise ParameterError(
            where, need="primes below 2^30, which our kernels take",
            found=f"primes of {', '.join(str(q.bit_length()) for q in header.primes)} bits",
            fix=f"{_ASK_FOR}.")
    largest = 1 << 32 if header.scheme == BGV else 60
    if not 1 < header.plaintext_modulus < largest or 0 in (
            header.plaintext_modulus % q for q in header.primes if q):
        what = "plaintext modulus" if header.scheme == BGV else "bits of scale"
        raise ParameterError(where, need=f"a {what} from 2 to {largest - 1}, not one of the primes",
                             found=str(header.plaintext_modulus), fix=f"Ask for another {what}.")
    dense = header.secret_distribution in _DENSE
    if not (header.error_stddev >= _LEAST_STDDEV and dense):  # NaN fails too
        raise ParameterError(
            where, need="errors of standard deviation 3.19 and secrets that are not sparse, as the "
            "tables of 128 bits assume", found="others in its context",
            fix="Ask the other side to leave out SetStandardDeviation and SetSecretKeyDist.")
    name = f"openfhe-{header.ring_degree}-{math.prod(header.primes).bit_length()}"
    try:
        return rlwe.Parameters(name, Moduli(header.primes, header.ring_degree))
    except ValueError:
        bits = sum(q.bit_length() for q in header.primes)
        raise ParameterError(
            where, need="distinct primes that are 1 modulo 2N, and 128 bits of security",
            found=f"{len(header.primes)} primes of {bits} bits at N = {header.ring_degree}",
            fix=f"{_ASK_FOR}, and SetSecurityLevel(HEStd_128_classic) without SetRingDim.",
        ) from None


@lru_cache(maxsize=64)
def _their_places(prime: int, root: int, ring_degree: int) -> np.ndarray:
    """For each place of our transform, where OpenFHE's has the same value.

    Both are bit-reversed: place rev(k) has the value at root^(2 k + 1). With theirs = ours^r,
    theirs^(2 k + 1) = ours^(r (2 k + 1)).
    """
    ours, exponents, power = ntt.primitive_root(prime, ring_degree), {}, 1
    square = ours * ours % prime
    power = ours
    for k in range(ring_degree):
        exponents[power] = 2 * k + 1
        power = power * square % prime
    if root not in exponents:
        raise ParameterError("importing an OpenFHE context", need="primitive 2N-th roots of unity",
                             found="another number", fix="Serialise the key again.")
    reverse, k = ntt.bit_reverse(ring_degree), np.arange(ring_degree)
    same = exponents[root] * (2 * k + 1) % (2 * ring_degree) // 2
    places = np.empty(ring_degree, np.int64)
    places[reverse[same]] = reverse[k]
    places.setflags(write=False)
    return places


def _from_their_order(residues: np.ndarray, header: Header, moduli: Moduli) -> np.ndarray:
    """uint64 [2, limb, N(, batch)] in OpenFHE's order -> uint32 [2, limb, N, batch] in ours."""
    out = np.empty(residues.shape, np.uint32)
    for limb, (prime, root) in enumerate(zip(header.primes, header.roots, strict=True)):
        out[:, limb] = residues[:, limb, _their_places(prime, root, header.ring_degree)]
    return out.reshape(2, moduli.num_limbs, moduli.ring_degree, -1)


def _to_their_order(residues: np.ndarray, header: Header, moduli: Moduli) -> np.ndarray:
    """uint32 [2, limb, N, batch] in our order -> the same shape in OpenFHE's, or [2, limb, N]."""
    out = np.empty_like(residues)
    for limb, (prime, root) in enumerate(zip(header.primes, header.roots, strict=True)):
        out[:, limb, _their_places(prime, root, header.ring_degree)] = residues[:, limb]
    return out


def _column(moduli: Moduli) -> np.ndarray:
    return np.array(moduli.primes, np.uint64).reshape(-1, 1, 1)


def _pointwise(a: np.ndarray, b: np.ndarray, moduli: Moduli) -> np.ndarray:
    return (a.astype(np.uint64) * b.astype(np.uint64) % _column(moduli)).astype(np.uint32)


def _times(residues: np.ndarray, moduli: Moduli, factor: Callable[[int], int]) -> np.ndarray:
    """Residues times a number that is known for each prime."""
    factors = np.array([factor(q) for q in moduli.primes], np.uint64).reshape(-1, 1, 1)
    return _pointwise(residues, factors, moduli)
