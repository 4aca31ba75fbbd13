"""Running a federation: rounds of work, aggregation, accounting and record."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import __version__
from ..algorithms import Algorithm
from ..core import (
    Aggregation,
    Aggregator,
    Mechanism,
    Opened,
    ResumeError,
    RoundRecord,
    RoundState,
    Setting,
    Signer,
    SpecError,
    ThreatModel,
    model_digest,
    source,
)
from ..data import FederatedDataset
from ..ledger import Account, EmbeddedLedger, commit
from ..models import Model
from ..privacy import Budget, RunFacts
from ..selection import Selection, all_records, require_separated
from .clients import Clients, RoundInput
from .figures import Clock, held_out, reported
from .rounds import Rounds, check_parts, denominator_of
from .storage import Journal, Sent
from .terms import (
    cost_of,
    figures_of,
    manifest_of,
    planned_chain,
    require_first_release,
    require_individual,
    require_paid,
    spend_of,
    spent_rounds,
)

_COORDINATOR = "coordinator"

#: What leaves the clients in a simulation or a record and no guarantee covers.
OUTSIDE = (
    "whether a round was refused for values that are not finite",
    "accuracy, AUC and loss per client on held-out records",
    "training losses and numbers of steps of the clients",
    "timings",
    "the number of records of each client (taken as a public constant)",
)


class Federation:
    """Clients that train one model together, round by round.

    Args:
        model: from ``fs.models``.
        data: the clients' records, from ``fs.data``.
        algorithm: what clients compute and how the server steps, from ``fs.algorithms``.
        aggregation: the chain around the sum, from ``fs.chain(...)``.
        selection: who takes part; None takes every record of every client.
        budget: the privacy budget that rounds spend from; needed where the chain adds noise.
        ledger: where submissions and models are recorded; None keeps no ledger.
        folder: where the run is kept, so that it can go on after a crash; None keeps it in a
            temporary folder.
        seed: None for secure mode, with fresh secrets. A seed makes a simulation that repeats
            exactly and protects nothing.
        min_clients: how many distinct clients a sum needs; None takes as many as the noise needs,
            or all where there is no noise.
        denominator: the public constant the sum is divided by; None takes the expected number of
            records (algorithms that send one gradient) or the number of clients.
        aggregator: ``"untrusted"``: whoever opens the sum makes it, from the clients' signed
            messages. ``"semi-honest"``: values are added up inside the compiled round, encrypted or
            not, and the aggregator is trusted to have that sum opened and no other: faster, in
            memory that does not grow with the number of clients, and without a ledger.
        chunk_clients: with an untrusted aggregator, how many clients' values are in memory at once;
            None takes as many as hold 2^23 values. Their messages go to disk.

    Guarantees:
        The spend of a round is on disk before its sum is opened. A round that was interrupted
        sends the same bytes again, or none were sent; nothing is released twice. In seeded mode
        the same arguments give the same model bytes on one machine, with encryption on or off.

    Raises:
        SpecError: the parts do not fit together; raised before anything is traced.
        BudgetError: the budget belongs to other data, or a run that is resumed has paid from
            another one.
        ResumeError: the folder holds another run, or is in use.

    Example:
        >>> import optax
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> federation = fs.Federation(model, data, fs.algorithms.fed_avg(0.1), fs.chain(), seed=0)
        >>> state = federation.init()
        >>> for state, record in federation.run(state, rounds=2):
        ...     print(record.round, record.mode)
        1 simulation
        2 simulation
        >>> federation.close()
    """

    def __init__(
        self,
        model: Model,
        data: FederatedDataset,
        algorithm: Algorithm,
        aggregation: Aggregation,
        *,
        selection: Selection | None = None,
        budget: Budget | None = None,
        ledger: EmbeddedLedger | None = None,
        folder: str | Path | None = None,
        seed: int | None = None,
        min_clients: int | None = None,
        denominator: float | None = None,
        aggregator: Aggregator = "untrusted",
        chunk_clients: int | None = None,
    ):
        if jax.process_count() > 1:
            raise SpecError(
                "a federation", need="one process: its secrets, folder and ledger are no other's",
                found=f"{jax.process_count()} joined by jax.distributed",
                fix="Use fs.Simulation(...), which runs on all of them, or start one process.")
        self.aggregation = aggregation
        self.selection = all_records() if selection is None else selection
        check_parts("the federation", model, data, algorithm, aggregation, self.selection)
        denominator = denominator_of(algorithm, self.selection, data, denominator)
        algorithm = algorithm.for_federation(data.num_clients, denominator)
        self.model, self.data, self.algorithm = model, data, algorithm
        self.budget, self.ledger, self.seed = budget, ledger, seed
        self.source = source(seed)
        self.records: list[RoundRecord] = []
        self._traces: Counter[str] = Counter()
        self._rounds = Rounds(model, data, algorithm, aggregation, self.selection, self.source,
                              chunk_clients=chunk_clients)
        self._rounds.require_storable()
        self.spec, states = planned_chain(
            self._rounds, min_clients=min_clients, denominator=denominator, aggregator=aggregator,
            ledger=ledger is not None)
        self.spend = spend_of(self.spec, data, budget)
        require_individual(self.spec, algorithm, self.selection, budget)
        # What can be refused is refused before the folder is taken for this run.
        self._journal = Journal(folder)
        self._opener = None
        try:
            self._set_up(states)
            if self.budget is not None:
                require_paid(self.budget, self.run_id, self._journal.last_round())
        except BaseException:
            self.close()
            raise

    # -- what the run is, checked before anything is traced ---------------------------------

    def _set_up(self, states: dict) -> None:
        manifest = manifest_of(self._rounds, self.spec, states, seed=self.seed,
                               ledger=self.ledger is not None)
        self._journal.settle(manifest)
        self.records = self._journal.records()
        clients = self.data.clients

        def make() -> dict[str, bytes]:
            # Two simulations of one seed are one run only if everything else is equal too.
            what = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
            secret = {"run": self.source.key("run", client=what)[:16]}
            for client in clients:
                secret[f"sign:{client}"] = self.source.key("signing", client=client)
                secret[f"account:{client}"] = self.source.key("account", client=client)
            secret[_COORDINATOR] = self.source.key("coordinator")
            return secret

        secrets = self._journal.secrets(make)
        self.run_id = secrets["run"].hex()
        self._signers = {client: Signer(secrets[f"sign:{client}"]) for client in clients}
        self._setting = Setting(
            run=secrets["run"], min_clients=self.spec.min_clients, source=self.source,
            roster={client: signer.public_key for client, signer in self._signers.items()},
            folder=self._journal.opener_folder, aggregator=self.spec.aggregator)
        self._states, self._opener = self.aggregation.setup(states, self.spec, self._setting)
        if self.ledger is not None:
            self._coordinator = Account.from_secret(secrets[_COORDINATOR])
            self._accounts = {client: Account.from_secret(secrets[f"account:{client}"])
                              for client in clients}
            self.ledger.open(self._coordinator, min_clients=self.spec.min_clients)
            for client, account in self._accounts.items():
                if not self.ledger.registered(account.address):
                    self.ledger.register(account, self._signers[client].public_key)
        self._clients = Clients(self._rounds, self.spec, self._states, self._setting,
                                self._signers, self._opener.key_id, self._compiled)
        self._step = self._compiled("step", self._rounds.server_step)

    # -- rounds ------------------------------------------------------------------------------

    def init(self, key: jax.Array | None = None) -> RoundState:
        """The state to start from: the folder's last finished round, or a fresh model.

        Args:
            key: a JAX key for the model's first parameters, which are public; None takes key 0.
        """
        params = self.model.init(jax.random.key(0) if key is None else key)
        self._rounds.open_states(params, self._journal.folder / "clients")
        state, self.records = self._journal.load(self._rounds.fresh(params, self._states))
        if self._rounds.states is not None:
            self._rounds.states.commit(int(state.round))  # a kill may have come before it
        return state

    def run(self, state: RoundState, *, rounds: int) -> Iterator[tuple[RoundState, RoundRecord]]:
        """Run until ``rounds`` rounds are finished, one at a time.

        Args:
            state: from :meth:`init`, or what the last round returned.
            rounds: the number of the last round; a state that has finished 20 rounds runs 10 more
                for ``rounds=30``.

        Warns:
            UserWarning: more rounds than these are finished already.

        Yields:
            The new state and the round's record, once both are on disk.

        Raises:
            BudgetError: the budget does not hold all these rounds; nothing has run then.
            SpecError: the key does not open so many rounds; nothing has run then.
            UpdateError: a client's update is not finite, or the model after the server's step;
                earlier rounds are kept.
            OpeningError, LedgerError, PartyError: the round could not be finished; it can be
                resumed.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise SpecError("run", need="a number of rounds, at least 1", found=repr(rounds),
                            fix="Give rounds=20, for example.")
        self._require_open()
        finished = self._require_last(state)
        if rounds < finished:
            warnings.warn(
                f"rounds={rounds} is the number of the last round, and {finished} are finished: "
                f"nothing is left to run. Give rounds={finished + rounds} for {rounds} more.",
                UserWarning, stacklevel=2)
        if self.spend is not None and rounds > finished:
            assert self.budget is not None
            spent = spent_rounds(self.budget, self.run_id)
            ahead = [number for number in range(finished + 1, rounds + 1) if number not in spent]
            if ahead:
                self.budget.check(*cost_of(self.spend, self._mechanism, ahead))
        assert self._opener is not None
        # A round that was interrupted may have been answered already, and is answered alike again.
        begun = self._journal.sent(finished + 1) is not None
        left, needed = self._opener.rounds_left, rounds - finished - begun
        if left is not None and needed > left:
            raise SpecError(
                "run", need=f"a key that opens {needed} more rounds",
                found=f"one that opens {left}",
                fix="Plan for more: fs.he.threshold(t, n, max_openings=...), or begin a new run.")
        return self._run(state, rounds)

    @property
    def _mechanism(self) -> Mechanism:
        assert self.spec.mechanism is not None
        return self.spec.mechanism

    def _require_open(self) -> None:
        if self._opener is None:
            raise ResumeError("run", need="a federation that is open", found="one that was closed",
                              fix="Build it again with the same folder, and go on from init().")

    def _require_last(self, state: RoundState) -> int:
        """The last finished round, which the state must be of: no round is run twice."""
        finished = self._journal.last_round()
        if state.round != finished:
            raise ResumeError("run", need=f"the state after round {finished}, the last finished",
                              found=f"the state after round {state.round}",
                              fix="Use the state that the last round returned, or init().")
        if self.records and model_digest(state.params).hex() != self.records[-1].model_after:
            raise ResumeError("run", need=f"the model that round {finished} ended with",
                              found="another model", fix="Use the state that the last round "
                              "returned, or init().")
        return finished

    def _run(self, state: RoundState, rounds: int) -> Iterator[tuple[RoundState, RoundRecord]]:
        while state.round < rounds:
            state, record = self._round(state)
            self.records.append(record)
            yield state, record

    def _round(self, state: RoundState) -> tuple[RoundState, RoundRecord]:
        self._require_open()
        number, before = self._require_last(state) + 1, model_digest(state.params)
        clock = Clock()
        sent, notes = self._kept(number)
        if sent is None:
            cohort = self._rounds.draw(number, state)
            require_separated(
                self.spec.sampling, number, (cohort.clients[c] for c in cohort.taking_part),
                ((record.round, record.clients) for record in self.records))
            start = RoundInput(number, cohort, state, before)
            assert self._opener is not None
            self._opener.prepare(number)
            sent = self._clients.work(start, notes, self._journal, clock)
        elif sent.models != {before}:
            raise ResumeError(
                f"round {number}", need="the model that its clients answered before the round was "
                "interrupted", found="another model", fix="Use init() with the key that the run "
                "began with, or begin a new run in another folder.")
        timings = dict(sent.notes["timings_seconds"])
        clock.lap("other")
        # What was sent is on the clients' disks and none has left: spend, then go on.
        self._spend_round(number, sent.notes["attempt"])
        timings["privacy"] += clock.lap("spend")
        head = self._submit(number, sent)
        clock.lap("ledger")
        opened = self._open(number, before, sent)
        states = self.aggregation.with_carried(self._states, state.stage_states)
        params, opt_state, carried, figures = jax.block_until_ready(
            self._step(state.params, state.opt_state, states, opened.total))
        self._rounds.require_finite_model(number, params, (opt_state, carried))
        after = model_digest(params)
        clock.lap("aggregate")
        if self.ledger is not None:
            head = self._confirm(number, after)
        clock.lap("ledger")
        metrics = held_out(self.model, params, self.data)
        metrics |= {name: float(v) for name, v in figures.items()}
        *observed, means = reported(self.data, sent, number)
        metrics |= means
        new = RoundState(params, opt_state, carried, number, self._rounds.observe(state, *observed))
        record = RoundRecord(
            run=self.run_id, round=number, mode=_label(self.source.mode), clients=opened.clients,
            model_before=before.hex(), model_after=after.hex(), sum_digest=opened.digest.hex(),
            dp=self._dp(number, len(opened.clients)), metrics=metrics, outside_guarantee=OUTSIDE,
            timings_seconds={**timings, "aggregate": clock.seconds["aggregate"],
                             "ledger": clock.seconds["ledger"]},
            bytes_per_client=sent.largest_bytes, ledger_head=head,
            aggregator=self.spec.aggregator)
        self._journal.finish(new, record, sent.submissions)
        if self._rounds.states is not None:
            self._rounds.states.commit(number)
        return new, record

    def personal(self, state: RoundState) -> Callable[[Any], np.ndarray]:
        """Each client's own model, as `fs.training.evaluate` takes them.

        Returns:
            A function from client numbers to their models' parameters, ``[numbers, dim] float32``.

        Raises:
            SpecError: the algorithm gives everyone the same model.
        """
        return self._rounds.personal(state)

    def _open(self, number: int, before: bytes, sent: Sent) -> Opened:
        assert self._opener is not None
        if sent.total is not None:
            return self._opener.open_total(number, before, sent.total, sent.clients)
        return self._opener.open(number, before, [made for made, _ in sent.submissions])

    def _kept(self, number: int) -> tuple[Sent | None, dict[str, Any]]:
        """What the clients stored before this round was interrupted, if it can still be opened.

        A key holder that keeps no keys (OpenFHE's) has others after a crash: what was sent cannot
        be opened here any more, and clients answer anew, with new coins and noise. Whether a copy
        of this folder opened it, nobody here knows. So the round is a second release, and is paid
        for again if it was paid for at all before the crash.
        """
        assert self._opener is not None
        sent = self._journal.sent(number)
        if sent is None:
            return None, {"attempt": self._attempt(number)}
        opened = self._opener.opened(number) is not None
        prepared = self._opener.prepared(number)
        if opened or (prepared and sent.key_ids == {self._opener.key_id}):
            return sent, {}
        if self.ledger is not None and self.ledger.confirmed_rounds() >= number:
            raise ResumeError(
                f"round {number}", need="the opened sum of a round that the ledger has confirmed",
                found="a key holder that has lost it", fix="Restore the key holder's folder from "
                "a backup, or begin a new run in another folder.")
        if self.ledger is not None and self.ledger.num_submissions(number):
            self.ledger.reopen_round(self._coordinator, number)
        self._journal.forget_sent(number)
        return None, {"attempt": self._attempt(number)}

    def _attempt(self, number: int) -> int:
        """A fresh name of what clients will send in this round, under which it is paid for.

        It is kept with what they sent, so that a round that is resumed is paid for once. Where
        files of the run were lost, or the folder was copied and both copies go on, clients draw
        new coins and noise: that is another release, and counts again. A simulation's bytes are
        the same again, and so is this number.
        """
        return int.from_bytes(self.source.key("release", round=number)[:6], "little")

    def _spend_round(self, number: int, attempt: int) -> None:
        if self.spend is not None:
            assert self.budget is not None
            require_first_release(self._mechanism, self.budget, self.run_id, number, attempt)
            spend, _ = cost_of(self.spend, self._mechanism, [number])
            self.budget.spend(self.run_id, number, spend, attempt=attempt)

    def _submit(self, number: int, sent: Sent) -> str:
        if self.ledger is None:
            return ""
        with self.ledger.batch():
            for submission, salt in sent.submissions:
                # Repeating a submission that the ledger has taken appends nothing.
                self.ledger.submit_update(self._accounts[submission.client], number,
                                          commit(submission.statement_digest, salt))
        return self.ledger.head

    def _confirm(self, number: int, after: bytes) -> str:
        assert self.ledger is not None
        self.ledger.confirm_round(self._coordinator, number, after)
        return self.ledger.head

    def _compiled(self, name: str, function: Callable) -> Callable:
        def counted(*arguments):
            self._traces[name] += 1
            return function(*arguments)

        return jax.jit(counted)

    @property
    def traces(self) -> dict[str, int]:
        """How often each program of a round was traced: once, however many rounds there were."""
        return {**self._rounds.engine.traces, **self._traces}

    def _dp(self, number: int, answered: int) -> Mapping[str, Any]:
        if self.spend is None or self.budget is None:
            return {}
        # A round that had to be paid for twice counts twice.
        count = max(number, len(spent_rounds(self.budget, self.run_id)))
        return figures_of(self.spec, self.spend, self.budget, rounds=count, answered=answered)

    # -- what people ask ---------------------------------------------------------------------

    def threat_model(self) -> ThreatModel:
        """Who sees what in this federation, in sentences."""
        return self.spec.threat_model(OUTSIDE)

    def privacy_facts(self) -> RunFacts:
        """What is known of this run's privacy; ``fs.privacy.report(federation)`` shows it."""
        data, algorithm, selection = self.data, self.algorithm, self.selection

        def with_settings(part: Any) -> str:
            return f"{part.name} ({part.settings})" if part.settings else part.name

        return RunFacts(
            run=self.run_id, release=__version__,
            data={"name": data.name, "population": data.population, "card": data.card,
                  "features": data.feature_names, "records": len(data.y)},
            model=self.model.name, algorithm=with_settings(algorithm),
            selection=with_settings(selection),
            stages=tuple(stage.name for stage in self.aggregation.stages), spec=self.spec,
            spend=self.spend, budget=self.budget, threat_model=self.threat_model(),
            records=tuple(self.records))

    def close(self) -> None:
        """Stop parties, and let another process use the folder and the ledger."""
        try:
            if self._opener is not None:
                self._opener.close()
                self._opener = None
        finally:
            try:
                if self.ledger is not None:
                    self.ledger.close()
            finally:
                self._journal.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self.aggregation.stages)
        return (f"Federation({self.model.name}, {self.data.name}, {self.algorithm.name}, "
                f"chain({stages}), {_label(self.source.mode)})")


def _label(mode: str) -> str:
    return "simulation" if mode == "seeded" else "secure"
