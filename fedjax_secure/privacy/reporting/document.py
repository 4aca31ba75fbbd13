"""A small document, written once as HTML, Markdown or plain values."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

_STYLE = """
.fs-report{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:60rem;
margin:0 auto;padding:1rem 1.25rem}
.fs-report h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .8rem}
.fs-report h2{font-size:1.15rem;margin:1.8rem 0 .5rem;border-bottom:1px solid #d5dbe3;
padding-bottom:.2rem}
.fs-report table{border-collapse:collapse;margin:.5rem 0;width:100%;font-size:.92em}
.fs-report th,.fs-report td{border:1px solid #d5dbe3;padding:.3rem .55rem;text-align:left;
vertical-align:top;overflow-wrap:break-word;white-space:pre-line;color:inherit;
background:inherit}
.fs-report th{background:#f1f4f8}
.fs-report td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.fs-report .fs-note{border-left:4px solid #b45309;background:#fff7ed;padding:.5rem .8rem;
margin:.6rem 0}
.fs-report figure{margin:.6rem 0}.fs-report svg{max-width:100%;height:auto}
@media print{.fs-report{max-width:none}}
""".strip()


class Table(NamedTuple):
    """A table; numbers are cells that are already text.

    Attributes:
        head: the columns' names.
        rows: as many cells as there are columns.
        numeric: numbers of the columns that are figures.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


class Note(NamedTuple):
    """A sentence that must not be missed."""

    text: str


class Points(NamedTuple):
    """A list of sentences."""

    items: tuple[str, ...]


class Section(NamedTuple):
    """A heading, and what stands under it: texts, notes, lists and tables."""

    title: str
    blocks: tuple[str | Note | Points | Table, ...]


def as_html(title: str, sections: Sequence[Section]) -> str:
    """One ``<article>`` with its own style, which fetches nothing.

    Example:
        >>> "<h2>A</h2><p>1 &lt; 2</p>" in as_html("T", [Section("A", ("1 < 2",))])
        True
    """
    parts = [f"<style>{_STYLE}</style>", f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_html_block(block) for block in section.blocks]
    return f'<article class="fs-report">{"".join(parts)}</article>'


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown.

    Example:
        >>> print(as_markdown("T", [Section("A", (Points(("one", "two")),))]))
        # T
        <BLANKLINE>
        ## A
        <BLANKLINE>
        - one
        - two
        <BLANKLINE>
    """
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def as_values(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The sections as lists and dictionaries of text, for JSON."""

    def block(value: Any) -> Any:
        if isinstance(value, Table):
            return {"columns": list(value.head), "rows": [list(row) for row in value.rows]}
        if isinstance(value, Points):
            return {"list": list(value.items)}
        return {"note": value.text} if isinstance(value, Note) else {"text": value}

    return [
        {"title": section.title, "blocks": [block(value) for value in section.blocks]}
        for section in sections
    ]


def _html_block(block: str | Note | Points | Table) -> str:
    if isinstance(block, Note):
        return f'<p class="fs-note">{html.escape(block.text)}</p>'
    if isinstance(block, Points):
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in block.head)
        rows = "".join(
            "<tr>" + "".join(_cell(block, place, text) for place, text in enumerate(row)) + "</tr>"
            for row in block.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<p>{html.escape(block)}</p>"


def _cell(table: Table, place: int, text: str) -> str:
    kind = ' class="n"' if place in table.numeric else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _markdown_block(block: str | Note | Points | Table) -> str:
    if isinstance(block, Note):
        return f"> **Note.** {_plain(block.text)}"
    if isinstance(block, Points):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Table):
        rule = ["---:" if place in block.numeric else "---" for place in range(len(block.head))]
        lines = [block.head, rule, *block.rows]
        return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)
    return _plain(block)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, with its special characters escaped."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
