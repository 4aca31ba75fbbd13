"""Notebooks as jobs: what is refused before anything runs, what runs, and what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_secure.core.errors import ParameterError
from fedjax_secure.runtime import notebook, notebook_parameters

ROOT = Path(__file__).resolve().parents[2]

PARAMETERS = '''
from typing import Literal
ROUNDS: int = 3  # how many rounds to run
TARGET_EPSILON: float = 2.0
ENCRYPT: bool = True
UNIT: Literal["record", "client"] = "record"  # whom the guarantee protects
SEED: int | None = None
TITLE = "a title"
CLIP = 1.0  # type: float  the L2 bound
OPTIONS = {"a": 1}
'''

# Records without the toolkit's import, which would load JAX: the MIME type is the interface.
BODY = '''
from IPython.display import display, HTML
def record(name, value, **columns):
    mime = "application/vnd.fedjax-secure.result+json"
    display({mime: {"name": name, "value": value, **columns}}, raw=True)
record("rounds", -1)
record("rounds", ROUNDS)
record("kinds", [type(value).__name__ for value in (ROUNDS, TARGET_EPSILON, ENCRYPT, UNIT, SEED)])
record("summary", [{"hospital": "VA", "AUC": 0.5}], columns=["hospital", "AUC"])
display(HTML("<b id='picture'>static</b>"))
'''


# nbformat is imported where it is used: it takes seconds, also where tests are only collected.
def write_notebook(folder: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    content = new_notebook(cells=[new_markdown_cell("# A plan with $x^2$")])
    if parameters is not None:
        content.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    content.cells += [new_code_cell(cell) for cell in cells]
    path = folder / "plan.ipynb"
    write(content, path)
    return path


@pytest.fixture
def plan(tmp_path):
    return write_notebook(tmp_path)


def test_declared_parameters_are_read(plan):
    declared = notebook_parameters.read_parameters(plan)
    assert {name: (p.type_name, p.optional) for name, p in declared.items()} == {
        "ROUNDS": ("int", False),
        "TARGET_EPSILON": ("float", False),
        "ENCRYPT": ("bool", False),
        "UNIT": ("choice", False),
        "SEED": ("int", True),
        "TITLE": ("str", False),
        "CLIP": ("float", False),
        "OPTIONS": ("", False),
    }
    assert declared["ROUNDS"].default == "3"
    assert declared["ROUNDS"].help == "how many rounds to run"
    assert declared["UNIT"].choices == ("record", "client")
    assert declared["CLIP"].help == "the L2 bound"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("ROUNDS", "50", 50),
        ("ROUNDS", 50, 50),
        ("ROUNDS", "-1", -1),
        ("TARGET_EPSILON", "2", 2.0),
        ("TARGET_EPSILON", 2, 2.0),
        ("TARGET_EPSILON", "1e-3", 0.001),
        ("TARGET_EPSILON", "inf", float("inf")),
        ("ENCRYPT", "false", False),
        ("ENCRYPT", "ON", True),
        ("ENCRYPT", False, False),
        ("UNIT", "client", "client"),
        ("SEED", "none", None),
        ("SEED", None, None),
        ("SEED", "7", 7),
        ("TITLE", "50", "50"),
    ],
)
def test_values_are_cast_to_the_declared_type(plan, name, given, value):
    cast = notebook_parameters.check_parameters(plan, {name: given})
    assert cast == {name: value}
    assert type(cast[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ROUNDS", "2.5", "needs ROUNDS to be an integer, got '2.5'"),
        ("ROUNDS", 2.0, "needs ROUNDS to be an integer, got 2.0"),
        ("ROUNDS", "", "needs ROUNDS to be an integer, got ''"),
        ("ROUNDS", True, "needs ROUNDS to be an integer, got True"),
        ("ROUNDS", None, "needs ROUNDS to be an integer, got None"),
        ("TARGET_EPSILON", "two", "needs TARGET_EPSILON to be a number, got 'two'"),
        ("TARGET_EPSILON", 10**400, "needs TARGET_EPSILON to be a number, got 1000"),
        ("TARGET_EPSILON", "nan", "needs TARGET_EPSILON to be a number, got 'nan'"),
        ("ENCRYPT", "maybe", "needs ENCRYPT to be a truth value (true or false), got 'maybe'"),
        ("ENCRYPT", "2", "needs ENCRYPT to be a truth value (true or false), got '2'"),
        ("UNIT", "patient", "needs UNIT to be one of record, client, got 'patient'"),
        ("SEED", "x", "needs SEED to be an integer, or none, got 'x'"),
        ("TITLE", 5, "needs TITLE to be a text, got 5"),
        ("OPTIONS", "{}", "needs a declared type of OPTIONS"),
        ("ROUNDZ", "5", "got ROUNDZ. Did you mean ROUNDS?"),
        ("rounds", "5", "got rounds. Did you mean ROUNDS?"),
        ("EPSILON", "5", "got EPSILON. Did you mean TARGET_EPSILON?"),
        ("Q", "5", "(ROUNDS, TARGET_EPSILON, ENCRYPT, UNIT, SEED, TITLE, CLIP, OPTIONS), got Q"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(plan, name, given, message):
    output = plan.parent / "out" / "executed.ipynb"
    with pytest.raises(ParameterError, match=re.escape(message)):
        notebook.execute(plan, {name: given}, output=output)
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "needs a cell with the tag `parameters`, got none in 1 cells"),
        ("ROUNDS = ", "a syntax error in its line 1"),
        ("%matplotlib inline\nROUNDS = 3", "a syntax error in its line 1"),
        ("ROUNDS: list[int] = [1]", "got ROUNDS: list[int]"),
        ("ROUNDS: Literal[MANY] = 1", "got ROUNDS: Literal[MANY]"),
        ("ROUNDS: int | float = 1", "got ROUNDS: int | float"),
    ],
)
def test_a_notebook_whose_parameters_cannot_be_checked_is_refused(tmp_path, parameters, message):
    path = write_notebook(tmp_path, parameters=parameters)
    with pytest.raises(ParameterError, match=re.escape(message)):
        notebook.execute(path, output=tmp_path / "executed.ipynb")


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="got no file at"):
        notebook_parameters.read_parameters(tmp_path / "missing.ipynb")
    for text in ("not json", "[]", '{"cells": [1]}', "{}"):
        path = tmp_path / "broken.ipynb"
        path.write_text(text)
        with pytest.raises(ParameterError, match="needs a readable notebook of format 4"):
            notebook_parameters.read_parameters(path)


def test_the_notebook_itself_is_not_overwritten(plan):
    before = plan.read_bytes()
    with pytest.raises(ParameterError, match="an output apart from the notebook itself"):
        notebook.execute(plan, output=plan)
    assert plan.read_bytes() == before


def test_an_executed_notebook_gives_its_results_and_a_report(tmp_path):
    plan = write_notebook(tmp_path, BODY)
    output = tmp_path / "runs" / "executed.ipynb"
    given = {"ROUNDS": "50", "TARGET_EPSILON": "2", "UNIT": "client", "ENCRYPT": "no"}
    result = notebook.execute(plan, given, output=output, progress=False)
    assert result.values == {
        "rounds": 50,
        "kinds": ["int", "float", "bool", "str", "NoneType"],
        "summary": [{"hospital": "VA", "AUC": 0.5}],
    }
    assert list(result.values) == ["rounds", "kinds", "summary"]
    assert list(result.values["summary"][0]) == ["hospital", "AUC"]
    assert result.notebook == output and result.seconds > 0
    assert notebook.read_results(output) == result.values

    report = result.html.read_text()
    assert result.html == output.with_suffix(".html")
    assert '<b id="picture">static</b>' in report
    assert fetched(report) == []


def fetched(html: str) -> list[str]:
    """What a browser would get from elsewhere to show a page."""
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", html)
    found = [tag for tag in tags if re.search(r"(?:src|href)\s*=\s*['\"]?(?!data:|['\"])", tag)]
    found += re.findall(r"@import[^;]*;|url\(\s*['\"]?https?:[^)]*\)", html)
    return found + re.findall(r"import\(['\"]https?:[^)]*\)", html)


def test_the_check_for_fetches_can_fail():
    assert fetched("<img src='data:image/png;base64,aa'>") == []
    assert len(fetched("<script src='https://a.example/x.js'></script>")) == 1
    assert len(fetched("<style>a { background: url(https://a.example/x.png) }</style>")) == 1
    assert len(fetched('<script>await import("https://a.example/x.mjs")</script>')) == 1


def test_live_widgets_leave_the_report_and_their_pictures_stay(tmp_path):
    import nbformat

    view = {"version_major": 2, "version_minor": 0, "model_id": "1"}
    data = [
        {notebook.WIDGET_MIME: view, "text/plain": "VBox(children=())"},
        {notebook.WIDGET_MIME: view, "text/plain": "Image()", "text/html": "<i>picture</i>"},
    ]
    cell = nbformat.v4.new_code_cell("dashboard")
    cell.outputs = [nbformat.v4.new_output("display_data", data=member) for member in data]
    content = nbformat.v4.new_notebook(cells=[cell])
    content.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    path = tmp_path / "executed.ipynb"
    nbformat.write(content, path)
    report = notebook._write_html(path).read_text()
    assert "<i>picture</i>" in report
    assert "VBox" not in report
    assert fetched(report) == []
    assert "widgets" in nbformat.read(path, as_version=4).metadata


def test_a_failing_notebook_keeps_what_ran_and_says_where(tmp_path):
    import nbformat

    plan = write_notebook(tmp_path, "print('reached')", "x = 1\nraise ValueError('too few')", "1")
    output = tmp_path / "executed.ipynb"
    with pytest.raises(notebook.NotebookError) as caught:
        notebook.execute(plan, output=output, progress=False)
    message = str(caught.value)
    assert "an error in cell 3 (`x = 1`): ValueError: too few." in message
    assert str(output) in message
    outputs = [cell.get("outputs") for cell in nbformat.read(output, as_version=4).cells]
    assert any("reached" in json.dumps(output) for output in outputs)
    assert "ValueError" in output.with_suffix(".html").read_text()


def test_a_kernel_that_dies_is_an_error_that_says_so(tmp_path):
    plan = write_notebook(tmp_path, "import os\nos._exit(1)")
    with pytest.raises(notebook.NotebookError, match="a kernel that died"):
        notebook.execute(plan, output=tmp_path / "executed.ipynb", html=False, progress=False)


def test_record_takes_what_json_can_hold(monkeypatch):
    import numpy as np
    import pandas as pd

    seen = {}
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw: seen.update({raw: data[notebook.RESULT_MIME]})
    )
    frame = pd.DataFrame({"hospital": ["VA"], "AUC": [0.5]})
    notebook.record("all", {"n": np.int64(3), "x": np.arange(2.0), "t": frame, "s": ("a", None)})
    rows = [{"hospital": "VA", "AUC": 0.5}]
    value = {"n": 3, "x": [0.0, 1.0], "t": rows, "s": ["a", None]}
    assert seen == {True: {"name": "all", "value": value}}
    assert json.loads(json.dumps(seen[True]["value"], allow_nan=False)) == value
    notebook.record("t", frame)
    assert seen == {True: {"name": "t", "value": rows, "columns": ["hospital", "AUC"]}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "needs finite numbers, got inf"),
        ({"a": [1.0, float("nan")]}, "needs finite numbers, got nan"),
        (object(), "got object. Convert it first."),
        (b"key", "got bytes"),
    ],
)
def test_record_refuses_what_json_cannot_hold(value, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        notebook.record("x", value)


def test_the_command_line_runs_checks_and_prints(tmp_path, capsys):
    plan = write_notebook(tmp_path, BODY)
    output = tmp_path / "executed.ipynb"
    flags = ["-p", "ROUNDS", "4", "--output", str(output), "--no-progress"]
    assert notebook.main(["run", str(plan), *flags]) == 0
    printed = capsys.readouterr().out
    assert "summary\n  hospital  AUC\n  VA        0.5\n" in printed
    assert "rounds: 4" in printed
    assert f"notebook: {output}\n" in printed
    assert f"report:   {output.with_suffix('.html')}\n" in printed

    assert notebook.main(["run", str(plan), "-p", "ROUNDZ", "4"]) == 2
    assert "Did you mean ROUNDS?" in capsys.readouterr().err
    assert notebook.main(["parameters", str(plan), "-p", "ROUNDS", "9"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ROUNDS +9 +an integer +how many rounds to run", printed)

    failing = write_notebook(tmp_path, "1 / 0")
    assert notebook.main(["run", str(failing), "--output", str(output), "--no-progress"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_parameters_are_checked_without_the_dependencies(plan):
    """`make demo` refuses a wrong parameter on a machine where nothing is installed yet."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import demo\n"
        "demo.import_without_jax()\n"
        "from fedjax_secure.runtime.notebook_parameters import check_parameters\n"
        "print(check_parameters(sys.argv[3], {'ROUNDS': '5'}))"
    )
    # -S leaves out site-packages: only the standard library is there.
    arguments = [str(ROOT / "scripts"), str(ROOT), str(plan)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("{'ROUNDS': 5}\n", "")
