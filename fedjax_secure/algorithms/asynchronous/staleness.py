"""Models of different age: where a client starts, and what its late update weighs."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Cohort, SpecError
from ..algorithm import Model, Params, check_number, example_weights

Kind = Literal["constant", "polynomial", "hinge"]


def staleness_weights(
    staleness: np.ndarray, kind: Kind = "polynomial", *, a: float = 0.5, b: float = 4.0
) -> np.ndarray:
    """What updates of some staleness are multiplied by: 1 for a fresh one, less for older ones.

    Args:
        staleness: int, how many steps of the server ago a client got its model.
        kind: ``"constant"``: 1; ``"polynomial"``: (staleness + 1)^-a; ``"hinge"``: 1 up to b, then
            1 / (a (staleness - b) + 1).
        a: how fast weights fall.
        b: up to where a hinge is flat.

    Returns:
        float64, of the same shape.

    Raises:
        SpecError: an unknown kind, or negative numbers.

    Example:
        >>> staleness_weights(np.array([0, 3, 15])).tolist()
        [1.0, 0.5, 0.25]
        >>> staleness_weights(np.array([0, 4, 6]), "hinge", a=0.5, b=4).tolist()
        [1.0, 1.0, 0.5]

    Source:
        Xie et al. 2019, "Asynchronous Federated Optimization", section 5.2.
    """
    check_staleness("staleness_weights", kind, a, b)
    age = np.asarray(staleness, np.float64)
    if kind == "polynomial":
        return (age + 1.0) ** -a
    if kind == "hinge":
        return 1.0 / (a * np.maximum(age - b, 0.0) + 1.0)
    return np.ones_like(age)


def check_staleness(name: str, kind: Any, a: float, b: float) -> None:
    """Refuse an unknown kind of weights, or negative numbers."""
    if kind not in ("constant", "polynomial", "hinge"):
        raise SpecError(name, need='staleness "constant", "polynomial" or "hinge"',
                        found=repr(kind), fix="Leave it out for the second.")
    check_number(name, least=0, a=a, b=b)


def check_versions(name: str, max_staleness: Any) -> None:
    """Refuse anything but a whole number of past models, 1 or more."""
    whole = isinstance(max_staleness, int | np.integer) and not isinstance(max_staleness, bool)
    if not whole or max_staleness < 1:
        raise SpecError(name, need="max_staleness, a whole number of 1 or more",
                        found=repr(max_staleness), fix="Try 20.")


def stale_numbers(
    cohort: Cohort, max_staleness: int, kind: Kind, a: float, b: float, *, weighted: bool
) -> dict[str, np.ndarray]:
    """Each client's version and weight; what is older than any version kept weighs nothing."""
    zeros = np.zeros(len(cohort.clients), np.int32)
    age = zeros if cohort.staleness is None else np.asarray(cohort.staleness, np.int32)
    weights = example_weights(cohort, weighted=weighted) * staleness_weights(age, kind, a=a, b=b)
    return {"version": np.minimum(age, max_staleness),
            "weight": np.where(age <= max_staleness, weights, 0.0).astype(np.float32)}


def first_versions(model: Model, params: Params, max_staleness: int) -> jax.Array:
    """``[max_staleness, dim]``: before the first round every past model is the first."""
    return jnp.tile(model.ravel(params), (max_staleness, 1))


def next_versions(model: Model, params: Params, past: jax.Array) -> jax.Array:
    """The past models after a step: ``params``, from before it, is now one step old."""
    return jnp.concatenate([model.ravel(params)[None], past])[: len(past)]


def version(model: Model, shared: Any, own: Any) -> Params:
    """The model that a client starts from: ``own["version"]`` steps old."""
    old = shared["past"][jnp.maximum(own["version"] - 1, 0)]
    fresh = own["version"] == 0
    return jax.tree.map(lambda new, o: jnp.where(fresh, new, o), shared["params"],
                        model.unravel(old))


def with_past(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
    """What clients get: the newest model and those that came before."""
    return {"params": params, "past": server_state["past"]}
