"""The type of every model, and how a flax module becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_secure.core.errors import SpecError

Params = Any


class Described(Protocol):
    """A dataset, as far as a model's shape depends on it."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A classifier as pure functions, with its parameters as a pytree or as one flat vector.

    Clipping, noise and encryption act on one flat vector; training acts on the pytree. `ravel`
    and `unravel` go between them in an order that never changes: the leaves in the order of
    `jax.tree.leaves` (sorted keys), each in C order.

    Two classes may be told apart by one output: a single logit z, with probability
    1 / (1 + exp(-z)) of class 1 and sigmoid cross-entropy. Otherwise there is one logit a class
    and softmax cross-entropy.

    Attributes:
        name: what the model is called.
        num_features: features of a record.
        num_classes: classes.
        dim: number of parameters.
        init: ``key -> params``.
        apply: ``(params, x [records, features]) -> [records, outputs] float32``, logits.
        loss: ``(params, x, y [records] int32) -> [records] float32``, cross-entropy, nats.
        probabilities: ``logits [records, outputs] -> [records, classes] float32``.
        ravel: ``params -> [dim] float32``.
        unravel: ``[dim] float32 -> params``.

    Example:
        >>> import jax
        >>> from fedjax_secure.models import logistic_regression
        >>> model = logistic_regression(3, 2)
        >>> params = model.init(jax.random.key(0))
        >>> model, model.ravel(params).shape
        (Model('logistic_regression', features=3, classes=2, dim=4), (4,))
    """

    name: str
    num_features: int
    num_classes: int
    dim: int
    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
    probabilities: Callable[[jax.Array], jax.Array]
    ravel: Callable[[Params], jax.Array]
    unravel: Callable[[jax.Array], Params]

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, features={self.num_features}, classes={self.num_classes}, "
            f"dim={self.dim})"
        )


def from_flax(
    module: nn.Module,
    data: Described | int,
    classes: Sequence[str] | int | None = None,
    *,
    name: str | None = None,
) -> Model:
    """Makes a model of any flax.linen module that maps ``[records, features]`` to logits.

    Args:
        module: the network. It has parameters only (no batch statistics, no dropout), in float32,
            and one output a class, or one output where there are two classes.
        data: a dataset, or the number of features.
        classes: the classes or their number; taken from the dataset if there is one.
        name: what the model is called; by default the module's class.

    Returns:
        The model.

    Raises:
        SpecError: features or classes that are not given or too few, a module with other variables
            than parameters, parameters that are not float32, or a wrong number of outputs.

    Example:
        >>> import flax.linen as nn
        >>> from fedjax_secure.models import from_flax
        >>> from_flax(nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(3)]), 4, 3, name="tanh")
        Model('tanh', features=4, classes=3, dim=43)
    """
    name = name or type(module).__name__
    num_features, num_classes = _shape(name, data, classes)

    def example():
        return jnp.zeros((1, num_features), jnp.float32)

    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), example()))
    if set(variables) != {"params"}:
        raise _refuse(
            name,
            "a module with parameters only",
            f"the collections {sorted(variables)}",
            "Leave out layers with a state of their own, such as batch normalisation: group "
            "normalisation has none.",
        )
    leaves, tree = jax.tree.flatten(variables["params"])
    wrong = sorted({str(leaf.dtype) for leaf in leaves if leaf.dtype != jnp.float32})
    if wrong:
        raise _refuse(name, "float32 parameters", f"{wrong}", "Set param_dtype=jnp.float32.")
    logits = jax.eval_shape(lambda p: module.apply(p, example()), variables)
    outputs = logits.shape[-1] if logits.shape[:1] == (1,) and len(logits.shape) == 2 else None
    single = outputs == 1 and num_classes == 2
    if not single and outputs != num_classes:
        raise _refuse(
            name,
            f"logits of shape [records, {num_classes}]"
            + (" or [records, 1]" if num_classes == 2 else ""),
            f"[records, ...] -> {list(logits.shape)} for one record",
            "Give the last layer one output for each class.",
        )
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    dim = int(ends[-1])

    def init(key):
        return module.init(key, example())["params"]

    def apply(params, x) -> Any:
        return module.apply({"params": params}, x)

    def loss(params, x, y):
        logits = apply(params, x)
        if single:
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], y.astype(logits.dtype))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    def probabilities(logits):
        if single:
            return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=1)
        return jax.nn.softmax(logits)

    def ravel(params):
        found, structure = jax.tree.flatten(params)
        if structure != tree or [np.shape(leaf) for leaf in found] != shapes:
            raise _refuse(
                name,
                f"its own parameters ({dim} in {len(shapes)} arrays)",
                f"a pytree of {len(found)} arrays, {sum(np.size(leaf) for leaf in found)} in all",
                "Use the parameters that this model's init(key) makes.",
            )
        return jnp.concatenate([jnp.asarray(leaf, jnp.float32).reshape(-1) for leaf in found])

    def unravel(flat):
        if np.shape(flat) != (dim,):
            raise _refuse(
                name, f"a flat vector of shape [{dim}]", f"{list(np.shape(flat))}", "Check it."
            )
        parts = jnp.split(jnp.asarray(flat, jnp.float32), ends[:-1])
        return jax.tree.unflatten(
            tree, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        )

    return Model(
        name, num_features, num_classes, dim, init, apply, loss, probabilities, ravel, unravel
    )


def _shape(
    name: str, data: Described | int, classes: Sequence[str] | int | None
) -> tuple[int, int]:
    if isinstance(data, int | np.integer) and not isinstance(data, bool):
        features = int(data)
    elif hasattr(data, "feature_names") and hasattr(data, "classes"):
        features = len(data.feature_names)
        if classes is None:
            classes = data.classes
    else:
        raise _refuse(
            name,
            "a dataset or a number of features",
            type(data).__name__,
            "Give the dataset that it will be trained on.",
        )
    if classes is None:
        raise _refuse(name, "the classes", "none", "Give classes=2, or a dataset.")
    count = int(classes) if isinstance(classes, int | np.integer) else len(classes)
    if features < 1 or count < 2:
        raise _refuse(
            name,
            "at least one feature and two classes",
            f"{features} and {count}",
            "Check the dataset.",
        )
    return features, count


def num_outputs(name: str, data: Described | int, classes: Sequence[str] | int | None) -> int:
    """Returns how many logits a model for these classes has: 1 for two classes."""
    _, count = _shape(name, data, classes)
    return 1 if count == 2 else count


def _refuse(name: str, need: str, found: str, fix: str) -> SpecError:
    return SpecError(f"model `{name}`", need=need, found=found, fix=fix)
