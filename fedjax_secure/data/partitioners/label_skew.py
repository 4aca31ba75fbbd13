"""Label skew: Dirichlet shares of the classes, and shards of sorted labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners.dealing import LARGEST_CONCENTRATION, deal_records, positive
from fedjax_secure.data.partitioners.even import even_clients


@overload
def dirichlet(
    data: FederatedDataset, num_clients: int, *, alpha: float, equal_sizes: bool = False,
    min_records: int = 1, seed: int = 0,
) -> FederatedDataset: ...  # fmt: skip
@overload
def dirichlet(
    data: Sequence[int] | np.ndarray, num_clients: int, *, alpha: float, equal_sizes: bool = False,
    min_records: int = 1, seed: int = 0,
) -> np.ndarray: ...  # fmt: skip
def dirichlet(
    data: Any,
    num_clients: int,
    *,
    alpha: float,
    equal_sizes: bool = False,
    min_records: int = 1,
    seed: int = 0,
) -> Any:
    """Deals each class, or each client, in shares drawn from a Dirichlet distribution.

    The literature has two such partitions, and means different things by alpha:

    - by class (Yurochkin et al. 2019; the default): for each class, shares of the clients are drawn
      from ``Dir(alpha, ..., alpha)`` over the clients. Sizes differ as well as labels;
    - by client (Hsu et al. 2019; ``equal_sizes=True``): for each client, shares of the classes are
      drawn from ``Dir(alpha p)``, p being the pooled shares of the classes; clients draw their
      records in turn, without replacement, and all have the same size, at most one apart. A class
      that is used up is left out of the shares of later clients.

    Small alpha means strong skew; a large one comes near to `iid`.

    Guarantees:
        Every record goes to exactly one client. No client is short: after the draw a client with
        fewer than ``min_records`` takes random records, one at a time, from whichever client
        has most. (Others draw again until no client is short, which need not end.)

    Args:
        data: a dataset, whose clients are replaced; or ``[records] int`` labels.
        num_clients: how many clients to make.
        alpha: the concentration, above 0: for each client, or in all with ``equal_sizes``.
        equal_sizes: clients of the same size.
        min_records: training records that each client has at least.
        seed: a public constant.

    Returns:
        A dataset, which spends from the same privacy budget; or the client of each label,
        ``[records] int32``. Held-out records stay held out, and are dealt class by class in the
        shares of the training records.

    Raises:
        DataError: fewer training records than the clients need, or a bad setting.

    Example:
        >>> from fedjax_secure.data import heart_disease
        >>> skewed = dirichlet(heart_disease(), 10, alpha=0.3)
        >>> int(skewed.counts.sum()), bool(skewed.describe()["skew"].max() > 0.2)
        (735, True)

    Source:
        Yurochkin et al. 2019, Bayesian Nonparametric Federated Learning of Neural Networks,
        section 4. Hsu, Qi and Brown 2019, Measuring the Effects of Non-Identical Data
        Distribution for Federated Visual Classification, section 3.
    """
    alpha = positive("dirichlet", "alpha", alpha)

    def deal(labels, random):
        chosen = _by_client if equal_sizes else _by_class
        return chosen(labels, num_clients, alpha, random)

    said = f"alpha={alpha:g}, equal_sizes={equal_sizes}, min_records={min_records}, seed={seed}"
    return deal_records(
        "dirichlet", data, num_clients, deal, seed=seed, min_records=min_records, said=said
    )


def _shares(concentration: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    # Gamma variates are summed: beyond this the sum overflows, and shares are even long before.
    shares = random.dirichlet(np.minimum(concentration, LARGEST_CONCENTRATION))
    if not np.isfinite(shares).all():  # every gamma variate underflowed: one takes all
        shares = np.zeros(len(concentration))
        shares[random.choice(len(shares), p=concentration / concentration.sum())] = 1
    return shares


def _by_class(
    labels: np.ndarray, num_clients: int, alpha: float, random: np.random.RandomState
) -> np.ndarray:
    client = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == k))
        ends = np.cumsum(_shares(np.full(num_clients, alpha), random)) * len(rows)
        ends = np.minimum(np.rint(ends).astype(np.int64), len(rows))
        ends[-1] = len(rows)
        client[rows] = np.repeat(np.arange(num_clients), np.diff(ends, prepend=0))
    return client


def _by_client(
    labels: np.ndarray, num_clients: int, alpha: float, random: np.random.RandomState
) -> np.ndarray:
    classes, number = np.unique(labels, return_inverse=True)
    left = np.bincount(number)
    prior = left / left.sum()
    given = np.zeros((num_clients, len(classes)), np.int64)
    for c, size in enumerate(np.bincount(even_clients(len(labels), num_clients))):
        shares = _shares(np.maximum(alpha * prior, 1e-300), random)
        while size:
            open_shares = np.where(left > 0, shares, 0)
            if not open_shares.any():  # what this client wants is used up
                open_shares = left.astype(float)
            drawn = random.multinomial(size, open_shares / open_shares.sum())
            taken = np.minimum(drawn, left)
            given[c] += taken
            left -= taken
            size -= taken.sum()
    client = np.empty(len(labels), np.int64)
    for k in range(len(classes)):
        rows = random.permutation(np.flatnonzero(number == k))
        client[rows] = np.repeat(np.arange(num_clients), given[:, k])
    return client


@overload
def label_shards(
    data: FederatedDataset, num_clients: int, *, shards_per_client: int = 2, seed: int = 0
) -> FederatedDataset: ...
@overload
def label_shards(
    data: Sequence[int] | np.ndarray, num_clients: int, *, shards_per_client: int = 2, seed: int = 0
) -> np.ndarray: ...
def label_shards(
    data: Any, num_clients: int, *, shards_per_client: int = 2, seed: int = 0
) -> Any:
    """Sorts the records by label, cuts them into shards, and deals each client some shards.

    The first partition of the field: with two shards most clients have two classes.

    Args:
        data: a dataset, whose clients are replaced; or ``[records] int`` labels.
        num_clients: how many clients to make.
        shards_per_client: shards for each client; there are ``num_clients * shards_per_client``
            in all, at most one record apart in size.
        seed: a public constant: which records of a class are in a shard, and whose it is.

    Returns:
        A dataset, which spends from the same privacy budget; or the client of each label,
        ``[records] int32``. Held-out records stay held out, and are dealt class by class in the
        shares of the training records.

    Raises:
        DataError: fewer training records than shards, or a bad setting.

    Example:
        >>> import numpy as np
        >>> client = label_shards(np.repeat(np.arange(10), 600), 100)
        >>> np.bincount(client).tolist() == [60] * 100
        True

    Source:
        McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized
        Data, section 3 ("pathological non-IID").
    """
    whole = isinstance(shards_per_client, int | np.integer) and not isinstance(
        shards_per_client, bool
    )
    if not whole or shards_per_client < 1:
        raise DataError(
            "label_shards",
            need="shards_per_client as a whole number of 1 or more",
            found=repr(shards_per_client),
            fix="Write shards_per_client=2.",
        )

    def deal(labels, random):
        order = np.lexsort((random.permutation(len(labels)), labels))
        shards = num_clients * shards_per_client
        owner = random.permutation(shards) // shards_per_client
        client = np.empty(len(labels), np.int64)
        client[order] = owner[even_clients(len(labels), shards)]
        return client

    return deal_records(
        "label_shards",
        data,
        num_clients,
        deal,
        seed=seed,
        min_records=shards_per_client,
        said=f"shards_per_client={shards_per_client}, seed={seed}",
    )
