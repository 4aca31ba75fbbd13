"""A federation as a form has it: a few named settings, checked, and the code they stand for."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Literal, get_args

import optax

from .. import algorithms, data, he, ledger, models, privacy, selection
from ..core import ParameterError, chain
from .federation import Federation

ModelName = Literal["logistic_regression", "mlp"]
Encryption = Literal["lattice", "threshold", "openfhe", "off"]

_RING_BITS = 24
_SLACK = 1e-9  # above what the noise of summed integer shares adds to epsilon in a round
# Of fs.he, with arguments.
_SCHEMES: dict[str, tuple[str, tuple[int, ...]]] = {
    "lattice": ("public_key", ()), "threshold": ("threshold", (2, 3)),
    "openfhe": ("openfhe_bgv", ())}
_OPENINGS = 256  # of a threshold key, unless there are more rounds
_CHOICES = {"model": get_args(ModelName),
            "encryption": get_args(Encryption)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """The settings of a federation that trains with privacy per record.

    Args:
        data: the name of a dataset: ``"heart_disease"``, or one of yours that
            ``fs.data.register(name, dataset)`` made known.
        model: ``"logistic_regression"`` or ``"mlp"``.
        rounds: how many rounds.
        target_epsilon: what the whole run may cost.
        dp_delta: the delta of the guarantee; below one over the number of records.
        expected_batch: how many records take part in a round on average, over all clients.
        l2_bound: the norm to which each record's gradient is clipped.
        learning_rate: of the server's optimiser (SGD with momentum 0.9).
        encryption: ``"lattice"`` (our kernels, one key holder), ``"threshold"`` (our kernels, any
            two of three share holders), ``"openfhe"`` or ``"off"``.
        private: False trains without clipping or noise, for comparison.
        seed: None for fresh secrets; a number for a simulation that repeats exactly.
        own_budget: the run opens a budget of its own, kept in its folder, instead of the data's
            budget in the user's folder. Meant for public data; seeded runs always do. None: on
            public data only.
        missing_shares: how many clients' noise may be missing or known to the attacker.

    Raises:
        ParameterError: a setting of a wrong type or out of range; names the setting.

    Example:
        >>> plan = FederationPlan(rounds=5, target_epsilon=2.0, seed=0)
        >>> plan.replace(rounds=10).rounds
        10
        >>> try:
        ...     FederationPlan(rounds=0)
        ... except ParameterError as refused:
        ...     print(refused)
        `rounds` needs a whole number from 1 to 100000, got 0. Change `rounds`.
    """

    data: str = "heart_disease"
    model: ModelName = "logistic_regression"
    rounds: int = 40
    target_epsilon: float = 3.0
    dp_delta: float = 1e-4
    expected_batch: int = 180
    l2_bound: float = 1.0
    learning_rate: float = 0.5
    encryption: Encryption = "lattice"
    private: bool = True
    seed: int | None = None
    own_budget: bool | None = None
    missing_shares: int = 1

    def __post_init__(self):
        for name, choices in {"data": data.names(), **_CHOICES}.items():
            _require(name, getattr(self, name) in choices, "one of " + ", ".join(choices),
                     getattr(self, name))
        _whole("rounds", self.rounds, 1, 100_000)
        _whole("expected_batch", self.expected_batch, 1, 10**9)
        _whole("missing_shares", self.missing_shares, 0, 10**6)
        _number("target_epsilon", self.target_epsilon, 0.01, 50.0)
        _number("dp_delta", self.dp_delta, 1e-12, 0.01)
        _number("l2_bound", self.l2_bound, 1e-6, 1e6)
        _number("learning_rate", self.learning_rate, 1e-6, 1e3)
        if self.own_budget is None:
            object.__setattr__(self, "own_budget", data.is_public(self.data))
        for name in ("private", "own_budget"):
            _require(name, isinstance(getattr(self, name), bool), "True or False",
                     getattr(self, name))
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**64 - 1)

    def replace(self, **changes: Any) -> FederationPlan:
        """A copy with some settings changed; raises ParameterError for unknown names."""
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ParameterError("FederationPlan", need="settings among " + ", ".join(names),
                                 found=", ".join(unknown), fix="Check the spelling.")
        if changes.get("data", self.data) != self.data:
            changes = {"own_budget": None, **changes}
        return dataclasses.replace(self, **changes)

    def load(self) -> data.FederatedDataset:
        """The dataset."""
        return data.load(self.data)

    def sampling_rate(self, dataset: data.FederatedDataset) -> float:
        """The probability with which each record takes part in a round."""
        records = len(dataset.y)
        _require("expected_batch", self.expected_batch < records,
                 f"fewer than the {records} training records", self.expected_batch)
        return self.expected_batch / records

    def check(self, dataset: data.FederatedDataset) -> None:
        """Refuse settings that do not suit the data: ParameterError with the setting's name."""
        self.sampling_rate(dataset)
        _require("data", dataset.x.dtype.kind != "i", "records of numbers, which these models take "
                 "(text needs fs.models.char_lstm in a fs.Federation of your own)", self.data)
        if self.private:
            _require("dp_delta", self.dp_delta * len(dataset.y) < 1,
                     f"less than one over the {len(dataset.y)} training records", self.dp_delta)
        if self.encryption != "off":
            _require("encryption", dataset.num_clients >= 2,
                     "off where there is one client, whose value the sum is", self.encryption)

    def noise_multiplier(self, dataset: data.FederatedDataset) -> float:
        """The noise that makes the whole run cost the target, found by the accountant."""
        return privacy.calibrate(
            target_epsilon=self.target_epsilon, dp_delta=self.dp_delta, rounds=self.rounds,
            sampling_rate=self.sampling_rate(dataset), log_ratio=_SLACK)

    def build(self, folder: str | Path | None = None) -> Federation:
        """The federation that these settings describe.

        Args:
            folder: where the run, its ledger and its own budget are kept, so that it can be
                resumed; None keeps them for as long as the process lives.

        Returns:
            A :class:`Federation`, ready for ``init`` and ``run``.

        Raises:
            ParameterError: a setting that does not suit the data.
            BudgetError: the data's budget does not allow it.
            PartyError: OpenFHE is asked for and not installed.
        """
        dataset = self.load()
        self.check(dataset)
        place = Path(tempfile.mkdtemp(prefix="federation-")) if folder is None else Path(folder)
        features, classes = dataset.num_features, len(dataset.classes)
        if self.model == "mlp":
            model = models.mlp(features, hidden=(16,), classes=classes)
        else:
            model = models.logistic_regression(features, classes=classes)
        stages = []
        if self.private or self.encryption != "off":
            stages += [privacy.clip(self.l2_bound, unit="record"),
                       privacy.quantise(bits=_RING_BITS)]
        if self.private:
            stages.append(privacy.discrete_gaussian(self.noise_multiplier(dataset),
                                                    missing_shares=self.missing_shares))
        if self.encryption != "off":
            name, arguments, options = self._scheme()
            stages.append(he.encrypt(getattr(he, name)(*arguments, **options)))
        federation = Federation(
            model, dataset, algorithms.fed_sgd(optax.sgd(self.learning_rate, momentum=0.9)),
            chain(*stages), selection=selection.poisson_records(self.sampling_rate(dataset)),
            budget=self._budget(dataset, place) if self.private else None,
            ledger=ledger.embedded(place / "ledger.log"), folder=place / "run", seed=self.seed)
        if folder is None:
            weakref.finalize(federation, shutil.rmtree, place, ignore_errors=True)
        return federation

    def _budget(self, dataset: data.FederatedDataset, place: Path) -> privacy.Budget:
        own = self.own_budget or self.seed is not None
        label = None
        if own:
            label = "simulation" if self.seed is not None else "own"
        return privacy.Budget.open(
            dataset.population_fingerprint, dataset.unit, epsilon=self.target_epsilon,
            dp_delta=self.dp_delta, folder=place / "budget" if own else None, label=label)

    def _scheme(self) -> tuple[str, tuple[int, ...], dict[str, int]]:
        """Of ``fs.he``: the scheme's name, and what it is called with."""
        name, arguments = _SCHEMES[self.encryption]
        more = self.encryption == "threshold" and self.rounds > _OPENINGS
        return name, arguments, {"max_openings": self.rounds} if more else {}

    def _data_code(self) -> str:
        if data.is_registered(self.data):
            return f"data = fs.data.load({self.data!r})  # made known by fs.data.register(...)"
        return f"data = fs.data.{self.data}()"

    def code(self) -> str:
        """Python code that does the same as :meth:`build`, for reading and for a notebook."""
        model = ("fs.models.mlp(data.num_features, hidden=(16,), classes=len(data.classes))"
                 if self.model == "mlp" else
                 "fs.models.logistic_regression(data.num_features, classes=len(data.classes))")
        stages = []
        if self.private or self.encryption != "off":
            stages += [f'fs.privacy.clip({self.l2_bound!r}, unit="record"),',
                       f"fs.privacy.quantise(bits={_RING_BITS}),"]
        if self.private:
            stages.append("fs.privacy.discrete_gaussian(noise, missing_shares="
                          f"{self.missing_shares}),")
        if self.encryption != "off":
            name, arguments, options = self._scheme()
            given = ", ".join([*map(repr, arguments),
                               *(f"{key}={value!r}" for key, value in options.items())])
            stages.append(f"fs.he.encrypt(fs.he.{name}({given})),")
        lines = ["import optax", "import fedjax_secure as fs", "",
                 self._data_code(), f"model = {model}",
                 f"rate = {self.expected_batch} / len(data.y)"]
        if self.private:
            lines += [
                "noise = fs.privacy.calibrate(", f"    target_epsilon={self.target_epsilon!r}, "
                f"dp_delta={self.dp_delta!r}, rounds={self.rounds}, sampling_rate=rate)"]
        lines += ["aggregation = fs.chain(", *(f"    {stage}" for stage in stages), ")"]
        if self.private:
            own = self.own_budget or self.seed is not None
            where = ""
            if own:
                label = "simulation" if self.seed is not None else "own"
                where = f',\n    folder="run/budget", label="{label}"'
            lines += ["budget = fs.privacy.Budget.open(",
                      "    data.population_fingerprint, data.unit, "
                      f"epsilon={self.target_epsilon!r}, dp_delta={self.dp_delta!r}{where})"]
        budget = "budget=budget, " if self.private else ""
        lines += [
            "federation = fs.Federation(",
            f"    model, data, fs.algorithms.fed_sgd(optax.sgd({self.learning_rate!r}, "
            "momentum=0.9)), aggregation,",
            f"    selection=fs.selection.poisson_records(rate), {budget}",
            '    ledger=fs.ledger.embedded("run/ledger.log"), folder="run/run", '
            f"seed={self.seed!r})",
            "state = federation.init()",
            f"for state, record in federation.run(state, rounds={self.rounds}):",
            '    print(record.round, record.metrics["mean_accuracy"], '
            'record.dp.get("epsilon"))']
        return "\n".join(lines)


def _require(name: str, holds: bool, need: str, found: object) -> None:
    if not holds:
        raise ParameterError(f"`{name}`", need=need, found=repr(found), fix=f"Change `{name}`.")


def _whole(name: str, value: object, low: int, high: int) -> None:
    holds = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(name, holds, f"a whole number from {low} to {high}", value)


def _number(name: str, value: object, low: float, high: float) -> None:
    holds = (isinstance(value, int | float) and not isinstance(value, bool)
             and math.isfinite(value) and low <= value <= high)
    _require(name, holds, f"a number from {low:g} to {high:g}", value)
