"""Modular arithmetic from its definition, with Python integers on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_kernels.modular.moduli import Moduli


def _integers(a: Any) -> np.ndarray:
    return np.asarray(a).astype(object)


def _residues(values: np.ndarray, moduli: Moduli) -> np.ndarray:
    q = np.array(moduli.primes, dtype=object).reshape(-1, 1, 1)
    return (values % q).astype(np.uint32)


def _over_2_to_32(moduli: Moduli) -> np.ndarray:
    return np.array([pow(1 << 32, -1, q) for q in moduli.primes], object).reshape(-1, 1, 1)


def add(a, b, *, moduli):
    return _residues(_integers(a) + _integers(b), moduli)


def sub(a, b, *, moduli):
    return _residues(_integers(a) - _integers(b), moduli)


def neg(a, *, moduli):
    return _residues(-_integers(a), moduli)


def mul(a, b, *, moduli):
    return _residues(_integers(a) * _integers(b), moduli)


def to_montgomery(a, *, moduli):
    return _residues(_integers(a) * (1 << 32), moduli)


def from_montgomery(a, *, moduli):
    return _residues(_integers(a) * _over_2_to_32(moduli), moduli)


def mul_montgomery(a, b, *, moduli):
    return _residues(_integers(a) * _integers(b) * _over_2_to_32(moduli), moduli)


def mul_constant(a, constant, quotient, *, moduli):
    del quotient  # only the fast version needs it
    return mul(a, constant, moduli=moduli)


def reduce(a, *, moduli):
    return _residues(_integers(a), moduli)


def reduce_words(words, *, moduli):
    shifted = [_integers(word) << (32 * i) for i, word in enumerate(np.asarray(words))]
    return _residues(np.sum(shifted, axis=0), moduli)


def from_signed(a, *, moduli):
    return _residues(np.expand_dims(_integers(a), -3), moduli)


def sum_residues(a, *, moduli):
    return _residues(_integers(a).sum(axis=0), moduli)
