"""What a federation is compared with: each client alone, no privacy, all records in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax

from ..algorithms import fed_avg
from ..core import chain
from ..data import FederatedDataset
from ..models import Model
from ..training import Evaluation, evaluate, train_alone, train_pooled
from .federation import Federation

if TYPE_CHECKING:
    import pandas as pd


def baselines(
    model: Model, data: FederatedDataset, *, rounds: int = 40, learning_rate: float = 0.1,
    batch_size: int = 32, seed: int = 0,
) -> dict[str, Evaluation]:
    """Train the three baselines that a private federation is judged by.

    Args:
        model: the model that the federation trains.
        data: the clients' records.
        rounds: of the federation without privacy, one local epoch each; the other two baselines
            take as many epochs.
        learning_rate, batch_size: of plain SGD, the same for all three.
        seed: of the orders of records, which are not secret.

    Returns:
        Held-out figures under ``"alone"`` (each client trains on its own records only),
        ``"federated"`` (FedAvg without privacy) and ``"pooled"`` (one model on all records). None
        of the three protects anyone.

    Raises:
        UpdateError: training diverged; lower the learning rate.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> scores = baselines(fs.models.logistic_regression(data), data, rounds=2)
        >>> sorted(scores)
        ['alone', 'federated', 'pooled']
    """
    params = model.init(jax.random.key(0))
    settings = {"epochs": rounds, "learning_rate": learning_rate, "batch_size": batch_size,
                "seed": seed}
    alone = train_alone(model, data, params, **settings)
    pooled = train_pooled(model, data, params, **settings)
    algorithm = fed_avg(learning_rate, batch_size=batch_size)
    with Federation(model, data, algorithm, chain(), seed=seed) as federation:
        state = federation.init()
        for state, _ in federation.run(state, rounds=rounds):
            pass
    trained = {"alone": alone, "federated": state.params, "pooled": pooled}
    return {name: evaluate(model, found, data) for name, found in trained.items()}


def comparison_table(scores: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Accuracy and AUC per client, one column for each way of training.

    Args:
        scores: held-out figures by name, for example those of :func:`baselines` and the
            federation's own.

    Returns:
        A DataFrame with a row for each client and one for all clients together, weighted by
        held-out records. AUC is missing where a client's held-out records have one class.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> table = comparison_table(baselines(model, data, rounds=2))
        >>> list(table.columns[:3]), len(table)
        (['client', 'accuracy, alone', 'accuracy, federated'], 5)
    """
    import pandas as pd

    if not scores:
        return pd.DataFrame({"client": []})
    first = next(iter(scores.values()))
    table = pd.DataFrame({"client": [*first.clients, "all"]})
    for figure, label in (("accuracy", "accuracy"), ("auc", "AUC")):
        for name, found in scores.items():
            if figure in found.figures:
                column = [*getattr(found, figure), found.mean(figure)]
                table[f"{label}, {name}"] = column
    return table


def fairness_table(
    scores: Mapping[str, Evaluation], figure: str = "accuracy", *, fraction: float = 0.1
) -> pd.DataFrame:
    """How evenly a figure is spread over clients, one row for each way of training.

    Args:
        scores: held-out figures by name, for example those of :func:`baselines` and the
            federation's own.
        figure: ``"accuracy"``, ``"auc"``, ``"loss"``, ``"brier"`` or ``"calibration_error"``.
        fraction: which share of the clients are the worst and the best ones.

    Returns:
        A DataFrame with the columns of ``Evaluation.fairness``: the means over records and over
        clients, the mean of the worst and of the best clients, variance and standard deviation
        over clients, how many clients have the figure, and which is worst off.

    Raises:
        SpecError: no such figure, or a fraction outside (0, 1].

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> table = fairness_table(baselines(model, data, rounds=2))
        >>> table["training"].tolist()
        ['alone', 'federated', 'pooled']
        >>> bool((table["worst"] <= table["average"]).all())
        True
    """
    import pandas as pd

    return pd.DataFrame([
        {"training": name, **found.fairness(figure, fraction=fraction)}
        for name, found in scores.items()
    ])
