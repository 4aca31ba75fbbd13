"""Quantity skew: clients of very different sizes, with the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners.dealing import (
    LARGEST_CONCENTRATION,
    apportion,
    deal_records,
    positive,
)


@overload
def quantity_skew(
    data: FederatedDataset, num_clients: int, *, beta: float | None = None,
    sigma: float | None = None, min_records: int = 1, seed: int = 0,
) -> FederatedDataset: ...  # fmt: skip
@overload
def quantity_skew(
    data: Sequence[int] | np.ndarray, num_clients: int, *, beta: float | None = None,
    sigma: float | None = None, min_records: int = 1, seed: int = 0,
) -> np.ndarray: ...  # fmt: skip
def quantity_skew(
    data: Any,
    num_clients: int,
    *,
    beta: float | None = None,
    sigma: float | None = None,
    min_records: int = 1,
    seed: int = 0,
) -> Any:
    """Deals the records at random to clients of different sizes.

    Give one of two laws of the sizes: ``beta``, shares drawn from ``Dir(beta, ..., beta)`` (Li et
    al. 2022), or ``sigma``, shares proportional to ``exp(sigma z)`` with z standard normal (the
    sizes of real federations are close to log-normal; sigma 1 is a usual value).

    Guarantees:
        Every record goes to exactly one client. Each client first gets ``min_records``; the rest
        follows the law.

    Args:
        data: a dataset, whose clients are replaced; or ``[records] int`` labels.
        num_clients: how many clients to make.
        beta: the concentration of the Dirichlet law, above 0; small means strong skew.
        sigma: the standard deviation of the sizes' logarithm, above 0; large means strong skew.
        min_records: training records that each client has at least.
        seed: a public constant.

    Returns:
        A dataset, which spends from the same privacy budget; or the client of each label,
        ``[records] int32``. Held-out records stay held out, and are dealt class by class in the
        shares of the training records.

    Raises:
        DataError: fewer training records than the clients need, both laws or none, or a bad
            setting.

    Example:
        >>> import numpy as np
        >>> sizes = np.bincount(quantity_skew(np.zeros(1000, int), 10, sigma=1.5))
        >>> int(sizes.sum()), bool(sizes.max() > 3 * sizes.min())
        (1000, True)

    Source:
        Li, Diao, Chen and He 2022, Federated Learning on Non-IID Data Silos: An Experimental Study,
        section 4 (quantity skew).
    """
    if (beta is None) == (sigma is None):
        raise DataError(
            "quantity_skew",
            need="one of beta and sigma",
            found="neither" if beta is None else "both",
            fix="Write beta=0.5 for a Dirichlet law of the sizes, or sigma=1 for a log-normal one.",
        )
    name, value = ("sigma", sigma) if beta is None else ("beta", beta)
    value = positive("quantity_skew", name, value)

    def deal(labels, random):
        if name == "beta":
            weights = random.dirichlet(np.full(num_clients, min(value, LARGEST_CONCENTRATION)))
            if not np.isfinite(weights).all():  # every gamma variate underflowed: one takes all
                weights = np.eye(num_clients)[random.randint(num_clients)]
        else:
            logs = min(value, 1e300) * random.standard_normal(num_clients)
            weights = np.exp(logs - logs.max())
        rest = len(labels) - num_clients * min_records
        sizes = min_records + apportion(rest, weights, random)
        client = np.empty(len(labels), np.int64)
        client[random.permutation(len(labels))] = np.repeat(np.arange(num_clients), sizes)
        return client

    return deal_records(
        "quantity_skew",
        data,
        num_clients,
        deal,
        seed=seed,
        min_records=min_records,
        said=f"{name}={value:g}, min_records={min_records}, seed={seed}",
    )
