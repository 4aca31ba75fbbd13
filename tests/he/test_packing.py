"""Packing: plans fit, with room for every carry and the noise, and sums come out exact."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_kernels import modular, rlwe
from fedjax_secure.core import SpecError
from fedjax_secure.he.packing import plan_packing


@settings(max_examples=50)
@given(
    st.sampled_from(rlwe.PARAMETER_SETS),
    st.integers(1, 3_000_000),
    st.integers(1, 31),
    st.one_of(st.integers(1, 20), st.integers(1, 1 << 16)),
)
def test_a_plan_fits_or_is_refused(name, dim, bits, summands):
    try:
        plan = plan_packing(name, dim=dim, modulus=1 << bits, max_summands=summands)
    except SpecError as error:
        assert name in str(error) and error.fix
        params, lane_bits = rlwe.parameters(name), bits + (summands - 1).bit_length()
        coefficients = -(-dim // params.ring_degree) * params.ring_degree
        noise_bits = rlwe.noise_bits_needed(params, summands, coefficients)
        assert lane_bits + noise_bits > params.modulus_bits  # not even one lane
        return
    code, params = plan.encoding, plan.params
    assert summands * ((1 << bits) - 1) < 1 << code.lane_bits
    assert 1 << code.total_bits <= params.moduli.product
    assert plan.failure_log2 <= -40
    capacity = code.num_lanes * params.ring_degree
    assert (plan.num_polynomials - 1) * capacity < dim <= plan.num_polynomials * capacity


def test_known_plans():
    # facts: three lanes of 26 bits for 1,024 summands of 16 bits do not fit 90 bits; 24-bit do
    wide = plan_packing("rlwe-4096-90", dim=1 << 20, modulus=1 << 16, max_summands=1024)
    assert (wide.encoding.lane_bits, wide.encoding.num_lanes) == (26, 2)
    narrow = plan_packing("rlwe-4096-90", dim=1 << 20, modulus=1 << 16, max_summands=256)
    assert (narrow.encoding.lane_bits, narrow.encoding.num_lanes) == (24, 3)
    large = plan_packing("rlwe-8192-210", dim=1 << 20, modulus=1 << 16, max_summands=1024)
    assert large.encoding.num_lanes == 7
    small = plan_packing("rlwe-4096-90", dim=15, modulus=1 << 24, max_summands=4)
    assert small.num_polynomials == small.encoding.num_lanes == 1
    assert small.failure_log2 == -math.inf  # spare bits go to the noise, up to its worst case


def test_explains_itself():
    text = plan_packing("rlwe-4096-90", dim=10_000, modulus=1 << 16, max_summands=256).explain()
    for fact in (
        "N = 4096",
        "128-bit",
        "24 bits",
        "16 of the ring and 8",
        "3 lanes",
        "92160 bytes",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": "rlwe-4096-91"}, "parameter set: rlwe-1024-26"),
        ({"modulus": 1000}, "power of two"),
        ({"modulus": None, "bits": 33}, "power of two, from 2 to 2\\^32"),
        ({"max_summands": 1 << 17}, "1 to 65536 summands"),
        ({"dim": 0}, "at least one value"),
        ({"parameters": "rlwe-1024-26"}, "Use parameters='rlwe-2048-52'"),
    ],
)
def test_refusals_say_the_fix(changes, message):
    given_ = {"parameters": "rlwe-4096-90", "dim": 10, "modulus": 1 << 20, "max_summands": 10}
    given_ |= changes
    if "bits" in given_:
        given_["modulus"] = 1 << given_.pop("bits")
    with pytest.raises(SpecError, match=message):
        plan_packing(given_.pop("parameters"), **given_)


def check_sum(plan, values, noise):
    """Packs summands, adds noise in every coefficient, decodes and unpacks."""
    moduli = plan.params.moduli
    total = np.broadcast_to(
        np.asarray(modular.from_signed(noise, moduli)),
        (plan.params.num_limbs, plan.params.ring_degree, plan.num_polynomials),
    )
    for row in values:
        total = modular.add(total, plan.pack(row), moduli)
    opened = rlwe.decode(plan.params, plan.encoding, np.asarray(total))
    assert bool(opened.valid)
    expected = values.astype(object).sum(axis=0) % (1 << plan.ring_bits)
    assert plan.unpack(np.asarray(opened.lanes), len(values)).tolist() == expected.tolist()


@settings(max_examples=8)
@given(st.data())
def test_sums_of_packed_values_are_exact(data):
    name = data.draw(st.sampled_from(["rlwe-1024-26", "rlwe-2048-52", "rlwe-4096-90"]))
    summands = data.draw(st.integers(1, 6))
    most = {"rlwe-1024-26": 7, "rlwe-2048-52": 31, "rlwe-4096-90": 31}[name]
    bits = data.draw(st.integers(1, most))
    dim = data.draw(st.one_of(st.integers(1, 40), st.integers(1, 9000)))
    plan = plan_packing(name, dim=dim, modulus=1 << bits, max_summands=summands)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(0, 1 << bits, (summands, dim), dtype=np.uint32)
    extreme = rng.choice(np.array([0, (1 << bits) - 1, 1 << (bits - 1)], np.uint32), values.shape)
    values = np.where(rng.random(values.shape) < 0.5, values, extreme)
    most_noise = (1 << (plan.encoding.noise_bits - 1)) - 1
    shape = (plan.params.ring_degree, plan.num_polynomials)
    noise = rng.choice(np.array([-most_noise, 0, most_noise], np.int32), shape)
    with jax.disable_jit():  # each plan is used once: compiling it costs more
        check_sum(plan, values, noise)


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_all_summands_at_their_largest(x64):
    plan = plan_packing("rlwe-4096-90", dim=5000, modulus=1 << 16, max_summands=256)
    half = (1 << 15) - 1  # stored as M - 1, so that every lane is full
    values = np.full((256, 5000), half, np.uint32)
    noise = np.full((4096, 1), (1 << (plan.encoding.noise_bits - 1)) - 1, np.int32)
    with jax.enable_x64(x64):
        check_sum(plan, values, noise)
