"""Inversion for GPUs: every draw is compared with every threshold.

The magnitude of a draw is the number of thresholds that are at most its 127 bits. A binary search
would read memory at places that depend on the secret draw, differ from thread to thread, and make
a warp wait for the slowest. Here all threads read the same threshold at the same time, from shared
memory, and add up 127-bit comparisons, four draws a thread: the work, the addresses and the time
are the same for all words. It is linear in the table (a discrete Gaussian has about 13 sigma
thresholds), some ten instructions each, so a wide distribution is better served by the search of
`inversion.xla`, which `implementation=None` takes for more than 1,024 thresholds.

The table passes through shared memory in parts of 128 thresholds (2 KiB), each warpgroup of four
copying one of the four words.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import mosaic

_WORDS = 4
_VECTOR = 4 * mosaic.THREADS  # draws of a warpgroup
_PART = mosaic.THREADS  # thresholds in shared memory
_UNROLL = 4


def _pad(x: Any, multiple: int, value: int) -> jax.Array:
    missing = -x.shape[1] % multiple
    x = jnp.asarray(x)
    return jnp.pad(x, [(0, 0), (0, missing)], constant_values=np.uint32(value)) if missing else x


@functools.partial(jax.jit, static_argnames=("max_magnitude", "interpret"))
def sample(thresholds, words, *, max_magnitude, interpret=False):
    draws = words.shape[1]
    if not draws:
        return jnp.zeros((0,), jnp.int32)
    # Thresholds of all ones are never reached, as draws have 127 bits.
    table = _pad(jnp.asarray(thresholds)[:, :max_magnitude], _PART, 0xFFFFFFFF)
    padded = _pad(words, _WORDS * _VECTOR, 0)
    parts = table.shape[1] // _PART
    last = -(-(max_magnitude - (parts - 1) * _PART) // _UNROLL)  # steps of the last part

    def body(index, group, table_, source, out, work, gate):
        layout = mosaic.strided(_VECTOR, 4)
        here = mosaic.indices((index[0] * _WORDS + group) * _VECTOR, _VECTOR)
        draw = [mosaic.load(source.at[i, here], layout) for i in range(_WORDS)]
        value = [draw[0] & 0x7FFFFFFF, *draw[1:]]

        def compare(step, count):
            for k in range(_UNROLL):
                column = step * _UNROLL + k
                at_most = work[3, column] <= value[3]
                for i in (2, 1, 0):
                    threshold = work[i, column]
                    at_most = (threshold < value[i]) | ((threshold == value[i]) & at_most)
                count = count + at_most.astype(jnp.int32)
            return count

        def part(number, count, steps=_PART // _UNROLL):
            mosaic.meet(gate)  # nobody reads the last part any more
            columns = mosaic.indices(number * _PART, _PART)
            row = mosaic.load(table_.at[group, columns], mosaic.strided(_PART, 1))
            mosaic.store(work.at[group, mosaic.indices(0, _PART)], row)
            mosaic.meet(gate)
            return mosaic.repeat(0, steps, compare, count)

        none = (draw[0] & 0).astype(jnp.int32)
        magnitude = part(parts - 1, mosaic.repeat(0, parts - 1, part, none), last)
        negative = draw[0] > 0x7FFFFFFF
        mosaic.store(out.at[here], jnp.where(negative, -magnitude, magnitude))

    drawn = mosaic.launch(
        body,
        name="discrete_gaussian_sample",
        out=jax.ShapeDtypeStruct((padded.shape[1],), jnp.int32),
        grid=(padded.shape[1] // (_WORDS * _VECTOR),),
        scratch=(mosaic.shared((_WORDS, _PART), jnp.uint32), mosaic.barrier(_WORDS)),
        warpgroups=_WORDS,
        interpret=interpret,
    )(table, padded)
    return drawn[:draws]
