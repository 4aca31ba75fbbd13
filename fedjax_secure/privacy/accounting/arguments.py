"""Checks of the numbers that accounting is given."""

from __future__ import annotations

import math
from numbers import Integral, Real

from fedjax_secure.core.errors import SpecError

SMALLEST_DP_DELTA = 1e-12  # FFTs in double precision cannot vouch for less


def require(ok: bool, where: str, need: str, found: object, fix: str) -> None:
    """Raises :class:`SpecError` unless `ok`."""
    if not ok:
        raise SpecError(where, need=need, found=str(found), fix=fix)


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
