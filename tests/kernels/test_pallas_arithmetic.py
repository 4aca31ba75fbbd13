"""The GPU kernels of modular arithmetic and the transform, in the GPU interpreter.

The interpreter raises on a race between the warpgroups of a block and on a read out of bounds, and
fills fresh memory with a pattern, so that equality also says that nothing unwritten was read.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_kernels import modular, mosaic, ntt
from fedjax_kernels.modular.cases import EXTREME_WORDS, extreme_residues
from fedjax_kernels.ntt import cases

pytestmark = pytest.mark.skipif(
    not mosaic.has_interpreter(), reason="the GPU interpreter needs jax 0.12 or newer"
)
INTERPRET = {"implementation": "pallas_interpret"}


def moduli_of(case):
    return modular.Moduli(
        modular.ntt_primes(case.ring_degree, case.prime_bits[0], len(case.prime_bits)),
        case.ring_degree,
    )


def residues(rng, moduli, shape):
    """[..., limb, n, batch]: random residues, half of them replaced by extreme ones."""
    parts = [
        np.where(
            rng.random((*shape[:-2], 1, *shape[-2:])) < 0.5,
            rng.integers(0, q, (*shape[:-2], 1, *shape[-2:]), dtype=np.uint32),
            rng.choice(np.array(extreme_residues(q), np.uint32), (*shape[:-2], 1, *shape[-2:])),
        )
        for q in moduli.primes
    ]
    return np.concatenate(parts, axis=-3)


def equal(operation, *operands):
    """Runs an operation interpreted and by Python integers, and compares."""
    found = np.asarray(operation(*operands, **INTERPRET))
    expected = operation(*operands, implementation="reference")
    assert found.dtype == np.uint32 and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


MODULI = modular.Moduli(modular.ntt_primes(64, 30, 2), 64)


@pytest.mark.parametrize(
    "x64", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["x32", "x64"])
def test_arithmetic_equals_python_integers(x64):
    rng = np.random.default_rng(5)
    a, b = residues(rng, MODULI, (64, 3)), residues(rng, MODULI, (64, 3))
    words = rng.integers(0, 1 << 32, (3, 2, 64, 3), dtype=np.uint32)
    words[:, :, : len(EXTREME_WORDS), 0] = np.array(EXTREME_WORDS, np.uint32)
    signed = rng.integers(-(1 << 31), 1 << 31, (64, 3), dtype=np.int64).astype(np.int32)
    signed[:4, 0] = [-(2**31), 2**31 - 1, 0, -1]
    with jax.enable_x64(x64):
        for name in ("add", "sub", "mul", "mul_montgomery"):
            equal(getattr(modular, name), a, b, MODULI)
        for name in ("neg", "to_montgomery", "from_montgomery"):
            equal(getattr(modular, name), a, MODULI)
        equal(modular.reduce, words[0], MODULI)
        equal(modular.reduce_words, words, MODULI)
        equal(modular.from_signed, signed, MODULI)
        equal(modular.sum_residues, np.stack([a, b, a]), MODULI)
        equal(modular.mul_constant, words[0], a, MODULI)


def test_arithmetic_broadcasts_and_takes_more_axes():
    rng = np.random.default_rng(6)
    many, one = residues(rng, MODULI, (2, 700, 3)), residues(rng, MODULI, (700, 3))
    per_limb, row = residues(rng, MODULI, (1, 1)), residues(rng, MODULI, (700, 1))
    for other in (one, per_limb, row):
        equal(modular.mul, many, other, MODULI)
        equal(modular.sub, other, many, MODULI)
    equal(modular.reduce, many[:, :1], MODULI)  # one limb, read for both primes
    equal(modular.add, per_limb, per_limb, MODULI)
    batched = jax.vmap(lambda x: modular.add(x, one, MODULI, **INTERPRET))(many)
    np.testing.assert_array_equal(batched, modular.add(many, one, MODULI))


@pytest.mark.parametrize(
    ("case", "x64"),
    [*((case, False) for case in cases.SMALL_CASES), (cases.SMALL_CASES[0], True)],
    ids=str,
)
def test_transform_equals_its_definition(case, x64):
    moduli = moduli_of(case)
    x = residues(np.random.default_rng(1), moduli, (case.ring_degree, case.batch))
    with jax.enable_x64(x64):
        equal(ntt.forward, x, moduli)
        equal(ntt.inverse, x, moduli)


def test_transform_of_more_axes_and_blocks():
    """Two leading rows, and a batch that fills one block and begins a second."""
    moduli = moduli_of(cases.SMALL_CASES[2])
    x = residues(np.random.default_rng(2), moduli, (2, moduli.ring_degree, 33))
    values = np.asarray(ntt.forward(x, moduli))
    np.testing.assert_array_equal(ntt.forward(x, moduli, **INTERPRET), values)
    batched = jax.vmap(lambda y: ntt.inverse(y, moduli, **INTERPRET))(jnp.asarray(values))
    np.testing.assert_array_equal(batched, x)


def test_products_equal_schoolbook():
    moduli = moduli_of(cases.SMALL_CASES[1])
    rng = np.random.default_rng(3)
    a = residues(rng, moduli, (moduli.ring_degree, 3))
    equal(ntt.multiply, a, residues(rng, moduli, (moduli.ring_degree, 1)), moduli)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_transform_of_the_rings_in_use(case):
    moduli = moduli_of(case)
    x = residues(np.random.default_rng(4), moduli, (case.ring_degree, case.batch))
    values = np.asarray(ntt.forward(x, moduli))  # equal to its definition by test_ntt.py
    np.testing.assert_array_equal(ntt.forward(x, moduli, **INTERPRET), values)
    np.testing.assert_array_equal(ntt.inverse(values, moduli, **INTERPRET), x)


def test_refusals():
    x = np.zeros((2, 64, 1), np.uint32)
    with pytest.raises(ValueError, match="GPU of compute capability 9.0.*pallas_interpret"):
        ntt.forward(x, MODULI, implementation="pallas")
    with pytest.raises(ValueError, match="got 'triton'"):
        ntt.forward(x, MODULI, implementation="triton")
    large = modular.Moduli(modular.ntt_primes(16384, 30), 16384)
    with pytest.raises(ValueError, match="from 8 to 8192, got 16384"):
        ntt.forward(np.zeros((1, 16384, 1), np.uint32), large, **INTERPRET)


RACE = """
import numpy as np
from fedjax_kernels import modular, mosaic, ntt
mosaic.meet = lambda barrier: None
moduli = modular.Moduli(modular.ntt_primes(16, 30), 16)
ntt.forward(np.zeros((1, 16, 1), np.uint32), moduli, implementation="pallas_interpret")
"""


def test_a_missing_barrier_is_found():
    """The interpreter's race detection is on: without its barriers the transform is refused."""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", RACE],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode != 0
    assert "race" in done.stderr.lower()
