"""The key holder, through the chain: exact sums, and everything it refuses to open."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_kernels import rlwe
from fedjax_secure.core import (
    OpeningError,
    ResumeError,
    SecureSource,
    SeededSource,
    Setting,
    Signer,
    Spec,
    SpecError,
    Submission,
    chain,
)
from fedjax_secure.core.randomness import device_keys, host_words
from fedjax_secure.he import encrypt, wire
from fedjax_secure.he.key_holder import KeyHolder
from fedjax_secure.he.packing import plan_packing
from fedjax_secure.he.public_key import public_key

RUN, MODEL, BITS = bytes(range(16)), bytes(32), 20
SIGNERS = {name: Signer(bytes([i]) * 32) for i, name in enumerate(["ada", "bob", "cyd", "dan"])}
ROSTER = {name: signer.public_key for name, signer in SIGNERS.items()}


def spec_of(dim, clients=4):
    return Spec(
        dim=dim,
        num_clients=clients,
        num_records=clients,
        denominator=1.0,
        min_clients=2,
        dtype="int32",
        modulus=1 << BITS,
    )


class Round:
    """One chain `encrypt(public_key)`, set up, with its clients' signed submissions."""

    def __init__(self, dim=3000, folder=None, source=None, parameters="rlwe-2048-52"):
        self.source = source or SecureSource()
        self.aggregation = chain(encrypt(public_key(parameters)))
        states, self.spec = self.aggregation.init(spec_of(dim))
        self.setting = Setting(RUN, ROSTER, 2, self.source, folder)
        self.states, self.holder = self.aggregation.setup(states, self.spec, self.setting)
        rng = np.random.default_rng(dim)
        self.values = rng.integers(-(1 << (BITS - 1)), 1 << (BITS - 1), (4, dim)).astype(np.int32)
        self.values[:, 0], self.values[:, 1] = -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1

    def submissions(self, number=1, **changes):
        keys = device_keys([self.source.key("round", round=number, client=c) for c in SIGNERS])
        elements, finite = self.aggregation.encode(self.states, keys, self.values)
        assert np.asarray(finite).all()
        seal = jax.jit(lambda k, e: self.aggregation.seal(self.states, k, e))
        messages = self.aggregation.to_wire(self.states, seal(keys, elements), self.setting)
        made = []
        for name, payload in zip(SIGNERS, messages, strict=True):
            fields = dict(client=name, run=RUN, round=number, model_digest=MODEL,
                          key_id=self.holder.key_id, payload=payload) | changes  # fmt: skip
            made.append(Submission(**fields).signed(SIGNERS[name]))
        return made

    def total(self, rows=slice(None)):
        return (self.values[rows].astype(np.int64).sum(axis=0) % (1 << BITS)).astype(np.uint32)


@pytest.fixture(scope="module")
def shared():
    return Round()


@pytest.fixture(scope="module")
def submissions(shared):
    return shared.submissions()


def fresh_holder(shared):
    """Another key holder with the same key that has opened nothing yet."""
    other = KeyHolder.__new__(KeyHolder)
    other.__dict__.update(shared.holder.__dict__)
    other._results, other._open_payloads = {}, other._sum_and_decrypt
    return other


def test_the_sum_opens_to_exactly_the_integers(shared, submissions):
    opened = fresh_holder(shared).open(1, MODEL, submissions)
    np.testing.assert_array_equal(opened.total, shared.total())
    assert opened.clients == tuple(SIGNERS)
    some = fresh_holder(shared).open(1, MODEL, submissions[1:])  # an odd number of summands
    np.testing.assert_array_equal(some.total, shared.total(slice(1, None)))


def test_a_round_is_opened_once(shared, submissions):
    holder = fresh_holder(shared)
    first = holder.open(1, MODEL, submissions)
    assert holder.open(1, MODEL, submissions[::-1]) is first
    with pytest.raises(OpeningError, match="opened already"):
        holder.open(1, MODEL, submissions[:3])


def test_too_few_clients_open_nothing(shared, submissions):
    with pytest.raises(OpeningError, match="at least 2 distinct"):
        fresh_holder(shared).open(1, MODEL, submissions[:1])
    with pytest.raises(OpeningError, match="one submission a client"):
        fresh_holder(shared).open(1, MODEL, [submissions[0]] * 2)


def altered(submission, **changes):
    changed = dataclasses.replace(submission, **changes)
    return changed.signed(SIGNERS[submission.client])


def test_bad_payloads_open_nothing(shared, submissions):
    cut = altered(submissions[1], payload=submissions[1].payload[:-1])
    copied = altered(submissions[1], payload=submissions[0].payload)
    unsigned = dataclasses.replace(submissions[1], payload=submissions[0].payload)
    for bad, message in (
        (cut, "client 2 .*length"),
        (copied, "count twice"),
        (unsigned, "valid signature of 'bob'"),
        (altered(submissions[1], key_id=bytes(32)), "bound to this key"),
    ):
        holder = fresh_holder(shared)
        with pytest.raises(OpeningError, match=message):
            holder.open(1, MODEL, [submissions[0], bad, *submissions[2:]])
        assert holder.opened(1) is None


def test_a_client_above_its_lane_is_noticed(shared, submissions):
    """One who encrypts far more than the plan allows: the bits above the lanes show it."""
    packing, holder = shared.holder.packing, fresh_holder(shared)
    params, code = packing.params, packing.encoding
    forged_value = 3 << (code.total_bits - 1)
    assert forged_value < params.moduli.product
    message = np.broadcast_to(
        np.array([forged_value % q for q in params.moduli.primes], np.uint32)[:, None, None],
        packing.ciphertext_shape[1:],
    )
    words = host_words(bytes(32), rlwe.words_needed(params, packing.num_polynomials))
    ciphertext = rlwe.encrypt(params, holder.public_key, message, words.astype(np.uint32))
    payload = wire.ciphertext_to_bytes(packing, holder.key_id, ciphertext)
    forged = altered(submissions[1], payload=payload)
    with pytest.raises(OpeningError, match="bits above them"):
        holder.open(1, MODEL, [submissions[0], forged])


def test_more_clients_than_planned_or_only_one_are_refused():
    packing = plan_packing("rlwe-1024-26", dim=3, modulus=256, max_summands=2)
    holder = KeyHolder(packing, Setting(RUN, ROSTER, 1, SecureSource()))
    for payloads in ([b"a", b"b", b"c"], [b"a"], []):
        with pytest.raises(OpeningError, match=f"2 to 2 clients.*got {len(payloads)}"):
            holder._sum_and_decrypt(payloads)


def test_resumes_with_the_same_key_and_result(tmp_path):
    before = Round(40, tmp_path / "holder")
    sent = before.submissions()
    opened = before.holder.open(1, MODEL, sent)
    after = Round(40, tmp_path / "holder")
    assert after.holder.key_id == before.holder.key_id
    again = after.holder.open(1, MODEL, sent)
    np.testing.assert_array_equal(again.total, opened.total)
    second = after.submissions(2)
    np.testing.assert_array_equal(after.holder.open(2, MODEL, second).total, before.total())
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "holder").iterdir()] == [0o600] * 3

    setting = Setting(RUN, ROSTER, 2, SecureSource(), tmp_path / "holder")
    other = plan_packing("rlwe-4096-60", dim=40, modulus=1 << BITS, max_summands=4)
    with pytest.raises(ResumeError, match="one of 'rlwe-2048-52'"):
        KeyHolder(other, setting)
    with pytest.raises(ResumeError, match="one of another run"):
        KeyHolder(before.holder.packing, dataclasses.replace(setting, run=bytes(16)))
    path = tmp_path / "holder" / "key-holder.key"
    for content in (b"", path.read_bytes()[:-1], b"\xc1", b"\x01"):
        path.write_bytes(content)
        with pytest.raises(ResumeError, match="cannot be read"):
            KeyHolder(before.holder.packing, setting)


def test_seeded_runs_repeat_and_secure_ones_do_not():
    packing = plan_packing("rlwe-1024-26", dim=3, modulus=256, max_summands=2)

    def key_id(source):
        return KeyHolder(packing, Setting(RUN, ROSTER, 1, source)).key_id

    assert key_id(SeededSource(5)) == key_id(SeededSource(5)) != key_id(SeededSource(6))
    assert key_id(SecureSource()) != key_id(SecureSource())


def test_nothing_shown_or_shared_leads_to_the_secret(shared):
    holder = shared.holder
    shown = repr(holder) + repr(holder._secret_key) + repr(holder.public_key) + repr(shared.states)
    assert "hidden" in repr(holder._secret_key) and "array" not in repr(holder._secret_key)
    secret = np.asarray(holder._secret_key.s)
    assert str(int(secret[0, 0, 0])) not in shown
    for leaf in jax.tree.leaves(shared.states):  # what the aggregator and the clients get
        leaf = np.asarray(leaf)
        assert leaf.shape != secret.shape or not np.array_equal(leaf, secret)
    name, key = wire.public_key_from_bytes(holder.public_key_bytes)
    assert name == "rlwe-2048-52" and wire.key_id_of(holder.public_key_bytes) == holder.key_id
    np.testing.assert_array_equal(key.b, np.asarray(holder.public_key.b))


def test_the_chain_refuses_what_does_not_fit():
    with pytest.raises(SpecError, match="parameters='rlwe-2048-52'"):
        chain(encrypt(public_key("rlwe-1024-26"))).init(spec_of(5))
    with pytest.raises(SpecError, match="integer values, got float32"):
        chain(encrypt(public_key())).init(spec_of(5).replace(dtype="float32"))
    _, spec = chain(encrypt(public_key())).init(spec_of(5))
    assert not spec.readable and "128-bit" in spec.opener and "2 or more" in spec.opener


@pytest.mark.parametrize("seed", [None, 9], ids=["secure", "seeded"])
def test_an_interrupted_round_sends_the_very_same_ciphertexts_again(tmp_path, seed):
    """A second ciphertext under the same randomness would tell the difference of two updates."""
    seen = []

    def build():
        plan = fs.FederationPlan(rounds=1, dp_delta=1e-3, seed=seed, encryption="lattice")
        return plan.build(tmp_path)

    with build() as federation:

        def killed(round, model, submissions):
            seen.append([submission.payload_digest for submission in submissions])
            raise KeyboardInterrupt

        federation._opener.open = killed
        with pytest.raises(KeyboardInterrupt):
            next(federation.run(federation.init(), rounds=1))
    with build() as federation:
        opened = federation._opener.open

        def watched(round, model, submissions):
            seen.append([submission.payload_digest for submission in submissions])
            return opened(round, model, submissions)

        federation._opener.open = watched
        _, record = next(federation.run(federation.init(), rounds=1))
    assert record.round == 1 and seen[0] == seen[1] and len(set(seen[0])) == len(record.clients)
