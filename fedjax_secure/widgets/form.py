"""The form that defines a federation: what is typed becomes a plan, or an error in its place."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Any, NamedTuple, get_args

import anywidget
import traitlets

from .. import data
from ..core import DataError, ParameterError
from ..runtime import FederationPlan
from ..runtime.plan import Encryption, ModelName

_ESM = resources.files(__package__ or "fedjax_secure.widgets").joinpath("esm")
_NAMES = {
    "heart_disease": "Heart disease, 4 hospitals", "breast_cancer": "Breast cancer, 569 tumours",
    "digits": "Handwritten digits, 8 x 8", "mnist_5k": "MNIST, 5,000 digits",
    "lending": "Loans, 50 states", "watch": "Watch sensors, 10 people",
    "shakespeare": "Shakespeare, by role", "synthetic": "Synthetic, FedProx's",
    "logistic_regression": "Logistic regression",
    "mlp": "Multilayer perceptron", "lattice": "Lattice, one key holder",
    "threshold": "Lattice, 2 of 3 holders", "openfhe": "OpenFHE, BGV",
    "off": "Off",
}


class Field(NamedTuple):
    """One control of the form.

    Attributes:
        name: of the plan's setting, or of a control that decides whether a setting is used.
        label: what stands above the control.
        help: what stands below it.
        kind: ``"int"``, ``"float"`` or ``"choice"``.
        choices: pairs of value and text; empty for a number.
    """

    name: str
    label: str
    help: str
    kind: str
    choices: tuple[tuple[str, str], ...] = ()


def _choice(name: str, label: str, help: str, literal: Any) -> Field:
    return Field(name, label, help, "choice",
                 tuple((value, str(_NAMES.get(value, value))) for value in get_args(literal)))


FIELDS = (
    Field("data", "Dataset", "Records stay where they are.", "choice"),
    _choice("model", "Model", "What is trained together.", ModelName),
    Field("rounds", "Rounds", "One shared gradient step each.", "int"),
    Field("expected_batch", "Expected batch", "Records drawn a round on average, over all "
          "clients.", "int"),
    Field("learning_rate", "Learning rate", "Of the server's step.", "float"),
    Field("private", "Differential privacy", "Off is for comparison only.", "choice",
          (("on", "On"), ("off", "Off"))),
    Field("target_epsilon", "Target epsilon", "What the whole run may cost. Smaller protects "
          "more.", "float"),
    Field("dp_delta", "Delta", "Well below one over the number of records.", "float"),
    Field("l2_bound", "Clip norm", "Longest gradient that one record may contribute (L2).",
          "float"),
    Field("missing_shares", "Missing noise shares", "Clients whose noise may be absent or "
          "known to an attacker.", "int"),
    Field("own_budget", "Budget", "The dataset's is shared by all your runs on this data.",
          "choice", (("own", "This run's own"), ("dataset", "The dataset's"))),
    _choice("encryption", "Encryption", "Of what clients send; only the sum is opened.",
            Encryption),
    Field("randomness", "Randomness", "Seeded runs repeat exactly and protect nothing.", "choice",
          (("secure", "Secure, fresh secrets"), ("seeded", "Seeded simulation"))),
    Field("seed", "Seed", "A whole number, for a seeded simulation.", "int"),
)
_TRUE = {"private": "on", "own_budget": "own"}


class PlanForm(anywidget.AnyWidget):
    """A form with one control a setting, its help, and its error where it has one.

    Every text is judged by :class:`fs.FederationPlan` itself, so that the form refuses exactly
    what a program would be refused.

    Args:
        plan: the settings to start from.

    Attributes:
        plan: the plan that the form describes; None while a field has an error.
        values: the text of every control, by name.
        errors: the error of every field that has one; ``""`` holds what concerns no single field.

    Example:
        >>> form = PlanForm(FederationPlan(rounds=5))
        >>> form.set(target_epsilon="2")
        >>> form.plan.target_epsilon
        2.0
        >>> form.set(rounds="many")
        >>> form.plan is None
        True
        >>> form.errors["rounds"]
        "`rounds` needs a whole number from 1 to 100000, got 'many'. Change `rounds`."
    """

    _esm = _ESM.joinpath("form.js").read_text("utf-8")
    _css = _ESM.joinpath("style.css").read_text("utf-8")

    fields = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    errors = traitlets.Dict().tag(sync=True)
    unused = traitlets.List(help="controls that the other settings make void").tag(sync=True)
    locked = traitlets.Bool(False, help="rounds run: nothing can change").tag(sync=True)
    plan = traitlets.Any(allow_none=True)

    def __init__(self, plan: FederationPlan | None = None):
        plan = FederationPlan() if plan is None else plan
        if not isinstance(plan, FederationPlan):
            raise ParameterError("PlanForm", need="a FederationPlan",
                                 found=f"a {type(plan).__name__}",
                                 fix="Pass fs.FederationPlan(...), or nothing.")
        super().__init__(fields=[_shown(field) for field in FIELDS], values=_texts(plan))
        self.observe(self._read, names="values")
        self._read()

    def set(self, **texts: str) -> None:
        """Type into controls, as a person would.

        Args:
            **texts: the new text of each control, by name.

        Raises:
            ParameterError: the form has no such control.
        """
        unknown = sorted(set(texts) - set(self.values))
        if unknown:
            raise ParameterError("PlanForm.set", need="names among " + ", ".join(self.values),
                                 found=", ".join(unknown), fix="Check the spelling.")
        self.values = {**self.values, **{name: str(text) for name, text in texts.items()}}

    def show(self, plan: FederationPlan) -> None:
        """Show another plan's settings."""
        self.values = _texts(plan)

    def _read(self, change: Any = None) -> None:
        settings, errors = _settings(self.values), {}
        for name, value in settings.items():  # each alone, so that every bad field is marked
            try:
                FederationPlan(**{name: value})
            except ParameterError as error:
                errors[name] = str(error)
        plan = None
        if not errors:
            try:
                plan = FederationPlan(**settings)
                plan.check(plan.load())
            except ParameterError as error:
                name = error.where.strip("`")
                errors[name if name in settings else ""] = str(error)
                plan = None
            except DataError as error:
                errors["data"], plan = str(error), None
        unused = []
        if self.values.get("private") == "off":
            unused += ["target_epsilon", "dp_delta", "missing_shares", "own_budget"]
            if self.values.get("encryption") == "off":
                unused.append("l2_bound")
        if self.values.get("randomness") != "seeded":
            unused.append("seed")
        else:
            unused.append("own_budget")
        with self.hold_trait_notifications():
            self.errors, self.unused, self.plan = errors, sorted(set(unused)), plan


def _shown(field: Field) -> dict[str, Any]:
    if field.name == "data":  # what is known now: datasets of your own are made known at any time
        field = field._replace(choices=tuple(
            (name, str(_NAMES.get(name, name))) for name in data.names()))
    return field._asdict()


def _texts(plan: FederationPlan) -> dict[str, str]:
    texts = {}
    for field in FIELDS:
        if field.name == "randomness":
            texts[field.name] = "secure" if plan.seed is None else "seeded"
        elif field.name in _TRUE:
            on, off = (value for value, _ in field.choices)
            texts[field.name] = on if getattr(plan, field.name) else off
        else:
            value = getattr(plan, field.name)
            texts[field.name] = "" if value is None else f"{value:.12g}" if isinstance(
                value, float) else str(value)
    return texts


def _settings(values: dict[str, str]) -> dict[str, Any]:
    """What the texts mean; a text that is no number is passed on for the plan to refuse."""
    settings: dict[str, Any] = {}
    for field in FIELDS:
        text = str(values.get(field.name, "")).strip()
        if field.name in _TRUE:
            settings[field.name] = text == _TRUE[field.name]
        elif field.name == "seed":
            seeded = values.get("randomness") == "seeded"
            settings["seed"] = _number(text, int) if seeded else None
        elif field.kind == "int":
            settings[field.name] = _number(text, int)
        elif field.kind == "float":
            settings[field.name] = _number(text, float)
        elif field.name != "randomness":
            settings[field.name] = text
    assert set(settings) == {field.name for field in dataclasses.fields(FederationPlan)}
    return settings


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text
