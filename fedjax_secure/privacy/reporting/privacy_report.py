"""A privacy report: what a run guarantees to one person, for those who answer for it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedjax_secure.core.errors import ParameterError
from fedjax_secure.privacy.audit import AuditResult

from .document import Section, as_html, as_markdown, as_values
from .facts import RunFacts
from .sections import CONTEXT, sections_of

FORMAT = "fedjax-secure privacy report 1"
_TITLE = "Privacy report"


class Reported(Protocol):
    """What a report can be made of: a federation."""

    def privacy_facts(self) -> RunFacts:
        """What is known of the run's privacy."""
        ...


class Audited(Protocol):
    """What an audit measured, for a report's table."""

    def to_dict(self) -> dict[str, Any]:
        """What :class:`fedjax_secure.privacy.audit.AuditResult` holds, as plain values."""
        ...


@dataclass(frozen=True)
class PrivacyReport:
    """A report; a notebook shows it, and :meth:`save` writes it to a file.

    Attributes:
        values: everything in it, as JSON has it: run, data, guarantee, rounds, budget,
            threat_model, audits, context.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> run = fs.Federation(model, data, fs.algorithms.fed_avg(0.1), fs.chain(), seed=0)
        >>> found = fs.privacy.report(run)
        >>> run.close()
        >>> print(found.markdown().splitlines()[6])
        > **Note.** Simulation: every secret was derived from a seed. ...
    """

    values: dict[str, Any] = field(repr=False)

    @property
    def sections(self) -> list[Section]:
        """The report's sections: titles, texts, tables."""
        return sections_of(self.values)

    def html(self) -> str:
        """A whole page, which fetches nothing when it is opened."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_TITLE}</title></head><body>{self._repr_html_()}</body></html>\n"
        )

    def markdown(self) -> str:
        """The report in Markdown."""
        return as_markdown(_TITLE, self.sections)

    def json(self) -> str:
        """The report's values, and its sections as text; :meth:`from_json` reads it back."""
        document = {"format": FORMAT, **self.values, "sections": as_values(self.sections)}
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PrivacyReport:
        """Reads back what :meth:`json` wrote.

        Raises:
            ParameterError: something else.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            values.pop("sections")
            report = cls(values)
            report.markdown()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ParameterError(
                "a privacy report", need=f"JSON of format {FORMAT!r}, as report.json() gives it",
                found="something else", fix="Give the text of a file that report.save() wrote.",
            ) from error
        return report

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report, in the form that the name's ending asks for.

        Args:
            path: ends with ``.html``, ``.md`` or ``.json``; folders are made.

        Returns:
            The path.

        Raises:
            ParameterError: another ending.
        """
        path = Path(path)
        writers = {".html": self.html, ".md": self.markdown, ".json": self.json}
        if path.suffix not in writers:
            raise ParameterError(
                "a privacy report", need="a file name that ends with .html, .md or .json",
                found=repr(path.name), fix='Write save("privacy.html"), for example.')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(writers[path.suffix](), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return as_html(_TITLE, self.sections)

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def __str__(self) -> str:
        return self.markdown()


def report(
    run: Reported | RunFacts, *, audits: Sequence[Audited] = (),
    context: Mapping[str, str] | None = None,
) -> PrivacyReport:
    """What a run guarantees to one person, what it rests on, and what it leaves out.

    For the people who have to answer for a training run: analysts, data protection officers,
    ethics boards. It reads the run's own records, so that it cannot say other than what ran.

    Args:
        run: a federation, before, between or after its rounds.
        audits: results of audits of this run's training, to be listed.
        context: what only you know, any of ``controller``, ``contact``, ``purpose``,
            ``legal_basis``, ``recipients``, ``retention``, ``assessment``. What is not given is
            marked as to be filled in.

    Returns:
        The report. Show it in a notebook, or ``save("privacy.html")``.

    Raises:
        ParameterError: something that is no federation, or another word in ``context``.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> run = fs.Federation(model, data, fs.algorithms.fed_avg(0.1), fs.chain(), seed=0)
        >>> found = fs.privacy.report(run, context={"purpose": "predict heart disease"})
        >>> run.close()
        >>> found.values["run"]["mode"], found.values["guarantee"]
        ('simulation', None)
    """
    facts = run if isinstance(run, RunFacts) else getattr(run, "privacy_facts", None)
    if facts is None:
        raise ParameterError("report", need="a federation", found=type(run).__name__,
                             fix="Pass the fs.Federation(...) that ran the rounds.")
    if context is not None and not isinstance(context, Mapping):
        raise ParameterError("report", need=f"context, a dictionary of {sorted(CONTEXT)}",
                             found=type(context).__name__,
                             fix='Write context={"purpose": "..."}, for example.')
    context = dict(context or {})
    unknown = sorted(set(context) - set(CONTEXT))
    if unknown or not all(isinstance(text, str) for text in context.values()):
        raise ParameterError("report", need=f"context with texts for any of {sorted(CONTEXT)}",
                             found=", ".join(map(repr, unknown)) or "a value that is no text",
                             fix="Use these words only.")
    values = (facts if isinstance(facts, RunFacts) else facts()).values()
    for audit in audits:
        if not isinstance(audit, AuditResult):
            raise ParameterError("report", need="results of audits", found=type(audit).__name__,
                                 fix="Pass audits=[fs.audit(...), fs.audit_chain(...)].")
    values["audits"] = [audit.to_dict() for audit in audits]
    values["context"] = context
    values["made"] = datetime.now(UTC).isoformat(timespec="seconds")
    return PrivacyReport(_plain(values))


def _plain(value: Any) -> Any:
    """The same as JSON reads it back: lists for tuples, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
