"""Agnostic federated learning: a model for the worst mixture of the clients' distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Cohort, SpecError
from ..algorithm import Algorithm, Model, Params, check_number
from ..fed_avg import check_local
from .loss_first import Looked, look_then_train


def agnostic_fed_avg(
    learning_rate: float,
    *,
    domain_learning_rate: float = 0.1,
    domains: Sequence[int] | np.ndarray | None = None,
    ascent: Literal["exponentiated", "projected"] = "exponentiated",
    local_epochs: int = 1,
    batch_size: int = 32,
) -> Algorithm:
    """Federated averaging whose weights of the domains climb towards the largest losses.

    The server keeps a weight for each domain (a hospital, a region, a kind of device), all of them
    adding up to one. Each round the model steps down the loss weighted by domain, and the weights
    step up it: a game whose end is the model that is best for the worst mixture of domains.

    Assumes:
        Clients send [D w_d s change, s F e_d, s e_d], ``[dim + 2 D]`` for D domains, clipped as a
        whole: d is the client's domain, w_d that domain's weight, s the client's share of the
        domain's examples in this round, F its loss at the global model and e_d the d-th unit
        vector. Counts and domains are public. The server learns each domain's mean loss. Shares
        depend on who else takes part: a federation that adds noise takes this algorithm with
        everyone or a public draw, and refuses it with secret coins for clients.

    Args:
        learning_rate: of the clients' SGD.
        domain_learning_rate: of the weights' ascent.
        domains: [clients], each client's domain, from 0 and without gaps; None makes each client a
            domain of its own, for federations of a few clients.
        ascent: ``"exponentiated"``: weights times exp(rate * loss), normalised; ``"projected"``:
            weights plus rate * loss, projected on the simplex, as in AFL.
        local_epochs: passes over a client's examples each round.
        batch_size: examples a step.

    Returns:
        An :class:`Algorithm`. Its server state has ``domain_weights``. The model's step is the mean
        over the domains that took part, by their weights. A domain of which nobody took part
        counts with the loss it had last, or the others' mean.

    Raises:
        SpecError: a setting that makes no sense; domains that do not fit the federation.

    Example:
        >>> agnostic_fed_avg(0.1, domains=[0, 0, 1, 1]).name
        'agnostic_fed_avg'

    Source:
        Mohri, Sivek, Suresh 2019, "Agnostic Federated Learning" (the objective, and the projected
        step of Stochastic-AFL); Ro et al. 2021, "Communication-Efficient Agnostic Federated
        Averaging" (local steps and the exponentiated step), as FedJAX's agnostic_fed_avg.
    """
    check_local("agnostic_fed_avg", learning_rate, local_epochs, batch_size)
    check_number("agnostic_fed_avg", least=0, domain_learning_rate=domain_learning_rate)
    if ascent not in ("exponentiated", "projected"):
        raise SpecError("agnostic_fed_avg", need='ascent "exponentiated" or "projected"',
                        found=repr(ascent), fix="Leave it out for the first.")
    if domains is not None:
        domains = _checked(domains)

    def bind(num_clients: int, denominator: float) -> Algorithm:
        of = np.arange(num_clients) if domains is None else domains
        if len(of) != num_clients:
            raise SpecError("agnostic_fed_avg", need=f"a domain for each of {num_clients} clients",
                            found=f"{len(of)}", fix="Give domains=[...], or leave it out.")
        return algorithm._replace(
            **_functions(of, learning_rate, local_epochs, domain_learning_rate, ascent),
            bind=None)

    def unbound(*_: Any) -> Any:
        raise SpecError(
            "agnostic_fed_avg", need="to know its federation's clients", found="none",
            fix="Run algorithm.for_federation(num_clients, denominator), as fs.Simulation and "
            "fs.Federation do.")

    told = None if domains is None else domains.tolist()
    settings = (f"{learning_rate=}, {domain_learning_rate=}, domains={told}, {ascent=}, "
                f"{local_epochs=}, {batch_size=}")
    algorithm = Algorithm("agnostic_fed_avg", settings, batch_size, unbound, unbound, unbound,
                          unbound, unbound, cohort_weights=True, bind=bind)
    return algorithm


def _functions(of: np.ndarray, learning_rate: float, local_epochs: int, rate: float,
               ascent: str) -> dict[str, Any]:
    num = int(of.max()) + 1

    def send(shared, own, looked: Looked) -> jax.Array:
        weight = num * shared["domain_weights"][own["domain"]]
        place = (jnp.arange(num) == own["domain"]).astype(jnp.float32)
        parts = [weight * looked.changed, looked.loss * place, place]
        return jnp.concatenate(parts) * own["share"]

    def work(model, aggregation):
        return look_then_train(model, "agnostic_fed_avg", 2 * num, send,
                               learning_rate=learning_rate, local_epochs=local_epochs)

    def init(model: Model, params: Params) -> Any:
        return {"domain_weights": jnp.full(num, 1.0 / num, jnp.float32),
                "losses": jnp.zeros(num, jnp.float32), "known": jnp.zeros(num, jnp.float32)}

    def shared(model: Model, params: Params, server_state: Any, stage_states: Any) -> Any:
        return {"params": params, "domain_weights": server_state["domain_weights"]}

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        counts = np.where(cohort.alive, cohort.counts, 0)
        if cohort.scale is not None:  # who seldom takes part counts more when it does
            counts = counts * np.asarray(cohort.scale, np.float64)
        examples = np.bincount(of, counts, minlength=num)[of]
        return {"domain": of.astype(np.int32),
                "share": (counts / np.where(examples > 0, examples, 1)).astype(np.float32)}

    def step(model: Model, params: Params, state: Any, mean: jax.Array) -> tuple[Params, Any]:
        dim, weights = model.dim, state["domain_weights"]
        found, took = mean[dim: dim + num], mean[dim + num:]
        heard = took > 1e-6
        total = num * jnp.sum(jnp.where(heard, weights * took, 0))
        moved = jnp.where(total > 0, mean[:dim] / jnp.where(total > 0, total, 1), 0)
        losses = jnp.where(heard, found / jnp.where(heard, took, 1), state["losses"])
        known = jnp.maximum(state["known"], heard.astype(jnp.float32))
        # who was never heard counts as the others' mean: their weights stay where they are
        typical = jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)
        climb = rate * jnp.where(known > 0, losses, typical)
        climbed = exponentiated(weights, climb) if ascent == "exponentiated" else projected(
            weights + climb)
        weights = jnp.where(jnp.any(heard), climbed, weights)
        state = {"domain_weights": weights, "losses": losses, "known": known}
        return jax.tree.map(jnp.add, params, model.unravel(moved)), state

    return {"work": work, "init": init, "shared": shared, "step": step, "own": own}


def exponentiated(weights: jax.Array, climb: jax.Array) -> jax.Array:
    """Weights times exp(climb), made to add up to one.

    Example:
        >>> exponentiated(jnp.array([0.5, 0.5]), jnp.log(jnp.array([1.0, 3.0]))).round(6).tolist()
        [0.25, 0.75]
    """
    scaled = weights * jnp.exp(climb - jnp.max(climb))
    return scaled / jnp.sum(scaled)


def projected(values: jax.Array) -> jax.Array:
    """The point of the simplex that is nearest to some values.

    Example:
        >>> projected(jnp.array([0.75, 0.75, -3.0])).tolist()
        [0.5, 0.5, 0.0]

    Source:
        Duchi, Shalev-Shwartz, Singer, Chandra 2008, "Efficient Projections onto the l1-Ball for
        Learning in High Dimensions", figure 1.
    """
    falling = -jnp.sort(-values)
    excess = (jnp.cumsum(falling) - 1) / jnp.arange(1, len(values) + 1)
    last = jnp.sum(falling > excess) - 1
    return jnp.maximum(values - excess[last], 0)


def _checked(domains: Any) -> np.ndarray:
    of = np.asarray(domains)
    fine = of.ndim == 1 and len(of) and np.issubdtype(of.dtype, np.integer)
    if not fine or not np.array_equal(np.unique(of), np.arange(of.max() + 1)):
        raise SpecError("agnostic_fed_avg", need="domains, a number for each client, from 0 and "
                        "without gaps", found=f"{of.dtype}{list(of.shape)} {of.tolist()[:10]}",
                        fix="Number them as numpy.unique(names, return_inverse=True)[1] does.")
    return of.astype(np.int64)
