"""Who takes part in a round, and the state that rounds carry on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Cohort(NamedTuple):
    """The clients of one round, and which of their examples take part.

    Attributes:
        round: the round, from 1.
        clients: ids of the whole population, in the dataset's order.
        indices: one int32 array a client: positions of its examples in the dataset, in the order
            in which it trains on them; empty for a client that takes no part.
        alive: bool [clients]; a client that takes no part, or dropped out, is False and sends
            nothing.
        scale: float32 [clients], the expected share of a uniform cohort over each client's own
            probability of taking part, so that clients drawn with unequal probabilities stay
            unbiased; None for 1.
        mean_count: examples of a client in the mean over the population, a public constant; given
            with ``scale``.
        share: float32 [clients], which share of its steps each client completes, above 0 and up to
            1; None for 1.
        staleness: int32 [clients], how many model versions ago each client took the model that its
            update starts from; None for 0.
        seconds: simulated duration of the round; None where no time is simulated.
    """

    round: int
    clients: tuple[str, ...]
    indices: tuple[np.ndarray, ...]
    alive: np.ndarray
    scale: np.ndarray | None = None
    mean_count: float | None = None
    share: np.ndarray | None = None
    staleness: np.ndarray | None = None
    seconds: float | None = None

    @property
    def counts(self) -> np.ndarray:
        """int64 [clients]: how many examples of each take part, each once however many passes.

        Example:
            >>> Cohort(1, ("a", "b"), (np.zeros((3, 5), np.int32), np.zeros(0, np.int32)),
            ...        np.array([True, False])).counts.tolist()
            [5, 0]
        """
        counts, alive = np.zeros(len(self.indices), np.int64), self.taking_part
        counts[alive] = [self.indices[client].shape[-1] for client in alive]
        return counts

    @property
    def taking_part(self) -> np.ndarray:
        """int64: numbers of the clients that are alive, ascending."""
        return np.flatnonzero(self.alive)


class RoundState(NamedTuple):
    """What one round hands to the next; a pytree.

    Attributes:
        params: the model's parameters.
        opt_state: the algorithm's server state, for example its optimiser's.
        stage_states: what the chain's stages carry from round to round, by stage and name.
        round: how many rounds are finished.
        selection: what the selection of clients remembers.

    Example:
        >>> RoundState({"w": np.zeros(10_000)}, (), {}, 3)
        RoundState(round=3, ...)
    """

    params: Any
    opt_state: Any
    stage_states: Any
    round: int
    selection: Any = ()

    def __repr__(self) -> str:
        """Short, for notebooks: a model's arrays would fill the page."""
        return f"RoundState(round={self.round}, ...)"
