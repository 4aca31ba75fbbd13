"""Clipping of rows to an L2 bound, and the sum of clipped rows."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from fedjax_kernels.clip import reference, xla
from fedjax_kernels.clip.bounds import MAX_BOUND, MIN_BOUND, norm_slack

Implementation = Literal["xla", "reference"]


class ClippedRows(NamedTuple):
    """Clipped rows and the norms that they had.

    Attributes:
      rows: of the shape that was given, float32.
      norms: without the last axis: NaN where a row held NaN or infinity and was made zero; infinite
        where the norm is above float32's range, of a row that was clipped like any other.
    """

    rows: Array
    norms: Array


class ClippedSum(NamedTuple):
    """The sum of clipped rows, and the norms that they had.

    Attributes:
      total: `[dim] float32`.
      norms: `[n] float32`, as in `ClippedRows`.
    """

    total: Array
    norms: Array


def clip_rows(
    values: Array | np.ndarray,
    l2_bound: float | Array,
    *,
    implementation: Implementation | None = None,
) -> ClippedRows:
    """Scales each row that is longer than a bound down to it.

    Guarantees: each row that comes out has at most the L2 norm l2_bound **in exact arithmetic**, as
      the bound is lowered by `norm_slack(dim)` first, a proved bound on what float32 does. A row
      whose squares overflow is scaled down like any other, and not to zero. A row with NaN or
      infinity becomes zero and has the norm NaN. Rows within the lowered bound pass unchanged. It
      works under `jax.jit`, `jax.vmap` and `jax.shard_map`.

    Args:
      values: `[dim]` or `[n, dim]` float32; rows are the last axis.
      l2_bound: 1e-12 to 1e12. It may be traced, as a scalar, and is then not checked: a larger one
        counts as 1e12, and with a smaller one or NaN everything becomes zero.
      implementation: "xla", "reference" (double precision, not traceable), or None for the fastest.

    Returns:
      The rows and their norms.

    Raises:
      ValueError: another shape or dtype, a bound outside its range, an unknown implementation; or a
        dim above 2^22 with no divisor near its root, such as a prime, of which nothing is proved.

    Example:
      >>> import numpy as np
      >>> from fedjax_kernels import clip
      >>> found = clip.clip_rows(np.float32([[3, 4], [3e30, 4e30], [0.1, 0]]), 1.0)
      >>> np.asarray(found.rows, float).round(4).tolist()
      [[0.6, 0.8], [0.6, 0.8], [0.1, 0.0]]

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """
    values, bound = _checked("clip_rows", values, l2_bound, (1, 2))
    if implementation == "reference":
        found = reference.clip_rows(*_concrete("clip_rows", jnp.atleast_2d(values), bound))
    else:
        _check_name("clip_rows", implementation)
        rows = jnp.atleast_2d(values)
        found = xla.clip_rows(rows, jnp.broadcast_to(bound, rows.shape[:1]))
    clipped, norms = (jnp.asarray(part, jnp.float32) for part in found)
    return ClippedRows(clipped.reshape(values.shape), norms.reshape(values.shape[:-1]))


def clip_and_sum(
    values: Array | np.ndarray,
    l2_bound: float | Array,
    *,
    implementation: Implementation | None = None,
) -> ClippedSum:
    """Adds up rows, each scaled down to a bound where it is longer; clipped rows are never formed.

    Guarantees: the total is a float32 sum of rows times factors, and each of those rows has at most
      the L2 norm l2_bound in exact arithmetic: see `clip_rows`. The sum's own rounding is at most
      `summation_error(n, l2_bound)` in L2 norm; add twice that to the sensitivity where the sum is
      not rounded to integers row by row before. A row with NaN or infinity adds nothing and has the
      norm NaN. It works under `jax.jit`, `jax.vmap` and `jax.shard_map`; under `jax.vmap` a row
      that overflows makes all sums take the slower way.

    Args:
      values: `[n, dim]` float32.
      l2_bound: 1e-12 to 1e12. It may be traced, as a scalar, and is then not checked: a larger one
        counts as 1e12, and with a smaller one or NaN everything becomes zero.
      implementation: as for `clip_rows`.

    Returns:
      The total and the norms.

    Raises:
      ValueError: another shape or dtype, a bound outside its range, an unknown implementation; or a
        dim above 2^22 with no divisor near its root, such as a prime, of which nothing is proved.

    Example:
      >>> import numpy as np
      >>> from fedjax_kernels import clip
      >>> found = clip.clip_and_sum(np.float32([[3, 4], [0, 0.5], [np.nan, 1]]), 1.0)
      >>> np.asarray(found.total, float).round(4).tolist()
      [0.6, 1.3]
      >>> found.norms.tolist()
      [5.0, 0.5, nan]

    Source: as for `clip_rows`.
    """
    values, bound = _checked("clip_and_sum", values, l2_bound, (2,))
    if implementation == "reference":
        found = reference.clip_and_sum(*_concrete("clip_and_sum", values, bound))
    else:
        _check_name("clip_and_sum", implementation)
        found = xla.clip_and_sum(values, jnp.broadcast_to(bound, values.shape[:1]))
    return ClippedSum(*(jnp.asarray(part, jnp.float32) for part in found))


def _checked(
    where: str, values: object, l2_bound: object, axes: tuple[int, ...]
) -> tuple[Array, Array]:
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", type(values).__name__)
    if shape is None or len(shape) not in axes or dtype != jnp.float32 or shape[-1] == 0:
        wanted = " or ".join({1: "float32[dim]", 2: "float32[n, dim]"}[count] for count in axes)
        raise ValueError(
            f"{where}: `values` needs {wanted}, "
            f"got {dtype}{list(shape) if shape is not None else ''}. Flatten and convert it first."
        )
    if norm_slack(shape[-1]) == 1.0:
        raise ValueError(
            f"{where}: `values` needs rows whose length has a divisor near its root, so that float "
            f"errors are bounded, got {shape[-1]}. Pad them with zeros to a multiple of 4096."
        )
    if not _is_bound(l2_bound):
        raise ValueError(
            f"{where}: `l2_bound` needs a number from {MIN_BOUND:g} to {MAX_BOUND:g}, "
            f"got {l2_bound!r}. Give a norm such as 1.0."
        )
    return jnp.asarray(values), jnp.asarray(l2_bound, jnp.float32)


def _is_bound(l2_bound: object) -> bool:
    if isinstance(l2_bound, jax.Array):
        real = jnp.issubdtype(l2_bound.dtype, jnp.floating) and l2_bound.shape == ()
        if not real or isinstance(l2_bound, Tracer):
            return bool(real)
    elif isinstance(l2_bound, bool) or not isinstance(
        l2_bound, int | float | np.integer | np.floating
    ):
        return False
    # Compared as Python numbers; the least bound may have been rounded to float32 already.
    number = l2_bound if isinstance(l2_bound, int) else float(l2_bound)
    return float(np.float32(MIN_BOUND)) <= number <= MAX_BOUND


def _concrete(where: str, values: Array, bound: Array) -> tuple[np.ndarray, float]:
    if isinstance(values, Tracer) or isinstance(bound, Tracer):
        raise ValueError(
            f'{where}: implementation="reference" needs concrete arrays, got traced ones. '
            'Use implementation="xla" under jit or vmap.'
        )
    return np.asarray(values), float(bound)


def _check_name(where: str, implementation: object) -> None:
    if implementation not in (None, "xla"):
        raise ValueError(
            f'{where}: `implementation` needs None, "xla" or "reference", got {implementation!r}. '
            "Leave it out for the fastest one."
        )
