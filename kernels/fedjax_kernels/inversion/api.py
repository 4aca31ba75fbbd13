"""Sampling from symmetric distributions on the integers: a table, and random words or a key."""

from __future__ import annotations

import operator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from fedjax_kernels import chacha, mosaic
from fedjax_kernels.inversion import reference, xla
from fedjax_kernels.inversion.table import WORDS_PER_DRAW, Sampler, Sum, Table

Implementation = Literal["xla", "pallas", "pallas_interpret", "reference"]

#: Tables with more thresholds are searched faster by XLA than compared in full by the GPU kernel.
MAX_GPU_MAGNITUDE = 1024


def sample(
    table: Sampler, words: Array | np.ndarray, *, implementation: Implementation | None = None
) -> Array:
    """Turns random words into draws from the table's distribution.

    The function holds no randomness: the caller gives secret uniform words, for example from
    `chacha.keystream`. It works under `jax.jit`, `jax.vmap` and `jax.shard_map`. `draw` makes the
    same draws of a key faster, as it expands only the words that matter.

    Guarantees: with uniform independent words the draws are independent, symmetric about zero, and
      each is within `table.total_variation` of the exact distribution, or of one that is within a
      factor exp(+-table.log_ratio) of it everywhere. All 128 bits of a draw are compared, with x64
      on or off. Each draw takes a fixed number of search steps, but **the memory addresses that
      are read depend on the draw**, and every row of 256 draws takes a little longer in which the
      top 31 bits of a magnitude equal those of a threshold (one draw in four million at sigma 100,
      one in 200,000 at sigma 2,000). Do not run it where an adversary can observe the cache, or
      time single rows. The GPU kernel has neither fault: it compares every draw with every
      threshold.

    Args:
      table: a `Table` or a `Sum` of some, from `discrete_gaussian`, `skellam` or
        `discrete_laplace`.
      words: `[table.words_per_draw, n] uint32`, uniform and secret; column i makes draw i. Of each
        four rows the most significant word is first, and its first bit is the sign.
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

    Source: inversion: Devroye 1986, "Non-Uniform Random Variate Generation", section III.2; with a
      guide: section III.2.4.
    """
    _check_table("sample", table)
    shape, dtype = getattr(words, "shape", None), getattr(words, "dtype", type(words).__name__)
    rows = table.words_per_draw
    if shape is None or len(shape) != 2 or shape[0] != rows or dtype != jnp.uint32:
        raise ValueError(
            f"sample: `words` needs uint32[{rows}, n], "
            f"got {dtype}{list(shape) if shape is not None else ''}. "
            f"Take {rows} * n words of a keystream and reshape them."
        )
    total, row = None, 0
    for part, scale, count in table.terms:
        for _ in range(count):
            drawn = _sample(part, words, row, implementation)
            drawn = drawn if scale == 1 else drawn * scale
            total, row = drawn if total is None else total + drawn, row + WORDS_PER_DRAW
    return total


def draw(
    table: Sampler,
    key: Array | np.ndarray,
    nonce: Array | np.ndarray,
    num_draws: int,
    *,
    implementation: Implementation | None = None,
) -> Array:
    """Draws from the table's distribution, with the keystream of a key and a nonce.

    It gives exactly `sample(table, chacha.keystream(key, nonce, w * n).reshape(w, n))` with
    w = `table.words_per_draw`, but makes three of four words only for the rows of 256 draws where
    they matter, which takes about a third of the time. It works under `jax.jit`, `jax.vmap` (also
    over keys) and `jax.shard_map`.

    Guarantees: those of `sample`, if the keystream is taken for uniform words.

    Args:
      table: as for `sample`.
      key: `[8] uint32`, secret; `chacha.key_from_bytes` makes one. May be traced.
      nonce: `[3] uint32`, distinct for each use of one key. May be traced.
      num_draws: n, a Python integer; words_per_draw * n is at most 2^32.
      implementation: as for `sample`.

    Returns:
      `[num_draws] int32`, of magnitude at most `table.max_magnitude`.

    Raises:
      ValueError: if an argument has another type, shape or dtype, if there are too many draws for
        one nonce, or if the reference is given traced values.

    Example:
      >>> import numpy as np
      >>> from fedjax_kernels import chacha, discrete_gaussian
      >>> key, nonce = chacha.key_from_bytes(bytes(32)), np.zeros(3, np.uint32)
      >>> table = discrete_gaussian.table(10.0)
      >>> words = chacha.keystream(key, nonce, 4 * 1000).reshape(4, 1000)
      >>> noise = discrete_gaussian.draw(table, key, nonce, 1000)
      >>> bool((noise == discrete_gaussian.sample(table, words)).all())
      True

    Source: as for `sample`; RFC 8439 for the keystream.
    """
    _check_table("draw", table)
    rows = table.words_per_draw
    try:
        num_draws = operator.index(num_draws)
    except TypeError:
        num_draws = -1
    if not 0 <= num_draws * rows <= 1 << 32:
        raise ValueError(
            f"draw: `num_draws` needs a Python integer from 0 to {(1 << 32) // rows:,}, so that "
            "one nonce has words for all. Draw in parts, each with a nonce of its own."
        )
    whole = implementation == "reference" or any(
        mosaic.kernels(implementation, xla.__package__, _fits_gpu(part))
        for part, _, _ in table.terms
    )
    if whole:
        words = chacha.keystream(key, nonce, rows * num_draws, implementation=implementation)
        return sample(table, words.reshape(rows, num_draws), implementation=implementation)
    _check_name("draw", implementation)
    total, row = None, 0
    for part, scale, count in table.terms:

        def more(index, before, part=part, scale=scale, row=row):
            first_row = jnp.uint32(row) + WORDS_PER_DRAW * jnp.asarray(index).astype(jnp.uint32)
            drawn = xla.draw(
                part.thresholds,
                part.guide,
                key,
                nonce,
                first_row,
                draws=num_draws,
                steps=part.guide_steps,
            )
            drawn = drawn if scale == 1 else drawn * scale
            return drawn if before is None else before + drawn

        total = more(0, total)
        if count > 1:
            total = lax.fori_loop(1, count, more, total)
        row += WORDS_PER_DRAW * count
    return total


def _check_table(where: str, table: object) -> None:
    if not isinstance(table, Table | Sum):
        raise ValueError(
            f"{where}: `table` needs an inversion.Table or Sum, got {type(table).__name__}. "
            "Make one with discrete_gaussian.sampler(sigma), skellam.sampler(variance) or "
            "discrete_laplace.sampler(scale)."
        )


def _check_name(where: str, implementation: object) -> None:
    if implementation not in (None, "xla", "reference"):
        raise ValueError(
            f'{where}: `implementation` needs None, "xla", "pallas", "pallas_interpret" or '
            f'"reference", got {implementation!r}. Leave it out for the fastest one.'
        )


def _fits_gpu(table: Table) -> bool:
    return table.max_magnitude <= MAX_GPU_MAGNITUDE


def _sample(table: Table, words: Array | np.ndarray, row: int, implementation: str | None) -> Array:
    """Draws from four rows of the words, the first of them `row`."""
    own = slice(row, row + WORDS_PER_DRAW)
    if kernels := mosaic.kernels(implementation, xla.__package__, _fits_gpu(table)):
        return kernels.sample(table.thresholds, words[own], max_magnitude=table.max_magnitude)
    _check_name("sample", implementation)
    if implementation != "reference":
        steps = table.guide_steps
        return xla.sample(table.thresholds, words, table.guide, steps=steps, first_row=row)
    if any(isinstance(value, Tracer) for value in (table.thresholds, words)):
        raise ValueError(
            'sample: implementation="reference" needs concrete arrays, got traced ones. '
            'Use implementation="xla" under jit or vmap.'
        )
    columns = np.asarray(table.thresholds)
    return jnp.asarray(reference.sample(columns, np.asarray(words[own]), table.max_magnitude))
