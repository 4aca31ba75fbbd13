"""The type of every model, and how a flax module becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import InvalidRngError

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models.tapping import Tapped, tapped

Params = Any


class Described(Protocol):
    """A dataset, as far as a model's shape depends on it.

    It may have a ``shape`` too, that of one record as the model sees it, and an array ``x``, whose
    dtype is the records'.
    """

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


Data = Described | int | Sequence[int]  # a dataset, a number of features, or a record's shape


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
        num_features: numbers in a record; the product of its shape.
        num_classes: classes.
        dim: number of parameters.
        init: ``key -> params``.
        apply: ``(params, x [records, features]) -> [records, outputs] float32``, logits. ``x`` is
            float32, or int32 for tokens, or uint8 for pixels, which become value / 255.
        loss: ``(params, x, y [records] int32) -> [records] float32``: cross-entropy in nats, or
            what `from_flax` was given instead.
        probabilities: ``logits [records, outputs] -> [records, classes] float32``.
        ravel: ``params -> [dim] float32``.
        unravel: ``[dim] float32 -> params``.
        shape: the shape of a record as the network sees it; rows are reshaped to it.
        tapped: makes the network with taps at its layers, where each record's own gradient can be
            read; None for a model that has none, whose records are differentiated one by one. It
            counts only beside the ``loss`` that it names as its own ``loss``: a model with another
            one, made by `dataclasses.replace`, has no taps.

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
    shape: tuple[int, ...] = ()
    tapped: Callable[[], Tapped] | None = None

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, features={self.num_features}, classes={self.num_classes}, "
            f"dim={self.dim})"
        )


def from_flax(
    module: nn.Module,
    data: Data,
    classes: Sequence[str] | int | None = None,
    *,
    name: str | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
) -> Model:
    """Makes a model of any flax.linen module that maps records to logits.

    Records are stored as rows of numbers; the module sees ``[records, *shape]``. For speed in
    compiled loops on a CPU, build it with `Conv`, `ConvReluPool`, `max_pool` and `Lstm` of this
    package: flax's own convolution and pooling run tens of times slower there.

    Args:
        module: the network. It has parameters only (no batch statistics), in float32, takes no
            randomness when called (no dropout that is switched on), and has one output a class,
            or one output where there are two classes. A record's output must not depend on the
            other records of its batch: batches are padded, and may hold one record.
        data: a dataset, the number of features, or the shape of a record.
        classes: the classes or their number; taken from the dataset if there is one.
        name: what the model is called; by default the module's class.
        loss: ``(logits [records, outputs], y [records] int32) -> [records] float32``, in place of
            cross-entropy; one record's loss must not depend on another's.
        shape: the shape of a record, for example ``(28, 28, 1)``; by default the dataset's, and
            ``()`` for plain rows.
        dtype: of what the module takes: float32, or int32 for tokens; by default the dataset's
            (float32 for uint8), and float32 if there is none.

    Returns:
        The model.

    Raises:
        SpecError: features or classes that are not given or too few; a shape that does not fit;
            a module that is not a linen module, cannot take the records, has other variables than
            parameters, needs randomness, or has a wrong number of outputs; parameters that are not
            float32; a loss that does not give one float32 a record.

    Example:
        >>> import flax.linen as nn
        >>> from fedjax_secure.models import from_flax
        >>> from_flax(nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(3)]), 4, 3, name="tanh")
        Model('tanh', features=4, classes=3, dim=43)
    """
    if not isinstance(module, nn.Module):
        raise _refuse_module(module)
    name = name or type(module).__name__
    num_features, num_classes = _sizes(name, data, classes)
    shape = record_shape(name, data, shape)
    dtype = _record_dtype(name, data, dtype)
    example = jax.ShapeDtypeStruct((1, *(shape or (num_features,))), dtype)

    variables = _traced(name, example, lambda x: module.init(jax.random.key(0), x))
    kept = set(variables) - {"intermediates"}  # what a module notes while it runs is no state
    if kept != {"params"}:
        raise _refuse(
            name,
            "a module with parameters only",
            f"the collections {sorted(kept)}" if kept else "no parameters",
            "Leave out batch normalisation and the like: group normalisation has no state."
            if kept
            else "Give it a layer with weights.",
        )
    leaves, tree = jax.tree.flatten(variables["params"])
    wrong = sorted({str(leaf.dtype) for leaf in leaves if leaf.dtype != jnp.float32})
    if wrong:
        raise _refuse(name, "float32 parameters", f"{wrong}", "Set param_dtype=jnp.float32.")
    for records in (1, 3):  # a module may mistake the records for something else
        rows = jax.ShapeDtypeStruct((records, *example.shape[1:]), dtype)
        logits = _traced(name, rows, lambda x, p: module.apply({"params": p}, x),
                         variables["params"])  # fmt: skip
        outputs = _outputs(name, logits, num_classes, records)
    if loss is None:
        single = outputs == 1
        loss = _sigmoid_cross_entropy if single else _softmax_cross_entropy
    else:
        _check_loss(name, loss, outputs)
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    dim = int(ends[-1])

    # Compiled, only the parameters are computed: flax's own way runs the network once, operation by
    # operation, which takes a convolutional network ten seconds.
    @jax.jit
    def init(key):
        return module.init(key, jnp.zeros(example.shape, dtype))["params"]

    def as_records(x) -> Any:
        return _as_input(x, dtype).reshape(-1, *example.shape[1:])

    def apply(params, x) -> Any:
        x = jnp.asarray(x)
        if x.ndim != 2 or x.shape[1] != num_features:
            raise _refuse(
                name,
                f"x of shape [records, {num_features}]",
                f"{list(x.shape)}",
                "Give rows: one record each.",
            )
        if not len(x):
            return jnp.zeros((0, outputs), jnp.float32)
        return module.apply({"params": params}, as_records(x))

    def losses(params, x, y):
        return loss(apply(params, x), y)

    def probabilities(logits):
        if outputs == 1:
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

    @cache
    def taps():
        return tapped(module, loss, variables["params"], as_records, example)

    taps.loss = losses  # type: ignore[attr-defined]  # of this loss, and of no other
    return Model(
        name=name,
        num_features=num_features,
        num_classes=num_classes,
        dim=dim,
        init=init,
        apply=apply,
        loss=losses,
        probabilities=probabilities,
        ravel=ravel,
        unravel=unravel,
        shape=shape,
        tapped=taps,
    )


def _sigmoid_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits[:, 0], y.astype(logits.dtype))


def _softmax_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def _as_input(x: jax.Array, dtype: Any) -> jax.Array:
    """Rows as the module takes them; pixels become value / 255."""
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8 and dtype == jnp.float32:
        return x.astype(jnp.float32) / jnp.float32(255)
    return x.astype(dtype)


def _traced(name: str, example: Any, function: Callable, *rest: Any) -> Any:
    """The shapes of a function's results, or what is wrong with the module."""
    try:
        return jax.eval_shape(function, example, *rest)
    except SpecError:
        raise
    except Exception as error:  # a module is the user's code: it may fail in any way
        text = " ".join(str(error).split()).split(" (https://flax.readthedocs.io")[0]
        found = f"{type(error).__name__}: {text[:300]}"
        if isinstance(error, InvalidRngError) or "deterministic" in text:
            need = "a module that takes no randomness when it is called"
            fix = "Set deterministic=True in its Dropout layers, or leave them out."
        elif "use_running_average" in text:
            need = "a module without batch statistics"
            fix = "Use group normalisation, which has no state."
        elif "required positional argument" in text:
            need = "a module that is called with the records alone"
            fix = "Make what else it takes an attribute, or give it a default."
        else:
            need = f"a module that takes {example.dtype} of shape {list(example.shape)}"
            fix = "Give shape=... as its first layer takes a record, or change that layer."
        raise _refuse(name, need, found, fix) from error


def _outputs(name: str, logits: Any, num_classes: int, records: int) -> int:
    found = getattr(logits, "shape", None)
    right = [(records, num_classes)] + [(records, 1)] * (num_classes == 2)
    if found not in right or not jnp.issubdtype(logits.dtype, jnp.floating):
        shown = f"{list(found)} {logits.dtype}" if found is not None else type(logits).__name__
        raise _refuse(
            name,
            f"logits of shape [records, {num_classes}]"
            + (" or [records, 1]" if num_classes == 2 else ""),
            f"[records, ...] -> {shown} for {records} {'record' if records == 1 else 'records'}",
            "Give the last layer one output for each class, and each record a row.",
        )
    return found[1]


def _check_loss(name: str, loss: Callable, outputs: int) -> None:
    records = 3
    logits = jax.ShapeDtypeStruct((records, outputs), jnp.float32)
    try:
        found = jax.eval_shape(loss, logits, jax.ShapeDtypeStruct((records,), jnp.int32))
    except Exception as error:  # the user's code: it may fail in any way
        raise _refuse(
            name,
            f"a loss of jax functions that takes logits [{records}, {outputs}] and y [{records}]",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Write loss=lambda logits, y: ..., with jax.numpy.",
        ) from error
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != (records,) or dtype != jnp.float32:
        raise _refuse(
            name,
            "a loss that gives one float32 for each record",
            f"{shape} {dtype} for {records} records",
            "Leave out the mean: the engine weighs records itself.",
        )


def record_shape(name: str, data: Data, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the shape of one record: what is given, else the dataset's; () for plain rows.

    Raises:
        SpecError: a shape whose product is not the number of features.
    """
    if shape is None:
        shape = data if _is_shape(data) else getattr(data, "shape", ())
    whole = isinstance(shape, Iterable) and all(
        isinstance(side, int | np.integer) and not isinstance(side, bool) for side in shape
    )
    if not whole:
        raise _refuse(
            name, "a shape of whole numbers", repr(shape), "Write shape=(28, 28, 1), for example."
        )
    shape = tuple(int(side) for side in shape)
    features = _num_features(name, data)
    if shape and (min(shape) < 1 or int(np.prod(shape)) != features):
        raise _refuse(
            name,
            f"a record's shape of {features} numbers in all",
            f"{shape}",
            "Check it against the dataset.",
        )
    return shape


def _record_dtype(name: str, data: Data, dtype: Any) -> Any:
    if dtype is None:
        dtype = getattr(getattr(data, "x", None), "dtype", jnp.float32)
        dtype = jnp.float32 if dtype == jnp.uint8 else dtype
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float32, np.int32):
        raise _refuse(
            name, "records of float32, uint8 or int32", f"{dtype}", "Convert the dataset."
        )
    return found


def _is_shape(data: object) -> bool:
    return isinstance(data, tuple | list) and not hasattr(data, "feature_names")


def _num_features(name: str, data: Data) -> int:
    if isinstance(data, int | np.integer) and not isinstance(data, bool):
        return int(data)
    if _is_shape(data) and data and all(isinstance(n, int | np.integer) for n in data):
        return int(np.prod(data))
    if hasattr(data, "feature_names") and hasattr(data, "classes"):
        return len(data.feature_names)
    raise _refuse(
        name,
        "a dataset or a number of features (or the shape of a record)",
        type(data).__name__,
        "Give the dataset that it will be trained on.",
    )


def _sizes(name: str, data: Data, classes: Sequence[str] | int | None) -> tuple[int, int]:
    features = _num_features(name, data)
    if classes is None:
        classes = getattr(data, "classes", None)
    if classes is None:
        raise _refuse(name, "the classes", "none", "Give classes=2, or a dataset.")
    number = isinstance(classes, int | np.integer) and not isinstance(classes, bool)
    if isinstance(classes, str | bool) or not (number or hasattr(classes, "__len__")):
        raise _refuse(
            name, "the classes' names or their number", repr(classes), "Write classes=10."
        )
    count = int(classes) if number else len(classes)
    if features < 1 or count < 2:
        raise _refuse(
            name,
            "at least one feature and two classes",
            f"{features} and {count}",
            "Check the dataset.",
        )
    return features, count


def num_outputs(name: str, data: Data, classes: Sequence[str] | int | None) -> int:
    """Returns how many logits a model for these classes has: 1 for two classes."""
    _, count = _sizes(name, data, classes)
    return 1 if count == 2 else count


def _refuse_module(module: object) -> SpecError:
    kinds = {base.__module__.split(".")[:2][-1] for base in type(module).__mro__}
    fix = "Give an instance of a flax.linen.Module."
    if "nnx" in kinds:
        fix = "Write it with flax.linen, or wrap its class: flax.nnx.bridge.to_linen(Class, ...)."
    elif isinstance(module, type) and issubclass(module, nn.Module):
        fix = f"Give an instance: {module.__name__}(...)."
    found = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
    if "nnx" in kinds:
        found += ", a flax.nnx module, whose parameters were made when it was"
    return SpecError("from_flax", need="a flax.linen module", found=found, fix=fix)


def _refuse(name: str, need: str, found: str, fix: str) -> SpecError:
    return SpecError(f"model `{name}`", need=need, found=found, fix=fix)
