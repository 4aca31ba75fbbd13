"""An aggregator that cheats, against the key holder: it is refused, and nothing is decrypted.

What no check of signed ciphertexts can prevent is played too, under names that begin with
`test_by_design`; the threat model has to say each of these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest

from fedjax_kernels import modular, ntt, rlwe
from fedjax_secure.core import (
    InvalidSum,
    OpeningError,
    SecureSource,
    Setting,
    Signer,
    Spec,
    Submission,
    chain,
)
from fedjax_secure.core.randomness import device_keys, host_words
from fedjax_secure.he import KeyHolder, encrypt, key_holder, public_key, wire

DIM, BITS = 2048, 20
HALF = 1 << (BITS - 1)
RUN, MODEL = bytes(range(16)), bytes(range(32))
SIGNERS = {name: Signer(bytes([i]) * 32) for i, name in enumerate(("ada", "bob", "cyd", "dan"), 1)}
ROSTER = {name: signer.public_key for name, signer in SIGNERS.items()}
MALLORY = Signer(b"m" * 32)  # the aggregator's own signing key, which nobody registered


class Federation:
    """Honest clients and a key holder; the tests are the aggregator between them."""

    def __init__(self, folder=None, min_clients=3):
        self.source = SecureSource()
        self.aggregation = chain(encrypt(public_key("rlwe-2048-52")))
        states, self.spec = self.aggregation.init(
            Spec(dim=DIM, num_clients=4, num_records=4, denominator=1.0, min_clients=min_clients,
                 dtype="int32", modulus=1 << BITS))  # fmt: skip
        self.setting = Setting(RUN, ROSTER, min_clients, self.source, folder)
        self.states, self.holder = self.aggregation.setup(states, self.spec, self.setting)
        self.packing = self.holder.packing
        self.seal = jax.jit(self.aggregation.seal)

    def send(self, values, number=1):
        keys = device_keys([self.source.key("client") for _ in values])
        elements, _ = self.aggregation.encode(self.states, keys, values)
        sealed = self.seal(self.states, keys, elements)
        messages = self.aggregation.to_wire(self.states, sealed, self.setting)
        return {name: self.submission(name, payload, number)
                for name, payload in zip(SIGNERS, messages, strict=True)}  # fmt: skip

    def submission(self, name, payload, number=1, signer=None, **changes):
        fields = dict(client=name, run=RUN, round=number, model_digest=MODEL,
                      key_id=self.holder.key_id, payload=payload) | changes  # fmt: skip
        return Submission(**fields).signed(signer or SIGNERS[name])

    def fresh_holder(self):
        """The same key, and nothing opened yet."""
        other = KeyHolder.__new__(KeyHolder)
        other.__dict__.update(self.holder.__dict__)
        other._results, other._failed, other._lock = {}, set(), threading.Lock()
        other._open_payloads, other._open_sum = other._sum_and_decrypt, other._decrypt_sum
        return other

    def read(self, submission):
        return wire.ciphertext_from_bytes(submission.payload, self.packing, self.holder.key_id)

    def write(self, ciphertext):
        ciphertext = np.asarray(ciphertext, np.uint32)
        return wire.ciphertext_to_bytes(self.packing, self.holder.key_id, ciphertext)

    def encrypt(self, values):
        """What anybody with the public key can make."""
        params = self.packing.params
        count = rlwe.words_needed(params, self.packing.num_polynomials)
        words = host_words(self.source.key("anyone"), count).astype(np.uint32)
        message = self.packing.pack(np.asarray(values, np.int64).astype(np.uint32) % (1 << BITS))
        return np.asarray(rlwe.encrypt(params, self.holder.public_key, message, words))


@pytest.fixture(scope="module")
def federation():
    return Federation()


VALUES = np.random.default_rng(1).integers(-HALF, HALF, (4, DIM)).astype(np.int32)


@pytest.fixture(scope="module")
def sent(federation):
    return federation.send(VALUES)


@pytest.fixture
def decryptions(monkeypatch):
    """How often the private key was used."""
    used, decrypt = [], rlwe.decrypt

    def counted(*args, **kwargs):
        used.append(time.monotonic())
        return decrypt(*args, **kwargs)

    monkeypatch.setattr(key_holder.rlwe, "decrypt", counted)
    return used


def ring(rows):
    return (np.asarray(rows, np.int64).sum(axis=0) % (1 << BITS)).astype(np.uint32)


def centred(total):
    return (np.asarray(total, np.int64) + HALF) % (1 << BITS) - HALF


# -- one ciphertext passed off as the sum, and padding with zeros ----------------------------------


def attacks_on_one(federation, sent):
    """Sets in which everything but ada's value is nothing, or the aggregator's own."""
    ada, bob, cyd = sent["ada"], sent["bob"], sent["cyd"]
    nothing = federation.write(np.zeros(federation.packing.ciphertext_shape, np.uint32))
    zeros = [federation.write(federation.encrypt(np.zeros(DIM))) for _ in range(3)]
    doubled = federation.write(modular.add(*[federation.read(ada)] * 2, federation.packing
                                           .transport.moduli))  # fmt: skip

    def forged(payload, *names, signer=MALLORY):
        return [federation.submission(name, payload, signer=signer) for name in names]

    return {
        "alone": ([ada], "at least 3 distinct clients, got 1"),
        "three times": ([ada] * 3, "one submission a client"),
        "under other names": (
            [ada, *(dataclasses.replace(ada, client=name) for name in ("bob", "cyd"))],
            "signature of '(bob|cyd|dan)'"),
        "re-signed under other names": (
            [ada, *forged(ada.payload, "bob", "cyd")], "signature of '(bob|cyd|dan)'"),
        "with two who gave their signatures to it": (
            [ada, *(federation.submission(name, ada.payload) for name in ("bob", "cyd"))],
            "one that two clients sent"),
        "doubled": (
            [ada, *(dataclasses.replace(s, payload=doubled) for s in (bob, cyd))],
            "signature of '(bob|cyd|dan)'"),
        "as a sum of the aggregator's": (
            [federation.submission("ada", ada.payload, signer=MALLORY), bob, cyd],
            "signature of 'ada'"),
        "padded with zero ciphertexts": (
            [ada, *forged(nothing, "bob", "cyd")], "signature of '(bob|cyd|dan)'"),
        "padded with encryptions of zero": (
            [ada, *(federation.submission(name, payload, signer=MALLORY)
                    for name, payload in zip(("bob", "cyd", "dan"), zeros, strict=True))],
            "signature of '(bob|cyd|dan)'"),
        "padded by clients who do not exist": (
            [ada, *(federation.submission(name, payload, signer=MALLORY)
                    for name, payload in zip(("x", "y", "z"), zeros, strict=True))],
            "clients of the roster, got one from '[xyz]'"),
        "padded with zeros under honest signatures": (
            [ada, *(dataclasses.replace(s, payload=zeros[0]) for s in (bob, cyd))],
            "signature of '(bob|cyd|dan)'"),
        "with empty payloads": (
            [ada, *(dataclasses.replace(s, payload=b"") for s in (bob, cyd))],
            "signature of '(bob|cyd|dan)'"),
    }  # fmt: skip


def test_one_ciphertext_is_never_opened_as_a_sum(federation, sent, decryptions):
    attacks = attacks_on_one(federation, sent)
    for submissions, match in attacks.values():
        holder = federation.fresh_holder()
        for order in (submissions, submissions[::-1]):
            with pytest.raises(OpeningError, match=match) as refused:
                holder.open(1, MODEL, order)
            assert refused.value.fix and not isinstance(refused.value, InvalidSum)
        assert holder.opened(1) is None
    for payload in (sent["ada"].payload, federation.write(federation.encrypt(np.zeros(DIM)))):
        with pytest.raises(OpeningError, match="signed submissions, got a sum made by others"):
            federation.fresh_holder().open_total(1, MODEL, payload, list(SIGNERS))
    assert not decryptions
    opened = federation.fresh_holder().open(1, MODEL, list(sent.values()))
    np.testing.assert_array_equal(opened.total, ring(VALUES))
    assert len(decryptions) == 1  # the count counts


def test_one_value_is_not_opened_even_where_the_run_allows_it(federation, sent, decryptions):
    holder = federation.fresh_holder()
    holder.setting = dataclasses.replace(federation.setting, min_clients=1)
    with pytest.raises(OpeningError, match="2 to 4 clients' ciphertexts, as planned, got 1"):
        holder.open(1, MODEL, [sent["ada"]])
    assert not decryptions


def test_one_signing_key_under_two_names_is_refused_at_set_up(federation):
    roster = {**ROSTER, "another": ROSTER["ada"]}
    with pytest.raises(OpeningError, match="got one key under two names"):
        KeyHolder(federation.packing, dataclasses.replace(federation.setting, roster=roster))


# -- altered ciphertexts ---------------------------------------------------------------------------


def test_a_ciphertext_that_was_altered_and_sealed_again_is_refused(federation, sent, decryptions):
    moduli, ada = federation.packing.transport.moduli, federation.read(sent["ada"])
    bob = federation.read(sent["bob"])
    one_bit = ada.copy()
    one_bit[0, 0, 0, 0] ^= 1
    altered = {
        "a bit": one_bit,
        "doubled": modular.add(ada, ada, moduli),
        "with bob's added": modular.add(ada, bob, moduli),
        "negated": modular.neg(ada, moduli),
        "made anew of the same noise": modular.add(ada, federation.encrypt(np.zeros(DIM)), moduli),
        "shifted by a public constant": modular.add(
            ada, np.stack([np.asarray(federation.packing.pack(np.ones(DIM, np.uint32))),
                           np.zeros_like(ada[0])]), moduli),
    }  # fmt: skip
    for array in altered.values():
        payload = federation.write(array)  # its checksum is right
        assert payload != sent["ada"].payload
        holder = federation.fresh_holder()
        forged = dataclasses.replace(sent["ada"], payload=payload)
        with pytest.raises(OpeningError, match="signature of 'ada'"):
            holder.open(1, MODEL, [forged, sent["bob"], sent["cyd"]])
        assert holder.opened(1) is None
    assert not decryptions


def test_a_key_of_the_aggregators_own_is_refused(federation, sent, decryptions):
    """Clients who took the aggregator's public key for the key holder's are noticed."""
    params = federation.packing.params
    words = host_words(bytes(32), rlwe.key_words_needed(params)).astype(np.uint32)
    _, planted = rlwe.generate_key(params, words)
    planted_id = wire.key_id_of(wire.public_key_to_bytes(params.name, planted))
    assert planted_id != federation.holder.key_id
    ada = federation.submission("ada", sent["ada"].payload, key_id=planted_id)
    with pytest.raises(OpeningError, match="'ada' bound to this key, got one bound to another"):
        federation.fresh_holder().open(1, MODEL, [ada, sent["bob"], sent["cyd"]])
    relabelled = bytearray(sent["ada"].payload)
    place = bytes(relabelled).index(federation.holder.key_id)
    relabelled[place : place + 32] = planted_id
    relabelled[-32:] = hashlib.blake2b(relabelled[:-32], digest_size=32).digest()
    ada = federation.submission("ada", bytes(relabelled))
    with pytest.raises(OpeningError, match="a ciphertext of this key, got one of another key"):
        federation.fresh_holder().open(1, MODEL, [ada, sent["bob"], sent["cyd"]])
    assert not decryptions


def test_fields_of_any_type_are_refused(federation, sent, decryptions):
    bob, cyd = sent["bob"], sent["cyd"]
    for changes in (
        {"client": None}, {"client": ["ada"]}, {"client": b"ada"}, {"client": "\ud800"},
        {"round": -1}, {"round": 1 << 64}, {"round": 1.0}, {"round": True}, {"round": "1"},
        {"run": "text"}, {"model_digest": None}, {"key_id": 5}, {"signature": None},
        {"signature": "x" * 64}, {"payload": None}, {"payload": "text"}, {"payload": [1, 2]},
        {"payload": bytearray(8)}, {"signature": b""}, {"signature": bytes(64)},
        {"signature": bytes(1 << 20)}, {"run": b""}, {"client": "ada" * 10_000},
    ):  # fmt: skip
        with pytest.raises(OpeningError) as refused:
            federation.fresh_holder().open(1, MODEL, [
                dataclasses.replace(sent["ada"], **changes), bob, cyd])  # fmt: skip
        assert len(str(refused.value)) < 400
    assert not decryptions


# -- two sums differenced --------------------------------------------------------------------------


def test_two_sums_cannot_be_differenced(federation, sent, decryptions):
    holder = federation.fresh_holder()
    everyone = list(sent.values())
    first = holder.open(1, MODEL, everyone)
    for fewer in (everyone[:3], everyone[1:], [*everyone[:2], everyone[3]]):
        with pytest.raises(OpeningError, match="another set of submissions for a round that was"):
            holder.open(1, MODEL, fewer)
    again = federation.submission("dan", federation.write(federation.encrypt(np.zeros(DIM))))
    with pytest.raises(OpeningError, match="opened already"):
        holder.open(1, MODEL, [*everyone[:3], again])
    for match, number, model in (("round", 2, MODEL), ("model", 1, bytes(32)), ("round", 2, b"")):
        with pytest.raises(OpeningError, match=f"bound to another {match}"):
            holder.open(number, model, everyone[:3])
    relabelled = [dataclasses.replace(s, round=2) for s in everyone[:3]]
    with pytest.raises(OpeningError, match="signature of 'ada'"):
        holder.open(2, MODEL, relabelled)
    remodelled = [dataclasses.replace(s, model_digest=bytes(32)) for s in everyone[:3]]
    with pytest.raises(OpeningError, match="signature of 'ada'"):
        holder.open(1, bytes(32), remodelled)
    assert len(decryptions) == 1 and holder.opened(1) is first and holder.opened(2) is None


def test_a_client_who_is_replayed_in_a_later_round_is_refused(federation, sent, decryptions):
    holder, later = federation.fresh_holder(), federation.send(VALUES, number=2)
    holder.open(1, MODEL, list(sent.values()))
    with pytest.raises(OpeningError, match="'ada' bound to this round"):
        holder.open(2, MODEL, [sent["ada"], later["bob"], later["cyd"]])
    moved = dataclasses.replace(later["ada"], payload=sent["ada"].payload)
    with pytest.raises(OpeningError, match="signature of 'ada'"):
        holder.open(2, MODEL, [moved, later["bob"], later["cyd"]])
    assert len(decryptions) == 1


@pytest.mark.parametrize("shared", ["one object", "one folder"])
def test_two_sets_at_once_are_not_both_opened(tmp_path, monkeypatch, shared):
    federation = Federation(tmp_path / "holder")
    sent = list(federation.send(VALUES).values())
    holders = [federation.holder] * 2
    if shared == "one folder":  # as two processes have it
        holders[1] = KeyHolder(federation.packing, federation.setting)
        assert holders[1].key_id == holders[0].key_id
    used, decrypt = [], rlwe.decrypt

    def slow(*args, **kwargs):
        used.append(None)
        time.sleep(0.3)
        return decrypt(*args, **kwargs)

    monkeypatch.setattr(key_holder.rlwe, "decrypt", slow)
    begin, outcomes = threading.Barrier(2), {}

    def ask(number, submissions):
        begin.wait()
        try:
            outcomes[number] = holders[number].open(1, MODEL, submissions).clients
        except OpeningError as error:
            outcomes[number] = error.found

    threads = [threading.Thread(target=ask, args=(i, s)) for i, s in enumerate((sent, sent[:3]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = [outcome for outcome in outcomes.values() if isinstance(outcome, tuple)]
    refused = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    assert len(opened) == len(refused) == len(used) == 1 and "opened already" in refused[0]


def test_an_invalid_sum_uses_its_round_up(federation, sent, decryptions):
    holder = federation.fresh_holder()
    params = federation.packing.transport
    garbage = np.random.default_rng(5).integers(0, 1 << 20, federation.packing.ciphertext_shape)
    half = np.broadcast_to(np.array([q // 2 for q in params.moduli.primes])[:, None, None],
                           garbage.shape[1:])  # fmt: skip
    garbage[0] = half
    bad = federation.submission("cyd", federation.write(garbage))
    for _ in range(2):
        with pytest.raises(OpeningError, match="bits above them|used up"):
            holder.open(1, MODEL, [sent["ada"], sent["bob"], bad])
    with pytest.raises(OpeningError, match="used up, because its sum was invalid"):
        holder.open(1, MODEL, list(sent.values()))
    assert len(decryptions) == 1 and holder.opened(1) is None


def test_refusing_costs_little(federation, sent):
    """Thousands of submissions, or huge ones, are refused before any ciphertext is read."""
    holder = federation.fresh_holder()
    huge = dataclasses.replace(sent["ada"], payload=bytes(32 << 20))
    tracemalloc.start()
    with pytest.raises(OpeningError, match="signature of 'ada'"):
        holder.open(1, MODEL, [huge, sent["bob"], sent["cyd"]])
    with pytest.raises(OpeningError, match="one submission a client"):
        holder.open(1, MODEL, list(sent.values()) * 2000)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


# -- what is possible by design, and has to be said ------------------------------------------------


def threat(federation):
    return str(federation.spec.threat_model())


def test_by_design_an_aggregator_with_k_clients_learns_the_sum_of_the_others(federation, sent):
    opened = federation.fresh_holder().open(1, MODEL, list(sent.values()))
    known = VALUES[2:].astype(np.int64).sum(axis=0)  # cyd and dan tell the aggregator theirs
    others = centred(opened.total.astype(np.int64) - known)
    np.testing.assert_array_equal(others, centred(VALUES[:2].astype(np.int64).sum(axis=0)))
    text = threat(federation)
    assert "works with k clients learns the sum of the others' values as well" in text
    assert "of 3 - k or more" in text


def small_values():
    values = np.random.default_rng(3).integers(-9, 10, (4, DIM)).astype(np.int32)
    values[0] *= 50  # ada's are what the aggregator is after
    return values


def test_by_design_a_copied_ciphertext_counts_as_its_sender_likes(federation, decryptions):
    """One who gets ada's ciphertext first sends 64 times hers, made anew, as his own."""
    values, moduli = small_values(), federation.packing.transport.moduli
    sent = federation.send(values)
    ada = federation.read(sent["ada"]).astype(np.uint64)
    q = moduli.q.astype(np.uint64)
    times = (ada * np.uint64(64) % q).astype(np.uint32)
    shift = np.asarray(federation.packing.pack(np.zeros(DIM, np.uint32))).astype(np.uint64)
    public = (shift * np.uint64(64) % q).astype(np.uint32)  # 64 times the shift of a lane
    times[0] = modular.sub(times[0], public, moduli)
    copied = modular.add(times, federation.encrypt(np.zeros(DIM)), moduli)
    dan = federation.submission("dan", federation.write(copied))
    opened = federation.fresh_holder().open(1, MODEL, [sent["ada"], sent["bob"], sent["cyd"], dan])
    np.testing.assert_array_equal(np.rint(centred(opened.total) / 65), values[0])
    text = threat(federation)
    assert "no client sees another's ciphertext before it has committed to its own" in text
    assert "each client encrypts its own value, and as planned" in text
    assert "derived from another's" in " ".join(KeyHolder.__doc__.split())


def test_by_design_a_ciphertext_of_ones_own_devising_can_tell_the_key(federation):
    """The scheme is secure against chosen plaintexts only: the sum then shows the secret key."""
    packing, params = federation.packing, federation.packing.params
    moduli, degree = params.moduli, params.ring_degree
    assert packing.encoding.num_lanes == packing.num_polynomials == 1 and degree == DIM
    values = small_values()
    sent = federation.send(values)
    step = 1 << (packing.encoding.noise_bits + 14)  # above what the honest values reach
    shift = 1 << (packing.encoding.noise_bits + BITS - 1)  # of every lane
    crafted = np.zeros(packing.ciphertext_shape, np.uint32)
    for limb, q in enumerate(moduli.primes):
        crafted[0, limb] = (step + shift) % q  # keeps every coefficient positive
        crafted[1, limb, 0] = step % q  # a constant: times s, it is s
    dan = federation.submission("dan", federation.write(crafted))
    opened = federation.fresh_holder().open(1, MODEL, [sent["ada"], sent["bob"], sent["cyd"], dan])
    secret = np.rint(centred(opened.total) / (1 << 14)).astype(np.int32) - 1
    assert set(np.unique(secret)) == {-1, 0, 1}

    residues = np.asarray(modular.from_signed(secret.reshape(degree, 1), moduli))
    stolen = rlwe.SecretKey(ntt.forward(np.broadcast_to(residues, (len(moduli.primes), degree, 1))
                                        .astype(np.uint32), moduli))  # fmt: skip
    lanes = rlwe.decrypt(params, stolen, federation.read(sent["ada"]), packing.encoding).lanes
    np.testing.assert_array_equal(centred(packing.unpack(np.asarray(lanes), 1)), values[0])
    assert "the key that opens them all" in threat(federation)
    assert "tell the secret key to whoever sees it" in " ".join(KeyHolder.__doc__.split())
