"""One client's work on the ghost path: the float sum of its records' clipped gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import Batch, ClientResult, ClientWork, Phase, TrainableModel
from fedjax_secure.training.ghost.clipped import clipped_sum, coverage, norm_margin

#: Batches are computed as if they had a multiple of this many places. Loops over the values of all
#: records go by vectors of up to 16; what is left over at their end may be rounded otherwise, which
#: would be values of a batch's last records.
_PLACES = 16


def ghost_sums(
    model: TrainableModel,
    l2_bound: float,
    *,
    batch_size: int = 64,
    with_record_bounds: bool = False,
) -> ClientWork:
    """The sum of each client's clipped gradients at ``shared["params"]``, a batch at a time.

    It is many times faster than `record_sums`, which makes, rounds and checks each record's
    gradient by itself. Here a client's sum is a float, to be rounded to integers once.

    Guarantees:
        Let V_j be what record j adds, before additions are rounded, m the client's records, B the
        batch size, u = 2^-24. Each V_j is at most ``l2_bound`` long: the bound that is clipped to
        is smaller by `norm_margin`. What is sent differs from the exact sum of all V_j by at most
        ``m l2_bound (gamma_B + 2 u + 2 (m u / B)^2)`` in L2 norm, where gamma_B = B u / (1 - B u):

        1. A batch's sum is, in each value, an inner product of at most B terms, one a record. In
           any order it is off by at most gamma_B times the sum of the terms' magnitudes (Higham
           2002, equation 3.5). Over all values, by the triangle inequality, by gamma_B times the
           sum of the norms of V_j: gamma_B B l2_bound a batch, gamma_B m l2_bound in all.
        2. Batches are added with each addition's error kept beside (Knuth's TwoSum, exact). The
           errors' own sum is off by at most (m / B) u times their magnitudes, each of which is at
           most u m l2_bound: below 2 (m u / B)^2 m l2_bound.
        3. Adding the kept errors at the end rounds once: u m l2_bound, and the slack of steps 1
           and 2 in it is covered by another u.

        No record is left out: a client's last batch may have unused places, which add exactly
        zero. Records whose gradient is not finite add exactly zero, and are counted.

    Assumes:
        V_j depends on the record and on the model, to the last bit, and not on which other records
        share its batch or on its place there. All batches have one size, a multiple of 16: the
        last places of others go through other roundings on some machines. On every machine that was
        tried all rows then go through the same; ``tests/training/test_ghost_sums.py`` looks.

    Args:
        model: the model. Layers without taps are named in a `GhostNotice`.
        l2_bound: in model units, 1e-3 to 1e12.
        batch_size: records whose gradients are computed together; best a multiple of 16, to which
            batches are filled up with unused places.
        with_record_bounds: a record is clipped to ``shared["record_bounds"][row]`` where that is
            smaller; ``[num_records] float32``, by row number in the dataset.

    Returns:
        Work that sends ``[dim] float32``.

    Raises:
        SpecError: a bound or batch size outside these ranges, or a model in which a record's loss
            depends on the other records of its batch: its gradient could not be clipped.

    Source:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1 (without noise);
        N. Higham, Accuracy and stability of numerical algorithms, 2002, sections 3.1 and 4.3.
    """
    number = isinstance(l2_bound, int | float) and not isinstance(l2_bound, bool)
    if not number or not 1e-3 <= l2_bound <= 1e12:
        raise _refuse("l2_bound from 1e-3 to 1e12", f"{l2_bound!r}", "Give a norm such as 1.0.")
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise _refuse("a batch_size of 1 or more", f"{batch_size!r}", "Try 64.")
    covered = coverage(model)
    if covered.complete:
        _need_apart(model)
    covered.warn(model)
    margin = 1.0 - norm_margin(model)

    def start(shared, own, state):
        zeros = jax.tree.map(jnp.zeros_like, shared["params"])
        return zeros, zeros, jnp.int32(0)

    def step(shared, own, carry, batch):
        total, error, bad = carry
        batch = _filled_up(batch)
        bound: Any = jnp.float32(l2_bound * margin)
        if with_record_bounds:
            bounds = shared["record_bounds"][batch.rows] * jnp.float32(margin)
            bound = jnp.clip(bounds, 0, bound)
        found = clipped_sum(
            model, shared["params"], batch.x, batch.y, bound, valid=batch.valid
        )
        added = jax.tree.map(_two_sum, total, found.total)
        total = jax.tree.map(lambda _, pair: pair[0], total, added)
        error = jax.tree.map(lambda old, pair: old + pair[1], error, added)
        return total, error, bad + jnp.sum(~found.finite).astype(jnp.int32)

    def finish(shared, own, state, carry, done):
        total, error, bad = carry
        return ClientResult(jax.tree.map(jnp.add, total, error), nonfinite=bad)

    phases = (Phase(step, partial=False),)
    return ClientWork("ghost_sums", model.dim, start, phases, finish, batch_size=int(batch_size))


def _need_apart(model: TrainableModel) -> None:
    """Refuses a model whose losses mix records: tried with numbers, on a batch of four.

    Where records are differentiated one by one, none has others beside it.
    """
    rng = np.random.default_rng(0)

    def numbers(leaf):
        inputs = max(1, leaf.size // leaf.shape[-1]) if leaf.shape and leaf.size else 1
        return (rng.normal(size=leaf.shape) / np.sqrt(inputs)).astype(np.float32)

    params = jax.tree.map(numbers, jax.eval_shape(model.init, jax.random.key(0)))
    x = rng.normal(size=(2, 4, model.num_features)).astype(np.float32)
    y = rng.integers(0, model.num_classes, (2, 4)).astype(np.int32)
    x[1, :2], y[1, :2] = x[0, :2], y[0, :2]
    losses = jax.jit(model.loss)
    found = [np.asarray(losses(params, *batch))[:2] for batch in zip(x, y, strict=True)]
    if not np.array_equal(*found, equal_nan=True):
        raise _refuse(
            "a model in which no record's loss depends on other records of its batch",
            f"model `{model.name}`, where it does",
            "Normalise over features (LayerNorm, GroupNorm), not over records.",
        )


def _filled_up(batch: Batch) -> Batch:
    """The batch, up to a multiple of `_PLACES` with unused places that repeat its first record."""
    more = -len(batch.valid) % _PLACES

    def repeated(part):
        return jnp.concatenate([part, jnp.repeat(part[:1], more, axis=0)])

    valid = jnp.concatenate([batch.valid, jnp.zeros(more, bool)])
    x, y, rows = map(repeated, (batch.x, batch.y, batch.rows))
    return batch._replace(x=x, y=y, rows=rows, valid=valid)


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum, and by how much it is off, exactly (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _refuse(need: str, found: str, fix: str) -> SpecError:
    return SpecError("ghost clipping", need=need, found=found, fix=fix)
