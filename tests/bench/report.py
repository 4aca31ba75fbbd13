"""What every benchmark writes: one JSON file, and a page and a picture rendered from it alone.

``python tests/bench/report.py docs/benchmarks/he.json`` renders the page and the picture anew.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "docs" / "benchmarks"

#: The metric of a row that says why there is nothing else about its system.
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured figure.

    Args:
        case: what was done, with everything that sets it apart: sizes, bits, K, cores.
        system: who did it.
        metric: what was measured, such as ``"encrypt"``.
        median, min, max: of the repetitions; None where nothing was measured.
        unit: such as ``"ms CPU"``. Rows of one metric with two units are two figures.
        note: why there is no figure.
    """

    case: str
    system: str
    metric: str
    median: float | None
    min: float | None
    max: float | None
    unit: str
    note: str = ""

    @classmethod
    def of(cls, case: str, system: str, metric: str, samples: Sequence[float], unit: str) -> Row:
        """The row of some repetitions' figures."""
        figures = (statistics.median(samples), min(samples), max(samples))
        return cls(case, system, metric, *(float(f"{figure:.6g}") for figure in figures), unit)

    @classmethod
    def missing(cls, case: str, system: str, why: str) -> Row:
        """The row of a system that could not be measured."""
        return cls(case, system, NOT_MEASURED, None, None, None, "", why)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio or a figure is to reach.

    Args:
        name: in words.
        ratio: its key in ``ratios``; empty where the figure is not one of them.
        bound: the figure to reach.
        at_least: whether more is better.
        limited_by: what bounds it, said with measured figures; shown where the goal is not reached.
        value: the figure, where it is not one of the ratios; None where it was not measured.
    """

    name: str
    ratio: str
    bound: float
    at_least: bool = True
    limited_by: str = ""
    value: float | None = None

    def found(self, ratios: Mapping[str, float | None]) -> float | None:
        """The figure; None where it was not measured."""
        return ratios.get(self.ratio) if self.ratio else self.value

    def reached(self, ratios: Mapping[str, float | None]) -> bool | None:
        """Whether the goal is met; None where it was not measured."""
        value = self.found(ratios)
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


@dataclasses.dataclass(frozen=True)
class Panel:
    """One part of the picture: a metric of the rows of some cases, a bar a row.

    Args:
        title: of the part.
        metric, unit: of the rows.
        cases: by name, with what is added to the systems' names in each.
    """

    title: str
    metric: str
    unit: str
    cases: Mapping[str, str]


# -- writing ---------------------------------------------------------------------------------------


def write(
    name: str,
    *,
    title: str,
    about: Sequence[str],
    rows: Iterable[Row],
    ratios: Mapping[str, float | None],
    versions: Mapping[str, str],
    goals: Iterable[Goal] = (),
    panels: Iterable[Panel] = (),
    folder: Path = FOLDER,
) -> Path:
    """Write ``NAME.json``, ``NAME.md`` and, where there are panels, ``NAME.png``.

    Args:
        name: of the benchmark; `make bench-NAME` makes it.
        title: of the page.
        about: paragraphs that say how it was measured.
        rows: the figures.
        ratios: figures of figures, by name; None where one was not measured.
        versions: of everything that ran, by name.
        goals: what the ratios are to reach.
        panels: the picture's parts.
        folder: where to.

    Returns:
        The JSON file.
    """
    report = {
        "title": title,
        "command": f"make bench-{name}",
        "machine": machine(),
        "versions": dict(versions),
        "commit": commit(),
        "about": list(about),
        "rows": [
            {key: value for key, value in dataclasses.asdict(row).items() if key != "note" or value}
            for row in rows
        ],
        "ratios": dict(ratios),
        "goals": [dataclasses.asdict(goal) for goal in goals],
        "panels": [dataclasses.asdict(panel) for panel in panels],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    render(path)
    return path


def machine() -> dict[str, Any]:
    """The processor, its cores that may be used, memory, and the system; no names of hosts."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        pages = 0
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(_LOAD, 2),
    }


_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def versions_of(*packages: str) -> dict[str, str]:
    """This Python's version and those of installed packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    """The commit that was measured; says so where code has changed since."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "fedjax_secure", "kernels", "tests/bench")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# -- rendering -------------------------------------------------------------------------------------


def render(path: Path) -> None:
    """Write the page and the picture beside a JSON file."""
    report = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(page(report, path.stem), encoding="utf-8")
    if report["panels"]:
        draw(report, path.with_suffix(".png"))


def page(report: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a report."""
    parts = [
        f"# {report['title']}",
        f"Made by `{report['command']}` from commit {report['commit']}; rendered from "
        f"[{name}.json]({name}.json), so the figures below are those that were measured.",
        *report["about"],
    ]
    if report["panels"]:
        parts.append(f"![The figures as bars]({name}.png)")
    parts += _goals(report)
    for case in dict.fromkeys(row["case"] for row in report["rows"]):
        parts += [f"## {case}", _table([row for row in report["rows"] if row["case"] == case])]
    facts = [f"{key.replace('_', ' ')}: {value}" for key, value in report["machine"].items()]
    found = [f"{key} {value}" for key, value in report["versions"].items()]
    parts += [
        "## Machine and versions",
        "Machine: " + "; ".join(facts) + ".",
        "Versions: " + ", ".join(found) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _goals(report: Mapping[str, Any]) -> list[str]:
    goals = [Goal(**goal) for goal in report["goals"]]
    ratios = report["ratios"]
    lines = ["| | goal | reached | |", "|---|---|---|---|"]
    verdicts = {True: "met", False: "**falls short**", None: "not measured"}
    for goal in goals:
        sign = "at least" if goal.at_least else "at most"
        value = goal.found(ratios)
        lines.append(
            f"| {goal.name} | {sign} {goal.bound:g} | {'' if value is None else figure(value)} | "
            f"{verdicts[goal.reached(ratios)]} |"
        )
    wanted = {goal.ratio for goal in goals}
    lines += [
        f"| {key} | | {'not measured' if value is None else figure(value)} | |"
        for key, value in ratios.items()
        if key not in wanted
    ]
    parts = ["## Goals" if goals else "## Ratios", "\n".join(lines)] if len(lines) > 2 else []
    short = [goal for goal in goals if goal.reached(ratios) is False]
    if short:
        parts.append("Where it falls short, and what bounds it:")
        parts.append(
            "\n".join(
                f"- {goal.name}: {figure(value)} instead of {goal.bound:g}."
                f"{' ' + goal.limited_by if goal.limited_by else ''}"
                for goal in short
                if (value := goal.found(ratios)) is not None
            )
        )
    return parts


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a system, one column a metric and unit: median (min to max)."""
    columns = dict.fromkeys(
        (row["metric"], row["unit"]) for row in rows if row["metric"] != NOT_MEASURED
    )
    heads = [f"{metric}, {unit}" if unit else metric for metric, unit in columns]
    lines = ["| system | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        cells = {
            (row["metric"], row["unit"]): _cell(row)
            for row in own
            if row["metric"] != NOT_MEASURED
        }
        notes = [row["note"] for row in own if row["metric"] == NOT_MEASURED]
        label = f"{system} ({NOT_MEASURED}: {'; '.join(notes)})" if notes else system
        lines.append(f"| {label} | " + " | ".join(cells.get(key, "") for key in columns) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    middle = figure(row["median"])
    low, high = figure(row["min"]), figure(row["max"])
    return middle if low == high else f"{middle} ({low} to {high})"


def figure(value: float) -> str:
    """Three significant digits, as people write them.

    Example:
        >>> figure(563.21), figure(4.0), figure(0.0000091)
        ('563', '4.00', '9.1e-06')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{2 if abs(value) < 10 else 1}f}"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """The picture: for every panel, bars on a logarithmic scale, with the spread as a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panels = [Panel(**panel) for panel in report["panels"]]
    found = [_bars(report["rows"], panel) for panel in panels]
    systems = list(dict.fromkeys(system for bars in found for system in bars))
    height = 1.1 + 0.36 * len(systems)
    columns = 2
    lines = -(-len(panels) // columns)
    figure_, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(12.5, lines * height),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, panel, bars in zip(axes.flat, panels, found, strict=False):
        for place, system in enumerate(reversed(systems)):
            if system not in bars:
                continue
            row = bars[system]
            ours = row["system"].startswith("ours")
            axis.barh(place, row["median"], color="#1f6f8b" if ours else "#b9b4a7", height=0.7)
            axis.plot([row["min"], row["max"]], [place, place], color="#333333", linewidth=1.2)
            axis.text(
                max(row["max"], row["median"]) * 1.08,
                place,
                figure(row["median"]),
                va="center",
                fontsize=8.5,
            )
        figures = [row[key] for row in bars.values() for key in ("min", "max")]
        axis.set_xscale("log")
        axis.set_xlim(10.0 ** math.floor(math.log10(min(figures) / 1.1)), max(figures) * 2.6)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_yticks(range(len(systems)), list(reversed(systems)), fontsize=8.5)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"{panel.title} ({panel.unit})", fontsize=10, loc="left")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure_.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure_)


def _bars(rows: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, Mapping[str, Any]]:
    """The rows of a panel by their labels, in the rows' order of systems."""
    found = [
        row
        for row in rows
        if row["metric"] == panel.metric
        and row["unit"] == panel.unit
        and row["case"] in panel.cases
        and row["median"]
    ]
    return {
        system + panel.cases[row["case"]]: row
        for system in dict.fromkeys(row["system"] for row in found)
        for row in found
        if row["system"] == system
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        render(Path(argument))
