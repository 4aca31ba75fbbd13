"""Threshold decryption: equal to its reference, any t open, t - 1 learn nothing, flooded."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import modular, ntt, rlwe, threshold
from fedjax_kernels.threshold import cases
from fedjax_kernels.threshold.noise import MAX_TOP_SIGMA, PART_SIGMA, SHIFT_BITS


def words(rng, count):
    return rng.integers(0, 1 << 32, count, dtype=np.uint32)


class Key:
    """A joint key of n holders, made as the protocol makes it, with everybody's secrets at hand."""

    def __init__(self, params, t, n, rng, **options):
        self.params, self.transport, self.t, self.n = params, params.transport, t, n
        self.a = threshold.common_part(
            params, words(rng, threshold.common_words_needed(params)), **options
        )
        count = threshold.contribution_words_needed(params)
        made = [
            threshold.contribute(params, self.a, words(rng, count), **options) for _ in range(n)
        ]
        self.secrets = [secret for secret, _ in made]
        self.public = threshold.joint_public_key(
            params, self.a, np.stack([np.asarray(b) for _, b in made]), **options
        )
        count = threshold.share_words_needed(self.transport, t)
        dealt = np.stack(
            [
                np.asarray(
                    threshold.share(
                        self.transport, secret, words(rng, count), threshold=t, num_parties=n,
                        **options,
                    )
                )
                for secret in self.secrets
            ]
        )  # fmt: skip
        self.shares = [
            threshold.add_shares(self.transport, dealt[:, j], **options) for j in range(n)
        ]

    def encrypt(self, code, lanes, rng, **options):
        message = rlwe.encode(self.params, code, lanes, **options)
        fresh = words(rng, rlwe.words_needed(self.params, lanes.shape[-1]))
        return np.asarray(rlwe.encrypt(self.params, self.public, message, fresh, **options))

    def partials(self, ciphertext, active, flooding, rng, masked=True, **options):
        batch = ciphertext.shape[-1]
        pair_words = {
            pair: words(rng, threshold.mask_words_needed(self.transport, batch))
            for pair in itertools.combinations(active, 2)
        }
        count = threshold.flood_words_needed(self.transport, flooding, batch)
        made = []
        for j in active:
            flood = threshold.flood(self.transport, flooding, batch, words(rng, count), **options)
            coefficient = threshold.lagrange_coefficient(self.transport, j, active)
            part = threshold.partially_decrypt(
                self.transport, self.shares[j - 1], coefficient, ciphertext[1], flood, **options
            )
            for pair, shared in pair_words.items():
                if masked and j in pair:
                    part = threshold.mask(
                        self.transport, part, shared, negative=j == max(pair), **options
                    )
            made.append(np.asarray(part))
        return np.stack(made)

    def open(self, ciphertext, active, flooding, code, rng, **options):
        partials = self.partials(ciphertext, active, flooding, rng, **options)
        phase = threshold.combine(self.transport, ciphertext[0], partials, **options)
        return phase, rlwe.decode(self.transport, code, phase, **options)


@pytest.mark.parametrize(
    ("case", "x64"),
    [
        (cases.CASES[0], False),
        (cases.CASES[1], True),
        pytest.param(cases.CASES[2], False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_the_reference_bit_for_bit(case, x64):
    params, flooding = rlwe.parameters(case.name), case.flooding
    code = rlwe.Encoding(lane_bits=2, num_lanes=1, noise_bits=params.modulus_bits - 3)
    active = tuple(range(case.num_parties, case.num_parties - case.threshold, -1))
    results = []
    for name in ("xla", "reference"):
        rng, options = np.random.default_rng(3), {"implementation": name}
        with jax.enable_x64(x64):
            key = Key(params, case.threshold, case.num_parties, rng, **options)
            lanes = words(rng, (1, params.ring_degree, case.batch)) >> np.uint32(30)
            ciphertext = key.encrypt(code, lanes, rng, **options)
            phase, opened = key.open(ciphertext, active, flooding, code, rng, **options)
            secrets = [secret.s for secret in key.secrets]
            results.append([*secrets, *key.shares, key.public.a, key.public.b, ciphertext, phase,
                            opened.lanes, opened.valid])  # fmt: skip
    for fast, slow in zip(*results, strict=True):
        fast, slow = np.asarray(fast), np.asarray(slow)
        assert fast.dtype == slow.dtype
        np.testing.assert_array_equal(fast, slow)
    if flooding.sigma < 2 ** (code.noise_bits - 5):
        np.testing.assert_array_equal(results[0][-2], lanes)


PARAMS = rlwe.parameters("rlwe-4096-97")
OPENINGS = threshold.Openings(num_parties=4, threshold=3, max_openings=8)
FLOODING = threshold.flooding_needed(PARAMS, 16, 4096, OPENINGS)
NOISE_BITS = threshold.noise_bits_needed(PARAMS, 16, 4096, OPENINGS)
CODE = rlwe.Encoding(20, 1, NOISE_BITS)


@pytest.fixture(scope="module")
def key():
    return Key(PARAMS, 3, 4, np.random.default_rng(1))


@pytest.fixture(scope="module")
def total(key):
    """A sum of 16 ciphertexts whose lanes add up to 2^lane_bits - 1 at most, and its plaintext."""
    rng = np.random.default_rng(2)
    lanes = [words(rng, (1, 4096, 1)) >> np.uint32(16) for _ in range(16)]
    lanes = [np.where(np.arange(4096)[:, None] % 3 == 0, np.uint32(65535), x) for x in lanes]
    many = np.stack([key.encrypt(CODE, x, rng) for x in lanes])
    return np.asarray(rlwe.sum_ciphertexts(PARAMS, many)), sum(lanes)


def test_any_t_of_n_open_the_same_sum_exactly(key, total):
    ciphertext, expected = total
    for active in itertools.combinations(range(1, 5), 3):
        rng = np.random.default_rng(active[1])
        _, opened = key.open(ciphertext, active, FLOODING, CODE, rng)
        assert bool(opened.valid)
        np.testing.assert_array_equal(np.asarray(opened.lanes), expected)


def test_the_flood_decides_the_noise_and_is_as_wide_as_planned(key, total):
    """The noise of an opened sum has the variance of t floods, and never reaches its bound."""
    ciphertext, expected = total
    phase, _ = key.open(ciphertext, (1, 2, 4), FLOODING, CODE, np.random.default_rng(8))
    message = rlwe.encode(PARAMS, CODE, expected)
    noise = integers(modular.sub(phase, message, PARAMS.moduli), PARAMS)
    assert max(abs(x) for x in noise) < 2 ** (NOISE_BITS - 1)
    ratio = np.var(np.array(noise, float)) / (3 * FLOODING.sigma**2)
    # 4,096 Gaussian draws: the relative deviation of their variance is sqrt(2 / 4096) = 0.022;
    # 0.15 is 6.8 of them, a false alarm below 1e-11.
    assert abs(ratio - 1) < 0.15


def integers(residues, params):
    """Centred integers of one polynomial's residues, by the Chinese remainder theorem."""
    modulus = params.moduli.product
    primes = params.moduli.primes
    value = sum(
        np.asarray(limb).astype(object) * (modulus // q) * pow(modulus // q, -1, q)
        for limb, q in zip(np.asarray(residues), primes, strict=True)
    )
    return [
        int(x) if x <= modulus // 2 else int(x) - modulus for x in (value % modulus).reshape(-1)
    ]


def test_fewer_than_t_partial_decryptions_open_nothing(key, total):
    ciphertext, expected = total
    partials = key.partials(ciphertext, (1, 2, 3), FLOODING, np.random.default_rng(4))
    for missing in range(3):
        some = np.delete(partials, missing, axis=0)
        phase = threshold.combine(PARAMS, ciphertext[0], some)
        opened = rlwe.decode(PARAMS, CODE, phase)
        assert not bool(opened.valid)
        # Uniform 20-bit lanes: more than 8 of 4,096 right has a probability below 1e-20.
        assert np.count_nonzero(np.asarray(opened.lanes) == expected) <= 8


def test_two_holders_who_pretend_to_be_the_whole_set_open_nothing(key, total):
    ciphertext, expected = total
    _, opened = key.open(ciphertext, (1, 2), FLOODING, CODE, np.random.default_rng(5))
    assert not bool(opened.valid)
    assert np.count_nonzero(np.asarray(opened.lanes) == expected) <= 8


@settings(max_examples=25)
@given(st.data())
def test_t_minus_1_shares_go_with_every_secret(data):
    """For any secret there is one polynomial through it and any t - 1 shares, modulo each prime."""
    params = rlwe.parameters(
        data.draw(st.sampled_from(["rlwe-1024-26", "rlwe-8192-212"]))
    ).transport
    n = data.draw(st.integers(2, threshold.MAX_PARTIES))
    t = data.draw(st.integers(2, min(n, 6)))
    held = data.draw(st.lists(st.integers(1, n), min_size=t - 1, max_size=t - 1, unique=True))
    q = data.draw(st.sampled_from(params.moduli.primes))
    shares = [data.draw(st.integers(0, q - 1)) for _ in held]
    candidate = data.draw(st.integers(0, q - 1))
    points, values = [0, *held], [candidate, *shares]

    def polynomial(x):
        result = 0
        for i, at in enumerate(points):
            term = values[i]
            for j, other in enumerate(points):
                if i != j:
                    term = term * (x - other) * pow(at - other, -1, q) % q
            result += term
        return result % q

    other = data.draw(st.sampled_from([x for x in range(1, n + 1) if x not in held]))
    active = [*held, other]
    limb = params.moduli.primes.index(q)
    opened = sum(
        int(threshold.lagrange_coefficient(params, j, active)[limb, 0, 0]) * polynomial(j)
        for j in active
    )
    assert opened % q == candidate


def test_shares_add_up_to_the_secret(key):
    expected = key.secrets[0].s
    for secret in key.secrets[1:]:
        expected = modular.add(expected, secret.s, PARAMS.moduli)
    for active in ((1, 2, 3), (4, 2, 1)):
        found = np.zeros_like(expected)
        for j in active:
            coefficient = threshold.lagrange_coefficient(PARAMS, j, active)
            part = modular.mul(key.shares[j - 1], coefficient, PARAMS.moduli)
            found = modular.add(found, part, PARAMS.moduli)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_flooding_before_the_lagrange_coefficient_destroys_the_sum(key, total):
    """The order that does not work: each share times c1, flooded, and multiplied only then."""
    ciphertext, expected = total
    rng, active, one = np.random.default_rng(6), (1, 2, 4), np.ones((4, 1, 1), np.uint32)
    count = threshold.flood_words_needed(PARAMS, FLOODING, 1)

    def opened(flood_first):
        parts = []
        for j in active:
            flood = threshold.flood(PARAMS, FLOODING, 1, words(rng, count))
            factor = threshold.lagrange_coefficient(PARAMS, j, active)
            first, then = (one, factor) if flood_first else (factor, one)
            part = threshold.partially_decrypt(
                PARAMS, key.shares[j - 1], first, ciphertext[1], flood
            )
            parts.append(np.asarray(modular.mul(part, then, PARAMS.moduli)))
        phase = threshold.combine(PARAMS, ciphertext[0], np.stack(parts))
        return rlwe.decode(PARAMS, CODE, phase)

    np.testing.assert_array_equal(np.asarray(opened(False).lanes), expected)
    wrong = opened(True)
    assert not bool(wrong.valid)
    # Coefficients 8/3, -2 and 1/3: right where the two floods' weighted sum is divisible by 3, by
    # chance 1/3. More than half of 4,096 right by chance has a probability below 1e-100.
    assert np.count_nonzero(np.asarray(wrong.lanes) == expected) < 2048


def test_masks_hide_single_parts_and_leave_the_sum(key, total):
    ciphertext, _ = total
    rngs = [np.random.default_rng(9) for _ in range(2)]
    plain, masked = (
        key.partials(ciphertext, (1, 2, 3), FLOODING, rng, masked=flag)
        for rng, flag in zip(rngs, (False, True), strict=True)
    )
    sums = [np.asarray(modular.sum_residues(x, PARAMS.moduli)) for x in (plain, masked)]
    np.testing.assert_array_equal(*sums)
    for one, other in zip(plain, masked, strict=True):
        assert np.count_nonzero(one == other) < 16  # of 16,384; uniform ones agree with chance 1/q


def test_why_single_parts_are_masked(key):
    """Without masks a part of two honest holders shows 3/2 of the noise: its parity, unflooded."""
    coefficient = threshold.lagrange_coefficient(PARAMS, 1, (1, 3))
    doubled = modular.mul(coefficient, np.full((4, 1, 1), 2, np.uint32), PARAMS.moduli)
    np.testing.assert_array_equal(np.asarray(doubled).reshape(-1), 3)


@pytest.mark.parametrize("flooding", [case.flooding for case in cases.CASES[1:]], ids=str)
def test_moments_of_the_flood(flooding):
    params, batch = rlwe.parameters("rlwe-4096-90"), 8
    count = threshold.flood_words_needed(params, flooding, batch)
    drawn = threshold.flood(params, flooding, batch, words(np.random.default_rng(1), count))
    values = np.array(integers(drawn, params), float) / flooding.sigma
    size = 4096 * batch
    # Gaussian: mean within 5.5 / sqrt(n), variance within 5.5 sqrt(2 / n), fourth moment within
    # 5.5 sqrt(96 / n) of 0, 1 and 3: a false alarm below 2e-7 in all.
    assert abs(values.mean()) < 5.5 / math.sqrt(size)
    assert abs(values.var() - 1) < 5.5 * math.sqrt(2 / size)
    assert abs((values**4).mean() - 3) < 5.5 * math.sqrt(96 / size)
    assert np.abs(values).max() * flooding.sigma <= flooding.worst_case


def test_every_integer_can_be_drawn():
    """The lowest bits of a flood of parts are those of the finest part, not multiples of k."""
    params, flooding = rlwe.parameters("rlwe-4096-90"), threshold.Flooding(3, 100)
    count = threshold.flood_words_needed(params, flooding, 4)
    drawn = threshold.flood(params, flooding, 4, words(np.random.default_rng(2), count))
    low = np.array([value % (1 << SHIFT_BITS) for value in integers(drawn, params)])
    counts = np.bincount(low, minlength=1 << SHIFT_BITS)
    chi2 = float(((counts - 32) ** 2 / 32).sum())
    # Chi-square with 511 degrees of freedom: mean 511, deviation 32; 700 has a chance below 1e-7.
    assert chi2 < 700


def test_convolution_is_close_to_the_discrete_gaussian_it_stands_for():
    """The distribution of x_0 + k x_1, added up exactly, against the definition.

    At k = 3 and narrow parts the ripple is visible in double precision, and within its bound.
    """
    k, first, second = 3, 4.0, 3.0

    def gaussian(sigma, reach):
        weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        return weights / weights.sum()

    reach = 200
    spread = np.zeros(2 * k * reach + 1)
    spread[::k] = gaussian(second, reach)
    convolved = np.convolve(gaussian(first, reach), spread)
    exact = gaussian(math.hypot(first, k * second), (len(convolved) - 1) // 2)
    distance = np.abs(convolved - exact).sum() / 2
    tau2 = 1 / ((k / first) ** 2 + 1 / second**2)
    assert 0 < distance < 4 * math.exp(-2 * math.pi**2 * tau2)


def test_tables_are_as_close_as_floods_assume():
    for sigma in (PART_SIGMA, 8.0, 1000.0, float(MAX_TOP_SIGMA)):
        flooding = threshold.Flooding(2, int(sigma))
        for table, part in zip(flooding.tables, flooding.part_sigmas, strict=True):
            assert table.total_variation < 2.0**-108
            assert table.max_magnitude <= 14 * part + 2


def test_the_norm_of_the_noise_stays_below_its_bound(key):
    """32 sums of 4: the largest norm comes close to the bound but not above it."""
    rng, code = np.random.default_rng(12), rlwe.Encoding(2, 1, 40)
    lanes = np.zeros((1, 4096, 4 * 32), np.uint32)
    many = key.encrypt(code, lanes, rng).reshape(2, 4, 4096, 4, 32)
    total = np.asarray(rlwe.sum_ciphertexts(PARAMS, np.moveaxis(many, 3, 0)))
    joint = key.secrets[0].s
    for secret in key.secrets[1:]:
        joint = modular.add(joint, secret.s, PARAMS.moduli)
    product = ntt.multiply(total[1], ntt.inverse(joint, PARAMS.moduli), PARAMS.moduli)
    noise = integers(modular.add(total[0], product, PARAMS.moduli), PARAMS)
    norms = np.sqrt((np.array(noise, float).reshape(4096, 32) ** 2).sum(axis=0))
    bound = 2 ** threshold.noise_norm_log2(PARAMS, 4, 4096, OPENINGS)
    assert bound / 4 < norms.max() < bound


def test_the_flood_is_the_least_that_hides_enough():
    params = rlwe.parameters("rlwe-8192-212")
    for bits in (40, 50):
        openings = threshold.Openings(4, 3, 16, flooding_bits=bits)
        flooding = threshold.flooding_needed(params, 100, 8192, openings)
        assert threshold.distance_log2(flooding, params, 100, 8192, openings) <= -bits
        narrower = threshold.Flooding(flooding.num_parts, flooding.top_sigma - 2)
        if flooding.top_sigma < 256:  # the search goes up by a 256th beyond that
            assert threshold.distance_log2(narrower, params, 100, 8192, openings) > -bits
        assert threshold.distance_log2(flooding, params, 100, 8192, openings) > -bits - 0.2
    shift = threshold.noise_norm_log2(params, 100, 8192, openings) - math.log2(flooding.sigma)
    assert shift + math.log2(openings.num_sums) / 2 - 1 < -bits


def test_noise_bits_leave_room_for_all_floods():
    params = rlwe.parameters("rlwe-8192-212")
    for t, n in ((2, 3), (3, 4), (5, 5)):
        openings = threshold.Openings(n, t, 64)
        bits = threshold.noise_bits_needed(params, 256, 8192 * 3, openings)
        assert threshold.failure_log2(params, 256, 8192 * 3, bits, openings) <= -40
        assert threshold.failure_log2(params, 256, 8192 * 3, bits - 1, openings) > -40
        worst = bits
        while threshold.failure_log2(params, 256, 8192 * 3, worst, openings) > -math.inf:
            worst += 1
        assert bits < worst <= bits + 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: threshold.Openings(3, 2, 5, flooding_bits=39), "40 to 60 bits of flooding"),
        (lambda: threshold.Openings(3, 2, 5, flooding_bits=61), "40 to 60 bits of flooding"),
        (
            lambda: threshold.flooding_needed(
                PARAMS, 16, 1 << 60, threshold.Openings(3, 2, 5, flooding_bits=50)
            ),
            "draws that are together within 2\\^-52",
        ),
        (lambda: threshold.Openings(3, 1, 5), "2 <= threshold"),
        (lambda: threshold.Openings(3, 4, 5), "2 <= threshold"),
        (lambda: threshold.Openings(3, 2, 0), "at least one opening"),
        (lambda: threshold.Flooding(2, 7), "top_sigma from 8"),
        (lambda: threshold.Flooding(0, 100), "1 or more parts"),
        (lambda: threshold.lagrange_coefficient(PARAMS, 1, (2, 3)), "among them"),
        (lambda: threshold.lagrange_coefficient(PARAMS, 1, (1, 1)), "distinct"),
        (lambda: threshold.lagrange_coefficient(PARAMS, 1, (1, 0)), "distinct"),
        (lambda: threshold.common_part(PARAMS, np.zeros(3, np.uint32)), "random words"),
        (lambda: threshold.flood(PARAMS, FLOODING, 1, np.zeros(3, np.uint32)), "random words"),
        (
            lambda: threshold.combine(
                PARAMS, np.zeros((4, 4096, 1), np.uint32), np.zeros((2, 3, 4096, 1), np.uint32)
            ),
            "uint32 residues",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shares_of_the_most_holders_are_uniform_beside_any_flood():
    """A word too few a residue, and the shares themselves would tell more than 2^-60."""
    params, n, t = rlwe.parameters("rlwe-16384-408"), threshold.MAX_PARTIES, threshold.MAX_PARTIES
    residues = (t - 1) * params.num_limbs * params.ring_degree
    drawn_bits = 32 * threshold.share_words_needed(params, t) // residues
    distance = math.log2(n * residues * max(params.moduli.primes)) - drawn_bits - 2
    assert distance < -(threshold.MAX_FLOODING_BITS + 6)


@pytest.mark.parametrize(("bits", "fits"), [(40, True), (60, False)])
def test_masks_of_many_pairs_count_in_the_distance(bits, fits):
    """2016 pairs, 14 primes, 2^20 coefficients, 256 sums: 2^42.8 residues 2^-100 from uniform."""
    params, openings = rlwe.parameters("rlwe-16384-408"), threshold.Openings(64, 64, 256, bits)
    if fits:
        flooding = threshold.flooding_needed(params, 16, 1 << 20, openings)
        assert threshold.distance_log2(flooding, params, 16, 1 << 20, openings) <= -bits
        wide = threshold.Flooding(flooding.num_parts + 3, 1000)  # its shift is next to nothing
        assert threshold.distance_log2(wide, params, 16, 1 << 20, openings) > -58
    else:
        with pytest.raises(ValueError, match="within 2.-62 of their ideal, got 2.-57"):
            threshold.flooding_needed(params, 16, 1 << 20, openings)
