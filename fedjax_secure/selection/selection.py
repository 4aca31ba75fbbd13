"""The type of every way to choose who takes part in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core import Cohort, Sampling, Source


class Candidates(NamedTuple):
    """What a selection may look at before a round.

    Attributes:
        clients: ids of the whole population, in the dataset's order.
        offsets: int [clients + 1], where each client's examples begin.
        losses: ``(client numbers) -> float64 [numbers]``: the mean loss of the current model on
            these clients' training examples, computed when it is called. Only a selection that
            says ``reads_data`` may call it.
        available: bool [clients], who can be drawn this round; None for everyone. A selection
            draws nobody else.
    """

    clients: tuple[str, ...]
    offsets: np.ndarray
    losses: Callable[[Sequence[int]], np.ndarray] | None = None
    available: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """int [clients]: examples of each client."""
        return np.diff(self.offsets)

    @property
    def present(self) -> np.ndarray:
        """int64, ascending: numbers of the clients that can be drawn."""
        if self.available is None:
            return np.arange(len(self.clients))
        return np.flatnonzero(self.available)


class Observed(NamedTuple):
    """What a selection learns of a finished round.

    Attributes:
        losses: float64 [clients], the mean training loss of each client that took part, NaN for
            the others and where the algorithm does not report it.
        steps: int64 [clients], the training steps each client executed.
    """

    losses: np.ndarray
    steps: np.ndarray


class ByGroup(NamedTuple):
    """How a selection draws people of several groups, each at a rate of its own.

    Attributes:
        groups: int64, the number of each unit's group, in the dataset's order.
        rates: each group's sampling rate; 0 for one that is never drawn.
        mean_rate: in the mean over all units, by public shares: a public constant.
    """

    groups: np.ndarray
    rates: tuple[float, ...]
    mean_rate: float

    @property
    def digest(self) -> str:
        """SHA-256 of the groups, by which a run knows its own. It tells of records: not public."""
        return hashlib.sha256(self.groups.tobytes()).hexdigest()


def _remembers_nothing(candidates: Candidates) -> Any:
    return ()


def _learns_nothing(state: Any, cohort: Cohort, observed: Observed) -> Any:
    return state


def _everyone(num_clients: int, available: np.ndarray | None = None) -> float:
    return float(num_clients if available is None else np.sum(available))


class Selection(NamedTuple):
    """A way to choose who takes part, as the accountant and the engine see it.

    Attributes:
        name: for records and code.
        sampling: what the accountant is told, see `fedjax_secure.core.Sampling`: how each unit of
            privacy is sampled, with a rate below 1 only where that amplifies privacy. None where
            no privacy can be claimed.
        draw: ``(source, round, candidates, state) -> Cohort``. What is random comes from
            ``source.key(...)``.
        init: ``candidates -> state``, what the selection remembers: a pytree of arrays whose
            shapes never change.
        observe: ``(state, cohort, observed) -> state``, after a round.
        expected_clients: ``(num_clients, available=None) -> float``, the expected number of
            clients in a round in which these (bool [clients]) can be drawn, None for everyone: a
            public constant, by which sums are divided. Refuses a population it cannot serve.
        most_clients: ``num_clients -> int``, the largest number of clients in a round.
        reads_data: whether who takes part depends on the clients' examples. Then one client's
            data decides about others, no noise covers that, and differential privacy is refused.
        settings: what else the draw depends on, as text: another text is another run.
        hides_drawn: clients that are not drawn answer too, so that messages and records do not
            tell who was drawn. A federation takes coins for clients to amplify privacy only then:
            its records name who answered.
        by_group: how units are drawn by groups, where they are; a budget for individuals charges
            each group by it.
        answering: ``num_clients -> float64 [clients]``, each client's public probability of being
            there and answering when it is asked; None where that is 1 for all.
    """

    name: str
    sampling: Sampling | None
    draw: Callable[[Source, int, Candidates, Any], Cohort]
    init: Callable[[Candidates], Any] = _remembers_nothing
    observe: Callable[[Any, Cohort, Observed], Any] = _learns_nothing
    expected_clients: Callable[..., float] = _everyone
    most_clients: Callable[[int], int] = int
    reads_data: bool = False
    settings: str = ""
    hides_drawn: bool = False
    by_group: ByGroup | None = None
    answering: Callable[[int], np.ndarray] | None = None
