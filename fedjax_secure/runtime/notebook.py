"""Execute a parameterised notebook: typed parameters in, recorded results and a report out.

papermill runs the cells. What it does not do is done here: a parameter that the notebook does not
have, or a value of the wrong type, is refused before a kernel starts; results that the notebook
records come back as values; and the report is one HTML file that fetches nothing when it is opened.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_secure.core.errors import ParameterError, SecureFederationError

from .notebook_parameters import check_parameters, read_parameters

RESULT_MIME = "application/vnd.fedjax-secure.result+json"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
KERNEL_START_SECONDS = 300


class NotebookError(SecureFederationError, RuntimeError):
    """A notebook that stopped in one of its cells."""


class NotebookResult(NamedTuple):
    """What an executed notebook leaves.

    Attributes:
        values: what the notebook recorded with :func:`record`, in order of first recording.
        notebook: the executed notebook.
        html: its report, or None if none was asked for.
        seconds: wall time of the execution.
    """

    values: dict[str, Any]
    notebook: Path
    html: Path | None
    seconds: float

    def text(self) -> str:
        """The recorded values for a terminal: tables aligned, and single values one a line.

        Example:
            >>> rows = [{"hospital": "Cleveland", "AUC": 0.875}, {"hospital": "VA", "AUC": 0.7}]
            >>> result = NotebookResult({"summary": rows, "epsilon": 2}, Path("a"), None, 1.0)
            >>> print(result.text())
            summary
              hospital     AUC
              Cleveland  0.875
              VA           0.7
            <BLANKLINE>
            epsilon: 2
        """
        blocks, lines = [], []
        for name, value in self.values.items():
            if _is_table(value):
                if lines:
                    blocks.append("\n".join(lines))
                lines = []
                blocks.append(f"{name}\n{_table(value)}")
            else:
                lines.append(f"{name}: {_cell(value)}")
        if lines:
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def execute(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    output: str | Path,
    html: bool = True,
    progress: bool = True,
) -> NotebookResult:
    """Run a notebook from its first cell to its last, with these parameters.

    One would use it for a job that repeats: the notebook that an analyst explores in JupyterLab
    runs unattended, leaves a report, and gives its results back as values. The kernel runs in the
    notebook's own folder, as JupyterLab's does, on this Python.

    Args:
        notebook: path of the notebook; it must have a cell with the tag ``parameters``.
        parameters: values by parameter name; texts are cast to the declared types. Left out: the
            notebook's defaults.
        output: where to write the executed notebook; the folder is made.
        html: also write a report beside it, which shows the static outputs and fetches nothing from
            the network when it is opened. Formulas in it stay as LaTeX.
        progress: show a progress bar, by cell, on standard error.

    Returns:
        The recorded results and the paths of what was written.

    Raises:
        ParameterError: for a notebook without a parameters cell, an unknown parameter, an ill-typed
            value, or an output that would overwrite the notebook; nothing has run then.
        NotebookError: if a cell failed, or the kernel died. The notebook as far as it ran is kept.

    Example:
        >>> result = execute("notebooks/first_federation.ipynb", {"ROUNDS": 5},
        ...                  output="runs/first.ipynb")                      # doctest: +SKIP
        >>> print(result.text())                                             # doctest: +SKIP
    """
    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    values = check_parameters(notebook, parameters or {})
    if output == notebook:
        raise ParameterError(
            f"notebook {notebook.name}",
            need="an output apart from the notebook itself",
            found=str(output),
            fix="Give another path; the notebook stays as it is.",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    failure = _run_cells(notebook, output, values, progress)
    seconds = time.monotonic() - started
    report = _write_html(output) if html and output.exists() else None
    if failure is not None:
        raise failure
    return NotebookResult(read_results(output), output, report, seconds)


def record(name: str, value: Any) -> None:
    """Called in a notebook: keep a result in it, for whoever executes the notebook.

    Args:
        name: what to call it; a name recorded again replaces the earlier value.
        value: numbers, texts, truth values, None, and lists and dicts of them; arrays become lists,
            and a data frame a list of rows. Lists of flat rows are printed as tables.

    Raises:
        ParameterError: for a value that JSON cannot hold exactly, such as a NaN.

    Example:
        >>> record("epsilon", float("nan"))
        Traceback (most recent call last):
        ...
        fedjax_secure.core.errors.ParameterError: record("epsilon") needs finite numbers, got nan.
        Record None where there is no value.
    """
    from IPython.display import display

    value = _plain(f'record("{name}")', value)
    result = {"name": name, "value": value}
    if _is_table(value):
        # The file format sorts the names in every dict, so the order of columns is kept apart.
        result["columns"] = list(dict.fromkeys(column for row in value for column in row))
    display({RESULT_MIME: result}, raw=True)


def read_results(notebook: str | Path) -> dict[str, Any]:
    """The values that an executed notebook recorded, in order of first recording."""
    import nbformat

    values: dict[str, Any] = {}
    for cell in nbformat.read(str(notebook), as_version=4).cells:
        for output in cell.get("outputs", ()):
            result = output.get("data", {}).get(RESULT_MIME)
            if result is None:
                continue
            value = json.loads(json.dumps(result["value"]))
            if "columns" in result:
                value = [
                    {name: row[name] for name in result["columns"] if name in row} for row in value
                ]
            values[result["name"]] = value
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``run`` a notebook, or print its ``parameters`` and check given ones."""
    parser = argparse.ArgumentParser(
        prog="python -m fedjax_secure.runtime.notebook", description=__doc__.split("\n\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute a notebook and print what it recorded")
    show = commands.add_parser("parameters", help="print the parameters, or check given ones")
    for command in (run, show):
        command.add_argument("notebook", type=Path)
        command.add_argument(
            "-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
        )
    run.add_argument("--output", type=Path, help="default: runs/NAME-TIME.ipynb")
    run.add_argument("--no-html", action="store_true", help="write no report")
    run.add_argument("--no-progress", action="store_true", help="show no progress bar")
    options = parser.parse_args(arguments)
    output: Path | None = None
    try:
        if options.command == "parameters":
            _print_parameters(options.notebook, dict(options.given))
        else:
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            output = options.output or Path("runs") / f"{options.notebook.stem}-{stamp}.ipynb"
            result = execute(
                options.notebook,
                dict(options.given),
                output=output,
                html=not options.no_html,
                progress=not options.no_progress,
            )
            _print_result(result)
    except (ParameterError, NotebookError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ParameterError) else 1
    except KeyboardInterrupt:
        kept = f"; the notebook as far as it ran is {output}" if output and output.exists() else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 130
    return 0


def _run_cells(
    notebook: Path, output: Path, values: dict[str, Any], progress: bool
) -> NotebookError | None:
    """Execute into ``output``; what stopped the notebook is returned, so that it can be kept."""
    import nbclient.exceptions
    import papermill
    import traitlets.config

    # papermill's own check does not know Literal types; ours has been made.
    logger = logging.getLogger("papermill")
    quiet = _DropUnknownParameter()
    logger.addFilter(quiet)
    kept = f"The notebook as far as it ran is {output}; the failed cell shows the traceback."
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=values,
            kernel_name="python3",
            language="python",
            progress_bar={"desc": notebook.stem, "unit": "cell"} if progress else False,
            cwd=str(notebook.parent),
            start_timeout=KERNEL_START_SECONDS,
            # The kernel's messages go through files of this user, and not through open ports.
            config=traitlets.config.Config({"KernelManager": {"transport": "ipc"}}),
        )
    except papermill.PapermillExecutionError as error:
        return NotebookError(
            f"notebook {notebook.name}",
            need="every cell to run",
            found=f"an error in cell {error.exec_count} ({_first_line(error.source)}): "
            f"{error.ename}: {error.evalue.rstrip('.')}",
            fix=kept,
        )
    except nbclient.exceptions.DeadKernelError:
        return NotebookError(
            f"notebook {notebook.name}",
            need="a kernel that lives to the last cell",
            found="a kernel that died, which is often a lack of memory",
            fix=kept,
        )
    finally:
        logger.removeFilter(quiet)
    return None


class _DropUnknownParameter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Passed unknown parameter")


def _write_html(executed: Path) -> Path:
    """A report that is one file: no script, style or font from elsewhere, and no live widgets."""
    import jinja2
    import nbconvert
    import nbformat

    template = (
        "{% extends 'lab/index.html.j2' %}"
        "{% block html_head_js %}{% endblock %}{% block jupyter_widgets %}{% endblock %}"
        "{% block html_head_js_mathjax %}{% endblock %}"
        "{% block html_head_js_mermaidjs %}{% endblock %}"
    )
    exporter = nbconvert.HTMLExporter(
        extra_loaders=[jinja2.DictLoader({"report.html.j2": template})],
        template_file="report.html.j2",
        embed_images=True,
    )
    notebook = copy.deepcopy(nbformat.read(str(executed), as_version=4))
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if _is_static(output)]
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    report = executed.with_suffix(".html")
    report.write_text(body, encoding="utf-8")
    return report


def _is_static(output: Any) -> bool:
    """Whether something of it shows without a kernel; drops the live view of a widget."""
    data = output.get("data")
    if data is None:
        return True
    live = data.pop(WIDGET_MIME, None) is not None
    data.pop(RESULT_MIME, None)
    return bool(data) and not (live and set(data) == {"text/plain"})


def _plain(where: str, value: Any) -> Any:
    """The value as JSON can hold it, exactly."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        value = value.to_dict(orient="records")
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ParameterError(
                where,
                need="finite numbers",
                found=repr(value),
                fix="Record None where there is no value.",
            )
        return value
    if isinstance(value, list | tuple):
        return [_plain(where, member) for member in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(where, member) for name, member in value.items()}
    raise ParameterError(
        where,
        need="numbers, texts, lists and dicts of them, arrays or a data frame",
        found=type(value).__name__,
        fix="Convert it first.",
    )


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_flat_row(row) for row in value)


def _is_flat_row(row: Any) -> bool:
    return isinstance(row, dict) and not any(isinstance(cell, list | dict) for cell in row.values())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned columns, numbers to the right, two spaces in."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["  "] * (len(rows) + 1)
    for index, name in enumerate(names):
        cells = [name, *(_cell(row.get(name)) for row in rows)]
        width = max(len(cell) for cell in cells)
        text = any(isinstance(row.get(name), str) for row in rows)
        gap = "  " if index else ""
        for line, cell in enumerate(cells):
            lines[line] += gap + (cell.ljust(width) if text else cell.rjust(width))
    return "\n".join(line.rstrip() for line in lines)


def _first_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return f"`{lines[0][:60]}`" if lines else "empty"


def _print_parameters(notebook: Path, given: dict[str, str]) -> None:
    values = check_parameters(notebook, given)
    rows = [
        {
            "name": parameter.name,
            "value": str(values.get(parameter.name, parameter.default)),
            "type": parameter.description if parameter.type_name else "not settable: no type",
            "meaning": parameter.help,
        }
        for parameter in read_parameters(notebook).values()
    ]
    print(_table(rows))


def _print_result(result: NotebookResult) -> None:
    if result.values:
        print(result.text())
        print()
    print(f"executed in {result.seconds:.0f} s")
    print(f"notebook: {result.notebook}")
    if result.html is not None:
        print(f"report:   {result.html}")


if __name__ == "__main__":
    sys.exit(main())
