"""OpenFHE's n-of-n shares: every holder in a process of its own, and what each refuses."""

from __future__ import annotations

import hashlib
import os
import signal

import numpy as np
import pytest

from fedjax_secure.core import InvalidSum, OpeningError, PartyError, Setting, Spec, chain, source
from fedjax_secure.core.party import Party, Refusal
from fedjax_secure.he import encrypt, openfhe_bgv, openfhe_ckks
from fedjax_secure.he.openfhe import Encryptor, KeyHolders, env, plan_for

BGV, CKKS = "openfhe_bgv", "openfhe_ckks"
PARTIES = 3


def ring_elements(bits, clients, dim, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, (clients, dim), dtype=np.uint32)


def ring_sum(values, bits=16):
    return (values.sum(axis=0, dtype=np.uint64) & np.uint64((1 << bits) - 1)).astype(np.uint32)


@pytest.mark.parametrize("factory", [openfhe_bgv, openfhe_ckks])
def test_the_threat_model_says_what_openfhe_gives(factory):
    aggregation = chain(encrypt(factory(parties=PARTIES)))
    spec = Spec(dim=5, num_clients=100, num_records=30, denominator=3.0, min_clients=20,
                dtype="int32", modulus=1 << 31, client_name="hospital")
    _, spec = aggregation.init(spec)
    text = spec.opener
    # sigma = 3.19 sqrt(100 (3 * 4 N / 3 + 1)) at N = 4096 is 2^12: 8 of the 20 bits are left
    assert "standard deviation 2^20, 8 bits above the noise" in text
    assert "3 key holders together" in text and "n-of-n" in text
    assert "never of fewer than 20 - k together" in text and "all key holders as well" in text
    assert "sums of 2 digits of each value" in text


@pytest.mark.parametrize(("kind", "parties", "summands"), [(BGV, 2, 4), (CKKS, 3, 1000)])
def test_the_flooding_margin_is_the_ratio_of_the_deviations(kind, parties, summands):
    """Sampled: the noise e u + e0 + e1 s of one sum's worth of encryptions, in one coefficient."""
    plan, degree = plan_for(kind, 16, summands, parties), 256
    rng = np.random.default_rng(0)
    draws = 4000
    error = rng.normal(0, 3.19, (2, draws, degree))
    joint = error[0] * np.sqrt(parties)  # the joint key's error is the sum of the parties'
    ternary = rng.integers(-1, 2, (draws, degree))
    secret = rng.integers(-1, 2, (parties, draws, degree)).sum(axis=0)
    noise = (joint * ternary + error[1] * secret).sum(axis=1) + rng.normal(0, 3.19, draws)
    sampled = 20 - np.log2(noise.std() * np.sqrt(summands))
    # the deviation of 4000 draws is within 10 % but for 10 standard errors: alarm rate below 1e-15
    assert plan.flooding_margin_bits(degree) == pytest.approx(sampled, abs=0.17)


@pytest.fixture(scope="module")
def environment():
    python = env.find() or env.set_up()
    if python is None:
        pytest.skip(env.why_not() or "OpenFHE's environment could not be made")
    return python


@pytest.fixture(scope="module", params=[BGV, CKKS])
def group(environment, request):
    """Three holders and an encryptor for 16-bit values of up to 8 clients, at least 2."""
    plan = plan_for(request.param, 16, 8, PARTIES)
    with KeyHolders(plan, min_summands=2) as holders, \
            Encryptor(plan, holders.public_key) as encryptor:
        yield holders, encryptor


@pytest.mark.openfhe
@pytest.mark.parametrize(("clients", "dim"), [(2, 1), (8, 4097), (5, 300_000)])
def test_sums_are_exact(group, clients, dim):
    holders, encryptor = group
    values = ring_elements(16, clients, dim)
    values[:, 0] = 0x8000
    total = holders.sum_and_decrypt(encryptor.encrypt(values), dim)
    assert total.dtype == np.uint32 and np.array_equal(total, ring_sum(values))


@pytest.mark.openfhe
@pytest.mark.parametrize(("kind", "bits", "clients", "parties"), [
    (BGV, 31, 64, 5), (CKKS, 31, 64, 5), (CKKS, 22, 64, 2)])
def test_sums_are_exact_at_the_bound_of_the_plan(environment, kind, bits, clients, parties):
    plan = plan_for(kind, bits, clients, parties)
    with KeyHolders(plan) as holders, Encryptor(plan, holders.public_key) as encryptor:
        assert holders.about["log2_modulus"] <= {2048: 54, 4096: 109}[
            holders.about["ring_dimension"]]
        largest = np.full((clients, 700), (1 << (bits - 1)) - 1, np.uint32)
        for values in (largest, largest + 1):
            total = holders.sum_and_decrypt(encryptor.encrypt(values), 700)
            assert np.array_equal(total, ring_sum(values, bits))


@pytest.mark.openfhe
def test_every_holder_checks_for_itself(group):
    holders, encryptor = group
    messages = encryptor.encrypt(ring_elements(16, 9, 5))
    for given, need in (
            (messages[:1], "at least 2 different ciphertexts, got 1"), (messages, "at most 8"),
            ([messages[0]] * 2, "one ciphertext twice"), ([messages[0][:-1]] * 2, "a whole")):
        with pytest.raises(OpeningError, match=need):
            holders.sum_and_decrypt(given, 5)
        for holder in holders._holders:  # each of them, asked alone
            holder.call("begin_sum", dim=5)
            with pytest.raises(Refusal, match=need):
                holder.call("add", ciphertexts=given)
                holder.call("finish_sum")
            with pytest.raises(Refusal, match="the next part of a finished sum"):
                holder.call("partial", start=0, count=1)
    holders.sum_and_decrypt(messages[:3], 5)
    with pytest.raises(OpeningError, match="in no opened sum"):
        holders.sum_and_decrypt(messages[:2], 5)
    for holder in holders._holders:
        with pytest.raises(Refusal, match="the next part of a finished sum"):
            holder.call("partial", start=0, count=1)  # a second draw of noise would average out


@pytest.mark.openfhe
def test_fewer_than_all_open_nothing(group):
    holders, encryptor = group
    values = ring_elements(16, 3, 5)
    messages = encryptor.encrypt(values)
    for holder in holders._holders:
        holder.call("begin_sum", dim=5)
        holder.call("add", ciphertexts=messages)
        assert holder.call("finish_sum") == [3, 1]
    partials = [holder.call("partial", start=0, count=1) for holder in holders._holders]
    fusion = holders._fusion
    fusion.call("begin_fusion")
    with pytest.raises(Refusal, match="one from each of 3 parties, got 2"):
        fusion.call("fuse", partials=partials[:2], dim=5)
    fusion.call("fuse", partials=[partials[0], partials[1], partials[1]], dim=5)
    assert fusion.call("fused", dim=5, terms=3) == {"valid": False}
    fusion.call("begin_fusion")
    fusion.call("fuse", partials=partials, dim=5)
    assert np.array_equal(fusion.call("fused", dim=5, terms=3)["total"], ring_sum(values))
    with pytest.raises(Refusal, match="the role KeyHolder"):
        fusion.call("open_sum")


@pytest.mark.openfhe
def test_holders_that_summed_different_messages_open_nothing(group):
    holders, encryptor = group
    messages = encryptor.encrypt(ring_elements(16, 4, 5))
    for holder, given in zip(holders._holders, (messages[:2], messages[:3], messages[1:]),
                             strict=True):
        holder.call("begin_sum", dim=5)
        holder.call("add", ciphertexts=given)
        holder.call("finish_sum")
    partials = [holder.call("partial", start=0, count=1) for holder in holders._holders]
    holders._fusion.call("begin_fusion")
    holders._fusion.call("fuse", partials=partials, dim=5)
    assert holders._fusion.call("fused", dim=5, terms=3) == {"valid": False}


@pytest.mark.openfhe
@pytest.mark.parametrize("number", [1, 3])
def test_a_holder_that_dies_is_named_and_nothing_is_opened(environment, number):
    plan = plan_for(CKKS, 16, 4, PARTIES)
    with KeyHolders(plan) as holders, Encryptor(plan, holders.public_key) as encryptor:
        messages = encryptor.encrypt(ring_elements(16, 2, 5))
        os.kill(holders.pids[number - 1], signal.SIGKILL)
        with pytest.raises(PartyError, match=f"key holder {number} of 3.*SIGKILL") as died:
            holders.sum_and_decrypt(messages, 5)
        assert "share of the key is gone" in died.value.fix
        assert "no sum was opened" in died.value.fix
        with pytest.raises(PartyError, match=f"key holder {number} of 3"):
            holders.sum_and_decrypt(messages, 5)
        assert "running=2 of 3" in repr(holders)
    assert len(set(holders.pids)) == PARTIES


@pytest.mark.openfhe
def test_a_fusion_that_dies_opens_nothing_and_the_sum_is_used_up(environment):
    plan = plan_for(BGV, 16, 4, 2)
    with KeyHolders(plan) as holders, Encryptor(plan, holders.public_key) as encryptor:
        messages = encryptor.encrypt(ring_elements(16, 2, 5))
        os.kill(holders._fusion.pid, signal.SIGKILL)
        with pytest.raises(PartyError, match="OpenFHE fusion.*SIGKILL") as died:
            holders.sum_and_decrypt(messages, 5)
        assert "no sum was opened" in died.value.fix
        with pytest.raises(OpeningError, match="in no opened sum"):
            holders.sum_and_decrypt(messages, 5)


@pytest.mark.openfhe
def test_holders_give_away_public_keys_and_partial_decryptions_only(environment, monkeypatch):
    replies = []
    call = Party.call

    def noted(party, method, **arguments):
        reply = call(party, method, **arguments)
        replies.append((method, dict(reply) if isinstance(reply, dict) else reply))
        return reply

    monkeypatch.setattr(Party, "call", noted)
    plan = plan_for(BGV, 16, 4, 2)
    with KeyHolders(plan) as holders, Encryptor(plan, holders.public_key) as encryptor:
        holders.sum_and_decrypt(encryptor.encrypt(ring_elements(16, 2, 5)), 5)
        with pytest.raises(Refusal, match="one joint key, got a second"):
            holders._holders[0].call("join", public_key=holders.public_key)
    shares = [reply for method, reply in replies if method == "hold_share"]
    assert [sorted(share) for share in shares] == [
        ["key_id", "log2_modulus", "parameters", "public_key", "ring_dimension"]] * 2
    by_holders = {"hold_share", "join", "begin_sum", "add", "finish_sum", "partial"}
    assert {method for method, _ in replies} - by_holders == {
        "load_public_key", "encrypt", "begin_fusion", "fuse", "fused"}
    for method, reply in replies:
        if method in ("join", "begin_sum", "add"):
            assert reply is None
        elif method == "finish_sum":
            assert reply == [2, 1]
        elif method == "partial":
            assert reply[:8] == b"fsOpnFHE" and b"partial decryption" in reply[:100]


@pytest.mark.openfhe
@pytest.mark.parametrize("factory", [openfhe_bgv, openfhe_ckks])
def test_as_a_scheme_and_a_sum_that_is_invalid_uses_the_round_up(environment, factory):
    scheme = factory(parties=2)
    spec = Spec(dim=50, num_clients=3, num_records=30, denominator=3.0, min_clients=2,
                dtype="int32", modulus=1 << 20)
    plan = scheme.plan(spec)
    setting = Setting(bytes(16), {}, 2, source())
    keys, opener = scheme.generate(plan, spec, setting)
    try:
        values = ring_elements(20, 3, 50)
        messages = scheme.to_wire(plan, keys, values, setting)
        assert np.array_equal(opener._open_payloads(messages), ring_sum(values, 20))
        bits = plan.digit_bits
        above = np.full((2, 50), (1 << bits) - 1, np.uint32)  # fits, and is no fault
        assert np.array_equal(
            opener._open_payloads(scheme.to_wire(plan, keys, above, setting)), ring_sum(above, 20))
        forged = scheme.to_wire(plan, keys, values, setting)
        with pytest.raises(InvalidSum, match="no such sum can have"):
            opener._open_payloads([_with_noise(forged[0]), *forged[1:]])
    finally:
        opener.close()
    with pytest.raises(PartyError, match="whose opener was closed"):
        scheme.to_wire(plan, keys, values, setting)


def _with_noise(message):
    """Other coefficients in a ciphertext, and the checksum that belongs to it."""
    body = message[:4000] + os.urandom(8000) + message[12000:-16]
    return body + hashlib.sha256(body).digest()[:16]
