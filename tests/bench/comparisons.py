"""Comparisons that papers published, run again on data that we have: one function for each.

Every function returns figures of one run, so that the benchmark can take several seeds and the
tests a small version of the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import fedjax_secure as fs

_NOBODY = np.zeros(0, np.int32)


# -- Li et al. 2020, FedProx: stragglers -----------------------------------------------------------


def with_stragglers(
    selection: Any, *, share: float, epochs: int, late: str, seed: int = 0
) -> Any:
    """A selection in which some of each round's clients are slow, as in the paper's experiments.

    Args:
        selection: who takes part.
        share: of each round's clients that are slow.
        epochs: the local epochs of a client that is not; a slow one finishes a whole number of
            them, uniform from 1 to one less.
        late: ``"partial"``: slow clients send what they have; ``"dropped"``: they send nothing.
        seed: of who is slow and how slow: the same for both.
    """

    def draw(source, round, candidates, state):
        cohort = selection.draw(source, round, candidates, state)
        random = np.random.default_rng([seed, round])
        taking_part = cohort.taking_part
        slow = random.choice(taking_part, int(np.rint(share * len(taking_part))), replace=False)
        finished = random.integers(1, epochs, len(slow))
        if late == "partial":
            done = np.ones(len(cohort.clients), np.float32)
            done[slow] = finished / epochs
            return cohort._replace(share=done)
        alive, indices = cohort.alive.copy(), list(cohort.indices)
        alive[slow] = False
        for client in slow:
            indices[client] = _NOBODY
        return cohort._replace(alive=alive, indices=tuple(indices))

    def expected(num_clients, available=None):
        clients = selection.expected_clients(num_clients, available)
        return clients - float(np.rint(share * clients)) if late == "dropped" else clients

    return selection._replace(
        name=f"with_stragglers({selection.name})", draw=draw, expected_clients=expected,
        settings=f"{selection.settings}, {share=}, {epochs=}, {late=}, {seed=}")  # fmt: skip


def fed_prox_run(
    seed: int, *, alpha: float | None, stragglers: float, mu: float | None, rounds: int,
    clients: int = 10, epochs: int = 20, learning_rate: float = 0.01, batch_size: int = 10,
    sizes: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """One run on synthetic(alpha, alpha): FedAvg, which drops stragglers, or FedProx.

    Args:
        seed: of data, cohorts and stragglers.
        alpha: both parameters of the data; None makes them IID.
        stragglers: the share of slow clients in each round.
        mu: FedProx's; None runs FedAvg.
        rounds: how many.
        clients, epochs, learning_rate, batch_size: the paper's, unless the run is to be short.
        sizes: records of each client; None takes the authors' law.

    Returns:
        ``accuracy`` in percent and ``training loss``, means over the last fifth of the rounds, and
        ``swing``: the standard deviation of the accuracy there, in percent.
    """
    value = 0.0 if alpha is None else alpha
    data = fs.data.synthetic(value, value, iid=alpha is None, seed=seed, sizes=sizes)
    model = fs.models.logistic_regression(data)
    local = {"local_epochs": epochs, "batch_size": batch_size}
    if mu is None:
        algorithm = fs.algorithms.fed_avg(learning_rate, **local)
    else:
        algorithm = fs.algorithms.fed_prox(learning_rate, mu=mu, **local)
    selection = with_stragglers(
        fs.selection.uniform_clients(clients), share=stragglers, epochs=epochs,
        late="dropped" if mu is None else "partial", seed=seed)  # fmt: skip
    simulation = fs.Simulation(model, data, algorithm, selection=selection, seed=seed)
    state = simulation.init()
    accuracies, losses = [], []
    for state, report in simulation.run(state, rounds=rounds):
        if report.round > rounds - max(rounds // 5, 1):
            found = evaluated(model, state.params, data)
            accuracies.append(100 * found.mean("accuracy"))
            training = evaluated(model, state.params, data, split="train")
            losses.append(training.mean("loss"))
    return {"accuracy": float(np.mean(accuracies)), "swing": float(np.std(accuracies)),
            "training loss": float(np.mean(losses))}  # fmt: skip


# -- Karimireddy et al. 2020, SCAFFOLD: rounds to an accuracy --------------------------------------


def digits_with_similarity(num_clients: int, similarity: float, *, seed: int) -> Any:
    """digits dealt as in the paper: a share of the records at random, the rest sorted by label.

    Args:
        num_clients: clients of equal size.
        similarity: the share, from 0 to 1.
        seed: of the split and the deal.
    """
    data = fs.data.digits(seed=seed)
    random = np.random.default_rng(seed)
    order = random.permutation(len(data.y))
    alike, rest = np.split(order, [round(similarity * len(order))])
    rest = rest[np.argsort(data.y[rest], kind="stable")]
    ids = np.empty(len(order), int)
    for rows in (alike, rest):
        ids[rows] = np.arange(len(rows)) * num_clients // max(len(rows), 1)
    held_out = np.arange(len(data.test_y)) % num_clients
    return fs.data.natural(data, [f"{c:04d}" for c in [*ids, *held_out]])


def rounds_to_accuracy(
    data: Any, algorithm: Any, *, target: float, rounds: int, clients: int, seed: int
) -> float:
    """How many rounds logistic regression needs to a held-out accuracy; ``rounds`` if not reached.

    The model is that after each round, as in the paper, and counts from the first time.
    """
    model = fs.models.logistic_regression(data)
    simulation = fs.Simulation(
        model, data, algorithm, selection=fs.selection.uniform_clients(clients), seed=seed)
    state = simulation.init()
    for state, report in simulation.run(state, rounds=rounds):
        if evaluated(model, state.params, data).mean("accuracy") >= target:
            return float(report.round)
    return float(rounds)


def local_method(name: str, learning_rate: float, *, epochs: int, batch_size: int) -> Any:
    """The algorithm of a name of the SCAFFOLD comparison; every client weighs the same."""
    local: dict[str, Any] = {"local_epochs": epochs, "batch_size": batch_size}
    if name == "SCAFFOLD":
        return fs.algorithms.scaffold(learning_rate, **local)
    return fs.algorithms.fed_avg(learning_rate, weighted=False, **local)


# -- Hsu et al. 2019, FedAvgM: Dirichlet skew ------------------------------------------------------


def server_run(
    seed: int, algorithm: Any, *, alpha: float, rounds: int, clients: int, num_clients: int = 100,
    hidden: Sequence[int] = (64,),
) -> float:  # fmt: skip
    """Held-out accuracy in percent, mean over the last tenth of the rounds, on skewed digits.

    Args:
        seed: of data, deal, model and cohorts.
        algorithm: what runs.
        alpha: of the Dirichlet partition by client, as in the paper.
        rounds, clients: how many rounds, and clients in each.
        num_clients: of the population, of equal size.
        hidden: the MLP's layers.
    """
    data = fs.data.dirichlet(
        fs.data.digits(seed=seed), num_clients, alpha=alpha, equal_sizes=True, seed=seed)
    model = fs.models.mlp(data, hidden=hidden)
    simulation = fs.Simulation(
        model, data, algorithm, selection=fs.selection.uniform_clients(clients), seed=seed)
    state = simulation.init(jax.random.key(seed))
    accuracies = []
    for state, report in simulation.run(state, rounds=rounds):
        if report.round > rounds - max(rounds // 10, 1):
            accuracies.append(100 * evaluated(model, state.params, data).mean("accuracy"))
    return float(np.mean(accuracies))


# -- Li et al. 2020, q-FedAvg: fairness ------------------------------------------------------------


def fairness_run(
    seed: int, *, q: float, rounds: int, num_clients: int = 50, learning_rate: float = 0.3,
    batch_size: int = 200, sizes: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """q-FedAvg on synthetic(1, 1), all clients in every round: how accuracy spreads over clients.

    Args:
        seed: of data and orders.
        q: how much fairness; 0 is FedAvg.
        rounds, num_clients: how many.
        learning_rate, batch_size: of the clients' training; one step a round where no client has
            more records than a batch.
        sizes: records of each client, a fifth of them held out.

    Returns:
        As `spread`, and ``variance, training`` on the training records.
    """
    data = fs.data.synthetic(
        1, 1, num_clients=num_clients, seed=seed, sizes=sizes, test_fraction=0.2)
    model = fs.models.logistic_regression(data)
    algorithm = fs.algorithms.q_fed_avg(learning_rate, q=q, batch_size=batch_size, weighted=False)
    simulation = fs.Simulation(model, data, algorithm, seed=seed)
    state = simulation.init()
    for state, _ in simulation.run(state, rounds=rounds):
        pass
    training = spread(evaluated(model, state.params, data, split="train"))
    return {**spread(evaluated(model, state.params, data)),
            "variance, training": training["variance"]}  # fmt: skip


# -- Li et al. 2021, Ditto: personal models --------------------------------------------------------


def personal_run(
    seed: int, *, lam: float, rounds: int, num_clients: int = 30, clients: int = 6,
    alpha: float = 0.3, learning_rate: float = 0.1, epochs: int = 2, batch_size: int = 10,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Ditto on skewed digits: the spread of its personal models' and the global one's accuracy.

    The global model is FedAvg's, so both come from one run; ``lam=0`` trains every client alone.

    Args:
        seed: of data, deal and cohorts.
        lam: the pull towards the global model.
        rounds, clients: how many rounds, and clients in each.
        num_clients, alpha: of the Dirichlet partition by class; ten records at least.
        learning_rate, epochs, batch_size: of the clients' training, both models.

    Returns:
        ``{"personal": ..., "global": ...}``, each as from `spread`. A client's held-out records
        have its own mixture of classes.
    """
    data = fs.data.dirichlet(
        fs.data.digits(seed=seed), num_clients, alpha=alpha, min_records=10, seed=seed)
    model = fs.models.logistic_regression(data)
    algorithm = fs.algorithms.ditto(
        learning_rate, lam=lam, local_epochs=epochs, batch_size=batch_size)
    simulation = fs.Simulation(
        model, data, algorithm, selection=fs.selection.uniform_clients(clients), seed=seed)
    state = simulation.init()
    for state, _ in simulation.run(state, rounds=rounds):
        pass
    return {"personal": spread(evaluated(model, simulation.personal(state), data)),
            "global": spread(evaluated(model, state.params, data))}  # fmt: skip


# -- shared ----------------------------------------------------------------------------------------


def capped_sizes(num_clients: int, *, most: int) -> np.ndarray:
    """Sizes by the law of synthetic(alpha, beta), floor(exp(4 + 2 z)) + 50, but none above most.

    They are the same for every seed, so that one compiled program serves all of them.
    """
    drawn = np.exp(4 + 2 * np.random.default_rng(7).standard_normal(num_clients))
    return np.minimum(drawn.astype(np.int64) + 50, most)


def evaluated(model: Any, params: Any, data: Any, **settings: Any) -> Any:
    """`fs.training.evaluate` without AUC, which no comparison needs."""
    return fs.training.evaluate(model, params, data, auc=False, **settings)


def spread(found: Any) -> dict[str, float]:
    """Mean over clients, worst and best tenth (percent) and variance (percent squared)."""
    fairness = found.fairness("accuracy")
    return {"average": 100 * fairness["average"], "worst 10%": 100 * fairness["worst"],
            "best 10%": 100 * fairness["best"], "variance": 1e4 * fairness["variance"]}  # fmt: skip
