"""Clip each layer of a model to a norm of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Spec, Stage, Static, Stream
from ...core.spec import Unit
from ...core.stage import need
from .norms import need_bound, need_unclipped, need_unit, scaled_down

_NAME = "clip_layers"


class Layered(Protocol):
    """A model whose parameters come in layers; `fedjax_secure.models.Model` is one."""

    def init(self, key: jax.Array) -> Any: ...


def layer_sizes(model: Layered) -> dict[str, int]:
    """How many values each layer has, in the order in which a client's vector begins them.

    A layer is what shares all of a parameter's path but its last step: a kernel and its bias.

    Args:
        model: as a federation takes it.

    Example:
        >>> import fedjax_secure as fs
        >>> layer_sizes(fs.models.mlp(fs.data.heart_disease(), hidden=(8,)))
        {'Dense_0': 248, 'Dense_1': 9}
    """
    return {layer: sum(end - start for start, end in places)
            for layer, places in _layer_places(model).items()}


def _layer_places(model: Layered) -> dict[str, list[tuple[int, int]]]:
    """Where each layer's values lie: from, to. Another layer's may lie between them."""
    places: dict[str, list[tuple[int, int]]] = {}
    shapes, start = jax.eval_shape(model.init, jax.random.key(0)), 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        layer = ".".join(str(getattr(step, "key", getattr(step, "idx", step)))
                         for step in path[:-1]) or "model"
        places.setdefault(layer, []).append((start, start + math.prod(leaf.shape)))
        start += math.prod(leaf.shape)
    return places


def clip_layers(model: Layered, *, total: float | None = None,
                bounds: Mapping[str, float] | None = None, unit: Unit = "client") -> Stage:
    """Scale each layer's part of a vector down to a norm of its own.

    One layer with large gradients then does not shrink all others. Give ``total`` or ``bounds``.

    Args:
        model: whose layers they are; clients send one value for each of its parameters.
        total: the norm of the whole vector; each of m layers gets ``total / sqrt(m)``.
        bounds: a norm for each layer, by the names that :func:`layer_sizes` gives.
        unit: whose vector is clipped, as for `clip`.

    Returns:
        A stage that sets ``unit``, ``l2_bound`` (the root of the sum of the squared norms) and
        ``linf_bound``.

    Guarantees:
        Each layer's norm is at most its own, so the whole vector's is at most ``l2_bound``. What is
        accounted is what ``quantise`` checks on the integers.

    Raises:
        SpecError: both or neither of ``total`` and ``bounds``, layers that are missing or unknown,
            a norm out of range, or a vector that is not the model's.

    Example:
        >>> import fedjax_secure as fs
        >>> model = fs.models.mlp(fs.data.heart_disease(), hidden=(8,))
        >>> stage = clip_layers(model, bounds={"Dense_0": 3.0, "Dense_1": 4.0})
        >>> spec = Spec(dim=model.dim, num_clients=4, num_records=9, denominator=4.0)
        >>> stage.init(spec)[1].l2_bound
        5.0

    Source:
        McMahan, Ramage, Talwar, Zhang 2018, "Learning Differentially Private Recurrent Language
        Models", section 2 (per-layer clipping).
    """
    need_unit(_NAME, unit)
    need(hasattr(model, "init"), _NAME, "the model whose layers are clipped", f"{model!r}"[:60],
         "Give the model of the federation first: clip_layers(model, total=1.0).")
    sizes = layer_sizes(model)
    need((total is None) != (bounds is None), _NAME, "either total or bounds",
         f"total={total!r}, bounds={bounds!r}", "Give total=1.0, for example.")
    if bounds is None:
        need_bound(_NAME, "total", total)
        assert total is not None
        bounds = dict.fromkeys(sizes, total / math.sqrt(len(sizes)))
    need(isinstance(bounds, Mapping) and set(bounds) == set(sizes), _NAME,
         f"a norm for each layer: {', '.join(sizes)}",
         ", ".join(map(str, bounds)) if isinstance(bounds, Mapping) else repr(bounds),
         "Name each layer once, or give total=...")
    for layer, bound in bounds.items():
        need_bound(_NAME, f"the norm of {layer}", bound)
    norms = [float(bounds[layer]) for layer in sizes]
    places = [np.concatenate([np.arange(*part) for part in parts])
              for parts in _layer_places(model).values()]
    back = np.argsort(np.concatenate(places))

    def init(spec: Spec) -> tuple[Any, Spec]:
        need_unclipped(_NAME, spec)
        need(not spec.rotated, _NAME, "layers that lie side by side", "a rotated vector, in "
             "which they are mixed", "Put it before rotate(...).")
        need(spec.dim == len(back), _NAME, f"one value for each of the model's {len(back)} "
             "parameters", f"vectors of {spec.dim}", "Put it first in the chain, and use an "
             "algorithm whose clients send one vector. clip(...) takes any vector.")
        return {"norms": Static(tuple(norms))}, spec.replace(
            unit=unit, l2_bound=math.sqrt(math.fsum(norm**2 for norm in norms)),
            linf_bound=max(norms))

    def client(state: Any, stream: Stream | None, value: jax.Array) -> jax.Array:
        return jnp.concatenate([
            scaled_down(value[place], norm)
            for place, norm in zip(places, state["norms"].value, strict=True)])[back]

    return Stage(_NAME, init, client, per_record=unit == "record")
