"""One journey through the dashboard, as a person makes it: JupyterLab in a real Chromium."""

from __future__ import annotations

import os
import re

import pytest

from tests.browser.lab_driver import ROOT, browser, lab_server, missing, write_notebook

REQUIRED = os.environ.get("FEDJAX_SECURE_REQUIRE_BROWSER") == "1"
KEEP = os.environ.get("FEDJAX_SECURE_KEEP_SCREENSHOT") == "1"
ROUNDS = 30
CELLS = [f"""\
import fedjax_secure as fs

dashboard = fs.widgets.Dashboard(fs.FederationPlan(rounds={ROUNDS}, target_epsilon=3.0))
dashboard"""]

# Texts that are wider than their box, or reach beyond the chart: nothing may be cut off.
CUT_OFF = """() => {
    const kinds = ['div', 'p', 'dd', 'dt', 'td', 'th', 'button', 'label', 'span', 'pre'];
    const boxes = [...document.querySelectorAll(`.fjs-dashboard :is(${kinds})`)].filter(
        (node) => node.clientWidth > 0 && node.scrollWidth > node.clientWidth + 1);
    const chart = document.querySelector('.fjs-plot svg').getBoundingClientRect();
    const texts = [...document.querySelectorAll('.fjs-plot text')].filter((node) => {
        const box = node.getBoundingClientRect();
        return box.right > chart.right + 1 || box.left < chart.left - 1;
    });
    return [...boxes, ...texts].map((node) => node.textContent);
}"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def needs():
    lack = missing()
    if lack and REQUIRED:
        pytest.fail(f"the browser's journey {lack}")
    if lack:
        pytest.skip(f"the browser's journey {lack}")


def test_change_epsilon_run_and_watch_it_finish(tmp_path):
    notebooks, home = tmp_path / "notebooks", tmp_path / "home"
    notebooks.mkdir()
    home.mkdir()
    write_notebook(notebooks / "dashboard.ipynb", CELLS)
    with lab_server(notebooks, home) as address, browser(address, height=2150) as lab:
        page = lab.page
        lab.open("dashboard.ipynb")
        lab.run_all()
        epsilon = page.get_by_label("Target epsilon")
        epsilon.wait_for(timeout=90_000)
        run = page.get_by_role("button", name="Run", exact=True)

        # a bad value: its error in its place, and nothing can run
        epsilon.fill("-1")
        epsilon.press("Tab")
        error = page.locator(".fjs-error:visible")
        error.wait_for(timeout=30_000)
        assert "`target_epsilon` needs a number from 0.01" in error.text_content()
        assert epsilon.get_attribute("aria-invalid") == "true"
        assert run.is_disabled()

        # a good one: the error goes, and the code follows
        epsilon.fill("2")
        epsilon.press("Tab")
        error.wait_for(state="hidden", timeout=30_000)
        page.get_by_label("Python code", exact=True).filter(
            has_text="target_epsilon=2.0").wait_for(timeout=30_000)
        run.click()
        page.get_by_role("button", name="Stop").and_(page.locator(":enabled")).wait_for(
            timeout=30_000)
        assert epsilon.is_disabled()
        page.locator(".fjs-badge[data-state=finished]").wait_for(timeout=240_000)

        # what is shown at the end
        bar = page.get_by_role("progressbar", name="Rounds finished")
        assert bar.get_attribute("aria-valuenow") == str(ROUNDS)
        assert f"round {ROUNDS} of {ROUNDS}" in page.locator(".fjs-controls").text_content()
        meter = page.get_by_role("meter", name="Privacy budget spent")
        assert 0 < float(meter.get_attribute("aria-valuenow")) <= 2.0
        assert meter.get_attribute("aria-valuemax") == "2"
        budget = page.locator(".fjs-budget").text_content()
        assert re.search(r"ε [12]\.\d\d of 2", budget) and "0.0001" in budget
        assert "secure mode" in budget and "simulation" not in budget
        for name in ("Cleveland", "Hungary", "Switzerland", "VA Long Beach", "mean"):
            line = page.locator(f".fjs-plot path[data-line='{name}']")
            assert line.get_attribute("d").count("L") == ROUNDS - 1
        assert f"After round {ROUNDS}" in page.locator(".fjs-plot svg").get_attribute("aria-label")
        facts = page.locator(".fjs-facts").text_content()
        assert "this process sees everything" in facts and "never one hospital's update" in facts
        assert re.search(r"Ledger head[0-9a-f]{64}", facts)
        assert "AUC and loss per client" in facts
        assert page.locator(".fjs-alert:visible").count() == 0
        assert lab.errors == []
        assert lab.external_requests == []

        assert page.evaluate(CUT_OFF) == []

        folder = ROOT / "docs" / "images" if KEEP else tmp_path
        page.locator(".fjs-dashboard").screenshot(path=folder / "dashboard.png",
                                                  animations="disabled")
        assert (folder / "dashboard.png").stat().st_size > 20_000
