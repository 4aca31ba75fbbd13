"""Times the transform: ``python -m fedjax_kernels.ntt.bench``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fedjax_kernels import modular, ntt
from fedjax_kernels.bench import MILLION, Row, table, timed, uniform_words
from fedjax_kernels.ntt.cases import CASES


def rows() -> Iterator[Row]:
    """Forward and inverse, for a million coefficients of each ring degree, and an odd batch."""
    for case in CASES:
        degree = case.ring_degree
        limb = modular.Moduli(modular.ntt_primes(degree, case.prime_bits[0]), degree)
        for batch in (MILLION // degree, 19):
            x = modular.reduce(uniform_words(1, degree, batch), limb)
            name = f"N={degree}, {case.prime_bits[0]}-bit prime, batch {batch}"
            for what, function in (("ntt.forward", ntt.forward), ("ntt.inverse", ntt.inverse)):
                yield from timed(
                    name, what, partial(function, moduli=limb), x, scale=MILLION / x.size
                )


if __name__ == "__main__":
    print(table(rows()))
