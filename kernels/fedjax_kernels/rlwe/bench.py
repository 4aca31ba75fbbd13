"""Times the encryption of 2^20 values of 16 bits: ``python -m fedjax_kernels.rlwe.bench``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fedjax_kernels import chacha, rlwe
from fedjax_kernels.bench import MILLION, Row, table, timed, uniform_words

SUMMANDS, LANE_BITS = 1024, 26
PUBLIC_SETS = ("rlwe-8192-201", "rlwe-8192-212")
SECRET_SETS = ("rlwe-8192-196",)


def _plan(name: str, form: Any) -> tuple[rlwe.Parameters, rlwe.Encoding, int]:
    params = rlwe.parameters(name)
    noise = rlwe.noise_bits_needed(params, SUMMANDS, MILLION, form=form)
    lanes = (params.transport.modulus_bits - noise) // LANE_BITS
    batch = -(-MILLION // (lanes * params.ring_degree))
    return params, rlwe.Encoding(LANE_BITS, lanes, noise), batch


def rows() -> Iterator[Row]:
    """The public-key form with and without modulus switching, and the secret-key form."""
    nonce, key = np.zeros(3, np.uint32), chacha.key_from_bytes(bytes(range(32)))
    for name in PUBLIC_SETS:
        params, code, batch = _plan(name, "public")
        case = f"{name}, {code.num_lanes} lanes of {LANE_BITS}, K={SUMMANDS}, public key"
        secret, public = rlwe.generate_key(params, uniform_words(rlwe.key_words_needed(params)))
        lanes = uniform_words(code.num_lanes, params.ring_degree, batch) >> np.uint32(16)
        count, transport = rlwe.words_needed(params, batch), params.transport

        def whole(public, lanes, key, params=params, code=code):
            fresh = rlwe.encrypt_lanes(params, public, code, lanes, key, nonce)
            return rlwe.switch_modulus(params, fresh) if params.dropped_prime > 1 else fresh

        ciphertext = jax.jit(lambda *x, f=whole: f(*x))(public, lanes, key)
        short = rlwe.SecretKey(secret.s[: transport.num_limbs])
        message = rlwe.encode(params, code, lanes)
        yield from timed(case, "encrypt_lanes", whole, public, lanes, key)
        yield from timed(case, "keystream", lambda k, n=count: chacha.keystream(k, nonce, n), key)
        yield from timed(case, "encode", lambda x, p=params, c=code: rlwe.encode(p, c, x), lanes)
        yield from timed(
            case,
            "encrypt",
            lambda k, m, w, p=params: rlwe.encrypt(p, k, m, w),
            public,
            message,
            uniform_words(count),
        )
        yield from timed(
            case,
            "decrypt",
            lambda s, x, p=transport, c=code: rlwe.decrypt(p, s, x, c),
            short,
            ciphertext,
        )
        yield from timed(
            case,
            "decode",
            lambda x, p=transport, c=code: rlwe.decode(p, c, x),
            ciphertext[0],
        )
        yield from timed(
            case,
            "sum of 16",
            lambda x, p=transport: rlwe.sum_ciphertexts(p, x),
            jax.numpy.stack([ciphertext] * 16),
        )
    for name in SECRET_SETS:
        params, code, batch = _plan(name, "secret")
        case = f"{name}, {code.num_lanes} lanes of {LANE_BITS}, K={SUMMANDS}, secret key"
        lanes = uniform_words(code.num_lanes, params.ring_degree, batch) >> np.uint32(16)
        a = rlwe.expand_uniform(params, uniform_words(rlwe.uniform_words_needed(params, batch)))
        secret = rlwe.generate_secret(params, uniform_words(2 * params.ring_degree))
        count = rlwe.secret_words_needed(params, batch)

        def seeded(secret, lanes, a, key, params=params, code=code, count=count):
            words = chacha.keystream(key, nonce, count)
            message = rlwe.encode(params, code, lanes)
            return rlwe.encrypt_secret(params, secret, message, a, words)

        c0 = jax.jit(lambda *x, f=seeded: f(*x))(secret, lanes, a, key)
        yield from timed(case, "encrypt_secret with keystream", seeded, secret, lanes, a, key)
        yield from timed(
            case,
            "decrypt_secret",
            lambda s, x, a, p=params, c=code: rlwe.decrypt_secret(p, s, x, a, c),
            secret,
            c0,
            a,
        )


if __name__ == "__main__":
    print(table(rows()))
