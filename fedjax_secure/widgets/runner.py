"""Rounds in a thread of their own, which can be paused, resumed and stopped between rounds."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..core import ParameterError, RoundRecord, RoundState, SecureFederationError, ThreatModel
from ..runtime import Federation, FederationPlan

log = logging.getLogger(__name__)

#: Which actions each state allows.
ALLOWED = {
    "ready": ("run",),
    "starting": ("pause", "stop"),
    "running": ("pause", "stop"),
    "pausing": ("resume", "stop"),
    "paused": ("resume", "stop"),
    "stopping": (),
    "finished": ("run",),
    "stopped": ("run",),
    "failed": ("run",),
}
IDLE = ("ready", "finished", "stopped", "failed")


class Runner:
    """Builds a plan's federation, runs its rounds and closes it, whatever happens.

    A pause or a stop takes effect when the current round is finished: a round is never cut in two.
    What is finished stays in ``records``, also after a failure.

    Args:
        on_change: called after every change, with the runner, from the thread that runs rounds or
            from the caller's. It may set traits of widgets and do nothing else.
        folder: where the run is kept (``plan.build(folder=...)``); a run that was stopped goes on
            there. None keeps nothing.

    Attributes:
        state: ``ready``, ``starting``, ``running``, ``pausing``, ``paused``, ``stopping``,
            ``finished``, ``stopped`` or ``failed``.
        federation: what was built last; closed once the rounds have ended.
        round_state: the state after the last finished round.
        records: the finished rounds.
        error: what ended a failed run.
        threat_model: of the federation.

    Example:
        >>> runner = Runner()
        >>> runner.run(FederationPlan(rounds=1, seed=0, encryption="off"))
        >>> runner.state, len(runner.records)
        ('finished', 1)
    """

    def __init__(self, on_change: Callable[[Runner], None] | None = None, *,
                 folder: str | Path | None = None):
        self.state = "ready"
        self.folder = folder
        self.plan: FederationPlan | None = None
        self.federation: Federation | None = None
        self.round_state: RoundState | None = None
        self.records: list[RoundRecord] = []
        self.error: BaseException | None = None
        self.threat_model: ThreatModel | None = None
        self._on_change = on_change or (lambda runner: None)
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._spent_seconds, self._since = 0.0, None

    @property
    def elapsed_seconds(self) -> float:
        """Time in building and in rounds; pauses do not count."""
        since = self._since
        return self._spent_seconds + (time.monotonic() - since if since is not None else 0.0)

    def allows(self, action: str) -> bool:
        """Whether ``run``, ``pause``, ``resume`` or ``stop`` would do something now."""
        return action in ALLOWED[self.state]

    def run(self, plan: FederationPlan) -> None:
        """Run the plan's rounds in this thread, and return when they have ended.

        Raises:
            ParameterError: rounds run already.
            SecureFederationError: what ended the run; finished rounds stay in ``records``.
        """
        self._begin(plan)
        self._work(plan)
        if self.error is not None:
            raise self.error

    def start(self, plan: FederationPlan) -> None:
        """Run the plan's rounds in a thread of their own, and return at once.

        Raises:
            ParameterError: rounds run already.
        """
        self._begin(plan)
        self._thread = threading.Thread(target=self._work, args=(plan,), daemon=True,
                                        name="fedjax_secure rounds")
        self._thread.start()

    def pause(self) -> None:
        """Hold after the current round."""
        self._switch("pause", "pausing")

    def resume(self) -> None:
        """Go on after a pause."""
        self._switch("resume", "running" if self.federation is not None else "starting")

    def stop(self) -> None:
        """End after the current round."""
        self._switch("stop", "stopping")

    def wait(self, timeout_seconds: float | None = None) -> str:
        """Wait until no rounds run, a pause included, or the time is up; returns the state."""
        with self._condition:
            self._condition.wait_for(lambda: self.state in IDLE, timeout_seconds)
        if self.state in IDLE and self._thread is not None:
            self._thread.join(timeout_seconds)
        return self.state

    # -- the thread ----------------------------------------------------------------------------

    def _begin(self, plan: FederationPlan) -> None:
        with self._condition:
            if self.state not in IDLE:
                raise ParameterError("run", need="a dashboard whose rounds have ended",
                                     found=f"one that is {self.state}",
                                     fix="Stop it, or wait for it to finish.")
            self.state, self.plan = "starting", plan
            self.federation, self.round_state, self.error = None, None, None
            self.records, self.threat_model = [], None
            self._spent_seconds, self._since = 0.0, time.monotonic()
        try:
            self._on_change(self)
        except BaseException:  # nothing has begun, so the next run may
            with self._condition:
                self.state = "ready"
                self._clock(False)
                self._condition.notify_all()
            raise

    def _work(self, plan: FederationPlan) -> None:
        try:
            self._rounds(plan)
        except Exception as error:
            if not isinstance(error, SecureFederationError):
                log.exception("A round failed in a way that the toolkit does not know.")
            self.error = error
            self._enter("failed")
        except BaseException:  # an interrupt of the foreground: an orderly stop, then as asked
            self._enter("stopped")
            raise

    def _rounds(self, plan: FederationPlan) -> None:
        finished = False
        federation = plan.build(folder=self.folder)
        with contextlib.closing(federation):
            self.round_state = federation.init()
            self.records = list(federation.records)
            self.threat_model = federation.threat_model()
            with self._condition:
                self.federation = federation
                if self.state == "starting":
                    self.state = "running"
            self._on_change(self)
            steps = federation.run(self.round_state, rounds=plan.rounds)
            finished = len(self.records) >= plan.rounds
            while not finished and self._may_go_on():
                self.round_state, record = next(steps)
                self.records = [*self.records, record]
                finished = record.round >= plan.rounds
                self._on_change(self)
        self._enter("finished" if finished else "stopped")

    def _may_go_on(self) -> bool:
        with self._condition:
            if self.state == "pausing":
                self.state = "paused"
                self._clock(False)
                self._condition.notify_all()
        if self.state == "paused":
            self._on_change(self)
            with self._condition:
                self._condition.wait_for(lambda: self.state != "paused")
        return self.state != "stopping"

    def _switch(self, action: str, state: str) -> None:
        with self._condition:
            if not self.allows(action):
                return
            self.state = state
            self._clock(True)
            self._condition.notify_all()
        self._on_change(self)

    def _enter(self, state: str) -> None:
        with self._condition:
            self.state = state
            self._clock(False)
        try:
            self._on_change(self)
        finally:
            with self._condition:
                self._condition.notify_all()

    def _clock(self, goes: bool) -> None:
        now = time.monotonic()
        if self._since is not None:
            self._spent_seconds += now - self._since
        self._since = now if goes else None
