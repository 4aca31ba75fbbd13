"""What the clients of a federation do in a round: train, protect, encode, sign.

Two ways exist. Where an opener checks each client's signed message, clients work in chunks: the
ciphertexts of one chunk leave the compiled program, are signed and put on disk, and make room for
the next. Where the aggregator is trusted, a client's ciphertext is added to the sum inside the
program in which it was made, and nothing of one client leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import Algorithm
from ..core import (
    Aggregation,
    Cohort,
    OpeningError,
    Setting,
    Signer,
    Source,
    SpecError,
    Submission,
)
from ..core.randomness import device_keys
from ..core.stage import States, require_finite
from ..training import Engine, Rows, Total
from .journal import Journal, Sent

_CHUNK_VALUES = 1 << 23  # values of a chunk that are in memory at once, unless asked otherwise


class RoundInput(NamedTuple):
    """What a round starts from: its number, the cohort, the model and the model's digest."""

    round: int
    cohort: Cohort
    params: Any
    model_digest: bytes


def chunk_size(chunk_clients: int | None, num_clients: int, dim: int) -> int:
    """How many clients' values are in memory at once.

    Args:
        chunk_clients: what the user asks for; None takes as many as hold 2^23 values.
        num_clients: clients of the federation.
        dim: values of an update.

    Raises:
        SpecError: not a whole number of 1 or more.

    Example:
        >>> chunk_size(None, 1000, 200_000), chunk_size(None, 4, 31), chunk_size(10, 4, 31)
        (41, 4, 4)
    """
    if chunk_clients is None:
        chunk_clients = max(1, _CHUNK_VALUES // dim)
    whole = isinstance(chunk_clients, Integral) and not isinstance(chunk_clients, bool)
    if not whole or chunk_clients < 1:
        raise SpecError("the federation", need="chunk_clients, a whole number of 1 or more",
                        found=repr(chunk_clients), fix="Leave it out, or give for example 50.")
    return min(int(chunk_clients), num_clients)


class Clients:
    """The clients of one federation, in this process.

    Args:
        engine: trains them.
        algorithm, aggregation: what they compute, and the chain around the sum.
        states: the stages' states, keys included.
        source: where their keys come from.
        setting: the run.
        signers: each client's signing key.
        key_id: of the public key under which they encrypt.
        room: clients in a chunk.
        compiled: wraps a function so that it is compiled once, under a name.
    """

    def __init__(
        self,
        engine: Engine,
        algorithm: Algorithm,
        aggregation: Aggregation,
        states: States,
        source: Source,
        setting: Setting,
        signers: Mapping[str, Signer],
        key_id: bytes,
        room: int,
        compiled: Callable[[str, Callable], Callable],
    ):
        self._engine, self._algorithm, self._aggregation = engine, algorithm, aggregation
        self._states, self._source, self._setting = states, source, setting
        self._signers, self._key_id, self._room = signers, key_id, room
        if setting.aggregator == "untrusted":
            self._encode = compiled("encode", aggregation.encode)
            self._seal = compiled("seal", aggregation.seal)

    def work(self, start: RoundInput, notes: dict[str, Any], journal: Journal, clock: Any) -> Sent:
        """One round's work, on disk before anything of it is sent.

        Raises:
            UpdateError: a client's value is not finite; nothing is kept or sent then.
            OpeningError: fewer clients take part than a sum needs; nobody has worked then.
        """
        cohort, fewest = start.cohort, self._setting.min_clients
        answering = int(np.count_nonzero(cohort.alive))
        if answering < fewest:
            raise OpeningError(
                f"round {start.round}", need=f"at least {fewest} clients that take part",
                found=str(answering), fix="Wait for more clients, and run the round again.")
        keys = device_keys([self._source.key("client", round=start.round, client=client)
                            for client in cohort.clients])
        if self._setting.aggregator == "semi-honest":
            total, clients = self._total(start, keys, clock)
            notes["timings_seconds"] = _timings(clock)
            return journal.store_total(start.round, total, clients, self._key_id,
                                       start.model_digest, notes)
        with journal.sending(start.round) as outbox:
            for chunk in self._chunks(cohort):
                for client, payload in self._chunk(start, keys, chunk, clock):
                    outbox.add(*self._signed(start, client, payload))
                clock.lap("encrypt")
        notes["timings_seconds"] = _timings(clock)
        return journal.store_sent(start.round, outbox.rows, notes)

    def _chunks(self, cohort: Cohort) -> Iterator[np.ndarray]:
        alive = np.flatnonzero(cohort.alive)
        for first in range(0, len(alive), self._room):
            yield alive[first:first + self._room]

    def _chunk(self, start: RoundInput, keys: np.ndarray, chunk: np.ndarray,
               clock: Any) -> Iterator[tuple[str, bytes]]:
        names = tuple(start.cohort.clients[place] for place in chunk)
        work = self._algorithm.local(
            self._engine, start.params, start.cohort, keys, self._aggregation, self._states,
            self._source, Rows.of(chunk, self._room))
        jax.block_until_ready(work.values)
        where = f"round {start.round}"
        require_finite(work.nonfinite == 0, start.cohort.clients, where)
        clock.lap("train")
        # The last chunk may leave rows free: they get an all-zero key, and nobody sees them.
        chunk_keys = np.zeros((self._room, 8), np.uint32)
        chunk_keys[:len(chunk)] = keys[chunk]
        elements, finite = jax.block_until_ready(
            self._encode(self._states, chunk_keys, work.values))
        require_finite(np.asarray(finite)[:len(chunk)], names, where)
        clock.lap("privacy")
        payloads = jax.block_until_ready(self._seal(self._states, chunk_keys, elements))
        payloads = jax.tree.map(lambda part: np.asarray(part)[:len(chunk)], payloads)
        wire = self._aggregation.to_wire(self._states, payloads, self._setting)
        yield from zip(names, wire, strict=True)

    def _total(self, start: RoundInput, keys: np.ndarray, clock: Any) -> tuple[bytes, list[str]]:
        alive = np.flatnonzero(start.cohort.alive)
        assert self._aggregation.add is not None
        into = Total(tuple(alive.tolist()), keys, self._states, self._aggregation.contribution,
                     self._aggregation.add)
        work = self._algorithm.local(
            self._engine, start.params, start.cohort, keys, self._aggregation, self._states,
            self._source, into)
        total = jax.block_until_ready(work.values)
        require_finite(work.nonfinite == 0, start.cohort.clients, f"round {start.round}")
        clock.lap("train")
        one = jax.tree.map(lambda part: jnp.asarray(part)[None], total)
        wire = self._aggregation.to_wire(self._states, one, self._setting)
        clock.lap("encrypt")
        return wire[0], [start.cohort.clients[place] for place in alive]

    def _signed(self, start: RoundInput, client: str, payload: bytes) -> tuple[Submission, bytes]:
        submission = Submission(client, self._setting.run, start.round, start.model_digest,
                                self._key_id, payload)
        salt = self._source.key("salt", round=start.round, client=client)
        return submission.signed(self._signers[client]), salt


def _timings(clock: Any) -> dict[str, float]:
    return {name: clock.seconds.get(name, 0.0) for name in ("train", "privacy", "encrypt")}
