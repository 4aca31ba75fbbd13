"""Logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from fedjax_secure.models.model import Data, Model, from_flax, num_outputs


def logistic_regression(data: Data, classes: Sequence[str] | int | None = None) -> Model:
    """A linear classifier: convex, few parameters, the right first model under privacy noise.

    It starts at zero, so `init` gives the same parameters for every key. For two classes it has
    one logit and sigmoid cross-entropy; for more, one logit a class and softmax cross-entropy.

    Args:
        data: a dataset, the number of features, or the shape of a record.
        classes: the classes or their number; taken from the dataset if there is one.

    Returns:
        The model; its `dim` is ``features + 1`` for two classes.

    Raises:
        SpecError: features or classes that are not given or too few.

    Example:
        >>> from fedjax_secure.models import logistic_regression
        >>> logistic_regression(30, ("no", "yes"))
        Model('logistic_regression', features=30, classes=2, dim=31)
    """
    name = "logistic_regression"
    outputs = num_outputs(name, data, classes)
    module = nn.Dense(outputs, kernel_init=nn.initializers.zeros)
    return from_flax(module, data, classes, name=name, shape=())
