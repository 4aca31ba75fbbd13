"""What the clients of a federation do in a round: train, protect, encode, sign.

Two ways exist. Where an opener checks each client's signed message, clients work in chunks: the
ciphertexts of one chunk leave the compiled program, are signed and put on disk, and make room for
the next. Where the aggregator is trusted, a client's ciphertext is added to the sum inside the
program in which it was made, and nothing of one client leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Cohort, RoundState, Setting, Signer, Spec, Submission
from ..core.finite import require_finite
from ..core.randomness import device_keys
from ..core.stage import States
from ..training import Rows
from .rounds import Rounds
from .storage import Journal, Sent


class RoundInput(NamedTuple):
    """What a round starts from: its number, the cohort, the state and the model's digest."""

    round: int
    cohort: Cohort
    state: RoundState
    model_digest: bytes


class Clients:
    """The clients of one federation, in this process.

    Args:
        rounds: what they compute.
        spec: of the chain.
        states: the stages' states, keys included.
        setting: the run.
        signers: each client's signing key.
        key_id: of the public key under which they encrypt.
        compiled: wraps a function so that it is compiled once, under a name.
    """

    def __init__(
        self,
        rounds: Rounds,
        spec: Spec,
        states: States,
        setting: Setting,
        signers: Mapping[str, Signer],
        key_id: bytes,
        compiled: Callable[[str, Callable], Callable],
    ):
        self._rounds, self._aggregation, self._source = rounds, rounds.aggregation, rounds.source
        self._spec, self._states, self._setting = spec, states, setting
        self._signers, self._key_id = signers, key_id
        if setting.aggregator == "untrusted":
            self._encode = compiled("encode", self._aggregation.encode)
            self._seal = compiled("seal", self._aggregation.seal)

    def work(self, start: RoundInput, notes: dict[str, Any], journal: Journal, clock: Any) -> Sent:
        """One round's work, on disk before anything of it is sent.

        Raises:
            UpdateError: a client's value is not finite; nothing is kept or sent then.
            OpeningError: fewer clients take part than a sum needs; nobody has worked then.
        """
        cohort = start.cohort
        self._rounds.require_answers(cohort, self._spec)
        keys = self._keys(start.round, cohort)
        states = self._aggregation.with_carried(self._states, start.state.stage_states)
        if self._rounds.states is not None:
            self._rounds.states.begin(start.round)
        if self._setting.aggregator == "semi-honest":
            total, clients = self._total(start, keys, states, notes, clock)
            self._sync_states(start.round)
            notes["timings_seconds"] = _timings(clock)
            return journal.store_total(start.round, total, clients, self._key_id,
                                       start.model_digest, notes)
        with journal.sending(start.round) as outbox:
            for chunk in self._rounds.chunks(cohort):
                for client, payload in self._chunk(start, keys, states, chunk, notes, clock):
                    outbox.add(*self._signed(start, client, payload))
                clock.lap("encrypt")
            self._sync_states(start.round)
        notes["timings_seconds"] = _timings(clock)
        return journal.store_sent(start.round, outbox.rows, notes)

    def _keys(self, round: int, cohort: Cohort) -> np.ndarray:
        """A fresh key for each client that takes part; all zero for the others, who use none."""
        keys = np.zeros((len(cohort.clients), 8), np.uint32)
        alive = cohort.taking_part
        keys[alive] = device_keys([self._source.key("client", round=round,
                                                    client=cohort.clients[place])
                                   for place in alive])
        return keys

    def _sync_states(self, round: int) -> None:
        # What clients keep must be on disk before what they sent is: a resumed round sends again.
        if self._rounds.states is not None:
            self._rounds.states.sync(round)

    def _chunk(self, start: RoundInput, keys: np.ndarray, states: States, chunk: np.ndarray,
               notes: dict[str, Any], clock: Any) -> Iterator[tuple[str, bytes]]:
        room = self._rounds.room
        names = tuple(start.cohort.clients[place] for place in chunk)
        work = self._rounds.train(start.cohort, start.state, keys, states, Rows.of(chunk, room))
        jax.block_until_ready(work.values)
        _note(notes, start.cohort, chunk, work.metrics, work.steps)
        clock.lap("train")
        # The last chunk may leave rows free: they get an all-zero key, and nobody sees them.
        chunk_keys = np.zeros((room, 8), np.uint32)
        chunk_keys[:len(chunk)] = keys[chunk]
        elements, finite = jax.block_until_ready(
            self._encode(states, chunk_keys, work.values))
        require_finite(np.asarray(finite)[:len(chunk)], names, f"round {start.round}")
        clock.lap("privacy")
        payloads = jax.block_until_ready(self._seal(states, chunk_keys, elements))
        payloads = jax.tree.map(lambda part: np.asarray(part)[:len(chunk)], payloads)
        wire = self._aggregation.to_wire(states, payloads, self._setting)
        yield from zip(names, wire, strict=True)

    def _total(self, start: RoundInput, keys: np.ndarray, states: States, notes: dict[str, Any],
               clock: Any) -> tuple[bytes, list[str]]:
        total, metrics, steps = self._rounds.total(start.cohort, start.state, keys, states)
        jax.block_until_ready(total)
        alive = start.cohort.taking_part
        _note(notes, start.cohort, alive, metrics, steps)
        clock.lap("train")
        one = jax.tree.map(lambda part: jnp.asarray(part)[None], total)
        wire = self._aggregation.to_wire(states, one, self._setting)
        clock.lap("encrypt")
        return wire[0], [start.cohort.clients[place] for place in alive]

    def _signed(self, start: RoundInput, client: str, payload: bytes) -> tuple[Submission, bytes]:
        submission = Submission(client, self._setting.run, start.round, start.model_digest,
                                self._key_id, payload)
        salt = self._source.key("salt", round=start.round, client=client)
        return submission.signed(self._signers[client]), salt


def _timings(clock: Any) -> dict[str, float]:
    return {name: clock.seconds.get(name, 0.0) for name in ("train", "privacy", "encrypt")}


def _note(notes: dict[str, Any], cohort: Cohort, clients: np.ndarray, metrics: Mapping[str, Any],
          steps: Any) -> None:
    """Keep what clients report of their work with the round, for the selection and the record."""
    work = notes.setdefault("work", {"clients": [], "steps": [], "metrics": {}})
    work["clients"] += [int(c) for c in clients]
    work["steps"] += np.asarray(steps)[clients].tolist()
    for name, values in metrics.items():
        work["metrics"].setdefault(name, []).extend(
            np.asarray(values, np.float64)[clients].tolist())
    work["seconds"] = cohort.seconds
