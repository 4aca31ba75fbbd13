"""What an epsilon means for one person, in plain words, numbers and a picture."""

from __future__ import annotations

import dataclasses
import html
import io
import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import require, require_dp_delta, rounded_up
from .compose import Accountant, Total, compose, delta_profile, total
from .spend import Adjacency, Spend, require_adjacency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATES = (0.01, 0.05)
_POINTS = 400
_FARTHEST_DP_DELTAS = tuple(m * 10.0**e for e in range(-10, 0) for m in (1, 2, 4))


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What a guarantee says about one person. Show it in a notebook, print it, or draw it.

    Guarantees:
        Every number is an upper bound that follows from the guarantee, whatever the attacker knows
        besides and however it computes. Nothing here is a measured risk.

    Attributes:
        epsilon, dp_delta: the guarantee.
        unit: whose privacy it is, in words.
        adjacency: ``"add_remove"``, ``"replace_one"``, or None where it was not told.
        source: what the curve was computed from, in words.
        accuracy: how often someone who holds two cases for equally likely beforehand guesses the
            right one, at most.
        belief: how sure of the true case anybody can become who held both for equally likely,
            except with the probability `surprise`.
        surprise: see `belief`; twice `dp_delta`.

    Example:
        >>> note = explain(epsilon=1.0, dp_delta=1e-5, unit="patient")
        >>> f"{note.accuracy:.1%} right guesses, {float(note.true_positive_rate(0.05)):.1%} found"
        '73.1% right guesses, 13.6% found'
    """

    epsilon: float
    dp_delta: float
    unit: str
    adjacency: Adjacency | None
    source: str
    accuracy: float
    belief: float
    surprise: float
    _epsilons: NDArray[np.float64] = dataclasses.field(repr=False)
    _deltas: NDArray[np.float64] = dataclasses.field(repr=False)

    def true_positive_rate(self, false_positive_rate: ArrayLike) -> NDArray[np.float64]:
        """The most that any attack can detect at each false positive rate.

        Each pair (epsilon, delta) of the guarantee allows at most min(e^epsilon a + delta,
        1 - e^-epsilon (1 - delta - a)) at the rate a (Wasserman and Zhou 2010; Dong, Roth, Su
        2022); the least of all pairs holds.
        """
        rate = np.asarray(false_positive_rate, np.float64)[..., None]
        up = np.exp(np.minimum(self._epsilons, 700.0))
        bound = np.minimum(up * rate + self._deltas, 1.0 - (1.0 - self._deltas - rate) / up)
        return np.clip(bound.min(axis=-1), 0.0, 1.0)

    def false_negative_rate(self, false_positive_rate: ArrayLike) -> NDArray[np.float64]:
        """The trade-off curve of f-differential privacy: the least share that an attack misses."""
        return 1.0 - self.true_positive_rate(false_positive_rate)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The guarantee in plain words, one statement each."""
        unit = self.unit
        cases = {
            "add_remove": f"one {unit}'s data were used or not",
            "replace_one": f"one {unit}'s data were as they are or otherwise",
            None: f"one {unit}'s data were used or not (or were changed: as the guarantee says)",
        }[self.adjacency]
        rates = [f"at most {_percent(float(self.true_positive_rate(rate)))} of the cases if it may "
                 f"raise a false alarm in {_percent(rate)} (blind guessing: {_percent(rate)})"
                 for rate in _RATES]
        return (
            f"The guarantee: epsilon {rounded_up(self.epsilon)} at delta "
            f"{rounded_up(self.dp_delta, 3)}, for one {unit}. It bounds what everything "
            "released, taken together, can tell anybody "
            f"about whether {cases}.",
            f"The best possible attack, even one that knows all other data, detects it in "
            f"{rates[0]}, and in {rates[1]}.",
            f"Someone who holds both cases for equally likely (50%) guesses the right one at most "
            f"{_percent(self.accuracy)} of the time after seeing what was released.",
            f"Nobody who held both for equally likely becomes more than {_percent(self.belief)} "
            f"sure of the true one, except with a probability of at most "
            f"{rounded_up(self.surprise, 3)}.",
            "These are upper bounds, not measured risks: real attacks are often far weaker, and "
            "never stronger as long as noise, clipping and sampling are as stated.",
            f"It does not bound what is learnt about people in general, which may be true of a "
            f"{unit} whose data were never used, nor what was published elsewhere.",
            f"Computed from {self.source}.",
        )

    def figure(self) -> Figure:
        """The curve as a matplotlib figure: detections against false alarms."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.4), layout="constrained", facecolor="white")
        axes = figure.subplots()
        rates = np.concatenate([[0.0], np.geomspace(1e-6, 1e-2, 120), np.linspace(0.01, 1, 300)])
        most = self.true_positive_rate(rates)
        axes.fill_between(rates, most, 1.0, color="#dfe7ee", linewidth=0)
        axes.plot(rates, most, color="#1f5a8a", linewidth=2, label="best possible attack, at most")
        axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1.2,
                  label="blind guessing")
        for rate, marker in zip(_RATES, "os", strict=True):
            value = float(self.true_positive_rate(rate))
            axes.plot([rate], [value], marker, color="#b3541e", markersize=7, zorder=3,
                      clip_on=False,
                      label=f"at {_percent(rate)} false alarms: {_percent(value)}")
        above = float(np.interp(0.3, rates, most))
        if above < 0.8:
            axes.text(0.3, 0.5 * (1 + above), "no attack reaches this region", color="#5b6b78",
                      fontsize=9, ha="center", va="center")
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="false alarms",
                 ylabel="detections, at most",
                 title=f"One {self.unit}: epsilon {rounded_up(self.epsilon, 3)} at delta "
                 f"{rounded_up(self.dp_delta, 3)}")
        axes.title.set_parse_math(False)
        percent = [f"{tick}%" for tick in range(0, 101, 20)]
        axes.set_xticks(np.linspace(0, 1, 6), percent)
        axes.set_yticks(np.linspace(0, 1, 6), percent)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        return figure

    def __str__(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self.sentences)

    def _repr_html_(self) -> str:
        drawing = io.StringIO()
        self.figure().savefig(drawing, format="svg", metadata={"Date": None})
        picture = drawing.getvalue()
        picture = picture[picture.index("<svg"):]
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences)
        words = html.escape(
            f"Detections that any attack can reach, by its rate of false alarms, for one "
            f"{self.unit}.", quote=True)
        return (f'<div role="group" aria-label="What the guarantee says about one '
                f'{html.escape(self.unit, quote=True)}">'
                f'<ul style="max-width: 46em">{items}</ul>'
                f'<div role="img" aria-label="{words}">{picture}</div></div>')


def explain(
    spends: Iterable[Spend] | Total | None = None, *, epsilon: float | None = None,
    dp_delta: float | None = None, unit: str | None = None, adjacency: Adjacency | None = None,
    accountant: Accountant | None = None,
) -> Explanation:
    """What a guarantee means for one person: words for a data-protection officer, and a curve.

    Use it with what was spent, where there is more to tell than one epsilon; with an epsilon from
    elsewhere it says what that epsilon and delta alone imply, which is less.

    Guarantees:
        Nothing in the text or the curve claims more than the guarantee implies.

    Args:
        spends: what was or will be spent, or what :func:`spent` or :func:`total` returned.
        epsilon: instead of spends: the guarantee's epsilon.
        dp_delta: the delta; a :class:`Total` has its own.
        unit: whose privacy it is, in words; spends have their own.
        adjacency: what the guarantee compares; spends have their own.
        accountant: see :func:`compose`.

    Returns:
        The explanation: it prints as text, shows itself in Jupyter, and draws ``figure()``.

    Raises:
        SpecError: neither or both of spends and epsilon, no dp_delta, or spends without any
            finite epsilon.

    Example:
        >>> note = explain(epsilon=1.0, dp_delta=1e-5, unit="patient")
        >>> round(float(note.true_positive_rate(0.01)), 4), round(note.accuracy, 3)
        (0.0272, 0.731)
        >>> run = Spend(noise_multiplier=1.0, sampling_rate=0.1, unit="patient", count=10)
        >>> explain([run], dp_delta=1e-3).accuracy < 0.6  # the whole curve tells more
        True
        >>> print(explain([run], dp_delta=1e-3).sentences[0])
        The guarantee: epsilon 1.572 at delta 0.001, for one patient. It bounds what everything \
released, taken together, can tell anybody about whether one patient's data were used or not.

    Source:
        Wasserman and Zhou 2010 and Kairouz, Oh, Viswanath 2015 (testing); Dong, Roth, Su 2022,
        "Gaussian differential privacy" (trade-off curves).
    """
    where = "explain"
    require((spends is None) != (epsilon is None), where, "either spends or epsilon",
            "both" if spends is not None else "neither",
            "Give what was spent, or epsilon= and dp_delta=.")
    if isinstance(spends, Total):
        dp_delta = spends.dp_delta if dp_delta is None else dp_delta
        accountant = spends.accountant if accountant is None else accountant
        spends = spends.spends
    require(unit is None or (isinstance(unit, str) and bool(unit)), where, "a unit, as a word",
            f"unit={unit!r}", 'Say whose privacy it is, for example unit="patient".')
    require_dp_delta(where, dp_delta)
    assert dp_delta is not None
    if spends is None:
        require(isinstance(epsilon, Real) and math.isfinite(epsilon) and epsilon >= 0, where,
                "a finite epsilon >= 0", f"epsilon={epsilon!r}", "Give the guarantee's epsilon.")
        if adjacency is not None:
            require_adjacency(where, adjacency)
        assert epsilon is not None
        return _explanation(float(epsilon), dp_delta, unit or "person", adjacency,
                            "this epsilon and delta alone; the mechanism behind them may tell less",
                            np.array([float(epsilon)]), np.array([float(dp_delta)]))
    for name, value in (("unit", unit), ("adjacency", adjacency)):
        require(value is None, where, f"the {name} of the spends", f"{name}={value!r}",
                f"Leave {name} out: the spends say it.")
    known = total(spends, dp_delta, accountant=accountant, where=where)
    require(bool(known.spends), where, "at least one spend", "none", "Give what was spent.")
    require(math.isfinite(known.epsilon), where, "a finite epsilon at this dp_delta",
            f"none at {dp_delta:g}", "Give a larger dp_delta.")
    # As far out as there is a guarantee: mechanisms that fail outright have none at tiny deltas.
    reach = known.epsilon
    for far in _FARTHEST_DP_DELTAS:
        farthest = compose(known.spends, min(dp_delta, far), accountant=accountant)
        if math.isfinite(farthest):
            reach = max(reach, farthest)
            break
    epsilons = np.unique([*np.linspace(0.0, reach, _POINTS), known.epsilon])
    deltas = delta_profile(known.spends, epsilons, accountant=accountant)
    # At its own epsilon the account has said dp_delta, which holds.
    deltas = np.where(epsilons == known.epsilon, np.minimum(deltas, dp_delta), deltas)
    means = {"pld": "the privacy loss distribution of all rounds together (PLD accountant)",
             "rdp": "the Renyi divergences of all rounds together (RDP accountant)"}
    assert known.adjacency
    return _explanation(known.epsilon, dp_delta, known.unit, known.adjacency,
                        means[known.accountant], epsilons, deltas)


def _explanation(
    epsilon: float, dp_delta: float, unit: str, adjacency: Adjacency | None, source: str,
    epsilons: NDArray[np.float64], deltas: NDArray[np.float64],
) -> Explanation:
    # Total variation is at most (e^epsilon - 1 + 2 delta) / (e^epsilon + 1) for every pair, and the
    # best guess between two equally likely cases is right with probability (1 + it) / 2.
    fade = np.exp(-epsilons)
    accuracy = min(1.0, float(((1.0 + deltas * fade) / (1.0 + fade)).min()))
    # delta(e) >= (1 - exp(e - t)) P(loss > t): a loss above t is as rare as `surprise` if t is
    # this far above some e. The loss is the log of the posterior odds.
    surprise = min(1.0, 2.0 * dp_delta)
    rare = deltas < surprise
    above = epsilons[rare] - np.log1p(-deltas[rare] / surprise)
    odds = float(above.min()) if rare.any() else math.inf
    belief = 1.0 / (1.0 + math.exp(-odds))
    return Explanation(epsilon, float(dp_delta), unit, adjacency, source, accuracy, belief,
                       surprise, epsilons, deltas)


def _percent(share: float) -> str:
    """A bound as a percentage, rounded up so that it stays one."""
    digits = 1 if 0.001 <= share <= 0.999 else 3
    return f"{math.ceil(round(share * 100 * 10**digits, 6)) / 10**digits:.{digits}f}".rstrip(
        "0").rstrip(".") + "%"
