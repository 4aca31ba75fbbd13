"""569 breast tumours, 30 measurements of cell nuclei each: Breast Cancer Wisconsin (Diagnostic)."""

from __future__ import annotations

import numpy as np

from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.encoding import NumberColumn, encode_columns
from fedjax_secure.data.partitioners import iid
from fedjax_secure.data.sets.files import package_file
from fedjax_secure.data.splitting import from_records

SHA256 = "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"
CLASSES = ("benign", "malignant")

# (name, high end for the mean, for the standard error, for the worst); every low end is 0.
_RANGES = (
    ("radius", 30, 3, 40),
    ("texture", 40, 5, 50),
    ("perimeter", 200, 20, 250),
    ("area", 2500, 500, 4000),
    ("smoothness", 0.2, 0.03, 0.25),
    ("compactness", 0.4, 0.15, 1),
    ("concavity", 0.5, 0.4, 1.25),
    ("concave points", 0.2, 0.05, 0.3),
    ("symmetry", 0.3, 0.08, 0.7),
    ("fractal dimension", 0.1, 0.03, 0.2),
)
COLUMNS = tuple(
    NumberColumn(f"{name} ({kind})", 0, highs[place])
    for place, kind in enumerate(("mean", "standard error", "worst"))
    for name, *highs in _RANGES
)

CARD = """\
Breast cancer: 569 tumours, one record each, 357 benign and 212 malignant.

Source: UCI Machine Learning Repository, Breast Cancer Wisconsin (Diagnostic),
https://doi.org/10.24432/C5DW2B, by William Wolberg, Olvi Mangasarian, Nick Street and W. Street
(University of Wisconsin), 1995. Licence: CC BY 4.0. Read from the package scikit-learn (BSD
3-Clause), which ships it; its sha256 is checked.

Task: is the tumour malignant? 30 features, computed from the picture of a fine needle aspirate: ten
properties of the cell nuclei, each as mean, standard error and worst (mean of the three largest).
Unit of privacy: the patient.

Cleaning rules, each a function of one record alone: a value beyond its range is moved to the nearer
end. No value is missing.

Public constants (ranges become [-1, 1]): from 0 to round numbers near the largest values in UCI's
own summary table. That table is public, but was computed from these records: for this set alone
the ranges are no independent knowledge, and lie outside any privacy guarantee.

Clients: the source names none. The patients are dealt to {num_clients} clients at random; use
another partitioner for skew.

Outside any privacy guarantee: the numbers of patients and of each class.

Cite: Street, W. N., Wolberg, W. H., & Mangasarian, O. L. (1993). Nuclear feature extraction for
breast tumor diagnosis. Proc. SPIE 1905:861-870. Wolberg, W., Mangasarian, O., Street, N., & Street,
W. (1995). Breast Cancer Wisconsin (Diagnostic) [Dataset]. UCI Machine Learning Repository.
https://doi.org/10.24432/C5DW2B.
"""


def breast_cancer(
    *, num_clients: int = 5, test_fraction: float = 0.2, seed: int = 0
) -> FederatedDataset:
    """Loads 569 patients of one hospital, dealt to clients at random.

    A small, clean, easy task: a linear model reaches about 97%.

    Args:
        num_clients: how many clients to make.
        test_fraction: the share of the patients to hold out, in [0, 1).
        seed: of the split and the clients; a public constant.

    Returns:
        A `FederatedDataset` of unit ``"patient"``, with classes ``benign`` and ``malignant``.

    Raises:
        DataError: a bad argument, or scikit-learn with another file.

    Example:
        >>> from fedjax_secure.data import breast_cancer
        >>> data = breast_cancer()
        >>> len(data.y) + len(data.test_y), data.num_features
        (569, 30)

    Source:
        UCI Machine Learning Repository, https://doi.org/10.24432/C5DW2B, CC BY 4.0.
    """
    content = package_file(
        "breast_cancer", "sklearn", "scikit-learn", "datasets/data/breast_cancer.csv", SHA256
    )
    table = np.loadtxt(content.decode().splitlines(), delimiter=",", skiprows=1)
    x, feature_names = encode_columns(COLUMNS, list(table[:, :-1].T))
    data = from_records(
        name="breast_cancer",
        client_names=["all"],
        client=np.zeros(len(table), int),
        x=x,
        y=(table[:, -1] == 0).astype(np.int32),  # the file writes malignant as 0
        test_fraction=test_fraction,
        seed=seed,
        feature_names=feature_names,
        classes=CLASSES,
        unit="patient",
        population="UCI breast cancer Wisconsin (diagnostic)",
        card=CARD.format(num_clients=num_clients),
    )
    return iid(data, num_clients, seed=seed).derive(name="breast_cancer", client_unit="clinic")
