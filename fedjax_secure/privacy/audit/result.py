"""What an audit found, as people read it and as a report keeps it."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
    """A measured lower bound on epsilon, with all that it is to be read with.

    A notebook shows it as a table; ``print`` as text.

    Attributes:
        audited: what ran, in words.
        unit: what a canary is, and so whose privacy was attacked.
        adjacency: the neighbouring relation; always ``"add_remove"``.
        attack: the canaries, and what the auditor saw.
        method: ``"one run"`` (Steinke et al. 2023) or ``"many runs"`` (Clopper-Pearson).
        canaries: how many canaries a run had.
        runs: how many independent runs there were.
        rounds: rounds in each.
        evidence: the counts that the bound rests on, and what was fixed before they were seen.
        epsilon: the lower bound: with probability ``confidence`` at most the true epsilon.
        claimed_epsilon: what the accountant says of the same rounds; infinity where it says
            nothing.
        dp_delta: of both.
        confidence: of the bound.
        gaussian_epsilon: a sharper lower bound that holds if the trade-off curve is a Gaussian's;
            None where the accountant claims no such curve.
        attainable: the bound if every guess had been right: an audit of few canaries cannot refute
            a larger claim, however wrong. None where that was not computed.
        mode: ``"simulation"``: audits run on seeds.

    Example:
        >>> result = AuditResult(
        ...     audited="chain(clip, quantise, discrete_gaussian)", unit="client",
        ...     attack="gradient canaries; every released sum", method="one run", canaries=1000,
        ...     runs=1, rounds=10, evidence="95 of 100 guesses right", epsilon=2.1,
        ...     claimed_epsilon=8.0, dp_delta=1e-5, confidence=0.95)
        >>> result.refuted, round(result.share, 2)
        (False, 0.26)
    """

    audited: str
    unit: str
    attack: str
    method: Literal["one run", "many runs"]
    canaries: int
    runs: int
    rounds: int
    evidence: str
    epsilon: float
    claimed_epsilon: float
    dp_delta: float
    confidence: float
    gaussian_epsilon: float | None = None
    attainable: float | None = None
    adjacency: str = "add_remove"
    mode: str = "simulation"

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted at this confidence.

        Either bound refutes it: the Gaussian one is given only where a Gaussian's curve is what is
        claimed. Each is wrong with probability at most ``1 - confidence``, so one of the two with
        at most twice that.
        """
        return max(self.epsilon, self.gaussian_epsilon or 0.0) > self.claimed_epsilon

    @property
    def share(self) -> float:
        """The lower bound over the claimed epsilon."""
        return self.epsilon / self.claimed_epsilon if self.claimed_epsilon else math.inf

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        sure = f"{self.confidence:.3g}"
        if not math.isfinite(self.claimed_epsilon):
            return (f"Nothing is claimed; this attack shows epsilon of at least {self.epsilon:.3g} "
                    f"at dp_delta {self.dp_delta:g} (confidence {sure}).")
        if self.refuted:
            shown = self.epsilon if self.epsilon > self.claimed_epsilon else self.gaussian_epsilon
            return (f"REFUTED: epsilon is at least {shown:.3g}, and {self.claimed_epsilon:.3g} is "
                    f"claimed, at dp_delta {self.dp_delta:g} (confidence {sure}).")
        found = (f"Not refuted: this attack shows epsilon of at least {self.epsilon:.3g} of the "
                 f"claimed {self.claimed_epsilon:.3g}, at dp_delta {self.dp_delta:g} (confidence "
                 f"{sure}). ")
        if self.attainable is not None and self.attainable <= self.claimed_epsilon:
            return (f"{found}It could not have refuted it: with this many canaries even guesses "
                    f"that are all right show {self.attainable:.3g}. Take more canaries or runs.")
        return f"{found}A better attack may show more."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report or a file; ``AuditResult(**d)`` reads them back."""
        return dataclasses.asdict(self)

    def _lines(self) -> list[tuple[str, str]]:
        runs = f", {self.runs:,} runs" if self.runs > 1 else ""
        lines = [
            ("audited", self.audited),
            ("attack", self.attack),
            ("unit", f"{self.unit} (adjacency: one added or removed)"),
            ("size", f"{self.canaries:,} canar{'y' if self.canaries == 1 else 'ies'}, "
             f"{self.rounds:,} round{'' if self.rounds == 1 else 's'}{runs}"),
            ("evidence", f"{self.evidence} ({self.method})"),
            ("epsilon at least", f"{self.epsilon:.3g}"),
        ]
        if self.attainable is not None:
            lines.append(("at best", f"{self.attainable:.3g}, had every guess been right"))
        if self.gaussian_epsilon is not None:
            lines.append(("if Gaussian, at least", f"{self.gaussian_epsilon:.3g} (holds if the "
                          "trade-off curve is a Gaussian's, as the accountant claims)"))
        return [*lines, ("claimed epsilon", f"{self.claimed_epsilon:.3g}"),
                ("dp_delta, confidence", f"{self.dp_delta:g}, {self.confidence:.3g}"),
                ("mode", self.mode)]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._lines())
        return "\n".join([self.verdict, *(f"  {name:<{width}}  {value}"
                                          for name, value in self._lines())])

    def __repr__(self) -> str:
        return (f"AuditResult(epsilon={self.epsilon:.4g}, claimed_epsilon="
                f"{self.claimed_epsilon:.4g}, refuted={self.refuted})")

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
                       f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
                       for name, value in self._lines())
        return f"<p><b>{html.escape(self.verdict)}</b></p><table>{rows}</table>"
