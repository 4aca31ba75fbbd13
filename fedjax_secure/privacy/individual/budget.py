"""Budgets on disk for people who allow different epsilons: nobody exceeds their own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_secure.core.errors import BudgetError, SpecError
from fedjax_secure.core.opening import write_durably

from ..accounting import Adjacency, Spend
from ..budget import Budget, BudgetEntry, file_name, settled_groups_path, since_reset
from .plan import IndividualPlan, integer_norm

if TYPE_CHECKING:
    import pandas as pd


class IndividualBudget:
    """A budget for each group of a dataset's people, spent together.

    It takes the place of a :class:`~fedjax_secure.privacy.Budget` in a federation that draws by
    ``fs.selection.poisson_records_by_group(...)`` or, where each client is one of the people,
    ``poisson_clients_by_group(..., everyone_answers=True)`` (or clips by group). Each group's part
    is a ``Budget`` of its own, with all that one guarantees.

    Guarantees:
        - For each group, the spends of all runs together are (its epsilon, dp_delta)-DP for each
          of its people: a round that would break this for any group is refused, and nothing is
          spent on any.
        - :meth:`spend` returns when all groups' spends are on disk. A process that is killed in
          between leaves some groups charged for a round that was not released: never the other
          way round. Spending on the round again completes it, and counts once.

    Assumes:
        A person's group is a function of that person's own data, or of their wish, settled before
        the first run: people who change their group would start anew, so the first spend settles
        everyone's, and others are refused until a reset. A dataset has one kind of budget: one that
        was spent from uniformly is refused, and so is a uniform budget after the first spend here.
        The budgets' folder holds a salted digest of the groups, which is not for others to read.

    Example:
        >>> import tempfile
        >>> from fedjax_secure.privacy.individual import sample
        >>> plan = sample({"careful": 1.0, "others": 3.0}, shares={"careful": 0.5, "others": 0.5},
        ...               sampling_rate=0.1, rounds=10, dp_delta=1e-4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     budget = IndividualBudget.open("sha256:12ab", "patient", plan, groups=[0, 1, 1],
        ...                                    folder=folder, label="demo")
        ...     round_cost = Spend(plan.noise_multiplier, max(plan.sampling_rates), "patient")
        ...     for number in range(1, 11):
        ...         entry = budget.spend("run", number, round_cost)
        ...     [round(epsilon, 2) for epsilon in budget.spent_by_group.values()]
        [1.0, 3.0]
    """

    def __init__(self, plan: IndividualPlan, groups: np.ndarray, parts: Mapping[str, Budget],
                 fingerprint: str, unit: str):
        self.plan, self.groups = plan, groups
        self._parts, self._fingerprint, self._unit = dict(parts), fingerprint, unit

    @classmethod
    def open(
        cls, fingerprint: str, unit: str, plan: IndividualPlan, *, groups: Sequence[int],
        label: str | None = None, folder: str | os.PathLike[str] | None = None,
    ) -> IndividualBudget:
        """Opens the groups' budgets, and creates those that do not exist.

        Args:
            fingerprint: of the dataset, as for ``Budget.open``.
            unit: whose privacy it is.
            plan: the run's; its targets are the budgets, fixed when they are created.
            groups: ``[people]``, the number of each person's group, in the dataset's order.
            label, folder: as for ``Budget.open``.

        Returns:
            The budget.

        Raises:
            BudgetError: a group's budget exists with another epsilon or dp_delta; the people of
                this dataset had other groups before; their privacy was spent from uniformly.
            SpecError: groups that the plan does not have.
        """
        if not isinstance(plan, IndividualPlan):
            raise SpecError("IndividualBudget.open", need="a plan, as fs.privacy.individual."
                            "sample(...) or scale(...) gives it", found=type(plan).__name__,
                            fix="Make a plan, or read one with IndividualPlan.from_dict(...).")
        numbers = _checked_groups(groups, len(plan.groups))
        parts = {group.name: Budget.open(
            fingerprint, f"{unit} ({group.name})", epsilon=group.target_epsilon,
            dp_delta=plan.dp_delta, label=label, folder=folder) for group in plan.groups}
        made = cls(plan, numbers, parts, fingerprint, unit)
        made._require_settled()
        _refuse_uniform(made._some, fingerprint, unit, label)
        return made

    # -- what it is, as a federation asks a Budget --------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Digest of the dataset it belongs to."""
        return self._fingerprint

    @property
    def unit(self) -> str:
        """Whose privacy it is."""
        return self._unit

    @property
    def label(self) -> str | None:
        """None for the real budget; else the name of the one beside it."""
        return self._some.label

    @property
    def adjacency(self) -> Adjacency:
        """Which neighbouring datasets the guarantees compare."""
        return self._some.adjacency

    @property
    def dp_delta(self) -> float:
        """The delta of everyone's guarantee."""
        return self._some.dp_delta

    @property
    def epsilon(self) -> float:
        """The largest epsilon that any group allows."""
        return max(part.epsilon for part in self._parts.values())

    @property
    def spent(self) -> float:
        """The largest epsilon that any group has spent; read from disk each time."""
        return max(self.spent_by_group.values())

    @property
    def spent_by_group(self) -> dict[str, float]:
        """What each group's people have spent; read from disk each time."""
        return {name: part.spent for name, part in self._parts.items()}

    @property
    def parts(self) -> Mapping[str, Budget]:
        """Each group's own budget."""
        return dict(self._parts)

    def entries(self) -> tuple[BudgetEntry, ...]:
        """The releases that all groups have paid for: those of the group that pays last."""
        return self._last.entries()

    def remaining_rounds(self, spend: Spend) -> int:
        """How many more rounds like this one fit, for all groups that it draws."""
        return min(self._parts[name].remaining_rounds(cost)
                   for name, cost in self._costs(spend).items())

    def limited_plan(self) -> IndividualPlan:
        """The plan for a further run on the same people, by what each group has left.

        A group with too little left is drawn more seldom; one whose budget is used up never again.
        """
        return self.plan.limited({
            name: [entry.spend for entry in since_reset(part.entries()) if entry.spend]
            for name, part in self._parts.items()})

    def check(self, spend: Spend, rounds: int) -> None:
        """Refuses, before a run begins, a run that any group's budget does not hold.

        Args:
            spend: of one round, as the chain costs it: of the widest bound and the largest rate.
            rounds: how many of them the run will take.

        Raises:
            BudgetError: they do not fit; names the group.
        """
        done = _releases(self._last)
        for name, cost in self._costs(spend).items():
            # A round that was being paid for when the process was killed is paid for in part.
            ahead = rounds - len(_releases(self._parts[name]) - done)
            if ahead > 0:
                self._parts[name].check(cost, ahead)

    def spend(self, run_id: str, round: int, spend: Spend, *, attempt: int = 0) -> BudgetEntry:
        """Spends on one round for every group, before anything of the round is decrypted.

        Args:
            run_id, round, attempt: which release it is, as for ``Budget.spend``.
            spend: of one round, as the chain costs it.

        Returns:
            The last group's entry, which is on disk, as all others' are.

        Raises:
            BudgetError: it would overspend some group's budget, or these people's privacy was
                spent from uniformly or by other groups. Then nothing is spent.
        """
        costs = self._costs(spend)
        self._settle()
        for name, cost in costs.items():
            if (run_id, round, attempt) not in _releases(self._parts[name]):
                self._parts[name].check(cost, 1)
        entries = [self._parts[name].spend(run_id, round, cost, attempt=attempt)
                   for name, cost in costs.items()]
        return entries[-1]

    def reset(self, *, reason: str, by: str) -> None:
        """Starts counting from zero again for every group; see ``Budget.reset``."""
        for part in self._parts.values():
            part.reset(reason=reason, by=by)
        self._settled_path.unlink(missing_ok=True)

    def require_drawn_by(
        self, groups: Any, rates: Sequence[float] | None, *,
        own_bounds: np.ndarray | None = None, unit_l2: float | None = None,
        scale: float = 1.0, dim: int = 1,
    ) -> None:
        """Refuses a federation whose rounds treat people otherwise than this budget charges them.

        Args:
            groups: ``[people]``, the groups' numbers by which a selection draws; None: it draws
                everyone alike.
            rates: by which it draws each group; None likewise.
            own_bounds: ``[people]``, the norm that each one's vector is clipped to before it is
                rounded; None: everyone's is the chain's.
            unit_l2, scale, dim: of the chain: the widest norm of integers, which the noise is
                measured by; integer units per model unit; values of an update.

        Raises:
            BudgetError: they differ from this budget's.
        """
        planned = self.plan.sampling_rates
        drawn = (len(set(planned)) == 1 if groups is None else
                 np.array_equal(np.asarray(groups), self.groups) and tuple(rates or ()) == planned)
        if not drawn:
            raise BudgetError(
                "an individual budget", need="a selection that draws the people that it charges, "
                "by the plan's rates", found="one by other groups or rates" if groups is not None
                else "one that draws everyone alike",
                fix="Use fs.selection.poisson_records_by_group(groups, plan.sampling_rates, "
                "mean_rate=plan.mean_rate), or for clients poisson_clients_by_group(..., "
                "everyone_answers=True), with the groups that this budget was opened with.")
        for number, group in enumerate(self.plan.groups):
            members = self.groups == number
            if group.l2_share == 1.0 or not members.any():
                continue
            clipped = (own_bounds is not None and len(own_bounds) == len(self.groups)
                       and unit_l2 is not None and integer_norm(
                           float(np.max(own_bounds[members])), scale, dim)
                       <= group.l2_share * unit_l2 * (1 + 1e-9))
            if not clipped:
                raise BudgetError(
                    "an individual budget", need=f"group {group.name!r} clipped to its own bound, "
                    f"one by one, as the plan has it, for {dim} values", found="a wider bound",
                    fix="Use fs.algorithms.fed_sgd(..., record_bounds=plan.record_bounds(...)) and "
                    "the default clip(..., unit='record'); for clients with_client_bounds("
                    f"algorithm, plan.client_bounds(..., dim={dim})); or a plan of "
                    "individual.sample(...).")

    # -- what people ask ----------------------------------------------------------------------

    def report(self) -> pd.DataFrame:
        """Each group's epsilon: allowed, spent, left, and in how many rounds it could be drawn.

        All of it is public. How often one person **was** drawn is not: the coins are secret, and
        what sampling gains rests on that.
        """
        import pandas as pd

        rows = []
        for group in self.plan.groups:
            part = self._parts[group.name]
            spent = part.spent
            rows.append({
                self._unit + "s": group.name, "epsilon allowed": part.epsilon,
                "epsilon spent": spent, "epsilon left": max(part.epsilon - spent, 0.0),
                "dp_delta": part.dp_delta, "sampling rate": group.sampling_rate,
                "clipping bound": group.l2_share, "rounds": len(_releases(part))})
        return pd.DataFrame(rows).set_index(self._unit + "s")

    def report_people(self) -> pd.DataFrame:
        """One row a person: their group and epsilon. For the data owner: groups may be sensitive.

        A person's row is the person's own to see; whole, it tells everyone's group.
        """
        by_group = self.report().reset_index(drop=True)
        people = by_group.iloc[self.groups].reset_index(drop=True)
        people.insert(0, "group", [self.plan.names[number] for number in self.groups])
        people.index.name = self._unit
        return people

    def _repr_html_(self) -> str:
        return self.report().round(4).to_html()

    def __repr__(self) -> str:
        return f"IndividualBudget(unit={self._unit!r}, groups={', '.join(self._parts)})"

    # -- inside -------------------------------------------------------------------------------

    @property
    def _some(self) -> Budget:
        return next(iter(self._parts.values()))

    @property
    def _settled_path(self) -> Path:
        return settled_groups_path(self._some.path.parent, self._fingerprint, self._unit,
                                   self.label)

    def _require_settled(self) -> bool:
        """Refuses groups other than those that were spent from; False where none was yet."""
        try:
            settled = json.loads(self._settled_path.read_text("utf-8"))
        except FileNotFoundError:
            return False
        if settled["digest"] != self._digest(settled["salt"]):
            raise BudgetError(
                "an individual budget", need="each person in the group that was spent from before",
                found="other groups, or other names of them", fix="Open it with the groups of the "
                "first run: who changes their group would start anew.")
        return True

    def _settle(self) -> None:
        """Writes down, before the first spend, who is in which group; never over another's."""
        if self._require_settled():
            return
        salt = secrets.token_hex(32)
        temporary = self._settled_path.with_suffix(f".{secrets.token_hex(8)}")
        write_durably(temporary, json.dumps({"salt": salt, "digest": self._digest(salt)}).encode())
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(temporary, self._settled_path)
        temporary.unlink()
        self._require_settled()
        _refuse_uniform(self._some, self._fingerprint, self._unit, self.label)

    def _digest(self, salt: str) -> str:
        names = [self.plan.names[number] for number in self.groups.tolist()]
        return hashlib.sha256(json.dumps([salt, names]).encode()).hexdigest()

    @property
    def _last(self) -> Budget:
        drawn = [group.name for group in self.plan.groups if group.sampling_rate > 0]
        return self._parts[drawn[-1]]

    def _costs(self, spend: Spend) -> dict[str, Spend]:
        """What a round costs each group that it draws, in the group's own unit."""
        if spend.unit != self._unit:
            raise BudgetError("an individual budget", need=f"spends of unit {self._unit!r}",
                              found=f"unit {spend.unit!r}",
                              fix="Open a budget of its own for it.")
        return {name: dataclasses.replace(cost, unit=self._parts[name].unit)
                for name, cost in self.plan.spends(spend).items()}


def _releases(part: Budget) -> set[tuple[str | None, int | None, int | None]]:
    return {(entry.run_id, entry.round, entry.attempt)
            for entry in since_reset(part.entries()) if entry.spend}


def _refuse_uniform(part: Budget, fingerprint: str, unit: str, label: str | None) -> None:
    """Refuses people whose privacy was spent from uniformly, by the budget beside these."""
    path = part.path.parent / file_name(fingerprint, unit, label)
    if not path.exists():
        return
    header = json.loads(path.read_text("utf-8").split("\n", 1)[0])
    uniform = Budget.open(
        fingerprint, unit, epsilon=header["epsilon"], dp_delta=header["dp_delta"],
        adjacency=header["adjacency"], label=label, folder=path.parent)
    if _releases(uniform):
        raise BudgetError(
            "an individual budget", need="people whose privacy was not spent from uniformly",
            found=f"{len(_releases(uniform))} rounds in the budget of all {unit}s alike",
            fix="Go on with that budget; the two do not add up by themselves.")


def _checked_groups(groups: Sequence[int], most: int) -> np.ndarray:
    numbers = np.asarray(groups)
    if (numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer)
            or numbers.min() < 0 or numbers.max() >= most):
        raise SpecError("an individual budget", need=f"a number from 0 to {most - 1} for each "
                        "person", found=f"{np.shape(groups)}, {numbers.dtype}",
                        fix="Number groups in the plan's order; see assign(...).")
    numbers = numbers.astype(np.int64)
    numbers.flags.writeable = False
    return numbers
