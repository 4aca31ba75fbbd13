"""OpenFHE as a scheme: plans, exact sums, and everything that must be refused."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import struct
from pathlib import Path

import jax
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import (
    InvalidSum,
    OpeningError,
    ParameterError,
    PartyError,
    Setting,
    Signer,
    Spec,
    SpecError,
    Submission,
    chain,
    source,
)
from fedjax_secure.core.party import Party, Refusal
from fedjax_secure.he import encrypt, openfhe_bgv, openfhe_ckks
from fedjax_secure.he.openfhe import Encryptor, KeyHolder, env, plan, plan_for, processes, scheme

BGV, CKKS = "openfhe_bgv", "openfhe_ckks"
FACTORIES = {BGV: openfhe_bgv, CKKS: openfhe_ckks}

# The wire format's constants, written out: what is sent must not change unnoticed.
MAGIC, CHECKSUM_BYTES = b"fsOpnFHE", 16

# -- plans (no OpenFHE needed) ---------------------------------------------------------------------


def prime(n):
    return n > 1 and all(n % d for d in range(2, min(n, 1 << 16)) if d * d <= n)


@given(st.integers(1, 32), st.integers(1, 1 << 20), st.integers(1, 32))
@settings(max_examples=25)
def test_a_bgv_plan_holds_every_sum_that_it_promises(ring_bits, max_summands, parties):
    made = plan_for(BGV, ring_bits, max_summands, parties)
    largest_sum = max_summands * ((1 << made.digit_bits) - 1)
    assert made.num_digits * made.digit_bits >= ring_bits
    assert 2 * largest_sum < made.plaintext_modulus < 1 << 32
    assert made.plaintext_modulus % (1 << 15) == 1 and prime(made.plaintext_modulus)
    assert made.bgv_bits_needed(4096) < 60
    assert max_summands * ((1 << made.digit_bits) - 1) * (1 << (ring_bits - 1)) < 1 << 64
    if made.num_digits > 1:  # one digit fewer would not fit
        wider = -(-ring_bits // (made.num_digits - 1))
        assert 2 * max_summands * ((1 << wider) - 1) + (1 << 26) > 1 << 32


@given(st.integers(1, 32), st.integers(1, 1 << 20), st.integers(1, 32))
@settings(max_examples=25)
def test_a_ckks_plan_holds_every_sum_that_it_promises(ring_bits, max_summands, parties):
    made = plan_for(CKKS, ring_bits, max_summands, parties)
    dimension = {53: 2048, 60: 4096}[made.modulus_bits]
    assert made.num_digits * made.digit_bits >= ring_bits
    assert made.ckks_error(dimension) < 0.25
    # what a sum's coefficients reach, scaled, with their sign and a unit of error
    reach = (max_summands * 2 ** (made.digit_bits - 1) + 1) * 2.0**made.scaling_bits
    assert 2 * reach < 2.0**made.modulus_bits
    # doubles hold every digit sum, with bits to spare below the unit
    assert max_summands * 2**made.digit_bits < 2**45


@pytest.mark.parametrize("kind", [BGV, CKKS])
@pytest.mark.parametrize("parties", [1, 32])
def test_every_ring_of_the_toolkit_fits(kind, parties):
    for ring_bits in range(2, 32):
        for max_summands in (2, 1000, 1 << 20):
            assert plan_for(kind, ring_bits, max_summands, parties).ring_bits == ring_bits


def test_the_tail_bound_is_chernoffs():
    for count in (1, 10, 1000):
        c = plan._excess(count)
        assert count * (c - 1 - math.log(c)) == pytest.approx(62 * math.log(2), rel=1e-6)
    assert plan._excess(1) > 40 and plan._excess(10**6) < 1.02


@pytest.mark.parametrize(("kind", "ring_bits", "max_summands", "parties"), [
    (BGV, 0, 4, 1), (CKKS, 33, 4, 1), (BGV, 16, 0, 1), (CKKS, 16, 2**20 + 1, 1),
    (BGV, 16, 4, 0), (CKKS, 16, 4, 33), ("openfhe_bfv", 16, 4, 1)])
def test_a_plan_out_of_range_is_refused(kind, ring_bits, max_summands, parties):
    with pytest.raises(SpecError, match="stage `encrypt` needs"):
        plan_for(kind, ring_bits, max_summands, parties)


@pytest.mark.parametrize("factory", [openfhe_bgv, openfhe_ckks])
def test_a_model_too_large_for_a_message_is_refused_when_planned(factory):
    spec = Spec(dim=40_000_000, num_clients=3, num_records=30, denominator=3.0, min_clients=2,
                dtype="int32", modulus=1 << 31)
    with pytest.raises(SpecError, match="messages below 1073741824 bytes"):
        chain(encrypt(factory())).init(spec)
    chain(encrypt(factory())).init(spec.replace(dim=1_000_000))


@pytest.mark.parametrize("parties", [0, 33, 2.0, True])
def test_a_number_of_parties_out_of_range_is_refused(parties):
    with pytest.raises(ParameterError, match="parties from 1 to 32"):
        openfhe_ckks(parties=parties)


@pytest.mark.parametrize("n", [2**32 - 5, 557057, 65537, 4293230593])
def test_known_primes(n):
    assert plan._is_prime(n) and prime(n)


@pytest.mark.parametrize("n", [3215031751, 4294967297, 561 * 3, 65537 * 65519])
def test_known_composites_with_false_witnesses(n):
    assert not plan._is_prime(n)


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment():
    """OpenFHE's interpreter; its environment is made where one can be."""
    python = env.find() or env.set_up()
    if python is None:
        pytest.skip(env.why_not() or "OpenFHE's environment could not be made")
    return python


@pytest.fixture(scope="module", params=[BGV, CKKS])
def pair(environment, request):
    """A key holder and an encryptor for 16-bit values and up to 8 clients."""
    made = plan_for(request.param, 16, 8)
    with KeyHolder(made, min_summands=1) as holder, \
            Encryptor(made, holder.public_key) as encryptor:
        yield holder, encryptor


def ring_elements(bits, clients, dim, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, (clients, dim), dtype=np.uint32)


def ring_sum(values, bits=16):
    return (values.sum(axis=0, dtype=np.uint64) & np.uint64((1 << bits) - 1)).astype(np.uint32)


@pytest.mark.openfhe
@given(clients=st.integers(1, 8), dim=st.integers(1, 5000), seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_sums_are_exact(pair, clients, dim, seed):
    holder, encryptor = pair
    values = ring_elements(16, clients, dim, seed)
    values[:, 0], values[:, -1] = 0xFFFF, 0
    values[:, dim // 2] = 0x8000
    messages = encryptor.encrypt(values)
    assert len(messages) == clients
    total = holder.sum_and_decrypt(messages, dim)
    assert total.dtype == np.uint32
    assert np.array_equal(total, ring_sum(values))


@pytest.mark.openfhe
@pytest.mark.parametrize(("kind", "bits", "clients", "dim"), [
    (BGV, 2, 1, 1), (BGV, 24, 256, 40), (BGV, 31, 100, 2100),
    (CKKS, 2, 1, 1), (CKKS, 24, 256, 40), (CKKS, 31, 100, 2100)])
def test_sums_are_exact_at_the_bound_of_the_plan(environment, kind, bits, clients, dim):
    made = plan_for(kind, bits, clients)
    with KeyHolder(made, min_summands=1) as holder, \
            Encryptor(made, holder.public_key) as encryptor:
        # the classical 128-bit rows of the HomomorphicEncryption.org table
        assert holder.about["log2_modulus"] <= {2048: 54, 4096: 109}[holder.about["ring_dimension"]]
        largest = np.full((clients, dim), (1 << (bits - 1)) - 1, np.uint32)
        for values in (largest, largest + 1, ring_elements(bits, clients, dim)):
            total = holder.sum_and_decrypt(encryptor.encrypt(values), dim)
            assert np.array_equal(total, ring_sum(values, bits))


@pytest.mark.openfhe
def test_two_encryptions_of_one_value_differ(pair):
    one, other = pair[1].encrypt(np.zeros((2, 3), np.uint32))
    assert one != other


@pytest.mark.openfhe
def test_a_ciphertext_is_in_one_opened_sum_only(pair):
    holder, encryptor = pair
    messages = encryptor.encrypt(ring_elements(16, 3, 5))
    holder.sum_and_decrypt(messages, 5)
    with pytest.raises(OpeningError, match="in no opened sum"):
        holder.sum_and_decrypt(messages[:2], 5)  # the difference would be one client's value


@pytest.mark.openfhe
def test_roles_are_kept_apart(pair):
    holder, encryptor = pair
    with pytest.raises(Refusal, match="the role KeyHolder"):
        encryptor._party.call("open_sum")
    with pytest.raises(Refusal, match="the role PublicSide"):
        holder._party.call("encrypt", values=np.zeros((1, 1), np.uint32))
    with pytest.raises(Refusal, match="the role ShareHolder"):
        holder._party.call("finish_sum")
    with pytest.raises(Refusal, match="without a role"):
        holder._party.call("hold_key", plan=processes._numbers(holder.plan), min_summands=1)
    assert holder.key_id == encryptor.key_id == hashlib.sha256(holder.public_key).digest()
    assert holder.pid != encryptor.pid != os.getpid()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.openfhe
@pytest.mark.parametrize(("values", "found"), [
    (np.full((1, 4), 1 << 16, np.uint32), "ring elements below 65536, got a larger one"),
    (np.zeros((1, 4), np.int32), "int32"), (np.zeros((1, 4), np.float32), "float32"),
    (np.zeros(4, np.uint32), r"uint32 \[4\]"), (np.zeros((0, 4), np.uint32), r"\[0, 4\]")])
def test_values_outside_the_ring_are_refused(pair, values, found):
    with pytest.raises(ParameterError, match=found):
        pair[1].encrypt(values)


@pytest.fixture(scope="module")
def message(pair):
    return pair[1].encrypt(ring_elements(16, 1, 50))[0]


def resealed(message, change, body=lambda content: content):
    """A message with another header or body, and the checksum that belongs to it."""
    start = len(MAGIC) + 4
    end = start + struct.unpack("<I", message[start - 4:start])[0]
    header = msgpack.unpackb(message[start:end])
    change(header)
    packed = msgpack.packb(header)
    content = b"".join([MAGIC, struct.pack("<I", len(packed)), packed,
                        body(message[end:-CHECKSUM_BYTES])])
    return content + hashlib.sha256(content).digest()[:CHECKSUM_BYTES]


def setting_header(place, value):
    def change(header):
        header[place] = value
    return change


@pytest.mark.openfhe
@pytest.mark.parametrize(("place", "value", "need"), [
    (0, 1, "wire format 2, got 1"), (1, "public key", "the kind of message 'ciphertext'"),
    (2, "openfhe_bfv", "the scheme 'openfhe_"), (3, "1.5.0.0", "the OpenFHE version"),
    (4, bytes(32), "the parameters"), (5, bytes(32), "the key"), (6, 51, "50 values, got 51"),
    (7, [1, 2], "parts that add up"), (7, ["x"], "parts that add up"),
    (7, [-5], "parts that add up"), (7, 5, "a header that can be read")])
def test_foreign_messages_are_refused(pair, message, place, value, need):
    assert resealed(message, lambda header: None) == message
    with pytest.raises(OpeningError, match=need):
        pair[0].sum_and_decrypt([resealed(message, setting_header(place, value))], 50)


@pytest.mark.openfhe
@given(st.data())
@settings(max_examples=20)
def test_damaged_messages_are_refused(pair, message, data):
    cut = message[:data.draw(st.integers(0, len(message) - 1))]
    flipped = bytearray(message)
    flipped[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    for bad in (cut, bytes(flipped), message + b"x"):
        with pytest.raises(OpeningError, match="a whole message"):
            pair[0].sum_and_decrypt([bad], 50)


@pytest.mark.openfhe
def test_ciphertexts_that_are_no_encryptions_are_refused(pair, message):
    def noise(content):  # keeps the serialised structure, replaces the coefficients
        middle = os.urandom(8000)
        return content[:4000] + middle + content[12000:]

    with pytest.raises(InvalidSum, match="values that no such sum can have"):
        pair[0].sum_and_decrypt([resealed(message, lambda header: None, noise)], 50)
    cut = setting_header(7, [100])
    with pytest.raises(OpeningError, match="parts of the size"):
        pair[0].sum_and_decrypt([resealed(message, cut, lambda content: content[:100])], 50)


@pytest.mark.openfhe
@pytest.mark.parametrize(("residual", "fails"), [(0.2, False), (0.3, True), (0.5, True)])
def test_a_residual_above_a_quarter_is_an_invalid_sum(environment, residual, fails):
    """Another program encrypts values that are no integers, under the key holder's public key."""
    made = plan_for(CKKS, 16, 2)
    assert (made.modulus_bits, made.num_digits) == (53, 1)
    script = Path(__file__).with_name("openfhe_peer.py")
    with KeyHolder(made, min_summands=1) as holder, \
            Encryptor(made, holder.public_key) as encryptor, \
            Party(script, name="OpenFHE peer", interpreter=environment) as peer:
        message, = encryptor.encrypt(np.full((1, 3), 7, np.uint32))
        peer.call("make", scheme="CKKSRNS", depth=0, first=53, scaling=made.scaling_bits)
        start = len(MAGIC) + 4
        key = holder.public_key[start:-CHECKSUM_BYTES]
        key = key[struct.unpack("<I", holder.public_key[start - 4:start])[0]:]
        row = np.zeros((1, 1024))
        row[0, :3] = (7.0, 7.0, 7.0 + residual)  # centred ring elements, one digit
        forged, = peer.call("encrypt", values=row, public_key=key)
        forged = resealed(message, setting_header(7, [len(forged)]), lambda content: forged)
        if fails:
            with pytest.raises(InvalidSum, match="no such sum can have"):
                holder.sum_and_decrypt([forged], 3)
        else:
            assert holder.sum_and_decrypt([forged], 3).tolist() == [7, 7, 7]


@pytest.mark.openfhe
@pytest.mark.parametrize("kind", [BGV, CKKS])
def test_too_many_too_few_and_doubled_ciphertexts_are_refused(environment, kind):
    plan = plan_for(kind, 16, 4)
    values = ring_elements(16, 5, 7)
    with KeyHolder(plan, min_summands=3) as holder, \
            Encryptor(plan, holder.public_key) as encryptor:
        messages = encryptor.encrypt(values)
        with pytest.raises(OpeningError, match="at most 4 summands"):
            holder.sum_and_decrypt(messages, 7)
        with pytest.raises(OpeningError, match="one ciphertext twice"):
            holder.sum_and_decrypt([messages[0]] * 3, 7)
        with pytest.raises(OpeningError, match="at least 3 different ciphertexts, got 2"):
            holder.sum_and_decrypt(messages[:2], 7)
        with pytest.raises(OpeningError, match="at least 3 different ciphertexts, got 0"):
            holder.sum_and_decrypt([], 7)
        total = holder.sum_and_decrypt(messages[:4], 7)  # a refusal leaves nothing behind
        assert np.array_equal(total, ring_sum(values[:4]))


@pytest.mark.openfhe
def test_a_single_ciphertext_is_no_sum_where_no_minimum_was_set(environment):
    plan, values = plan_for(BGV, 16, 4), ring_elements(16, 2, 7)
    with KeyHolder(plan) as holder, Encryptor(plan, holder.public_key) as encryptor:
        with pytest.raises(OpeningError, match="at least 2 different ciphertexts, got 1"):
            holder.sum_and_decrypt(encryptor.encrypt(values[:1]), 7)
        total = holder.sum_and_decrypt(encryptor.encrypt(values), 7)
        assert np.array_equal(total, ring_sum(values))
    aggregation, states, _, setting, opener = ready(fewest=1)
    try:
        sent = submissions(aggregation, states, setting, opener.key_id,
                           np.ones((1, DIM), np.int32))
        with pytest.raises(OpeningError, match="at least 2 different ciphertexts, got 1"):
            opener.open(1, MODEL, sent)
    finally:
        opener.close()


@pytest.mark.openfhe
def test_another_key_and_another_plan_are_refused(pair):
    plan = pair[0].plan
    with KeyHolder(plan) as other, Encryptor(plan, other.public_key) as encryptor:
        foreign = encryptor.encrypt(np.ones((1, 3), np.uint32))
        with pytest.raises(OpeningError, match="got another key"):
            pair[0].sum_and_decrypt(foreign, 3)
    with pytest.raises(ParameterError, match="got other parameters"):
        Encryptor(plan_for(plan.scheme, 16, 9), pair[0].public_key)
    with pytest.raises(ParameterError, match="a whole message"):
        Encryptor(plan, pair[0].public_key[:-1])


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.openfhe
def test_an_encryptor_that_dies_is_replaced(pair):
    values = ring_elements(16, 2, 10)
    with Encryptor(pair[0].plan, pair[0].public_key) as encryptor:
        first = encryptor.pid
        os.kill(first, signal.SIGKILL)
        try:
            messages = encryptor.encrypt(values)
        except PartyError as error:  # it died so late that the call had begun
            assert "SIGKILL" in str(error)
            messages = encryptor.encrypt(values)
        assert encryptor.pid != first
        assert np.array_equal(pair[0].sum_and_decrypt(messages, 10), ring_sum(values))
    with pytest.raises(PartyError, match="one that was closed"):
        encryptor.encrypt(values)


@pytest.mark.openfhe
def test_a_key_holder_that_dies_says_what_is_lost(environment):
    plan = plan_for(CKKS, 16, 2)
    with KeyHolder(plan) as holder, Encryptor(plan, holder.public_key) as encryptor:
        messages = encryptor.encrypt(np.ones((2, 3), np.uint32))
        os.kill(holder.pid, signal.SIGKILL)
        with pytest.raises(PartyError, match="SIGKILL") as died:
            holder.sum_and_decrypt(messages, 3)
        assert "no sum was opened" in died.value.fix
        assert "running=False" in repr(holder)


# -- as a scheme at the end of a chain -------------------------------------------------------------

MODULUS, DIM, RUN, MODEL = 1 << 20, 2500, bytes(16), bytes(32)
SIGNERS = {name: Signer(hashlib.sha256(name.encode()).digest()) for name in ("a", "b", "c")}


def ready(folder=None, seed=None, kind=BGV, fewest=2):
    aggregation = chain(encrypt(FACTORIES[kind]()))
    spec = Spec(dim=DIM, num_clients=3, num_records=30, denominator=3.0, min_clients=2,
                dtype="int32", modulus=MODULUS, client_name="hospital")
    states, spec = aggregation.init(spec)
    setting = Setting(RUN, {name: signer.public_key for name, signer in SIGNERS.items()},
                      fewest, source(seed), folder)
    states, opener = aggregation.setup(states, spec, setting)
    return aggregation, states, spec, setting, opener


def submissions(aggregation, states, setting, key_id, values, round=1):
    keys = np.zeros((len(values), 8), np.uint32)
    payloads, _ = jax.jit(aggregation.encode)(states, keys, values)
    return [Submission(name, RUN, round, MODEL, key_id, message).signed(signer)
            for (name, signer), message in zip(
                SIGNERS.items(), aggregation.to_wire(states, payloads, setting), strict=False)]


@pytest.mark.openfhe
@pytest.mark.parametrize(("kind", "seed"), [(BGV, None), (BGV, 7), (CKKS, None)])
def test_a_chain_opens_the_ring_sum(environment, kind, seed):
    aggregation, states, spec, setting, opener = ready(seed=seed, kind=kind)
    values = np.random.default_rng(1).integers(-MODULUS, MODULUS, (3, DIM), dtype=np.int32)
    try:
        signed = submissions(aggregation, states, setting, opener.key_id, values)
        opened = opener.open(1, MODEL, signed)
        assert opened.total.dtype == np.uint32 and opened.clients == ("a", "b", "c")
        assert np.array_equal(opened.total, values.sum(axis=0) % MODULUS)
        with pytest.raises(OpeningError, match="at least 2 distinct clients"):
            opener.open(2, MODEL, submissions(aggregation, states, setting, opener.key_id,
                                              values[:1], round=2))
    finally:
        opener.close()
    threat = str(spec.threat_model())
    assert not spec.readable and "2 or more distinct ciphertexts" in threat
    assert "never of fewer than 2 - k together" in threat and kind[-4:].upper().strip("_") in threat
    assert opener.key_id.hex()[:16] in repr(opener)
    with pytest.raises(PartyError, match="whose opener was closed"):
        submissions(aggregation, states, setting, opener.key_id, values)


@pytest.mark.openfhe
def test_a_killed_key_holder_costs_no_opened_round(environment, tmp_path, monkeypatch):
    holders = []

    class NotedKeyHolder(KeyHolder):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            holders.append(self)

    monkeypatch.setattr(scheme, "KeyHolder", NotedKeyHolder)
    values = np.random.default_rng(2).integers(0, 1000, (3, DIM), dtype=np.int32)
    aggregation, states, _, setting, opener = ready(tmp_path)
    first = opener.open(1, MODEL, submissions(aggregation, states, setting, opener.key_id, values))
    second = submissions(aggregation, states, setting, opener.key_id, values, round=2)
    os.kill(holders[-1].pid, signal.SIGKILL)
    with pytest.raises(PartyError, match="SIGKILL"):
        opener.open(2, MODEL, second)
    assert opener.opened(2) is None
    opener.close()

    aggregation, states, _, setting, opener = ready(tmp_path)  # the run is set up again
    try:
        assert np.array_equal(opener.opened(1).total, first.total)
        with pytest.raises(OpeningError, match="bound to another key"):
            opener.open(2, MODEL, second)
        again = submissions(aggregation, states, setting, opener.key_id, values, round=2)
        assert np.array_equal(opener.open(2, MODEL, again).total, values.sum(axis=0))
    finally:
        opener.close()
