"""Who takes part in a round, and the state that rounds carry on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Cohort(NamedTuple):
    """The clients of one round, and which of their examples take part.

    Attributes:
        round: the round, from 1.
        clients: ids, in the dataset's order.
        indices: one int32 array a client: positions of its examples in the dataset.
        alive: bool [clients]; a client that dropped out is False and sends nothing.
    """

    round: int
    clients: tuple[str, ...]
    indices: tuple[np.ndarray, ...]
    alive: np.ndarray


class RoundState(NamedTuple):
    """What one round hands to the next; a pytree.

    Attributes:
        params: the model's parameters.
        opt_state: the server optimiser's state.
        stage_states: the stages' states that change from round to round.
        round: how many rounds are finished.
    """

    params: Any
    opt_state: Any
    stage_states: Any
    round: int
