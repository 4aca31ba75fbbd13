"""The transform: equal to its definition, and products equal to schoolbook, bit for bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import modular, ntt
from fedjax_kernels.modular.cases import extreme_residues
from fedjax_kernels.ntt import cases


def moduli_of(case):
    return modular.Moduli(
        modular.ntt_primes(case.ring_degree, case.prime_bits[0], len(case.prime_bits)),
        case.ring_degree,
    )


def polynomials(rng, moduli, batch, lead=()):
    shape = (*lead, moduli.num_limbs, moduli.ring_degree, batch)
    x = (rng.integers(0, 1 << 32, shape, dtype=np.uint32) % moduli.q).astype(np.uint32)
    x[..., 0] = np.array([q - 1 for q in moduli.primes], np.uint32)[:, None]  # all extreme
    return x


def compiled_always(case, x64):
    """64-bit types in one ring of two primes; blocks of transforms, which single ones lie in."""
    return case.batch == 149 if x64 else case.batch > 1 or case.ring_degree in (1024, 2048)


@pytest.mark.parametrize("case, x64", [
    pytest.param(case, x64, id=f"{'x64' if x64 else 'x32'}-{case}",
                 marks=[] if compiled_always(case, x64) else [pytest.mark.slow])
    for case in (*cases.SMALL_CASES, *cases.CASES, *cases.BLOCK_CASES) for x64 in (False, True)])
def test_equals_its_definition(case, x64):
    moduli = moduli_of(case)
    x = polynomials(np.random.default_rng(1), moduli, case.batch)
    with jax.enable_x64(x64):
        values = np.asarray(ntt.forward(x, moduli))
        back = np.asarray(ntt.inverse(values, moduli))
        backwards = np.asarray(ntt.inverse(x, moduli))
    assert values.dtype == np.uint32
    np.testing.assert_array_equal(back, x)
    if case.ring_degree <= 1024 and case.batch < 100:
        expected = ntt.forward(x, moduli, implementation="reference")
        np.testing.assert_array_equal(values, expected)
        expected = ntt.inverse(x, moduli, implementation="reference")
        np.testing.assert_array_equal(backwards, expected)
    places = np.random.default_rng(4).integers(0, case.ring_degree, 6)
    for limb, q in enumerate(moduli.primes):
        psi = ntt.primitive_root(q, case.ring_degree)
        for place in places:  # the value at psi^(2k+1), by Horner's rule on Python integers
            point = pow(psi, 2 * int(ntt.bit_reverse(case.ring_degree)[place]) + 1, q)
            for column in (0, case.batch - 1):
                value = 0
                for coefficient in x[limb, ::-1, column].tolist():
                    value = (value * point + coefficient) % q
                assert values[limb, place, column] == value


def schoolbook(a, b, q):
    """Negacyclic product of two integer vectors, by one convolution of Python integers."""
    full = np.convolve(a.astype(object), b.astype(object))
    full = np.concatenate([full, [0] * (2 * len(a) - len(full))])
    return (full[: len(a)] - full[len(a) :]) % q


@pytest.mark.parametrize("case", cases.SMALL_CASES + cases.CASES[:1], ids=str)
def test_products_equal_schoolbook(case):
    moduli = moduli_of(case)
    rng = np.random.default_rng(2)
    a, b = polynomials(rng, moduli, case.batch), polynomials(rng, moduli, case.batch)
    product = np.asarray(ntt.multiply(a, b, moduli))
    np.testing.assert_array_equal(product, ntt.multiply(a, b, moduli, implementation="reference"))
    for limb, q in enumerate(moduli.primes):
        expected = schoolbook(a[limb, :, 0], b[limb, :, 0], q)
        assert product[limb, :, 0].tolist() == expected.tolist()


def test_product_with_a_shared_operand():
    moduli = moduli_of(cases.SMALL_CASES[1])
    rng = np.random.default_rng(3)
    a, b = polynomials(rng, moduli, 3), polynomials(rng, moduli, 1)
    together = np.asarray(ntt.multiply(a, b, moduli))
    for i in range(3):
        alone = np.asarray(ntt.multiply(a[..., i : i + 1], b, moduli))
        np.testing.assert_array_equal(together[..., i : i + 1], alone)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_polynomial_of_a_small_ring(seed):
    moduli = moduli_of(cases.SMALL_CASES[1])
    rng = np.random.default_rng(seed)
    shape = (3, 1, moduli.ring_degree, 5)
    x = np.concatenate(
        [rng.choice(np.array(extreme_residues(q), np.uint32), shape) for q in moduli.primes], axis=1
    )
    values = np.asarray(ntt.forward(x, moduli))
    np.testing.assert_array_equal(values, ntt.forward(x, moduli, implementation="reference"))
    np.testing.assert_array_equal(np.asarray(ntt.inverse(values, moduli)), x)
    np.testing.assert_array_equal(np.asarray(jax.vmap(lambda y: ntt.forward(y, moduli))(x)), values)


def test_root_is_primitive_and_smallest():
    for degree, bits in ((8, 5), (1024, 26)):
        q = modular.ntt_primes(degree, bits)[0]
        psi = ntt.primitive_root(q, degree)
        assert pow(psi, degree, q) == q - 1
        assert all(pow(smaller, degree, q) != q - 1 for smaller in range(2, psi))


def test_refusals():
    moduli = moduli_of(cases.SMALL_CASES[0])
    with pytest.raises(ValueError, match=r"\[..., 1, 8, batch\], got uint32 of shape \[1, 4, 2\]"):
        ntt.forward(np.zeros((1, 4, 2), np.uint32), moduli)
    with pytest.raises(ValueError, match="got int32"):
        ntt.inverse(np.zeros((1, 8, 2), np.int32), moduli)
    with pytest.raises(ValueError, match="1 mod 32"):
        ntt.primitive_root(17 * 16 + 1 + 2, 16)
