"""OpenFHE's own demand for the ring dimension, against our named parameter sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedjax_kernels import rlwe
from fedjax_secure.core.party import Party
from fedjax_secure.he.openfhe import env

pytestmark = pytest.mark.openfhe


@pytest.fixture(scope="module")
def peer():
    python = env.find() or env.set_up()
    if python is None:
        pytest.skip(env.why_not() or "OpenFHE's environment could not be made")
    script = Path(__file__).with_name("openfhe_peer.py")
    with Party(script, name="OpenFHE peer", interpreter=python) as party:
        yield party


def sizes(bits):
    """Primes that make up a modulus of some bits: (depth, the first's bits, the others')."""
    depth = max(0, -(-(bits - 60) // 50))
    scaling = max(20, -(-(bits - 60) // depth)) if depth else min(20, bits - 5)
    return depth, bits - depth * scaling, scaling


def test_the_primes_add_up():
    for bits in range(24, 300):
        depth, first, scaling = sizes(bits)
        assert first + depth * scaling == bits and 20 < first <= 60 and 19 <= scaling <= 50


@pytest.mark.parametrize("name", rlwe.PARAMETER_SETS)
def test_our_rings_are_as_large_as_openfhe_demands(peer, name):
    params = rlwe.parameters(name)
    bits = params.moduli.product.bit_length()  # log2 Q, rounded up
    depth, first, scaling = sizes(bits)
    demanded, log2_modulus = peer.call(
        "ring_dimension", depth=depth, first=first, scaling=scaling)
    assert log2_modulus == pytest.approx(bits, abs=0.1)  # it was asked for our size
    assert params.ring_degree >= demanded


@pytest.mark.parametrize(("degree", "largest"), [(2048, 53), (4096, 108), (8192, 217)])
def test_the_cross_check_can_fail(peer, degree, largest):
    """OpenFHE doubles the ring a few bits above the largest modulus that the table allows."""
    for bits, wanted in ((largest, degree), (largest + 3, 2 * degree)):
        depth, first, scaling = sizes(bits)
        assert peer.call("ring_dimension", depth=depth, first=first,
                         scaling=scaling)[0] == wanted
