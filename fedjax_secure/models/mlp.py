"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.model import Data, Model, from_flax, num_outputs


class _Perceptron(nn.Module):
    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


def mlp(
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    hidden: Sequence[int] = (32,),
) -> Model:
    """A multilayer perceptron with ReLU between its layers.

    For two classes it has one logit and sigmoid cross-entropy; for more, one logit a class and
    softmax cross-entropy. Weights start by LeCun's normal rule, biases at zero.

    Args:
        data: a dataset, the number of features, or the shape of a record.
        classes: the classes or their number; taken from the dataset if there is one.
        hidden: the width of each hidden layer.

    Returns:
        The model.

    Raises:
        SpecError: features or classes that are not given or too few, or a width below 1.

    Example:
        >>> from fedjax_secure.models import mlp
        >>> mlp(784, 10, hidden=(200, 200))
        Model('mlp', features=784, classes=10, dim=199210)
    """
    widths = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise SpecError(
            "model `mlp`",
            need="one or more hidden layers of width 1 or more",
            found=f"hidden={hidden!r}",
            fix="Write hidden=(32,), or use logistic_regression(...) for none.",
        )
    return from_flax(
        _Perceptron(widths, num_outputs("mlp", data, classes)), data, classes, name="mlp", shape=()
    )
