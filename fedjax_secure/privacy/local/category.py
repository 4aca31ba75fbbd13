"""A category that everyone answers with plausible deniability, and the shares that follow."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_secure.core import SpecError
from fedjax_secure.core.randomness import host_words

from ..accounting import Spend

if TYPE_CHECKING:
    import pandas as pd

_WORD = 1 << 64
_MOST = 1 << 16


class Category:
    """One person's answer among a few, made private before it leaves the person.

    With some probability the true answer is sent, else one of the others, all alike. Nobody can
    be held to what they sent; from many answers the server learns the shares without bias. It
    needs no federation and no key: a notebook, a survey or a phone can use it as it is.

    Args:
        categories: the possible answers, 2 to 65,536.
        epsilon: of one answer, above 0 and up to 20.

    Guarantees:
        Each answer is ``self.epsilon``-differentially private, at most what was asked, whatever the
        person's category is and might be (adjacency: replaced by any other), with no delta. One
        64-bit word decides: each of the other categories has exactly m of its 2^64 values, the
        true one the rest, with m the smallest integer for which (2^64 - (k - 1) m) / m is at most
        e^epsilon, in exact arithmetic.

    Raises:
        SpecError: an epsilon out of range, or fewer than two or equal categories.

    Example:
        >>> smoking = Category(("never", "former", "current"), epsilon=1.0)
        >>> answer = smoking.privatise("former")  # on the person's own device
        >>> answer in smoking.categories, round(smoking.epsilon, 9)
        (True, 1.0)
        >>> estimate = smoking.estimate(["never"] * 50 + ["former"] * 30 + ["current"] * 20)
        >>> round(float(estimate["share"].sum()), 6)
        1.0

    Source:
        Warner 1965, "Randomized response"; Kairouz, Bonawitz, Ramage 2016, "Discrete distribution
        estimation under local privacy" (k-ary randomised response and its estimate).
    """

    def __init__(self, categories: Sequence[Hashable], *, epsilon: float):
        try:
            self.categories = tuple(categories)
            self._places = {category: place for place, category in enumerate(self.categories)}
        except TypeError:
            raise SpecError("local.Category", need="a sequence of categories, such as words",
                            found=f"{categories!r:.80}", fix='Give ("no", "yes").') from None
        number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not number or not 0 < epsilon <= 20:
            raise SpecError("local.Category", need="an epsilon above 0 and up to 20",
                            found=repr(epsilon), fix="Give 1.0, for example.")
        if not 2 <= len(self.categories) <= _MOST or len(self._places) != len(self.categories):
            raise SpecError("local.Category", need=f"2 to {_MOST} different categories",
                            found=f"{len(self.categories)}, {len(self._places)} of them different",
                            fix="Name every possible answer once.")
        # A float's exponential is within a few units of its last place: this is surely below it.
        odds = Fraction(math.exp(epsilon) * (1 - 2.0**-50))
        others = len(self.categories) - 1
        self._each = math.ceil(Fraction(_WORD) / (odds + others))
        if self._true <= self._each:
            raise SpecError("local.Category", need="an epsilon that tells answers apart",
                            found=repr(epsilon), fix="Raise epsilon.")

    @property
    def _true(self) -> int:
        return _WORD - (len(self.categories) - 1) * self._each

    @property
    def epsilon(self) -> float:
        """What one answer costs: the logarithm of the largest ratio, rounded up."""
        return math.log(Fraction(self._true, self._each)) * (1 + 1e-14)

    @property
    def probability_true(self) -> float:
        """How likely the true answer is sent."""
        return self._true / _WORD

    def privatise(self, answer: Hashable, *, key: bytes | None = None) -> Any:
        """What the person sends.

        Args:
            answer: the person's true category. It must not leave the person's device otherwise.
            key: 32 secret bytes, used for nothing else; None takes fresh ones. Give one only in a
                simulation that repeats.

        Returns:
            One of ``categories``.

        Raises:
            SpecError: an answer that is no category. The message does not repeat it.
        """
        return self.privatise_all([answer], key=key)[0]

    def privatise_all(self, answers: Sequence[Hashable], *, key: bytes | None = None) -> list[Any]:
        """The same for many people at once, as a simulation needs it; each has a word of its own.

        Raises:
            SpecError: an answer that is no category.
        """
        if not self._known(answers):
            raise SpecError("local.Category", need="answers among its categories",
                            found="something else", fix=f"Choose among {self.categories[:10]!r}.")
        truth = np.array([self._places[answer] for answer in answers], np.uint64)
        words = host_words(os.urandom(32) if key is None else key, 2 * len(truth)).view("<u8")
        other = words // np.uint64(self._each)  # 0 to k - 2 where another answer is sent
        lies = other < np.uint64(len(self.categories) - 1)
        other = other + (other >= truth)
        return [self.categories[int(place)] for place in np.where(lies, other, truth)]

    def _known(self, answers: Sequence[Hashable]) -> bool:
        try:
            return all(answer in self._places for answer in answers)
        except TypeError:  # a list, say, is no category
            return False

    def estimate(self, answers: Sequence[Hashable]) -> pd.DataFrame:
        """The share of each category among the people, without bias, from what they sent.

        Args:
            answers: what was sent, one a person, in any order.

        Returns:
            A row for each category: ``share``, which may be a little below 0 or above 1 (cutting it
            would make it biased), ``standard_error``, and ``sent``, how often it was sent.

        Raises:
            SpecError: no answers, or one that is no category.
        """
        import pandas as pd

        if not len(answers) or not self._known(answers):
            raise SpecError("local.Category", need="answers among its categories",
                            found=f"{len(answers)}, some of them none",
                            fix="Give what was sent.")
        places = np.array([self._places[answer] for answer in answers])
        sent = np.bincount(places, minlength=len(self.categories))
        observed = sent / len(answers)
        other = self._each / _WORD
        spread = (self._true - self._each) / _WORD
        return pd.DataFrame(
            {"share": (observed - other) / spread,
             "standard_error": np.sqrt(observed * (1 - observed) / len(answers)) / spread,
             "sent": sent}, index=pd.Index(self.categories, name="category"))

    def spend(self, unit: str, *, rounds: int = 1) -> Spend:
        """What ``rounds`` answers cost one person: for a budget, or to compose with others."""
        return Spend(None, 1.0, unit, rounds, "replace_one", kind="pure",
                     parameters=(("epsilon", self.epsilon),))

    def __repr__(self) -> str:
        return f"Category({len(self.categories)} categories, epsilon={self.epsilon:.4g})"
