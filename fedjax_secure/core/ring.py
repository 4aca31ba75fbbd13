"""Integers modulo 2^bits: wrapping a client's integers into the ring, and centring a sum.

Values are never clamped: clamping would change the noise's distribution and so the guarantee.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .errors import SpecError

MAX_BITS = 31


def modulus_of(bits: int) -> int:
    """``2**bits`` for 2 to 31 bits; raises SpecError otherwise.

    Example:
        >>> modulus_of(16)
        65536
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= MAX_BITS:
        raise SpecError("ring", need=f"bits from 2 to {MAX_BITS}", found=f"bits={bits!r}",
                        fix="Choose how many bits one summed value may take, for example 24.")
    return 1 << bits


def wrap(values: jax.Array, modulus: int) -> jax.Array:
    """int32 or uint32 integers to uint32 ring elements in ``[0, modulus)``; modulus = 2^k."""
    return jnp.asarray(values).astype(jnp.uint32) & jnp.uint32(modulus - 1)


def centre(elements: jax.Array, modulus: int) -> jax.Array:
    """Ring elements to int32 in ``[-modulus/2, modulus/2)``.

    Example:
        >>> centre(wrap(jnp.array([-3, 5]), 16), 16).tolist()
        [-3, 5]
    """
    half = modulus // 2
    shifted = wrap(jnp.asarray(elements).astype(jnp.uint32) + jnp.uint32(half), modulus)
    return shifted.astype(jnp.int32) - half

