"""What a history of rounds has cost, from the records that they left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from fedjax_secure.core.errors import SpecError

from .arguments import is_count, require, require_dp_delta
from .compose import Accountant, Total, total
from .spend import Spend


class _Recorded(Protocol):
    """What is read of a round's record."""

    run: str
    round: int
    dp: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Spent(Total):
    """What a history has cost one unit, and what that was computed from.

    Attributes:
        epsilon, dp_delta, accountant, unit, adjacency, spends: see :class:`Total`.
        runs: ids of the runs.
        rounds: number of recorded rounds.
        releases: number of releases that were composed: rounds, and those paid for twice.
        label: the budget's label that all rounds share; empty for the data's own budget.
        notes: what the epsilon does not include, in sentences.

    Example:
        >>> dp = {"spend": Spend(1.0, 0.1, "patient").to_dict(), "dp_delta": 1e-3, "releases": 1}
        >>> history = spent([{"run": "00ab", "round": 1, "dp": dp}])
        >>> print(f"epsilon {history.epsilon:.2f} for one {history.unit}, {history.rounds} round")
        epsilon 0.65 for one patient, 1 round
    """

    runs: tuple[str, ...]
    rounds: int
    releases: int
    label: str
    notes: tuple[str, ...] = ()


def spent(
    history: Iterable[_Recorded | Mapping[str, Any]], dp_delta: float | None = None, *,
    releases: Mapping[int, int] | None = None, accountant: Accountant | None = None,
) -> Spent:
    """Epsilon of a whole history of rounds, of one run or of many, from their records.

    Use it to answer, years later, what all the runs on one dataset have cost together: records are
    kept with the models, and say by themselves what each round spent.

    Guarantees:
        The recorded rounds, together, are (``epsilon``, dp_delta)-differentially private for one
        unit. For the rounds of one budget it is the epsilon that the budget says.

    Assumes:
        The records are those of all rounds that touched the data; :class:`Budget` sees to that by
        being written before a round is opened. See :func:`total` on adaptive choices.

    Args:
        history: :class:`RoundRecord` objects, or mappings with ``run``, ``round`` and ``dp`` (such
            as the JSON of a record), in any order. A round told twice counts once.
        dp_delta: the delta of the guarantee; None takes the one that all records state.
        releases: how often each round of a single run was put to the clients, by another witness
            such as the ledger: ``{r: ledger.attempt(r) for r in
            range(1, ledger.confirmed_rounds() + 1)}``. Rounds count as often as the larger of both
            says.
        accountant: see :func:`compose`.

    Returns:
        What was spent.

    Raises:
        SpecError: records without privacy (they are named), of several units, adjacencies or
            budgets' labels; two different records of one round; rounds that only `releases` knows.

    Example:
        >>> spend = Spend(1.0, 0.1, "patient")
        >>> records = [{"run": "00ab", "round": r, "dp": {
        ...     "spend": spend.to_dict(), "dp_delta": 1e-3, "releases": r}} for r in (1, 2, 3)]
        >>> result = spent(records)
        >>> round(result.epsilon, 2), result.rounds, result.unit
        (0.98, 3, 'patient')
        >>> spent(records, releases={1: 1, 2: 2, 3: 1}).releases  # round 2 went out twice
        4
    """
    where = "spent"
    rounds = _by_run(history, where)
    bare = [f"run {run} round {number}" for (run, number), dp in rounds.items() if not dp]
    require(not bare, where, "records of rounds with differential privacy",
            f"none claimed by {', '.join(bare[:5])}{', ...' if len(bare) > 5 else ''} "
            f"({len(bare)} of {len(rounds)} rounds)",
            "What these rounds told of the same data has no bound, and then nothing has. Leave "
            "them out only if they touched other data.")
    at = _one(rounds, "dp_delta", where, dp_delta)
    require_dp_delta(where, at)
    label = _one(rounds, "label", where, None)
    runs = tuple(dict.fromkeys(run for run, _ in rounds))
    require(releases is None or len(runs) <= 1, where, "one run, for the releases of its rounds",
            f"{len(runs)} runs", "Ask for each run on its own.")
    spends, count, early = [], 0, 0
    for run in runs:
        paid = 0
        numbers = [number for of, number in rounds if of == run]
        unknown = sorted(set(releases or ()) - set(numbers))
        require(not unknown, where, "a record of every round that was released",
                f"none of rounds {unknown[:10]}", "Add the records of these rounds.")
        for number in numbers:
            dp = rounds[run, number]
            one, whole = _spend_of(dp, f"{where}: run {run} round {number}")
            early += not whole
            # The record says how many releases the run had paid for by then.
            by_then = dp.get("releases", paid + 1)
            require(is_count(by_then), f"{where}: run {run} round {number}",
                    "a number of releases, 1 or more", repr(by_then), "Restore the record.")
            times = max(by_then - paid, 1, (releases or {}).get(number, 1))
            paid = max(by_then, paid + 1)
            spends.append(dataclasses.replace(one, count=one.count * times))
            count += times
    result = total(spends, at, accountant=accountant, where=where)
    notes = (f"The records of {early} rounds are of an early version, which did not keep the slack "
             "of discrete noise; it is not included.",) if early else ()
    return Spent(**vars(result), runs=runs, rounds=len(rounds), releases=count, label=label,
                 notes=notes)


def _by_run(history: Iterable[Any], where: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Each round's figures, in the order of rounds, runs as they come first."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for record in history:
        run, number, dp = (record.get(name) if isinstance(record, Mapping) else
                           getattr(record, name, None) for name in ("run", "round", "dp"))
        require(isinstance(run, str) and is_count(number) and isinstance(dp, Mapping), where,
                "round records, with run, round and dp",
                f"{type(record).__name__} with run={run!r}, round={number!r}",
                "Give federation.records, or RoundRecord.from_json(line) of stored lines. "
                "Spend objects go to fs.privacy.compose(...).")
        assert isinstance(run, str) and isinstance(number, int) and isinstance(dp, Mapping)
        if found.setdefault((run, number), dp) != dp:
            raise SpecError(where, need=f"one record of run {run}, round {number}",
                            found="two that differ", fix="Find out which of them is true.")
    runs = list(dict.fromkeys(run for run, _ in found))
    return {key: found[key] for key in sorted(found, key=lambda key: (runs.index(key[0]), key[1]))}


def _one(rounds: Mapping[tuple[str, int], Mapping[str, Any]], name: str, where: str,
         given: Any) -> Any:
    if given is not None:
        return given
    missing = "" if name == "label" else None
    found = sorted({dp.get(name, missing) for dp in rounds.values()}, key=str)
    fixes = {"dp_delta": "Give the dp_delta at which to state the epsilon of all of them.",
             "label": "Rounds of labelled budgets (simulations, demos) are accounted on their own."}
    require(len(found) == 1 and found[0] is not None, where, f"records of one {name}",
            " and ".join(repr(value) for value in found) or "no records", fixes[name])
    return found[0]


def _spend_of(dp: Mapping[str, Any], where: str) -> tuple[Spend, bool]:
    """A record's spend, and whether the record holds all of it."""
    try:
        if "spend" in dp:
            return Spend(**dp["spend"]), True
        kind = dp.get("mechanism", "gaussian")
        return Spend(dp["noise_multiplier"] if kind == "gaussian" else None, dp["sampling_rate"],
                     dp["unit"], adjacency=dp["adjacency"], kind=kind,
                     parameters=dp.get("parameters", ()) if kind != "gaussian" else ()), False
    except (KeyError, TypeError) as error:
        raise SpecError(
            where, need="what the round spent: noise, sampling rate, unit and adjacency",
            found=f"a record without ({error})", fix="Restore the record.") from None
