"""The contract of every noise stage: a new one is tested by being listed in STAGES."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Sampling, SeededSource, Spec, SpecError
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.privacy.noise.float_gaussian import FloatNoiseWarning, standard_normal

CLIENTS, DIM = 5, 20_000


class Member(NamedTuple):
    """One noise stage: how to make it, by whom it may be added, and what it is accounted as."""

    make: object
    trusts: tuple[str, ...]
    kind: str
    integers: bool = True


def _float_gaussian(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FloatNoiseWarning)
        return fs.privacy.gaussian(0.9, **options)


EVERYBODY = ("distributed", "central", "local")
STAGES = {
    "discrete_gaussian": Member(
        lambda **options: fs.privacy.discrete_gaussian(0.9, **options), EVERYBODY, "gaussian"),
    "skellam": Member(lambda **options: fs.privacy.skellam(0.9, **options), EVERYBODY, "skellam"),
    "discrete_laplace": Member(
        lambda **options: fs.privacy.discrete_laplace(2.0, **options), ("central", "local"),
        "pure"),
    "gaussian": Member(_float_gaussian, EVERYBODY, "gaussian", integers=False),
}
CASES = [(name, trust) for name, member in STAGES.items() for trust in member.trusts]
#: Of integers and of floats, for what is compiled three times, for three seconds each; the trusts
#: differ in the deviation alone, and tests of the samplers vmap each of them.
COMPILED_THRICE = [("discrete_gaussian", "distributed"), ("gaussian", "distributed")]


class Made:
    """A chain that ends with the noise, over clients that send zeros."""

    def __init__(self, name, trust, *, dim=DIM, unit="client", **options):
        member = STAGES[name]
        # A small norm for what follows the L1 norm of many values.
        stages = [fs.privacy.clip(1.0, unit=unit)]
        if member.integers:
            scale = 4.0 if name == "discrete_laplace" else 64.0
            stages.append(fs.privacy.quantise(bits=31, scale=scale))
        self.chain = fs.chain(*stages, member.make(trust=trust, **options))
        self.states, self.spec = self.chain.init(_spec(dim, unit))
        source = SeededSource(7)
        self.keys = device_keys([source.key("x", client=str(c)) for c in range(CLIENTS)])
        self.opening_key = device_keys([source.key("opening")])[0]
        self.values = np.zeros((CLIENTS, dim), np.float32)
        self.release = self.chain.release and jax.jit(self.chain.release)

    @cached_property
    def elements(self):
        return np.asarray(jax.jit(self.chain.encode)(self.states, self.keys, self.values)[0])

    def released(self, key=None):
        total = self.chain.reduce(self.elements, np.ones(CLIENTS, bool))
        if self.release is not None:
            total = self.release(self.states, self.opening_key if key is None else key, total)
        return self.signed(total)

    def signed(self, total):
        if self.spec.modulus is None:
            return np.asarray(total, np.float64)
        half = self.spec.modulus // 2
        return (np.asarray(total).astype(np.int64) + half) % self.spec.modulus - half


def _spec(dim=DIM, unit="client", **changes):
    return Spec(**{"dim": dim, "num_clients": CLIENTS, "num_records": 50, "denominator": 5.0,
                   "sampling": Sampling("all", 1.0, unit), "client_name": "bank",
                   "unit_name": "customer", **changes})


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def made(request):
    return Made(*request.param)


def test_the_sum_has_the_stated_noise_and_so_has_each_message(made):
    total, trust = made.released(), made.spec.mechanism.trust
    # A sample variance of 20,000 draws of kurtosis 6 at the most (a Laplace's) has a standard
    # deviation of 1.6%: beyond 8.5% lie fewer than 1 in 5 million. The same for means beyond 5.3.
    assert total.var() == pytest.approx(made.spec.noise_stddev**2, rel=0.085)
    assert abs(total.mean()) < 5.3 * made.spec.noise_stddev / math.sqrt(DIM)
    assert np.abs(total).max() <= made.spec.noise_tail()
    assert made.spec.stddev_in_sum(CLIENTS) == pytest.approx(made.spec.noise_stddev)
    single = made.signed(made.elements[0])
    if trust == "central":
        assert not single.any()
    else:
        assert single.var() == pytest.approx(made.spec.mechanism.share_stddev**2, rel=0.085)
        correlation = np.corrcoef(np.stack([made.signed(row) for row in made.elements]))
        assert np.abs(correlation[np.triu_indices(CLIENTS, 1)]).max() < 5.3 / math.sqrt(DIM)


def test_the_noise_is_symmetric_and_its_values_are_independent(made):
    total = made.released()
    assert abs(np.mean(np.sign(total))) < 5.3 / math.sqrt(DIM)
    for lag in (1, 2, 64, 256, 4096):
        products = total[:-lag] * total[lag:]
        assert abs(products.mean()) < 5.3 * products.std() / math.sqrt(len(products))


@pytest.mark.parametrize("name, trust", [
    pytest.param(*case, id="-".join(case),
                 marks=[] if case in COMPILED_THRICE else [pytest.mark.slow])
    for case in CASES])
def test_one_by_one_vmapped_and_scanned_are_the_same(name, trust):
    small = Made(name, trust, dim=300)

    def one(key, value):
        return small.chain.contribution(small.states, key, value)[0]

    alone = np.stack([jax.jit(one)(key, value)
                      for key, value in zip(small.keys, small.values, strict=True)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(small.keys, small.values), alone)
    np.testing.assert_array_equal(small.elements, alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, member in STAGES.items() if member.integers])
def test_operation_by_operation_the_noise_is_the_same(name):
    small = Made(name, "local", dim=300)
    alone, _ = small.chain.contribution(small.states, small.keys[0], small.values[0])
    np.testing.assert_array_equal(alone, small.elements[0])


def test_another_key_is_other_noise(made):
    if made.spec.mechanism.trust == "central":
        first, second = map(made.released, made.keys[:2])
    else:
        first, second = made.elements[:2]
    assert np.mean(first == second) < 0.5


def test_the_spec_says_what_the_accountant_needs(made):
    spec, mechanism = made.spec, made.spec.mechanism
    name, trust = made.chain.stages[-1].name, mechanism.trust
    member = STAGES[name]
    assert mechanism.kind == member.kind
    assert list(mechanism.parameters) == sorted(mechanism.parameters)
    assert (mechanism.noise_multiplier is not None) == (member.kind == "gaussian")
    assert mechanism.arithmetic == ("integer" if member.integers else "float")
    assert spec.adjacency == ("replace_one" if trust == "local" else "add_remove")
    assert mechanism.num_shares == (CLIENTS if trust == "distributed" else 1)
    assert spec.min_clients == (CLIENTS if trust == "distributed" else 1)
    assert spec.readable
    kind = {} if member.kind == "gaussian" else {
        "kind": mechanism.kind, "parameters": mechanism.parameters}
    spend = fs.privacy.Spend(
        mechanism.noise_multiplier, spec.sampling_rate, "bank", adjacency=spec.adjacency,
        log_ratio=mechanism.log_ratio, total_variation=mechanism.total_variation, **kind)
    epsilon = fs.privacy.compose([spend], 1e-5)
    # All of these are about epsilon 2 to 12 a round; a sensitivity or share that was forgotten
    # moves them by a factor of two or more.
    assert 1.9 < epsilon < 13.0


def test_the_text_names_the_trust_and_the_unit(made):
    text, trust = str(made.spec.threat_model()), made.spec.mechanism.trust
    assert "differential privacy for each bank" in text
    words = {"distributed": ["noise share", "adjacency: one bank added or removed"],
             "central": ["central trust", "adds the noise before anybody else sees it",
                         "not against whoever opens the sum"],
             "local": ["one bank's value replaced by any other", "reads the banks' messages"]}
    for found in words[trust]:
        assert found in text, (found, text)
    assert ("floating point" in text) == (made.spec.mechanism.arithmetic == "float")
    records = Made(made.chain.stages[-1].name, trust, dim=64, unit="record") if made.spec.modulus \
        else None
    if records is not None:
        assert "differential privacy for each customer (adjacency: one customer added or removed)" \
            in str(records.spec.threat_model())


@pytest.mark.parametrize("name", STAGES)
def test_refusals_before_anything_is_traced(name):
    member = STAGES[name]
    stage = member.make(trust="central")
    wrong = "float32" if member.integers else "int32"
    clipped = _spec().replace(unit="client", l2_bound=1.0, linf_bound=1.0, modulus=1 << 31)
    with pytest.raises(SpecError, match="needs (integer|float) values, got") as refused:
        stage.init(clipped.replace(dtype=wrong))
    assert refused.value.fix
    right = clipped.replace(dtype="int32" if member.integers else "float32", l2_bound=64.0)
    if not member.integers:
        right = right.replace(modulus=None)
    _, noised = stage.init(right)
    with pytest.raises(SpecError, match="Keep one noise stage"):
        stage.init(noised)
    if member.integers:
        with pytest.raises(SpecError, match="below the ring's 256"):
            stage.init(right.replace(modulus=256))
        with pytest.raises(SpecError, match="needs integer values, got ciphertext"):
            stage.init(right.replace(dtype="ciphertext"))
    with pytest.raises(SpecError, match="trust among"):
        member.make(trust="everybody")
    if "distributed" in member.trusts:
        with pytest.raises(SpecError, match="Leave missing_shares out"):
            member.make(trust="local", missing_shares=1)
        with pytest.raises(SpecError, match="missing_shares of 0 or more"):
            member.make(missing_shares=-1)
        with pytest.raises(SpecError, match="at least one share left"):
            member.make(missing_shares=CLIENTS).init(right)
    else:
        with pytest.raises(SpecError, match="for distributed noise"):
            member.make(trust="distributed")


@pytest.mark.parametrize("name", [n for n, m in STAGES.items() if "distributed" in m.trusts])
def test_the_noise_left_when_clients_drop_out_is_what_was_promised(name):
    whole = Made(name, "distributed", dim=300)
    short = Made(name, "distributed", dim=300, missing_shares=2)
    assert short.spec.min_clients == short.spec.mechanism.num_shares == CLIENTS - 2
    counted = whole.spec.stddev_in_sum(CLIENTS)
    assert short.spec.stddev_in_sum(CLIENTS - 2) == pytest.approx(counted, rel=1e-6)
    assert short.spec.stddev_in_sum(CLIENTS) > counted
    assert short.spec.stddev_in_sum(CLIENTS - 3) < counted


@pytest.mark.parametrize("make, words", [
    (lambda: fs.privacy.discrete_gaussian(0.0), "a positive noise_multiplier"),
    (lambda: fs.privacy.discrete_gaussian(math.nan), "a positive noise_multiplier"),
    (lambda: fs.privacy.skellam(-1.0), "a positive noise_multiplier"),
    (lambda: fs.privacy.discrete_laplace(0.0), "an epsilon from"),
    (lambda: fs.privacy.randomised_response(0.0), "an epsilon from"),
    (lambda: fs.privacy.randomised_response(math.inf), "an epsilon from"),
])
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(SpecError, match=words):
        make()


def test_float_noise_is_only_had_with_a_warning_that_names_the_attack():
    with pytest.warns(FloatNoiseWarning, match="Mironov 2012"):
        fs.privacy.gaussian(1.0)
    with pytest.warns(FloatNoiseWarning), pytest.raises(SpecError, match="Put clip"):
        fs.privacy.gaussian(1.0).init(_spec())


def test_float_gaussians_are_gaussian():
    words = np.random.default_rng(1).integers(0, 1 << 32, (2, 400_000), dtype=np.uint32)
    found = np.asarray(standard_normal(words), np.float64)
    from scipy import stats

    assert stats.kstest(found, "norm").pvalue > 1e-7  # the false-alarm rate


# -- randomised response ---------------------------------------------------------------------------


def _votes(epsilon, choices, votes):
    chain = fs.chain(fs.privacy.randomised_response(epsilon))
    states, spec = chain.init(Spec(dim=choices, num_clients=len(votes), num_records=len(votes),
                                   denominator=1.0))
    source = SeededSource(3)
    keys = device_keys([source.key("x", client=str(c)) for c in range(len(votes))])
    values = np.eye(choices, dtype=np.float32)[votes]
    elements, _ = jax.jit(chain.encode)(states, keys, values)
    return chain, states, spec, np.asarray(elements)


def test_each_vote_is_one_choice_kept_as_often_as_stated():
    votes = np.repeat([0, 2], 4000)
    chain, states, spec, sent = _votes(1.0, 4, votes)
    assert (sent.sum(axis=1) == 1).all()
    kept = math.e / (math.e + 3)
    for vote in (0, 2):
        frequencies = sent[votes == vote].mean(axis=0)
        expected = np.where(np.arange(4) == vote, kept, (1 - kept) / 3)
        # Hoeffding: beyond 0.045 of 4,000 draws lie fewer than 2 exp(-16) = 2.3e-7, eight times.
        np.testing.assert_allclose(frequencies, expected, atol=0.045)
    counts, _, _ = chain.decode(states, chain.reduce(sent, np.ones(len(votes), bool)))
    assert np.abs(np.asarray(counts) - [4000, 0, 4000, 0]).max() <= spec.noise_tail()
    assert float(counts.sum()) == pytest.approx(8000, rel=1e-4)


@pytest.mark.parametrize("choices", [2, 3, 7, 1000, 65536])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_the_stated_epsilon_is_that_of_the_integers_compared(choices, epsilon):
    stage = fs.privacy.randomised_response(epsilon)
    state, spec = stage.init(Spec(dim=choices, num_clients=9, num_records=9, denominator=1.0))
    stated, lies = dict(spec.mechanism.parameters)["epsilon"], state["response"].value.lies
    least = lies * (2**64 // (choices - 1))  # of 2^128
    exact = math.log((2**64 - lies) * 2**64) - math.log(least)
    assert exact <= stated * (1 + 1e-12) <= epsilon * (1 + 1e-9)
    assert stated >= epsilon * (1 - 1e-9)


def test_votes_refuse_what_is_no_vote():
    spec = Spec(dim=3, num_clients=9, num_records=9, denominator=1.0)
    stage = fs.privacy.randomised_response(1.0)
    with pytest.raises(SpecError, match="2 to 65536 choices"):
        stage.init(spec.replace(dim=1))
    with pytest.raises(SpecError, match="Leave clip"):
        fs.chain(fs.privacy.clip(1.0), stage).init(spec)
    _, spec = stage.init(spec)
    text = str(spec.threat_model())
    assert "epsilon 1 a round for each message" in text and "replaced by any other" in text
