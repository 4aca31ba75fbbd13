"""What openers and releases do, whichever scheme they serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..errors import OpeningError
from .submissions import Opened, Submission


class InvalidSum(OpeningError):
    """What was opened is not a sum of well-formed values: some client did not encode as planned.

    Raised after the private key was used. Whether a sum is valid tells something about the key, so
    the round is used up: no other set of submissions is opened for it.
    """


class Release(Protocol):
    """What is done to a sum before it is stored or shown: noise is added to it."""

    def __call__(self, round: int, total: np.ndarray, submissions_digest: bytes) -> np.ndarray:
        """A sum of the same shape and dtype; the same one for the same submissions."""
        ...

    def prepare(self, round: int) -> None:
        """Have on disk what the round's noise is drawn from."""
        ...

    def prepared(self, round: int) -> bool:
        """Whether it is there."""
        ...

    def forget(self, round: int) -> None:
        """Delete it: the round's result is stored."""
        ...


class Opener(Protocol):
    """Opens one sum a round; see :class:`OnceOpener` for the checks every opener makes."""

    key_id: bytes

    def open(self, round: int, model_digest: bytes, submissions: Sequence[Submission]) -> Opened:
        """Check, sum and open."""
        ...

    def open_total(
        self, round: int, model_digest: bytes, total: bytes, clients: Sequence[str]
    ) -> Opened:
        """Open a sum that a trusted aggregator made."""
        ...

    @property
    def rounds_left(self) -> int | None:
        """How many more rounds can be opened with this key; None for any number."""
        ...

    def opened(self, round: int) -> Opened | None:
        """The stored result of a round, or None."""
        ...

    def release_through(self, release: Release) -> None:
        """Have every sum pass through ``release`` before it is stored or shown."""
        ...

    def prepare(self, round: int) -> None:
        """Settle what a round's release draws, before clients make their messages."""
        ...

    def prepared(self, round: int) -> bool:
        """Whether what was settled for a round is still there."""
        ...

    def close(self) -> None:
        """Release processes and files; stored results stay."""
        ...
