"""The Skellam distribution's thresholds from the series of its Bessel functions, in decimals."""

from __future__ import annotations

import decimal
from collections.abc import Iterator

from fedjax_kernels.inversion import reference


def thresholds(variance: float, *, digits: int = 140) -> list[int]:
    """2^127 * P(|z| <= k) rounded to the nearest integer, for k = 0, 1, ... until it is 2^127."""
    return reference.thresholds(_weights(variance), digits=digits)


def _weights(variance: float) -> Iterator[decimal.Decimal]:
    """I_0(v), 2 I_1(v), 2 I_2(v), ...: I_k(v) is the sum of (v/2)^(2j+k) / (j! (j+k)!)."""
    half = decimal.Decimal(variance) / 2
    first, k, least = decimal.Decimal(1), 0, decimal.Decimal(2) ** -250  # (v/2)^k / k!
    largest = None
    while True:
        term, total, j = first, first, 0
        while term > total * least * least:
            j += 1
            term *= half * half / (j * (j + k))
            total += term
        largest = total if largest is None else largest
        if total < largest * least:
            return
        yield total if k == 0 else 2 * total
        k += 1
        first *= half / k
