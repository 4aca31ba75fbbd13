"""Evaluates one model, or a model of each client's own, on every client's records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import ClientRecords, Params, TrainableModel
from fedjax_secure.training.evaluation import metrics
from fedjax_secure.training.evaluation.forward import Outputs, RowsOf, Split, one_model, own_models
from fedjax_secure.training.evaluation.result import Evaluation

_AREA_ROWS = 2**16  # records whose scores are gathered before their clients' AUC is computed
_NARROW = {"float64": np.float32, "int64": np.int32}  # what JAX makes of these


def evaluate(
    model: TrainableModel,
    params: Params | np.ndarray | jax.Array | Callable[[np.ndarray], Any],
    dataset: ClientRecords,
    *,
    split: Literal["test", "train"] = "test",
    auc: bool = True,
    batch_size: int = 512,
    devices: Sequence[Any] | None = None,
) -> Evaluation:
    """Evaluates a model, or one model for each client, on held-out records.

    All clients are computed together, in batches of one size over all devices. The records of a
    dataset stay on the devices as long as it lives, and a model is compiled once for a split:
    later calls, with whatever parameters, only compute.

    Guarantees:
        - Memory grows by 16 bytes a record (and the records themselves on the devices, where there
          is one model). Scores of all classes are kept of 65,536 records at a time, or of one
          client if it has more, and with ``auc=False`` of none.
        - Clients' own models are on the devices a chunk at a time. Given as a function, they are
          never all in memory.
        - Figures do not depend on the number of devices, but for rounding.

    Args:
        model: whose parameters they are.
        params: a pytree; or ``[dim]``, the same flat; or ``[clients, dim]``, each client's own; or
            a function ``(numbers [k] int) -> [k, dim]`` that returns the parameters of the clients
            of these numbers. It is asked in rising order, and never for a client without records.
        dataset: the clients' records.
        split: which part.
        auc: whether to compute AUC. It needs a sort for each class: with many classes, leave it
            out of an evaluation after every round.
        batch_size: records in a batch, on each device. With clients' own models it follows from
            how many records they have.
        devices: the devices to use; by default those of JAX's default backend.

    Returns:
        The figures of each client, and what they come to together.

    Raises:
        SpecError: flat parameters of another shape, another split, parameters of another model, a
            dataset that does not fit the model, a batch size below 1 or no device.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> from fedjax_secure.training import evaluate
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> found = evaluate(model, model.init(jax.random.key(0)), data)
        >>> found.auc.tolist(), round(found.mean("accuracy"), 3), found.worst("accuracy")
        ([0.5, 0.5, 0.5, 0.5], 0.449, 0.08)
    """
    part = _split(model, dataset, split)
    given = jax.local_devices() if devices is None else devices
    chosen = list(given) if isinstance(given, Iterable) else [given]
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise _refuse("at least one device of jax.devices()", repr(devices), "Leave devices= out.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise _refuse("an integer batch_size", repr(batch_size), "Leave batch_size=512.")
    if batch_size < 1:
        raise _refuse("a batch_size of 1 or more", str(batch_size), "Leave batch_size=512.")
    params, rows_of = _told_apart(model, params, len(dataset.clients))
    collected = _Collected(part, len(dataset.classes), auc)
    if len(part.y):
        if rows_of is None:
            stream = one_model(
                model, params, dataset, part,
                batch_size=int(batch_size), devices=chosen, with_scores=auc,
            )  # fmt: skip
        else:
            stream = own_models(model, rows_of, part, devices=chosen, with_scores=auc)
        for outputs in stream:
            collected.add(outputs)
    return collected.evaluation(dataset)


def _split(model: TrainableModel, dataset: ClientRecords, split: str) -> Split:
    if split not in ("test", "train"):
        raise _refuse("split='test' or split='train'", repr(split), "Choose one.")
    prefix = "test_" if split == "test" else ""
    if not all(hasattr(dataset, part) for part in ("clients", "classes", f"{prefix}offsets")):
        raise _refuse(
            "a dataset", type(dataset).__name__, "Make one with fs.data.from_dataframe(...)."
        )
    x, y, offsets = (
        np.asarray(getattr(dataset, f"{prefix}{part}")) for part in ("x", "y", "offsets")
    )
    if x.shape[1] != model.num_features or len(dataset.classes) != model.num_classes:
        raise _refuse(
            f"a dataset of {model.num_features} features and {model.num_classes} classes for "
            f"model `{model.name}`",
            f"{x.shape[1]} and {len(dataset.classes)}",
            "Evaluate on the dataset that the model was made for.",
        )
    if x.dtype.name in _NARROW:
        x = x.astype(_NARROW[x.dtype.name])
    return Split(split, x, y.astype(np.int32, copy=False), offsets.astype(np.int64))


def _told_apart(
    model: TrainableModel, params: Any, clients: int
) -> tuple[Params | None, RowsOf | None]:
    """One model's parameters, or a function that has each client's."""
    if isinstance(params, np.ndarray | jax.Array):
        if params.shape == (model.dim,):
            return model.unravel(jnp.asarray(params, jnp.float32)), None
        if params.shape != (clients, model.dim):
            raise _refuse(
                f"flat parameters of shape [{model.dim}] or [{clients}, {model.dim}]",
                f"{list(params.shape)}",
                "Pass the parameters of this model.",
            )
        whole = np.asarray(params)
        return None, lambda numbers: whole[numbers].astype(np.float32, copy=False)
    if callable(params):

        def checked(numbers: np.ndarray) -> np.ndarray:
            rows = np.array(params(numbers), np.float32)  # a copy: it may use its buffer again
            if rows.shape != (len(numbers), model.dim):
                raise _refuse(
                    f"rows of shape [{len(numbers)}, {model.dim}] from the function of parameters",
                    f"{list(rows.shape)}",
                    "Return one row for each client number that it is given.",
                )
            return rows

        return None, checked
    model.ravel(params)  # refuses the parameters of another model
    return params, None


class _Collected:
    """Columns of all records, and the AUC of those clients that are complete."""

    def __init__(self, split: Split, classes: int, auc: bool):
        records, clients = len(split.y), len(split.offsets) - 1
        self.split, self.classes, self.auc = split, classes, auc
        self.done = 0  # records
        self.predicted = np.zeros(records, np.int32)
        self.loss, self.confidence, self.brier = (np.zeros(records, np.float32) for _ in range(3))
        self.areas = np.full(clients, np.nan)
        self.rated = 0  # clients whose AUC is there
        self.waiting: list[np.ndarray] = []  # scores of the clients after those

    def add(self, outputs: Outputs) -> None:
        here = slice(self.done, self.done + len(outputs.predicted))
        self.done = here.stop
        self.predicted[here], self.loss[here] = outputs.predicted, outputs.loss
        self.confidence[here], self.brier[here] = outputs.confidence, outputs.brier
        if self.auc:
            self.waiting.append(outputs.scores)
            first = self.split.offsets[self.rated]
            if self.done - first >= _AREA_ROWS or self.done == len(self.split.y):
                self._rate(int(first))

    def _rate(self, first: int) -> None:
        """Computes the AUC of all clients whose records are complete."""
        offsets, y = self.split.offsets, self.split.y
        complete = int(np.searchsorted(offsets, self.done, side="right")) - 1
        if complete == self.rated:
            return
        scores = np.concatenate(self.waiting)
        bounds = offsets[self.rated : complete + 1] - first
        mine, truth = scores[: bounds[-1]], y[first : first + bounds[-1]]
        self.areas[self.rated : complete] = (
            metrics.areas_under_curve(mine[:, 0], truth == 1, bounds)
            if self.classes == 2
            else metrics.one_against_rest(mine, truth, bounds)
        )
        self.waiting, self.rated = [scores[bounds[-1] :].copy()], complete

    def evaluation(self, dataset: ClientRecords) -> Evaluation:
        offsets, y = self.split.offsets, self.split.y
        counts = np.diff(offsets)
        right = self.predicted == y
        nonfinite = metrics.client_sums(self.predicted < 0, offsets).astype(int)

        def mean(values: np.ndarray) -> np.ndarray:
            sums = metrics.client_sums(values, offsets)
            return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)

        errors = metrics.calibration_errors(self.confidence, right, offsets)
        brier, failed = mean(self.brier), nonfinite > 0
        errors[failed] = brier[failed] = self.areas[failed] = np.nan
        return Evaluation(
            clients=tuple(dataset.clients),
            classes=tuple(dataset.classes),
            offsets=offsets,
            y=y,
            predicted=self.predicted,
            confidence=self.confidence,
            counts=counts,
            accuracy=mean(right),
            loss=mean(self.loss),
            brier=brier,
            calibration_error=errors,
            nonfinite=nonfinite,
            _auc=self.areas if self.auc else None,
        )


def _refuse(need: str, found: str, fix: str) -> SpecError:
    return SpecError("evaluate", need=need, found=found, fix=fix)
