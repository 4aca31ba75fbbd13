"""Ring-LWE encryption as pure functions: checks the arguments, chooses an implementation.

Ciphertexts are uint32 ``[2, limb, N, batch]`` in coefficient form; leading axes are allowed where
said. The kernel holds no randomness: uniformly random 32-bit words come from outside, fresh for
every call (for example ChaCha20 under a fresh 256-bit key). `words_needed` and `key_words_needed`
say how many. Sampling takes the same work for all words.

Source: Lyubashevsky, Peikert, Regev (ePrint 2012/230), section 8.2, the public-key system with
ternary secrets; plaintexts in the upper bits as in Fan, Vercauteren (ePrint 2012/144), section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_kernels import chacha, mosaic
from fedjax_kernels.modular.api import Implementation, choose
from fedjax_kernels.rlwe import reference, xla
from fedjax_kernels.rlwe.parameters import Encoding, Parameters, PublicKey, SecretKey


class Decrypted(NamedTuple):
    """What a ciphertext decrypts to.

    Attributes:
        lanes: [num_lanes, N, batch] uint32, each lane's sum modulo 2^32: the exact sum where
            lane_bits <= 32.
        valid: bool scalar; False where bits above the lanes are set, which shows that a sum or
            the noise has overflowed, or that the key is wrong. True promises nothing.
    """

    lanes: Any
    valid: Any


def key_words_needed(params: Parameters) -> int:
    """How many random words :func:`generate_key` takes: (4 + 3 L) N."""
    return (4 + 3 * params.num_limbs) * params.ring_degree


def words_needed(params: Parameters, batch: int) -> int:
    """How many random words :func:`encrypt` takes for `batch` polynomials: 5 N batch.

    Example:
        >>> from fedjax_kernels.rlwe import parameters
        >>> words_needed(parameters("rlwe-4096-90"), 2)
        40960
    """
    return 5 * params.ring_degree * batch


def _check_words(where: str, words: Any, count: int) -> None:
    if getattr(words, "dtype", None) != np.uint32 or np.shape(words) != (count,):
        raise ValueError(
            f"{where} needs {count} random words as uint32 [{count}], got "
            f"{getattr(words, 'dtype', type(words).__name__)} of shape {list(np.shape(words))}. "
            "Ask words_needed or key_words_needed how many to expand."
        )


def _check_ciphertext(where: str, ciphertext: Any, params: Parameters, lead: int) -> None:
    params.moduli.check_residues(where, ciphertext, whole_ring=True)
    shape = np.shape(ciphertext)
    if len(shape) != 4 + lead or shape[lead] != 2:
        raise ValueError(
            f"{where} needs ciphertexts of shape [{'K, ' * lead}2, limb, N, batch], "
            f"got {list(shape)}. The two components go before the limbs."
        )


def _check_lanes(where: str, params: Parameters, encoding: Encoding, lanes: Any) -> None:
    encoding.check(params)
    shape = np.shape(lanes)
    expected = (encoding.num_lanes, params.ring_degree)
    if getattr(lanes, "dtype", None) != np.uint32 or len(shape) != 3 or shape[:2] != expected:
        raise ValueError(
            f"{where} needs uint32 lanes of shape [{expected[0]}, {expected[1]}, batch], got "
            f"{getattr(lanes, 'dtype', type(lanes).__name__)} of shape {list(shape)}. "
            "The layout is lane, coefficient, batch."
        )


def generate_key(
    params: Parameters, words: Any, *, implementation: Implementation = None
) -> tuple[SecretKey, PublicKey]:
    """Makes a key pair from random words.

    The secret is ternary (statistical distance below 2^-64 a coefficient from uniform), the error
    exactly centred binomial, `a` uniform (statistical distance below 2^-66 a residue).

    Args:
        params: the parameter set.
        words: uint32 [key_words_needed(params)], secret, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        The secret and the public key.

    Raises:
        ValueError: another dtype or number of words.

    Source: ePrint 2012/230, section 8.2, Gen.
    """
    _check_words("rlwe.generate_key", words, key_words_needed(params))
    return choose(implementation, xla, reference).generate_key(words, params=params)


def encode(
    params: Parameters, encoding: Encoding, lanes: Any, *, implementation: Implementation = None
) -> Any:
    """Packs small integers into residues of scaled coefficients, for :func:`encrypt`.

    Args:
        params: the parameter set. Where it drops a prime p, residues are of p times the
            coefficients, and a ciphertext of them has to pass :func:`switch_modulus`.
        encoding: the lanes; 2^total_bits <= Q of `params.transport`.
        lanes: [num_lanes, N, batch] uint32. Sums stay exact while every lane's sum is below
            2^lane_bits.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32 residues.

    Raises:
        ValueError: the encoding does not fit, or another dtype or shape.

    Source: ePrint 2012/144, section 3, with Delta = 2^noise_bits.
    """
    _check_lanes("rlwe.encode", params, encoding, lanes)
    return choose(implementation, xla, reference).encode(lanes, params=params, encoding=encoding)


def encrypt(
    params: Parameters,
    public_key: PublicKey,
    message: Any,
    words: Any,
    *,
    implementation: Implementation = None,
) -> Any:
    """Encrypts residues: (b u + e0 + m, a u + e1).

    Args:
        params: the parameter set.
        public_key: of the one who decrypts.
        message: [limb, N, batch] uint32 residues, from :func:`encode`.
        words: uint32 [words_needed(params, batch)], secret, fresh, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        [2, limb, N, batch] uint32, coefficient form.

    Raises:
        ValueError: another dtype, shape or number of words.

    Example:
        >>> import numpy as np
        >>> from fedjax_kernels import rlwe
        >>> params = rlwe.parameters("rlwe-1024-26")
        >>> rng = np.random.default_rng(0)  # only for the example: not a secure generator
        >>> words = lambda n: rng.integers(0, 2**32, n, dtype=np.uint32)
        >>> secret, public = rlwe.generate_key(params, words(rlwe.key_words_needed(params)))
        >>> code = rlwe.Encoding(lane_bits=8, num_lanes=1, noise_bits=16)
        >>> lanes = np.full((1, 1024, 1), 200, np.uint32)
        >>> message = rlwe.encode(params, code, lanes)
        >>> ciphertext = rlwe.encrypt(params, public, message, words(words_needed(params, 1)))
        >>> int(rlwe.decrypt(params, secret, ciphertext, code).lanes[0, 0, 0])
        200

    Source: ePrint 2012/230, section 8.2, Enc.
    """
    params.moduli.check_residues("rlwe.encrypt", message, whole_ring=True)
    if np.ndim(message) != 3:
        raise ValueError(
            f"rlwe.encrypt needs a message of shape [limb, N, batch], got {np.shape(message)}. "
            "Use jax.vmap for more axes."
        )
    _check_words("rlwe.encrypt", words, words_needed(params, np.shape(message)[2]))
    return choose(implementation, xla, reference).encrypt(public_key, message, words, params=params)


def encrypt_lanes(
    params: Parameters,
    public_key: PublicKey,
    encoding: Encoding,
    lanes: Any,
    key: Any,
    nonce: Any,
    *,
    implementation: Implementation = None,
) -> Any:
    """Packs small integers and encrypts them with randomness expanded from a key, in one step.

    On a GPU the words of the key stream, the samples and the transforms never leave the chip.

    Guarantees: the ciphertext is that of :func:`encrypt` of :func:`encode` of the lanes, with the
        first words of `chacha.keystream(key, nonce, ...)`, bit for bit.

    Args:
        params: the parameter set.
        public_key: of the one who decrypts.
        encoding: the lanes; see :func:`encode`.
        lanes: [num_lanes, N, batch] uint32.
        key: [8] uint32, secret; with this nonce it has no other use, ever.
        nonce: [3] uint32.
        implementation: None, "xla", "pallas", "pallas_interpret" or "reference".

    Returns:
        [2, limb, N, batch] uint32, coefficient form.

    Raises:
        ValueError: the encoding does not fit, or another dtype or shape.

    Example:
        >>> import numpy as np
        >>> from fedjax_kernels import chacha, rlwe
        >>> params, code = rlwe.parameters("rlwe-1024-26"), rlwe.Encoding(8, 1, 16)
        >>> words = np.random.default_rng(0).integers(0, 2**32, 7168, dtype=np.uint32)
        >>> secret, public = rlwe.generate_key(params, words)  # in earnest: secure words
        >>> key, nonce = chacha.key_from_bytes(bytes(32)), np.zeros(3, np.uint32)
        >>> lanes = np.full((1, 1024, 1), 200, np.uint32)
        >>> ciphertext = rlwe.encrypt_lanes(params, public, code, lanes, key, nonce)
        >>> int(rlwe.decrypt(params, secret, ciphertext, code).lanes[0, 0, 0])
        200

    Source: ePrint 2012/230, section 8.2, Enc; RFC 8439 for the key stream.
    """
    fused = mosaic.kernels(implementation, xla.__package__)
    if fused:
        _check_lanes("rlwe.encrypt_lanes", params, encoding, lanes)
        chacha.keystream(key, nonce, 0)  # checks the two, and makes nothing
        return fused.encrypt_lanes(public_key, lanes, key, nonce, params=params, encoding=encoding)
    message = encode(params, encoding, lanes, implementation=implementation)
    count = words_needed(params, np.shape(lanes)[2])
    words = chacha.keystream(key, nonce, count, implementation=implementation)
    return encrypt(params, public_key, message, words, implementation=implementation)


def add(params: Parameters, a: Any, b: Any, *, implementation: Implementation = None) -> Any:
    """Adds two ciphertexts; the plaintexts and the noises add up.

    Args:
        params: the parameter set.
        a, b: [2, limb, N, batch] uint32.
        implementation: None, "xla" or "reference".

    Returns:
        [2, limb, N, batch] uint32.

    Raises:
        ValueError: another dtype or shape.
    """
    _check_ciphertext("rlwe.add", a, params, 0)
    _check_ciphertext("rlwe.add", b, params, 0)
    return choose(implementation, xla, reference).add(a, b, params=params)


def sum_ciphertexts(
    params: Parameters, ciphertexts: Any, *, implementation: Implementation = None
) -> Any:
    """Adds up to 65,536 ciphertexts over the leading axis, in one pass, exactly.

    Args:
        params: the parameter set.
        ciphertexts: [K, 2, limb, N, batch] uint32.
        implementation: None, "xla" or "reference".

    Returns:
        [2, limb, N, batch] uint32.

    Raises:
        ValueError: another dtype or shape, or too many.
    """
    _check_ciphertext("rlwe.sum_ciphertexts", ciphertexts, params, 1)
    if np.shape(ciphertexts)[0] > 1 << 16:
        raise ValueError(
            "rlwe.sum_ciphertexts needs at most 65536 ciphertexts, got "
            f"{np.shape(ciphertexts)[0]}. Sum in blocks and add the block sums."
        )
    return choose(implementation, xla, reference).sum_ciphertexts(ciphertexts, params=params)


def switch_modulus(
    params: Parameters, ciphertext: Any, *, implementation: Implementation = None
) -> Any:
    """Divides a ciphertext by the dropped prime, so that it is smaller and less noisy.

    Each residue polynomial c becomes (c - [c]_p) / p, where [c]_p is c modulo the last prime p,
    centred around 0: the integer nearest to c / p. What :func:`encode` multiplied by p is itself
    again; the noise is divided by p, and a rounding error of variance (1 + |s|^2) / 12 comes in.
    The secret key for the result is the first limbs of the secret key.

    Args:
        params: the parameter set; it drops a prime.
        ciphertext: [..., 2, limb, N, batch] uint32, coefficient form.
        implementation: None, "xla" or "reference".

    Returns:
        [..., 2, limb - 1, N, batch] uint32, a ciphertext of `params.transport`.

    Raises:
        ValueError: the set drops no prime, or another dtype or shape.

    Example:
        >>> import numpy as np
        >>> from fedjax_kernels import rlwe
        >>> params = rlwe.parameters("rlwe-8192-212")
        >>> ciphertext = np.full((2, 8, 8192, 1), 65537, np.uint32)
        >>> ciphertext[:, 7] = 0  # 65537 modulo itself
        >>> np.unique(rlwe.switch_modulus(params, ciphertext)).tolist()
        [1]

    Source: Z. Brakerski, C. Gentry, V. Vaikuntanathan (ePrint 2011/277), section 4.2; in a residue
    number system as the rescaling of Cheon, Han, Kim, Kim, Song (ePrint 2018/931), section 3.3.
    """
    if params.dropped_prime == 1:
        raise ValueError(
            f"rlwe.switch_modulus needs a parameter set that drops a prime, got {params.name}. "
            "Send its ciphertexts as they are."
        )
    params.moduli.check_residues("rlwe.switch_modulus", ciphertext, whole_ring=True)
    if np.ndim(ciphertext) < 4 or np.shape(ciphertext)[-4] != 2:
        raise ValueError(
            "rlwe.switch_modulus needs ciphertexts of shape [..., 2, limb, N, batch], got "
            f"{list(np.shape(ciphertext))}. The two components go before the limbs."
        )
    module = choose(implementation, xla, reference, supported=False)
    return module.switch_modulus(ciphertext, params=params)


def decode(
    params: Parameters, encoding: Encoding, phase: Any, *, implementation: Implementation = None
) -> Decrypted:
    """Removes the noise from residues and takes the lanes apart.

    Args:
        params: the parameter set.
        encoding: as it was encoded.
        phase: [limb, N, batch] uint32 residues of message plus noise.
        implementation: None, "xla" or "reference".

    Returns:
        :class:`Decrypted`.

    Raises:
        ValueError: the encoding does not fit, or another dtype or shape.

    Source: mixed-radix conversion of H. Garner, IRE Trans. EC-8 (1959); Knuth, TAOCP 4.3.2.
    """
    encoding.check(params)
    params.moduli.check_residues("rlwe.decode", phase, whole_ring=True)
    module = choose(implementation, xla, reference)
    return Decrypted(*module.decode(phase, params=params, encoding=encoding))


def decrypt(
    params: Parameters,
    secret_key: SecretKey,
    ciphertext: Any,
    encoding: Encoding,
    *,
    implementation: Implementation = None,
) -> Decrypted:
    """Decrypts a ciphertext, or a sum of them: c0 + c1 s, then :func:`decode`.

    Args:
        params: the parameter set.
        secret_key: of the pair under which it was encrypted.
        ciphertext: [2, limb, N, batch] uint32.
        encoding: as the messages were encoded.
        implementation: None, "xla" or "reference".

    Returns:
        :class:`Decrypted`. The lanes are exact while the noise is below 2^(noise_bits - 1): see
        :func:`fedjax_kernels.rlwe.failure_log2` for how rarely it is not.

    Raises:
        ValueError: the encoding does not fit, or another dtype or shape.

    Source: ePrint 2012/230, section 8.2, Dec.
    """
    encoding.check(params)
    _check_ciphertext("rlwe.decrypt", ciphertext, params, 0)
    module = choose(implementation, xla, reference)
    phase = module.phase(secret_key, ciphertext, params=params)
    return Decrypted(*module.decode(phase, params=params, encoding=encoding))


# -- the secret-key form: `a` is public and common, and every encryptor has its own secret ---------


def secret_words_needed(params: Parameters, batch: int) -> int:
    """How many random words :func:`encrypt_secret` takes: four for each three coefficients.

    Example:
        >>> from fedjax_kernels import rlwe
        >>> secret_words_needed(rlwe.parameters("rlwe-4096-90"), 3)
        16384
    """
    return 4 * -(-params.ring_degree * batch // 3)


def uniform_words_needed(params: Parameters, batch: int) -> int:
    """How many public random words :func:`expand_uniform` takes: 4 L N batch."""
    return 4 * params.num_limbs * params.ring_degree * batch


def expand_uniform(params: Parameters, words: Any, *, implementation: Implementation = None) -> Any:
    """Makes the common `a` of a round from public random words, in the transformed domain.

    A residue is a 128-bit number modulo q < 2^30, at a statistical distance below 2^-98 from
    uniform: below 2^-64 for up to 2^34 residues together. (Three words a residue would end at
    2^-66 each, which a single update of a million parameters already uses up.)

    Args:
        params: the parameter set.
        words: uint32 [uniform_words_needed(params, batch)], public, from a source that no party
            chooses: the words of a round are expanded from data that were fixed before.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32, below q.

    Raises:
        ValueError: another dtype, or a number of words that is no multiple of 4 L N.
    """
    one = uniform_words_needed(params, 1)
    count = np.shape(words)[0] if np.ndim(words) == 1 else 0
    _check_words("rlwe.expand_uniform", words, max(one, count // one * one))
    module = choose(implementation, xla, reference, supported=False)
    return module.expand_uniform(words, params=params)


def generate_secret(
    params: Parameters, words: Any, *, implementation: Implementation = None
) -> SecretKey:
    """Makes a client's secret for :func:`encrypt_secret`: ternary, from 2 N random words.

    Args:
        params: the parameter set.
        words: uint32 [2 N], secret, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        The secret, at a statistical distance below 2^-64 a coefficient from uniform.

    Raises:
        ValueError: another dtype or number of words.
    """
    _check_words("rlwe.generate_secret", words, 2 * params.ring_degree)
    module = choose(implementation, xla, reference, supported=False)
    return module.generate_secret(words, params=params)


def encrypt_secret(
    params: Parameters,
    secret_key: SecretKey,
    message: Any,
    a: Any,
    words: Any,
    *,
    implementation: Implementation = None,
) -> Any:
    """Encrypts residues under the encryptor's own secret and a common `a`: a s + e + m.

    One polynomial travels instead of two, and one inverse transform is all there is to compute.

    Assumes, and does not check, three things, without which it hides nothing:

    - every client has a secret of its own: under a common secret, the difference of two ciphertexts
      is the difference of the messages, but for the errors;
    - `a` is fresh in each round and the server does not choose it;
    - no client encrypts twice under one `a`.

    Whoever opens a sum needs the sum of the secrets, and learns it. That this sum gives away too
    little about each secret is an argument of its own (Hint-RLWE), which is why no scheme of
    `fedjax_secure.he` offers this form: it is a kernel for benchmarks and for secure aggregation,
    which can give the sum of secrets.

    Args:
        params: a parameter set that drops no prime.
        secret_key: the client's own, from :func:`generate_secret`.
        message: [limb, N, batch] uint32 residues, from :func:`encode`.
        a: [limb, N, batch] uint32, from :func:`expand_uniform`.
        words: uint32 [secret_words_needed(params, batch)], secret, fresh, never used again.
        implementation: None, "xla" or "reference".

    Returns:
        [limb, N, batch] uint32, coefficient form. Sums are taken with `modular.sum_residues`.

    Raises:
        ValueError: the set drops a prime, or another dtype, shape or number of words.

    Example:
        >>> import numpy as np
        >>> from fedjax_kernels import rlwe
        >>> params, code = rlwe.parameters("rlwe-1024-26"), rlwe.Encoding(8, 1, 8)
        >>> rng = np.random.default_rng(0)  # only for the example: not a secure generator
        >>> words = lambda n: rng.integers(0, 2**32, n, dtype=np.uint32)
        >>> a = rlwe.expand_uniform(params, words(rlwe.uniform_words_needed(params, 1)))
        >>> secret = rlwe.generate_secret(params, words(2048))
        >>> message = rlwe.encode(params, code, np.full((1, 1024, 1), 200, np.uint32))
        >>> noise = words(rlwe.secret_words_needed(params, 1))
        >>> c0 = rlwe.encrypt_secret(params, secret, message, a, noise)
        >>> int(rlwe.decrypt_secret(params, secret, c0, a, code).lanes[0, 0, 0])
        200

    Source: the symmetric scheme of Z. Brakerski, V. Vaikuntanathan, "Fully Homomorphic Encryption
    from Ring-LWE and Security for Key Dependent Messages" (CRYPTO 2011), section 3.1, with the
    plaintext in the upper bits (ePrint 2012/144).
    """
    where = "rlwe.encrypt_secret"
    _check_secret_form(where, params, message, a)
    _check_words(where, words, secret_words_needed(params, np.shape(message)[2]))
    module = choose(implementation, xla, reference, supported=False)
    return module.encrypt_secret(secret_key, message, a, words, params=params)


def decrypt_secret(
    params: Parameters,
    secret_key: SecretKey,
    c0: Any,
    a: Any,
    encoding: Encoding,
    *,
    implementation: Implementation = None,
) -> Decrypted:
    """Opens a sum of :func:`encrypt_secret` under one `a`: c0 - a s, then :func:`decode`.

    Args:
        params: the parameter set.
        secret_key: the sum of the encryptors' secrets: their `s` added modulo each prime.
        c0: [limb, N, batch] uint32, the sum of the ciphertexts.
        a: [limb, N, batch] uint32, the common one.
        encoding: as the messages were encoded.
        implementation: None, "xla" or "reference".

    Returns:
        :class:`Decrypted`. The noise is the sum of the errors: see the form "secret" of
        :func:`fedjax_kernels.rlwe.failure_log2`.

    Raises:
        ValueError: the encoding does not fit, the set drops a prime, or another dtype or shape.
    """
    encoding.check(params)
    _check_secret_form("rlwe.decrypt_secret", params, c0, a)
    module = choose(implementation, xla, reference, supported=False)
    phase = module.phase_secret(secret_key, c0, a, params=params)
    return Decrypted(*module.decode(phase, params=params, encoding=encoding))


def _check_secret_form(where: str, params: Parameters, residues: Any, a: Any) -> None:
    if params.dropped_prime != 1:
        raise ValueError(
            f"{where} needs a parameter set that drops no prime, got {params.name}. The noise of "
            f"this form is small as it is: take {params.transport.name}."
        )
    for array in (residues, a):
        params.moduli.check_residues(where, array, whole_ring=True)
    if np.ndim(residues) != 3 or np.shape(residues) != np.shape(a):
        raise ValueError(
            f"{where} needs residues and `a` of one shape [limb, N, batch], got "
            f"{list(np.shape(residues))} and {list(np.shape(a))}. Every column has its own `a`."
        )
