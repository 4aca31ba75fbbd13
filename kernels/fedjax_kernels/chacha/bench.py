"""Times ChaCha20: ``python -m fedjax_kernels.chacha.bench``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedjax_kernels import chacha
from fedjax_kernels.bench import MILLION, Row, table, timed


def rows() -> Iterator[Row]:
    """One stream of a million words, and of an odd number of them."""
    key, nonce = chacha.key_from_bytes(bytes(range(32))), np.zeros(3, np.uint32)
    for count in (MILLION, 200_003):
        yield from timed(
            f"{count} words",
            "chacha.keystream",
            lambda key, n=count: chacha.keystream(key, nonce, n),
            key,
            scale=MILLION / count,
        )


if __name__ == "__main__":
    print(table(rows()))
