"""The modular kernel: the compiled version equals Python integers, bit for bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import modular
from fedjax_kernels.modular import cases

MODULI = {
    case: modular.Moduli(
        tuple(
            modular.ntt_primes(case.ring_degree, bits, case.prime_bits[: i + 1].count(bits))[-1]
            for i, bits in enumerate(case.prime_bits)
        ),
        case.ring_degree,
    )
    for case in cases.CASES
}
SMALL = MODULI[cases.CASES[3]]


def residues(rng, moduli, shape):
    """Random residues, with the extreme ones put at random places."""
    out = np.empty((*shape[:-2], moduli.num_limbs, *shape[-2:]), np.uint32)
    for limb, q in enumerate(moduli.primes):
        values = rng.integers(0, q, shape, dtype=np.uint32)
        extreme = rng.choice(np.array(cases.extreme_residues(q), np.uint32), shape)
        out[..., limb, :, :] = np.where(rng.random(shape) < 0.5, values, extreme)
    return out


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


def both(operation, *operands, **settings_):
    fast = operation(*operands, **settings_)
    slow = operation(*operands, implementation="reference", **settings_)
    assert np.asarray(fast).dtype == np.uint32 == slow.dtype
    np.testing.assert_array_equal(np.asarray(fast), slow)
    return slow


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_every_operation_equals_python_integers(case, x64):
    moduli, rng = MODULI[case], np.random.default_rng(case.batch)
    shape = (min(case.ring_degree, 64), case.batch)
    a, b = residues(rng, moduli, shape), residues(rng, moduli, shape)
    for name in ("add", "sub", "mul", "mul_montgomery"):
        both(getattr(modular, name), a, b, moduli)
    for name in ("neg", "to_montgomery", "from_montgomery", "reduce"):
        both(getattr(modular, name), a, moduli)
    words = rng.integers(0, 1 << 32, (3, *a.shape), dtype=np.uint32)
    words[:, :, :3] = np.uint32(0xFFFFFFFF)
    both(modular.reduce_words, words, moduli)
    both(modular.reduce, words[0], moduli)
    both(modular.mul_constant, words[1], b[..., :1, :1], moduli)
    signed = rng.integers(-(1 << 31), 1 << 31, shape, dtype=np.int64).astype(np.int32)
    signed[0, 0] = -(1 << 31)
    both(modular.from_signed, signed, moduli)
    assert int(modular.sub(a, a, moduli).max()) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_extreme_pairs(data):
    q = SMALL.primes[1]
    value = st.one_of(st.sampled_from(cases.extreme_residues(q)), st.integers(0, q - 1))
    a, b = data.draw(value), data.draw(value)
    word = data.draw(st.one_of(st.sampled_from(cases.EXTREME_WORDS), st.integers(0, 2**32 - 1)))
    moduli = modular.Moduli((q,), SMALL.ring_degree)

    def cell(x):
        return np.full((1, 1, 1), x, np.uint32)

    assert int(modular.add(cell(a), cell(b), moduli)[0, 0, 0]) == (a + b) % q
    assert int(modular.sub(cell(a), cell(b), moduli)[0, 0, 0]) == (a - b) % q
    assert int(modular.mul(cell(a), cell(b), moduli)[0, 0, 0]) == a * b % q
    assert int(modular.mul_constant(cell(word), cell(b), moduli)[0, 0, 0]) == word * b % q
    assert int(modular.reduce(cell(word), moduli)[0, 0, 0]) == word % q


@pytest.mark.parametrize("count", [0, 1, 5, 1000, 1 << 16])
def test_sums_do_not_overflow(count, x64):
    moduli = modular.Moduli(modular.ntt_primes(4096, 30, 2), 4096)
    largest = np.broadcast_to(moduli.q - np.uint32(1), (count, 2, 1, 1))
    total = np.asarray(modular.sum_residues(largest, moduli))
    assert total.dtype == np.uint32
    assert total.ravel().tolist() == [-count % q for q in moduli.primes]
    if count <= 1000:
        rng = np.random.default_rng(count)
        both(modular.sum_residues, residues(rng, moduli, (count, 3, 2)), moduli)


def test_leading_axes_and_vmap_agree():
    rng = np.random.default_rng(5)
    a, b = residues(rng, SMALL, (4, 8, 3)), residues(rng, SMALL, (8, 3))
    whole = both(modular.mul, a, b, SMALL)
    mapped = jax.vmap(lambda x: modular.mul(x, b, SMALL))(a)
    np.testing.assert_array_equal(whole, np.asarray(mapped))


def test_primes_are_proven_by_trial_division():
    for degree, bits, count in ((1024, 26, 2), (4096, 30, 4), (8192, 30, 7)):
        primes = modular.ntt_primes(degree, bits, count)
        assert len(set(primes)) == count
        for q in primes:
            assert q % (2 * degree) == 1 and q.bit_length() == bits
            assert np.all(q % np.arange(2, int(q**0.5) + 1) != 0)
    sieve = np.ones(20_000, bool)
    sieve[:2] = False
    for factor in range(2, 142):
        sieve[factor * factor :: factor] = False
    assert [n for n in range(20_000) if modular.is_prime(n)] == np.flatnonzero(sieve).tolist()


@pytest.mark.parametrize("composite", [3_215_031_751, 25_326_001, 2047, 561])
def test_known_pseudoprimes_are_composite(composite):
    assert not modular.is_prime(composite)


def test_refusals():
    with pytest.raises(ValueError, match="1 mod 8192, got 65539"):
        modular.Moduli((65539,), 4096)
    with pytest.raises(ValueError, match="distinct primes"):
        modular.Moduli((SMALL.primes[0],) * 2, 4096)
    with pytest.raises(ValueError, match="power of two"):
        modular.Moduli(SMALL.primes, 1000)
    with pytest.raises(ValueError, match="below 2\\^30"):
        modular.Moduli(
            (next(q for q in range((1 << 30) + 1, 1 << 31, 8192) if modular.is_prime(q)),), 4096
        )
    with pytest.raises(ValueError, match="needs 50 primes"):
        modular.ntt_primes(8192, 18, 50)
    a = np.zeros((3, 4, 1), np.uint32)
    for bad in (a.astype(np.int32), a[:2], a[0]):
        with pytest.raises(ValueError, match=r"uint32 residues of shape \[..., 3, n, batch\]"):
            modular.add(bad, bad, SMALL)
    with pytest.raises(ValueError, match="'xla', 'pallas', .* or 'reference'"):
        modular.add(a, a, SMALL, implementation="cuda")
    with pytest.raises(ValueError, match="below their prime"):
        modular.mul_constant(a, SMALL.q, SMALL)
    with pytest.raises(ValueError, match="K <= 65536"):
        modular.sum_residues(np.broadcast_to(a, (65537, *a.shape)), SMALL)
