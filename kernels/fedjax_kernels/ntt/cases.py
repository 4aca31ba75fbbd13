"""Shapes that tests and benchmarks of the transform share."""

from __future__ import annotations

from fedjax_kernels.modular.cases import Case

SMALL_CASES = (Case(8, (5,), 2), Case(16, (30, 30), 1), Case(64, (30,), 7))

CASES = (
    Case(1024, (26,), 3),
    Case(2048, (26, 26), 1),
    Case(4096, (30, 30), 1),
    Case(8192, (30,), 1),
    Case(16384, (30,), 1),
)

#: Batches past one block of columns, odd; from N = 8192 on, blocks go through stages in parts.
BLOCK_CASES = (Case(1024, (26, 26), 149), Case(8192, (30,), 17), Case(16384, (30,), 17))
