"""The privacy budget: epsilon spent of the target, and the terms that give it a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import anywidget
import traitlets

from ..core import RoundRecord
from ..runtime import FederationPlan

_ESM = resources.files(__package__ or "fedjax_secure.widgets").joinpath("esm")


class BudgetGauge(anywidget.AnyWidget):
    """Epsilon so far, of the run's target, with delta, unit and the run's label.

    Example:
        >>> gauge = BudgetGauge()
        >>> gauge.show([], FederationPlan(target_epsilon=2.0, seed=0))
        >>> gauge.label, gauge.summary
        ('simulation', 'Nothing is spent yet.')
    """

    _esm = _ESM.joinpath("budget.js").read_text("utf-8")
    _css = _ESM.joinpath("style.css").read_text("utf-8")

    active = traitlets.Bool(True, help="there is a guarantee").tag(sync=True)
    epsilon = traitlets.Float(0.0).tag(sync=True)
    target = traitlets.Float(1.0).tag(sync=True)
    label = traitlets.Unicode("", help="secure mode, or simulation").tag(sync=True)
    summary = traitlets.Unicode("").tag(sync=True)
    terms = traitlets.List(help="pairs of term and text").tag(sync=True)

    def show(self, records: Sequence[RoundRecord], plan: FederationPlan) -> None:
        """Show what these rounds spent of the plan's target."""
        last = records[-1] if records else None
        with self.hold_sync():
            self.target = float(plan.target_epsilon)
            self.active = plan.private
            if not plan.private:
                self.epsilon, self.terms, self.label = 0.0, [], "no privacy"
                self.summary = ("No differential privacy: the models may reveal single records. "
                                "For comparison only.")
                return
            run_mode = last.mode if last else mode(plan)
            self.label = "secure mode" if run_mode == "secure" else run_mode
            self.epsilon = float(last.dp.get("epsilon", 0.0)) if last else 0.0
            self.summary, self.terms = _summary(self.epsilon, plan, last), _terms(plan, last)


def mode(plan: FederationPlan) -> str:
    """The mode of every epsilon that the plan makes: ``"secure"`` or ``"simulation"``."""
    return "secure" if plan.seed is None else "simulation"


def _summary(epsilon: float, plan: FederationPlan, last: RoundRecord | None) -> str:
    if last is None:
        return "Nothing is spent yet."
    share = epsilon / plan.target_epsilon
    text = f"{share:.0%} of the target after round {last.round} of {plan.rounds}"
    return text + (", in a simulation that protects nothing." if last.mode != "secure" else ".")


def _terms(plan: FederationPlan, last: RoundRecord | None) -> list[tuple[str, str]]:
    dp = last.dp if last else {}
    terms = [("delta", f"{dp.get('dp_delta', plan.dp_delta):g}")]
    if "unit" in dp:
        adjacency = str(dp["adjacency"]).replace("_", "/")
        terms += [("unit", str(dp["unit"])), ("adjacency", adjacency),
                  ("noise multiplier", f"{dp['noise_multiplier']:.3f}"),
                  ("sampling rate", f"{dp['sampling_rate']:.3f}")]
    if dp.get("assumes"):
        terms.append(("holds with", str(dp["assumes"])))
    if "budget_spent" in dp:
        whose = {"own": "run's own budget", "simulation": "simulation's budget"}.get(
            str(dp.get("label")), "dataset's budget")
        terms.append((whose, f"ε {dp['budget_spent']:.2f} of {dp['budget_epsilon']:g} spent"))
    return terms
