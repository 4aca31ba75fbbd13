"""The combiner: asks share holders, adds up their partial decryptions, and compares results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedjax_kernels import rlwe, threshold

from ...core import (
    InvalidSum,
    OnceOpener,
    Opened,
    OpeningError,
    PartyError,
    Setting,
    Submission,
)
from ..summing import read_total, sum_ciphertexts, sum_digest
from . import messages
from .holder import ShareHolder, set_of
from .messages import PARTIAL, WITNESS
from .plan import ThresholdPlan

Ask = Callable[[ShareHolder], bytes]
Result = tuple[bool, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Question:
    """What is to be opened: the round, and how a holder is given it."""

    round: int
    ask: Ask


class ThresholdOpener(OnceOpener):
    """Opens sums with the help of share holders; has no secret of its own.

    Why it can be anybody: it makes the checks that every opener makes, but holders do not rely on
    them and make their own. It learns the sums, as the server does.

    Args:
        plan: as all parties have it.
        setting: the run, and the folder for results.
        holders: the share holders, with a confirmed key; some may be closed.

    Guarantees:
        A round opens while enough holders answer: t, or ``plan.answering``, or ``plan.witnesses``
        where those are more. Where more than t answer, the results of all sets of t are compared,
        and nothing is returned unless all are equal: up to ``answering - t`` wrong holders cannot
        pass a wrong sum, where the key was made as the protocol says. With exactly t, a wrong share
        shifts the sum unseen, and nothing is claimed.

    Raises:
        OpeningError: too few holders answer, or results differ.
    """

    def __init__(self, plan: ThresholdPlan, setting: Setting, holders: Sequence[ShareHolder]):
        ready = next(holder for holder in holders if not holder.closed)
        self.plan, self.holders = plan, tuple(holders)
        self.session, self.public_key = ready.session, ready.public_key
        self._question: _Question | None = None
        super().__init__(
            setting,
            ready.key_id,
            lambda payloads: self._open(
                sum_ciphertexts(plan.packing, self.key_id, payloads), len(payloads)
            ),
            open_sum=lambda payload, count: self._open(
                read_total(plan.packing, self.key_id, payload, count), count
            ),
            on_close=self._close_holders,
        )

    @property
    def rounds_left(self) -> int:
        """How many more rounds the holders that are there may answer with this key."""
        left = sorted((h.openings_left for h in self.holders if not h.closed), reverse=True)
        answers = math.comb(self.plan.answering - 1, self.plan.openings.threshold - 1)
        return left[min(self.plan.answering, len(left)) - 1] // answers

    def open(self, round: int, model_digest: bytes, submissions: Sequence[Submission]) -> Opened:
        """Check the submissions, have holders check them, open the sum, and store it.

        Args, returns and raises as :meth:`fedjax_secure.core.OnceOpener.open`.
        """
        self._question = _Question(
            round, lambda holder: holder.witness(round, model_digest, submissions)
        )
        return super().open(round, model_digest, submissions)

    def open_total(
        self, round: int, model_digest: bytes, total: bytes, clients: Sequence[str]
    ) -> Opened:
        """The same for a sum that the aggregator made, where the run trusts it to add honestly.

        Args, returns and raises as :meth:`fedjax_secure.core.OnceOpener.open_total`.
        """
        self._question = _Question(
            round, lambda holder: holder.witness_total(round, model_digest, total, clients)
        )
        return super().open_total(round, model_digest, total, clients)

    def _close_holders(self) -> None:
        for holder in self.holders:
            holder.close()

    # -- opening -----------------------------------------------------------------------------

    def _open(self, total: np.ndarray, num_clients: int) -> np.ndarray:
        assert self._question is not None
        number, packing = self._question.round, self.plan.packing
        results = self._results_of_sets(self._question, total)
        valid, lanes = self._agreed(number, results)
        if not valid:
            raise InvalidSum(
                f"opening round {number}",
                need="a sum within the planned lanes",
                found="bits above them: a client did not encrypt as planned"
                + ("" if len(results) > 1 else ", or a holder's share is wrong"),
                fix="Begin a new run, with a new key, and find that client"
                + ("." if len(results) > 1 else "; with answering above t wrong shares show."),
            )
        return packing.unpack(lanes, num_clients)

    def _results_of_sets(
        self, question: _Question, total: np.ndarray
    ) -> dict[tuple[int, ...], Result]:
        """The opened sum of every active set among those who answer."""
        plan, refused = self.plan, {}
        statements = self._statements(question, total, refused)
        while True:
            present = [number for number in statements if number not in refused]
            if len(present) < plan.answering or len(statements) < plan.witnesses:
                raise self._too_few(question.round, present, refused)
            results: dict[tuple[int, ...], Result] = {}
            for members in plan.active_sets(tuple(present[: plan.answering])):
                partials = self._partials(question.round, members, statements, refused)
                if partials is None:
                    break
                results[members] = self._combine(total, partials)
            else:
                return results

    def _statements(
        self, question: _Question, total: np.ndarray, refused: dict[int, Exception]
    ) -> dict[int, bytes]:
        """What holders state that they were given, by number; who does not is noted."""
        digest, groups = sum_digest(total), {}
        for holder in self.holders:
            try:
                content = question.ask(holder)
                message = self.session.read(
                    content, WITNESS, sender=holder.number, round=question.round, body_bytes=64
                )
                groups.setdefault(message.body, {})[holder.number] = content
            except (OpeningError, PartyError) as error:
                refused[holder.number] = error
        agreed = [group for body, group in groups.items() if body[32:] == digest]
        statements = max(agreed, key=len, default={})
        for group in groups.values():
            for number in set(group) - set(statements):
                refused[number] = OpeningError(
                    f"opening round {question.round}",
                    need="holders who add the same ciphertexts up",
                    found=f"other submissions or another sum of holder {number}",
                    fix="Leave that holder out; it did not add what it was given.",
                )
        return statements

    def _partials(
        self,
        round: int,
        members: tuple[int, ...],
        statements: dict[int, bytes],
        refused: dict[int, Exception],
    ) -> np.ndarray | None:
        """The partial decryptions of one set; None where one of it does not answer."""
        transport = self.plan.packing.transport
        polynomials = self.plan.packing.num_polynomials
        size = 8 + messages.residues_bytes(transport, polynomials)
        partials = []
        for number in members:
            try:
                content = self.holders[number - 1].partial_decryption(
                    round, members, list(statements.values())
                )
                message = self.session.read(
                    content, PARTIAL, sender=number, round=round, body_bytes=size
                )
                if set_of(message.body) != members:
                    raise OpeningError(
                        f"opening round {round}",
                        need=f"an answer for the set {members}",
                        found=f"one for another set of holder {number}",
                        fix="Leave that holder out.",
                    )
                partials.append(
                    messages.residues_from_bytes(transport, polynomials, message.body[8:])
                )
            except (OpeningError, PartyError) as error:
                refused[number] = error
                return None
        return np.stack(partials)

    def _combine(self, total: np.ndarray, partials: np.ndarray) -> Result:
        packing = self.plan.packing
        phase = threshold.combine(packing.transport, total[0], partials)
        opened = rlwe.decode(packing.transport, packing.encoding, phase)
        return bool(opened.valid), np.asarray(opened.lanes)

    def _agreed(self, round: int, results: dict[tuple[int, ...], Result]) -> Result:
        """The result of all sets; an OpeningError where they differ, which names who is wrong."""
        first = next(iter(results.values()))
        if all(_same(result, first) for result in results.values()):
            return first
        answered = sorted({number for members in results for number in members})
        suspects = [
            number
            for number in answered
            if _all_same([r for members, r in results.items() if number not in members])
        ]
        if len(answered) < self.plan.openings.threshold + 2:
            who = "which one cannot be told"
            fix = f"With answering={self.plan.openings.threshold + 2} or more it can be told which."
        elif len(suspects) == 1:
            who = f"if it is one alone, it is holder {suspects[0]}"
            fix = "Leave that holder out, and find out what became of its share."
        elif suspects:
            names = ", ".join(map(str, suspects))
            who = f"if it is one alone, it is one of the holders {names}"
            fix = "Leave these holders out, and find out what became of their shares."
        else:
            who = "more than one is"
            fix = "Begin a new run with other holders."
        raise OpeningError(
            f"opening round {round}",
            need="one result from every set of holders",
            found=f"results that differ: at least one holder's share or answer is wrong; {who}",
            fix=fix,
        )

    def _too_few(
        self, round: int, present: list[int], refused: dict[int, Exception]
    ) -> OpeningError:
        plan = self.plan
        reasons = "; ".join(f"holder {number}: {error}" for number, error in refused.items())
        return OpeningError(
            f"opening round {round}",
            need=f"answers of {plan.answering} share holders, and statements of {plan.witnesses}",
            found=f"{len(present)} ({reasons})",
            fix="Bring more holders back; each needs its own folder.",
        )


def _same(one: Result, other: Result) -> bool:
    return one[0] == other[0] and bool(np.array_equal(one[1], other[1]))


def _all_same(results: list[Result]) -> bool:
    return all(_same(result, results[0]) for result in results)
