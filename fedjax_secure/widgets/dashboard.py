"""The dashboard: define a federation, run it, and see what it learns, costs and shows to whom."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import Image, display

from ..core import ParameterError, RoundRecord, RoundState, ThreatModel
from ..runtime import Federation, FederationPlan
from .budget import BudgetGauge
from .chart import AccuracyChart
from .controls import ACTIONS, RunControls
from .facts import FactsPanel
from .form import PlanForm
from .picture import picture
from .runner import Runner


class Dashboard:
    """A federation in a notebook: a form, Run / Pause / Resume / Stop, and what comes of it.

    Show it by making it the last expression of a cell. Rounds started by the Run button or by
    :meth:`start` run in a thread, so that the notebook stays free; :meth:`run` runs them in the
    cell itself, for papermill, and shows the static picture.

    The form offers the datasets of ``fs.data.names()``: make one of your own known with
    ``fs.data.register(name, dataset)`` before you make the dashboard.

    Args:
        plan: the settings that the form starts with; None takes the defaults.
        folder: where the run is kept, so that a run that was stopped, or a kernel that died, goes
            on from the last finished round. None keeps it for as long as the process lives.

    Attributes:
        form, controls, chart, budget, facts: the views, each a widget of its own.

    Raises:
        ParameterError: the plan is not a FederationPlan.

    Example:
        >>> dashboard = Dashboard(FederationPlan(rounds=2, seed=0, encryption="off"))
        >>> dashboard.start()
        >>> dashboard.wait(timeout_seconds=120)
        'finished'
        >>> [record.round for record in dashboard.records]
        [1, 2]
        >>> dashboard.close()
    """

    def __init__(self, plan: FederationPlan | None = None, *, folder: str | Path | None = None):
        self._showing = threading.RLock()  # the rounds' thread and the kernel's set the same traits
        self._runner = Runner(self._refresh, folder=folder)
        self._shown: tuple[Sequence[RoundRecord], ThreatModel | None, FederationPlan] | None = None
        self.form = PlanForm(plan)
        self._last_plan: FederationPlan = self.form.plan or FederationPlan()
        self.controls = RunControls(self._press)
        self.chart, self.budget, self.facts = AccuracyChart(), BudgetGauge(), FactsPanel()
        figures = ipywidgets.Box([self.chart, self.budget])
        figures.add_class("fjs-two")
        self.widget = ipywidgets.VBox([self.form, self.controls, figures, self.facts])
        self.widget.add_class("fjs-dashboard")
        self.form.observe(self._edited, names=["plan", "errors"])
        self._refresh(self._runner)

    # -- what people ask -----------------------------------------------------------------------

    @property
    def plan(self) -> FederationPlan:
        """The plan of the run that is shown, or else of the form (its last one without errors)."""
        if self._shown is not None:
            return self._shown[2]
        if self._runner.plan is not None:
            return self._runner.plan
        return self._last_plan

    @property
    def federation(self) -> Federation | None:
        """The federation that was built last; closed once its rounds have ended."""
        return self._runner.federation

    @property
    def state(self) -> str:
        """What the rounds do: ready, starting, running, pausing, paused, stopping, finished,
        stopped or failed."""
        return self._runner.state

    @property
    def round_state(self) -> RoundState | None:
        """The state after the last finished round: the model's parameters, and the optimiser's."""
        return self._runner.round_state

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """The finished rounds that are shown."""
        return tuple(self._shown[0] if self._shown is not None else self._runner.records)

    @property
    def error(self) -> BaseException | None:
        """What ended a failed run."""
        return self._runner.error

    # -- what people do ------------------------------------------------------------------------

    def run(self) -> None:
        """Run the form's federation in this cell, then show the static picture.

        Buttons wait while a cell runs: to pause or stop, use :meth:`start` or the Run button.
        An interrupt of the kernel ends the run; its finished rounds are kept.

        Raises:
            ParameterError: the form has an error, or rounds run already.
            SecureFederationError: what ended the run; the finished rounds are shown all the same.
        """
        plan = self._require_plan()
        try:
            self._runner.run(plan)
        finally:
            if self.records:
                display(Image(data=self.picture(), format="png", alt=self._summary()))

    def start(self) -> None:
        """Run the form's federation in a thread, and return at once.

        Raises:
            ParameterError: the form has an error, or rounds run already.
        """
        self._runner.start(self._require_plan())

    def pause(self) -> None:
        """Hold after the current round; nothing where no rounds run."""
        self._runner.pause()

    def resume(self) -> None:
        """Go on after a pause; nothing where none is held."""
        self._runner.resume()

    def stop(self) -> None:
        """End after the current round; nothing where no rounds run."""
        self._runner.stop()

    def wait(self, timeout_seconds: float | None = None) -> str:
        """Wait until the rounds have ended, or the time is up.

        Returns:
            The state then: ``"finished"``, ``"stopped"``, ``"failed"``, or where the time is up,
            what the rounds still do.
        """
        return self._runner.wait(timeout_seconds)

    def show_records(self, records: Sequence[RoundRecord], threat_model: ThreatModel | None = None,
                     plan: FederationPlan | None = None) -> None:
        """Show rounds that ran elsewhere or earlier, until something is run here.

        Args:
            records: finished rounds, oldest first.
            threat_model: of their federation; None leaves the text out.
            plan: their settings; None takes those of the form.

        Raises:
            ParameterError: rounds run here now.
        """
        if not self._runner.allows("run"):
            raise ParameterError("show_records", need="a dashboard whose rounds have ended",
                                 found=f"one that is {self.state}",
                                 fix="Stop it, or wait for it to finish.")
        shown = self._last_plan if plan is None else plan
        self._shown = (tuple(records), threat_model, shown)
        self.form.show(shown)
        self._refresh(self._runner)

    def picture(self) -> bytes:
        """What the dashboard shows, as one static PNG: for papermill, exports and reports."""
        return picture(
            self.records, plan=self.plan, threat_model=self._threat_model(),
            target_epsilon=self.plan.target_epsilon if self.plan.private else None,
            title="Federation on " + self.plan.data.replace("_", " "))

    def close(self) -> None:
        """Stop after the current round, wait for it, and take the widgets away."""
        self.stop()
        self.wait()
        for view in (self.form, self.controls, self.chart, self.budget, self.facts):
            view.close()
        self.widget.close()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The live widgets; beside them, once a round has finished, the static picture."""
        bundle: dict[str, Any] = dict(self.widget._repr_mimebundle_() or {})
        bundle["text/plain"] = self._summary()
        if self.records:
            bundle["image/png"] = self.picture()
        return bundle

    def __repr__(self) -> str:
        return f"<{self._summary()}>"

    # -- how the views follow ------------------------------------------------------------------

    def _summary(self) -> str:
        text = f"Dashboard: {self.plan.data}, {self.plan.model}, "
        if not self.records:
            return text + f"no round of {self.plan.rounds} finished, {self.state}"
        last = self.records[-1]
        text += f"round {last.round} of {self.plan.rounds}"
        if "mean_accuracy" in last.metrics:
            text += f", mean accuracy {last.metrics['mean_accuracy']:.3f}"
        if "epsilon" in last.dp:
            text += (f", epsilon {last.dp['epsilon']:.3f} of {self.plan.target_epsilon:g} "
                     f"at delta {last.dp['dp_delta']:g} ({last.mode})")
        return text

    def _threat_model(self) -> ThreatModel | None:
        return self._shown[1] if self._shown is not None else self._runner.threat_model

    def _require_plan(self) -> FederationPlan:
        if self.form.plan is None:
            name, text = next(iter(self.form.errors.items()))
            raise ParameterError("the dashboard's form", need="every field without an error",
                                 found=text, fix=f"Mend the field {name}." if name else "Mend it.")
        return self.form.plan

    def _press(self, action: str) -> None:
        assert action in ACTIONS
        getattr(self, "start" if action == "run" else action)()

    def _edited(self, change: Any) -> None:
        """The form changed: what it says goes for the next run, and its code is shown."""
        with self._showing:
            if self.form.plan is not None:
                self._last_plan = self.form.plan
            self._show_controls(self._runner)
            self._show_results()

    def _refresh(self, runner: Runner) -> None:
        """Set traits, and nothing else: this also runs in the thread of the rounds."""
        with self._showing:
            if not runner.allows("run"):
                self._shown = None
            self.form.locked = not runner.allows("run")
            self._show_controls(runner)
            self._show_results()

    def _show_results(self) -> None:
        records = self.records
        plan = self.plan if records or not self._runner.allows("run") else self._last_plan
        self.chart.show(records, total_rounds=plan.rounds)
        self.budget.show(records, plan)
        idle = self._runner.allows("run")
        self.facts.show(records, self._threat_model(),
                        code=(self._last_plan if idle else plan).code())

    def _show_controls(self, runner: Runner) -> None:
        controls, records, state = self.controls, self.records, runner.state
        plan = self.plan if records or not runner.allows("run") else self._last_plan
        enabled = [action for action in ACTIONS if runner.allows(action)]
        bad = len(self.form.errors)
        if bad and "run" in enabled:
            enabled.remove("run")
        with controls.hold_sync():
            controls.state, controls.enabled = state, enabled
            controls.rounds = plan.rounds
            controls.round = records[-1].round if records else 0
            controls.elapsed_seconds = runner.elapsed_seconds
            controls.ticking = state in ("starting", "running", "pausing", "stopping")
            controls.error = _error_text(runner.error)
            controls.message = _message(runner, controls.round, plan.rounds, bad)


def _message(runner: Runner, done: int, rounds: int, bad: int) -> str:
    if bad and runner.allows("run"):
        return f"Mend {bad} setting{'s' if bad > 1 else ''} to run."
    return {
        "ready": "Choose the settings, then press Run.",
        "starting": "Building the federation: keys, noise calibration, ledger.",
        "running": f"Round {min(done + 1, rounds)} runs."
        + ("" if done else " The first one also compiles."),
        "pausing": f"Pauses when round {min(done + 1, rounds)} is finished.",
        "paused": f"Paused after round {done}. Resume goes on; Stop ends the run.",
        "stopping": "Stops when the current round is finished.",
        "finished": f"All {rounds} rounds are finished. "
        + ("Run starts a new federation." if runner.folder is None
           else "This run is complete in its folder."),
        "stopped": f"Stopped after round {done}. Run "
        + ("starts afresh." if runner.folder is None else "goes on from there."),
        "failed": f"Failed after round {done}; the finished rounds are kept.",
    }[runner.state]


def _error_text(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"
