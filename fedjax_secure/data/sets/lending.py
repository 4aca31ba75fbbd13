"""9,857 loans in 49 states and Washington, D.C.: LendingClub, first quarter of 2016."""

from __future__ import annotations

import csv
import io

import numpy as np

from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.encoding import CategoryColumn, NumberColumn, encode_columns
from fedjax_secure.data.sets.files import own_file
from fedjax_secure.data.splitting import from_records

SHA256 = "5f04bc48d26cf1235d37fc8a1c27ce0b8b4f94ad728fc29c64645e507a599d9f"
CLASSES = ("good", "bad")

# Every constant below is the lender's rule or a round number chosen from the column's meaning.
COLUMNS = (
    NumberColumn("funded_amnt", 1_000, 40_000),
    CategoryColumn("term", ("term_36", "term_60")),
    NumberColumn("int_rate", 5, 31),
    NumberColumn("sub_grade", 0, 34),
    CategoryColumn("verification_status", ("Not_Verified", "Source_Verified", "Verified")),
    NumberColumn("annual_inc", 0, 250_000),
    NumberColumn("emp_length", 0, 10, indicator=True),
    NumberColumn("delinq_2yrs", 0, 5),
    NumberColumn("inq_last_6mths", 0, 5),
    NumberColumn("revol_util", 0, 100),
    NumberColumn("acc_now_delinq", 0, 1),
    NumberColumn("open_il_6m", 0, 10),
    NumberColumn("open_il_12m", 0, 5),
    NumberColumn("open_il_24m", 0, 10),
    NumberColumn("total_bal_il", 0, 200_000),
    NumberColumn("all_util", 0, 100),
    NumberColumn("inq_fi", 0, 10),
    NumberColumn("inq_last_12m", 0, 10),
    NumberColumn("delinq_amnt", 0, 10_000),
    NumberColumn("num_il_tl", 0, 50),
    NumberColumn("total_il_high_credit_limit", 0, 200_000),
)
GRADES = tuple(f"{letter}{number}" for letter in "ABCDEFG" for number in range(1, 6))
YEARS = {"emp_lt_1": 0, "emp_ge_10": 10, "emp_unk": float("nan")}

CARD = """\
Lending: 9,857 loans of LendingClub in the first quarter of 2016, by the borrower's state.

Source: the data set lending_club of the R package modeldata 1.1.0 (Max Kuhn, RStudio), a subset of
the loans that LendingClub published; downloaded there in August 2017. Licence: MIT. The file in
this package, the licence's text and how it was made: sources/lending.md.

Task: does the loan go bad (charged off, in default, or more than 20 days late)? 517 of 9,857 do:
accuracy alone says little, look at AUC. Unit of privacy: the loan. We assume one loan a borrower.

Clients: the borrower's state: 49 states and DC (Iowa has none), from 16 loans (VT) to 1,324 (CA).

Cleaning rules, each a function of one record alone:
- a value beyond its public range is moved to the nearer end;
- sub_grade A1 to G5 becomes 0 to 34; emp_length its years, less than one 0, ten and more 10;
- an unknown emp_length becomes the midpoint, and "emp_length missing" is 1.

Public constants (ranges become [-1, 1]); none is computed from the records:
- funded_amnt 1,000-40,000 dollars, int_rate 5-31%, term and sub_grade: the lender's terms;
- percentages (revol_util, all_util) 0-100; emp_length 0-10 as the source codes it;
- annual_inc 0-250,000 dollars, balances and limits 0-200,000, delinq_amnt 0-10,000, and counts of
  accounts, inquiries and delinquencies 0 to 1, 5, 10 or 50: round numbers chosen by us from
  the columns' meaning.
- The split: a seeded permutation within each state and class, made before any training.

Outside any privacy guarantee: each state's number of loans and its share of each class.

Cite: Kuhn, M. (2023). modeldata: Data Sets Useful for Modeling Examples. R package version 1.1.0.
"""


def lending(*, test_fraction: float = 0.2, seed: int = 0) -> FederatedDataset:
    """Loads 9,857 loans of 50 clients: 49 states and Washington, D.C.

    Finance by region: very different sizes, and a rare outcome (5%). Offline, from a small file
    inside the package.

    Args:
        test_fraction: the share of each state's loans to hold out, in [0, 1).
        seed: of the split; a public constant.

    Returns:
        A `FederatedDataset` of unit ``"loan"``, with classes ``good`` and ``bad``.

    Raises:
        DataError: a bad fraction or seed, or a file that is not the one this release was made with.

    Example:
        >>> from fedjax_secure.data import lending
        >>> data = lending()
        >>> data.num_clients, len(data.y) + len(data.test_y)
        (50, 9857)

    Source:
        R package modeldata 1.1.0, data set lending_club, MIT.
    """
    content = own_file("lending", "lending.csv.xz", SHA256).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    states, client = np.unique([row["addr_state"] for row in rows], return_inverse=True)
    x, feature_names = encode_columns(COLUMNS, [_column(c, rows) for c in COLUMNS])
    return from_records(
        name="lending",
        client_names=states.tolist(),
        client=client,
        x=x,
        y=np.array([CLASSES.index(row["Class"]) for row in rows], np.int32),
        test_fraction=test_fraction,
        seed=seed,
        feature_names=feature_names,
        classes=CLASSES,
        unit="loan",
        client_unit="state",
        population="LendingClub loans, first quarter of 2016, modeldata",
        card=CARD,
    )


def _column(column: NumberColumn | CategoryColumn, rows: list[dict[str, str]]) -> np.ndarray:
    values = [row[column.name] for row in rows]
    if isinstance(column, CategoryColumn):
        return np.array([column.categories.index(v) for v in values])
    if column.name == "sub_grade":
        return np.array([GRADES.index(v) for v in values], float)
    if column.name == "emp_length":
        return np.array([YEARS[v] if v in YEARS else float(v[4:]) for v in values])
    return np.array(values, float)
