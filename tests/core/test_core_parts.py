"""Randomness, records, errors and the ring, each on its own."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core import (
    Cohort,
    ParameterError,
    ResumeError,
    RoundRecord,
    SeededSource,
    Signer,
    SpecError,
    Stream,
    model_digest,
    source,
)
from fedjax_secure.core.randomness import device_keys, host_words
from fedjax_secure.core.ring import centre, modulus_of, wrap


def test_streams_are_openssls_chacha20_and_never_share_a_nonce():
    key = bytes(range(32))
    words = device_keys([key])[0]
    seen = set()
    for stage, slot, draw in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        got = np.asarray(Stream(jnp.asarray(words), stage, slot).words(40, draw=draw))
        nonce = bytes(4) + np.array([stage, slot, draw], "<u4").tobytes()
        cipher = Cipher(algorithms.ChaCha20(key, nonce), None).encryptor()
        np.testing.assert_array_equal(got, np.frombuffer(cipher.update(bytes(160)), "<u4"))
        seen.add(got.tobytes())
    assert len(seen) == 4


def test_seeded_keys_depend_on_every_argument():
    keys = {SeededSource(seed).key(purpose, round=round, client=client)
            for seed in (0, 1) for purpose in ("a", "ab") for round in (0, 1)
            for client in ("", "b", "bc")}
    assert len(keys) == 2 * 2 * 2 * 3
    assert SeededSource(0).key("a", client="bc") != SeededSource(0).key("ab", client="c")


def test_secure_keys_are_fresh_and_shown_nowhere():
    fresh = source()
    assert fresh.key("a") != fresh.key("a")
    secret = fresh.key("sign")
    assert secret.hex() not in repr(Signer(secret)) and str(secret) not in repr(Signer(secret))


@pytest.mark.parametrize("seed", [-1, 2**64, True, 1.5, "3"])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ParameterError, match="integer seed"):
        SeededSource(seed)


def test_host_words_are_the_keystream():
    cipher = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), None).encryptor()
    assert host_words(bytes(32), 5).tobytes() == cipher.update(bytes(20))


@given(st.integers(2, 31), st.lists(st.integers(-(2**30), 2**30 - 1), min_size=1, max_size=20))
def test_wrap_and_centre_are_inverse_within_the_ring(bits, values):
    modulus = modulus_of(bits)
    array = np.array(values, np.int32)
    centred = np.asarray(centre(wrap(array, modulus), modulus))
    expected = (array.astype(np.int64) + modulus // 2) % modulus - modulus // 2
    np.testing.assert_array_equal(centred, expected)


@pytest.mark.parametrize("bits", [1, 32, True, 8.0])
def test_rings_of_other_sizes_are_refused(bits):
    with pytest.raises(SpecError, match="bits from 2 to 31"):
        modulus_of(bits)


def _record(**changes):
    fields = dict(run="ab", round=3, mode="secure", clients=("a", "b"), model_before="0",
                  model_after="1", sum_digest="2", dp={"epsilon": 1.5},
                  metrics={"accuracy": {"a": 0.5}}, outside_guarantee=("timings",),
                  timings_seconds={"train": 0.25}, bytes_per_client=7, ledger_head="c")
    return RoundRecord(**{**fields, **changes})


def test_records_survive_json_and_refuse_other_text():
    record = _record()
    assert RoundRecord.from_json(record.to_json()) == record
    for text in ("", "{}", "[1]", "nonsense", record.to_json().replace('"version": 1',
                                                                        '"version": 2')):
        with pytest.raises(ResumeError):
            RoundRecord.from_json(text)
    with pytest.raises(ValueError):
        _record(metrics={"loss": float("nan")}).to_json()


def test_a_models_digest_sees_names_shapes_types_and_values():
    base = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    changed = [
        {**base, "w": np.zeros((3, 2), np.float32)}, {**base, "b": np.zeros(3, np.int32)},
        {"w": base["w"], "c": base["b"]}, {**base, "b": np.array([0, 0, 1e-30], np.float32)},
        {**base, "b": np.array([0, 0, -0.0], np.float32)},
    ]
    digests = {model_digest(params) for params in [base, *changed]}
    assert len(digests) == 6
    assert model_digest({k: jnp.asarray(v) for k, v in base.items()}) == model_digest(base)


def test_errors_keep_their_parts_when_pickled():
    error = SpecError("stage `x`", need="a", found="b", fix="Do c.")
    again = pickle.loads(pickle.dumps(error))
    assert (again.where, again.need, again.found, again.fix) == ("stage `x`", "a", "b", "Do c.")
    assert isinstance(again, ValueError) and str(again) == "stage `x` needs a, got b. Do c."


def test_a_cohorts_counts_are_examples_and_not_passes():
    indices = (np.zeros((5, 3), np.int32), np.zeros(2, np.int32), np.zeros((5, 0), np.int32))
    alive = np.array([True, True, False])
    cohort = Cohort(1, ("a", "b", "c"), indices, alive)
    assert cohort.counts.tolist() == [3, 2, 0]
    assert cohort.taking_part.tolist() == [0, 1]
