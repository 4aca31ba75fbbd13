"""Modular arithmetic for GPUs: one pass over memory for each operation.

An array [..., limb, n, batch] is read as rows of one limb. A block takes 1,024 numbers of a row,
each thread 8 of them with two 16-byte loads; the prime's constants, and operands that are one
number a limb, are one scalar load for the block. Every operation moves 4 bytes for each operand
and result and does fewer than 20 instructions on them, so memory bounds all of them, and a chain
of several is better left to XLA, which fuses it, or written into one kernel as `rlwe.pallas` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import mosaic
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.mosaic import mul_montgomery_lazy, mul_shoup, subtract_once

_VECTOR = 4 * mosaic.THREADS  # 16 bytes a thread
_VECTORS = 2
_BLOCK = _VECTORS * _VECTOR


@lru_cache(maxsize=64)
def _constants(moduli: Moduli) -> np.ndarray:
    """[limb, 10]: q, q^-1 mod 2^32, R^2, floor(2^32/q), and 2^32 and 2^16 mod q with quotients."""
    columns = [moduli.q, moduli.q_inverse, moduli.montgomery_r2, moduli.barrett]
    for power in (32, 16):
        shift = moduli.per_limb(lambda q, power=power: (1 << power) % q)
        columns += [shift, moduli.shoup(shift)]
    return np.concatenate([column.reshape(-1, 1) for column in columns], axis=1)


class _Prime:
    """One limb's constants, as scalars in registers."""

    def __init__(self, ref: Any, limb: Any):
        self.q, self.q_inverse, self.r2, self.barrett = (ref[limb, i] for i in range(4))
        self.shift_32 = ref[limb, 4], ref[limb, 5]
        self.shift_16 = ref[limb, 6], ref[limb, 7]

    def montgomery(self, a: Any, b: Any) -> Any:
        """a * b / 2^32 mod q."""
        return subtract_once(mul_montgomery_lazy(a, b, self.q, self.q_inverse), self.q)

    def add(self, a: Any, b: Any) -> Any:
        """a + b mod q."""
        return subtract_once(a + b, self.q)

    def neg(self, a: Any) -> Any:
        """-a mod q."""
        return subtract_once(self.q - a, self.q)

    def reduce(self, a: Any) -> Any:
        """Any word mod q."""
        return subtract_once(a - mosaic.mulhi(a, self.barrett) * self.q, self.q)

    def from_signed(self, a: Any) -> Any:
        """Any int32 mod q."""
        negative = a < 0
        magnitude = self.reduce(jnp.where(negative, -a, a).astype(jnp.uint32))
        return jnp.where(negative, self.neg(magnitude), magnitude)


def _flat(operand: Any, shape: tuple[int, ...], stacked: bool) -> jax.Array:
    """An operand as [stack, lead or 1, limb or 1, numbers or 1], broadcast where it has to be."""
    operand = jnp.asarray(operand)
    stack = operand.shape[:1] if stacked else (1,)
    own = operand.shape[1:] if stacked else operand.shape
    own = (1,) * (len(shape) - len(own)) + own
    lead = own[:-3] if own[:-3] in (shape[:-3], (1,) * len(shape[:-3])) else shape[:-3]
    inner = own[-2:] if own[-2:] in (shape[-2:], (1, 1)) else shape[-2:]
    operand = jnp.broadcast_to(operand.reshape(*stack, *own), (*stack, *lead, own[-3], *inner))
    flat = operand.reshape(*stack, math.prod(lead), own[-3], math.prod(inner))
    missing = -flat.shape[-1] % _BLOCK
    if inner == shape[-2:] and missing:
        flat = jnp.pad(flat, [(0, 0)] * 3 + [(0, missing)])
    return flat


def _run(
    function: Callable[..., Any],
    moduli: Moduli,
    *operands: Any,
    interpret: bool,
    stacked: bool = False,
) -> Any:
    """Applies `function(prime, *readers)`, where a reader gives one vector, or the k-th of many."""
    shapes = [np.shape(operand)[1:] if stacked else np.shape(operand) for operand in operands]
    shape = np.broadcast_shapes(*shapes, (moduli.num_limbs, 1, 1))
    if not math.prod(shape):
        return jnp.zeros(shape, jnp.uint32)
    rows, limbs = math.prod(shape[:-3]), moduli.num_limbs
    flat = [_flat(operand, shape, stacked) for operand in operands]
    numbers = -(-math.prod(shape[-2:]) // _BLOCK) * _BLOCK

    def body(index, group, constants, *refs):
        lead, limb, block = index
        prime = _Prime(constants, limb)
        layout = _strided()
        for part in range(_VECTORS):
            here = mosaic.indices(block * _BLOCK + part * _VECTOR, _VECTOR)

            def reader(ref, here=here):
                row = lead if ref.shape[1] > 1 else 0
                own_limb = limb if ref.shape[2] > 1 else 0
                if ref.shape[3] == 1:
                    return lambda k=0: ref[k, row, own_limb, 0]
                return lambda k=0: mosaic.load(ref.at[k, row, own_limb, here], layout)

            value = function(prime, *map(reader, refs[:-1]))
            mosaic.store(refs[-1].at[lead, limb, here], value)

    out = mosaic.launch(
        body,
        name=f"modular_{function.__name__.strip('_')}",
        out=jax.ShapeDtypeStruct((rows, limbs, numbers), jnp.uint32),
        grid=(rows, limbs, numbers // _BLOCK),
        scratch=(),
        warpgroups=1,
        interpret=interpret,
    )(jnp.asarray(_constants(moduli)), *flat)
    return out[..., : math.prod(shape[-2:])].reshape(shape)


def _strided() -> Any:
    return mosaic.strided(_VECTOR, 4)


def _operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operation on arrays that applies `function(prime, *vectors)` to vectors."""

    def on_readers(prime, *readers):
        return function(prime, *(reader() for reader in readers))

    on_readers.__name__ = function.__name__

    @partial(jax.jit, static_argnames=("moduli", "interpret"))
    def on_arrays(*operands, moduli, interpret=False):
        return _run(on_readers, moduli, *operands, interpret=interpret)

    return on_arrays


@_operation
def add(prime, a, b):
    return prime.add(a, b)


@_operation
def sub(prime, a, b):
    return subtract_once(a - b + prime.q, prime.q)


@_operation
def neg(prime, a):
    return prime.neg(a)


@_operation
def mul(prime, a, b):
    return prime.montgomery(prime.montgomery(a, b), prime.r2)


@_operation
def mul_montgomery(prime, a, b):
    return prime.montgomery(a, b)


@_operation
def to_montgomery(prime, a):
    return prime.montgomery(a, prime.r2)


@_operation
def from_montgomery(prime, a):
    return prime.montgomery(a, jnp.uint32(1))


@_operation
def mul_constant(prime, a, constant, quotient):
    return mul_shoup(a, constant, quotient, prime.q)


@_operation
def reduce(prime, a):
    return prime.reduce(a)


@_operation
def _from_signed(prime, a):
    return prime.from_signed(a)


def from_signed(a, *, moduli, interpret=False):
    return _from_signed(jnp.expand_dims(a, -3), moduli=moduli, interpret=interpret)


@partial(jax.jit, static_argnames=("moduli", "interpret"))
def reduce_words(words, *, moduli, interpret=False):
    count = words.shape[0]

    def reduce_words(prime, word):
        total = prime.reduce(word(count - 1))
        for k in range(count - 2, -1, -1):
            carried = mul_shoup(total, *prime.shift_32, prime.q)
            total = prime.add(carried, prime.reduce(word(k)))
        return total

    return _run(reduce_words, moduli, words, interpret=interpret, stacked=True)


@partial(jax.jit, static_argnames=("moduli", "interpret"))
def sum_residues(a, *, moduli, interpret=False):
    count = a.shape[0]
    if not count:
        return jnp.zeros(a.shape[1:], jnp.uint32)

    def sum_residues(prime, term):
        def accumulate(k, sums):
            value = term(k)
            return sums[0] + (value & 0xFFFF), sums[1] + (value >> 16)

        first = term(0)
        start = first & 0xFFFF, first >> 16
        low, high = mosaic.repeat(1, count, accumulate, start)
        return prime.add(mul_shoup(high, *prime.shift_16, prime.q), prime.reduce(low))

    return _run(sum_residues, moduli, a, interpret=interpret, stacked=True)
