"""The discrete Laplace distribution from its definition, and by rejection, in exact arithmetic."""

from __future__ import annotations

import decimal
import random
from collections.abc import Iterator
from fractions import Fraction

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


def bernoulli_exp(gamma: Fraction, coins: random.Random) -> bool:
    """True with probability exp(-gamma): Canonne, Kamath, Steinke 2020, Algorithm 1."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1), coins):
            return False
        gamma -= 1
    k = 1
    while coins.randrange(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def by_rejection(scale: int, coins: random.Random) -> int:
    """A draw of probability ~ exp(-|z| / scale) by Algorithm 2 with s = 1, without any table."""
    while True:
        low = coins.randrange(scale)
        if not bernoulli_exp(Fraction(low, scale), coins):
            continue
        high = 0
        while bernoulli_exp(Fraction(1), coins):
            high += 1
        magnitude, negative = low + scale * high, coins.getrandbits(1)
        if magnitude or not negative:
            return -magnitude if negative else magnitude
