"""Distributed differential privacy, the whole chain: rotate, clip, round, noise, wrap, encrypt.

The accountant's epsilon is checked against integrals of the exact noise in one dimension, and
against the theorems of the two papers, written out again here.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from scipy import special

import fedjax_secure as fs
from fedjax_secure.core import Sampling, SeededSource, Setting, Signer, Spec, Submission
from fedjax_secure.core.randomness import device_keys

CLIENTS, DIM = 6, 3000
NOISES = {"discrete_gaussian": fs.privacy.discrete_gaussian, "skellam": fs.privacy.skellam}


def _chain(noise, multiplier, *, bits=16, seal=True, **options):
    stages = [fs.privacy.rotate(), fs.privacy.clip(1.0), fs.privacy.quantise(bits=bits),
              NOISES[noise](multiplier, **options)]
    return fs.chain(*stages, *([fs.he.encrypt(fs.he.public_key())] if seal else []))


@pytest.mark.parametrize("noise", NOISES)
def test_the_whole_chain_under_encryption_comes_to_the_clipped_mean(noise):
    chain, source = _chain(noise, 0.5, missing_shares=1), SeededSource(5)
    names = tuple("abcdef")
    states, spec = chain.init(Spec(dim=DIM, num_clients=CLIENTS, num_records=CLIENTS,
                                   denominator=float(CLIENTS)))
    signers = {name: Signer(source.key("signing", client=name)) for name in names}
    setting = Setting(bytes(16), {name: s.public_key for name, s in signers.items()},
                      spec.min_clients, source)
    states, opener = chain.setup(states, spec, setting)
    keys = device_keys([source.key("client", round=1, client=name) for name in names])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CLIENTS, DIM)).astype(np.float32)
    vectors[0], vectors[1] = 0.0, np.eye(DIM, dtype=np.float32)[5] * 7  # a spike
    vectors[2] *= 1e-3
    vectors[3] *= 1e25
    elements, _ = jax.jit(chain.encode)(states, keys, vectors)
    wire = chain.to_wire(states, chain.seal(states, keys, elements), setting)
    sent = [Submission(name, bytes(16), 1, bytes(32), opener.key_id, payload)
            .signed(signers[name]) for name, payload in zip(names, wire, strict=True)]
    total = opener.open(1, bytes(32), sent[:5]).total  # one client dropped out
    mean = np.asarray(chain.decode(states, total)[0], np.float64) * CLIENTS
    exact = vectors[:5].astype(np.float64)
    exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1.0)
    errors = (mean - exact.sum(axis=0)) * spec.scale
    # Rounding adds at most 1/4 a client; 3,000 errors' mean square is within 15% but for < 1e-6.
    stddev = spec.stddev_in_sum(5)
    assert 0.85 * stddev**2 < np.mean(errors**2) < 1.15 * (stddev**2 + 5 / 4)
    assert stddev >= 0.5 * spec.mechanism.rounded_unit_l2
    assert np.abs(errors).max() <= spec.noise_tail() + 5
    opener.close()


@pytest.mark.parametrize("noise", NOISES)
def test_padding_is_counted(noise):
    _, spec = _chain(noise, 1.0, seal=False).init(
        Spec(dim=DIM, num_clients=CLIENTS, num_records=CLIENTS, denominator=6.0))
    assert spec.dim == 4096
    if noise == "skellam":
        figures = dict(spec.mechanism.parameters)
        assert figures["l1"] == min(figures["l2"] * 64, figures["l2"]**2)
    else:
        assert spec.mechanism.rounded_unit_l2 >= spec.scale


# -- epsilon against the exact noise ---------------------------------------------------------------

DP_DELTA = 1e-5


def _discrete_gaussian(stddev, reach):
    z = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(z**2) / (2 * stddev**2))
    return weights / weights.sum()


def _noise_of_the_sum(noise, mechanism, reach):
    """The exact pmf of the summed noise on -reach..reach, from the shares' own formulas."""
    if noise == "skellam":
        variance = dict(mechanism.parameters)["variance"]
        return special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    total = np.array([1.0])
    for _ in range(mechanism.num_shares):
        total = np.convolve(total, _discrete_gaussian(mechanism.share_stddev, reach))
    middle = len(total) // 2
    return total[middle - reach: middle + reach + 1]


def _exact_epsilon(pmf, shift, rate):
    """Of one release, by the hockey-stick divergence in both directions."""
    base = np.pad(pmf, (shift, shift))
    moved = np.roll(base, shift)
    mixed = (1 - rate) * base + rate * moved

    def delta(epsilon, p, q):
        return np.maximum(p - math.exp(epsilon) * q, 0.0).sum()

    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        worst = max(delta(middle, mixed, base), delta(middle, base, mixed))
        low, high = (middle, high) if worst > DP_DELTA else (low, middle)
    return high


def _one_dimension(noise, multiplier, rate, shares):
    sampling = Sampling("poisson", rate, "client") if rate < 1 else Sampling("all", 1.0, "client")
    chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=24, scale=40.0),
                     NOISES[noise](multiplier))
    _, spec = chain.init(Spec(dim=1, num_clients=shares, num_records=shares, denominator=1.0,
                              sampling=sampling))
    return spec


def _spend(spec):
    mechanism = spec.mechanism
    kind = {} if mechanism.kind == "gaussian" else {
        "kind": mechanism.kind, "parameters": mechanism.parameters}
    return fs.privacy.Spend(mechanism.noise_multiplier, spec.sampling_rate, "client",
                            log_ratio=mechanism.log_ratio,
                            total_variation=mechanism.total_variation, **kind)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("multiplier, rate, shares", [
    (1.0, 1.0, 3), (3.0, 1.0, 8), (1.0, 0.1, 3), (0.7, 0.5, 2)])
def test_the_claim_is_above_the_exact_epsilon_and_close_to_it(noise, multiplier, rate, shares):
    spec = _one_dimension(noise, multiplier, rate, shares)
    shift = math.floor(spec.l2_bound)
    pmf = _noise_of_the_sum(noise, spec.mechanism, reach=40 * math.ceil(spec.noise_stddev))
    assert pmf.sum() == pytest.approx(1.0, abs=1e-12)
    exact, claimed = _exact_epsilon(pmf, shift, rate), fs.privacy.compose([_spend(spec)], DP_DELTA)
    assert claimed >= exact
    # The sensitivity is not whole; Renyi accounting (Skellam) is looser for one round.
    loosest = 1.06 if noise == "discrete_gaussian" else 1.35
    assert claimed <= exact * loosest


@pytest.mark.parametrize("l2, dim, variance", [(5, 1, 100.0), (20, 400, 1000.0), (3, 9, 50.0)])
def test_skellam_s_renyi_divergence_is_below_the_theorem_s(l2, dim, variance):
    # Agarwal, Kairouz, Liu 2021: a l2^2 / (2 v) + min(((2a-1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2v)).
    # Exact for two extreme vectors of that norm: all in one value, and spread over l2^2 values.
    reach = int(25 * math.sqrt(variance))
    log_pmf = np.log(special.ive(np.abs(np.arange(-reach, reach + 1)), variance))

    def exact(shift, order, copies):
        p, q = log_pmf[shift:], log_pmf[: len(log_pmf) - shift]
        return copies * special.logsumexp(order * p - (order - 1) * q) / (order - 1)

    l1 = min(l2 * math.sqrt(dim), l2**2)
    for order in (2, 4, 16):
        bound = order * l2**2 / (2 * variance) + min(
            ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 1.5 * l1 / variance)
        shapes = [(l2, 1)] + ([(1, l2**2)] if dim >= l2**2 else [])
        for shift, copies in shapes:
            assert exact(shift, order, copies) <= bound * (1 + 1e-9)
        assert exact(*(l2, order, 1)) >= 0.85 * order * l2**2 / (2 * variance)


@pytest.mark.parametrize("share, shares, l2, dim", [(2.0, 100, 30.0, 4096), (5.0, 10, 12.0, 64)])
def test_distributed_gaussians_cost_no_more_than_kairouz_liu_steinke_s_theorem(
        share, shares, l2, dim):
    # Theorem 1: half epsilon^2-concentrated DP with epsilon the smaller of two, tau as below.
    tau = 10 * sum(math.exp(-2 * math.pi**2 * share**2 * k / (k + 1)) for k in range(1, shares))
    gaussian = l2 / (share * math.sqrt(shares))
    theirs = min(math.sqrt(gaussian**2 + tau * dim / 2), gaussian + tau * math.sqrt(dim))
    rho = theirs**2 / 2
    # Concentrated DP to (epsilon, delta), Canonne, Kamath, Steinke 2020, Proposition 12, best a.
    orders = 1 + np.geomspace(1e-3, 1e4, 100_000)
    converted = np.min(rho * orders + (np.log(1 / DP_DELTA) + (orders - 1) * np.log1p(-1 / orders)
                                       - np.log(orders)) / (orders - 1))
    ours = fs.privacy.DiscreteGaussianSum(share, shares, l2, dim)
    claimed = fs.privacy.compose([ours.spend(sampling_rate=1.0, unit="client")], DP_DELTA)
    assert claimed <= converted
    assert claimed >= 0.8 * converted
