"""Checks of the numbers that accounting is given."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from fedjax_secure.core.errors import SpecError

SMALLEST_DP_DELTA = 1e-12  # FFTs in double precision cannot vouch for less


def require(ok: bool, where: str, need: str, found: object, fix: str) -> None:
    """Raises :class:`SpecError` unless `ok`."""
    if not ok:
        raise SpecError(where, need=need, found=str(found), fix=fix)


def as_tuple(where: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """The values, or an error for what is no collection."""
    try:
        return tuple(values)
    except TypeError:
        require(False, where, "a collection of spends", type(values).__name__,
                "Give a list, for example [fs.privacy.Spend(...)].")
        raise


def rounded_up(value: float, digits: int = 4) -> str:
    """A bound for people, at some significant digits and never below what it bounds.

    Example:
        >>> rounded_up(2.34501), rounded_up(0.1), rounded_up(1.00001e-5, 3), rounded_up(12345.6)
        ('2.346', '0.1', '1.01e-05', '1.235e+04')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exact = decimal.Decimal(repr(float(value)))
    unit = decimal.Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(unit, rounding=decimal.ROUND_CEILING)):.{digits}g}"


def is_positive(value: object) -> bool:
    """Whether it is a finite number above 0."""
    return (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            and float(value) > 0)


def is_count(value: object) -> bool:
    """Whether it is a whole number of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def require_dp_delta(where: str, dp_delta: object) -> None:
    """Refuses what is no delta of a guarantee that double precision can vouch for."""
    require(isinstance(dp_delta, Real) and SMALLEST_DP_DELTA <= float(dp_delta) < 1, where,
            f"dp_delta in [{SMALLEST_DP_DELTA:g}, 1)", f"dp_delta={dp_delta!r}",
            "Give a probability well below one over the number of units, for example 1e-5.")
