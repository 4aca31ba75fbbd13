"""Threshold keys and decryption from their definitions: Python integers, schoolbook products."""

from __future__ import annotations

import numpy as np

from fedjax_kernels.inversion import reference as inversion
from fedjax_kernels.modular import reference as modular
from fedjax_kernels.ntt import reference as ntt
from fedjax_kernels.rlwe import reference as rlwe
from fedjax_kernels.rlwe.parameters import SecretKey


def common_part(words, *, params):
    wide = np.asarray(words).reshape(3, params.num_limbs, params.ring_degree, 1)
    return modular.reduce_words(wide, moduli=params.moduli)


def contribute(a, words, *, params):
    moduli = params.moduli
    small = rlwe._integers(words).reshape(4, params.ring_degree, 1)
    s = rlwe._residues(rlwe._map(rlwe._ternary, small[0], small[1]), params)
    e = rlwe._residues(rlwe._map(rlwe._centred_binomial, small[2], small[3]), params)
    product = ntt.multiply(ntt.inverse(np.asarray(a), moduli=moduli), s, moduli=moduli)
    b = modular.sub(e, product, moduli=moduli)
    return SecretKey(ntt.forward(s, moduli=moduli)), ntt.forward(b, moduli=moduli)


def total(parts, *, params):
    return modular.sum_residues(parts, moduli=params.moduli)


def share(secret, words, *, params, threshold, num_parties):
    moduli = params.moduli
    wide = np.asarray(words).reshape(4, threshold - 1, params.num_limbs, params.ring_degree, 1)
    coefficients = [modular.reduce_words(wide[:, k], moduli=moduli) for k in range(threshold - 1)]
    constant = rlwe._integers(secret)[: params.num_limbs]
    shares = []
    for point in range(1, num_parties + 1):
        value = constant
        for power, coefficient in enumerate(coefficients, start=1):
            value = value + rlwe._integers(coefficient) * point**power
        shares.append(modular._residues(value, moduli))
    return np.stack(shares)


def flood(tables, words, *, params, shift_bits):
    degree = params.ring_degree
    value = sum(
        inversion.sample(np.asarray(table.thresholds), part, table.max_magnitude).astype(
            object
        )
        << (shift_bits * i)
        for i, (table, part) in enumerate(zip(tables, np.asarray(words), strict=True))
    )
    return modular.from_signed(value.reshape(degree, -1), moduli=params.moduli)


def partially_decrypt(key_share, coefficient, second, flood, *, params):
    moduli = params.moduli
    additive = modular.mul(key_share, coefficient, moduli=moduli)
    product = ntt.multiply(second, ntt.inverse(additive, moduli=moduli), moduli=moduli)
    return modular.add(product, flood, moduli=moduli)


def mask(partial, words, *, params, negative):
    wide = np.asarray(words).reshape(4, *np.shape(partial))
    uniform = modular.reduce_words(wide, moduli=params.moduli)
    operation = modular.sub if negative else modular.add
    return operation(partial, uniform, moduli=params.moduli)


def combine(first, partials, *, params):
    moduli = params.moduli
    return modular.add(first, modular.sum_residues(partials, moduli=moduli), moduli=moduli)
