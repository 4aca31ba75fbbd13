"""Keys and ciphertexts between our kernels and OpenFHE: conversions exact, everything refused that
is not what the tested version writes, and the real library on the other side of a pipe."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import ntt, rlwe
from fedjax_kernels.modular import Moduli, ntt_primes
from fedjax_secure.core import ParameterError
from fedjax_secure.core.party import Party
from fedjax_secure.core.randomness import host_words
from fedjax_secure.he.openfhe import encodings, env, interop, serialised

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "openfhe_contexts.json").read_text())
CONTEXTS = [name for name in VECTORS if name != "source"]
CKKS_ONE, CKKS_THREE, BGV_THREE, BGV_TWO, BGV_WIDE = CONTEXTS
VERSION = "1.6.1.0"


def words(count, seed=0):
    return host_words(bytes([seed]) * 32, count).astype(np.uint32)


def header(name):
    return serialised._Reader(bytes.fromhex(VECTORS[name]["context"])).context()


# -- plaintexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [8, 64])
def test_the_embedding_by_its_definition(degree):
    values = np.random.default_rng(0).normal(size=(3, degree // 2))
    coefficients = encodings.embed(values, degree)
    assert coefficients.shape == (degree, 3)
    for slot in range(degree // 2):
        root = np.exp(1j * np.pi * pow(5, slot, 2 * degree) / degree)
        np.testing.assert_allclose(
            (coefficients.T * root ** np.arange(degree)).sum(axis=1), values[:, slot], atol=1e-12)
    np.testing.assert_allclose(encodings.project(coefficients, degree), values, atol=1e-12)
    half = encodings.embed(values[:, :2], degree)
    np.testing.assert_allclose(encodings.project(half, degree)[:, 2:], 0, atol=1e-12)


@given(st.data(), st.integers(1, 4))
def test_centred_integers_by_pythons(data, limbs):
    moduli = Moduli(ntt_primes(8, 30, 4)[:limbs], 8)
    half, t = moduli.product // 2, data.draw(st.sampled_from([2, 256, 65537, 4293230593]))
    edges = [0, 1, -1, half, -half, half - 1]
    numbers = edges + data.draw(
        st.lists(st.integers(-half, half), min_size=2, max_size=2))
    residues = np.array([[[x % q] for x in numbers] for q in moduli.primes], np.uint32)
    for got, x in zip(encodings.centred_floats(residues, moduli)[:, 0], numbers, strict=True):
        assert got == pytest.approx(x, rel=1e-15 * limbs)
    for got, x in zip(encodings.centred_modulo(residues, moduli, t)[:, 0], numbers, strict=True):
        assert (int(got) - x) % t == 0 and -t < 2 * got <= t
    small = np.array([[x] for x in numbers if abs(x) < 2**60 and abs(x) < half], np.int64)
    back = encodings.to_residues(small, moduli)
    assert back.tolist() == [[[int(x) % q] for x in small[:, 0]] for q in moduli.primes]


# -- the order of the transform --------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 3, 5, 2 * 16 - 1, 17])
def test_every_root_gives_the_transform_by_its_definition(power):
    """OpenFHE's place rev(k) has the polynomial's value at its own root^(2 k + 1)."""
    degree = 16
    moduli = Moduli(ntt_primes(degree, 28, 2), degree)
    roots = tuple(pow(ntt.primitive_root(q, degree), power, q) for q in moduli.primes)
    context = serialised.Header(
        serialised.CKKS, degree, moduli.primes, roots, 20, 0, 3.19, 1, (), b"")
    rng = np.random.default_rng(power)
    x = np.stack([rng.integers(0, q, (degree, 2)) for q in moduli.primes], axis=0)
    polynomials = np.stack([x, x[..., ::-1]]).astype(np.uint32)
    theirs = interop._to_their_order(
        np.asarray(ntt.forward(polynomials, moduli)), context, moduli)
    for limb, (q, root) in enumerate(zip(moduli.primes, roots, strict=True)):
        for k in range(degree):
            reverse = int(f"{k:04b}"[::-1], 2)
            point = pow(root, 2 * k + 1, q)
            value = sum(int(c) * pow(point, n, q) for n, c in enumerate(x[limb, :, 0])) % q
            assert theirs[0, limb, reverse, 0] == value
    back = interop._from_their_order(theirs.astype(np.uint64), context, moduli)
    np.testing.assert_array_equal(np.asarray(ntt.inverse(back, moduli)), polynomials)


def test_a_number_that_is_no_root_is_refused():
    with pytest.raises(ParameterError, match="primitive 2N-th roots of unity"):
        interop._their_places(97, 2, 16)


# -- the bytes -------------------------------------------------------------------------------------


@functools.cache
def foreign_key(name, seed=1):
    """A public key in one of OpenFHE's contexts, as OpenFHE would send it, and its secret."""
    made = header(name)
    params = interop._parameters(made)
    secret, public = rlwe.generate_key(params, words(rlwe.key_words_needed(params), seed))
    bare = interop.ContextKey(params, public, "00" * 16, made)
    return interop.export_public_key(interop.adopt(bare, public)), secret


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_are_read(name):
    made, wanted = header(name), VECTORS[name]
    assert made.ring_degree == wanted["ring_degree"]
    assert list(made.primes) == wanted["primes"] and list(made.roots) == wanted["roots"]
    assert made.plaintext_modulus == wanted["plaintext_modulus_or_scale_bits"]
    assert made.scheme == (serialised.BGV if name.startswith("bgv") else serialised.CKKS)
    for q, root in zip(made.primes, made.roots, strict=True):
        assert pow(root, made.ring_degree, q) == q - 1


@pytest.mark.parametrize("name", [CKKS_ONE, BGV_TWO])
def test_there_and_back_by_the_bytes(name):
    """The same conversions as with OpenFHE at the other side, without it."""
    content, secret = foreign_key(name)
    key = interop.import_public_key(content, version=VERSION)
    assert interop.export_public_key(key) == content
    rng = np.random.default_rng(0)
    t = key.plaintext_modulus
    values = (rng.integers(-(t // 2) + 1, t // 2 + 1, (2, key.num_values)) if t
              else rng.uniform(-1, 1, (2, key.num_values)))
    ciphertext = rlwe.encrypt(key.params, key.public_key, key.encode(values),
                              words(rlwe.words_needed(key.params, 2), 2))
    contents = interop.export_ciphertext(key, ciphertext)
    assert len(contents) == 2
    back = interop.import_ciphertext(key, contents, version="1.6.1")
    np.testing.assert_array_equal(back, np.asarray(ciphertext))
    opened = key.decrypt(secret, back)
    if t:
        np.testing.assert_array_equal(opened, values)
    else:  # 9 deviations of the error in a slot: 3.24 sqrt((4 N / 3 + 1) N / 2) / scale
        degree = key.params.ring_degree
        bound = 9 * 3.24 * math.sqrt((4 * degree / 3 + 1) * degree / 2) / key.scale
        assert np.abs(opened - values).max() < bound


@pytest.mark.parametrize("version", ["1.6.0", "1.6.10", "1.7.0.0", "2", "", "1.6", None])
def test_an_unknown_version_is_refused(version):
    content, _ = foreign_key(CKKS_ONE)
    with pytest.raises(ParameterError, match=r"needs OpenFHE 1\.6\.1, got"):
        interop.import_public_key(content, version=version)
    key = interop.import_public_key(content, version="v1.6.1")
    with pytest.raises(ParameterError, match=r"needs OpenFHE 1\.6\.1, got"):
        interop.import_ciphertext(key, [b""], version=version)


def test_primes_that_the_kernels_cannot_take_are_refused_with_what_to_ask_for():
    wide = header(BGV_WIDE)
    zeros = np.zeros((2, 1, wide.ring_degree), np.uint64)
    content = serialised.write_public_key(wide, "00" * 16, zeros)
    with pytest.raises(ParameterError, match="below 2.30.*45 bits.*SetFirstModSize.30."):
        interop.import_public_key(content, version=VERSION)


def test_a_context_below_128_bits_is_refused():
    strong = header(CKKS_THREE)
    weak = serialised.Header(**{**vars(strong), "ring_degree": 2048})
    with pytest.raises(ParameterError, match="128 bits of security, got 3 primes of 87 bits"):
        interop._parameters(weak)
    with pytest.raises(ParameterError, match="FIXEDMANUAL"):
        interop._parameters(serialised.Header(**{**vars(strong), "scaling_technique": 2}))
    bgv = header(BGV_TWO)
    for t in (0, 1, bgv.primes[0]):
        with pytest.raises(ParameterError, match="plaintext modulus from 2"):
            interop._parameters(serialised.Header(**{**vars(bgv), "plaintext_modulus": t}))
    with pytest.raises(ParameterError, match="bits of scale from 2 to 59"):
        interop._parameters(serialised.Header(**{**vars(strong), "plaintext_modulus": 60}))


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_distributions_of_a_context_are_read(name):
    made = header(name)
    assert made.error_stddev == np.float32(3.19) and made.secret_distribution == 1


@pytest.mark.parametrize("changes", [
    {"error_stddev": 0.1}, {"error_stddev": 3.18}, {"error_stddev": math.nan},
    {"secret_distribution": 2}, {"secret_distribution": 3}])
def test_a_context_of_weaker_distributions_is_refused(changes):
    """The tables of 128 bits hold for dense secrets and errors of 3.19 or more."""
    weak = serialised.Header(**{**vars(header(CKKS_THREE)), **changes})
    with pytest.raises(ParameterError, match="secrets that are not sparse"):
        interop._parameters(weak)


@pytest.mark.parametrize("name", [CKKS_ONE, BGV_TWO])
def test_foreign_ciphertexts_are_refused(name):
    content, _ = foreign_key(name)
    key = interop.import_public_key(content, version=VERSION)
    other = interop.import_public_key(foreign_key(name, 3)[0], version=VERSION)
    values = (np.zeros((2, key.num_values)) if key.plaintext_modulus is None
              else np.zeros((2, key.num_values), np.int64))
    ciphertext = np.asarray(rlwe.encrypt(key.params, key.public_key, key.encode(values),
                                         words(rlwe.words_needed(key.params, 2))))
    good, _ = interop.export_ciphertext(key, ciphertext)
    elsewhere = interop.import_public_key(
        foreign_key(BGV_TWO if name == CKKS_ONE else CKKS_ONE)[0], version=VERSION)
    head, tag, residues, tail = serialised.read_ciphertext(good)

    def rewritten(**changes):
        changed = serialised.Tail(**{**vars(tail), **changes})
        return serialised.write_ciphertext(head, tag, residues, changed)

    assert rewritten() == good
    for holder, bad, found in (
            (other, good, "of another key"), (elsewhere, good, "of another context"),
            (key, rewritten(level=1), "rescaled"), (key, rewritten(noise_degree=2), "multiplied"),
            (key, rewritten(scaling_factor=3.0), "rescaled"),
            (key, rewritten(encoding=2), "packed otherwise"), (key, content, "at byte"),
            (key, good[:-1], "the end at byte"), (key, good + b"\0", "bytes after the end")):
        with pytest.raises(ParameterError, match=found):
            interop.import_ciphertext(holder, [bad], version=VERSION)
    with pytest.raises(ParameterError, match="one or more, got none"):
        interop.import_ciphertext(key, [], version=VERSION)
    with pytest.raises(ParameterError, match="residues that are not below"):
        broken = residues.copy()
        broken[1, 0, 5] = head.primes[0]
        interop.import_ciphertext(
            key, [serialised.write_ciphertext(head, tag, broken, tail)], version=VERSION)
    with pytest.raises(ParameterError, match=r"batch"):
        interop.export_ciphertext(key, ciphertext.astype(np.uint64))
    with pytest.raises(ParameterError, match="a public key of shape"):
        interop.adopt(elsewhere, key.public_key)


@given(st.data())
@settings(max_examples=300)
def test_damaged_bytes_are_refused_or_read_and_nothing_else(damaged, data):
    name, content, header_bytes = damaged
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.one_of(st.integers(0, header_bytes + 200),
                                    st.integers(0, len(content) - 1)))
        changed[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    for read in (interop.import_public_key, serialised.read_ciphertext):
        try:
            if read is interop.import_public_key:
                read(bytes(changed[:cut]), version=VERSION)
            else:
                read(bytes(changed[:cut]))
        except ParameterError as error:
            assert error.fix


@pytest.fixture(scope="module", params=[CKKS_ONE, BGV_TWO])
def damaged(request):
    content, _ = foreign_key(request.param)
    return request.param, content, len(bytes.fromhex(VECTORS[request.param]["context"]))


@pytest.mark.parametrize(("name", "values", "found"), [
    (CKKS_ONE, np.zeros((1, 1024), np.int32), "int32"), (CKKS_ONE, np.zeros((1, 1023)), "1023"),
    (CKKS_ONE, np.full((1, 1024), 600.0), "a larger one"),
    (CKKS_ONE, np.full((1, 1024), np.nan), "a larger one"),
    (BGV_TWO, np.zeros((1, 4096)), "float64"), (BGV_TWO, np.full((1, 4096), 129), "a larger one")])
def test_values_that_do_not_fit_are_refused(name, values, found):
    key = interop.import_public_key(foreign_key(name)[0], version=VERSION)
    with pytest.raises(ParameterError, match=found):
        key.encode(values)


# -- the real library ------------------------------------------------------------------------------

CASES = {
    "ckks, one limb": dict(scheme="CKKSRNS", depth=0, first=30, scaling=20),
    "ckks, three limbs": dict(scheme="CKKSRNS", depth=2, first=30, scaling=28),
    "bgv, two limbs, prime t": dict(scheme="BGVRNS", depth=1, first=29, scaling=29,
                                    plaintext_modulus=257),
    "bgv, three limbs": dict(scheme="BGVRNS", depth=2, first=30, scaling=28,
                             plaintext_modulus=1 << 16),
}


@pytest.fixture(scope="module")
def peer():
    """A program that uses OpenFHE, in a process of its own."""
    python = env.find() or env.set_up()
    if python is None:
        pytest.skip(env.why_not() or "OpenFHE's environment could not be made")
    script = Path(__file__).with_name("openfhe_peer.py")
    with Party(script, name="OpenFHE peer", interpreter=python) as party:
        yield party


class Both:
    """A context on both sides, a key of each, and values within a quarter of the range."""

    def __init__(self, peer, case):
        self.peer, self.version = peer, peer.about["openfhe"]
        self.theirs = interop.import_public_key(peer.call("make", **case), version=self.version)
        params = self.theirs.params
        self.secret, public = rlwe.generate_key(params, words(rlwe.key_words_needed(params), 4))
        self.ours = interop.adopt(self.theirs, public)
        rng, shape, t = np.random.default_rng(5), (2, self.theirs.num_values), \
            self.theirs.plaintext_modulus
        self.values = [rng.integers(-(t // 4), t // 4, shape) if t else rng.uniform(-1, 1, shape)
                       for _ in range(2)]
        # 12 deviations of two summands, with as much again that OpenFHE adds when it decodes
        degree = params.ring_degree
        noise = 3.24 * math.sqrt(2 * (4 * degree / 3 + 1) * degree)
        self.error = 0 if t else 12 * noise / self.theirs.scale

    def encrypt_here(self, key, values, seed):
        params = key.params
        return np.asarray(rlwe.encrypt(params, key.public_key, key.encode(values),
                                       words(rlwe.words_needed(params, len(values)), seed)))

    def encrypt_there(self, values, **arguments):
        return self.peer.call("encrypt", values=values, **arguments)

    def decrypt_there(self, contents):
        return self.peer.call("decrypt", contents=contents, length=self.theirs.num_values)

    def close(self, found, wanted):
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= self.error


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=[pytest.mark.slow] if name == "bgv, three limbs" else [])
    for name in CASES])
def both(peer, request):
    made = Both(peer, CASES[request.param])
    assert made.theirs.params.num_limbs == CASES[request.param]["depth"] + 1
    return made


@pytest.mark.openfhe
def test_encrypted_here_under_their_key_and_opened_there(both):
    x, y = both.values
    ours = both.encrypt_here(both.theirs, x, 6)
    both.close(both.decrypt_there(interop.export_ciphertext(both.theirs, ours)), x)
    more = both.encrypt_here(both.theirs, y, 7)
    total = np.asarray(rlwe.add(both.theirs.params, ours, more))
    both.close(both.decrypt_there(interop.export_ciphertext(both.theirs, total)), x + y)


@pytest.mark.openfhe
def test_encrypted_there_under_our_key_and_opened_here(both):
    x, _ = both.values
    contents = both.encrypt_there(x, public_key=interop.export_public_key(both.ours))
    received = interop.import_ciphertext(both.ours, contents, version=both.version)
    both.close(both.ours.decrypt(both.secret, received), x)
    with pytest.raises(ParameterError, match="of another key"):
        interop.import_ciphertext(both.theirs, contents, version=both.version)


@pytest.mark.openfhe
def test_mixed_sums_made_and_opened_on_either_side(both):
    x, y = both.values
    ours = both.encrypt_here(both.theirs, x, 8)  # under their key
    sent = interop.export_ciphertext(both.theirs, ours)
    theirs = both.encrypt_there(y)
    both.close(both.decrypt_there(both.peer.call("add", one=sent, other=theirs)), x + y)
    received = interop.import_ciphertext(both.theirs, theirs, version=both.version)
    total = np.asarray(rlwe.add(both.theirs.params, ours, received))
    both.close(both.decrypt_there(interop.export_ciphertext(both.theirs, total)), x + y)

    ours = both.encrypt_here(both.ours, x, 9)  # under our key
    sent = interop.export_ciphertext(both.ours, ours)
    theirs = both.encrypt_there(y, public_key=interop.export_public_key(both.ours))
    for contents in (both.peer.call("add", one=sent, other=theirs),
                     both.peer.call("add", one=theirs, other=sent)):
        received = interop.import_ciphertext(both.ours, contents, version=both.version)
        both.close(both.ours.decrypt(both.secret, received), x + y)


@pytest.mark.openfhe
def test_our_bytes_are_openfhes_own(both):
    """What OpenFHE writes is written again without a change, and what we write is read there."""
    x, _ = both.values
    for content in both.encrypt_there(x):
        assert serialised.write_ciphertext(*serialised.read_ciphertext(content)) == content
    sent = interop.export_ciphertext(both.theirs, both.encrypt_here(both.theirs, x, 10))
    nothing = np.zeros((2, *both.theirs.encode(x).shape), np.uint32)
    zeros = interop.export_ciphertext(both.theirs, nothing)
    for before, after in zip(sent, both.peer.call("add", one=sent, other=zeros), strict=True):
        one, other = serialised.read_ciphertext(before), serialised.read_ciphertext(after)
        assert one[1] == other[1] == both.theirs.tag and one[3] == other[3]
        np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.openfhe
def test_what_interop_does_not_cover_is_refused(peer):
    for case, need in (
            (dict(scheme="CKKSRNS", depth=0, first=50, scaling=30), "primes of 50 bits"),
            (dict(scheme="CKKSRNS", depth=1, first=60, scaling=50), "SetFirstModSize.30."),
            (dict(scheme="CKKSRNS", depth=1, first=30, scaling=28, technique="FLEXIBLEAUTO"),
             "FIXEDMANUAL")):
        with pytest.raises(ParameterError, match=need):
            interop.import_public_key(peer.call("make", **case), version=peer.about["openfhe"])
    case = CASES["ckks, three limbs"]
    for weak in ({"secrets": "SPARSE_TERNARY"}, {"stddev": 1.0}):
        with pytest.raises(ParameterError, match="secrets that are not sparse"):
            interop.import_public_key(peer.call("make", **case, **weak),
                                      version=peer.about["openfhe"])
    dense = peer.call("make", **case, secrets="GAUSSIAN")
    assert interop.import_public_key(dense, version=VERSION).params.security_bits == 128
    key = interop.import_public_key(peer.call("make", **case), version=peer.about["openfhe"])
    fresh = peer.call("encrypt", values=np.ones((1, 8)))
    with pytest.raises(ParameterError, match="multiplied, rescaled"):
        interop.import_ciphertext(key, peer.call("multiply", contents=fresh),
                                  version=peer.about["openfhe"])


@pytest.mark.openfhe
def test_fewer_slots_open_repeated(peer):
    case = dict(CASES["ckks, three limbs"], batch=8)
    theirs = interop.import_public_key(peer.call("make", **case), version=peer.about["openfhe"])
    params = theirs.params
    secret, public = rlwe.generate_key(params, words(rlwe.key_words_needed(params), 11))
    ours = interop.adopt(theirs, public)
    values = np.arange(8.0).reshape(1, 8) / 8
    contents = peer.call("encrypt", values=values, public_key=interop.export_public_key(ours))
    received = interop.import_ciphertext(ours, contents, version=peer.about["openfhe"])
    opened = ours.decrypt(secret, received)
    np.testing.assert_allclose(opened, np.tile(values, params.ring_degree // 16), atol=2e-3)
