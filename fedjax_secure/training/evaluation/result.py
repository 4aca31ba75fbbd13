"""What an evaluation found: figures of every client, and how they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.evaluation import metrics

if TYPE_CHECKING:
    import pandas as pd

#: Figures of an evaluation, with their heading in tables and whether more is better.
FIGURES = {
    "accuracy": ("accuracy", True),
    "auc": ("AUC", True),
    "loss": ("loss", False),
    "brier": ("Brier score", False),
    "calibration_error": ("calibration error", False),
}
CONFUSION_LIMIT = 2**27  # counts of `Evaluation.confusion`: half a gigabyte of int32


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How well a model does on each client's records.

    Figures of the clients are arrays; methods put them together over clients. These figures are
    computed from records and are outside any privacy guarantee.

    Guarantees:
        - A figure is NaN only where it does not exist: every figure of a client without records,
          and AUC where all records of a client are of one class. The methods leave such clients
          out. They return NaN where no client has the figure.
        - A record for which the model's output is not finite counts as a wrong answer of infinite
          loss, and is predicted as no class (-1). Its client's Brier score, calibration error and
          AUC are NaN, and so is all that these are put together to: a failed model never hides
          among the clients without an answer. `nonfinite` counts such records.

    Attributes:
        clients: the clients' ids.
        classes: the classes' names.
        offsets: ``[clients + 1] int``, where each client's records begin.
        y: ``[records] int32``, true classes.
        predicted: ``[records] int32``, the likeliest class of each record; the first of several.
        confidence: ``[records] float32``, the probability of that class.
        counts: ``[clients] int``, records of each client.
        accuracy: ``[clients] float64``, the share of records whose likeliest class is theirs.
        loss: ``[clients] float64``, the mean of the model's loss: cross-entropy in nats, unless it
            was made with another.
        brier: ``[clients] float64``, the mean over records of the squared distance between the
            probabilities and the true class, summed over classes, in [0, 2]. With two classes it
            is twice the figure that takes one class only.
        calibration_error: ``[clients] float64``, the expected calibration error over 15 bins of
            equal width; see `metrics.calibration_errors`.
        nonfinite: ``[clients] int``, records for which the model's output is not finite.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> from fedjax_secure.training import evaluate
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> evaluate(model, model.init(jax.random.key(0)), data)
        Evaluation(clients=4, records=185, accuracy=0.449, loss=0.693)

    Source:
        Brier 1950, "Verification of Forecasts Expressed in Terms of Probability".
    """

    clients: tuple[str, ...]
    classes: tuple[str, ...]
    offsets: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    brier: np.ndarray
    calibration_error: np.ndarray
    nonfinite: np.ndarray
    _auc: np.ndarray | None = field(default=None)

    @property
    def auc(self) -> np.ndarray:
        """``[clients] float64``, the area under the ROC curve, exact.

        The chance that a record of the class scores above one outside it, ties counting half.
        With more than two classes, the mean over the client's classes of each against the rest.
        NaN where a client has one class only.

        Raises:
            SpecError: `evaluate` was told to leave it out.
        """
        if self._auc is None:
            raise _refuse(
                "auc=True for this figure", "auc=False", "Evaluate again, or choose another figure."
            )
        return self._auc

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that this evaluation has, as the methods take them."""
        return tuple(name for name in FIGURES if name != "auc" or self._auc is not None)

    # -- over clients ------------------------------------------------------------------------------

    def mean(self, figure: str, *, over: Literal["records", "clients"] = "records") -> float:
        """Returns a figure's mean over the clients that have it.

        Args:
            figure: one of `figures`.
            over: ``"records"`` weighs each client by its records; ``"clients"`` weighs all alike.

        Returns:
            The mean. Over records, that of accuracy, loss and Brier score is the figure of all
            records together; those of AUC and calibration error are means of the clients' figures.

        Raises:
            SpecError: no such figure, or another ``over``.
        """
        if over not in ("records", "clients"):
            raise _refuse("over='records' or over='clients'", repr(over), "Choose one.")
        values, weights = self._known(figure)
        if not len(values):
            return float("nan")
        return float(np.average(values, weights=weights if over == "records" else None))

    def worst(self, figure: str, fraction: float = 0.1) -> float:
        """Returns a figure's mean over the worst clients, each weighing the same.

        Args:
            figure: one of `figures`: a low accuracy is bad, and a high loss.
            fraction: which share of the clients that have the figure, in (0, 1], rounded down to
                whole clients; at least one.

        Raises:
            SpecError: no such figure, or a fraction outside (0, 1].
        """
        return self._tail(figure, fraction, not FIGURES[self._named(figure)][1])

    def best(self, figure: str, fraction: float = 0.1) -> float:
        """Returns a figure's mean over the best clients; as `worst`, from the other end."""
        return self._tail(figure, fraction, FIGURES[self._named(figure)][1])

    def variance(self, figure: str) -> float:
        """Returns a figure's variance over the clients that have it, each weighing the same.

        It is the population's variance (the divisor is the number of clients), in the square of
        the figure's unit: with accuracy as a share, 10,000 times smaller than in percent.

        Raises:
            SpecError: no such figure.
        """
        values, _ = self._known(figure)
        return float(np.var(values)) if len(values) and np.isfinite(values).all() else float("nan")

    def std(self, figure: str) -> float:
        """Returns the square root of `variance`."""
        return float(np.sqrt(self.variance(figure)))

    def fairness(self, figure: str = "accuracy", *, fraction: float = 0.1) -> dict[str, Any]:
        """Returns how evenly a figure is spread over clients, in one place.

        Args:
            figure: one of `figures`.
            fraction: of `worst` and `best`.

        Returns:
            ``mean`` (over records), ``average`` (over clients), ``worst`` and ``best`` (means over
            that fraction of clients), ``variance``, ``std``, ``clients`` (how many have the
            figure) and ``worst_client``, the name of the one that is worst off.

        Raises:
            SpecError: no such figure, or a fraction outside (0, 1].

        Example:
            >>> import jax
            >>> from fedjax_secure.data import heart_disease
            >>> from fedjax_secure.models import logistic_regression
            >>> from fedjax_secure.training import evaluate
            >>> data = heart_disease()
            >>> model = logistic_regression(data)
            >>> found = evaluate(model, model.init(jax.random.key(0)), data).fairness()
            >>> found["worst_client"], round(found["worst"], 3), round(found["average"], 3)
            ('Switzerland', 0.08, 0.379)

        Source:
            Li, Sanjabi, Beirami, Smith 2020, "Fair Resource Allocation in Federated Learning"
            (q-FFL): average, worst 10%, best 10% and variance of clients' accuracy.
        """
        known = np.flatnonzero(self._exists(figure))
        worst_client = None
        if len(known):
            sign = 1 if FIGURES[figure][1] else -1
            values = np.nan_to_num(sign * getattr(self, figure)[known], nan=-np.inf)
            worst_client = self.clients[known[np.argmin(values)]]
        return {
            "mean": self.mean(figure),
            "average": self.mean(figure, over="clients"),
            "worst": self.worst(figure, fraction),
            "best": self.best(figure, fraction),
            "variance": self.variance(figure),
            "std": self.std(figure),
            "clients": len(known),
            "worst_client": worst_client,
        }

    def table(self) -> pd.DataFrame:
        """Returns the figures of each client: one row a client, with its records."""
        import pandas as pd

        columns = {FIGURES[name][0]: getattr(self, name) for name in self.figures}
        return pd.DataFrame({"client": self.clients, "records": self.counts, **columns})

    def summary(self, *, fraction: float = 0.1) -> pd.DataFrame:
        """Returns `fairness` of every figure: one row a figure.

        Args:
            fraction: of the worst and the best clients.
        """
        import pandas as pd

        rows = [
            {"figure": FIGURES[name][0], **self.fairness(name, fraction=fraction)}
            for name in self.figures
        ]
        share = f"{100 * fraction:g}%"
        return pd.DataFrame(rows).rename(
            columns={
                "mean": "mean over records",
                "average": "mean over clients",
                "worst": f"worst {share}",
                "best": f"best {share}",
                "worst_client": "worst client",
            }
        )

    # -- classes -----------------------------------------------------------------------------------

    @property
    def confusion(self) -> np.ndarray:
        """``[clients, classes, classes] int32``: records by true (rows) and predicted class.

        Counted when asked for and not kept. Records predicted as no class are in no column.

        Raises:
            SpecError: more than 2^27 counts; `confusion_matrix` has one client or all together.
        """
        shape = (len(self.clients), len(self.classes), len(self.classes))
        if np.prod(shape, dtype=float) > CONFUSION_LIMIT:
            raise _refuse(
                f"at most {CONFUSION_LIMIT:,} counts in a dense confusion",
                f"{' x '.join(map(str, shape))}",
                "Take confusion_matrix(client) of one client, confusion_matrix() of all "
                "together, or recall().",
            )
        return self._tally(self._client, shape)

    def confusion_matrix(self, client: str | int | None = None) -> pd.DataFrame:
        """Returns the confusion matrix of one client, or of all clients together.

        Args:
            client: a client's id or number; None for all.

        Returns:
            Records by true class (rows) and predicted class (columns).

        Raises:
            SpecError: no such client.
        """
        import pandas as pd

        part = slice(None)
        if client is not None:
            c = self._number(client)
            part = slice(int(self.offsets[c]), int(self.offsets[c + 1]))
        counts = self._tally(None, (len(self.classes),) * 2, part)
        return pd.DataFrame(
            counts,
            index=pd.Index(self.classes, name="true"),
            columns=pd.Index(self.classes, name="predicted"),
        )

    def recall(self) -> np.ndarray:
        """Returns ``[clients, classes] float64``: of each class, the share that was recognised.

        NaN where a client has no record of the class.
        """
        shape = (len(self.clients), len(self.classes))
        place = self._client * shape[1] + self.y
        size = np.prod(shape)
        there = np.bincount(place, minlength=size).reshape(shape)
        found = np.bincount(place[self.predicted == self.y], minlength=size).reshape(shape)
        return np.divide(found, there, out=np.full(shape, np.nan), where=there > 0)

    def class_table(self) -> pd.DataFrame:
        """Returns one row a class, over all clients: records, predictions, recall, precision.

        Recall of a class without records, and precision of one that is never predicted, is NaN.
        """
        import pandas as pd

        counts = self.confusion_matrix().to_numpy()
        right, said = np.diag(counts), counts.sum(axis=0)
        there = np.bincount(self.y, minlength=len(self.classes))
        nothing = np.full(len(self.classes), np.nan)
        return pd.DataFrame(
            {
                "class": self.classes,
                "records": there,
                "predicted": said,
                "recall": np.divide(right, there, out=nothing.copy(), where=there > 0),
                "precision": np.divide(right, said, out=nothing.copy(), where=said > 0),
            }
        )

    # -- calibration -------------------------------------------------------------------------------

    @property
    def pooled_calibration_error(self) -> float:
        """The expected calibration error of all records together, over 15 bins.

        Clients that err in opposite directions cancel here, and do not in their own figures.
        """
        if not len(self.y) or self.nonfinite.any():
            return float("nan")
        everyone = np.array([0, len(self.y)])
        right = self.predicted == self.y
        return float(metrics.calibration_errors(self.confidence, right, everyone)[0])

    def reliability(
        self, client: str | int | None = None, *, bins: int = metrics.CALIBRATION_BINS
    ) -> pd.DataFrame:
        """Returns the reliability diagram of one client, or of all together, as numbers.

        Args:
            client: a client's id or number; None for all.
            bins: bins of equal width, each with its upper bound in it.

        Returns:
            One row a bin: ``above``, ``up_to``, ``records``, mean ``confidence`` and ``accuracy``;
            NaN where a bin is empty. Records predicted as no class are left out.

        Raises:
            SpecError: no such client, or not a whole number of bins of 1 or more.

        Source:
            Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", figure 1.
        """
        import pandas as pd

        used = self.predicted >= 0
        if client is not None:
            used &= self._client == self._number(client)
        right = (self.predicted == self.y)[used]
        parts = metrics.reliability_bins(
            self.confidence[used], right, np.array([0, int(used.sum())]), bins
        )
        counts, confident, right_answers = (part[0] for part in parts)
        nothing = np.full(bins, np.nan)
        return pd.DataFrame(
            {
                "above": np.arange(bins) / bins,
                "up_to": np.arange(1, bins + 1) / bins,
                "records": counts,
                "confidence": np.divide(confident, counts, out=nothing.copy(), where=counts > 0),
                "accuracy": np.divide(right_answers, counts, out=nothing.copy(), where=counts > 0),
            }
        )

    # -- groups of records -------------------------------------------------------------------------

    def group_table(
        self, groups: Sequence[Any] | np.ndarray, *, positive: str | int | None = None
    ) -> pd.DataFrame:
        """Returns how the model treats groups of records, whichever client they are at.

        Args:
            groups: ``[records]``, the group of each evaluated record, e.g. a person's sex.
            positive: the class that counts as positive, by name or number; with two classes, the
                second.

        Returns:
            One row a group; see `metrics.group_rates`.

        Raises:
            SpecError: not one group for each record, no such class, or none where there are more
                than two.
        """
        import pandas as pd

        return pd.DataFrame(
            metrics.group_rates(self.y, self.predicted, groups, self._class(positive))
        )

    def group_gaps(
        self, groups: Sequence[Any] | np.ndarray, *, positive: str | int | None = None
    ) -> dict[str, float]:
        """Returns how far apart the model's treatment of groups of records lies.

        Args:
            groups, positive: as in `group_table`.

        Returns:
            ``accuracy``, and three differences between the best and the worst treated group, in
            [0, 1]: ``demographic_parity`` of the share predicted positive, ``equal_opportunity``
            of the true positive rate, and ``equalised_odds``, the larger of that and the false
            positive rate's. NaN where fewer than two groups have the rate.

        Raises:
            SpecError: as `group_table` does.

        Source:
            Hardt, Price, Srebro 2016, "Equality of Opportunity in Supervised Learning",
            definitions 2.1 and 2.2; as differences, Agarwal et al. 2018, "A Reductions Approach to
            Fair Classification".
        """
        rates = metrics.group_rates(self.y, self.predicted, groups, self._class(positive))
        hits = metrics.largest_gap(rates["true_positive_rate"])
        alarms = metrics.largest_gap(rates["false_positive_rate"])
        return {
            "accuracy": metrics.largest_gap(rates["accuracy"]),
            "demographic_parity": metrics.largest_gap(rates["selection_rate"]),
            "equal_opportunity": hits,
            "equalised_odds": float(np.maximum(hits, alarms)),
        }

    # -- parts -------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return (
            f"Evaluation(clients={len(self.clients)}, records={len(self.y)}, "
            f"accuracy={self.mean('accuracy'):.3f}, loss={self.mean('loss'):.3f})"
        )

    @cached_property
    def _client(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.clients)), self.counts)

    def _named(self, figure: str) -> str:
        if figure not in FIGURES:
            raise _refuse(f"one of {list(self.figures)}", repr(figure), "Choose a figure.")
        return figure

    def _exists(self, figure: str) -> np.ndarray:
        if self._named(figure) != "auc":
            return self.counts > 0
        known = np.isfinite(self.auc)  # or else it is the model that gave no answer
        return known | (self.nonfinite > 0)

    def _known(self, figure: str) -> tuple[np.ndarray, np.ndarray]:
        exists = self._exists(figure)
        return getattr(self, figure)[exists], self.counts[exists]

    def _tail(self, figure: str, fraction: float, largest: bool) -> float:
        if not isinstance(fraction, int | float | np.number) or not 0 < fraction <= 1:
            raise _refuse("a fraction in (0, 1]", repr(fraction), "0.1 is a tenth of the clients.")
        values, _ = self._known(figure)
        if not len(values) or np.isnan(values).any():
            return float("nan")
        taken = max(1, int(fraction * len(values) + 1e-9))
        values = np.sort(values)
        return float(np.mean(values[-taken:] if largest else values[:taken]))

    def _tally(
        self, client: np.ndarray | None, shape: tuple[int, ...], part: slice = slice(None)
    ) -> np.ndarray:
        classes = len(self.classes)
        place = self.y[part].astype(np.int64) * classes + self.predicted[part]
        if client is not None:
            place += client * classes**2
        counts = np.bincount(place[self.predicted[part] >= 0], minlength=int(np.prod(shape)))
        return counts.astype(np.int32).reshape(shape)

    def _number(self, client: str | int) -> int:
        if isinstance(client, str) and client in self.clients:
            return self.clients.index(client)
        whole = isinstance(client, int | np.integer) and not isinstance(client, bool)
        if not whole or not 0 <= client < len(self.clients):
            raise _refuse(
                f"a client's id, or its number from 0 to {len(self.clients) - 1}",
                repr(client),
                "See the ids in `clients`.",
            )
        return int(client)

    def _class(self, positive: str | int | None) -> int:
        if positive is None and len(self.classes) == 2:
            return 1
        if isinstance(positive, str) and positive in self.classes:
            return self.classes.index(positive)
        whole = isinstance(positive, int | np.integer) and not isinstance(positive, bool)
        if not whole or not 0 <= positive < len(self.classes):
            raise _refuse(
                f"the positive class, one of {list(self.classes)} or its number",
                repr(positive),
                "Write positive=1, for example.",
            )
        return int(positive)


def _refuse(need: str, found: str, fix: str) -> SpecError:
    return SpecError("evaluation", need=need, found=found, fix=fix)
