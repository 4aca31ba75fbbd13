"""What is compiled: the GPU kernels and the XLA versions of the same operations, with shapes.

One update of 1,048,576 numbers is the work of every case; the encryption takes several of them in
a coefficient, as lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_kernels import discrete_gaussian, rlwe
from fedjax_kernels.chacha import pallas as chacha_pallas
from fedjax_kernels.chacha import xla as chacha_xla
from fedjax_kernels.inversion import pallas as gaussian_pallas
from fedjax_kernels.inversion import xla as gaussian_xla
from fedjax_kernels.modular import Moduli, ntt_primes
from fedjax_kernels.modular import pallas as modular_pallas
from fedjax_kernels.modular import xla as modular_xla
from fedjax_kernels.ntt import pallas as ntt_pallas
from fedjax_kernels.ntt import xla as ntt_xla
from fedjax_kernels.ntt.pallas import plan
from fedjax_kernels.rlwe import pallas as rlwe_pallas
from fedjax_kernels.rlwe import xla as rlwe_xla

NUMBERS = 1 << 20


class Case(NamedTuple):
    """One operation: the same arguments for both implementations; None where there is only one."""

    name: str
    arguments: tuple[Any, ...]
    pallas: Callable[..., Any] | None
    xla: Callable[..., Any] | None


def _words(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.uint32)


def _modular() -> list[Case]:
    moduli = Moduli(ntt_primes(4096, 30, 1), 4096)
    a = _words(1, 4096, NUMBERS // 4096)
    many = _words(16, 1, 4096, NUMBERS // 4096)
    return [
        Case(
            "modular.mul, 1 prime",
            (a, a),
            lambda a, b: modular_pallas.mul(a, b, moduli=moduli),
            lambda a, b: modular_xla.mul(a, b, moduli=moduli),
        ),
        Case(
            "modular.sum_residues of 16, 1 prime",
            (many,),
            lambda a: modular_pallas.sum_residues(a, moduli=moduli),
            lambda a: modular_xla.sum_residues(a, moduli=moduli),
        ),
    ]


def _transforms() -> list[Case]:
    cases = []
    for degree in (1024, 2048, 4096, 8192):
        moduli = Moduli(ntt_primes(degree, 30, 1), degree)
        x = _words(1, degree, NUMBERS // degree)
        for name in ("forward", "inverse"):
            versions = [
                partial(getattr(module, name), moduli=moduli) for module in (ntt_pallas, ntt_xla)
            ]
            with_xla = versions[1] if degree == 4096 else None
            cases.append(Case(f"ntt.{name}, N={degree}, 1 prime", (x,), versions[0], with_xla))
    return cases


def _random() -> list[Case]:
    table = discrete_gaussian.table(10.0)
    size = table.max_magnitude
    return [
        Case(
            "chacha.keystream, 1,048,576 words",
            (_words(8), _words(3), _words()),
            lambda k, n, c: chacha_pallas.keystream(k, n, c, num_words=NUMBERS),
            lambda k, n, c: chacha_xla.keystream(k, n, c, num_words=NUMBERS),
        ),
        Case(
            "discrete_gaussian.sample, sigma 10, 1,048,576 draws",
            (_words(*table.thresholds.shape), _words(4, NUMBERS)),
            lambda t, w: gaussian_pallas.sample(t, w, max_magnitude=size),
            gaussian_xla.sample,
        ),
    ]


def _encryption(name: str, num_lanes: int, noise_bits: int, with_xla: bool) -> list[Case]:
    params = rlwe.parameters(name)
    limbs, degree = params.num_limbs, params.ring_degree
    code = rlwe.Encoding(lane_bits=26, num_lanes=num_lanes, noise_bits=noise_bits)
    code.check(params)
    batch = -(-NUMBERS // (num_lanes * degree) // 4) * 4
    batch += -batch % plan(degree).columns
    poly = _words(limbs, degree, 1)
    public, secret = rlwe.PublicKey(poly, poly), rlwe.SecretKey(poly)

    def separate(public, lanes, key, nonce):
        count = rlwe.words_needed(params, lanes.shape[-1])
        words = chacha_xla.keystream(key, nonce, jnp.uint32(0), num_words=count)
        message = rlwe_xla.encode(lanes, params=params, encoding=code)
        return rlwe_xla.encrypt(public, message, words, params=params)

    return [
        Case(
            f"rlwe.encrypt_lanes, {name}, {num_lanes} lanes, batch {batch}",
            (public, _words(num_lanes, degree, batch), _words(8), _words(3)),
            partial(_fused, params=params, encoding=code),
            separate if with_xla else None,
        ),
        Case(
            f"rlwe.phase, {name}, batch {batch}",
            (secret, _words(2, limbs, degree, batch)),
            partial(rlwe_pallas.phase, params=params),
            partial(rlwe_xla.phase, params=params) if with_xla else None,
        ),
    ]


def _fused(public, lanes, key, nonce, *, params, encoding):
    return rlwe_pallas.encrypt_lanes(public, lanes, key, nonce, params=params, encoding=encoding)


def cases() -> list[Case]:
    """All of them."""
    return [
        *_modular(),
        *_transforms(),
        *_random(),
        *_encryption("rlwe-4096-97", 3, 16, True),
        *_encryption("rlwe-8192-212", 7, 13, False),
    ]
