"""The type of every federated algorithm: what a client computes, and how the server steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import Aggregation, Cohort, SpecError
from ..training import ClientWork, TrainableModel

Model = TrainableModel
Params = Any


class Algorithm(NamedTuple):
    """A federated algorithm, as pure functions of a model.

    A round runs ``work`` for every client that takes part, sums what they send through the chain
    (clipping, noise, encryption), divides by a public constant, and hands that mean to ``step``.
    Everything that a client sends is in that one vector: an algorithm with several vectors
    concatenates them.

    Attributes:
        name: for records and code.
        settings: what the clients' work depends on, as text: another text is another run.
        batch_size: records in a training step.
        work: ``(model, aggregation) -> ClientWork``. Called once an experiment.
        init: ``(model, params) -> server state``, a pytree of arrays.
        shared: ``(model, params, server state, stages' states) -> pytree``, what every client gets
            this round; ``shared["params"]`` is the model.
        step: ``(model, params, server state, mean [width]) -> (params, server state)``, pure and
            jittable. ``mean`` is the sum of the clients' values over a public constant; an
            algorithm that needs a ratio of sums sends both.
        own: ``(cohort, keys) -> {name: [clients, ...]}``, each client's public numbers.
        client_state: ``(model, params) -> [state_size] float32``, what a client that has never
            taken part starts from; None where clients keep nothing.
        personal: ``(model, params, state [state_size]) -> params``, a client's own model; None
            where everyone has the global one.
        one_step: each client takes one step at the global model, so its records can be clipped one
            by one, and the sum is divided by the expected number of records.
        stale_versions: how many past models clients may start from; 0 for synchronous rounds.
        cohort_weights: a client's value depends on who else takes part in its round. Where coins
            for clients are secret, one client then moves the sum through the others' values too,
            by more than its own is clipped to, and differential privacy is refused.
        bind: ``(num_clients, denominator) -> Algorithm``: the same algorithm for a federation of
            that many clients whose sums are divided by that constant; None where it depends on
            neither. See `for_federation`.
        record_bounds: ``[records]``, by row number in the dataset: the norm to which each record's
            own gradient is clipped before the chain has it; None for no such bounds.
        client_bounds: ``[clients]``: the same for all that a client sends; see
            `with_client_bounds`.
    """

    name: str
    settings: str
    batch_size: int
    work: Callable[[Model, Aggregation], ClientWork]
    init: Callable[[Model, Params], Any]
    shared: Callable[[Model, Params, Any, Any], Any]
    step: Callable[[Model, Params, Any, jax.Array], tuple[Params, Any]]
    own: Callable[[Cohort, np.ndarray], dict[str, np.ndarray]]
    client_state: Callable[[Model, Params], np.ndarray] | None = None
    personal: Callable[[Model, Params, jax.Array], Params] | None = None
    one_step: bool = False
    stale_versions: int = 0
    cohort_weights: bool = False
    bind: Callable[[int, float], Algorithm] | None = None
    record_bounds: np.ndarray | None = None
    client_bounds: np.ndarray | None = None

    def for_federation(self, num_clients: int, denominator: float) -> Algorithm:
        """The algorithm as it runs in one federation; whoever runs rounds calls this first.

        Args:
            num_clients: clients of the whole population.
            denominator: the public constant by which a round's sum is divided, usually the
                expected number of clients in a round.

        Raises:
            SpecError: a denominator that is no positive number, where it matters.
        """
        if self.bind is None:
            return self
        check_number(self.name, above=0, denominator=denominator)
        return self.bind(num_clients, float(denominator))


def example_weights(cohort: Cohort, *, weighted: bool = True) -> np.ndarray:
    """Each client's weight in the sum, so that the sum over the expected cohort is the mean.

    Args:
        cohort: who takes part.
        weighted: by the number of examples, so that the mean over clients is the mean over
            examples (the counts are then used in the clear); else every client counts the same.

    Returns:
        float32 [clients]; 0 for clients that take no part. Their mean over the others is 1, or,
        where clients were drawn with unequal probabilities (``cohort.scale``), 1 in expectation.

    Example:
        >>> cohort = Cohort(1, ("a", "b", "c"), (np.arange(3), np.arange(1), np.arange(0)),
        ...                 np.array([True, True, False]))
        >>> example_weights(cohort).tolist()
        [1.5, 0.5, 0.0]
    """
    alive = np.asarray(cohort.alive, np.float64)
    weights = alive if cohort.scale is None else alive * cohort.scale
    if weighted and cohort.mean_count is not None:
        weights = weights * cohort.counts / cohort.mean_count
    elif weighted:
        counts = cohort.counts * alive
        weights = weights * counts * (alive.sum() / max(counts.sum(), 1.0))
    return weights.astype(np.float32)


def only_params(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
    """What clients get where the model is all they need."""
    return {"params": params}


def server_optimizer(
    server: optax.GradientTransformation, *, direction: float = -1.0
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``init`` and ``step`` of a server that takes the mean as a gradient of an optax optimiser.

    Args:
        server: the optimiser.
        direction: +1 where clients send gradients, -1 where they send what to add to the model.

    Raises:
        SpecError: no optax optimiser.

    Source:
        Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 1 (FedOpt).
    """

    check_optimizer("the server", server)

    def init(model: Model, params: Params) -> Any:
        return server.init(params)

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        gradient = model.unravel(jnp.float32(direction) * mean[: model.dim])
        updates, state = server.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return init, step


def check_optimizer(name: str, optimizer: Any) -> None:
    """Refuse what is no optax optimiser, such as a learning rate.

    Raises:
        SpecError: something else than a `GradientTransformation`.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise SpecError(name, need="an optax optimiser", found=repr(optimizer),
                        fix="Write optax.sgd(1.0), for example.")


def check_number(
    algorithm: str,
    *,
    above: float = -np.inf,
    least: float = -np.inf,
    below: float = np.inf,
    most: float = np.inf,
    **settings: float,
) -> None:
    """Refuse settings that are no finite numbers of a range.

    Args:
        algorithm: what refuses.
        above, least: lower ends, the number itself excluded and included.
        below, most: upper ends, the same.
        **settings: the settings, by name.

    Raises:
        SpecError: one of them is outside, not finite, or no number.

    Example:
        >>> check_number("fed_prox", least=0, mu=0.1)
    """
    ends = [(above, f"above {above:g}"), (least, f"{least:g} or more"),
            (below, f"below {below:g}"), (most, f"{most:g} or less")]
    said = " and ".join(text for end, text in ends if np.isfinite(end))
    for name, value in settings.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and np.isfinite(value) and above < value < below and least <= value <= most):
            raise SpecError(algorithm, need=f"{name}, a number{' ' + said if said else ''}",
                            found=repr(value), fix=f"Leave {name} out, or choose another.")
