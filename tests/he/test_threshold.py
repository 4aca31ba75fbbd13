"""Share holders, through the chain: any t open, wrong shares show, nobody else opens anything."""

from __future__ import annotations

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_kernels import modular, rlwe
from fedjax_kernels import threshold as kernels
from fedjax_secure.core import (
    InvalidSum,
    OpeningError,
    PartyError,
    ResumeError,
    SecureSource,
    SeededSource,
    Setting,
    Signer,
    Spec,
    SpecError,
    Submission,
    chain,
    model_digest,
)
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.he import encrypt, joint_key, threshold, wire
from fedjax_secure.he.joint_key import key_generation, messages
from fedjax_secure.he.joint_key.messages import KEY_PART, PARTIAL, SHARE, WITNESS

RUN, MODEL, BITS = bytes(range(16)), bytes(32), 20
SIGNERS = {name: Signer(bytes([i]) * 32) for i, name in enumerate(["ada", "bob", "cyd", "dan"])}
ROSTER = {name: signer.public_key for name, signer in SIGNERS.items()}
PARAMETERS = "rlwe-4096-97"
SEAL = jax.jit(chain(encrypt(threshold(2, 3))).seal)  # the plan and the keys are in the states


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
    """One chain `encrypt(threshold(...))`, set up, with its clients' signed submissions."""

    def __init__(
        self, t=2, n=3, dim=3000, folder=None, source=None, aggregator="untrusted", **options
    ):
        self.source = source or SecureSource()
        options = {"parameters": PARAMETERS, "max_openings": 16, **options}
        self.aggregation = chain(encrypt(threshold(t, n, **options)))
        states, self.spec = self.aggregation.init(spec_of(dim))
        self.setting = Setting(RUN, ROSTER, 2, self.source, folder, aggregator)
        self.states, self.opener = self.aggregation.setup(states, self.spec, self.setting)
        self.plan, self.holders = self.opener.plan, self.opener.holders
        rng = np.random.default_rng(dim)
        self.values = rng.integers(-(1 << (BITS - 1)), 1 << (BITS - 1), (4, dim)).astype(np.int32)
        self.values[:, 0], self.values[:, 1] = -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1

    def payloads(self, number=1):
        keys = device_keys([self.source.key("round", round=number, client=c) for c in SIGNERS])
        elements, _ = self.aggregation.encode(self.states, keys, self.values)
        return np.asarray(SEAL(self.states, keys, elements))

    def submissions(self, number=1, **changes):
        sent = self.aggregation.to_wire(self.states, self.payloads(number), self.setting)
        made = []
        for name, payload in zip(SIGNERS, sent, strict=True):
            fields = dict(client=name, run=RUN, round=number, model_digest=MODEL,
                          key_id=self.opener.key_id, payload=payload) | changes  # fmt: skip
            made.append(Submission(**fields).signed(SIGNERS[name]))
        return made

    def total(self, rows=slice(None)):
        return (self.values[rows].astype(np.int64).sum(axis=0) % (1 << BITS)).astype(np.uint32)

    def combiner(self, **replaced):
        """Another combiner over the same holders, some of them replaced (by number)."""
        holders = [replaced.get(holder.name.replace("-", ""), holder) for holder in self.holders]
        return joint_key.ThresholdOpener(
            self.plan, dataclasses.replace(self.setting, folder=None), holders
        )


class Away:
    """A holder that does not answer, from the start or only when it is to decrypt."""

    def __init__(self, holder, *, only_decrypting=False):
        self.holder, self.only_decrypting = holder, only_decrypting
        self.number, self.closed = holder.number, holder.closed
        self.session, self.public_key, self.key_id = (
            holder.session, holder.public_key, holder.key_id)  # fmt: skip

    def witness(self, *arguments):
        if not self.only_decrypting:
            raise PartyError("asking", need="an answer", found="none", fix="Wait.")
        return self.holder.witness(*arguments)

    def partial_decryption(self, *arguments):
        raise PartyError("asking", need="an answer", found="none", fix="Wait.")


class Liar(Away):
    """A holder that adds one step of the lowest lane to coefficients of its answers."""

    def __init__(self, holder, *, in_sets=None):
        super().__init__(holder)
        self.in_sets = in_sets

    def witness(self, *arguments):
        return self.holder.witness(*arguments)

    def partial_decryption(self, round, active, witnesses):
        content = self.holder.partial_decryption(round, active, witnesses)
        if self.in_sets is not None and tuple(active) not in self.in_sets:
            return content
        packing = self.holder.plan.packing
        message = self.session.read(content, PARTIAL, round=round)
        honest = messages.residues_from_bytes(
            packing.transport, packing.num_polynomials, message.body[8:]
        )
        one = np.ones((packing.encoding.num_lanes, 4096, packing.num_polynomials), np.uint32)
        step = rlwe.encode(packing.transport, packing.encoding, one)
        shifted = np.asarray(modular.add(honest, step, packing.transport.moduli))
        body = message.body[:8] + messages.residues_to_bytes(packing.transport, shifted)
        return self.session.write(self.holder._signer, PARTIAL, self.number, body, round=round)


@pytest.fixture(scope="module")
def shared():
    return Round()


@pytest.fixture(scope="module")
def submissions(shared):
    return shared.submissions()


@pytest.fixture(scope="module")
def four():
    """Four holders of which two open, all of them asked."""
    made = Round(2, 4, dim=50, answering=4, max_openings=64)
    return made, made.submissions()


# -- opening -----------------------------------------------------------------------------------


def test_the_sum_opens_to_exactly_the_integers(shared, submissions):
    opened = shared.opener.open(1, MODEL, submissions)
    np.testing.assert_array_equal(opened.total, shared.total())
    assert opened.clients == tuple(SIGNERS)
    assert shared.opener.open(1, MODEL, submissions[::-1]) is opened
    some = shared.submissions(2)[1:]  # an odd number of summands
    opened = shared.opener.open(2, MODEL, some)
    np.testing.assert_array_equal(opened.total, shared.total(slice(1, None)))


def test_any_t_of_n_open_the_same(shared, submissions):
    for absent in shared.holders:
        combiner = shared.combiner(**{f"holder{absent.number}": Away(absent)})
        opened = combiner.open(1, MODEL, submissions)
        np.testing.assert_array_equal(opened.total, shared.total())


def test_a_holder_that_leaves_in_the_middle_is_replaced(shared, submissions):
    leaving = Away(shared.holders[0], only_decrypting=True)
    opened = shared.combiner(holder1=leaving).open(1, MODEL, submissions)
    np.testing.assert_array_equal(opened.total, shared.total())


def test_fewer_than_t_open_nothing(shared, submissions):
    away = {f"holder{h.number}": Away(h) for h in shared.holders[1:]}
    with pytest.raises(OpeningError, match="answers of 2 share holders.*got 1"):
        shared.combiner(**away).open(1, MODEL, submissions)


def test_all_of_n_and_a_trusted_aggregators_sum():
    made = Round(3, 3, dim=50, aggregator="semi-honest")
    params, payloads = made.plan.packing.transport, made.payloads()
    total = rlwe.sum_ciphertexts(params, payloads)
    content = wire.ciphertext_to_bytes(made.plan.packing, made.opener.key_id, total)
    opened = made.opener.open_total(1, MODEL, content, list(SIGNERS))
    np.testing.assert_array_equal(opened.total, made.total())
    with pytest.raises(OpeningError, match="opened already"):
        other = wire.ciphertext_to_bytes(made.plan.packing, made.opener.key_id, payloads[0])
        made.opener.open_total(1, MODEL, other, list(SIGNERS))
    with pytest.raises(OpeningError, match="opened already|another set"):
        made.holders[0].witness_total(1, MODEL, other, list(SIGNERS))


def test_ciphertexts_that_drop_a_prime_open_exactly():
    made = Round(3, 4, dim=40_000, parameters="rlwe-8192-212")
    assert made.plan.packing.transport.name == "rlwe-8192-196"
    opened = made.opener.open(1, MODEL, made.submissions())
    np.testing.assert_array_equal(opened.total, made.total())


@pytest.mark.parametrize(("t", "n", "seen"), [(2, 4, 3), (2, 5, 3), (3, 4, 3), (2, 3, 2)])
def test_enough_holders_witness_that_no_two_sets_open_two_sums(t, n, seen):
    scheme = threshold(t, n)
    assert scheme.witnesses == seen and 2 * seen > n


# -- wrong shares ------------------------------------------------------------------------------


def test_with_exactly_t_a_wrong_answer_shifts_the_sum_and_nothing_is_claimed(shared, submissions):
    opened = shared.combiner(holder1=Liar(shared.holders[0])).open(1, MODEL, submissions)
    np.testing.assert_array_equal(opened.total, (shared.total() + 1) % (1 << BITS))
    assert "nothing is claimed about wrong shares" in shared.spec.opener


def test_with_one_more_a_wrong_answer_is_refused():
    made = Round(2, 3, dim=50, answering=3)
    sent = made.submissions()
    opened = made.opener.open(1, MODEL, sent)
    np.testing.assert_array_equal(opened.total, made.total())
    for number, in_sets in ((1, None), (2, {(1, 2)}), (3, {(2, 3)})):
        liar = Liar(made.holders[number - 1], in_sets=in_sets)
        with pytest.raises(OpeningError, match="opening round 1 .*at least one.*cannot be told"):
            made.combiner(**{f"holder{number}": liar}).open(1, MODEL, sent)
    assert "wrong answers of up to 1 of them are noticed" in made.spec.opener


def test_a_damaged_share_is_refused_and_named_where_more_answer(four):
    made, sent = four
    holder = made.holders[2]
    whole = holder._share
    broken = whole.share.copy()
    broken[0, 7, 0] ^= 1
    try:
        holder._share = dataclasses.replace(whole, share=broken)
        with pytest.raises(OpeningError, match="round 1 .*if it is one alone, it is holder 3"):
            made.combiner().open(1, MODEL, sent)
    finally:
        holder._share = whole
    opened = made.combiner().open(1, MODEL, sent)
    np.testing.assert_array_equal(opened.total, made.total())


def test_two_liars_are_noticed_and_who_lies_in_one_set_is_among_those_named(four):
    made, sent = four
    one = Liar(made.holders[0], in_sets={(1, 4)})
    with pytest.raises(OpeningError, match="one of the holders 1, 4"):
        made.combiner(holder1=one).open(1, MODEL, sent)
    both = {"holder1": Liar(made.holders[0]), "holder2": Liar(made.holders[1])}
    with pytest.raises(OpeningError, match="at least one holder's share or answer is wrong"):
        made.combiner(**both).open(1, MODEL, sent)


# -- an aggregator that cheats -----------------------------------------------------------------


def resigned(submission, **changes):
    changed = dataclasses.replace(submission, **changes)
    return changed.signed(SIGNERS[submission.client])


def test_every_holder_refuses_what_is_no_sum_of_enough_clients():
    made = Round(2, 3, dim=50)
    sent = made.submissions()
    zeros = np.zeros(made.plan.packing.ciphertext_shape, np.uint32)
    padding = wire.ciphertext_to_bytes(made.plan.packing, made.opener.key_id, zeros)
    stranger = Signer(b"s" * 32)
    invented = dataclasses.replace(sent[1], client="eve", payload=padding).signed(stranger)
    forged = dataclasses.replace(sent[1], payload=padding)
    copied = resigned(sent[1], payload=sent[0].payload)
    for holder in made.holders:
        for cheat, message in (
            (sent[:1], "at least 2 distinct"),
            ([sent[0], sent[0]], "one submission a client"),
            ([sent[0], invented], "clients of the roster"),
            ([sent[0], forged], "valid signature of 'bob'"),
            ([sent[0], copied], "count twice"),
            ([sent[0], resigned(sent[1], round=2)], "bound to this round"),
            ([sent[0], resigned(sent[1], run=bytes(16))], "bound to this run"),
            ([sent[0], resigned(sent[1], key_id=bytes(32))], "bound to this key"),
            ([sent[0], resigned(sent[1], payload=sent[1].payload[:-1])], "client 2 .*length"),
        ):
            with pytest.raises(OpeningError, match=message):
                holder.witness(1, MODEL, cheat)
        with pytest.raises(OpeningError, match="submissions of this round"):
            holder.partial_decryption(1, (1, 2) if holder.number < 3 else (2, 3), [])
        assert holder.openings_left == 16


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_no_holder_opens_a_single_client_where_no_minimum_was_set(aggregator):
    round = Round(aggregator=aggregator)
    setting = dataclasses.replace(round.setting, min_clients=1)
    opener = joint_key.ThresholdOpener(round.plan, setting, round.holders)
    for holder in round.holders:
        holder._rounds.setting = dataclasses.replace(holder._rounds.setting, min_clients=1)
    single = round.submissions()[:1]
    for party in (opener, round.holders[0]):
        with pytest.raises(OpeningError, match="2 to 4 clients' ciphertexts, as planned, got 1"):
            if aggregator == "untrusted":
                (party.open if party is opener else party.witness)(1, MODEL, single)
            else:
                give = party.open_total if party is opener else party.witness_total
                give(1, MODEL, single[0].payload, ["ada"])


def test_no_holder_takes_part_in_two_sums_of_a_round():
    made = Round(2, 3, dim=50)
    sent = made.submissions()
    statements = [holder.witness(1, MODEL, sent) for holder in made.holders]
    for holder in made.holders:
        with pytest.raises(OpeningError, match="opened already"):
            holder.witness(1, MODEL, sent[1:])  # the difference would be one client's value
    answer = made.holders[0].partial_decryption(1, (1, 2), statements)
    assert made.holders[0].partial_decryption(1, (2, 1), statements) == answer  # never fresh noise


def test_disjoint_sets_cannot_be_given_different_sums_of_a_round(four):
    made, _ = four
    sent = made.submissions(9)
    first = [made.holders[i].witness(9, MODEL, sent) for i in (0, 1)]
    second = [made.holders[i].witness(9, MODEL, sent[1:]) for i in (2, 3)]
    with pytest.raises(OpeningError, match="statements of 3 holders"):
        made.holders[0].partial_decryption(9, (1, 2), first)
    with pytest.raises(OpeningError, match="holder 3, who was given others"):
        made.holders[0].partial_decryption(9, (1, 2), first + second)
    with pytest.raises(OpeningError, match="holder 1, who was given others"):
        made.holders[3].partial_decryption(9, (3, 4), second + first)


def test_statements_and_sets_are_checked(shared):
    sent = shared.submissions(7)
    one, two, three = shared.holders
    statements = [holder.witness(7, MODEL, sent) for holder in shared.holders]
    body = shared.opener.session.read(statements[1], WITNESS, round=7).body
    forged = one.session.write(one._signer, WITNESS, 2, body, round=7)
    with pytest.raises(OpeningError, match="valid signature of holder 2"):
        one.partial_decryption(7, (1, 2), [statements[0], forged])
    with pytest.raises(OpeningError, match="of all who are active"):
        one.partial_decryption(7, (1, 2), [statements[0], statements[2]])
    with pytest.raises(OpeningError, match="of this round"):
        other = two.witness(8, MODEL, shared.submissions(8))
        one.partial_decryption(7, (1, 2), [statements[0], other])
    for active in ((1,), (1, 2, 3), (2, 3), (1, 1), (1, 4), (0, 1), ()):
        with pytest.raises(OpeningError, match="set of 2 different holders"):
            one.partial_decryption(7, active, statements)


def test_a_client_above_its_lane_uses_the_round_up():
    made = Round(2, 3, dim=50, answering=3)
    packing = made.plan.packing
    sent = made.submissions()
    value = 3 << (packing.encoding.total_bits - 1)
    while value >= packing.params.moduli.product:
        value -= 1 << packing.encoding.noise_bits
    residues = np.array([value % q for q in packing.params.moduli.primes], np.uint32)
    message = np.broadcast_to(residues[:, None, None], packing.ciphertext_shape[1:])
    count = rlwe.words_needed(packing.params, packing.num_polynomials)
    words = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint32)
    forged = rlwe.encrypt(packing.params, made.opener.public_key, message, words)
    payload = wire.ciphertext_to_bytes(packing, made.opener.key_id, np.asarray(forged))
    with pytest.raises(InvalidSum, match="a client did not encrypt as planned"):
        made.opener.open(1, MODEL, [sent[0], resigned(sent[1], payload=payload)])
    with pytest.raises(OpeningError, match="used up"):
        made.opener.open(1, MODEL, sent)


# -- openings and flooding ---------------------------------------------------------------------


def test_openings_are_counted_on_disk(tmp_path):
    made = Round(2, 3, dim=50, folder=tmp_path, max_openings=2)
    for number in (1, 2):
        made.opener.open(number, MODEL, made.submissions(number))
    assert [holder.openings_left for holder in made.holders] == [0, 0, 2]
    again = Round(2, 3, dim=50, folder=tmp_path, max_openings=2)
    assert [holder.openings_left for holder in again.holders] == [0, 0, 2]
    with pytest.raises(OpeningError, match="all 2 used up"):
        again.opener.open(3, MODEL, again.submissions(3))


def test_two_processes_with_one_folder_share_the_openings(tmp_path):
    """As two programs that were started on one folder by mistake: both read it before either
    answers."""
    one = Round(2, 3, dim=50, folder=tmp_path, max_openings=2)
    other = Round(2, 3, dim=50, folder=tmp_path, max_openings=2)
    for number, made in ((1, one), (2, other)):
        made.opener.open(number, MODEL, made.submissions(number))
    for number, made in ((3, one), (4, other)):
        with pytest.raises(OpeningError, match="all 2 used up"):
            made.opener.open(number, MODEL, made.submissions(number))
    assert len(list(tmp_path.rglob("holder-1/answer-*"))) == 2


def test_a_kill_while_an_answer_is_counted_does_not_lose_the_holder(tmp_path):
    before = Round(2, 3, dim=50, folder=tmp_path)
    folder = next(tmp_path.rglob("holder-1/share-holder.key")).parent
    (folder / "answer-000001-1.2.tmp").touch()  # write_durably's, before it is renamed
    after = Round(2, 3, dim=50, folder=tmp_path)
    assert [holder.openings_left for holder in after.holders] == [16, 16, 16]
    opened = after.opener.open(1, MODEL, after.submissions())
    np.testing.assert_array_equal(opened.total, after.total())
    assert after.opener.key_id == before.opener.key_id


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: threshold(2, 3, flooding_bits=39), "40 to 60 bits of flooding"),
        (lambda: threshold(2, 3, flooding_bits=0), "40 to 60 bits of flooding"),
        (lambda: threshold(2, 3, max_openings=0), "at least one opening"),
        (lambda: threshold(1, 3), "2 <= t <= n"),
        (lambda: threshold(4, 3), "2 <= t <= n"),
        (lambda: threshold(2, 65), "n <= 64"),
        (lambda: threshold(2.0, 3), "whole number t"),
        (lambda: threshold(2, 3, answering=1), "answering from t=2 to n=3"),
        (lambda: threshold(2, 3, answering=4), "answering from t=2 to n=3"),
        (lambda: threshold(5, 20, answering=20), "at most 64 sets"),
        (lambda: threshold(2, 5, witnesses=2), "more than half of n"),
        (lambda: threshold(2, 5, witnesses=6), "to n=5"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_more_openings_and_bits_take_more_noise_and_what_does_not_fit_is_refused():
    def noise_bits(**options):
        plan = threshold(2, 3, parameters="rlwe-8192-196", **options).plan(spec_of(10**6, 64))
        return kernels.noise_bits_needed(
            plan.packing.params, 64, plan.num_coefficients, plan.openings
        )

    assert noise_bits(max_openings=1) < noise_bits(max_openings=100)
    assert noise_bits(max_openings=100) < noise_bits(max_openings=100, flooding_bits=60)
    with pytest.raises(SpecError, match="bits in one coefficient"):
        threshold(2, 3, parameters="rlwe-4096-60").plan(spec_of(50))
    with pytest.raises(SpecError, match="within 2\\^-60 of ideal"):
        threshold(2, 3, max_openings=1 << 40, flooding_bits=60).plan(spec_of(10**6))


@pytest.mark.parametrize(
    ("t", "n", "clients", "openings"),
    [(2, 3, 1024, 8), (3, 4, 1024, 4), (4, 4, 1024, 5), (2, 3, 256, 1000), (3, 4, 256, 1000)],
)
def test_ten_bytes_a_value_with_flooding(t, n, clients, openings):
    """16-bit values and a million parameters, with 40 bits of flooding."""
    scheme = threshold(t, n, max_openings=openings, parameters="rlwe-8192-212")
    plan = scheme.plan(spec_of(1 << 20, clients).replace(modulus=1 << 16))
    assert plan.packing.encoding.num_lanes == 5
    assert plan.packing.ciphertext_bytes / (1 << 20) <= 10
    assert plan.packing.failure_log2 <= -40


# -- making the key ----------------------------------------------------------------------------


def holders_of(plan, setting, n=3):
    return [joint_key.ShareHolder(number, plan, setting) for number in range(1, n + 1)]


def carry(holders, alter=lambda step, sender, recipient, content: content):
    """Carry the messages of a key generation; `alter` plays whoever carries them."""
    identities = tuple(holder.identity for holder in holders)
    parts = {holder.number: holder.key_generation(identities) for holder in holders}
    outboxes = {number: next(part) for number, part in parts.items()}
    for step in itertools.count(1):
        inboxes = {number: [] for number in parts}
        for sender, outbox in outboxes.items():
            for recipient, content in outbox:
                for number in parts:
                    if number != sender and recipient in (0, number):
                        changed = alter(step, sender, number, content)
                        if changed is not None:
                            inboxes[number].append(changed)
        outboxes = {}
        for number, part in parts.items():
            try:
                outboxes[number] = part.send(inboxes[number])
            except StopIteration:
                continue
        if not outboxes:
            return


def test_the_key_generation_makes_one_key_whose_secret_nobody_has(shared):
    holders = holders_of(shared.plan, shared.setting)
    seen = []
    carry(holders, lambda step, s, r, content: seen.append(content) or content)
    assert len({holder.key_id for holder in holders}) == 1
    assert len({holder._share.share.tobytes() for holder in holders}) == 3
    transport = shared.plan.packing.transport
    for holder in holders:  # no share goes over in the clear
        packed = messages.residues_to_bytes(transport, holder._share.share)
        assert not any(packed[:64] in content for content in seen)
        for other, key in holder._share.pair_keys.items():
            assert holders[other - 1]._share.pair_keys[holder.number] == key


def test_who_changes_messages_of_the_key_generation_is_caught(shared):
    def drop(step, sender, recipient, content):
        return None if (step, sender, recipient) == (2, 1, 3) else content

    def swap(step, sender, recipient, content):
        return saved.setdefault(step, content) if sender < 3 else content

    def flip(step, sender, recipient, content):
        if (step, sender) != (1, 2):
            return content
        return content[:80] + bytes([content[80] ^ 1]) + content[81:]

    for alter, message in (
        (drop, "none of holder 1"),
        (swap, "two of holder"),
        (flip, "damaged bytes"),
    ):
        saved = {}
        holders = holders_of(shared.plan, shared.setting)
        with pytest.raises(OpeningError, match=message):
            carry(holders, alter)
        assert not any(holder.confirmations for holder in holders)


def test_a_holder_cannot_choose_its_part_after_it_saw_the_others(shared):
    """The rogue key: b_3 made so that the sum is a key of holder 3's own choice."""
    holders = holders_of(shared.plan, shared.setting)
    rogue, params = holders[2], shared.plan.packing.params
    parts = {}

    def alter(step, sender, recipient, content):
        if step == 4 and content[10] == KEY_PART:
            session = messages.Session(
                RUN, shared.plan.digest, tuple(holder.identity for holder in holders)
            )
            if sender != 3:
                body = session.read(content, KEY_PART).body
                parts[sender] = messages.residues_from_bytes(params, 1, body)
                return content
            others = modular.add(parts[1], parts[2], params.moduli)
            wanted = np.zeros_like(others)
            body = messages.residues_to_bytes(
                params, np.asarray(modular.sub(wanted, others, params.moduli))
            )
            return session.write(rogue._signer, KEY_PART, 3, body)
        return content

    with pytest.raises(OpeningError, match="committed to, got something else of holder 3"):
        carry(holders, alter)


def test_holders_who_saw_different_messages_do_not_confirm(shared):
    """A holder that shows different coins to different holders, with two commitments."""
    holders = holders_of(shared.plan, shared.setting)
    rogue = holders[0]
    session = messages.Session(
        RUN, shared.plan.digest, tuple(holder.identity for holder in holders)
    )

    def alter(step, sender, recipient, content):
        if sender == 1 and recipient == 3 and step in (1, 2):
            kind = content[10]
            body = session.read(content, kind).body
            coin = b"c" * 32
            digest = key_generation._commitment(1, coin)
            return session.write(rogue._signer, kind, 1, body[:32] + digest if step == 1 else coin)
        return content

    with pytest.raises(OpeningError, match="confirmations that differ"):
        carry(holders, alter)
    assert not any(holder.confirmations for holder in holders)


def test_a_sealed_share_opens_for_its_recipient_only(shared):
    holders = holders_of(shared.plan, shared.setting)
    session = messages.Session(
        RUN, shared.plan.digest, tuple(holder.identity for holder in holders)
    )
    kept = {}

    def alter(step, sender, recipient, content):
        if step == 4 and content[10] == SHARE:
            kept[sender, recipient] = content
            if (sender, recipient) == (1, 3):  # what was sealed for holder 2, under a new header
                body = session.read(kept[1, 2], SHARE, recipient=2).body
                return session.write(holders[0]._signer, SHARE, 1, body, recipient=3)
        return content

    with pytest.raises(OpeningError, match="holder 1 sealed for this holder"):
        carry(holders, alter)


@settings(max_examples=150)
@given(st.data())
def test_no_altered_message_is_read(data):
    signer = Signer(b"k" * 32)
    session = messages.Session(RUN, bytes(32), (signer.public_key,))
    body = data.draw(st.binary(max_size=40))
    content = session.write(signer, WITNESS, 1, body, round=3)
    assert session.read(content, WITNESS, round=3).body == body
    altered = bytearray(content)
    way = data.draw(st.sampled_from(["flip", "cut", "add", "foreign"]))
    if way == "flip":
        altered[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "cut":
        altered = altered[: data.draw(st.integers(0, len(content) - 1))]
    elif way == "add":
        altered += data.draw(st.binary(min_size=1, max_size=9))
    else:
        altered = data.draw(st.binary(max_size=200))
    with pytest.raises(OpeningError):
        session.read(bytes(altered), WITNESS, round=3)
    for wrong in (dict(round=4), dict(round=3, recipient=1), dict(round=3, body_bytes=41)):
        with pytest.raises(OpeningError):
            session.read(content, WITNESS, **wrong)
    with pytest.raises(OpeningError):
        session.read(content, PARTIAL, round=3)
    with pytest.raises(OpeningError):
        messages.Session(bytes(16), bytes(32), (signer.public_key,)).read(content, WITNESS, round=3)


# -- folders -----------------------------------------------------------------------------------


def test_resumes_with_the_same_key_result_and_answers(tmp_path):
    before = Round(2, 3, dim=50, folder=tmp_path)
    sent = before.submissions()
    opened = before.opener.open(1, MODEL, sent)
    statements = [holder.witness(1, MODEL, sent) for holder in before.holders[:2]]
    answer = before.holders[0].partial_decryption(1, (1, 2), statements)
    after = Round(2, 3, dim=50, folder=tmp_path)
    assert after.opener.key_id == before.opener.key_id
    np.testing.assert_array_equal(after.opener.open(1, MODEL, sent).total, opened.total)
    again = [holder.witness(1, MODEL, sent) for holder in after.holders[:2]]
    assert again == statements
    assert after.holders[0].partial_decryption(1, (1, 2), again) == answer
    with pytest.raises(OpeningError, match="opened already"):
        after.holders[0].witness(1, MODEL, sent[1:])
    second = after.opener.open(2, MODEL, after.submissions(2))
    np.testing.assert_array_equal(second.total, after.total())
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_a_lost_folder_is_a_holder_that_is_away_and_two_are_too_many(tmp_path):
    Round(2, 3, dim=50, folder=tmp_path)
    shutil.rmtree(tmp_path / "holder-2")
    after = Round(2, 3, dim=50, folder=tmp_path)
    assert "closed" in repr(after.holders[1])
    opened = after.opener.open(1, MODEL, after.submissions())
    np.testing.assert_array_equal(opened.total, after.total())
    shutil.rmtree(tmp_path / "holder-3")
    with pytest.raises(ResumeError, match="folders of 2 holders"):
        Round(2, 3, dim=50, folder=tmp_path)


def test_a_kill_while_the_key_is_confirmed_loses_nothing(tmp_path):
    before = Round(2, 3, dim=50, folder=tmp_path)
    for holder in before.holders[1:]:  # they had sent their confirmations, and read none
        holder._confirmations = []
        holder._store()
    after = Round(2, 3, dim=50, folder=tmp_path)
    assert after.opener.key_id == before.opener.key_id
    assert all(holder.confirmations for holder in after.holders)
    for holder in after.holders:
        holder._confirmations = []
        holder._store()
    anew = Round(2, 3, dim=50, folder=tmp_path)
    assert anew.opener.key_id != before.opener.key_id
    opened = anew.opener.open(1, MODEL, anew.submissions())
    np.testing.assert_array_equal(opened.total, anew.total())


def test_folders_of_another_plan_or_key_or_damaged_ones_are_refused(tmp_path):
    Round(2, 3, dim=50, folder=tmp_path / "a")
    Round(2, 3, dim=50, folder=tmp_path / "b")
    with pytest.raises(ResumeError, match="one of another plan"):
        Round(2, 3, dim=50, folder=tmp_path / "a", flooding_bits=41)
    shutil.rmtree(tmp_path / "a" / "holder-1")
    shutil.copytree(tmp_path / "b" / "holder-1", tmp_path / "a" / "holder-1")
    with pytest.raises(ResumeError, match="one of another key"):
        Round(2, 3, dim=50, folder=tmp_path / "a")
    path = tmp_path / "b" / "holder-2" / "share-holder.key"
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:40] + b"x" + content[41:], b"\xc1" * 99):
        path.write_bytes(damaged)
        with pytest.raises(ResumeError, match="cannot be read"):
            Round(2, 3, dim=50, folder=tmp_path / "b")


def test_seeded_runs_repeat_and_secure_ones_do_not():
    def key_id(source):
        return Round(2, 3, dim=5, source=source).opener.key_id

    assert key_id(SeededSource(5)) == key_id(SeededSource(5)) != key_id(SeededSource(6))
    assert key_id(SecureSource()) != key_id(SecureSource())


def test_nothing_shown_leads_to_a_secret(shared, submissions):
    shown = "".join(repr(x) for x in (shared.opener, *shared.holders, shared.states))
    for holder in shared.holders:
        share = holder._share
        assert "hidden" in repr(share)
        for secret in (share.flood_key, *share.pair_keys.values(), holder._identity):
            assert secret.hex() not in shown and repr(secret) not in shown
        assert str(int(share.share[0, 0, 0])) not in shown
        for leaf in jax.tree.leaves(shared.states):
            assert not np.array_equal(np.asarray(leaf), share.share)


def test_the_threat_text_says_who_opens_and_what_the_others_learn(shared):
    text = shared.spec.opener
    for part in (
        "any 2 of 3 share holders", "holder-1, holder-2, holder-3", "learn nothing but",
        "works with k clients", "2 - k or more", "exactly 2" if "exactly" in text else "Exactly 2",
        "In a simulation",
    ):  # fmt: skip
        assert part in text
    assert not shared.spec.readable


def test_a_closed_holder_answers_nothing():
    made = Round(2, 3, dim=5)
    made.opener.close()
    for holder in made.holders:
        with pytest.raises(PartyError, match="one that is closed"):
            holder.witness(1, MODEL, [])
        assert not holder.has_share


# -- a federation ------------------------------------------------------------------------------


def federation_of(scheme, folder=None):
    data = fs.data.heart_disease()
    stages = [fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24)]
    if scheme is not None:
        stages.append(fs.he.encrypt(scheme))
    return fs.Federation(
        fs.models.logistic_regression(data.num_features, classes=len(data.classes)),
        data,
        fs.algorithms.fed_sgd(optax.sgd(0.5)),
        fs.chain(*stages),
        selection=fs.selection.poisson_records(0.2),
        folder=folder,
        seed=4,
    )


def finished(federation, rounds=2):
    with federation:
        state = federation.init()
        for state, _ in federation.run(state, rounds=rounds):
            pass
        return model_digest(state.params)


def test_a_federation_learns_the_same_model_under_any_key_and_in_the_clear(tmp_path):
    whole = finished(federation_of(fs.he.threshold(2, 3)))
    assert whole == finished(federation_of(fs.he.public_key())) == finished(federation_of(None))
    finished(federation_of(fs.he.threshold(2, 3), tmp_path), rounds=1)
    shutil.rmtree(next(tmp_path.rglob("holder-3")))
    assert finished(federation_of(fs.he.threshold(2, 3), tmp_path)) == whole
