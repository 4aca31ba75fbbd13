"""The static picture of a run, from its records alone: for papermill, exports and reports."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..core import RoundRecord, ThreatModel
from ..runtime import FederationPlan
from .chart import METRICS, curves, is_outside
from .facts import outside, sentences, size, timings

#: Distinct for colour-blind readers, and at least 3:1 against white; dashes differ as well.
PALETTE = ("#0072b2", "#c45500", "#00805e", "#a8417f", "#6d6a00", "#5a4fcf", "#8a5a2b", "#4d5b66")
DASHES = ("-", (0, (6, 2.5)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
INK, SOFT, LINE = "#16191d", "#5b626b", "#d5d9de"
DPI = 110
WIDTH_INCHES, PLOT_INCHES, LINE_INCHES = 11.6, 2.3, 0.168


def picture(records: Sequence[RoundRecord], *, target_epsilon: float | None = None,
            title: str = "Federation", plan: FederationPlan | None = None,
            threat_model: ThreatModel | None = None) -> bytes:
    """Draw accuracy and AUC, epsilon against its target, the time of a round, and who sees what.

    Args:
        records: finished rounds, oldest first; none is allowed.
        target_epsilon: where the target line is drawn; None draws none.
        title: the first words of the heading.
        plan: the settings, for the heading.
        threat_model: for the text; None leaves it out.

    Returns:
        A PNG.

    Example:
        >>> picture([], title="Nothing yet")[:4]
        b'\\x89PNG'
    """
    left, right = _left(threat_model), _right(records, threat_model)
    text_inches = 0.62 + max(_lines(left, 78), _lines(right, 37)) * LINE_INCHES
    height = 0.95 + 2 * (PLOT_INCHES + 0.85) + text_inches
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(column: float, row: int, width: float) -> Axes:
        top = 1.3 + row * (PLOT_INCHES + 0.85)
        return figure.add_axes((column, 1 - (top + PLOT_INCHES) / height, width,
                                PLOT_INCHES / height))

    figure.text(0.022, 1 - 0.22 / height, title, fontsize=17, fontweight="bold", color=INK,
                va="top", parse_math=False)
    figure.text(0.022, 1 - 0.60 / height, _heading(records, plan), fontsize=10, color=SOFT,
                va="top")
    for column, metric in zip((0.045, 0.545), METRICS, strict=True):
        _curves(place(column, 0, 0.315), records, metric, plan)
    _epsilon(place(0.045, 1, 0.315), records, target_epsilon, plan)
    _timings(place(0.605, 1, 0.36), records)
    top = height - text_inches + 0.12
    _column(figure, 0.022, top, "Who sees what", left, 0.145, 78)
    _column(figure, 0.645, top, "Limits and history", right, 0.118, 37)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def _heading(records: Sequence[RoundRecord], plan: FederationPlan | None) -> str:
    parts = []
    if plan is not None:
        privacy = "differential privacy" if plan.private else "no differential privacy"
        parts += [plan.model.replace("_", " "), privacy, f"encryption {plan.encryption}"]
    if not records:
        return "   ·   ".join([*parts, "no round has finished yet"])
    last = records[-1]
    rounds = f" of {plan.rounds}" if plan is not None else ""
    parts.append(f"round {last.round}{rounds}")
    if "epsilon" in last.dp:
        parts.append(f"ε = {last.dp['epsilon']:.2f} at δ = {last.dp['dp_delta']:g}")
    return "   ·   ".join([*parts, "secure mode" if last.mode == "secure" else last.mode])


def _frame(axes: Axes, title: str, x: str, y: str, note: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=9)
    if note:
        axes.set_title(note, loc="right", fontsize=8, color="#9a5b00", pad=9)
    axes.set_xlabel(x, fontsize=9.5, color=SOFT)
    axes.set_ylabel(y, fontsize=9.5, color=SOFT)
    axes.tick_params(labelsize=9, colors=SOFT, length=0)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)


def _nothing(axes: Axes, text: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9.5,
              color=SOFT)


def _curves(axes: Axes, records: Sequence[RoundRecord], metric: str,
            plan: FederationPlan | None) -> None:
    label = METRICS[metric]
    note = "outside the guarantee" if is_outside(records, label) else ""
    _frame(axes, f"{label}, held-out records", "round", "", note)
    lines = curves(records, metric)
    if len(lines) - 1 > len(PALETTE):
        lines = lines[-1:]
    known = [value for line in lines for value in line["values"] if value is not None]
    if not known:  # AUC has no value where held-out records have one class only
        _nothing(axes, "no round has finished yet" if not records else "not measured")
        return
    rounds = [record.round for record in records]
    marker = "o" if len(rounds) == 1 else None
    ends = []
    for index, line in enumerate(lines):
        values = [float("nan") if value is None else value for value in line["values"]]
        colour = INK if line["mean"] else PALETTE[index % len(PALETTE)]
        axes.plot(rounds, values, color=colour, linewidth=2.6 if line["mean"] else 1.6,
                  linestyle="-" if line["mean"] else DASHES[index % len(DASHES)], marker=marker,
                  markersize=5, solid_capstyle="round", zorder=4 if line["mean"] else 3)
        last_known = [value for value in line["values"] if value is not None][-1:]
        ends += [(value, line["name"], colour) for value in last_known]
    low = max(0.0, int(min(known) * 10 - 0.3) / 10)
    axes.set_ylim(low, 1.0)
    last = max(plan.rounds if plan is not None else 0, *rounds)
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    _end_labels(axes, ends, low)


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]], low: float) -> None:
    """The names at the right end of the lines, moved apart where they would overlap."""
    step = 0.088
    places = []
    for value, name, colour in sorted(ends, reverse=True):
        place = (value - low) / (1.0 - low)
        places.append([min(place, places[-1][0] - step) if places else place, value, name, colour])
    floor = 0.02
    for entry in reversed(places):
        entry[0] = max(entry[0], floor)
        floor = entry[0] + step
    for place, value, name, colour in places:
        name = " ".join(name.split())  # of one line
        name = name if len(name) <= 14 else name[:13] + "…"
        axes.text(1.015, place, f"{value:.2f} {name}", transform=axes.transAxes, va="center",
                  fontsize=9, fontweight="bold", color=colour, parse_math=False)


def _epsilon(axes: Axes, records: Sequence[RoundRecord], target: float | None,
             plan: FederationPlan | None) -> None:
    spent = [(record.round, float(record.dp["epsilon"])) for record in records
             if "epsilon" in record.dp]
    mode = records[-1].mode if records else ""
    note = "" if mode in ("", "secure") else f"{mode}: protects nothing"
    _frame(axes, "Epsilon spent", "round", "", note if spent else "")
    if not spent:
        _nothing(axes, "no differential privacy" if records else "nothing is spent yet")
        return
    rounds, values = zip(*spent, strict=True)
    axes.fill_between(rounds, values, color=PALETTE[2], alpha=0.14, linewidth=0)
    axes.plot(rounds, values, color=PALETTE[2], linewidth=2.4, marker="o" if len(rounds) == 1
              else None)
    last = max(plan.rounds if plan is not None else 0, *rounds)
    top = max([*values, target or 0.0]) * 1.18
    axes.set_ylim(0, top)
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    place = values[-1] / top
    if target is not None:
        axes.axhline(target, color="#b3261e", linewidth=1.6, linestyle=(0, (5, 2.5)))
        axes.text(1.015, target / top, f"{target:g} target", transform=axes.transAxes,
                  va="center", fontsize=9, fontweight="bold", color="#b3261e")
        if abs(target / top - place) < 0.09:
            place = target / top - 0.09
    axes.text(1.015, place, f"{values[-1]:.2f} spent", transform=axes.transAxes, va="center",
              fontsize=9, fontweight="bold", color=PALETTE[2])


def _timings(axes: Axes, records: Sequence[RoundRecord]) -> None:
    _frame(axes, "Median time of a round", "milliseconds", "",
           "outside the guarantee" if is_outside(records, "timings") else "")
    rows = timings(records)
    if not rows:
        _nothing(axes, "no round has finished yet")
        return
    rows = rows[::-1]
    values = [1000 * row["median"] for row in rows]
    bars = axes.barh([row["part"] for row in rows], values, height=0.62,
                     color=[PALETTE[k % len(PALETTE)] for k in range(len(rows))][::-1])
    axes.bar_label(bars, labels=[f"{value:.0f}" if value >= 10 else f"{value:.1f}"
                                 for value in values], padding=5, fontsize=9, color=INK)
    axes.set_xlim(0, max(values, default=1.0) * 1.15 or 1.0)
    axes.tick_params(axis="y", labelsize=9.5, colors=INK)
    axes.grid(axis="x", color=LINE, linewidth=0.8)


def _left(threat_model: ThreatModel | None) -> list[tuple[str, str]]:
    if threat_model is None:
        return [("", "no threat model was given")]
    return [pair for pair in sentences(threat_model) if pair[0] != "Assumed"]


def _right(records: Sequence[RoundRecord],
           threat_model: ThreatModel | None) -> list[tuple[str, str]]:
    rows = [("No guarantee for", text[:1].upper() + text[1:])
            for text in outside(records, threat_model)]
    if records:
        last = records[-1]
        rows += [("Ledger head", _short(last.ledger_head) if last.ledger_head else "no ledger"),
                 ("Model digest", _short(last.model_after))]
        if last.bytes_per_client:
            rows.append(("Each client sends", f"{size(last.bytes_per_client)} a round"))
    return rows or [("", "no round has finished yet")]


def _lines(rows: list[tuple[str, str]], width: int) -> float:
    return sum(len(textwrap.wrap(text, width)) + 0.4 for _, text in rows)


def _column(figure: Figure, x: float, top: float, title: str, rows: list[tuple[str, str]],
            indent: float, width: int) -> None:
    """Rows of a bold name and wrapped text, from ``top`` inches below the figure's upper edge."""
    height = figure.get_figheight()
    figure.text(x, 1 - top / height, title, fontsize=11.5, fontweight="bold", color=INK, va="top")
    y, before = top + 0.32, None
    for who, what in rows:
        for k, line in enumerate(textwrap.wrap(what, width)):
            if k == 0 and who != before:
                figure.text(x, 1 - y / height, who, fontsize=8.8, fontweight="bold", color=INK,
                            va="baseline", parse_math=False)
            figure.text(x + (indent if who else 0.0), 1 - y / height, line, fontsize=8.8,
                        color=SOFT, va="baseline", parse_math=False)
            y += LINE_INCHES
        y += 0.4 * LINE_INCHES
        before = who


def _short(digest: str) -> str:
    return digest if len(digest) <= 32 else f"{digest[:16]} … {digest[-12:]}"
