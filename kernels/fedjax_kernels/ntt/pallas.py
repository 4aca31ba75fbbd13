"""The transform for GPUs: a whole limb of several polynomials in shared memory, three passes.

One block transforms one limb of C polynomials that lie side by side in the batch, so that every
access to global memory takes 4 C contiguous bytes: whole 32-byte sectors up to N = 4096. The
index of a coefficient is split into three digits, n = (a, b, d) of radix r1, r2 and r3, with r3 C
= 128. A pass works on one digit: a thread loads the radix-r column of its element into r
registers, does log2 r stages of Harvey's lazy butterflies there, and stores it back in place. So
memory is touched three times instead of log2 N times: the first pass reads global memory, the
last one writes it, and shared memory is written twice and read twice in between.

    pass   digit  a vector of 128 threads is    roots
    1      a      (d, c) of one b               r1 - 1, the same for all
    2      b      (d, c) of one a               r2 - 1 for each a, the same for all threads
    3      d      (b, c) of some a, b           r3 - 1 for each (a, b), a vector

Vectors of passes 1 and 2 are contiguous in shared memory; those of pass 3 have a stride of (r3 +
1) C words, one unused row a digit, which puts the 32 lanes of a warp into 32 banks. No butterfly
ever crosses threads.

    N       r1 r2 r3   C    shared memory
    1024    16  8  8   16    72 KiB
    2048    16 16  8   16   144 KiB
    4096    16 16 16    8   136 KiB
    8192    16 16 32    4   132 KiB

A batch that is no multiple of C is padded with zeros first.

Source: the division of a transform into passes of a larger radix is W. M. Gentleman and G. Sande,
"Fast Fourier transforms for fun and profit", AFIPS 1966; butterflies and lazy reduction as in
`fedjax_kernels.ntt.xla`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import mosaic
from fedjax_kernels.modular import pallas as modular
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.mosaic import mul_shoup, mul_shoup_lazy, subtract_once
from fedjax_kernels.ntt.api import MAX_GPU_RING_DEGREE, MIN_GPU_RING_DEGREE
from fedjax_kernels.ntt.tables import tables

_WORDS_PER_WARPGROUP = 8192


class Plan(NamedTuple):
    """How one block divides its work."""

    radices: tuple[int, int, int]
    columns: int
    warpgroups: int

    @property
    def scratch(self) -> tuple[Any, Any]:
        """Types of the shared memory of a block: the coefficients, and the barrier."""
        r1, r2, r3 = self.radices
        rows = mosaic.shared((r1 * r2, r3 + 1, self.columns), jnp.uint32)
        return rows, mosaic.barrier(self.warpgroups)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a vector: 128 elements."""
        return self.radices[2], self.columns


class Constants(NamedTuple):
    """The primes' constants in the order in which the passes need them, uint32.

    `first` [L, r1 - 1, 2], `second` [L, r1, r2 - 1, 2] and `third` [L, 2, r3 - 1, r1 r2] hold
    roots and their Shoup quotients; stage t's roots of one vector are entries 2^t - 1 to
    2^(t+1) - 2. `prime` [L, 8] holds q, then what follows the transform.
    """

    first: Any
    second: Any
    third: Any
    prime: Any


@lru_cache(maxsize=32)
def plan(ring_degree: int) -> Plan:
    """Divides the bits of N into three digits and chooses the columns of a block."""
    if not MIN_GPU_RING_DEGREE <= ring_degree <= MAX_GPU_RING_DEGREE:
        raise ValueError(
            f"the GPU transform needs a ring degree from {MIN_GPU_RING_DEGREE} to "
            f'{MAX_GPU_RING_DEGREE}, got {ring_degree}. Use implementation="xla".'
        )
    bits = ring_degree.bit_length() - 1
    first = min(4, -(-bits // 3))
    second = min(4, -(-(bits - first) // 2))
    r1, r2, r3 = 1 << first, 1 << second, 1 << (bits - first - second)
    columns = mosaic.THREADS // r3
    warpgroups = min(4, max(2, ring_degree * columns // _WORDS_PER_WARPGROUP))
    return Plan((r1, r2, r3), columns, warpgroups)


def _stages(outer: int, radix: int) -> np.ndarray:
    """Indices into a bit-reversed table of the roots of one pass: [outer, radix - 1]."""
    rows = np.arange(outer)[:, None]
    parts = [((outer + rows) << t) + np.arange(1 << t)[None] for t in range(radix.bit_length() - 1)]
    return np.concatenate(parts, axis=1)


@lru_cache(maxsize=64)
def constants(moduli: Moduli, inverse: bool) -> Constants:
    """The constants of a transform, as NumPy arrays."""
    table = tables(moduli)
    if inverse:
        pair = np.stack([table.inverse_roots, table.inverse_roots_quotient], axis=-1)
    else:
        pair = np.stack([table.roots, table.roots_quotient], axis=-1)
    r1, r2, r3 = plan(moduli.ring_degree).radices
    prime = np.zeros((moduli.num_limbs, 8), np.uint32)
    for column, values in enumerate(
        (moduli.q, moduli.q_inverse, table.n_inverse, table.n_inverse_quotient, moduli.barrett)
    ):
        prime[:, column] = values.reshape(-1)
    return Constants(
        first=np.ascontiguousarray(pair[:, _stages(1, r1)[0]]),
        second=np.ascontiguousarray(pair[:, _stages(r1, r2)]),
        third=np.ascontiguousarray(
            np.moveaxis(pair[:, _stages(r1 * r2, r3)], 1, -1).swapaxes(1, 2)
        ),
        prime=prime,
    )


Root = Callable[[int], tuple[Any, Any]]


def forward_butterflies(rows: Sequence[Any], root: Root, q: Any) -> list[Any]:
    """log2 r Cooley-Tukey stages on r registers: values below 4q in and out."""
    rows, two_q = list(rows), q + q
    half, blocks = len(rows) // 2, 1
    while half:
        for block in range(blocks):
            w, quotient = root(blocks - 1 + block)
            for i in range(2 * half * block, 2 * half * block + half):
                u = subtract_once(rows[i], two_q)
                v = mul_shoup_lazy(rows[i + half], w, quotient, q)
                rows[i], rows[i + half] = u + v, u - v + two_q
        half, blocks = half // 2, 2 * blocks
    return rows


def inverse_butterflies(rows: Sequence[Any], root: Root, q: Any) -> list[Any]:
    """log2 r Gentleman-Sande stages on r registers: values below 2q in and out."""
    rows, two_q = list(rows), q + q
    half, blocks = 1, len(rows) // 2
    while blocks:
        for block in range(blocks):
            w, quotient = root(blocks - 1 + block)
            for i in range(2 * half * block, 2 * half * block + half):
                u, v = rows[i], rows[i + half]
                rows[i] = subtract_once(u + v, two_q)
                rows[i + half] = mul_shoup_lazy(u - v + two_q, w, quotient, q)
        half, blocks = 2 * half, blocks // 2
    return rows


class Block:
    """The passes of one block, for one limb; `work` and `gate` are its shared memory.

    `group` is the warpgroup. A pass calls `read(index, digit)` and `write(index, digit, value)`
    with vectors: the fixed digits' index, and the digit that the pass works on.
    """

    def __init__(self, shape: Plan, limb: Any, group: Any, work: Any, gate: Any):
        self.plan, self.limb, self.group = shape, limb, group
        self.work, self.gate = work, gate
        self.layout = mosaic.tile(*shape.shape)

    def share(self, count: int, body: Callable[[Any], None]) -> None:
        """Calls `body` for this warpgroup's part of 0..count-1."""
        step = self.plan.warpgroups

        def one(i, carry):
            body(i * step + self.group)
            return carry

        mosaic.repeat(0, count // step, one, jnp.int32(0))

    def meet(self) -> None:
        """Waits for the other warpgroups."""
        mosaic.meet(self.gate)

    def row(self, index: Any) -> Any:
        """The shared memory of one (a, b): [r3, C], a vector of passes 1 and 2."""
        return self.work.at[index, mosaic.indices(0, self.plan.radices[2])]

    def spread(self, chunk: Any, digit: int) -> Any:
        """The shared memory of one d over r3 successive (a, b): a vector of pass 3."""
        r3 = self.plan.radices[2]
        return self.work.at[mosaic.indices(chunk * r3, r3), digit]

    def get(self, ref: Any) -> Any:
        """One vector from memory."""
        return mosaic.load(ref, self.layout)

    def repeat(self, ref: Any) -> Any:
        """One number a row, over all columns."""
        return mosaic.load_column(ref, self.layout, self.plan.shape)

    def first_roots(self, table: Any) -> Root:
        """Roots of pass 1."""
        return lambda i: (table[self.limb, i, 0], table[self.limb, i, 1])

    def second_roots(self, table: Any, a: Any) -> Root:
        """Roots of pass 2 at digit a."""
        return lambda i: (table[self.limb, a, i, 0], table[self.limb, a, i, 1])

    def third_roots(self, table: Any, chunk: Any) -> Root:
        """Roots of pass 3 at one chunk of r3 values of (a, b)."""
        r3 = self.plan.radices[2]

        def root(i):
            at = mosaic.indices(chunk * r3, r3)
            return (
                self.repeat(table.at[self.limb, 0, i, at]),
                self.repeat(table.at[self.limb, 1, i, at]),
            )

        return root

    def forward_to_third(self, source: Callable[[Any, int], Any], tables_: Any, q: Any) -> None:
        """Passes 1 and 2: `source(b, a)` gives the vector of coefficients (a, b)."""
        r1, r2, _ = self.plan.radices

        def first(b):
            rows = [source(b, a) for a in range(r1)]
            rows = forward_butterflies(rows, self.first_roots(tables_.first), q)
            for a, value in enumerate(rows):
                mosaic.store(self.row(a * r2 + b), value)

        def second(a):
            rows = [self.get(self.row(a * r2 + b)) for b in range(r2)]
            rows = forward_butterflies(rows, self.second_roots(tables_.second, a), q)
            for b, value in enumerate(rows):
                mosaic.store(self.row(a * r2 + b), value)

        self.share(r2, first)
        self.meet()
        self.share(r1, second)
        self.meet()

    def inverse_from_third(self, sink: Callable[[Any, int, Any], None], tables_: Any, q: Any):
        """Passes 2 and 1 of the inverse: `sink(b, a, value)` takes values below q."""
        r1, r2, _ = self.plan.radices
        scale = tables_.prime[self.limb, 2], tables_.prime[self.limb, 3]

        def second(a):
            rows = [self.get(self.row(a * r2 + b)) for b in range(r2)]
            rows = inverse_butterflies(rows, self.second_roots(tables_.second, a), q)
            for b, value in enumerate(rows):
                mosaic.store(self.row(a * r2 + b), value)

        def first(b):
            rows = [self.get(self.row(a * r2 + b)) for a in range(r1)]
            rows = inverse_butterflies(rows, self.first_roots(tables_.first), q)
            for a, value in enumerate(rows):
                sink(b, a, mul_shoup(value, *scale, q))

        self.share(r1, second)
        self.meet()
        self.share(r2, first)

    def third_forward(self, chunk: Any, table: Any, q: Any) -> list[Any]:
        """Pass 3, in registers: the transform's values below 4q, r3 vectors over one chunk."""
        rows = [self.get(self.spread(chunk, d)) for d in range(self.plan.radices[2])]
        return forward_butterflies(rows, self.third_roots(table, chunk), q)

    def third_inverse(self, chunk: Any, rows: Sequence[Any], table: Any, q: Any) -> None:
        """Pass 3 of the inverse, from registers below 2q to shared memory."""
        for d, value in enumerate(inverse_butterflies(rows, self.third_roots(table, chunk), q)):
            mosaic.store(self.spread(chunk, d), value)


class Window:
    """One limb's columns of an array [rows, r1 r2, r3, batch] in global memory."""

    def __init__(self, block: Block, ref: Any, row: Any, group: Any):
        self.block, self.ref, self.row = block, ref, row
        self.columns = mosaic.indices(group * block.plan.columns, block.plan.columns)

    def natural(self, b: Any, a: int) -> Any:
        """The slice [r3, C] of coefficients (a, b)."""
        _, r2, r3 = self.block.plan.radices
        return self.ref.at[self.row, a * r2 + b, mosaic.indices(0, r3), self.columns]

    def spread(self, chunk: Any, digit: int) -> Any:
        """The slice [r3, C] of r3 successive (a, b) with one d."""
        r3 = self.block.plan.radices[2]
        return self.ref.at[self.row, mosaic.indices(chunk * r3, r3), digit, self.columns]

    def read(self, b: Any, a: int) -> Any:
        """The vector of coefficients (a, b)."""
        return self.block.get(self.natural(b, a))

    def write(self, b: Any, a: int, value: Any) -> None:
        """Writes the vector of coefficients (a, b)."""
        mosaic.store(self.natural(b, a), value)


def in_columns(x: Any, division: Plan) -> Any:
    """[..., N, batch] as [rows, r1 r2, r3, batch], the batch padded to whole blocks."""
    r1, r2, r3 = division.radices
    x = jnp.asarray(x).reshape(-1, r1 * r2, r3, x.shape[-1])
    missing = -x.shape[-1] % division.columns
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]) if missing else x


def _transform(x: Any, moduli: Moduli, inverse: bool, interpret: bool) -> Any:
    division = plan(moduli.ring_degree)
    flat = in_columns(x, division)
    if not flat.size:
        return jnp.asarray(x)
    limbs = moduli.num_limbs
    r1, r2, r3 = division.radices

    def body(index, group, source, first, second, third, prime, result, work, gate):
        row, columns = index
        block = Block(division, jax.lax.rem(row, jnp.int32(limbs)), group, work, gate)
        tables_ = Constants(first, second, third, prime)
        q = prime[block.limb, 0]
        taken, given = Window(block, source, row, columns), Window(block, result, row, columns)

        def last_forward(chunk):
            for d, value in enumerate(block.third_forward(chunk, third, q)):
                reduced = subtract_once(subtract_once(value, q + q), q)
                mosaic.store(given.spread(chunk, d), reduced)

        def first_inverse(chunk):
            rows = [block.get(taken.spread(chunk, d)) for d in range(r3)]
            block.third_inverse(chunk, rows, third, q)

        if inverse:
            block.share(r1 * r2 // r3, first_inverse)
            block.meet()
            block.inverse_from_third(given.write, tables_, q)
        else:
            block.forward_to_third(taken.read, tables_, q)
            block.share(r1 * r2 // r3, last_forward)

    out = mosaic.launch(
        body,
        name=f"ntt_{'inverse' if inverse else 'forward'}_{moduli.ring_degree}",
        out=jax.ShapeDtypeStruct(flat.shape, jnp.uint32),
        grid=(flat.shape[0], flat.shape[3] // division.columns),
        scratch=division.scratch,
        warpgroups=division.warpgroups,
        interpret=interpret,
    )(flat, *map(jnp.asarray, constants(moduli, inverse)))
    return out[..., : x.shape[-1]].reshape(x.shape)


@partial(jax.jit, static_argnames=("moduli", "interpret"))
def forward(x, *, moduli, interpret=False):
    return _transform(x, moduli, False, interpret)


@partial(jax.jit, static_argnames=("moduli", "interpret"))
def inverse(x, *, moduli, interpret=False):
    return _transform(x, moduli, True, interpret)


@partial(jax.jit, static_argnames=("moduli", "interpret"))
def multiply(a, b, *, moduli, interpret=False):
    a = forward(a, moduli=moduli, interpret=interpret)
    b = forward(b, moduli=moduli, interpret=interpret)
    product = modular.mul(a, b, moduli=moduli, interpret=interpret)
    return inverse(product, moduli=moduli, interpret=interpret)
