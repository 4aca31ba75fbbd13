"""What rounds cost one unit: the events that accountants compose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import dp_accounting

from .arguments import is_count, is_positive, require

Adjacency = Literal["add_remove", "replace_one"]
Sampling = Literal["poisson", "fixed_size", "truncated_poisson"]

RELATIONS = {
    "add_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}

#: The numbers that each kind of mechanism needs, besides a Gaussian's noise multiplier.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "gaussian": (),
    "skellam": ("l1", "l2", "variance"),
    "pure": ("epsilon",),
    "approximate": ("dp_delta", "epsilon"),
    "concentrated": ("rho",),
    "renyi": ("divergence", "order"),
    "shuffled": ("epsilon", "reports"),
}

# Sampling that a theorem covers, by kind: pairs of (sampling, adjacency), see losses.py.
_BOTH = ("add_remove", "replace_one")
_COVERED: dict[str, set[tuple[str, str]]] = {
    "gaussian": {(sampling, adjacency) for adjacency in _BOTH
                 for sampling in ("poisson", "fixed_size", "truncated_poisson")},
    "skellam": {("poisson", "add_remove"), ("fixed_size", "add_remove"),
                ("fixed_size", "replace_one")},
    "pure": {("poisson", "add_remove"), ("fixed_size", "replace_one")},
    "approximate": {("poisson", "add_remove"), ("fixed_size", "replace_one")},
    "concentrated": set(), "renyi": set(), "shuffled": set(),
}


@dataclasses.dataclass(frozen=True)
class Spend:
    """What `count` equal rounds cost one unit: the events that the accountant composes.

    Assumes:
        The sampling is as stated. Accounting one kind of sampling as another reports an epsilon
        that is too small by a factor: fixed-size sampling taken for Poisson sampling told 7 where
        the truth was above 31.

    Args:
        noise_multiplier: stddev of the noise in the sum over one unit's L2 bound; None for kinds
            other than ``"gaussian"``.
        sampling_rate: probability with which each unit takes part in a round; for
            ``"fixed_size"`` the cohort's size over the population's. 1 is full participation,
            whatever `sampling` says.
        unit: whose privacy it is, for example ``"patient"``, ``"record"`` or ``"client"``.
        count: number of equal rounds.
        adjacency: ``"add_remove"`` (one unit is there or not) or ``"replace_one"`` (one unit's
            data changes, which moves the sum by up to twice the bound; the accountant doubles it).
        log_ratio: bound, for one round, on ``|log(true pmf / accounted pmf)|`` of all that the
            round releases; see :class:`DiscreteGaussianSum`. 0 for an exact mechanism.
        total_variation: bound, for one round, on the total-variation distance between the noise
            drawn and the noise accounted.
        kind: ``"gaussian"``; ``"skellam"`` (parameters ``l1`` and ``l2``, one unit's bounds in
            integer units, and ``variance`` of the summed noise); ``"pure"`` (``epsilon`` of any
            epsilon-DP mechanism under this adjacency, such as discrete Laplace noise or
            randomised response); ``"approximate"`` (``epsilon`` and ``dp_delta`` of any
            mechanism); ``"shuffled"`` (``epsilon`` of a local mechanism, and the number of
            ``reports`` that are shuffled); ``"concentrated"`` (``rho``) and ``"renyi"``
            (``divergence`` of one ``order``), what a Renyi filter keeps.
        parameters: the kind's numbers, as pairs or a mapping.
        sampling: ``"poisson"`` (each unit alone, with a secret coin), ``"fixed_size"`` (a secret,
            uniformly drawn cohort of a fixed size, without replacement) or ``"truncated_poisson"``
            (a Poisson cohort cut at random to at most `largest_cohort` units).
        population: number of units that are drawn from; for ``"truncated_poisson"`` only.
        largest_cohort: where a Poisson cohort is cut; for ``"truncated_poisson"`` only.

    Raises:
        SpecError: a value out of range, or sampling for which no theorem is known here.

    Example:
        >>> Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient").count
        1
        >>> vote = Spend(None, 1.0, "client", kind="pure", parameters={"epsilon": 0.5})
        >>> vote.parameter("epsilon")
        0.5
    """

    noise_multiplier: float | None
    sampling_rate: float
    unit: str
    count: int = 1
    adjacency: Adjacency = "add_remove"
    log_ratio: float = 0.0
    total_variation: float = 0.0
    kind: str = "gaussian"
    parameters: tuple[tuple[str, float], ...] = ()
    sampling: Sampling = "poisson"
    population: int | None = None
    largest_cohort: int | None = None

    def __post_init__(self) -> None:
        where = "Spend"
        require(isinstance(self.kind, str) and self.kind in PARAMETERS, where,
                f"a kind among {sorted(PARAMETERS)}",
                f"kind={self.kind!r}", "Account another mechanism by its own (epsilon, dp_delta): "
                'kind="approximate".')
        if self.kind == "gaussian":
            require(is_positive(self.noise_multiplier), where, "noise_multiplier > 0",
                    f"noise_multiplier={self.noise_multiplier!r}",
                    "A round without noise has no epsilon: add noise or do not account it.")
        else:
            require(self.noise_multiplier is None, where,
                    f"noise_multiplier=None for kind {self.kind!r}",
                    f"noise_multiplier={self.noise_multiplier!r}",
                    f"Give its noise as parameters: {', '.join(PARAMETERS[self.kind])}.")
        require(is_positive(self.sampling_rate) and self.sampling_rate <= 1, where,
                "sampling_rate in (0, 1]", f"sampling_rate={self.sampling_rate!r}",
                "Give the probability with which a unit takes part in one round.")
        require(isinstance(self.unit, str) and bool(self.unit), where, "a unit, as a word",
                f"unit={self.unit!r}", 'Say whose privacy it is, for example unit="patient".')
        require(is_count(self.count), where, "count >= 1, an integer",
                f"count={self.count!r}", "Give the number of equal rounds.")
        require_adjacency(where, self.adjacency)
        for name in ("log_ratio", "total_variation"):
            value = getattr(self, name)
            require(isinstance(value, Real) and math.isfinite(value) and float(value) >= 0, where,
                    f"{name} >= 0", f"{name}={value!r}", "Use 0 for an exact mechanism.")
        require(self.kind != "shuffled" or self.adjacency == "replace_one", where,
                'adjacency "replace_one" for shuffled reports, whose number everyone sees',
                repr(self.adjacency), "Say that one person's value changes.")
        object.__setattr__(self, "parameters", _pairs(self.kind, self.parameters))
        self._check_sampling(where)
        for name in ("sampling_rate", "log_ratio", "total_variation"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.noise_multiplier is not None:
            object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "count", int(self.count))

    def _check_sampling(self, where: str) -> None:
        known = ("poisson", "fixed_size", "truncated_poisson")
        require(self.sampling in known, where, f"sampling among {list(known)}",
                f"sampling={self.sampling!r}",
                "Account any other sampling as full participation: sampling_rate=1.")
        require(self.sampling_rate == 1 or (self.sampling, self.adjacency) in _COVERED[self.kind],
                where, f"sampling that a theorem covers for kind {self.kind!r}: "
                + ", ".join(f"{s} with {a}" for s, a in sorted(_COVERED[self.kind])),
                f"sampling={self.sampling!r} with adjacency={self.adjacency!r}",
                "Account it as full participation (sampling_rate=1), which always holds.")
        if self.sampling == "truncated_poisson":
            for name in ("population", "largest_cohort"):
                value = getattr(self, name)
                require(is_count(value), where, f"{name} >= 1 for a truncated cohort",
                        f"{name}={value!r}",
                        "Cutting a Poisson cohort changes epsilon: say where it is cut, and how "
                        "many units there are.")
                object.__setattr__(self, name, int(value))
        else:
            require(self.population is None and self.largest_cohort is None, where,
                    f"neither population nor largest_cohort for {self.sampling!r} sampling",
                    f"population={self.population!r}, largest_cohort={self.largest_cohort!r}",
                    'Where cohorts are cut, say sampling="truncated_poisson".')

    def parameter(self, name: str) -> float:
        """One of the kind's numbers; raises KeyError for a name that the kind has not."""
        return dict(self.parameters)[name]

    @property
    def step(self) -> Spend:
        """One such round without slack, of a nameless unit: equal steps cost the same."""
        return dataclasses.replace(self, unit="unit", count=1, log_ratio=0.0, total_variation=0.0)

    @property
    def dp_event(self) -> dp_accounting.DpEvent | None:
        """The event in dp-accounting's terms, without slack; None for a kind it does not know.

        A Gaussian event's multiplier is the stddev over the sensitivity of one unit that is added
        or removed. dp-accounting's PLD accountant doubles that sensitivity under ``REPLACE_ONE``;
        its RDP accountant does not. See :func:`compose` for accounts in which both are right.
        """
        if self.kind != "gaussian" or (self.sampling == "fixed_size" and self.sampling_rate < 1):
            return None
        assert self.noise_multiplier is not None
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, event)
            if self.sampling == "truncated_poisson":
                assert self.population is not None and self.largest_cohort is not None
                event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
                    self.population, self.sampling_rate, self.largest_cohort,
                    self.noise_multiplier)
        return dp_accounting.SelfComposedDpEvent(event, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for a file; ``Spend(**d)`` reads it back exactly.

        Fields of later versions are there only where they differ from their defaults.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self)[7:]:
            if fields[field.name] == field.default:
                del fields[field.name]
        if "parameters" in fields:
            fields["parameters"] = dict(self.parameters)
        return fields

    def __str__(self) -> str:
        numbers = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in
                   (("noise_multiplier", self.noise_multiplier), *self.parameters)
                   if value is not None]
        how = "" if self.sampling == "poisson" else f" ({self.sampling.replace('_', ' ')})"
        kind = "" if self.kind == "gaussian" else f"{self.kind} "
        return (f"{kind}{', '.join(numbers)}, sampling rate {self.sampling_rate:.4g}{how}, "
                f"count {self.count}")


def _pairs(kind: str, given: Mapping[str, float] | Iterable[tuple[str, float]],
           ) -> tuple[tuple[str, float], ...]:
    where, wanted = f"Spend of kind {kind!r}", PARAMETERS[kind]
    found: dict[str, Any]
    try:
        found = dict(given)
    except (TypeError, ValueError):
        found = {"": given}
    require(tuple(sorted(found, key=str)) == wanted, where,
            f"parameters {', '.join(wanted) or 'none'}", f"parameters={given!r}",
            'Give them as a mapping, for example {"epsilon": 0.5}.')
    for name, value in found.items():
        require(is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
                "Give a positive number.")
    require(found.get("dp_delta", 0.5) < 1, where, "dp_delta < 1",
            f"dp_delta={found.get('dp_delta')!r}", "Give the mechanism's own delta.")
    return tuple((name, float(found[name])) for name in wanted)


def require_adjacency(where: str, adjacency: object) -> None:
    """Refuses what is no neighbouring relation that accountants know."""
    require(isinstance(adjacency, str) and adjacency in RELATIONS, where,
            f"adjacency among {sorted(RELATIONS)}",
            f"adjacency={adjacency!r}",
            'Use "add_remove" unless the number of units is public and fixed.')
