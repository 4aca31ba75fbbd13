"""Arithmetic modulo several primes below 2^30, on uint32 arrays ``[..., limb, N, batch]``."""

from fedjax_kernels.modular.api import (
    add,
    from_montgomery,
    from_signed,
    mul,
    mul_constant,
    mul_montgomery,
    neg,
    reduce,
    reduce_words,
    sub,
    sum_residues,
    to_montgomery,
)
from fedjax_kernels.modular.moduli import Moduli, is_prime, ntt_primes

__all__ = [
    "Moduli",
    "add",
    "from_montgomery",
    "from_signed",
    "is_prime",
    "mul",
    "mul_constant",
    "mul_montgomery",
    "neg",
    "ntt_primes",
    "reduce",
    "reduce_words",
    "sub",
    "sum_residues",
    "to_montgomery",
]
