r"""Every person's own privacy account, by what the person's data really contributed.

A worst-case account charges everyone, each round, for a contribution of the full clipping norm.
Most people's gradients are shorter. A Renyi filter charges each person for their own contribution
and leaves a person out when their own budget holds no more; then others go on, and everyone's
guarantee holds although the rounds, the norms and who is left out all depend on the data and on
what was released before.

Why it holds (Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter",
arXiv 2008.11193; their algorithm of adaptive composition with individual filtering), step by step,
for one person and the order a of the filter:

1. *The filter.* If in each round the Renyi divergence of order a between the round's output with
   and without the person, whatever the others' data and given all earlier outputs, is at most a
   cost that is a function of the person's own data and of earlier outputs, and the person takes no
   part in rounds that would bring their summed costs above B, then all outputs together are
   (a, B)-Renyi-DP for that person.
2. *What a round costs.* Integers v are added to a sum that gets discrete Gaussian noise of
   parameter sigma. With and without them the divergence is at most a |v|^2 / (2 sigma^2), for
   integer v (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, for one value, coordinate by
   coordinate), whatever the others' sum. This is proportional to a, so one rule stops at the same
   moment for all orders: the person's rounds are rho-concentrated DP with
   rho = B / a, the sum of |v|^2 / (2 sigma^2).
3. *Rounding.* v is a random rounding of a clipped vector. Tell the attacker the rounding's random
   words too, those of everyone, before the sum. They do not depend on data, so they cost nothing;
   and given them v is a function of the person's own data and of what is known. So the norm of the
   **rounded** vector may be charged, as it is.
4. *Sampling.* Where each person takes part with a secret coin of probability q, the cost is the
   divergence of the subsampled Gaussian at sigma / |v| (Mironov, Talwar, Zhang 2019), and it is
   charged in **every** round, whether the coin fell so or not: charged only when drawn, the account
   would depend on the coin and tell it. So norms of all people are needed, not only of those drawn;
   where they are not computed, charge the clipping bound. Here the order is fixed beforehand, and
   whole: then the divergence of the *discrete* noise is a binomial sum of moments of order 2 to a,
   each at most the Gaussian's by step 2, and the other direction's is no larger, since reflecting
   the grid at v / 2 exchanges noise around 0 and around v (Mironov, Talwar, Zhang 2019, where the
   two directions are compared).
5. *Who sees what.* Costs, and who was left out when, are functions of records: **secret**. They
   stay with the data owner and are in no record, log or report. A person may be told their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from fedjax_secure.core.errors import BudgetError
from fedjax_secure.core.opening import write_durably

from ..accounting import ORDERS, Spend, renyi_of
from ..accounting.arguments import is_positive, require, require_dp_delta

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_FORMAT = "fedjax-secure individual accounts 1"
_NORM_STEPS = 1024  # norms are rounded up to one of these where sampling is accounted
_LARGEST_NORM = 2.0**31


def divergence_for(epsilon: float, dp_delta: float, order: float) -> float:
    """The Renyi divergence of one order that gives (epsilon, dp_delta)-DP; 0 or less: none does.

    Source:
        Canonne, Kamath, Steinke 2020, arXiv 2004.00010, Proposition 12.
    """
    return epsilon - math.log1p(-1.0 / order) + math.log(dp_delta * order) / (order - 1.0)


def concentration_for(epsilon: float, dp_delta: float) -> float:
    """The largest rho for which rho-concentrated DP gives (epsilon, dp_delta)-DP.

    Example:
        >>> round(concentration_for(1.0, 1e-5), 4)
        0.0306
    """
    require(is_positive(epsilon), "a Renyi filter", "a positive epsilon", repr(epsilon),
            "Give what all rounds may cost a person.")
    require_dp_delta("a Renyi filter", dp_delta)
    return max(divergence_for(float(epsilon), dp_delta, order) / order for order in ORDERS)


@dataclasses.dataclass(frozen=True)
class RoundCost:
    """What a contribution of some norm costs a person in one round.

    Attributes:
        noise_stddev: parameter of the discrete Gaussian noise in the sum, integer units: of the
            shares that are sure to be there.
        largest_norm: of any person's integers.
        sampling_rate: probability with which a person takes part in a round.
        order: of the Renyi divergence in which costs are counted, whole where people are sampled
            (for discrete noise the bound is proved for those); None counts concentrated DP's
            rho, which serves all orders, and needs a sampling rate of 1.

    Raises:
        SpecError: a value out of range, or sampling without an order.
    """

    noise_stddev: float
    largest_norm: float
    sampling_rate: float = 1.0
    order: float | None = None

    def __post_init__(self) -> None:
        where = "RoundCost"
        for name in ("noise_stddev", "largest_norm", "sampling_rate"):
            require(is_positive(getattr(self, name)), where, f"{name} > 0",
                    f"{name}={getattr(self, name)!r}", "Give it in integer units.")
        require(self.largest_norm < _LARGEST_NORM and self.sampling_rate <= 1, where,
                f"norms below {_LARGEST_NORM:g} and a rate up to 1",
                f"{self.largest_norm!r}, {self.sampling_rate!r}", "Lower the scale.")
        require(self.sampling_rate == 1 or self.order is not None, where,
                "an order where people are sampled", "None",
                "Use best_order(...), fixed before the first round.")
        require(self.sampling_rate == 1 or float(self.order or 0).is_integer(), where,
                "a whole order where people are sampled", f"{self.order!r}", "Use best_order(...).")
        require(self.order is None or self.order > 1, where, "an order above 1", f"{self.order!r}",
                "Use best_order(...).")

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Costs of the norms j / 1024 of the largest, where there is no formula."""
        if self.order is None or self.sampling_rate == 1:
            return None
        found = [0.0]
        for step in range(1, _NORM_STEPS + 1):
            multiplier = self.noise_stddev / (self.largest_norm * step / _NORM_STEPS)
            one = Spend(multiplier, self.sampling_rate, "person")
            found.append(float(renyi_of(one, [self.order]).divergence[0]))
        return np.maximum.accumulate(np.array(found))

    def of(self, squared_norms: np.ndarray) -> np.ndarray:
        """The cost of contributions, from their exact squared norms in integer units.

        Args:
            squared_norms: int64 [people].

        Returns:
            float64 [people], each rounded up.
        """
        squares = np.asarray(squared_norms)
        require(np.issubdtype(squares.dtype, np.integer) and not np.any(squares < 0)
                and not np.any(squares > self.largest_norm**2), "RoundCost.of",
                f"whole squared norms from 0 to {self.largest_norm:g}^2", "others",
                "Give the norms of the rounded integers.")
        if self._table is None:
            order = 1.0 if self.order is None else self.order
            return squares * (order * (1 + 1e-14) / (2.0 * self.noise_stddev**2))
        steps = np.ceil(np.sqrt(squares) * (1 + 1e-14) / self.largest_norm * _NORM_STEPS)
        return self._table[np.minimum(steps.astype(np.int64), _NORM_STEPS)]

    def norms_within(self, budgets: np.ndarray) -> np.ndarray:
        """The largest squared norm that a budget holds: int64, 0 where it holds nothing.

        What :meth:`of` gives for the result is never above the budget.
        """
        left = np.maximum(np.asarray(budgets, np.float64), 0.0)
        largest = math.floor(self.largest_norm**2)
        if self._table is None:
            order = 1.0 if self.order is None else self.order
            squares = np.floor(left * (2.0 * self.noise_stddev**2 / (order * (1 + 1e-13))))
            return np.minimum(squares, largest).astype(np.int64)
        steps = np.searchsorted(self._table, left, side="right") - 1
        norms = steps * (self.largest_norm / _NORM_STEPS) * (1 - 1e-13)
        return np.minimum(np.floor(norms**2), largest).astype(np.int64)


def best_order(epsilon: float, *, dp_delta: float, noise_stddev: float, largest_norm: float,
               sampling_rate: float) -> float:
    """The order at which a budget holds the most rounds of full contributions.

    It is settled before the first round and depends on no data.

    Example:
        >>> 2 < best_order(2.0, dp_delta=1e-5, noise_stddev=100.0, largest_norm=100.0,
        ...                sampling_rate=0.1) < 64
        True
    """
    orders = np.array([order for order in ORDERS if order > 1 and (
        sampling_rate == 1 or float(order).is_integer())])
    one = Spend(noise_stddev / largest_norm, sampling_rate, "person")
    costs = renyi_of(one, orders).divergence
    budgets = np.array([divergence_for(epsilon, dp_delta, order) for order in orders])
    return float(orders[int(np.argmax(budgets / costs))])


class RenyiFilter:
    """The accounts of all people whose records one data owner holds.

    Guarantees:
        For each person, whatever the history, the charges never exceed the person's own budget: a
        charge that would is refused as a whole and nothing is written. When :meth:`charge`
        returns, it is on disk. Charging a release again with the same norms counts once.
        Processes that share the file charge it one after the other, and see each other's. With
        contributions bounded by :meth:`bounds`, all rounds together are (epsilon, dp_delta)-DP for
        that person, however later rounds depend on earlier ones (steps 1 to 5 of the module).

    Assumes:
        The file stays with the data owner: what it holds is computed from records and is secret.
        Each person has one account; people in two owners' data have two, which add up.

    Args:
        persons: what people are called, once each.
        epsilons: what all rounds may cost each of them: one number, or one a person.
        dp_delta: of everyone's guarantee.
        order: of the costs that will be charged; None for concentrated DP. See :class:`RoundCost`.
        path: where the accounts are kept, so that they outlive the process; None keeps them in
            memory only.

    Raises:
        SpecError: values out of range.
        BudgetError: the file belongs to other people, budgets or another order, or is damaged.

    Example:
        >>> accounts = RenyiFilter(("ann", "bob"), epsilons=(0.5, 2.0), dp_delta=1e-5)
        >>> cost = RoundCost(noise_stddev=500.0, largest_norm=100.0)
        >>> for number in range(1, 9):
        ...     allowed = accounts.bounds(cost)
        ...     entry = accounts.charge("run", number, cost, np.minimum(allowed, 50**2))
        >>> (accounts.bounds(cost) > 0).tolist(), accounts.epsilon_of("ann") <= 0.5
        ([False, True], True)

    Source:
        Feldman and Zrnic 2021, arXiv 2008.11193.
    """

    def __init__(self, persons: Sequence[str], *, epsilons: float | Sequence[float],
                 dp_delta: float, order: float | None = None,
                 path: str | Path | None = None):
        names = tuple(persons)
        require(bool(names) and all(isinstance(name, str) for name in names)
                and len(set(names)) == len(names), "RenyiFilter", "different names of people",
                f"{len(names)} names, {len(set(names))} different", "Number them if need be.")
        targets = np.broadcast_to(np.asarray(epsilons, np.float64), (len(names),))
        require_dp_delta("RenyiFilter", dp_delta)
        for target in np.unique(targets):
            require(is_positive(float(target)), "RenyiFilter", "positive epsilons",
                    f"{target!r}", "Give what all rounds may cost a person.")
        self._names = {name: place for place, name in enumerate(names)}
        self._order, self._dp_delta = order, float(dp_delta)
        self._epsilons = targets.copy()
        self._budgets = np.zeros(len(names))
        for target in np.unique(targets):
            budget = (concentration_for(target, dp_delta) if order is None
                      else divergence_for(target, dp_delta, order))
            require(budget > 0, "RenyiFilter", "budgets that the order can give",
                    f"epsilon {target:g} at dp_delta {dp_delta:g} and order {order}",
                    "Use best_order(...) for the smallest epsilon, or raise dp_delta.")
            self._budgets[targets == target] = budget
        self._spent = np.zeros(len(names))
        self._releases: dict[tuple[str, int, int], bytes] = {}
        self._path = None if path is None else Path(path)
        self._known = b""  # the file as it was last read
        if self._path is not None:
            self._create()
            self._read()

    @property
    def persons(self) -> tuple[str, ...]:
        """What people are called, in the order of their numbers."""
        return tuple(self._names)

    def bounds(self, cost: RoundCost) -> np.ndarray:
        """The squared norm that each person may contribute to the next round. **Secret.**

        Clip each person's integers to it; 0 leaves the person out. It is a function of the
        person's own records and of what was released, so that clipping to it is private.

        Args:
            cost: of the round.

        Returns:
            int64 [people], at most the square of ``cost.largest_norm``.
        """
        self._check_order(cost)
        self._read()
        # A little less than what is left: its sum with what is spent is rounded.
        return cost.norms_within(self._budgets - self._spent - 1e-15 * self._budgets)

    def charge(self, run_id: str, round: int, cost: RoundCost, squared_norms: np.ndarray, *,
               attempt: int = 0, once: bool = False) -> None:
        """Charges everyone for their own contribution, on disk, before the sum is released.

        Args:
            run_id, round, attempt: which release it is; charging it again with the same norms
                changes nothing: it must be the same values with the very same noise.
            cost: of the round.
            squared_norms: int64 [people]: the exact squared norm of each person's rounded
                integers. Where people are sampled: of everyone, drawn or not.
            once: refuse a release that is on file, even with the same norms: for who draws fresh
                noise each time.

        Raises:
            BudgetError: someone would exceed their own budget, or the release was charged with
                other norms (with ``once``, at all). Then nothing is charged and nothing may be
                released. The message names nobody.
        """
        self._check_order(cost)
        squares = np.ascontiguousarray(squared_norms, np.int64)
        require(squares.shape == self._spent.shape, "RenyiFilter.charge",
                f"one squared norm for each of {len(self._spent)} people",
                f"shape {list(squares.shape)}", "Give 0 for who contributed nothing.")
        key, content = (run_id, int(round), int(attempt)), squares.tobytes()
        digest = _digest(content, cost)
        with self._locked():
            self._read()
            if key in self._releases:
                if self._releases[key] == digest and not once:
                    return
                raise BudgetError(
                    "a Renyi filter", need="a release that is not on file" if once else
                    "the norms on file for this release", found="one that was charged" if once
                    else "others", fix="A round released again with other contributions or other "
                    "noise is another release: give it another attempt=.")
            after = self._spent + cost.of(squares)
            if np.any(after > self._budgets):
                raise BudgetError(
                    "a Renyi filter", need="contributions within everyone's own budget",
                    found="one that is not", fix="Clip each person to bounds(cost) first.")
            releases = {**self._releases, key: digest}
            if self._path is not None:
                write_durably(self._path, self._packed(after, releases))
            self._spent, self._releases = after, releases

    def epsilon_of(self, person: str) -> float:
        """One person's own epsilon so far, for that person only. **Secret** to all others."""
        place = self._place(person)
        self._read()
        spent = self._spent[place]
        if spent == 0:
            return 0.0
        if self._order is not None:
            return max(0.0, float(spent + math.log1p(-1.0 / self._order)
                                  - math.log(self._dp_delta * self._order) / (self._order - 1.0)))
        return max(0.0, float(min(
            order * spent + math.log1p(-1.0 / order)
            - math.log(self._dp_delta * order) / (order - 1.0) for order in ORDERS)))

    def target_of(self, person: str) -> float:
        """What all rounds may cost the person."""
        return float(self._epsilons[self._place(person)])

    def public_spends(self, unit: str, *, log_ratio: float = 0.0,
                      total_variation: float = 0.0) -> dict[float, Spend]:
        """What the whole history costs at most, for a public budget: all that may be told.

        Args:
            unit: whose privacy it is.
            log_ratio, total_variation: of all rounds together, as in :class:`Spend`.

        Returns:
            For each target epsilon, a spend whose epsilon is that target (and the slack). It
            holds from the first round on, however many rounds are run.
        """
        spends = {}
        for target in np.unique(self._epsilons):
            budget = float(self._budgets[self._epsilons == target][0])
            kind, parameters = ("concentrated", {"rho": budget}) if self._order is None else (
                "renyi", {"divergence": budget, "order": self._order})
            spends[float(target)] = Spend(
                None, 1.0, unit, kind=kind, parameters=tuple(sorted(parameters.items())),
                log_ratio=log_ratio, total_variation=total_variation)
        return spends

    def __repr__(self) -> str:
        return f"RenyiFilter({len(self._names)} people, dp_delta={self._dp_delta:g})"

    # -- how it is kept ----------------------------------------------------------------------

    def _place(self, person: str) -> int:
        if person not in self._names:
            raise BudgetError("a Renyi filter", need="a person with an account",
                              found="another name", fix="See persons.")
        return self._names[person]

    def _check_order(self, cost: RoundCost) -> None:
        require(cost.order == self._order, "a Renyi filter", f"costs of order {self._order}",
                f"order {cost.order}", "Use one order in all rounds, settled beforehand.")

    def _header(self) -> dict[str, Any]:
        return {"format": _FORMAT, "persons": list(self._names), "order": self._order,
                "dp_delta": self._dp_delta, "epsilons": self._epsilons.tolist()}

    def _packed(self, spent: np.ndarray, releases: dict[tuple[str, int, int], bytes]) -> bytes:
        content = msgpack.packb({
            "header": json.dumps(self._header(), sort_keys=True), "spent": spent.tolist(),
            "releases": [[*key, digest] for key, digest in releases.items()]})
        return _sha(content) + content

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the accounts for one process; the system frees them when it dies."""
        if self._path is None:
            yield
            return
        if fcntl is None:
            raise BudgetError("a Renyi filter", need="file locks of a POSIX system", found=os.name,
                              fix="Run on Linux or macOS, or in WSL on Windows.")
        lock = os.open(self._path.with_name(self._path.name + ".lock"),
                       os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)  # frees the lock

    def _create(self) -> None:
        """The accounts of people of whom nothing was charged yet, where there is no file."""
        assert self._path is not None
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if not self._path.exists():
                    write_durably(self._path, self._packed(self._spent, {}))

    def _read(self) -> None:
        """What all processes have charged so far."""
        if self._path is None:
            return
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise BudgetError(
                "a Renyi filter", need=f"its file {self._path}", found=str(error.strerror),
                fix="Restore it from a backup: without it, what was spent is not known.",
            ) from None
        if content == self._known:
            return
        if _sha(content[32:]) != content[:32]:
            raise BudgetError("a Renyi filter", need=f"an intact file at {self._path}",
                              found="a damaged one", fix="Restore it from a backup. Nothing can be "
                              "spent while it is not known what was.")
        fields = msgpack.unpackb(content[32:])
        if fields["header"] != json.dumps(self._header(), sort_keys=True):
            raise BudgetError("a Renyi filter", need="the people, budgets, dp_delta and order that "
                              "the file was made with", found="others",
                              fix="Open it as it was created: a budget cannot be widened after "
                              "the fact.")
        self._spent = np.array(fields["spent"], np.float64)
        self._releases = {(run, round, attempt): digest
                          for run, round, attempt, digest in fields["releases"]}
        self._known = content


def _sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _digest(content: bytes, cost: RoundCost) -> bytes:
    return _sha(content + repr(cost).encode())
