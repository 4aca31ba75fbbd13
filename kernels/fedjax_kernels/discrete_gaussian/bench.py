"""Times the discrete Gaussian sampler: ``python -m fedjax_kernels.discrete_gaussian.bench``."""

from __future__ import annotations

from collections.abc import Iterator

from fedjax_kernels import discrete_gaussian
from fedjax_kernels.bench import MILLION, Row, table, timed, uniform_words


def rows() -> Iterator[Row]:
    """A quarter of a million draws at three widths."""
    draws = MILLION // 4
    words = uniform_words(discrete_gaussian.WORDS_PER_DRAW, draws)
    for sigma in (1.0, 10.0, 100.0):
        made = discrete_gaussian.table(sigma)
        yield from timed(
            f"sigma {sigma:g}",
            "discrete_gaussian.sample",
            lambda words, made=made: discrete_gaussian.sample(made, words),
            words,
            scale=MILLION / draws,
        )


if __name__ == "__main__":
    print(table(rows()))
