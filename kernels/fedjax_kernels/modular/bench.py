"""Times modular arithmetic: ``python -m fedjax_kernels.modular.bench``."""

from __future__ import annotations

from collections.abc import Iterator

from fedjax_kernels import modular
from fedjax_kernels.bench import MILLION, Row, table, timed, uniform_words
from fedjax_kernels.modular.cases import CASES


def rows() -> Iterator[Row]:
    """Each operation on one block of every case's moduli, wide and of an odd batch."""
    for case in CASES[1:]:
        bits, degree = case.prime_bits, case.ring_degree
        moduli = modular.Moduli(modular.ntt_primes(degree, bits[0], len(bits)), degree)
        a = modular.reduce(uniform_words(len(bits), degree, 19), moduli)
        name = f"N={degree}, {len(bits)} x {bits[0]} bits, batch 19"
        scale = MILLION / a.size
        binary = (modular.add, modular.sub, modular.mul, modular.mul_montgomery)
        for function in binary:
            yield from timed(
                name,
                f"modular.{function.__name__}",
                lambda a, b, f=function, m=moduli: f(a, b, m),
                a,
                a,
                scale=scale,
            )
        many = uniform_words(16, *a.shape)
        yield from timed(
            name,
            "modular.sum_residues of 16",
            lambda x, m=moduli: modular.sum_residues(x, m),
            many,
            scale=MILLION / many.size,
        )


if __name__ == "__main__":
    print(table(rows()))
