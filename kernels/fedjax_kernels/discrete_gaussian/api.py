"""Sampling from the discrete Gaussian, given a table and random words."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from fedjax_kernels import mosaic
from fedjax_kernels.discrete_gaussian import reference, xla
from fedjax_kernels.discrete_gaussian.table import WORDS_PER_DRAW, Table

Implementation = Literal["xla", "pallas", "pallas_interpret", "reference"]

#: Tables with more thresholds are searched faster by XLA than compared in full by the GPU kernel.
MAX_GPU_MAGNITUDE = 1024


def sample(
    table: Table, words: Array | np.ndarray, *, implementation: Implementation | None = None
) -> Array:
    """Turns random words into draws from the table's discrete Gaussian.

    The function holds no randomness: the caller gives secret uniform words, for example from
    `chacha.keystream`. It works under `jax.jit`, `jax.vmap` and `jax.shard_map`.

    Guarantees: with uniform independent words the draws are independent, symmetric about zero, and
      each is within `table.total_variation` of the exact distribution. All 128 bits of a draw are
      compared, with x64 on or off. Each draw takes a fixed number of search steps, but **the
      memory addresses that are read depend on the draw**, and a chunk of 16,384 draws takes longer
      when the top 31 bits of a draw's magnitude equal those of a threshold (one draw in four
      million at sigma 100, one in 40,000 at sigma 10,000). Do not run it where an adversary can
      observe the cache, or time single chunks. The GPU kernel has neither fault: it compares
      every draw with every threshold.

    Args:
      table: from `discrete_gaussian.table`.
      words: `[4, n] uint32`, uniform and secret; column i makes draw i, most significant word
        first. Its first bit is the sign.
      implementation: "xla"; "pallas", the GPU kernel, for compute capability 9.0 or newer;
        "pallas_interpret", the same kernel in JAX's GPU interpreter; or "reference" (Python
        integers, slow, not traceable). None picks the fastest that runs here.

    Returns:
      `[n] int32`, of magnitude at most `table.max_magnitude`.

    Raises:
      ValueError: if the table, the shape or dtype of the words, or the implementation's name is
        wrong, or if the reference is given traced values.

    Example:
      >>> import numpy as np
      >>> from fedjax_kernels import chacha, discrete_gaussian
      >>> key = chacha.key_from_bytes(bytes(32))  # in earnest: secrets.token_bytes(32)
      >>> words = chacha.keystream(key, np.zeros(3, np.uint32), 4 * 1000).reshape(4, 1000)
      >>> noise = discrete_gaussian.sample(discrete_gaussian.table(10.0), words)
      >>> noise.shape, str(noise.dtype), 9 < float(noise.std()) < 11
      ((1000,), 'int32', True)

    Source: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Definition 1, by inversion.
    """
    if not isinstance(table, Table):
        raise ValueError(
            f"sample: `table` needs a discrete_gaussian.Table, got {type(table).__name__}. "
            "Make one with discrete_gaussian.table(sigma)."
        )
    shape, dtype = getattr(words, "shape", None), getattr(words, "dtype", type(words).__name__)
    if shape is None or len(shape) != 2 or shape[0] != WORDS_PER_DRAW or dtype != jnp.uint32:
        raise ValueError(
            f"sample: `words` needs uint32[{WORDS_PER_DRAW}, n], "
            f"got {dtype}{list(shape) if shape is not None else ''}. "
            f"Take {WORDS_PER_DRAW} * n words of a keystream and reshape them."
        )
    supported = table.max_magnitude <= MAX_GPU_MAGNITUDE
    if kernels := mosaic.kernels(implementation, xla.__package__, supported):
        return kernels.sample(table.thresholds, words, max_magnitude=table.max_magnitude)
    if implementation in (None, "xla"):
        return xla.sample(table.thresholds, words)
    if implementation == "reference":
        if any(isinstance(value, Tracer) for value in (table.thresholds, words)):
            raise ValueError(
                'sample: implementation="reference" needs concrete arrays, got traced ones. '
                'Use implementation="xla" under jit or vmap.'
            )
        drawn = reference.sample(
            np.asarray(table.thresholds), np.asarray(words), table.max_magnitude
        )
        return jnp.asarray(drawn)
    raise ValueError(
        f'sample: `implementation` needs None, "xla", "pallas", "pallas_interpret" or "reference", '
        f"got {implementation!r}. "
        "Leave it out for the fastest one."
    )
