"""1,797 handwritten digits of 8x8 pixels: Optical Recognition of Handwritten Digits."""

from __future__ import annotations

import numpy as np

from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners import dirichlet
from fedjax_secure.data.sets.files import package_file
from fedjax_secure.data.splitting import from_records

SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"

CARD = """\
Digits: 1,797 handwritten digits of 13 people, 8x8 pixels.

Source: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits,
https://doi.org/10.24432/C50P49, by Ethem Alpaydin and Cenk Kaynak (Bogazici University), 1998: its
test part. Licence: CC BY 4.0. Read from the package scikit-learn (BSD 3-Clause), which ships it;
its sha256 is checked.

Task: which digit is it? Unit of privacy: one digit as written. The 13 people are not named, so
privacy for a person is not offered.

Cleaning rules: none. Public constant: a pixel counts 0 to 16 of 4x4 black dots, divided by 16.

Clients: the source names none. The digits are dealt to {num_clients} clients by a Dirichlet
partition, alpha 0.5 for each class; use another partitioner as you like.

Outside any privacy guarantee: the numbers of digits and of each class.

Cite: Alpaydin, E., & Kaynak, C. (1998). Optical Recognition of Handwritten Digits [Dataset]. UCI
Machine Learning Repository. https://doi.org/10.24432/C50P49.
"""


def digits(*, num_clients: int = 10, test_fraction: float = 0.2, seed: int = 0) -> FederatedDataset:
    """Loads 1,797 digits of 8x8 pixels, dealt to clients with different digits.

    The smallest real task with pictures: a convolutional network trains in seconds on a CPU.

    Args:
        num_clients: how many clients to make, by `dirichlet` with alpha 0.5.
        test_fraction: the share of the digits to hold out, in [0, 1).
        seed: of the split and the clients; a public constant.

    Returns:
        A `FederatedDataset` of shape (8, 8, 1) and ten classes, float32 in [0, 1].

    Raises:
        DataError: a bad argument, or scikit-learn with another file.

    Example:
        >>> from fedjax_secure.data import digits
        >>> data = digits()
        >>> len(data.y) + len(data.test_y), data.shape
        (1797, (8, 8, 1))

    Source:
        UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    content = package_file(
        "digits", "sklearn", "scikit-learn", "datasets/data/digits.csv.gz", SHA256
    )
    table = np.loadtxt(content.decode().splitlines(), delimiter=",", dtype=np.float32)
    data = from_records(
        name="digits",
        client_names=["all"],
        client=np.zeros(len(table), int),
        x=table[:, :-1] / np.float32(16),
        y=table[:, -1].astype(np.int32),
        test_fraction=test_fraction,
        seed=seed,
        feature_names=(),
        classes=tuple("0123456789"),
        unit="digit",
        population="UCI optical recognition of handwritten digits, test part",
        card=CARD.format(num_clients=num_clients),
        shape=(8, 8, 1),
    )
    return dirichlet(data, num_clients, alpha=0.5, seed=seed).derive(name="digits")
