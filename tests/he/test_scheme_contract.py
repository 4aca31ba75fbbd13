"""The contract of every encryption scheme: a new one is tested by being listed in SCHEMES."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from fedjax_secure.core import (
    OpeningError,
    SecureSource,
    SeededSource,
    Setting,
    Signer,
    Spec,
    SpecError,
    Submission,
    chain,
)
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.he import encrypt, openfhe_bgv, openfhe_ckks, public_key, threshold
from fedjax_secure.he.openfhe import env

DIM, BITS, CLIENTS = 300, 20, 4
HALF, MODEL = 1 << (BITS - 1), bytes(range(32))
NAMES = ("ada", "bob", "cyd", "dan", "eve")  # eve is one more than planned
SIGNERS = {name: Signer(bytes([i]) * 32) for i, name in enumerate(NAMES, 1)}
ROSTER = {name: signer.public_key for name, signer in SIGNERS.items()}
OPENFHE = (
    pytest.mark.openfhe,
    pytest.mark.skipif(
        env.find() is None, reason=env.why_not() or f"OpenFHE is not set up; run: {env.COMMAND}"
    ),
)

#: name: (makes the scheme, bytes of a message by its plan or None, markers).
SCHEMES = {
    "public_key": (lambda: public_key("rlwe-2048-52"), lambda plan: plan.ciphertext_bytes, ()),
    "public_key, switched": (
        lambda: public_key("rlwe-8192-212"), lambda plan: plan.ciphertext_bytes, ()),
    "threshold, 2 of 3": (
        lambda: threshold(2, 3), lambda plan: plan.packing.ciphertext_bytes, ()),
    "openfhe_bgv": (openfhe_bgv, None, OPENFHE),
    "openfhe_ckks": (openfhe_ckks, None, OPENFHE),
    "openfhe_bgv, 2 parties": (lambda: openfhe_bgv(parties=2), None, OPENFHE),
    "openfhe_ckks, 2 parties": (lambda: openfhe_ckks(parties=2), None, OPENFHE),
}  # fmt: skip
OVERHEAD_BYTES = 180  # header and checksum of our own wire format


def spec_of(clients=CLIENTS):
    return Spec(dim=DIM, num_clients=clients, num_records=clients, denominator=1.0,
                min_clients=min(2, clients), dtype="int32", modulus=1 << BITS,
                client_name="hospital")  # fmt: skip


class Recording(SecureSource):
    """Fresh keys, remembered: so that a test can look for them where they must not be."""

    def __init__(self):
        self.keys = []

    def key(self, purpose, *, round=0, client=""):
        self.keys.append(super().key(purpose, round=round, client=client))
        return self.keys[-1]


class Run:
    """One chain that ends in a scheme, set up, and its clients."""

    def __init__(self, scheme, folder, *, run=bytes(range(16))):
        self.source, self.scheme = Recording(), scheme
        self.aggregation = chain(encrypt(self.scheme))
        states, self.spec = self.aggregation.init(spec_of())
        self.setting = Setting(run, ROSTER, 2, self.source, folder)
        self.plan = states["encrypt"]["plan"].value
        self.states, self.opener = self.aggregation.setup(states, self.spec, self.setting)
        self.rounds, self.errors = itertools.count(1), []
        self._seal = jax.jit(self.aggregation.seal)

    def payloads(self, values, keys=None):
        """One message a row of values; each client draws a fresh key unless given."""
        values = np.asarray(values, np.int32)
        keys = keys or [self.source.key("client", client=str(i)) for i in range(len(values))]
        keys = device_keys(keys)
        elements, finite = self.aggregation.encode(self.states, keys, values)
        assert np.asarray(finite).all()
        sealed = self._seal(self.states, keys, elements)
        return self.aggregation.to_wire(self.states, sealed, self.setting)

    def signed(self, name, payload, round, **changes):
        fields = dict(client=name, run=self.setting.run, round=round, model_digest=MODEL,
                      key_id=self.opener.key_id, payload=payload) | changes  # fmt: skip
        return Submission(**fields).signed(SIGNERS[name])

    def submissions(self, payloads, round, names=NAMES):
        return [self.signed(name, payload, round)
                for name, payload in zip(names, payloads, strict=False)]  # fmt: skip

    def refuses(self, round, submissions, match, model=MODEL):
        with pytest.raises(OpeningError, match=match) as refused:
            self.opener.open(round, model, submissions)
        self.errors.append(refused.value)
        assert refused.value.need and refused.value.found and refused.value.fix


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=marks) for name, (_, _, marks) in SCHEMES.items()])  # fmt: skip
def name(request):
    return request.param


@pytest.fixture(scope="module")
def run(name, tmp_path_factory):
    made = Run(SCHEMES[name][0](), tmp_path_factory.mktemp("opener"))
    yield made
    made.opener.close()


@pytest.fixture
def sent(run):
    """Random values of four clients, and fresh messages of them."""
    values = np.random.default_rng(4).integers(-HALF, HALF, (CLIENTS, DIM))
    return values, run.payloads(values)


def ring(values):
    return (np.asarray(values, np.int64).sum(axis=0) % (1 << BITS)).astype(np.uint32)


VALUES = {
    "all at the top": np.full((CLIENTS, DIM), HALF - 1),
    "all at the bottom": np.full((CLIENTS, DIM), -HALF),
    "zero": np.zeros((CLIENTS, DIM)),
    "top and bottom": np.where(np.arange(DIM) % 2, HALF - 1, -HALF)[None].repeat(CLIENTS, 0),
    "random": np.random.default_rng(1).integers(-HALF, HALF, (CLIENTS, DIM)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_sums_are_exact_up_to_the_bound_and_around_the_ring(run, kind):
    values, number = VALUES[kind], next(run.rounds)
    opened = run.opener.open(number, MODEL, run.submissions(run.payloads(values), number))
    assert opened.total.dtype == np.uint32 and opened.clients == NAMES[:CLIENTS]
    np.testing.assert_array_equal(opened.total, ring(values))


def test_sums_are_exact_with_64_bit_types(tmp_path):
    with jax.enable_x64(True):
        made = Run(public_key("rlwe-8192-212"), tmp_path)
        values = VALUES["random"]
        opened = made.opener.open(1, MODEL, made.submissions(made.payloads(values), 1))
    np.testing.assert_array_equal(opened.total, ring(values))


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_clients_than_planned_may_answer(run, sent, count):
    values, payloads = sent
    number = next(run.rounds)
    opened = run.opener.open(number, MODEL, run.submissions(payloads[:count], number))
    np.testing.assert_array_equal(opened.total, ring(values[:count]))


def test_bad_sets_of_submissions_are_refused_and_the_round_can_still_be_opened(
    name, run, sent, tmp_path
):
    values, payloads = sent
    number = next(run.rounds)
    good = run.submissions(payloads, number)
    other = Run(SCHEMES[name][0](), tmp_path, run=bytes(16))
    try:
        foreign = other.payloads(np.zeros((CLIENTS, DIM)))[0]
        key_id = other.opener.key_id
    finally:
        other.opener.close()

    def instead(**changes):
        return [run.signed("ada", **({"payload": payloads[0], "round": number} | changes)),
                *good[1:]]  # fmt: skip

    extra = run.payloads(np.zeros((CLIENTS, DIM)))[0]
    stranger = dataclasses.replace(good[0], client="mallory").signed(Signer(bytes(32)))
    for match, submissions in {
        "at least 2 distinct clients, got 1": good[:1],
        "at least 2 distinct clients, got 0": [],
        "one submission a client, got two": [*good, good[0]],
        "clients of the roster": [stranger, *good[1:]],
        "bound to this run": instead(run=bytes(16)),
        "bound to this round": instead(round=number + 1),
        "bound to this model": instead(model_digest=bytes(32)),
        "bound to this key": instead(key_id=key_id),
        "a valid signature of 'ada'": [dataclasses.replace(good[0], signature=b""), *good[1:]],
        "signature of 'bob'": [good[0], dataclasses.replace(good[1], signature=good[0].signature)],
        "signature of 'cyd'": [*good[:2], dataclasses.replace(good[2], payload=extra)],
        "another key|another parameter|the parameters|the key": instead(payload=foreign),
        "length|whole message": instead(payload=payloads[0][:-1]),
        "twice|two clients": instead(payload=payloads[1]),
        "4 (clients|summands|ciphertexts)": [*good, run.signed("eve", extra, number)],
    }.items():
        run.refuses(number, submissions, match)
        assert run.opener.opened(number) is None
    run.refuses(number, good, "bound to this model", model=bytes(32))
    np.testing.assert_array_equal(run.opener.open(number, MODEL, good).total, ring(values))


def test_a_round_is_opened_once(run, sent):
    number, (_, payloads) = next(run.rounds), sent
    good = run.submissions(payloads, number)
    first = run.opener.open(number, MODEL, good)
    assert run.opener.open(number, MODEL, good[::-1]) is first is run.opener.opened(number)
    for others in (good[:3], good[1:]):
        run.refuses(number, others, "opened already")
    again = run.submissions(run.payloads(np.zeros((CLIENTS, DIM))), number)
    run.refuses(number, again, "opened already")
    with pytest.raises(ValueError, match="read-only"):
        first.total[0] = 0


def test_what_was_opened_outlives_the_opener(name, tmp_path):
    before = Run(SCHEMES[name][0](), tmp_path)
    values = np.random.default_rng(8).integers(-HALF, HALF, (CLIENTS, DIM))
    good = before.submissions(before.payloads(values), 1)
    try:
        before.opener.open(1, MODEL, good)
    finally:
        before.opener.close()
    after = Run(SCHEMES[name][0](), tmp_path)
    try:
        np.testing.assert_array_equal(after.opener.open(1, MODEL, good).total, ring(values))
        kept = not name.startswith("openfhe")  # whose keys live in its parties
        assert (after.opener.key_id == before.opener.key_id) == kept
        after.refuses(1, good[:3], "opened already|another key")
        fresh = after.submissions(after.payloads(values), 1)
        after.refuses(1, fresh, "opened already")
        second = after.submissions(after.payloads(values), 2)
        np.testing.assert_array_equal(after.opener.open(2, MODEL, second).total, ring(values))
    finally:
        after.opener.close()


def test_a_value_encrypted_twice_makes_two_unrelated_messages_of_the_planned_size(name, run):
    values = np.full((CLIENTS, DIM), 7)
    messages = run.payloads(values) + run.payloads(values) + run.payloads(VALUES["random"])
    assert len({len(message) for message in messages}) == 1  # the size tells nothing
    planned = SCHEMES[name][1]
    if planned is not None:
        assert len(messages[0]) == planned(run.plan) + OVERHEAD_BYTES
    rows = np.stack([np.frombuffer(message, np.uint8) for message in messages])
    for one, other in itertools.combinations(rows, 2):
        assert (one != other).mean() > 0.5


def test_the_threat_model_says_who_opens_and_what_collusion_gains(run):
    text = run.scheme.opener_text(run.spec)
    assert text == run.spec.opener and not run.spec.readable and run.spec.dtype == "ciphertext"
    assert re.search(r"key holder|share holders", text) and "128-bit security" in text
    assert "2 or more hospitals" in text or "2 or more distinct ciphertexts" in text
    assert re.search(r"works|colludes", text) and "with k hospitals" in text
    assert re.search("learns the sum of the other", text) and "2 - k" in text
    assert "client" not in text.replace("clients' messages", "")  # the run's own word for it


def test_nothing_that_is_shown_or_handed_out_holds_a_secret(run, sent):
    for bad in ([], [dataclasses.replace(run.signed("ada", b"", 99), signature=b"")]):
        run.refuses(99, bad, "distinct clients|signature")
    shown = "\n".join([
        *map(repr, (run.scheme, run.opener, run.states, run.setting, run.plan, vars(run.opener))),
        *(f"{error} {error!r} {error.args}" for error in run.errors)])  # fmt: skip
    handed = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.states)] + list(sent[1])
    assert run.source.keys
    for key in run.source.keys:
        words = np.frombuffer(key, "<u4")
        for form in (key.hex(), repr(key)[2:-1], base64.b64encode(key).decode(), str(words[0])):
            assert form not in shown
        for handed_out in handed:
            assert key not in handed_out
    for error in run.errors:  # no run of digits as long as half a key
        assert not re.search(r"[0-9a-f]{17,}|(?<![0-9a-f])\d{10,}(?![0-9a-f])", str(error)), error


def test_sums_past_the_bound_are_refused_when_planned(run):
    for spec in (spec_of(clients=(1 << 20) + 1), spec_of(clients=1)):
        with pytest.raises(SpecError, match="stage `encrypt` needs") as refused:
            chain(encrypt(run.scheme)).init(spec)
        assert refused.value.fix


def test_a_resumed_client_sends_the_same_bytes_or_fresh_randomness(name, run):
    """Never one stream of randomness for two messages under one key."""
    keys = [SeededSource(3).key("client", round=1, client=client) for client in "ab"]
    keys *= CLIENTS // 2  # as many rows as were compiled; the first two count
    values = VALUES["random"][[0, 1, 0, 1]]
    first, again = run.payloads(values, keys), run.payloads(values, keys)
    if name.startswith("openfhe"):  # draws for itself; it cannot repeat
        assert len({*first, *again}) == 2 * CLIENTS
        return
    assert first == again
    assert first[:2] == first[2:]
    later = [SeededSource(3).key("client", round=2, client=client) for client in "abcd"]
    rows = [np.frombuffer(m, np.uint8) for m in (*first[:2], *run.payloads(values, later))]
    assert all((one != other).mean() > 0.5 for one, other in itertools.combinations(rows, 2))
