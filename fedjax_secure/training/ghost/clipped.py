"""Clip each record's gradient and sum them, in one pass forward and one back.

With taps at a network's layers (see `fedjax_secure.models.tapping`), one pass gives the parts of
each record's gradient: of a dense layer its input ``a`` and the gradient ``g`` at its output, whose
outer product is the gradient; of other layers the gradient itself. From them follow the norms, from
these the factors ``min(1, bound / norm)``, and the sum by products that are weighted with the
factors. No gradient of a dense layer is ever made for one record, and no second pass is taken.

Source: X. Li et al., Large language models can be strong differentially private learners, ICLR
2022 (ghost clipping); Z. Bu et al., Differentially private optimization on large model at small
cost, ICML 2023 (book-keeping).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import Params, TrainableModel

Method = Literal["ghost", "vmap"]

#: Unit roundoff of float32.
ROUNDOFF = 2.0**-24
_LEAST_SCALE = 2.0**-125  # the smallest float32 whose reciprocal is finite, with room
#: Largest magnitude that norms are made of. From 2^126 on a reciprocal is no normal float32, and
#: may be flushed to zero: the longest of all gradients would pass as the shortest.
LARGEST = 2.0**100


class GhostNotice(UserWarning):
    """Some layers are worked record by record, because their kind is not known."""


class ClippedSum(NamedTuple):
    """The sum of a batch's clipped gradients.

    Attributes:
        total: a pytree like the parameters, float32.
        norms: ``[records] float32``, of the gradients before clipping; 0 in unused places.
        finite: ``[records] bool``: False for a record whose gradient, or its norm, is not finite,
            or has parts above 2^100; it adds exactly zero. True in unused places.
        losses: ``[records] float32``.
    """

    total: Params
    norms: jax.Array
    finite: jax.Array
    losses: jax.Array


def clipped_sum(
    model: TrainableModel,
    params: Params,
    x: jax.Array,
    y: jax.Array,
    l2_bound: Any,
    *,
    valid: jax.Array | None = None,
    method: Method = "ghost",
) -> ClippedSum:
    """Sums the clipped gradients of a batch's records.

    Pure and jittable. Whatever a model has that no tap covers, `coverage` says; then, as with
    ``method="vmap"``, each record's gradient is made.

    Guarantees:
        Both methods agree to rounding (about 1e-6 of the sum). Their floats are not exact: no row
        is ever looked at, and `norm_margin` bounds by how much a clipped gradient may be longer
        than ``l2_bound``.

    Args:
        model: the model.
        params: its parameters.
        x: ``[records, features]``.
        y: ``[records] int32``.
        l2_bound: one number, or one for each record ``[records]``.
        valid: ``[records] bool``, False in unused places, which add exactly zero.
        method: ``"ghost"`` or ``"vmap"``.

    Returns:
        The sum, and each record's norm and loss.

    Raises:
        SpecError: another method.

    Example:
        >>> from fedjax_secure.models import mlp
        >>> model = mlp(4, 3)
        >>> params = model.init(jax.random.key(0))
        >>> x, y = jnp.ones((5, 4)), jnp.zeros(5, jnp.int32)
        >>> found = clipped_sum(model, params, x, y, 0.1)
        >>> float(jnp.linalg.norm(model.ravel(found.total))).__round__(4)  # five equal records
        0.5
    """
    if method not in ("ghost", "vmap"):
        raise SpecError(
            "clipped_sum", need="method 'ghost' or 'vmap'", found=repr(method),
            fix="Leave it out.",
        )  # fmt: skip
    valid = jnp.ones(len(x), bool) if valid is None else valid
    if method == "ghost" and coverage(model).complete:
        return _by_taps(model, params, x, y, l2_bound, valid)
    return _by_rows(model, params, x, y, l2_bound, valid)


class Coverage(NamedTuple):
    """How a model's records are differentiated.

    Attributes:
        complete: whether taps cover every parameter; if not, every record's gradient is made.
        untapped: the parameters that none covers, with the reason.
        one_by_one: layers of unknown kinds, whose parameters are copied for each record.
    """

    complete: bool
    untapped: tuple[str, ...]
    one_by_one: tuple[str, ...]

    def warn(self, model: TrainableModel) -> None:
        """Says what is slower than it could be, if anything is."""
        if self.complete and not self.one_by_one:
            return
        what = (
            f"each record's gradient of {', '.join(self.one_by_one)} is made by vmap"
            if self.complete
            else "each record's whole gradient is made by vmap, because of "
            + ", ".join(self.untapped)
        )
        warnings.warn(
            f"model `{model.name}`: {what}. The result is the same; it takes more time and memory. "
            "Layers that need neither: Dense, Conv, ConvReluPool, Embed, Lstm, LayerNorm, "
            "GroupNorm and RMSNorm.",
            GhostNotice,
            stacklevel=3,
        )


def coverage(model: TrainableModel) -> Coverage:
    """How `clipped_sum` differentiates a model's records.

    Example:
        >>> from fedjax_secure.models import emnist_cnn
        >>> coverage(emnist_cnn((28, 28, 1), 62)).complete
        True
    """
    make = getattr(model, "tapped", None)
    if make is None or getattr(make, "loss", None) is not model.loss:
        return Coverage(False, ("the model, whose loss has no taps",), ())
    found = make()
    return Coverage(not found.untapped, found.untapped, found.one_by_one)


# -- by taps ---------------------------------------------------------------------------------------


def _by_taps(model, params, x, y, l2_bound, valid) -> ClippedSum:
    parts, losses = _parts_of(model, params, x, y, valid)
    norms = jnp.sqrt(sum(jnp.square(part.norms()) for part in parts))
    finite = jnp.isfinite(norms) | ~valid
    used = finite & valid
    factors = _factors(norms, l2_bound, used)
    total = _collected(params, lambda part, leaves: part.sums(factors, used, leaves), parts)
    norms = jnp.where(valid, norms, 0)
    return ClippedSum(total, norms, finite, losses)


def _parts_of(model, params, x, y, valid) -> tuple[list[Any], jax.Array]:
    """Each tap's part of the records' gradients, and the records' losses."""
    network = model.tapped()

    def total_loss(zeros):
        losses, inputs = network.losses(params, zeros, x, y)
        return jnp.sum(jnp.where(valid, losses, 0)), (losses, inputs)

    zeros = tuple(jnp.zeros((len(x), *tap.shape), jnp.float32) for tap in network.taps)
    gradients, (losses, inputs) = jax.grad(total_loss, has_aux=True)(zeros)
    # else XLA may compute them twice, with other roundings: what is clipped is what is summed
    gradients, inputs = lax.optimization_barrier((gradients, inputs))
    parts = [
        _PARTS[tap.kind].of(tap, gradient, given)
        for tap, gradient, given in zip(network.taps, gradients, inputs, strict=True)
    ]
    return parts, losses


def _collected(params, found_in, parts) -> Params:
    """What parts say of the parameters, added up and put in the parameters' places."""
    leaves, tree = jax.tree.flatten(params)
    sums: list[Any] = [None] * len(leaves)
    for part in parts:
        for place, found in found_in(part, leaves):
            sums[place] = found if sums[place] is None else sums[place] + found
    sums = [
        jnp.zeros_like(leaf) if total is None else total.reshape(leaf.shape)
        for leaf, total in zip(leaves, sums, strict=True)
    ]
    return jax.tree.unflatten(tree, sums)


def gradient_of_one(model: TrainableModel, params: Params, x: jax.Array, y: jax.Array) -> Params:
    """The gradient of one record's loss.

    The same as ``jax.grad`` to rounding. Where taps cover a model, a dense layer's part is an
    outer product, written as one: as a matrix product with one record, which ``jax.grad`` makes of
    it, it takes several times as long on a CPU as all the rest.

    Args:
        model: the model.
        params: its parameters.
        x: ``[1, features]``.
        y: ``[1] int32``.

    Returns:
        A pytree like the parameters, float32.

    Example:
        >>> from fedjax_secure.models import mlp
        >>> model = mlp(4, 3)
        >>> params = model.init(jax.random.key(0))
        >>> x, y = jnp.ones((1, 4)), jnp.zeros(1, jnp.int32)
        >>> ours = gradient_of_one(model, params, x, y)
        >>> theirs = jax.grad(lambda params: model.loss(params, x, y)[0])(params)
        >>> bool(jnp.allclose(model.ravel(ours), model.ravel(theirs), atol=1e-6))
        True
    """
    if not coverage(model).complete:
        return jax.grad(lambda params: model.loss(params, x, y)[0])(params)
    parts, _ = _parts_of(model, params, x, y, jnp.ones(1, bool))
    return _collected(params, lambda part, leaves: part.only(leaves), parts)


def _factors(norms: jax.Array, l2_bound: Any, used: jax.Array) -> jax.Array:
    factors = jnp.minimum(1.0, l2_bound / jnp.maximum(norms, 1e-30))
    return jnp.where(used, factors, 0.0).astype(jnp.float32)


class _Own(NamedTuple):
    """A parameter array of which each record's gradient was made."""

    tap: Any
    gradient: jax.Array

    @classmethod
    def of(cls, tap, gradient, inputs):
        return cls(tap, gradient)

    def norms(self) -> jax.Array:
        return norms_of(self.gradient)

    def sums(self, factors, used, leaves):
        rows = _kept(self.gradient, used).reshape(len(factors), -1)
        yield self.tap.leaves[0], _weighted(factors[None], rows)

    def only(self, leaves):
        yield self.tap.leaves[0], self.gradient[0]


class _Outer(NamedTuple):
    """A dense layer: its input, and the gradient at its output."""

    tap: Any
    gradient: jax.Array
    inputs: jax.Array

    @classmethod
    def of(cls, tap, gradient, inputs):
        return cls(tap, gradient, inputs)

    def norms(self) -> jax.Array:
        own = norms_of(self.inputs)
        if len(self.tap.leaves) == 2:  # the bias's input is 1
            own = jnp.sqrt(jnp.square(own) + 1)
        return own * norms_of(self.gradient)

    def sums(self, factors, used, leaves):
        weighted = _kept(self.gradient, used) * factors[:, None]
        kernel, *bias = self.tap.leaves
        yield kernel, _weighted(_kept(self.inputs, used).T, weighted)
        for place in bias:
            yield place, weighted.sum(0)

    def only(self, leaves):
        kernel, *bias = self.tap.leaves
        yield kernel, self.inputs[0][:, None] * self.gradient[0]
        for place in bias:
            yield place, self.gradient[0]


class _Lookup(NamedTuple):
    """An embedding: token numbers, and the whole gradient of each at the first place of its own."""

    tap: Any
    gradient: jax.Array
    tokens: jax.Array

    @classmethod
    def of(cls, tap, gradient, inputs):
        tokens = inputs.reshape(len(inputs), -1)
        gradient = gradient.reshape(*tokens.shape, -1)
        same = tokens[:, :, None] == tokens[:, None, :]
        first = jnp.argmax(same, 2) == jnp.arange(tokens.shape[1])
        summed = lax.dot_general(
            same.astype(jnp.float32), gradient, (((2,), (1,)), ((0,), (0,))),
            precision=lax.Precision.HIGHEST,
        )  # fmt: skip
        whole = lax.optimization_barrier(jnp.where(first[..., None], summed, 0))
        return cls(tap, whole, tokens)

    def norms(self) -> jax.Array:
        return norms_of(self.gradient)

    def sums(self, factors, used, leaves):
        weighted = _kept(self.gradient, used) * factors[:, None, None]
        place = self.tap.leaves[0]
        flat = weighted.reshape(-1, weighted.shape[-1])
        yield place, jnp.zeros_like(leaves[place]).at[self.tokens.reshape(-1)].add(flat)

    def only(self, leaves):
        return self.sums(jnp.ones(1), jnp.ones(1, bool), leaves)


_PARTS = {"own": _Own, "outer": _Outer, "lookup": _Lookup}


def _weighted(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.dot(left, right, precision=lax.Precision.HIGHEST)


def _kept(values: jax.Array, used: jax.Array) -> jax.Array:
    """Zeros for records that do not count: a factor of zero would leave NaN of NaN."""
    return jnp.where(used.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)


def norms_of(values: jax.Array) -> jax.Array:
    """L2 norms of records' values, in two steps so that few roundings follow one another.

    Values are divided by the largest first: squares neither vanish nor overflow. Of values above
    `LARGEST` the norm is infinite.
    """
    flat = values.reshape(len(values), -1)
    largest = jnp.maximum(jnp.max(jnp.abs(flat), axis=1), _LEAST_SCALE)
    squares = jnp.square(flat * (1 / largest)[:, None])
    row = _row_length(flat.shape[1])
    if more := -flat.shape[1] % row:
        squares = jnp.pad(squares, ((0, 0), (0, more)))
    rows = squares.reshape(len(values), -1, row)
    # else XLA makes one long sum of the two
    norms = largest * jnp.sqrt(lax.optimization_barrier(rows.sum(2)).sum(1))
    return jnp.where(largest > LARGEST, jnp.inf, norms)


def _row_length(size: int) -> int:
    """A size's square root or, so that nothing need be added to rows, a divisor close below it."""
    root = math.isqrt(size)
    return next((k for k in range(root, root // 4, -1) if size % k == 0), root)


# -- by rows ---------------------------------------------------------------------------------------


def _by_rows(model, params, x, y, l2_bound, valid) -> ClippedSum:
    def loss_of(params, x, y):
        return model.loss(params, x[None], y[None])[0]

    losses, gradients = jax.vmap(jax.value_and_grad(loss_of), (None, 0, 0))(params, x, y)
    gradients = lax.optimization_barrier(gradients)
    norms = jnp.sqrt(sum(jnp.square(norms_of(leaf)) for leaf in jax.tree.leaves(gradients)))
    finite = jnp.isfinite(norms) | ~valid
    used = finite & valid
    factors = _factors(norms, l2_bound, used)
    total = jax.tree.map(
        lambda leaf: _weighted(
            factors[None], _kept(leaf, used).reshape(len(x), -1)
        ).reshape(leaf.shape[1:]),
        gradients,
    )  # fmt: skip
    return ClippedSum(total, jnp.where(valid, norms, 0), finite, losses)


# -- how far float32 may be off --------------------------------------------------------------------


def norm_margin(model: TrainableModel) -> float:
    """By how much a clipped gradient may be longer than its bound, relative to the bound.

    Whoever needs a bound C that holds clips to ``C * (1 - norm_margin(model))``.

    Guarantees:
        Let u = 2^-24 be float32's unit roundoff, and let a record's gradient be what its parts say
        in exact arithmetic: the outer product of the computed ``a`` and ``g``, or the computed
        array itself. What `clipped_sum` adds for it, before the addition is rounded, is at most
        ``l2_bound (1 + margin)`` long. Step by step, to first order, the rest being covered by a
        factor of 1.01 (all counts of roundings here are far below 0.01 / u):

        1. `norms_of` of P values, in rows of k: a reciprocal, a product, and a square are 5 u
           relative in each square; sums of positive numbers in any order add at most
           (k - 1 + P / k - 1) u, P / k rounded up (Higham 2002, equation 4.4); the root halves
           that and adds u, the product with the largest adds u. So
           e(P) = ((k + P / k + 3) / 2 + 2) u.
        2. An outer product's norm is the product of two such norms: e = e(inputs) + e(outputs)
           + 3 u, the 1 of a bias and its root included.
        3. K parts: squares, their sum and its root add (K / 2 + 2) u to the largest of these e.
        4. The factor ``l2_bound / norm`` adds u, its product with ``g`` another u.
        5. Rounding ``l2_bound`` itself to float32 adds u.

        Values below 2^-126 count as zero, or are rounded to multiples of 2^-149; for bounds of 1e-3
        or more and arrays of at most 2^26 values that changes a norm by less than u. Products of
        them with inputs do not either, as inputs above 2^100 make a norm infinite, and the record
        add nothing.

    Assumes:
        Sums of products in any order and with or without fused multiply-add, but no products of
        lower precision than float32: `jax.default_matmul_precision` does not touch them.

    Returns:
        The margin, about 1e-5 for small networks.

    Example:
        >>> from fedjax_secure.models import emnist_cnn
        >>> 1e-6 < norm_margin(emnist_cnn((28, 28, 1), 62)) < 1e-4
        True

    Source: N. Higham, Accuracy and stability of numerical algorithms, 2002, sections 2.2, 3.1, 4.2.
    """
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    if coverage(model).complete:
        taps = model.tapped().taps  # type: ignore[attr-defined]
        roundings = [_roundings_of_tap(tap, leaves) for tap in taps]
    else:
        roundings = [_roundings(leaf.size) for leaf in leaves]
    return 1.01 * (max(roundings) + len(roundings) / 2 + 5) * ROUNDOFF


def _roundings_of_tap(tap: Any, leaves: list[Any]) -> float:
    values = math.prod(tap.shape)
    if tap.kind != "outer":
        return _roundings(values)
    return _roundings(leaves[tap.leaves[0]].size // values) + _roundings(values) + 3


def _roundings(values: int) -> float:
    row = _row_length(values)
    return (row + -(-values // row) + 3) / 2 + 2
