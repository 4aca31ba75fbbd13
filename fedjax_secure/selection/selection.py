"""The type of every way to choose who takes part in a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..core import Cohort, Sampling, Source


class Selection(NamedTuple):
    """A way to choose who takes part, as the accountant and the engine see it.

    Attributes:
        name: for records and code.
        sampling: what the accountant is told; None where no unit is sampled.
        draw: ``(source, round, clients, offsets) -> Cohort``; ``offsets`` [clients + 1] says where
            each client's examples begin.
    """

    name: str
    sampling: Sampling | None
    draw: Callable[[Source, int, tuple[str, ...], np.ndarray], Cohort]
