"""The contract of every chain of stages: a new stage is tested by being listed in CHAINS."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import (
    InvalidSum,
    OpeningError,
    Sampling,
    SeededSource,
    Setting,
    Signer,
    Spec,
    SpecError,
    Submission,
    UpdateError,
)
from fedjax_secure.core.finite import require_finite
from fedjax_secure.core.randomness import device_keys

CLIENTS = ("a", "b", "c", "d")
DIM = 21
RUN = bytes(range(16))
MODEL = bytes(32)


def _clip(unit):
    return fs.privacy.clip(1.0, unit=unit)


def _chain(unit, *, noise=False, seal=None):
    stages = [_clip(unit), fs.privacy.quantise(bits=24)]
    if noise:
        stages.append(fs.privacy.discrete_gaussian(0.7, missing_shares=1))
    if seal is not None:
        stages.append(fs.he.encrypt(seal()))
    return fs.chain(*stages)


CHAINS = {
    "mean": lambda: fs.chain(),
    "clip": lambda: fs.chain(_clip("client")),
    "client": lambda: _chain("client"),
    "client, noise": lambda: _chain("client", noise=True),
    "client, noise, public key": lambda: _chain("client", noise=True, seal=fs.he.public_key),
    "client, rotated, Skellam, public key": lambda: fs.chain(
        fs.privacy.rotate(), _clip("client"), fs.privacy.quantise(bits=24),
        fs.privacy.skellam(0.7, missing_shares=1), fs.he.encrypt(fs.he.public_key())),
    "client, adaptive": lambda: fs.chain(
        fs.privacy.adaptive_clip(1.0), fs.privacy.quantise(bits=24)),
    "record": lambda: _chain("record"),
    "record, noise": lambda: _chain("record", noise=True),
    "record, public key": lambda: _chain("record", seal=fs.he.public_key),
    "record, noise, public key": lambda: _chain("record", noise=True, seal=fs.he.public_key),
}


class Round:
    """One round of a chain over random values, without a model."""

    def __init__(self, aggregation, *, folder=None, seed=3, records=30, unit=None):
        self.aggregation, self.source = aggregation, SeededSource(seed)
        unit = "record" if aggregation.num_record_stages else "client"
        self.spec = Spec(dim=DIM, num_clients=len(CLIENTS), num_records=records, denominator=7.5,
                         sampling=Sampling("all", 1.0, unit))
        states, self.spec = aggregation.init(self.spec)
        self.signers = {name: Signer(self.source.key("signing", client=name)) for name in CLIENTS}
        self.setting = Setting(
            run=RUN, roster={name: s.public_key for name, s in self.signers.items()},
            min_clients=self.spec.min_clients, source=self.source, folder=folder)
        self.states, self.opener = aggregation.setup(states, self.spec, self.setting)
        self.keys = device_keys([self.source.key("client", round=1, client=c) for c in CLIENTS])
        rng = np.random.default_rng(seed)
        if unit == "record":
            owners = rng.integers(0, len(CLIENTS), records)
            self.vectors = rng.normal(0, 0.5, (records, DIM)).astype(np.float32)
            self.vectors[0] *= 0.0
            self.vectors[1] *= 1e4
            encoded = jax.jit(jax.vmap(aggregation.encode_record, (None, 0, 0, 0)))(
                self.states, self.keys[owners], np.arange(records, dtype=np.uint32), self.vectors)
            self.encoded = np.asarray(encoded)
            self.values = np.stack([self.encoded[owners == c].sum(0, dtype=np.int32)
                                    for c in range(len(CLIENTS))])
        else:
            self.vectors = rng.normal(0, 0.5, (len(CLIENTS), DIM)).astype(np.float32)
            self.values = self.vectors
        self.elements, self.finite = jax.jit(aggregation.encode)(self.states, self.keys,
                                                                 self.values)

    def expected_mean(self):
        exact = self.vectors.astype(np.float64)
        if self.spec.unit is not None:
            norms = np.linalg.norm(exact, axis=1, keepdims=True)
            exact = exact * np.minimum(1.0, 1.0 / np.maximum(norms, 1e-30))
        return exact.sum(axis=0) / self.spec.denominator

    def total(self, alive=None):
        alive = np.ones(len(CLIENTS), bool) if alive is None else alive
        return self.aggregation.reduce(self.elements, jnp.asarray(alive))

    def submissions(self, **changes):
        payloads = self.aggregation.seal(self.states, self.keys, self.elements)
        wire = self.aggregation.to_wire(self.states, payloads, self.setting)
        fields = {"run": RUN, "round": 1, "model_digest": MODEL, "key_id": self.opener.key_id}
        return [Submission(client=name, payload=payload, **{**fields, **changes})
                .signed(self.signers[name])
                for name, payload in zip(CLIENTS, wire, strict=True)]


#: Their stages are in a longer chain of the list too.
WITHIN_OTHERS = {"client, noise", "record, public key"}


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=[pytest.mark.slow] if name in WITHIN_OTHERS else [])
    for name in CHAINS])
def round_(request):
    made = Round(CHAINS[request.param]())
    yield made
    made.opener.close()


def test_decoded_sum_is_the_clipped_sum_over_the_public_constant(round_):
    mean, _, _ = round_.aggregation.decode(round_.states, round_.total())
    error = np.abs(np.asarray(mean, np.float64) - round_.expected_mean()).max()
    # Where nothing is clipped there is no bound to declare: float32's own accuracy then.
    assert error <= min(round_.spec.error_bound(), 1.0 if round_.spec.unit else 1e-6)


def test_the_bound_says_something(round_):
    # Without noise, the error allowed is far below the values themselves.
    if round_.spec.unit is None:
        assert round_.spec.error_bound() == math.inf
    elif round_.spec.mechanism is None:
        assert round_.spec.error_bound() < 0.01 * np.abs(round_.expected_mean()).max()


def test_dropping_a_client_takes_away_exactly_its_part(round_):
    everyone = np.asarray(round_.total())
    for client in range(len(CLIENTS)):
        alive = np.arange(len(CLIENTS)) != client
        without, own = np.asarray(round_.total(alive)), np.asarray(round_.elements[client])
        if round_.spec.modulus is None:
            np.testing.assert_allclose(everyone - without, own, atol=1e-6)
        else:
            mask = np.uint32(round_.spec.modulus - 1)
            np.testing.assert_array_equal((everyone - without) & mask, own)


def test_the_opener_comes_to_the_sum_in_the_clear(round_):
    opened = round_.opener.open(1, MODEL, round_.submissions())
    total = np.asarray(round_.total())
    if round_.spec.modulus is None:
        np.testing.assert_allclose(opened.total, total, rtol=1e-6)
    else:
        np.testing.assert_array_equal(opened.total, total & np.uint32(round_.spec.modulus - 1))
    assert opened.clients == CLIENTS


def test_opening_refuses_what_it_must():
    made = Round(CHAINS["record, noise, public key"]())
    good = made.submissions()
    cases = {
        "distinct clients": good[:2],
        "one submission a client": [*good, good[0]],
        "another round": made.submissions(round=2),
        "another run": made.submissions(run=bytes(16)),
        "another model": made.submissions(model_digest=bytes([1]) * 32),
        "another key": made.submissions(key_id=bytes(32)),
    }
    for words, submissions in cases.items():
        with pytest.raises(OpeningError, match=words):
            made.opener.open(1, MODEL, submissions)
        assert made.opener.opened(1) is None
    forged = [*good[:3], dataclasses.replace(good[3], signature=good[2].signature)]
    with pytest.raises(OpeningError, match="signature of 'd'"):
        made.opener.open(1, MODEL, forged)
    stranger = dataclasses.replace(good[3], client="e").signed(made.signers["d"])
    with pytest.raises(OpeningError, match="roster"):
        made.opener.open(1, MODEL, [*good[:3], stranger])
    first = made.opener.open(1, MODEL, good)
    assert made.opener.open(1, MODEL, good[::-1]) is first
    with pytest.raises(OpeningError, match="opened already"):
        made.opener.open(1, MODEL, good[:3])  # differencing the two sums would show client d


def test_a_stored_result_survives_a_new_opener(tmp_path):
    aggregation = CHAINS["record, noise, public key"]()
    made = Round(aggregation, folder=tmp_path)
    submissions = made.submissions()
    opened = made.opener.open(1, MODEL, submissions)
    made.opener.close()
    again = Round(aggregation, folder=tmp_path)
    assert again.opener.key_id == made.opener.key_id
    np.testing.assert_array_equal(again.opener.open(1, MODEL, submissions).total, opened.total)
    with pytest.raises(OpeningError, match="opened already"):
        again.opener.open(1, MODEL, submissions[:3])
    stored = next(path for path in tmp_path.glob("opened-*"))
    stored.write_bytes(stored.read_bytes()[:-3])
    with pytest.raises(OpeningError, match="cannot be read"):
        Round(aggregation, folder=tmp_path).opener.opened(1)


@pytest.mark.parametrize("kept", [True, False])
def test_an_invalid_sum_uses_its_round_up(tmp_path, kept):
    # Whether a malformed sum is valid tells something about the key: nobody may ask again.
    made = Round(CHAINS["record, noise, public key"](), folder=tmp_path if kept else None)
    good = made.submissions()
    junk = np.random.default_rng(0)
    elements = made.aggregation.seal(made.states, made.keys, made.elements)
    shifted = jax.tree.map(lambda part: (np.asarray(part) + junk.integers(
        0, 1 << 20, np.shape(part), np.uint32)) % (1 << 25), elements)
    wire = made.aggregation.to_wire(made.states, shifted, made.setting)
    bad = dataclasses.replace(good[3], payload=wire[3]).signed(made.signers["d"])
    with pytest.raises(InvalidSum):
        made.opener.open(1, MODEL, [*good[:3], bad])
    if kept:
        made = Round(CHAINS["record, noise, public key"](), folder=tmp_path)
    with pytest.raises(OpeningError, match="used up"):
        made.opener.open(1, MODEL, good)
    assert made.opener.opened(1) is None


def test_a_sum_of_one_client_is_not_worth_encrypting():
    spec = Spec(dim=DIM, num_clients=1, num_records=9, denominator=1.0)
    with pytest.raises(SpecError, match="at least two clients"):
        CHAINS["record, public key"]().init(spec)


def test_the_text_names_the_minimum_that_is_enforced():
    for name in ("record, public key", "record, noise, public key"):
        made = Round(CHAINS[name]())
        assert f"sums of {made.setting.min_clients} or more" in made.spec.opener
        made.opener.close()


def test_a_value_that_is_not_finite_is_named_and_refused(round_):
    if not jnp.issubdtype(round_.values.dtype, jnp.floating):
        pytest.skip("records' values are integers here; the engine reports them")
    values = round_.values.copy()
    values[2, 5] = math.nan
    elements, finite = round_.aggregation.encode(round_.states, round_.keys, values)
    assert finite.tolist() == [True, True, False, True]
    with pytest.raises(UpdateError, match=r"round 3 needs finite values .* infinity from c"):
        require_finite(finite, CLIENTS, "round 3")


def _stages():
    return {
        "clip": _clip("record"), "quantise": fs.privacy.quantise(bits=24),
        "discrete_gaussian": fs.privacy.discrete_gaussian(0.7),
        "encrypt": fs.he.encrypt(fs.he.public_key()),
    }


@pytest.mark.parametrize("order", list(itertools.permutations(_stages())), ids="-".join)
def test_only_the_right_order_is_accepted(order):
    spec = Spec(dim=DIM, num_clients=4, num_records=30, denominator=7.5,
                sampling=Sampling("poisson", 0.25, "record"))
    stages = _stages()
    if order == ("clip", "quantise", "discrete_gaussian", "encrypt"):
        fs.chain(*(stages[name] for name in order)).init(spec)
        return
    with pytest.raises(SpecError) as refused:
        fs.chain(*(stages[name] for name in order)).init(spec)
    assert refused.value.need and refused.value.found and refused.value.fix


@pytest.mark.parametrize("make, words", [
    (lambda: fs.chain(_clip("client"), fs.privacy.quantise(bits=6)), "Raise bits"),
    (lambda: fs.chain(_clip("client"), fs.privacy.quantise(bits=16, scale=20000.0)),
     "Raise bits, or lower scale"),
    (lambda: fs.chain(_clip("client"), fs.privacy.quantise(bits=16),
                      fs.privacy.discrete_gaussian(30.0)), "Raise quantise"),
    (lambda: fs.chain(_clip("client"), _clip("client")), "names"),
    (lambda: fs.chain(fs.privacy.quantise(bits=16)), "Put clip"),
    (lambda: fs.chain(_clip("record")), "rounded to integers"),
    (lambda: fs.chain(_clip("client"), fs.he.encrypt(fs.he.public_key())), "integer values"),
    (lambda: fs.chain(_clip("client"), fs.privacy.discrete_gaussian(1.0)), "Put quantise"),
    (lambda: fs.chain(fs.privacy.clip(0.0)), "l2_bound from"),
    (lambda: fs.chain(fs.privacy.clip(math.nan)), "l2_bound from"),
    (lambda: fs.chain(_clip("client"), fs.privacy.quantise(bits=40)), "bits from 2 to 31"),
    (lambda: fs.chain(_clip("client"), fs.privacy.quantise(bits=24),
                      fs.privacy.discrete_gaussian(0.5, missing_shares=40)), "one share"),
])
def test_each_refusal_says_need_found_fix(make, words):
    spec = Spec(dim=DIM, num_clients=40, num_records=40, denominator=40.0)
    with pytest.raises(SpecError, match=words) as refused:
        make().init(spec)
    text = str(refused.value)
    assert " needs " in text and ", got " in text and text.endswith(".")


def test_the_unit_that_is_clipped_is_the_unit_that_is_sampled():
    spec = Spec(dim=DIM, num_clients=4, num_records=40, denominator=1.0,
                sampling=Sampling("poisson", 0.5, "record"))
    with pytest.raises(SpecError, match="Clip the same unit"):
        CHAINS["client, noise"]().init(spec)


def test_the_spec_yields_event_and_threat_model():
    spec = Spec(dim=DIM, num_clients=4, num_records=400, denominator=40.0, unit_name="patient",
                client_name="hospital", sampling=Sampling("poisson", 0.1, "record"))
    _, spec = CHAINS["record, noise, public key"]().init(spec)
    event = spec.dp_event()
    assert event.sampling_probability == 0.1
    assert event.event.noise_multiplier == spec.mechanism.noise_multiplier
    assert spec.mechanism.noise_multiplier == pytest.approx(0.7, rel=1e-6)
    text = str(spec.threat_model(("timings",)))
    for words in ("this process sees everything", "The server sees ciphertexts",
                  "never one hospital's update", "A hospital sees", "eavesdropper sees",
                  "no patient is in two hospitals", "1 noise share missing or known",
                  "before it has committed to its own",
                  "Outside the guarantee: timings"):
        assert words in text, words
    assert "seeded" not in text.lower()
    assert "simulation's" in str(spec.replace(mode="seeded").threat_model())
    _, clear = CHAINS["record, noise"]().init(
        Spec(dim=DIM, num_clients=4, num_records=400, denominator=40.0, client_name="hospital"))
    assert "each hospital's own update, under that hospital's noise share only" in str(
        clear.threat_model())
    assert CHAINS["record"]().init(Spec(dim=DIM, num_clients=4, num_records=9, denominator=1.0))[
        1].dp_event() is None


def test_share_counts_only_what_is_sure_to_be_there():
    spec = Spec(dim=DIM, num_clients=4, num_records=400, denominator=40.0)
    _, spec = CHAINS["record, noise"]().init(spec)
    mechanism = spec.mechanism
    assert mechanism.num_shares == 3 and spec.min_clients == 3
    least = 3 * mechanism.share_stddev**2
    assert least >= (0.7 * mechanism.rounded_unit_l2) ** 2
    assert spec.noise_stddev == pytest.approx(2 * mechanism.share_stddev)
