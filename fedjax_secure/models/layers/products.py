"""Products with one matrix at many places of a record, and look-ups, with each record's gradient.

A matrix that serves at several places (times, pixels) of a record has as its gradient the sum of
outer products over these places. For all records together that is one large product; each record's
own is the same work in smaller pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.layers.blocks import aligned

_OWN = (((1,), (1,)), ((0,), (0,)))  # [records, places, in] x [records, places, out]


def shared_product(x: jax.Array, matrix: jax.Array, own: jax.Array) -> jax.Array:
    """``x @ matrix``, with the matrix's gradient to ``own``, each record's apart.

    Args:
        x: ``[records, places, in]``.
        matrix: ``[in, out]``; its gradient is zero.
        own: ``[records, in, out]``; its value is not looked at.

    Returns:
        ``[records, places, out]``.

    Example:
        >>> x, matrix = jnp.ones((2, 5, 3)), jnp.ones((3, 4))
        >>> own = jax.grad(lambda own: shared_product(x, matrix, own).sum())(jnp.zeros((2, 3, 4)))
        >>> float(own[0, 0, 0])
        5.0
    """
    return linear_own(_product, _own_product, *aligned(x, matrix, own))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def linear_own(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    own_of: Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array],
    x: jax.Array,
    matrix: jax.Array,
    own: jax.Array,
) -> jax.Array:
    """A bilinear function of records and parameters, with each record's gradient of the latter.

    Args:
        apply: ``(x, parameters) -> y``, linear in each.
        own_of: ``(x, gradient of y, shape of the parameters) -> [records, *shape]``.
        x, matrix, own: as in `shared_product`.
    """
    return apply(x, matrix)


def _linear_own_forward(apply, own_of, x, matrix, own):
    return apply(x, matrix), (x, matrix)


def _linear_own_backward(apply, own_of, saved, gradient):
    x, matrix = saved
    (to_x,) = jax.linear_transpose(lambda x: apply(x, matrix), x)(gradient)
    return to_x, jnp.zeros_like(matrix), own_of(x, gradient, matrix.shape)


linear_own.defvjp(_linear_own_forward, _linear_own_backward)


def _product(x, matrix):
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def _own_product(x, gradient, shape):
    return lax.dot_general(x, gradient, _OWN)


class Embed(nn.Module):
    """A vector for each token, by a product with one-hot rows.

    The gradient of a product is a product too, where that of a look-up is a scatter, which is slow
    on a CPU. The parameter is ``embedding [vocabulary, features]``.

    Attributes:
        vocabulary: how many tokens there are. A token outside it counts as none: a zero vector.
        features: size of a token's vector.

    Raises:
        SpecError: tokens that are no integers.

    Example:
        >>> tokens = jnp.array([[1, 2, 2]])
        >>> Embed(5, 4).init_with_output(jax.random.key(0), tokens)[0].shape
        (1, 3, 4)
    """

    vocabulary: int
    features: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns ``[records, ..., features]``."""
        start = nn.initializers.normal(1.0)
        table = self.param("embedding", start, (self.vocabulary, self.features))
        return embed(tokens, table)


def embed(tokens: jax.Array, table: jax.Array, *, own: jax.Array | None = None) -> jax.Array:
    """What `Embed` computes; ``own`` as in `shared_product`."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise SpecError(
            "an embedding",
            need="tokens, as integers",
            found=f"{tokens.dtype}",
            fix="Give dtype=jnp.int32 to from_flax, or convert the dataset.",
        )
    places = jax.nn.one_hot(tokens, table.shape[0], dtype=table.dtype)
    if own is None:
        return jnp.matmul(places, table, precision=lax.Precision.HIGHEST)
    flat = places.reshape(tokens.shape[0], -1, table.shape[0])
    vectors = shared_product(flat, table, own)
    return vectors.reshape(*tokens.shape, table.shape[1])
