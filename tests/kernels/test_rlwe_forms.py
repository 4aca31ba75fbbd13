"""Encryption in blocks, modulus switching, and the secret-key form: as the reference, and exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fedjax_kernels import modular, ntt, rlwe
from fedjax_kernels.modular.cases import extreme_residues
from fedjax_kernels.rlwe import cases


def words(rng, count):
    return rng.integers(0, 1 << 32, count, dtype=np.uint32)


def key_pair(params, rng):
    return rlwe.generate_key(params, words(rng, rlwe.key_words_needed(params)))


def columns(fresh, params, batch, select):
    """The random words of some polynomials of a batch."""
    return np.ascontiguousarray(fresh.reshape(5, params.ring_degree, batch)[..., select]).ravel()


ONE_X64, SLOW = cases.BLOCK_CASES[0], cases.BLOCK_CASES[2:]


@pytest.mark.parametrize(
    ("case", "x64"),
    [
        pytest.param(
            *(case, x64),
            marks=[pytest.mark.slow] * (case in SLOW or (x64 and case != ONE_X64)),
        )
        for case in cases.BLOCK_CASES
        for x64 in (False, True)
    ],
    ids=str,
)
def test_a_batch_equals_its_polynomials_one_by_one(case, x64):
    """A large batch goes through blocks of columns, single polynomials through whole arrays."""
    params, code, rng = rlwe.parameters(case.name), case.encoding, np.random.default_rng(1)
    secret, public = key_pair(params, rng)
    lanes = words(rng, (code.num_lanes, params.ring_degree, case.batch)) >> np.uint32(16)
    fresh = words(rng, rlwe.words_needed(params, case.batch))
    with jax.enable_x64(x64):
        message = np.asarray(rlwe.encode(params, code, lanes))
        together = np.asarray(rlwe.encrypt(params, public, message, fresh))
        opened = rlwe.decrypt(params, secret, together, code)
        for i in (0, case.batch // 2, case.batch - 1):
            part = slice(i, i + 1)
            alone = rlwe.encrypt(
                params, public, message[..., part], columns(fresh, params, case.batch, part)
            )
            np.testing.assert_array_equal(together[..., part], alone)
    assert bool(opened.valid)
    np.testing.assert_array_equal(np.asarray(opened.lanes), lanes)


@pytest.mark.parametrize("batch", [pytest.param(2, marks=pytest.mark.slow), 17])
def test_vmap_equals_one_by_one(batch):
    """Few columns of each client are set side by side; many go one client after the other."""
    params, code = rlwe.parameters("rlwe-4096-60"), cases.BLOCK_CASES[0].encoding
    rng = np.random.default_rng(2)
    secret, public = key_pair(params, rng)
    lanes = words(rng, (11, 1, 4096, batch)) >> np.uint32(12)
    fresh = words(rng, (11, rlwe.words_needed(params, batch)))

    def one(x, w):
        ciphertext = rlwe.encrypt(params, public, rlwe.encode(params, code, x), w)
        return ciphertext, rlwe.decrypt(params, secret, ciphertext, code).lanes

    together, opened = jax.jit(jax.vmap(one))(lanes, fresh)
    np.testing.assert_array_equal(np.asarray(opened), lanes)
    for i in (0, 10):
        np.testing.assert_array_equal(np.asarray(together[i]), one(lanes[i], fresh[i])[0])


def test_clients_on_two_devices_equal_one_device():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    params, rng = rlwe.parameters("rlwe-4096-60"), np.random.default_rng(3)
    _, public = key_pair(params, rng)
    message = rlwe.encode(params, cases.BLOCK_CASES[0].encoding, words(rng, (1, 4096, 38)) >> 12)
    fresh = words(rng, (5, 4096, 38))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("client",))

    def encrypt(key, message, fresh):
        return rlwe.encrypt(params, key, message, fresh.reshape(-1))

    split = P(None, None, "client")
    sharded = jax.jit(
        jax.shard_map(
            encrypt,
            mesh=mesh,
            in_specs=(P(), split, split),
            out_specs=P(None, None, None, "client"),
        )
    )
    whole = rlwe.encrypt(params, public, message, fresh.reshape(-1))
    np.testing.assert_array_equal(np.asarray(sharded(public, message, fresh)), np.asarray(whole))


@pytest.mark.parametrize("name", cases.SWITCH_SETS)
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_switching_is_the_nearest_integer(name, x64):
    params, rng = rlwe.parameters(name), np.random.default_rng(4)
    ciphertext = words(rng, (3, 2, params.num_limbs, params.ring_degree, 1)) % params.moduli.q
    ciphertext = ciphertext.astype(np.uint32)
    for limb, q in enumerate(params.moduli.primes):
        edges = extreme_residues(q)
        ciphertext[0, 0, limb, : len(edges), 0] = edges
        ciphertext[0, 1, limb, : len(edges), 0] = edges[::-1]
    ciphertext[0, 0, -1, 9:11, 0] = (65537 // 2, 65537 // 2 + 1)
    with jax.enable_x64(x64):
        fast = np.asarray(rlwe.switch_modulus(params, ciphertext))
    slow = rlwe.switch_modulus(params, ciphertext, implementation="reference")
    np.testing.assert_array_equal(fast, slow)
    prime, modulus = params.dropped_prime, params.moduli.product
    for place in range(12):  # by the Chinese remainder theorem, on Python integers
        value = sum(
            int(ciphertext[0, 0, limb, place, 0]) * (modulus // q) * pow(modulus // q, -1, q)
            for limb, q in enumerate(params.moduli.primes)
        )
        nearest = (value % modulus + prime // 2) // prime
        expected = [nearest % q for q in params.transport.moduli.primes]
        assert fast[0, 0, :, place, 0].tolist() == expected


def test_sums_of_switched_ciphertexts_are_exact():
    params, rng = rlwe.parameters("rlwe-8192-212"), np.random.default_rng(5)
    secret, public = key_pair(params, rng)
    code = rlwe.Encoding(26, 7, rlwe.noise_bits_needed(params, 16, 8192))
    lanes = words(rng, (16, 7, 8192, 1)) >> np.uint32(10)
    many = []
    for row in lanes:
        fresh = words(rng, rlwe.words_needed(params, 1))
        ciphertext = rlwe.encrypt(params, public, rlwe.encode(params, code, row), fresh)
        many.append(np.asarray(rlwe.switch_modulus(params, ciphertext)))
    transport = params.transport
    total = rlwe.sum_ciphertexts(transport, np.stack(many))
    short = rlwe.SecretKey(secret.s[: transport.num_limbs])
    opened = rlwe.decrypt(transport, short, total, code)
    assert bool(opened.valid)
    np.testing.assert_array_equal(np.asarray(opened.lanes), lanes.sum(0, dtype=np.uint32))


@pytest.mark.parametrize(
    "case",
    [cases.SECRET_CASES[0], pytest.param(cases.SECRET_CASES[1], marks=pytest.mark.slow)],
    ids=str,
)
def test_the_secret_form_equals_its_reference_and_adds_up(case):
    params, code = rlwe.parameters(case.name), case.encoding
    clients, results, batch = 4, [], case.batch
    for name in ("xla", "reference"):
        rng = np.random.default_rng(6)
        fresh = words(rng, rlwe.uniform_words_needed(params, batch))
        fresh[:8] = 0xFFFFFFFF
        a = rlwe.expand_uniform(params, fresh, implementation=name)
        secrets, ciphertexts, expected = [], [], 0
        for _ in range(clients):
            key = rlwe.generate_secret(
                params, words(rng, 2 * params.ring_degree), implementation=name
            )
            lanes = words(rng, (code.num_lanes, params.ring_degree, batch)) >> np.uint32(20)
            message = rlwe.encode(params, code, lanes)
            noise = words(rng, rlwe.secret_words_needed(params, batch))
            ciphertexts.append(
                np.asarray(rlwe.encrypt_secret(params, key, message, a, noise, implementation=name))
            )
            secrets.append(np.asarray(key.s))
            expected = expected + lanes
        c0 = modular.sum_residues(np.stack(ciphertexts), params.moduli)
        total = rlwe.SecretKey(modular.sum_residues(np.stack(secrets), params.moduli))
        opened = rlwe.decrypt_secret(params, total, c0, a, code, implementation=name)
        assert bool(opened.valid)
        np.testing.assert_array_equal(np.asarray(opened.lanes), expected)
        results.append([np.asarray(x) for x in (a, *secrets, *ciphertexts, opened.lanes)])
    for fast, slow in zip(*results, strict=True):
        np.testing.assert_array_equal(fast, slow)


def test_the_secret_form_in_blocks_and_its_errors():
    """Every error is c0 - a s - m: within 21, with variance 10.5 (6 sigma: below 1e-8)."""
    params, rng, batch = rlwe.parameters("rlwe-4096-60"), np.random.default_rng(7), 37
    key = rlwe.generate_secret(params, words(rng, 8192))
    a = rlwe.expand_uniform(params, words(rng, rlwe.uniform_words_needed(params, batch)))
    noise = words(rng, rlwe.secret_words_needed(params, batch))
    zero = jnp.zeros((2, 4096, batch), jnp.uint32)
    c0 = rlwe.encrypt_secret(params, key, zero, a, noise)
    product = ntt.inverse(modular.mul(a, key.s, params.moduli), params.moduli)
    errors = np.asarray(modular.sub(c0, product, params.moduli)).astype(np.int64)
    primes = np.array(params.moduli.primes)[:, None, None]
    errors = np.where(errors > primes // 2, errors - primes, errors)
    np.testing.assert_array_equal(errors[0], errors[1])
    assert np.abs(errors).max() <= 21
    count = errors[0].size
    assert abs(errors[0].mean()) < 6 * np.sqrt(10.5 / count)
    assert abs((errors[0] ** 2).mean() - 10.5) < 6 * 10.5 * np.sqrt(2 / count)


def test_refusals():
    params, dropping = rlwe.parameters("rlwe-1024-26"), rlwe.parameters("rlwe-8192-212")
    with pytest.raises(ValueError, match="needs a parameter set that drops a prime"):
        rlwe.switch_modulus(params, np.zeros((2, 1, 1024, 1), np.uint32))
    with pytest.raises(ValueError, match="components go before the limbs"):
        rlwe.switch_modulus(dropping, np.zeros((3, 8, 8192, 1), np.uint32))
    wide = np.zeros((8, 8192, 1), np.uint32)
    key = rlwe.SecretKey(wide)
    with pytest.raises(ValueError, match="drops no prime.*rlwe-8192-196"):
        rlwe.encrypt_secret(dropping, key, wide, wide, np.zeros(1, np.uint32))
    one, two = np.zeros((1, 1024, 1), np.uint32), np.zeros((1, 1024, 2), np.uint32)
    with pytest.raises(ValueError, match="of one shape"):
        rlwe.encrypt_secret(params, rlwe.SecretKey(one), one, two, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="1368 random words"):
        rlwe.encrypt_secret(params, rlwe.SecretKey(one), one, one, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="4096 random words"):
        rlwe.expand_uniform(params, np.zeros(5, np.uint32))
