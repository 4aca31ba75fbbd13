"""Accuracy, AUC and loss of a model on each client's records."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import ClientRecords, Params, TrainableModel


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a model does on each client's records.

    These figures are computed from records and are outside any privacy guarantee.

    Attributes:
        clients: the clients' ids.
        accuracy: ``[clients] float64``, the share of records whose likeliest class is theirs.
        auc: ``[clients] float64``, the area under the ROC curve: the chance that a record of the
            class scores above one outside it, ties counting half. With more than two classes, the
            mean over the client's classes of each against the rest. NaN where a client has one
            class only.
        loss: ``[clients] float64``, the mean cross-entropy, nats.
        counts: ``[clients] int``, records of each client. Without any, its figures are NaN.
    """

    clients: tuple[str, ...]
    accuracy: np.ndarray
    auc: np.ndarray
    loss: np.ndarray
    counts: np.ndarray


def evaluate(
    model: TrainableModel,
    params: Params,
    dataset: ClientRecords,
    *,
    split: Literal["test", "train"] = "test",
) -> Evaluation:
    """Evaluates a model, or one model for each client, on held-out records.

    All clients are computed in one compiled call, which later rounds reuse.

    Args:
        model: whose parameters they are.
        params: a pytree; or ``[dim]``, the same flat; or ``[clients, dim]``, each client's own.
        dataset: the clients' records.
        split: which part.

    Returns:
        Accuracy, AUC and loss for each client.

    Raises:
        SpecError: flat parameters of another shape, another split, or parameters of another
            model.

    Example:
        >>> import jax
        >>> from fedjax_secure.data import heart_disease
        >>> from fedjax_secure.models import logistic_regression
        >>> from fedjax_secure.training import evaluate
        >>> data = heart_disease()
        >>> model = logistic_regression(data)
        >>> evaluate(model, model.init(jax.random.key(0)), data).auc.tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    if split not in ("test", "train"):
        raise _refuse("split='test' or split='train'", repr(split), "Choose one.")
    prefix = "test_" if split == "test" else ""
    x, y, offsets = (getattr(dataset, f"{prefix}{part}") for part in ("x", "y", "offsets"))
    counts = np.diff(offsets)
    if isinstance(params, np.ndarray | jax.Array):
        clients = len(dataset.clients)
        if params.shape not in ((model.dim,), (clients, model.dim)):
            raise _refuse(
                f"flat parameters of shape [{model.dim}] or [{clients}, {model.dim}]",
                f"{list(params.shape)}",
                "Pass the parameters of this model.",
            )
        params = jnp.asarray(params, jnp.float32)
        if params.ndim == 2:
            probabilities, losses = _own_outputs(model, params, x, y, offsets)
        else:
            probabilities, losses = _outputs(model, model.unravel(params), x, y)
    else:
        model.ravel(params)  # refuses the parameters of another model
        probabilities, losses = _outputs(model, params, x, y)
    probabilities, losses = np.asarray(probabilities), np.asarray(losses, np.float64)
    figures = np.full((3, len(counts)), np.nan)
    for c, count in enumerate(counts):
        part = slice(offsets[c], offsets[c + 1])
        if count:
            right = np.argmax(probabilities[part], axis=1) == y[part]
            figures[:, c] = np.mean(right), _auc(probabilities[part], y[part]), losses[part].mean()
    return Evaluation(tuple(dataset.clients), *figures, counts)


@partial(jax.jit, static_argnums=0)
def _outputs(model, params, x, y):
    return model.probabilities(model.apply(params, x)), model.loss(params, x, y)


@partial(jax.jit, static_argnums=0)
def _stacked_outputs(model, flat, x, y):
    return jax.vmap(lambda f, x, y: _outputs(model, model.unravel(f), x, y))(flat, x, y)


def _own_outputs(model, flat, x, y, offsets):
    """Each client's records through its own parameters, back in the dataset's order."""
    counts = np.diff(offsets)
    used = np.arange(max(counts.max(), 1)) < counts[:, None]
    padded_x = np.zeros((*used.shape, x.shape[1]), np.float32)
    padded_y = np.zeros(used.shape, np.int32)
    padded_x[used], padded_y[used] = x, y
    outputs = _stacked_outputs(model, flat, padded_x, padded_y)
    return [np.asarray(part)[used] for part in outputs]


def _auc(probabilities: np.ndarray, y: np.ndarray) -> float:
    classes = np.unique(y)
    if len(classes) < 2:
        return float("nan")
    if probabilities.shape[1] == 2:
        return area_under_curve(probabilities[:, 1], y == 1)
    return float(np.mean([area_under_curve(probabilities[:, k], y == k) for k in classes]))


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the exact area under the ROC curve: the Mann-Whitney statistic over its largest.

    Args:
        scores: ``[records]``; higher means more likely positive.
        positive: ``[records] bool``.

    Returns:
        A number in [0, 1]; NaN if all records are positive or none is.

    Example:
        >>> import numpy as np
        >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        0.875

    Source:
        Hanley, McNeil 1982, "The Meaning and Use of the Area under a ROC Curve", section III.
    """
    positive = np.asarray(positive, bool)
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return float("nan")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(ties) - (ties - 1) / 2  # tied scores share their mean rank
    statistic = rank[place.reshape(-1)][positive].sum() - ups * (ups + 1) / 2
    return float(statistic / (ups * downs))


def _refuse(need: str, found: str, fix: str) -> SpecError:
    return SpecError("evaluate", need=need, found=found, fix=fix)
