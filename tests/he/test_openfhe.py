"""OpenFHE as a party: plans, the environment, exact sums, and everything that must be refused."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys

import jax
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import (
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
from fedjax_secure.core.party import Refusal
from fedjax_secure.he import encrypt, openfhe, openfhe_env, openfhe_party
from fedjax_secure.he.openfhe import Encryptor, KeyHolder, openfhe_bgv, plan_for

# -- plans (no OpenFHE needed) ---------------------------------------------------------------------


def prime(n):
    return n > 1 and all(n % d for d in range(2, min(n, 1 << 16)) if d * d <= n)


@given(st.integers(1, 32), st.integers(1, 1 << 20))
@settings(max_examples=25)
def test_a_plan_holds_every_sum_that_it_promises(ring_bits, max_summands):
    plan = plan_for(ring_bits, max_summands)
    largest_sum = max_summands * ((1 << plan.digit_bits) - 1)
    assert plan.num_digits * plan.digit_bits >= ring_bits
    assert 2 * largest_sum < plan.plaintext_modulus < 1 << 32
    assert plan.plaintext_modulus % (1 << 15) == 1 and prime(plan.plaintext_modulus)
    assert max_summands * ((1 << plan.digit_bits) - 1) * (1 << (ring_bits - 1)) < 1 << 64
    if plan.num_digits > 1:  # one digit fewer would not fit
        wider = -(-ring_bits // (plan.num_digits - 1))
        assert 2 * max_summands * ((1 << wider) - 1) + (1 << 26) > 1 << 32


@pytest.mark.parametrize(("ring_bits", "max_summands"), [(0, 4), (33, 4), (16, 0), (16, 2**20 + 1)])
def test_a_plan_out_of_range_is_refused(ring_bits, max_summands):
    with pytest.raises(SpecError, match="stage `encrypt` needs"):
        plan_for(ring_bits, max_summands)


@pytest.mark.parametrize("n", [2**32 - 5, 557057, 65537, 4293230593])
def test_known_primes(n):
    assert openfhe._is_prime(n) and prime(n)


@pytest.mark.parametrize("n", [3215031751, 4294967297, 561 * 3, 65537 * 65519])
def test_known_composites_with_false_witnesses(n):
    assert not openfhe._is_prime(n)


# -- the environment -------------------------------------------------------------------------------


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """A machine on which no Python but this one can be found, and nothing was set up."""
    for name in ("XDG_CACHE_HOME", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv(openfhe_env.VARIABLE, raising=False)
    if openfhe_env.find() is not None:
        pytest.skip("openfhe imports in this interpreter, so it is never missing")


def test_where_openfhe_is_missing_the_error_has_the_command(bare_machine):
    with pytest.raises(PartyError, match=openfhe_env.COMMAND) as missing:
        KeyHolder(plan_for(16, 4))
    assert missing.value.found
    assert encrypt(openfhe_bgv()).name == "encrypt"  # only a run needs OpenFHE


def test_a_variable_that_names_a_python_without_openfhe_is_an_error(bare_machine, monkeypatch):
    monkeypatch.setenv(openfhe_env.VARIABLE, sys.executable)
    with pytest.raises(PartyError, match="openfhe") as failed:
        KeyHolder(plan_for(16, 4))
    assert openfhe_env.COMMAND in failed.value.fix
    assert "No module named 'openfhe'" in failed.value.found or "ImportError" in failed.value.found
    monkeypatch.setenv(openfhe_env.VARIABLE, "/no/such/python")
    with pytest.raises(PartyError, match="No such file"):
        KeyHolder(plan_for(16, 4))


def test_the_set_up_says_so_where_no_python_will_do_and_exits_with_0(bare_machine):
    done = subprocess.run([sys.executable, openfhe_env.__file__], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert "OpenFHE is left out: " in done.stdout and openfhe_env.COMMAND in done.stdout
    assert not openfhe_env.folder().exists()


def test_another_system_is_told_apart(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux on x86-64" in openfhe_env.why_not()


def test_only_wheels_for_this_glibc_are_tried(monkeypatch):
    def pythons(text):
        monkeypatch.setattr(os, "confstr", lambda name: text)
        return [build.python for build in openfhe_env._usable_builds()]

    assert pythons("glibc 2.31") == [] and "glibc 2.35" in openfhe_env.why_not()
    assert pythons("glibc 2.36") == [(3, 10)]
    assert pythons("glibc 2.39") == [(3, 10), (3, 12)]
    assert pythons(None) == []


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment():
    """OpenFHE's interpreter; its environment is made where one can be."""
    python = openfhe_env.find() or openfhe_env.set_up()
    if python is None:
        pytest.skip(openfhe_env.why_not() or "OpenFHE's environment could not be made")
    return python


@pytest.fixture(scope="module")
def pair(environment):
    """A key holder and an encryptor for 16-bit values and up to 8 clients."""
    plan = plan_for(16, 8)
    with KeyHolder(plan) as holder, Encryptor(plan, holder.public_key) as encryptor:
        yield holder, encryptor


def ring_elements(bits, clients, dim, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, (clients, dim), dtype=np.uint32)


@pytest.mark.openfhe
def test_a_second_set_up_does_nothing(environment):
    before = environment.stat().st_mtime_ns, environment.parent.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-W", "error", openfhe_env.__file__], capture_output=True, text=True,
        check=True)
    assert done.stdout == f"OpenFHE is ready: {environment}\n" and done.stderr == ""
    assert before == (environment.stat().st_mtime_ns, environment.parent.stat().st_mtime_ns)


@pytest.mark.openfhe
@given(clients=st.integers(1, 8), dim=st.integers(1, 5000), seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_sums_are_exact(pair, clients, dim, seed):
    holder, encryptor = pair
    values = ring_elements(16, clients, dim, seed)
    values[:, 0], values[:, -1] = 0xFFFF, 0
    messages = encryptor.encrypt(values)
    assert len(messages) == clients
    total = holder.sum_and_decrypt(messages, dim)
    assert total.dtype == np.uint64
    assert np.array_equal(total, values.sum(axis=0, dtype=np.uint64))


@pytest.mark.openfhe
@pytest.mark.parametrize(("bits", "clients", "dim"), [
    (1, 1, 1), (20, 64, 300), (24, 256, 40), (31, 100, 2100), (32, 3, 5000)])
def test_sums_are_exact_at_the_bound_of_the_plan(environment, bits, clients, dim):
    plan = plan_for(bits, clients)
    values = np.full((clients, dim), (1 << bits) - 1, np.uint32)
    with KeyHolder(plan) as holder, Encryptor(plan, holder.public_key) as encryptor:
        assert holder.about["log2_modulus"] <= {2048: 54, 4096: 109}[holder.about["ring_dimension"]]
        total = holder.sum_and_decrypt(encryptor.encrypt(values), dim)
        assert np.array_equal(total, values.sum(axis=0, dtype=np.uint64))
        if clients > 1:
            values = ring_elements(bits, clients, dim)
            total = holder.sum_and_decrypt(encryptor.encrypt(values), dim)
            assert np.array_equal(total, values.sum(axis=0, dtype=np.uint64))


@pytest.mark.openfhe
def test_two_encryptions_of_one_value_differ(pair):
    one, other = pair[1].encrypt(np.zeros((2, 3), np.uint32))
    assert one != other


@pytest.mark.openfhe
def test_roles_are_kept_apart(pair):
    holder, encryptor = pair
    with pytest.raises(Refusal, match="the role KeyHolder"):
        encryptor._party.call("open_sum")
    with pytest.raises(Refusal, match="the role Encryptor"):
        holder._party.call("encrypt", values=np.zeros((1, 1), np.uint32))
    with pytest.raises(Refusal, match="without a role"):
        holder._party.call("hold_key", plan=openfhe._numbers(holder.plan), min_summands=1)
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
    start = len(openfhe_party._MAGIC) + 4
    end = start + struct.unpack("<I", message[start - 4:start])[0]
    header = msgpack.unpackb(message[start:end])
    change(header)
    packed = msgpack.packb(header)
    content = b"".join([openfhe_party._MAGIC, struct.pack("<I", len(packed)), packed,
                        body(message[end:-openfhe_party._CHECKSUM_BYTES])])
    return content + hashlib.sha256(content).digest()[:openfhe_party._CHECKSUM_BYTES]


def setting_header(place, value):
    def change(header):
        header[place] = value
    return change


@pytest.mark.openfhe
@pytest.mark.parametrize(("place", "value", "need"), [
    (0, 2, "wire format 1, got 2"), (1, "public key", "the kind of message 'ciphertext'"),
    (2, "openfhe_ckks", "the scheme 'openfhe_bgv'"), (3, "1.5.0.0", "the OpenFHE version"),
    (4, bytes(32), "the parameters"), (5, bytes(32), "the key"), (6, 51, "50 values, got 51"),
    (7, [1, 2], "parts that add up"), (7, ["x"], "a header that can be read"),
    (7, [-5], "parts that add up")])
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

    with pytest.raises(OpeningError, match="values that no such sum can have"):
        pair[0].sum_and_decrypt([resealed(message, lambda header: None, noise)], 50)
    cut = setting_header(7, [100])
    with pytest.raises(OpeningError, match="parts of the size"):
        pair[0].sum_and_decrypt([resealed(message, cut, lambda content: content[:100])], 50)


@pytest.mark.openfhe
def test_too_many_too_few_and_doubled_ciphertexts_are_refused(environment):
    plan = plan_for(16, 4)
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
        assert np.array_equal(total, values[:4].sum(axis=0, dtype=np.uint64))


@pytest.mark.openfhe
def test_another_key_and_another_plan_are_refused(pair):
    plan = plan_for(16, 8)
    with KeyHolder(plan) as other, Encryptor(plan, other.public_key) as encryptor:
        foreign = encryptor.encrypt(np.ones((1, 3), np.uint32))
        with pytest.raises(OpeningError, match="got another key"):
            pair[0].sum_and_decrypt(foreign, 3)
    with pytest.raises(ParameterError, match="got other parameters"):
        Encryptor(plan_for(16, 9), pair[0].public_key)
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
        assert np.array_equal(pair[0].sum_and_decrypt(messages, 10), values.sum(axis=0))
    with pytest.raises(PartyError, match="one that was closed"):
        encryptor.encrypt(values)


@pytest.mark.openfhe
def test_a_key_holder_that_dies_says_what_is_lost(environment):
    plan = plan_for(16, 2)
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


def ready(folder=None, seed=None):
    scheme = openfhe_bgv()
    aggregation = chain(encrypt(scheme))
    spec = Spec(dim=DIM, num_clients=3, num_records=30, denominator=3.0, min_clients=2,
                dtype="int32", modulus=MODULUS, client_name="hospital")
    states, spec = aggregation.init(spec)
    setting = Setting(RUN, {name: signer.public_key for name, signer in SIGNERS.items()},
                      spec.min_clients, source(seed), folder)
    states, opener = aggregation.setup(states, spec, setting)
    return aggregation, states, spec, setting, opener


def submissions(aggregation, states, setting, key_id, values, round=1):
    keys = np.zeros((len(values), 8), np.uint32)
    payloads, _ = jax.jit(aggregation.encode)(states, keys, values)
    return [Submission(name, RUN, round, MODEL, key_id, message).signed(signer)
            for (name, signer), message in zip(
                SIGNERS.items(), aggregation.to_wire(states, payloads, setting), strict=False)]


@pytest.mark.openfhe
@pytest.mark.parametrize("seed", [None, 7])
def test_a_chain_opens_the_ring_sum(environment, seed):
    aggregation, states, spec, setting, opener = ready(seed=seed)
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
    assert not spec.readable and "2 or more distinct ciphertexts" in str(spec.threat_model())
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

    monkeypatch.setattr(openfhe, "KeyHolder", NotedKeyHolder)
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
