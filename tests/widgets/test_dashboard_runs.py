"""The dashboard on the real runtime: run, pause, resume, stop, fail, and what it shows."""

from __future__ import annotations

import base64
import html
import io
import os
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import fedjax_secure as fs
from fedjax_secure.core import BudgetError, ParameterError
from fedjax_secure.widgets import runner as runner_module

QUICK = dict(encryption="off", seed=0)
LONG = 300
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def make():
    """Dashboards that are closed after the test."""
    made = []

    def dashboard(folder=None, **settings):
        made.append(fs.widgets.Dashboard(fs.FederationPlan(**settings), folder=folder))
        return made[-1]

    yield dashboard
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def finished():
    """A dashboard whose Run button was pressed, with its four rounds, and who set its traits."""
    dashboard = fs.widgets.Dashboard(fs.FederationPlan(rounds=4, target_epsilon=3.0, **QUICK))
    dashboard.setters = set()
    dashboard.controls.observe(
        lambda change: dashboard.setters.add(threading.current_thread()), "round")
    assert dashboard.controls.enabled == ["run"]
    dashboard.controls.press("run")
    assert dashboard.form.locked and "run" not in dashboard.controls.enabled
    assert dashboard.wait(LONG) == "finished"
    yield dashboard
    dashboard.close()


class Gate:
    """Lets the rounds of a dashboard go on one by one: each waits until it is let through."""

    def __init__(self, monkeypatch):
        self._permits, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        original = fs.Federation.run

        def gated(federation, state, *, rounds):
            steps = original(federation, state, rounds=rounds)
            while True:
                self.asked.release()
                assert self._permits.acquire(timeout=60)
                yield next(steps)

        monkeypatch.setattr(fs.Federation, "run", gated)

    def reached(self):
        """Wait until the next round is about to begin."""
        assert self.asked.acquire(timeout=120)

    def let(self, rounds=1):
        for _ in range(rounds):
            self._permits.release()


def until(dashboard, state):
    """Wait until the dashboard has this state; fails after a minute."""
    deadline = time.monotonic() + 60
    while dashboard.controls.state != state:
        assert time.monotonic() < deadline and dashboard.error is None, repr(dashboard.error)
        time.sleep(0.01)


def test_rounds_run_in_a_thread_and_every_view_follows(finished):
    dashboard = finished
    assert dashboard.setters and threading.main_thread() not in dashboard.setters
    assert [record.round for record in dashboard.records] == [1, 2, 3, 4]
    assert dashboard.round_state.round == 4
    assert not dashboard.form.locked
    controls, last = dashboard.controls, dashboard.records[-1]
    assert (controls.state, controls.round, controls.rounds) == ("finished", 4, 4)
    assert controls.elapsed_seconds > 0 and not controls.ticking and controls.error == ""
    assert dashboard.chart.rounds_done == [1, 2, 3, 4]
    lines = {line["name"]: line["values"] for line in dashboard.chart.figures["accuracy"]["lines"]}
    assert set(lines) == {*last.metrics["accuracy"], "mean"}
    assert lines["mean"] == [record.metrics["mean_accuracy"] for record in dashboard.records]
    assert lines["Hungary"][-1] == last.metrics["accuracy"]["Hungary"]
    assert dashboard.chart.figures["accuracy"]["note"] == "outside the guarantee"
    assert dashboard.budget.epsilon == last.dp["epsilon"] <= dashboard.budget.target == 3.0
    assert dashboard.budget.label == "simulation" and "simulation" in dashboard.budget.summary
    assert ["delta", "0.0001"] in [list(term) for term in dashboard.budget.terms]
    facts = dashboard.facts
    assert dict(facts.threat)["Here"].startswith("Simulation on one machine")
    assert {row["part"] for row in facts.timings} == set(last.timings_seconds)
    assert facts.ledger[0] == ("Ledger head", last.ledger_head, True)
    assert facts.outside == list(last.outside_guarantee) != []
    assert facts.code == dashboard.plan.code()
    assert "simulation" in repr(dashboard)


def test_pause_holds_resume_goes_on_stop_ends_and_the_folder_goes_on(make, monkeypatch, tmp_path):
    gate = Gate(monkeypatch)
    dashboard = make(tmp_path, rounds=3, **QUICK)
    dashboard.controls.press("run")
    gate.reached()
    assert dashboard.controls.enabled == ["pause", "stop"]
    for act in (dashboard.start, dashboard.run, lambda: dashboard.show_records([])):
        with pytest.raises(ParameterError, match="Stop it, or wait"):
            act()
    assert dashboard.wait(0.05) == "running"

    dashboard.controls.press("pause")
    assert dashboard.state == "pausing" and dashboard.controls.enabled == ["resume", "stop"]
    gate.let()
    until(dashboard, "paused")
    assert [record.round for record in dashboard.records] == [1]
    assert not gate.asked.acquire(timeout=0.3)  # no second round begins
    assert dashboard.controls.enabled == ["resume", "stop"] and not dashboard.controls.ticking
    elapsed = dashboard._runner.elapsed_seconds
    assert dashboard._runner.elapsed_seconds == elapsed  # a pause does not count

    dashboard.controls.press("resume")
    gate.reached()
    assert dashboard.state == "running"
    dashboard.controls.press("stop")
    assert dashboard.state == "stopping" and dashboard.controls.enabled == []
    gate.let()
    assert dashboard.wait(60) == "stopped"
    done = dashboard.records
    assert [record.round for record in done] == [1, 2]
    assert dashboard.controls.enabled == ["run"] and not dashboard.form.locked

    gate.let()  # the folder was closed, so the same dashboard can open it and finish
    dashboard.controls.press("run")
    assert dashboard.wait(LONG) == "finished", dashboard.controls.error
    assert [record.round for record in dashboard.records] == [1, 2, 3]
    assert dashboard.records[:2] == done


def test_stop_ends_a_pause_and_a_pause_can_be_taken_back(make, monkeypatch):
    gate = Gate(monkeypatch)
    dashboard = make(rounds=10, **QUICK)
    dashboard.start()
    dashboard.pause()  # while the federation is being built
    until(dashboard, "paused")
    assert dashboard.records == ()
    dashboard.resume()
    gate.reached()
    dashboard.pause()
    dashboard.resume()
    gate.let()
    gate.reached()
    assert dashboard.state == "running"
    dashboard.pause()
    gate.let()
    until(dashboard, "paused")
    dashboard.stop()
    assert dashboard.wait(60) == "stopped" and len(dashboard.records) == 2


def test_a_form_with_an_error_runs_nothing(make):
    dashboard = make(rounds=3, **QUICK)
    dashboard.form.set(rounds="lots")
    assert dashboard.controls.enabled == []
    assert dashboard.controls.message == "Mend 1 setting to run."
    dashboard.controls.press("run")
    assert dashboard.state == "ready"
    for act in (dashboard.run, dashboard.start):
        with pytest.raises(ParameterError, match="'lots'.*Mend the field rounds"):
            act()
    assert dashboard.federation is None
    dashboard.form.set(rounds="1")
    assert dashboard.controls.enabled == ["run"] and dashboard.controls.rounds == 1


def test_a_failing_round_shows_its_error_and_keeps_what_was_done(make, monkeypatch):
    original = fs.Federation.run

    def failing(federation, state, *, rounds):
        yield from original(federation, state, rounds=2)
        raise BudgetError("round 3", need="budget", found="none left", fix="Reset it.")

    dashboard = make(rounds=5, **QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(fs.Federation, "run", failing)
        dashboard.start()
        assert dashboard.wait(LONG) == "failed"
    assert [record.round for record in dashboard.records] == [1, 2]
    assert dashboard.controls.error == "BudgetError: round 3 needs budget, got none left. Reset it."
    assert dashboard.chart.rounds_done == [1, 2]
    assert isinstance(dashboard.error, BudgetError)
    assert dashboard.controls.enabled == ["run"] and not dashboard.form.locked


def test_an_interrupt_in_the_foreground_ends_the_run_in_order(make, monkeypatch):
    def interrupted(federation, state, *, rounds):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(fs.Federation, "run", interrupted)
    dashboard = make(rounds=2, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        dashboard.run()
    assert dashboard.state == "stopped" and dashboard.controls.enabled == ["run"]
    assert dashboard.facts.threat[0][0] == "Here"  # it was built


def test_the_code_follows_the_form_and_the_results_stay(make, finished):
    dashboard = make(rounds=9, **QUICK)
    dashboard.show_records(finished.records, None, finished.plan)
    dashboard.form.set(target_epsilon="1.25")
    assert "target_epsilon=1.25" in dashboard.facts.code
    assert dashboard.budget.target == finished.plan.target_epsilon
    dashboard.form.set(target_epsilon="-")
    assert "target_epsilon=1.25" in dashboard.facts.code  # the last one that could run


CELLS = """\
import fedjax_secure as fs
dashboard = fs.widgets.Dashboard(fs.FederationPlan(rounds=2, encryption="off", seed=0))
dashboard
----
dashboard.run()
----
dashboard
"""


def test_a_notebook_without_a_browser_has_the_picture(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    root = str(Path(fs.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.path.join(root, "kernels")]))
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS.split("----\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=LONG).execute()
    before, run, after = (cell.outputs for cell in notebook.cells)
    assert WIDGET_MIME in before[0].data and "image/png" not in before[0].data
    assert "no round of 2 finished" in before[0].data["text/plain"]
    (shown,) = [output for output in run if output.output_type == "display_data"]
    assert png(shown).width >= 1200
    assert WIDGET_MIME in after[0].data and png(after[0]).size == png(shown).size
    assert "round 2 of 2" in after[0].data["text/plain"]
    assert "(simulation)" in after[0].data["text/plain"]


def png(output):
    return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))


def test_records_from_elsewhere_are_shown(make, finished):
    other = make(rounds=9, **QUICK)
    other.show_records(finished.records, finished.federation.threat_model(), finished.plan)
    assert other.records == finished.records and other.plan == finished.plan
    assert other.chart.figures == finished.chart.figures
    assert other.facts.threat == finished.facts.threat
    assert other.controls.round == 4 and other.controls.enabled == ["run"]
    assert other.form.plan == finished.plan


def test_every_state_says_what_can_be_pressed():
    states = set(runner_module.ALLOWED)
    assert set(runner_module.IDLE) < states
    for state, actions in runner_module.ALLOWED.items():
        assert set(actions) <= {"run", "pause", "resume", "stop"}
        assert ("run" in actions) == (state in runner_module.IDLE)


def test_views_fetch_nothing_and_carry_their_code_inline(make):
    dashboard = make(rounds=1, **QUICK)
    for view in (dashboard.form, dashboard.controls, dashboard.chart, dashboard.budget,
                 dashboard.facts):
        source = html.unescape(str(view._esm)) + str(view._css)
        assert "export default" in source
        for fetching in ("import ", "http://", "https://", "fetch(", "url(", "@import"):
            found = source.replace("http://www.w3.org/2000/svg", "")
            assert fetching not in found, (type(view).__name__, fetching)


def test_views_that_cannot_be_told_leave_no_run_behind():
    told = []

    def tell(runner):
        told.append(runner.state)
        if len(told) == 1:
            raise OSError("the browser is gone")

    runner = fs.widgets.Runner(tell)
    with pytest.raises(OSError, match="gone"):
        runner.run(fs.FederationPlan(rounds=1, seed=0, encryption="off"))
    assert runner.state == "ready" and runner.allows("run")
    runner.run(fs.FederationPlan(rounds=1, seed=0, encryption="off"))
    assert runner.state == "finished" and len(runner.records) == 1
