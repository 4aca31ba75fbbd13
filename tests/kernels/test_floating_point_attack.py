"""A distinguishing attack on floating-point noise, and why it finds nothing in integer noise.

Mironov 2012, "On Significance of the Least Significant Bits for Differential Privacy": a float
sampler reaches few of the floats, and other ones when the value that it is added to is another. So
an output that is impossible under a neighbour tells the two apart, whatever epsilon was claimed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_kernels import chacha, discrete_gaussian, discrete_laplace, skellam

KEY = chacha.key_from_bytes(bytes(range(32)))


@pytest.fixture(scope="module")
def reachable() -> np.ndarray:
    """Every value that `jax.random.normal` returns in float32: one for each of 2^23 mantissas."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    mantissas = jnp.arange(1 << 23, dtype=jnp.uint32)
    unit = jax.lax.bitcast_convert_type(mantissas | jnp.uint32(0x3F800000), jnp.float32) - 1.0
    uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    return np.unique(np.asarray(jnp.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)))


def test_most_outputs_of_float_noise_are_impossible_under_a_neighbour(reachable):
    drawn = np.asarray(jax.random.normal(jax.random.key(3), (1 << 18,), jnp.float32))
    assert np.isin(drawn, reachable).mean() > 0.999  # the attacker's list is of this sampler
    under_zero = np.unique(np.float32(0) + reachable)
    impossible = 1 - np.isin(np.float32(1) + drawn, under_zero).mean()
    assert impossible > 0.5, f"{impossible:.0%} of the outputs tell 1 from 0"


@pytest.mark.parametrize(
    "made",
    [discrete_gaussian.sampler(1.0), discrete_gaussian.sampler(3_000.0), skellam.sampler(4.0),
     discrete_laplace.sampler(1.0), discrete_laplace.sampler(500.0)],
    ids=lambda made: made.law)  # fmt: skip
def test_no_output_of_integer_noise_is_impossible_under_a_neighbour(made):
    """0% of the outputs at 1 are outside the support of the outputs at 0, and the other way.

    The support is read off the tables: a magnitude can be drawn if its two thresholds differ.
    """
    nonce = np.array([8, 0, 0], np.uint32)
    noise = np.asarray(discrete_gaussian.draw(made, KEY, nonce, 1 << 18)).astype(np.int64)
    support = supported(made)
    for value, other in ((0, 1), (1, 0)):
        magnitude = abs(value + noise - other)
        assert magnitude.max() < len(support)
        assert np.mean(~support[magnitude]) == 0.0


def supported(made: discrete_gaussian.Sampler) -> np.ndarray:
    """Whether each magnitude up to 60,000 can be drawn, from 0 on."""
    sums = np.ones(1, bool)
    for table, scale, count in made.terms:
        columns = np.asarray(table.thresholds)[:, : table.max_magnitude].T
        edges = [0, *(int.from_bytes(c.astype(">u4").tobytes(), "big") for c in columns), 2**127]
        can = np.diff(np.array(edges, object)) > 0
        part = np.zeros(2 * scale * (len(can) - 1) + 1, bool)
        part[::scale] = np.concatenate([can[:0:-1], can])
        for _ in range(count):
            sums = np.convolve(sums.astype(float), part.astype(float)) > 0.5
    return sums[len(sums) // 2 :][:60_000]
