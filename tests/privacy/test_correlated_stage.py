"""The stage: what the accountant is told, and the noise that is really added."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Sampling, Spec, SpecError, source
from fedjax_secure.core.opening import Releases
from fedjax_secure.privacy import banded, clip, correlated_noise, quantise, tree
from fedjax_secure.privacy.correlated.separation import Schema

DIM = 20_000
PROMISE = Sampling("public", 1.0, "client", separation=4)


def planned(strategy, *, noise_multiplier=1.0, sampling=PROMISE, scale=64.0, unit="client",
            dim=DIM):
    chain = fs.chain(clip(1.0, unit=unit), quantise(bits=30, scale=scale),
                     correlated_noise(noise_multiplier, strategy))
    states, spec = chain.init(Spec(dim=dim, num_clients=8, num_records=80, denominator=8.0,
                                   sampling=sampling))
    return chain, states, spec


def noise_of(chain, states, spec, rounds, seed=0):
    """What a whole run releases of sums that are zero: [rounds, dim]."""
    releases = Releases(jax.jit(lambda *given: chain.release(states, *given)),
                        lambda dim: chain.memory(states, dim), source(seed))
    half = spec.modulus // 2
    found = [releases(t, np.zeros(spec.dim, np.uint32)) for t in range(1, rounds + 1)]
    return (np.array(found, np.int64) + half) % spec.modulus - half


@pytest.mark.parametrize("strategy", [tree(rounds=16), banded(rounds=16, bands=4)], ids=repr)
def test_noise_has_its_planned_size_in_every_running_total(strategy):
    """Mean squares over 20,000 values; six standard deviations of them: false alarms below 1e-6.

    Two-sided normal tail beyond 6.3 is 3e-10, times 32 totals and rounds.
    """
    chain, states, spec = planned(strategy)
    noise = noise_of(chain, states, spec, 16)
    schema = Schema.of(16, 4, None)
    sigma = spec.l2_bound * math.sqrt(int(strategy.squared_sensitivity(schema)[-1]))
    wide = math.sqrt(2 / DIM) * 6.3
    for total, variance in zip(np.cumsum(noise, 0), strategy.prefix_variance, strict=True):
        assert np.mean(total**2.0) / (sigma**2 * variance) == pytest.approx(1.0, abs=wide + 1e-3)
    largest = max(np.mean(one**2.0) for one in noise)
    assert largest == pytest.approx(spec.noise_stddev**2, rel=wide + 1e-3)


def test_undoing_the_matrix_gives_independent_discrete_gaussians():
    """w = C u is what protects: of 20,000 x 16 values, each lag's correlation is within 6.3/sqrt(n)
    of none (false alarms below 1e-8), up to the rounding to integers."""
    strategy = banded(rounds=16, bands=4, grid_bits=3)
    chain, states, spec = planned(strategy)
    noise = noise_of(chain, states, spec, 16)
    band = strategy.squared_sensitivity.keywords["band"]
    rows = sum(band[:, j:j + 1] * np.pad(noise, ((j, 0), (0, 0)))[:16] for j in range(4))
    rows = rows / np.sqrt(np.mean(rows.astype(float) ** 2))
    for lag in range(1, 5):
        assert abs(np.mean(rows[lag:] * rows[:-lag])) < 6.3 / math.sqrt(DIM * (16 - lag)) + 1e-3
    assert np.mean(rows**4) == pytest.approx(3.0, abs=6.3 * math.sqrt(96 / (16 * DIM)))
    # Published rounds themselves take back what earlier ones added.
    assert np.mean(noise[1:] * noise[:-1]) < -0.1 * np.mean(noise**2.0)


def test_rounds_that_are_run_again_have_the_same_noise_and_others_have_others():
    chain, states, spec = planned(tree(rounds=6), dim=50)
    first, again = (noise_of(chain, states, spec, 6, seed=1) for _ in range(2))
    assert np.array_equal(first, again)
    other = noise_of(chain, states, spec, 6, seed=2)
    assert not np.any(np.all(first == other, axis=1))
    assert len(np.unique(first, axis=0)) == 6


@pytest.mark.parametrize("strategy, separation, most", [
    (tree(rounds=32), 1, 3), (tree(rounds=32, restart_every=8), 8, None),
    (banded(rounds=32, bands=8), 8, None), (banded(rounds=32, bands=1), 8, None)], ids=repr)
def test_shares_add_up_to_one_gaussian_of_the_multiplier(strategy, separation, most):
    sampling = Sampling("public", 1.0, "client", separation, most)
    _, _, spec = planned(strategy, sampling=sampling, noise_multiplier=2.0)
    mechanism = spec.mechanism
    assert mechanism.noise_multiplier == pytest.approx(2.0, rel=1e-9)
    assert (mechanism.trust, mechanism.kind) == ("central", "gaussian")
    squares = strategy.squared_sensitivity(Schema.of(32, separation, most))
    charged = np.cumsum(mechanism.schedule)
    assert np.all(charged >= squares / squares[-1]) and np.all(np.array(mechanism.schedule) > 0)
    np.testing.assert_allclose(charged, squares / squares[-1], atol=1e-7)
    spends = [fs.privacy.Spend(2.0 / math.sqrt(share), 1.0, "client")
              for share in mechanism.schedule]
    whole = fs.privacy.epsilon(noise_multiplier=2.0, sampling_rate=1, rounds=1, dp_delta=1e-6)
    assert whole <= fs.privacy.compose(spends, 1e-6) <= whole * (1 + 1e-5)


def test_slack_is_counted_for_every_row():
    """A tree closes fewer than two nodes a round on average, at any time; a band one row."""
    _, _, one = planned(banded(rounds=8, bands=4))
    _, _, two = planned(tree(rounds=8))
    assert 0 < one.mechanism.total_variation < 1e-20
    assert two.mechanism.total_variation == pytest.approx(2 * one.mechanism.total_variation, rel=.5)
    assert 0 < one.mechanism.log_ratio < 1e-8


def test_records_are_as_far_apart_as_their_clients():
    _, _, spec = planned(banded(rounds=8, bands=4), unit="record", scale=8.0)
    assert spec.unit == "record" and spec.mechanism.schedule


@pytest.mark.parametrize("make, said", [
    (lambda: correlated_noise(0.0, tree(rounds=3)), "noise_multiplier"),
    (lambda: correlated_noise(1.0, "tree"), "a strategy"),
    (lambda: planned(banded(rounds=8, bands=5)), "at least 5 apart"),
    (lambda: planned(banded(rounds=8, bands=4), sampling=Sampling("poisson", 0.1, "client")),
     "secret coins"),
    (lambda: planned(banded(rounds=8, bands=4, grid_bits=14), scale=4096.0), "stddev up to"),
    (lambda: planned(tree(rounds=8), scale=40_000.0, noise_multiplier=60.0), "ring|stddev"),
    (lambda: fs.chain(clip(1.0), correlated_noise(1.0, tree(rounds=3))).init(
        Spec(dim=2, num_clients=2, num_records=2, denominator=2.0)), "quantise"),
    (lambda: fs.chain(clip(1.0), quantise(bits=20), correlated_noise(1.0, tree(rounds=3)),
                      fs.privacy.discrete_gaussian(1.0)), "last that touches it"),
    (lambda: Sampling("public", 1.0, "client", separation=0), "separation"),
])
def test_what_cannot_be_kept_is_refused_in_words(make, said):
    with pytest.raises(SpecError, match=said):
        make()


def test_a_release_without_its_memory_is_refused():
    chain, states, _ = planned(tree(rounds=3), dim=4)
    with pytest.raises(SpecError, match="remembers of earlier rounds"):
        chain.release(states, np.zeros(8, np.uint32), np.zeros(4, np.uint32))
