"""Who is how sensitive: from a rule about one person's own data to group numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError


def assign(
    records: np.ndarray, rule: Callable[[np.ndarray], Any], names: Sequence[str],
) -> np.ndarray:
    """Each record's group, by a rule about that record alone.

    The data owner's rule decides how sensitive a record is: by a column, by a wish that the person
    expressed, or by any function of the one record.

    Guarantees:
        The rule sees one record at a time. So adding or removing a person changes nobody else's
        group, which the guarantee of each person rests on: a rule such as "the oldest tenth"
        would move others.

    Args:
        records: ``[records, ...]``, for example ``data.x``, or rows of a table.
        rule: from one record to the name of its group.
        names: of the plan's groups, in the order of their numbers.

    Returns:
        int64 [records].

    Raises:
        DataError: a name that is no group's.

    Example:
        >>> ages = np.array([[71.0], [44.0], [66.0]])
        >>> assign(ages, lambda person: "older" if person[0] >= 65 else "younger",
        ...        ("older", "younger")).tolist()
        [0, 1, 0]
    """
    if not callable(rule):
        raise DataError("assign", need="a rule: a function of one record that names its group",
                        found=type(rule).__name__, fix='Write lambda record: "older" if ... , for '
                        "example.")
    numbers = {name: number for number, name in enumerate(names)}
    found = np.empty(len(records), np.int64)
    for place, record in enumerate(records):
        name = rule(record)
        if name not in numbers:
            raise DataError("assign", need=f"a rule that names one of {', '.join(names)}",
                            found="another name", fix="Name the plan's groups, plan.names.")
        found[place] = numbers[name]
    return found
