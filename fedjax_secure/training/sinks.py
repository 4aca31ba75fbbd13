"""Where the engine puts what it computes of a client: a row of its own, or a running total."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Rows(NamedTuple):
    """A row for each client of a chunk: memory grows with the chunk, not with the federation.

    Attributes:
        clients: numbers of the clients whose values are computed, at most ``room``.
        room: how many rows there are; the same in every call, so that one program serves all.

    Example:
        >>> Rows.of(range(3), 4).clients
        (0, 1, 2)
    """

    clients: tuple[int, ...]
    room: int

    @classmethod
    def of(cls, clients: Sequence[int], room: int) -> Rows:
        """Rows for some clients, as plain integers."""
        return cls(tuple(int(c) for c in clients), int(room))


class Total(NamedTuple):
    """One running total a device: memory does not grow with the number of clients.

    Each client's value becomes a payload (clipped, rounded, noised, encrypted: whatever the chain
    does) as soon as it is there, and is added up. All zeros must be the payload that adds nothing.

    Attributes:
        clients: numbers of the clients that take part, also those without records.
        keys: ``[num_clients, 8] uint32``, a fresh key for each client of the dataset and round.
        states: any pytree, given to both functions; its arrays may change from round to round.
        contribution: ``(states, key [8], value [dim]) -> (payload, finite)``, pure and jittable.
        add: ``(states, payload, payload) -> payload``. Give the same function objects each round.
    """

    clients: tuple[int, ...]
    keys: np.ndarray
    states: Any
    contribution: Callable[[Any, Any, Any], tuple[Any, Any]]
    add: Callable[[Any, Any, Any], Any]


Sink = Rows | Total
