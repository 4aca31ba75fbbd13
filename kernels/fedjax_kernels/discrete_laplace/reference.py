"""The discrete Laplace distribution's thresholds from its definition, in decimal arithmetic."""

from __future__ import annotations

import decimal
from collections.abc import Iterator

from fedjax_kernels.inversion import reference


def thresholds(scale: float, *, digits: int = 120) -> list[int]:
    """2^127 * P(|z| <= k) rounded to the nearest integer, for k = 0, 1, ... until it is 2^127."""
    return reference.thresholds(_weights(scale), digits=digits)


def _weights(scale: float) -> Iterator[decimal.Decimal]:
    exponent = -1 / decimal.Decimal(scale)
    weight, k = decimal.Decimal(1), 0
    while weight > decimal.Decimal(2) ** -250:
        yield weight
        k += 1
        weight = 2 * (exponent * k).exp()
