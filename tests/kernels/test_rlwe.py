"""Ring-LWE encryption: equal to its reference, exact in its sums, and noise within its bounds."""

from __future__ import annotations

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import modular, ntt, rlwe
from fedjax_kernels.rlwe import cases


def words(rng, count):
    return rng.integers(0, 1 << 32, count, dtype=np.uint32)


def key_pair(params, rng, **options):
    return rlwe.generate_key(params, words(rng, rlwe.key_words_needed(params)), **options)


def encrypt(params, public, code, lanes, rng, **options):
    message = rlwe.encode(params, code, lanes, **options)
    fresh = words(rng, rlwe.words_needed(params, lanes.shape[-1]))
    return rlwe.encrypt(params, public, message, fresh, **options)


@pytest.mark.parametrize(
    ("case", "x64"),
    [
        (cases.CASES[0], False),
        (cases.CASES[1], False),
        pytest.param(cases.CASES[1], True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_the_reference_bit_for_bit(case, x64):
    params, code = rlwe.parameters(case.name), case.encoding
    results = []
    for name in ("xla", "reference"):
        rng = np.random.default_rng(7)
        with jax.enable_x64(x64):
            secret, public = key_pair(params, rng, implementation=name)
            lanes = words(rng, (code.num_lanes, params.ring_degree, case.batch)) >> np.uint32(22)
            a = encrypt(params, public, code, lanes, rng, implementation=name)
            total = rlwe.sum_ciphertexts(params, np.stack([a, a, a]), implementation=name)
            total = rlwe.add(params, total, a, implementation=name)
            opened = rlwe.decrypt(params, secret, total, code, implementation=name)
            results.append([secret.s, public.b, public.a, a, total, opened.lanes, opened.valid])
    for fast, slow in zip(*results, strict=True):
        fast, slow = np.asarray(fast), np.asarray(slow)
        assert fast.dtype == slow.dtype
        np.testing.assert_array_equal(fast, slow)
    expected = (4 * lanes.astype(np.uint64)) % (1 << code.lane_bits)
    if code.lane_bits > 12:
        np.testing.assert_array_equal(results[0][5], expected)


@pytest.mark.parametrize(
    "case", [*cases.CASES[:2], pytest.param(cases.CASES[2], marks=pytest.mark.slow)], ids=str
)
def test_a_sum_at_the_overflow_bound_is_exact(case):
    """K summands whose lanes add up to exactly 2^lane_bits - 1."""
    params, code = rlwe.parameters(case.name), case.encoding
    rng = np.random.default_rng(11)
    secret, public = key_pair(params, rng)
    per_lane = (1 << code.lane_bits) - 1
    largest, rest = divmod(per_lane, case.num_summands)
    shape = (code.num_lanes, params.ring_degree, case.batch)
    block = min(case.num_summands, 125)  # many independent encryptions a call, as one batch
    total, expected = np.zeros((2, params.num_limbs, *shape[1:]), np.uint32), 0
    for start in range(0, case.num_summands, block):
        lanes = np.full((*shape[:2], block, case.batch), largest, np.uint32)
        lanes[:, ::2] = words(rng, lanes[:, ::2].shape) % np.uint32(largest)
        lanes[:, 1, 0] += np.uint32(rest if start == 0 else 0)
        flat = lanes.reshape(*shape[:2], block * case.batch)
        many = np.asarray(encrypt(params, public, code, flat, rng))
        many = np.moveaxis(many.reshape(*many.shape[:-1], block, case.batch), -2, 0)
        total = rlwe.add(params, total, rlwe.sum_ciphertexts(params, many))
        expected = expected + lanes.sum(axis=2, dtype=np.uint64)
    assert expected.max() == per_lane
    opened = rlwe.decrypt(params, secret, total, code)
    assert bool(opened.valid)
    np.testing.assert_array_equal(np.asarray(opened.lanes), expected % (1 << 32))


def test_one_too_many_is_reported():
    params, code = rlwe.parameters("rlwe-1024-26"), rlwe.Encoding(8, 1, 15)
    rng = np.random.default_rng(3)
    secret, public = key_pair(params, rng)
    full = np.full((1, 1024, 1), 255, np.uint32)
    ciphertext = encrypt(params, public, code, full, rng)
    assert bool(rlwe.decrypt(params, secret, ciphertext, code).valid)
    twice = rlwe.add(params, ciphertext, ciphertext)
    assert not bool(rlwe.decrypt(params, secret, twice, code).valid)


def test_another_key_opens_nothing():
    params = rlwe.parameters("rlwe-2048-52")
    code, rng = rlwe.Encoding(20, 1, 15), np.random.default_rng(4)
    (_, public), (other, _) = key_pair(params, rng), key_pair(params, rng)
    lanes = np.zeros((1, 2048, 1), np.uint32)
    opened = rlwe.decrypt(params, other, encrypt(params, public, code, lanes, rng), code)
    assert not bool(opened.valid)
    # Uniform lanes: the chance that more than 8 of 2,048 are zero is below 1e-12.
    assert np.count_nonzero(np.asarray(opened.lanes) == 0) <= 8


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_decoding_equals_python_integers(data):
    """Any residues, any encoding, on every named set's moduli up to one block of coefficients."""
    names = [name for name in rlwe.PARAMETER_SETS if "-16384-" not in name]
    params = rlwe.parameters(data.draw(st.sampled_from(names)))
    noise_bits = data.draw(st.integers(1, 20))
    lane_bits = data.draw(st.integers(1, min(64, params.modulus_bits - noise_bits)))
    most = (params.modulus_bits - noise_bits) // lane_bits
    code = rlwe.Encoding(lane_bits, data.draw(st.integers(1, min(most, 9))), noise_bits)
    modulus = params.moduli.product
    edges = [0, 1, modulus - 1, modulus // 2, (1 << (noise_bits - 1)) - 1, 1 << (noise_bits - 1)]
    value = data.draw(st.one_of(st.sampled_from(edges), st.integers(0, modulus - 1)))
    phase = np.array([value % q for q in params.moduli.primes], np.uint32)
    phase = np.ascontiguousarray(
        np.broadcast_to(phase[:, None, None], (params.num_limbs, params.ring_degree, 1))
    )
    with jax.disable_jit():  # one eager pass per example: compiling each encoding costs more
        opened = rlwe.decode(params, code, phase)
    scaled = (value + (1 << (noise_bits - 1))) % modulus >> noise_bits
    for j in range(code.num_lanes):
        lane = (scaled >> (j * lane_bits)) % (1 << lane_bits) % (1 << 32)
        assert np.unique(np.asarray(opened.lanes[j])).tolist() == [lane]
    assert bool(opened.valid) == (scaled >> (lane_bits * code.num_lanes) == 0)


def test_vmap_over_clients_equals_one_by_one():
    params, code = rlwe.parameters("rlwe-1024-26"), cases.CASES[0].encoding
    rng = np.random.default_rng(5)
    _, public = key_pair(params, rng)
    lanes = words(rng, (3, 1, 1024, 2)) & np.uint32(255)
    fresh = words(rng, (3, rlwe.words_needed(params, 2)))

    def one(x, w):
        return rlwe.encrypt(params, public, rlwe.encode(params, code, x), w)

    together = jax.jit(jax.vmap(one))(lanes, fresh)
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(together[i]), np.asarray(one(lanes[i], fresh[i])))


def centred(residues, q):
    values = np.asarray(residues).astype(np.int64)
    return np.where(values > q // 2, values - q, values)


def test_keys_have_their_distributions():
    """Ternary secret and centred binomial error; false-alarm rate below 1e-6 each (6 sigma)."""
    params = rlwe.parameters("rlwe-4096-60")
    q, rng = params.moduli.primes[0], np.random.default_rng(6)
    secret, public = key_pair(params, rng)
    s = centred(ntt.inverse(secret.s, params.moduli)[0], q)
    product = modular.mul(public.a, secret.s, params.moduli)
    e = ntt.inverse(modular.add(public.b, product, params.moduli), params.moduli)
    e = centred(e[0], q)
    assert set(np.unique(s)) == {-1, 0, 1} and np.abs(e).max() <= 21
    n = params.ring_degree
    for value in (-1, 0, 1):
        assert abs(np.mean(s == value) - 1 / 3) < 6 * math.sqrt(2 / 9 / n)
    assert abs(e.mean()) < 6 * math.sqrt(10.5 / n)
    assert abs((e**2).mean() - 10.5) < 6 * 10.5 * math.sqrt(2 / n)
    a = np.asarray(public.a[0]).astype(np.float64) / q
    assert abs(a.mean() - 0.5) < 6 * math.sqrt(1 / 12 / n)


def test_noise_stays_within_both_bounds():
    """Measured noise against the computed ones, on 16 sums of 16 (false alarms below 2^-40)."""
    params, rng, summands = rlwe.parameters("rlwe-4096-60"), np.random.default_rng(8), 16
    secret, public = key_pair(params, rng)
    zero = np.zeros((params.num_limbs, params.ring_degree, 16), np.uint32)
    total = jnp.zeros((2, *zero.shape), jnp.uint32)
    for _ in range(summands):
        fresh = words(rng, rlwe.words_needed(params, 16))
        total = rlwe.add(params, total, rlwe.encrypt(params, public, zero, fresh))
    noise = centred(_phase(params, secret, total)[0], params.moduli.primes[0])
    assert np.abs(noise).max() <= rlwe.worst_case_noise(params, summands)
    bits = rlwe.noise_bits_needed(params, summands, noise.size)
    assert np.abs(noise).max() < 2 ** (bits - 1)
    # The bound is not idle: three bits fewer would fail on these very sums.
    assert np.abs(noise).max() >= 2 ** (bits - 1 - 3)
    expected = summands * 10.5 * (2 / 3 * 4096 + 1 + 2 / 3 * 4096)
    assert 0.8 < (noise.astype(float) ** 2).mean() / expected < 1.2


def _phase(params, secret, ciphertext):
    product = modular.mul(ntt.forward(ciphertext[1], params.moduli), secret.s, params.moduli)
    return modular.add(ciphertext[0], ntt.inverse(product, params.moduli), params.moduli)


def test_noise_arithmetic():
    params = rlwe.parameters("rlwe-1024-26")
    assert rlwe.worst_case_noise(params, 2) == 2 * (21 * 1024 + 21 + 21 * 1024)
    bits = rlwe.noise_bits_needed(params, 3, 1024)
    assert rlwe.failure_log2(params, 3, 1024, bits) <= -40
    assert rlwe.failure_log2(params, 3, 1024, bits - 1) > -40
    assert rlwe.failure_log2(params, 1, 1024, 17) == -math.inf  # the worst case is 2^15.4
    assert rlwe.failure_log2(params, 1, 1024, 16) > -math.inf
    many = [rlwe.failure_log2(params, k, 1024, 14) for k in (1, 4, 16, 64)]
    assert many == sorted(many)
    # sub-Gaussian claims: each Taylor coefficient of the moment generating function is smaller
    for k in range(1, 40):
        assert 2 * 3 ** (k - 1) * math.factorial(k) <= math.factorial(2 * k)


def test_named_sets_are_fixed_and_secure():
    for name in rlwe.PARAMETER_SETS:
        params = rlwe.parameters(name)
        _, degree, bits = name.split("-")
        assert params.ring_degree == int(degree)
        assert int(bits) - 1 <= params.modulus_bits <= int(bits)
        kept = params.transport.moduli.primes
        assert params.moduli.primes == (*kept, params.dropped_prime)[: params.num_limbs]
        sizes = [q.bit_length() for q in kept]
        assert sizes == sorted(sizes, reverse=True)
        assert kept == tuple(
            q
            for size, count in Counter(sizes).items()
            for q in modular.ntt_primes(params.ring_degree, size, count)
        )
        bits_of_all = params.moduli.product.bit_length()
        assert len(rlwe.SECURITY_TABLES) == 2
        assert all(bits_of_all <= table[int(degree)] for table in rlwe.SECURITY_TABLES.values())
        assert all(source in params.security_source for source in rlwe.SECURITY_TABLES)


def test_refusals():
    weak = modular.Moduli(modular.ntt_primes(2048, 30, 2), 2048)
    with pytest.raises(ValueError, match="128-bit security.*got log2 Q = 60 at N=2048"):
        rlwe.Parameters("weak", weak)
    with pytest.raises(ValueError, match="128-bit security.*at N=16"):
        rlwe.Parameters("toy", modular.Moduli((97,), 16))
    with pytest.raises(ValueError, match="rlwe-4096-90"):
        rlwe.parameters("rlwe-4096-91")
    params = rlwe.parameters("rlwe-1024-26")
    with pytest.raises(ValueError, match="at most 25 bits"):
        rlwe.encode(params, rlwe.Encoding(11, 1, 15), np.zeros((1, 1024, 1), np.uint32))
    with pytest.raises(ValueError, match="7168 random words"):
        rlwe.generate_key(params, np.zeros(7, np.uint32))
    secret, public = key_pair(params, np.random.default_rng(0))
    message = np.zeros((1, 1024, 1), np.uint32)
    with pytest.raises(ValueError, match="5120 random words"):
        rlwe.encrypt(params, public, message, np.zeros(5121, np.uint32))
    with pytest.raises(ValueError, match="shape \\[2, limb, N, batch\\]"):
        rlwe.add(params, message, message)
    with pytest.raises(ValueError, match="uint32 lanes of shape"):
        rlwe.encode(params, rlwe.Encoding(8, 1, 15), np.zeros((1, 1024, 1), np.int32))
    assert repr(secret) == "SecretKey(hidden)" == str(secret)
