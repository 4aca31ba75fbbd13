"""Taps: where each record's own gradient of a layer's parameters can be read without making it.

The gradient of a dense layer's kernel is, for one record, the outer product of the layer's input
and of the gradient at its output. Both are there after one ordinary pass through a batch, so the
norm of each record's gradient follows without the gradient itself. To get the gradient at an
output, zeros are added to it, and the loss is differentiated by these zeros. Layers with few
parameters, or with parameters that serve at many places of a record, differentiate by zeros that
stand for a copy of the parameters for each record: that gives each record's gradient itself.

A module's layers are found while it runs (`flax.linen.intercept_methods`). What no tap covers is
found out and not assumed: the program is traced with a second copy of the parameters that only
taps do not read, and a parameter is covered where no output depends on that copy.

Source: X. Li et al., Large language models can be strong differentially private learners, ICLR
2022 (ghost clipping); Z. Bu et al., Differentially private optimization on large model at small
cost, ICML 2023 (book-keeping: no second pass through the network).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.models.layers.convolution import (
    Conv,
    ConvReluPool,
    conv,
    conv_relu_pool,
    lax_convolution,
    own_by_patches,
    with_bias,
)
from fedjax_secure.models.layers.lstm import Lstm, lstm
from fedjax_secure.models.layers.products import Embed, embed, linear_own, shared_product

Path = tuple[str, ...]
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Tap(NamedTuple):
    """Where the gradients of one or two parameter arrays can be read.

    Attributes:
        layer: its path in the network, as text.
        kind: ``"outer"``: zeros stand at a dense layer's output, and a record's gradient is the
            outer product of the layer's input and the zeros' gradient; of its bias, if there is
            one, that gradient itself. ``"own"``: zeros stand for one parameter array of each
            record, and their gradient is the record's. ``"lookup"``: zeros stand at the output of
            an embedding, whose input is token numbers.
        leaves: places of the arrays among ``jax.tree.leaves(params)``; of ``"outer"`` the kernel
            and perhaps the bias.
        shape: of the zeros for one record.
    """

    layer: str
    kind: Literal["outer", "own", "lookup"]
    leaves: tuple[int, ...]
    shape: tuple[int, ...]


class Tapped(NamedTuple):
    """A network with its taps.

    Attributes:
        taps: in the order in which ``losses`` takes zeros for them.
        one_by_one: layers of an unknown kind, whose parameters are copied for each record.
        untapped: names of parameters that no tap covers, with the reason; empty where each record's
            whole gradient can be read.
        losses: ``(params, zeros, x, y) -> (losses [records], inputs)``: ``zeros`` has an array
            ``[records, *shape]`` for each tap; ``inputs`` has an array for each tap that needs its
            layer's input, and None for the others.
    """

    taps: tuple[Tap, ...]
    one_by_one: tuple[str, ...]
    untapped: tuple[str, ...]
    losses: Callable[..., tuple[jax.Array, tuple[Any, ...]]]


def tapped(
    module: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    params: Any,
    prepare: Callable[[jax.Array], jax.Array],
    example: jax.ShapeDtypeStruct,
) -> Tapped:
    """Finds the taps of a network.

    Args:
        module: the network.
        loss: ``(logits, y) -> [records]``.
        params: its parameters, or their shapes.
        prepare: makes of rows what the module takes.
        example: the shape of what the module takes, for one record.

    Returns:
        The network with its taps. Where the module cannot be taken apart at all, because a layer
        runs inside a loop for example, every parameter is untapped.
    """
    places = _places(params)
    found = [_plan(module, params, places, example, records) for records in (3, 5)]
    first, second = found
    if first != second:
        reason = "its layers see something else than records along their first axis"
        first = _Plan((), frozenset(), (), tuple((path, reason) for path in places))
    untapped = tuple(f"{'/'.join(path)} ({reason})" for path, reason in first.untapped)

    def losses(params, zeros, x, y):
        recorder = _Recorder(params, places, len(x), zeros, first.many, set(first.paths))
        logits = _run(module, recorder, params, prepare(x))
        return loss(logits, y), tuple(recorder.inputs)

    return Tapped(tuple(first.taps), tuple(first.one_by_one), untapped, losses)


class _Plan(NamedTuple):
    taps: tuple[Tap, ...]
    many: frozenset[Path]  # layers that are called more than once
    one_by_one: tuple[str, ...]
    untapped: tuple[tuple[Path, str], ...]
    paths: tuple[Path, ...] = ()


def _places(params: Any) -> dict[Path, int]:
    with_path, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        tuple(str(getattr(key, "key", key)) for key in path): place
        for place, (path, _) in enumerate(with_path)
    }


def _plan(module, params, places, example, records) -> _Plan:
    many: frozenset[Path] = frozenset()
    for _ in range(2):  # a layer that turns out to be called twice is tapped in another way
        try:
            recorder, reached = _dependencies(module, params, places, example, records, many)
        except Exception as error:  # a module is the user's code: it may do anything
            reason = f"{type(error).__name__} while it was taken apart"
            return _Plan((), many, (), tuple((path, reason) for path in places))
        if recorder.again <= many:
            break
        many |= recorder.again
    covered = {leaf for tap in recorder.taps for leaf in tap.leaves}
    untapped = []
    for path, place in places.items():
        if place in reached:
            untapped.append((path, "used outside of layers that are known"))
        elif place not in covered and path[:-1] in recorder.refused:
            untapped.append((path, "its layer is used in two ways"))
    return _Plan(
        tuple(recorder.taps), many, tuple(recorder.one_by_one), tuple(untapped),
        tuple(dict.fromkeys(recorder.paths)),
    )  # fmt: skip


def _dependencies(module, params, places, example, records, many):
    """Runs the network on shapes; which parameters the logits depend on besides taps."""
    x = jax.ShapeDtypeStruct((records, *example.shape[1:]), example.dtype)
    recorders = []

    def run(others, params, x):
        recorder = _Recorder(params, places, records, None, many, None)
        recorders.append(recorder)
        logits = _run(module, recorder, others, x)
        return logits, [part for part in recorder.inputs if part is not None]

    program = jax.make_jaxpr(run)(params, params, x).jaxpr
    count = len(places)
    depends: dict[Any, set[int]] = {var: {k} for k, var in enumerate(program.invars[:count])}
    for equation in program.eqns:
        reached = set().union(
            *(depends.get(var, ()) for var in equation.invars if not hasattr(var, "val"))
        )
        if reached:
            depends.update({var: reached for var in equation.outvars})
    outputs = [var for var in program.outvars if not hasattr(var, "val")]
    return recorders[-1], set().union(*(depends.get(var, ()) for var in outputs))


def _run(module, recorder, others, x):
    recorder.others = others
    with nn.intercept_methods(recorder.intercept):
        return module.apply({"params": others}, x)


def _at(params: Any, path: Path) -> Any:
    for name in path:
        params = params[name]
    return params


class _Recorder:
    """Runs known layers with zeros, and notes where.

    Args:
        params: the parameters that taps read.
        places: of parameter arrays among the leaves, by path.
        records: of the batch.
        zeros: for each tap; None to make them.
        many: paths of layers that are called several times.
        only: paths of layers to tap; None for all that can be.
    """

    def __init__(self, params, places, records, zeros, many, only):
        self.params, self.places, self.records = params, places, records
        self.others: Any = None  # what the module itself is run with
        self.zeros, self.many, self.only = zeros, many, only
        self.taps: list[Tap] = []
        self.inputs: list[Any] = []
        self.paths: list[Path] = []
        self.one_by_one: list[str] = []
        self.again: frozenset[Path] = frozenset()
        self.refused: set[Path] = set()
        self._of_leaf: dict[int, jax.Array] = {}
        self._inside = False

    def intercept(self, next_fun, args, kwargs, context):
        module = context.module
        path = tuple(module.path)
        if self._inside or context.method_name != "__call__" or not self._has_params(path):
            return next_fun(*args, **kwargs)
        if self.only is not None and path not in self.only:
            return next_fun(*args, **kwargs)
        fits = len(args) >= 1 and not kwargs and all(map(self._is_batch, args))
        fits = fits and self._holds_its_own(module, path)
        if fits:
            rule = _RULES.get(type(module), _layer_of_unknown_kind)
            self._inside = True
            try:
                result = rule(self, module, path, *args)
            finally:
                self._inside = False
            if result is not None:
                self.paths.append(path)
                return result
        return next_fun(*args, **kwargs)

    def _has_params(self, path: Path) -> bool:
        subtree = self.params
        for name in path:
            if not isinstance(subtree, dict) or name not in subtree:
                return False
            subtree = subtree[name]
        return True

    def _holds_its_own(self, module: nn.Module, path: Path) -> bool:
        """Whether a layer computes with the parameters at its path as they are.

        Inside a transformation (map_variables, scan, vmap) it gets what that makes of them.
        """
        held = jax.tree.leaves(module.variables.get("params", {}))
        own = jax.tree.leaves(_at(self.others, path))
        return len(held) == len(own) and all(map(operator.is_, held, own))

    def _is_batch(self, array: Any) -> bool:
        shape = getattr(array, "shape", ())
        return len(shape) >= 1 and shape[0] == self.records

    def of(self, path: Path) -> Any:
        """The parameters of the layer at a path."""
        return _at(self.params, path)

    def own(self, path: Path, *names: str) -> tuple[jax.Array, ...]:
        """Zeros for parameters of a layer, one copy for each record; the same in each call."""
        found = []
        for name in names:
            place = self.places[(*path, name)]
            if place not in self._of_leaf:
                shape = self.of(path)[name].shape
                self._of_leaf[place] = self._tap(path, "own", (place,), shape, None)
            found.append(self._of_leaf[place])
        return tuple(found)

    def outer(self, path: Path, names: Sequence[str], shape, saved, kind="outer") -> jax.Array:
        """Zeros for a layer's output."""
        leaves = tuple(self.places[(*path, name)] for name in names)
        if leaves[0] in self._of_leaf:
            self.again |= {path}
        self._of_leaf[leaves[0]] = zeros = self._tap(path, kind, leaves, shape, saved)
        return zeros

    def _tap(self, path, kind, leaves, shape, saved):
        if self.zeros is None:
            zeros = jnp.zeros((self.records, *shape), jnp.float32)
        else:
            zeros = self.zeros[len(self.taps)]
        self.taps.append(Tap("/".join(path) or "the network", kind, leaves, tuple(shape)))
        self.inputs.append(saved)
        return zeros


# -- one function a kind of layer: what it computes, with zeros; None where it is not known so -----


def _is_plain(x: jax.Array, module: Any) -> bool:
    """Whether a layer computes in float32 throughout."""
    return x.dtype == jnp.float32 and getattr(module, "dtype", None) in (None, jnp.float32)


def _is_known(module: nn.Module, *handled: str) -> bool:
    """Whether a layer differs from its kind's defaults in settings only that its rule looks at.

    A product or a promotion of the user's own, for example, would be left out in silence.
    """
    names = {"parent", "name", "param_dtype", *handled}
    return all(
        getattr(module, field.name) is field.default
        for field in dataclasses.fields(module)
        if field.name not in names
    )


def _dense(recorder: _Recorder, module: nn.Dense, path: Path, x: jax.Array) -> Any:
    handled = ("features", "use_bias", "dtype", "precision", "kernel_init", "bias_init")
    if not _is_known(module, *handled) or not _is_plain(x, module) or x.ndim < 2:
        return None
    params = recorder.of(path)
    kernel, names = params["kernel"], ["kernel", "bias"][: len(params)]
    if x.ndim == 2 and path not in recorder.many:
        product = jnp.dot(x, kernel, precision=module.precision)
        y = product + recorder.outer(path, names, kernel.shape[1:], x)
        return y + params["bias"] if module.use_bias else y
    own = recorder.own(path, *names)
    places = x.reshape(x.shape[0], -1, x.shape[-1])
    y = shared_product(places, kernel, own[0]).reshape(*x.shape[:-1], -1)
    return with_bias(y, params["bias"], own[1]) if module.use_bias else y


def _conv(recorder: _Recorder, module: Conv, path: Path, x: jax.Array) -> Any:
    params = recorder.of(path)
    y = conv(
        x,
        params["kernel"],
        strides=module.strides,
        padding=module.padding,
        implementation=module.implementation,
        own=recorder.own(path, "kernel")[0],
    )
    return with_bias(y, params["bias"], *recorder.own(path, "bias")) if module.use_bias else y


def _conv_relu_pool(recorder: _Recorder, module: ConvReluPool, path: Path, x: jax.Array) -> Any:
    params = recorder.of(path)
    return conv_relu_pool(
        x,
        params["kernel"],
        params["bias"],
        padding=module.padding,
        implementation=module.implementation,
        own=recorder.own(path, "kernel", "bias"),
    )


_CONV_SETTINGS = (
    "features", "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation",
    "feature_group_count", "use_bias", "mask", "dtype", "kernel_init", "bias_init",
)  # fmt: skip


def _flax_conv(recorder: _Recorder, module: nn.Conv, path: Path, x: jax.Array) -> Any:
    axes = len(module.kernel_size)
    dilated = (module.input_dilation, module.kernel_dilation)
    named = isinstance(module.padding, str) and module.padding.upper() in ("SAME", "VALID")
    plain = (
        _is_known(module, *_CONV_SETTINGS)
        and _is_plain(x, module)
        and x.ndim == axes + 2 <= 5
        and module.feature_group_count == 1
        and all(rate in (None, 1) or set(rate) == {1} for rate in dilated)
        and module.mask is None
        and named
    )
    if not plain:
        return _layer_of_unknown_kind(recorder, module, path, x)
    params, strides = recorder.of(path), module.strides or 1
    strides = (strides,) * axes if isinstance(strides, int) else tuple(strides)
    shape = params["kernel"].shape
    edges = tuple(lax.padtype_to_pads(x.shape[1:-1], shape[:-2], strides, module.padding.upper()))
    apply = partial(lax_convolution, strides, edges)
    own_of = partial(own_by_patches, strides, edges)
    y = linear_own(apply, own_of, x, params["kernel"], *recorder.own(path, "kernel"))
    return with_bias(y, params["bias"], *recorder.own(path, "bias")) if module.use_bias else y


def _lstm(recorder: _Recorder, module: Lstm, path: Path, x: jax.Array) -> Any:
    names = ("kernel", "recurrent", "bias")
    params = recorder.of(path)
    return lstm(x, *(params[name] for name in names), own=recorder.own(path, *names))


def _embed(recorder: _Recorder, module: Embed, path: Path, tokens: jax.Array) -> Any:
    return embed(tokens, recorder.of(path)["embedding"], own=recorder.own(path, "embedding")[0])


def _flax_embed(recorder: _Recorder, module: nn.Embed, path: Path, tokens: jax.Array) -> Any:
    table = recorder.of(path)["embedding"]
    known = _is_known(module, "num_embeddings", "features", "dtype", "embedding_init")
    plain = known and module.dtype in (None, jnp.float32) and len(table) >= 2
    if path in recorder.many or not plain:
        recorder.refused.add(path)
        return None
    tokens = tokens.astype(jnp.int32)
    tokens = jnp.where(tokens < 0, tokens + len(table), tokens)  # -1 is the last: the same token
    shape = (*tokens.shape[1:], table.shape[1])
    return jnp.take(table, tokens, axis=0) + recorder.outer(
        path, ["embedding"], shape, tokens, "lookup"
    )


def _norm(recorder: _Recorder, module: Any, path: Path, x: jax.Array) -> Any:
    """Normalised values, scaled and shifted by a copy of scale and bias for each record."""
    axes = getattr(module, "feature_axes", -1)
    if not _is_plain(x, module) or axes not in (-1, (-1,), x.ndim - 1) or x.ndim < 2:
        return _layer_of_unknown_kind(recorder, module, path, x)
    params = recorder.of(path)
    settings = {"use_scale": False}
    if hasattr(module, "use_bias"):
        settings["use_bias"] = False
    y = module.clone(parent=None, **settings).apply({}, x)
    if "scale" in params:
        (own,) = recorder.own(path, "scale")
        y = y * (params["scale"] + own).reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)
    return with_bias(y, params["bias"], *recorder.own(path, "bias")) if "bias" in params else y


def _layer_of_unknown_kind(recorder: _Recorder, module: nn.Module, path: Path, *args) -> Any:
    """A layer that has arrays of its own and no layers inside: record by record, with copies."""
    params = recorder.of(path)
    if not isinstance(params, dict) or any(isinstance(part, dict) for part in params.values()):
        return None
    names = sorted(params)
    alone = module.clone(parent=None)

    def one(own, *record):
        copies = {name: params[name] + zeros for name, zeros in zip(names, own, strict=True)}
        result = alone.apply({"params": copies}, *(part[None] for part in record))
        return jax.tree.map(lambda part: part[0], result)

    recorder.one_by_one.append(f"{'/'.join(path) or 'the network'} ({type(module).__name__})")
    return jax.vmap(one)(recorder.own(path, *names), *args)


_RULES: dict[type, Callable[..., Any]] = {
    nn.Dense: _dense,
    Conv: _conv,
    ConvReluPool: _conv_relu_pool,
    nn.Conv: _flax_conv,
    Lstm: _lstm,
    Embed: _embed,
    nn.Embed: _flax_embed,
    **dict.fromkeys(_NORMS, _norm),
}
