"""The privacy report of a run, as HTML, Markdown and JSON."""

from .facts import RunFacts
from .privacy_report import PrivacyReport, report

__all__ = ["PrivacyReport", "RunFacts", "report"]
