"""The contract of every clipping stage: a new one is tested by being listed in STAGES."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.core import SeededSource, Spec, SpecError, Stream
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.privacy.clipping.norms import scaled_down

HUGE = 3.4e38


class TwoLayers:
    """A model of two layers, 40 and 24 values."""

    def init(self, key):
        return {"first": {"kernel": jnp.zeros((9, 4)), "bias": jnp.zeros(4)},
                "second": {"kernel": jnp.zeros((4, 6))}}


DIM = 64
STAGES = {
    "clip": lambda unit: fs.privacy.clip(1.5, unit=unit),
    "clip_layers, total": lambda unit: fs.privacy.clip_layers(TwoLayers(), total=1.5, unit=unit),
    "clip_layers, bounds": lambda unit: fs.privacy.clip_layers(
        TwoLayers(), bounds={"first": 0.4, "second": 2.0}, unit=unit),
    "adaptive_clip": lambda unit: fs.privacy.adaptive_clip(1.5, 0.5, unit=unit),
    "rotate, clip": lambda unit: fs.privacy.clip(1.5, unit=unit),
    "clip, rotate": lambda unit: fs.privacy.clip(1.5, unit=unit),
    "adaptive_clip, rotate": lambda unit: fs.privacy.adaptive_clip(1.5, 0.5, unit=unit),
}

#: What is compiled three times: norms of the whole, of layers, and with a state and a rotation.
THRICE = ("clip", "clip_layers, bounds", "adaptive_clip, rotate")


class Made:
    """A stage in a chain with quantise, and the client's half compiled once."""

    def __init__(self, name, unit="client"):
        self.stage = STAGES[name](unit)
        stages = [self.stage]
        if "rotate" in name:
            stages.insert(0 if name.startswith("rotate") else 1, fs.privacy.rotate())
        self.chain = fs.chain(*stages, fs.privacy.quantise(bits=24))
        self.states, self.spec = self.chain.init(
            Spec(dim=DIM, num_clients=8, num_records=8, denominator=8.0))
        self.key = device_keys([SeededSource(2).key("x")])[0]
        self.encode = jax.jit(
            lambda states, value: self.chain.contribution(states, self.key, value)[0])

    def integers(self, vector):
        found = np.asarray(self.encode(self.states, np.asarray(vector, np.float32)))
        half = self.spec.modulus // 2
        return (found.astype(np.int64) + half) % self.spec.modulus - half


@pytest.fixture(scope="module", params=STAGES)
def made(request):
    return Made(request.param)


def _vector(length, places, signs):
    direction = np.zeros(DIM)
    direction[: places] = 1.0
    direction *= np.where(np.arange(DIM) % 7 < signs, -1.0, 1.0)
    with np.errstate(over="ignore"):
        scaled = direction / np.linalg.norm(direction) * length
    return np.clip(scaled, -HUGE, HUGE).astype(np.float32)


lengths = st.one_of(
    st.floats(1.4, 1.6), st.floats(0.0, 4.0), st.sampled_from([1.5, np.nextafter(1.5, 2)]),
    st.floats(1e-45, 1e-30), st.floats(1e18, 1e20), st.floats(1e37, 1e39), st.just(0.0))


@settings(max_examples=40, deadline=None)
@given(length=lengths, places=st.integers(1, DIM), signs=st.integers(0, 7))
def test_no_vector_is_longer_than_the_accounted_norm_on_the_integers(made, length, places, signs):
    integers = made.integers(_vector(length, places, signs))
    assert (integers**2).sum() <= made.spec.l2_bound**2


@pytest.mark.parametrize("length", [1.5 * (1 + 2.0**-23), 1e19, 3e38])
def test_long_vectors_keep_their_direction(made, length):
    vector = _vector(length, DIM, 3)
    states, integers = made.states, made.integers(vector)
    total = jnp.asarray(integers % made.spec.modulus, jnp.uint32)
    decoded = 8.0 * np.asarray(made.chain.decode(states, total)[0], np.float64)
    exact = vector.astype(np.float64)
    cosine = decoded @ exact / np.linalg.norm(decoded) / np.linalg.norm(exact)
    assert cosine > (0.5 if "clip_layers" in made.stage.name else 0.9999)
    assert np.linalg.norm(decoded) > 0.4


def test_short_vectors_pass_unchanged(made):
    vector = _vector(0.3, DIM, 3)
    total = jnp.asarray(made.integers(vector) % made.spec.modulus, jnp.uint32)
    decoded = 8.0 * np.asarray(made.chain.decode(made.states, total)[0], np.float64)
    assert np.abs(decoded - vector).max() <= 8.0 / made.spec.scale


@pytest.mark.parametrize("made", [
    pytest.param(name, marks=[] if name in THRICE else [pytest.mark.slow]) for name in STAGES],
    indirect=True)
def test_one_by_one_vmapped_and_scanned_are_the_same(made):
    vectors = np.stack([_vector(length, DIM - place, place)
                        for place, length in enumerate([0.1, 1.5, 40.0, 1e25, 0.0])])
    keys = np.stack([made.key] * len(vectors))

    def one(vector, key):
        return made.chain.contribution(made.states, key, vector)[0]

    alone = np.stack([made.encode(made.states, vector) for vector in vectors])
    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(vectors, keys), alone)
    scanned, _ = jax.jit(made.chain.encode)(made.states, keys, vectors)
    np.testing.assert_array_equal(scanned, alone)


@pytest.mark.parametrize("name", STAGES)
def test_refusals_before_anything_is_traced(name):
    spec = Spec(dim=DIM, num_clients=8, num_records=8, denominator=8.0)
    stage = STAGES[name]("client")
    with pytest.raises(SpecError, match="Put .* before quantise"):
        stage.init(spec.replace(dtype="int32"))
    _, clipped = stage.init(spec)
    with pytest.raises(SpecError, match="Keep one clipping stage"):
        STAGES["clip"]("client").init(clipped)
    with pytest.raises(SpecError, match="unit='client' or unit='record'"):
        STAGES[name]("patient")
    with pytest.raises(SpecError, match="rounded to integers"):
        fs.chain(STAGES[name]("record"))
    assert clipped.unit == "client"
    assert clipped.l2_bound > 0 and clipped.linf_bound <= clipped.l2_bound * (1 + 1e-12)


def test_records_are_clipped_one_by_one(made):
    name = next(key for key in STAGES if isinstance(made, Made) and
                STAGES[key]("client").name == made.stage.name)
    record = Made(name, unit="record")
    assert record.chain.record_width(DIM) == record.spec.dim
    vectors = np.stack([_vector(length, DIM, 2) for length in (0.5, 1.5, 1e22)])
    slots = np.arange(3, dtype=np.uint32)
    rows = jax.jit(jax.vmap(record.chain.encode_record, (None, None, 0, 0)))(
        record.states, record.key, slots, vectors)
    assert rows.shape == (3, record.spec.dim)
    norms = (np.asarray(rows).astype(np.int64) ** 2).sum(axis=1)
    assert norms.max() <= record.spec.l2_bound**2


@pytest.mark.parametrize("make, words", [
    (lambda: fs.privacy.clip(True), "l2_bound from"),
    (lambda: fs.privacy.clip_layers(TwoLayers()), "either total or bounds"),
    (lambda: fs.privacy.clip_layers(TwoLayers(), total=1.0, bounds={}), "either total or bounds"),
    (lambda: fs.privacy.clip_layers(TwoLayers(), bounds={"first": 1.0}), "a norm for each layer"),
    (lambda: fs.privacy.clip_layers(TwoLayers(), bounds=[1.0, 1.0]), "a norm for each layer"),
    (lambda: fs.privacy.clip_layers(TwoLayers(), bounds={"first": 1.0, "second": math.inf}),
     "the norm of second from"),
    (lambda: fs.privacy.adaptive_clip(0.0), "initial from"),
    (lambda: fs.privacy.adaptive_clip(1.0, 1.5), "target_quantile from 0 to 1"),
    (lambda: fs.privacy.adaptive_clip(1.0, learning_rate=math.nan), "learning_rate from"),
    (lambda: fs.privacy.adaptive_clip(1.0, quantile_share=1.0), "quantile_share from"),
    (lambda: fs.privacy.adaptive_clip(1.0, expected_units=0), "expected_units from"),
])
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(SpecError, match=words):
        make()


def test_layers_are_refused_where_they_are_mixed_or_missing():
    spec = Spec(dim=DIM, num_clients=8, num_records=8, denominator=8.0)
    stage = fs.privacy.clip_layers(TwoLayers(), total=1.0)
    with pytest.raises(SpecError, match=r"Put it before rotate"):
        fs.chain(fs.privacy.rotate(), stage).init(spec)
    with pytest.raises(SpecError, match="64 parameters, got vectors of 65"):
        stage.init(spec.replace(dim=65))


def test_layers_are_each_within_their_own_norm():
    stage = STAGES["clip_layers, bounds"]("client")
    state, spec = stage.init(Spec(dim=DIM, num_clients=8, num_records=8, denominator=8.0))
    vector = np.linspace(-3, 5, DIM).astype(np.float32)
    found = np.asarray(stage.client(state, None, vector), np.float64)
    assert np.linalg.norm(found[:40]) == pytest.approx(0.4, rel=1e-5)
    assert np.linalg.norm(found[40:]) == pytest.approx(2.0, rel=1e-5)
    assert spec.l2_bound == math.hypot(0.4, 2.0)


@settings(max_examples=60, deadline=None)
@given(length=lengths, bound=st.sampled_from([1e-12, 1e-3, 1.5, 1e12]))
def test_float_norms_are_never_above_the_bound(length, bound):
    vector = _vector(length, DIM, 3)
    found = np.asarray(scaled_down(vector, bound), np.float64)
    assert np.linalg.norm(found) <= bound
    exact = np.linalg.norm(vector.astype(np.float64))
    if exact > 1e-30:
        assert np.linalg.norm(found) >= min(exact, bound) * (1 - 1e-5)


@pytest.mark.parametrize("dim", [1, 10_007, 524_287])
def test_awkward_numbers_of_values_are_clipped_and_not_lost(dim):
    # Primes: there is no way to add them up in equal parts.
    vector = np.random.default_rng(dim).normal(size=dim).astype(np.float32)
    found = np.asarray(scaled_down(vector * 1e20, 2.0), np.float64)
    assert 2.0 * (1 - 2e-4) < np.linalg.norm(found) <= 2.0


# -- what adaptive clipping learns -----------------------------------------------------------------


def test_the_adaptive_norm_finds_the_quantile():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(1.0, 0.5, 400)
    directions = rng.normal(size=(400, DIM))
    vectors = norms[:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    chain = fs.chain(fs.privacy.adaptive_clip(0.1, 0.8), fs.privacy.quantise(bits=24))
    states, spec = chain.init(Spec(dim=DIM, num_clients=400, num_records=400, denominator=400.0))
    keys = device_keys([SeededSource(1).key("x", client=str(c)) for c in range(400)])

    @jax.jit
    def step(carried):
        now = chain.with_carried(states, carried)
        elements, _ = chain.encode(now, keys, vectors.astype(np.float32))
        _, after, metrics = chain.decode(now, chain.reduce(elements, jnp.ones(400, bool)))
        return chain.carried(after), metrics

    carried, found = chain.carried(states), []
    for _ in range(60):
        carried, metrics = step(carried)
        found.append(float(metrics["adaptive_clip/l2_bound"]))
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(np.quantile(norms, 0.8), rel=0.05)
    assert float(metrics["adaptive_clip/fraction_within"]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("multiplier, share", [(1.0, 0.01), (0.5, 0.2), (3.0, 0.5)])
def test_the_noise_is_split_as_in_algorithm_1(multiplier, share):
    chain = fs.chain(fs.privacy.adaptive_clip(2.0, quantile_share=share),
                     fs.privacy.quantise(bits=28, scale=4096.0),
                     fs.privacy.discrete_gaussian(multiplier, trust="central"))
    _, spec = chain.init(Spec(dim=DIM, num_clients=100, num_records=100, denominator=100.0))
    weight = 2 * math.sqrt(share / (1 - share))
    update = spec.noise_stddev / spec.scale                 # in units of C: z_Delta
    count = spec.noise_stddev / spec.scale / weight         # sigma_b
    together = (update**-2 + (2 * count) ** -2) ** -0.5
    # Rounding to integers widens the sensitivity a little, and the noise with it.
    assert multiplier <= together <= multiplier * 1.03
    assert count == pytest.approx(multiplier / (2 * math.sqrt(share)), rel=0.03)


def test_an_absent_or_silent_client_moves_neither_the_sum_nor_the_count():
    stage = fs.privacy.adaptive_clip(1.0)
    state, _ = stage.init(Spec(dim=DIM, num_clients=8, num_records=8, denominator=8.0))
    silent = np.zeros(DIM, np.float32)
    assert not np.any(stage.client(state, Stream(np.zeros(8, np.uint32), 0), silent))
