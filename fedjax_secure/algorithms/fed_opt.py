"""Servers with momentum or adaptive steps: FedAvgM, FedAdam, FedYogi and FedAdagrad."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import SpecError
from .algorithm import Algorithm, check_number
from .fed_avg import fed_avg


class AdaptiveState(NamedTuple):
    """What an adaptive server remembers, each in the shape of the model's parameters.

    Attributes:
        momentum: m, the moving average of the mean changes.
        variance: v, what their squares come to.
    """

    momentum: Any
    variance: Any


def adaptive_server(
    rule: Literal["adam", "yogi", "adagrad"],
    learning_rate: float,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    initial_variance: float | None = None,
) -> optax.GradientTransformation:
    """The server's step of FedAdam, FedYogi or FedAdagrad, as an optax optimiser.

    It differs from ``optax.adam`` and the like: there is no bias correction, the variance starts
    at tau^2 or above, and tau is added outside the square root. With a mean change D of a round::

        m <- beta_1 m + (1 - beta_1) D
        v <- v + D^2                                      (adagrad)
             v - (1 - beta_2) D^2 sign(v - D^2)           (yogi)
             beta_2 v + (1 - beta_2) D^2                  (adam)
        x <- x + learning_rate m / (sqrt(v) + tau)

    Args:
        rule: which variance.
        learning_rate: of the server, above 0.
        beta_1: decay of the momentum, from 0 up to below 1.
        beta_2: decay of the variance, from 0 up to below 1; adagrad has none.
        tau: how adaptive the server is: small steps D are scaled up to about D / tau at most.
        initial_variance: v before the first round, tau^2 or more; None takes tau^2.

    Returns:
        An optimiser that takes minus the mean change as its gradient, as ``server=`` of `fed_avg`
        does.

    Raises:
        SpecError: another rule, or a number outside its range.

    Example:
        >>> server = adaptive_server("adam", 0.1, beta_1=0.0, beta_2=0.0, tau=1.0)
        >>> updates, _ = server.update(jnp.array([-3.0]), server.init(jnp.zeros(1)))
        >>> round(float(updates[0]), 4)  # 0.1 * 3 / (sqrt(9) + 1)
        0.075

    Source:
        Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2.
    """
    if rule not in ("adam", "yogi", "adagrad"):
        raise SpecError("adaptive_server", need='rule "adam", "yogi" or "adagrad"',
                        found=repr(rule), fix='Start with "adam".')
    name = f"fed_{rule}"
    check_number(name, above=0, learning_rate=learning_rate, tau=tau)
    check_number(name, least=0, below=1, beta_1=beta_1, beta_2=beta_2)
    first = tau**2 if initial_variance is None else initial_variance
    check_number(name, least=tau**2, initial_variance=first)

    def init(params: Any) -> AdaptiveState:
        return AdaptiveState(
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda p: jnp.full_like(p, first), params),
        )

    def varied(v: jax.Array, g: jax.Array) -> jax.Array:
        square = g * g
        if rule == "adagrad":
            return v + square
        if rule == "yogi":
            return v - (1 - beta_2) * square * jnp.sign(v - square)
        return beta_2 * v + (1 - beta_2) * square

    def update(updates: Any, state: AdaptiveState, params: Any = None) -> tuple[Any, AdaptiveState]:
        m = jax.tree.map(lambda m, g: beta_1 * m + (1 - beta_1) * g, state.momentum, updates)
        v = jax.tree.map(varied, state.variance, updates)
        steps = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), m, v)
        return steps, AdaptiveState(m, v)

    return optax.GradientTransformation(init, update)


def fed_avg_m(
    learning_rate: float,
    *,
    momentum: float = 0.9,
    server_learning_rate: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 32,
    client: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg with momentum on the server, which evens out rounds of unlike clients.

    The server keeps v <- momentum v + D of the mean changes D, and adds server_learning_rate v to
    the model. Clients work and send as in `fed_avg`.

    Args:
        learning_rate: of the clients' SGD.
        momentum: from 0 up to below 1.
        server_learning_rate: above 0.
        local_epochs, batch_size, client, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_avg_m(0.1, momentum=0.5).name
        'fed_avg_m'

    Source:
        Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for
        Federated Visual Classification", FedAvgM.
    """
    check_number("fed_avg_m", least=0, below=1, momentum=momentum)
    check_number("fed_avg_m", above=0, server_learning_rate=server_learning_rate)
    server = optax.sgd(server_learning_rate, momentum=momentum)
    local = {"local_epochs": local_epochs, "batch_size": batch_size, "client": client,
             "weighted": weighted}
    return _named("fed_avg_m", f"{momentum=}, {server_learning_rate=}",
                  fed_avg(learning_rate, server=server, **local))


def fed_adam(
    learning_rate: float,
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    local_epochs: int = 1,
    batch_size: int = 32,
    client: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg whose server steps like Adam: suits sparse features and layers of unlike scale.

    Clients work and send as in `fed_avg`; `adaptive_server` states the server's step.

    Args:
        learning_rate: of the clients' SGD.
        server_learning_rate, beta_1, beta_2, tau: as in `adaptive_server`.
        local_epochs, batch_size, client, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_adam(0.1, server_learning_rate=0.03).name
        'fed_adam'

    Source:
        Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedAdam).
    """
    server = adaptive_server(
        "adam", server_learning_rate, beta_1=beta_1, beta_2=beta_2, tau=tau)
    local = {"local_epochs": local_epochs, "batch_size": batch_size, "client": client,
             "weighted": weighted}
    return _named("fed_adam", f"{server_learning_rate=}, {beta_1=}, {beta_2=}, {tau=}",
                  fed_avg(learning_rate, server=server, **local))


def fed_yogi(
    learning_rate: float,
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    local_epochs: int = 1,
    batch_size: int = 32,
    client: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg whose server steps like Yogi: as FedAdam, with a variance that falls slowly.

    Args:
        learning_rate: of the clients' SGD.
        server_learning_rate, beta_1, beta_2, tau: as in `adaptive_server`.
        local_epochs, batch_size, client, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_yogi(0.1).name
        'fed_yogi'

    Source:
        Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedYogi).
    """
    server = adaptive_server(
        "yogi", server_learning_rate, beta_1=beta_1, beta_2=beta_2, tau=tau)
    local = {"local_epochs": local_epochs, "batch_size": batch_size, "client": client,
             "weighted": weighted}
    return _named("fed_yogi", f"{server_learning_rate=}, {beta_1=}, {beta_2=}, {tau=}",
                  fed_avg(learning_rate, server=server, **local))


def fed_adagrad(
    learning_rate: float,
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.0,
    tau: float = 1e-3,
    initial_variance: float | None = None,
    local_epochs: int = 1,
    batch_size: int = 32,
    client: optax.GradientTransformation | None = None,
    weighted: bool = True,
) -> Algorithm:
    """FedAvg whose server steps like Adagrad: its steps shrink as rounds go on.

    Args:
        learning_rate: of the clients' SGD.
        server_learning_rate, beta_1, tau, initial_variance: as in `adaptive_server`.
        local_epochs, batch_size, client, weighted: as in `fed_avg`.

    Returns:
        An :class:`Algorithm`.

    Raises:
        SpecError: a setting that makes no sense.

    Example:
        >>> fed_adagrad(0.1, tau=1e-2).name
        'fed_adagrad'

    Source:
        Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedAdagrad).
    """
    server = adaptive_server("adagrad", server_learning_rate, beta_1=beta_1, tau=tau,
                             initial_variance=initial_variance)
    local = {"local_epochs": local_epochs, "batch_size": batch_size, "client": client,
             "weighted": weighted}
    return _named("fed_adagrad", f"{server_learning_rate=}, {beta_1=}, {tau=}, "
                  f"{initial_variance=}", fed_avg(learning_rate, server=server, **local))


def _named(name: str, settings: str, algorithm: Algorithm) -> Algorithm:
    return algorithm._replace(name=name, settings=f"{settings}, {algorithm.settings}")
