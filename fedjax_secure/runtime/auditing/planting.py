"""Canaries in a federation's own data: units that push the model along directions of their own.

A federation trains a model on records. To have a unit send a crafted value through everything
that a real one goes through (the engine, sampling, clipping, rounding, noise), the audit marks
records in a few more columns, and gives the model a loss that reads the mark: of a marked record
the loss is linear in one parameter, so its gradient is that parameter's axis, far longer than any
clipping bound. Shapes, programs, counts and the chain's plan stay those of the federation.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ...core import SpecError
from ...data import FederatedDataset
from ...data.dataset import frozen
from ...models import Model

#: What a record does: train as it is, say nothing, or move one parameter up or down.
REAL, SILENT, UP, DOWN = 0, 1, 2, 3
_DIGITS = 3
MARK_COLUMNS = 1 + _DIGITS
_MOST_DIRECTIONS = 256**_DIGITS


class Marks(NamedTuple):
    """What each record of a dataset does.

    Attributes:
        kind: uint8 [records]: REAL, SILENT, UP or DOWN (along the gradient that it sends).
        direction: int64 [records]: the parameter's place in the flat vector.
    """

    kind: np.ndarray
    direction: np.ndarray


def planted_model(model: Model, gain: float) -> Model:
    """The same network, whose loss obeys the marks of :func:`marked`.

    Args:
        model: the federation's.
        gain: length of a marked record's gradient.

    Returns:
        A model of records with ``MARK_COLUMNS`` more columns; unmarked records train as before.

    Raises:
        SpecError: more parameters than a mark can name.
    """
    if model.dim > _MOST_DIRECTIONS:
        raise SpecError("an audit", need=f"a model of up to {_MOST_DIRECTIONS} parameters",
                        found=f"{model.dim}", fix="Audit the chain alone: fs.runtime.audit_chain.")

    def parts(x):
        mark = x[:, -MARK_COLUMNS:].astype(jnp.int32)
        place = jnp.zeros(len(x), jnp.int32)
        for digit in range(_DIGITS):
            place = place + (mark[:, 1 + digit] << (8 * digit))
        return x[:, :-MARK_COLUMNS], mark[:, 0], place

    def apply(params, x):
        return model.apply(params, parts(x)[0])

    def loss(params, x, y):
        records, kind, place = parts(x)
        slope = jnp.where(kind == UP, gain, jnp.where(kind == DOWN, -gain, 0.0))
        crafted = slope.astype(jnp.float32) * model.ravel(params)[place]
        return jnp.where(kind == REAL, model.loss(params, records, y), crafted)

    return dataclasses.replace(
        model, name=f"{model.name}, planted", num_features=model.num_features + MARK_COLUMNS,
        apply=apply, loss=loss, shape=())


def marked(data: FederatedDataset, marks: Marks, labels: np.ndarray | None = None,
           ) -> FederatedDataset:
    """The same records with their marks in more columns, and other labels where they are given."""
    digits = [(marks.direction >> (8 * digit)) & 255 for digit in range(_DIGITS)]
    columns = np.stack([marks.kind, *digits], axis=1).astype(data.x.dtype)
    test = np.zeros((len(data.test_y), MARK_COLUMNS), data.x.dtype)
    names = tuple(f"audit mark {place}" for place in range(MARK_COLUMNS))
    return data.derive(
        name=f"{data.name}, with canaries", shape=(), feature_names=(*data.feature_names, *names),
        x=frozen(np.concatenate([data.x, columns], axis=1)),
        y=data.y if labels is None else frozen(np.asarray(labels, np.int32)),
        test_x=frozen(np.concatenate([data.test_x, test], axis=1)))
