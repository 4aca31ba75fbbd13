"""synthetic(alpha, beta): the clients of FedProx, from another model and other features each."""

from __future__ import annotations

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners.dealing import random_stream
from fedjax_secure.data.splitting import from_records

FEATURES, CLASSES = 60, 10

CARD = """\
synthetic({alpha:g}, {beta:g}){iid}: {clients} clients, {records} records, made up from seed {seed}.

Source: the generator of Li et al. 2020, section 5.1, made anew by this package. Licence: none is
needed; nobody's records are in it.

Generator, for client k: u_k ~ N(0, alpha), W_k and b_k ~ N(u_k, 1) in each entry, W_k of 10 x 60;
B_k ~ N(0, beta), v_k ~ N(B_k, 1) in each of 60 entries, x ~ N(v_k, Sigma) with Sigma diagonal and
Sigma_jj = j^-1.2; y = argmax(softmax(W_k x + b_k)). alpha and beta are standard deviations, as in
the authors' program; 1 in the paper's notation, as every other. IID: one W and b ~ N(0, 1) for all
clients, and v_k = B_k in each entry with B_k ~ N(0, beta). Sizes: floor(exp(4 + 2 z)) + 50, z
standard normal.

The split: a seeded permutation within each client and class.

Cite: Li, T., Sahu, A. K., Zaheer, M., Sanjabi, M., Talwalkar, A., & Smith, V. (2020). Federated
Optimization in Heterogeneous Networks. MLSys.
"""


def synthetic(
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    num_clients: int = 30,
    iid: bool = False,
    sizes: np.ndarray | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> FederatedDataset:
    """Makes FedProx's synthetic clients: ``alpha`` moves their models, ``beta`` their features.

    The usual settings are synthetic(0, 0), (0.5, 0.5), (1, 1), and (0, 0) with ``iid=True``.

    Two properties of this generator are easily overlooked. Clients have models of their own at
    alpha 0 as well, for each draws its W_k and b_k. And u_k adds the same number to all ten logits
    of a record, so that alpha changes no label; what makes synthetic(1, 1) harder than (0, 0) is
    beta.

    Args:
        alpha: how far the clients' models lie apart: the standard deviation of u_k, 0 or more.
        beta: how far their features lie apart: the standard deviation of B_k, 0 or more.
        num_clients: how many clients to make; the paper has 30.
        iid: one model for all clients, and features around the same mean.
        sizes: ``[num_clients] int``, records of each client; by default the authors' law,
            floor(exp(4 + 2 z)) + 50.
        test_fraction: the share of each client's records to hold out, in [0, 1).
        seed: of everything; numpy keeps the stream for ever. Values may differ in the last bits
            between machines.

    Returns:
        A `FederatedDataset` of 60 features and 10 classes, float32, in no range.

    Raises:
        DataError: an argument out of its range.

    Example:
        >>> from fedjax_secure.data import synthetic
        >>> data = synthetic(0.5, 0.5)
        >>> data.num_clients, data.num_features, len(data.classes)
        (30, 60, 10)

    Source:
        Li et al. 2020, Federated Optimization in Heterogeneous Networks, section 5.1 (synthetic
        data), and the authors' generator.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 <= value < np.inf:
            raise _refuse(f"{name} of 0 or more", repr(value), f"Write {name}=1.")
    whole = isinstance(num_clients, int | np.integer) and not isinstance(num_clients, bool)
    if not whole or num_clients < 1:
        raise _refuse("num_clients of 1 or more", repr(num_clients), "Write num_clients=30.")
    random = random_stream(seed)
    drawn = np.exp(4 + 2 * random.standard_normal(num_clients)).astype(np.int64) + 50
    counts = drawn if sizes is None else np.asarray(sizes)
    if counts.shape != (num_clients,) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise _refuse(
            f"sizes as {num_clients} whole numbers of 1 or more", repr(sizes), "Give one a client."
        )
    model_means = alpha * random.standard_normal(num_clients)
    feature_means = beta * random.standard_normal(num_clients)
    deviations = np.arange(1, FEATURES + 1) ** -0.6  # the root of Sigma_jj = j^-1.2
    common = random.standard_normal((CLASSES, FEATURES)), random.standard_normal(CLASSES)
    x, y = [], []
    for k in range(num_clients):
        if iid:
            centre, (weights, bias) = np.full(FEATURES, feature_means[k]), common
        else:
            centre = feature_means[k] + random.standard_normal(FEATURES)
            weights = model_means[k] + random.standard_normal((CLASSES, FEATURES))
            bias = model_means[k] + random.standard_normal(CLASSES)
        records = centre + deviations * random.standard_normal((int(counts[k]), FEATURES))
        x.append(records.astype(np.float32))
        y.append(np.argmax(records @ weights.T + bias, axis=1).astype(np.int32))
    words = ", iid" if iid else ""
    return from_records(
        name=f"synthetic({alpha:g}, {beta:g}{words})",
        client_names=[str(k) for k in range(num_clients)],
        client=np.repeat(np.arange(num_clients), counts),
        x=np.concatenate(x),
        y=np.concatenate(y),
        test_fraction=test_fraction,
        seed=seed,
        feature_names=tuple(f"x{j}" for j in range(1, FEATURES + 1)),
        classes=tuple(str(c) for c in range(CLASSES)),
        unit="record",
        client_unit="device",
        population=f"synthetic {alpha!r} {beta!r} {num_clients} {iid} {seed}",
        card=CARD.format(
            alpha=alpha, beta=beta, iid=words, clients=num_clients, records=len(np.concatenate(y)),
            seed=seed,
        ),
    )  # fmt: skip


def _refuse(need: str, found: str, fix: str) -> DataError:
    return DataError("synthetic", need=need, found=found, fix=fix)
