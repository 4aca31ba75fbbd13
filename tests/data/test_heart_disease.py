"""The hospital data: its counts, its cleaning rules, its constants, its speed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from fedjax_secure.core.errors import DataError
from fedjax_secure.data import heart_disease

SOURCES = resources.files("fedjax_secure.data").joinpath("sources")


def table():
    import pandas as pd

    return pd.read_csv(SOURCES.joinpath("heart_disease.csv"))


def all_records(data):
    """The records of both parts, client by client."""
    x, y, client = [], [], []
    for c in range(data.num_clients):
        for records, labels, bounds in (
            (data.x, data.y, data.offsets),
            (data.test_x, data.test_y, data.test_offsets),
        ):
            x.append(records[bounds[c] : bounds[c + 1]])
            y.append(labels[bounds[c] : bounds[c + 1]])
            client += [data.clients[c]] * len(y[-1])
    return np.concatenate(x), np.concatenate(y), np.array(client)


def test_counts_are_those_that_uci_publishes():
    data = heart_disease()
    described = data.describe().set_index("client")
    totals = (described.train + described.test).to_dict()
    assert totals == {"Cleveland": 303, "Hungary": 294, "Switzerland": 123, "VA Long Beach": 200}
    ill = (described["share of disease"] * (described.train + described.test)).round().astype(int)
    assert ill.to_dict() == {
        "Cleveland": 139, "Hungary": 106, "Switzerland": 115, "VA Long Beach": 149
    }  # fmt: skip


def test_every_class_is_held_out_at_every_hospital():
    data = heart_disease()
    for c in range(4):
        labels = data.test_y[data.test_offsets[c] : data.test_offsets[c + 1]]
        assert set(labels.tolist()) == {0, 1}
    assert np.abs(data.test_counts / (data.counts + data.test_counts) - 0.2).max() < 0.01


def test_features_are_bounded_and_norms_are_sane():
    x, _, _ = all_records(heart_disease())
    assert np.abs(x).max() <= 1
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    assert norms.max() <= np.sqrt(13) + 1e-6 and norms.min() > 1


def test_features_follow_the_rules_record_by_record():
    """Recomputes every feature from the file with pandas, by the rules that the card states."""
    data = heart_disease()
    x, y, client = all_records(data)
    raw = table()
    raw.loc[raw.chol == 0, "chol"] = np.nan
    raw.loc[raw.trestbps == 0, "trestbps"] = np.nan
    columns = {}
    for name, low, high in [
        ("age", 20, 79), ("trestbps", 90, 200), ("chol", 130, 320), ("thalach", 60, 200),
        ("oldpeak", 0, 4), ("ca", 0, 3),
    ]:  # fmt: skip
        scaled = (raw[name].clip(low, high) - low) / (high - low) * 2 - 1
        columns[name] = scaled.fillna(0)
        if name != "age":
            columns[f"{name} missing"] = raw[name].isna().astype(float)
    for name, words in {
        "sex": {0: "female", 1: "male"},
        "cp": {1: "typical angina", 2: "atypical angina", 3: "non-anginal", 4: "asymptomatic"},
        "fbs": {0: "no", 1: "yes"},
        "restecg": {0: "normal", 1: "ST-T abnormality", 2: "left ventricular hypertrophy"},
        "exang": {0: "no", 1: "yes"},
        "slope": {1: "upsloping", 2: "flat", 3: "downsloping"},
        "thal": {3: "normal", 6: "fixed defect", 7: "reversible defect"},
    }.items():
        for code, word in words.items():
            columns[f"{name}={word}"] = (raw[name] == code).astype(float)
    assert set(columns) == set(data.feature_names)
    expected = np.stack([columns[n] for n in data.feature_names], axis=1).astype(np.float32)
    for hospital in data.clients:
        rows = (raw.hospital == hospital).to_numpy()
        want = np.column_stack([expected[rows], (raw.num[rows] > 0)])
        got = np.column_stack([x[client == hospital], y[client == hospital]])
        order = lambda a: a[np.lexsort(np.round(a, 4).T)]  # noqa: E731
        np.testing.assert_allclose(order(got), order(want), atol=1e-6)


def test_nothing_is_fitted(monkeypatch):
    """A record's features do not change when all other records do."""
    module = sys.modules["fedjax_secure.data.sets.heart_disease"]
    rows = module._read()
    whole = heart_disease(test_fraction=0)
    some = [r for i, r in enumerate(rows) if r["hospital"] != "Hungary" or i % 2]
    monkeypatch.setattr(module, "_read", lambda: some)
    part = heart_disease(test_fraction=0)
    hungary = whole.x[whole.offsets[1] : whole.offsets[2]]
    kept = [i % 2 == 1 for i, r in enumerate(rows) if r["hospital"] == "Hungary"]
    assert np.array_equal(part.x[part.offsets[1] : part.offsets[2]], hungary[kept])


def test_missing_cholesterol_of_switzerland():
    data = heart_disease()
    x, _, client = all_records(data)
    swiss = x[client == "Switzerland"]
    assert (swiss[:, data.feature_names.index("chol")] == 0).all()
    assert (swiss[:, data.feature_names.index("chol missing")] == 1).all()


def test_the_split_is_a_constant():
    assert heart_disease().fingerprint == (
        "4fd489a65bba5d44e90c90dc39970b922a172c9aeea56830e7253026aef3469f"
    )
    assert heart_disease(seed=1).fingerprint != heart_disease().fingerprint
    assert heart_disease(seed=1).population_fingerprint == heart_disease().population_fingerprint


def test_unit_and_card():
    data = heart_disease()
    assert data.unit == "patient"
    for words in ("10.24432/C52P4X", "CC BY 4.0", "Public constants", "Cleaning rules"):
        assert words in data.card


def test_a_changed_file_is_refused(monkeypatch):
    module = sys.modules["fedjax_secure.data.sets.heart_disease"]
    monkeypatch.setattr(module, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="Reinstall"):
        heart_disease()


def test_loading_takes_less_than_a_second_and_no_pandas():
    code = (
        "import sys, time; t = time.perf_counter()\n"
        "from fedjax_secure.data.sets.heart_disease import heart_disease\n"
        "from time import process_time as p; a = p(); heart_disease(); b = p()\n"
        "assert b - a < 1, b - a\n"
        "assert 'pandas' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def _maker():
    spec = importlib.util.spec_from_file_location(
        "make_heart_disease", str(SOURCES.joinpath("make_heart_disease.py"))
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_extract_recodes_as_the_provenance_says():
    header = (
        "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,thal,num\n"
    )
    source = (
        header
        + "1,63,Male,Cleveland,typical angina,145,233,TRUE,lv hypertrophy,150,FALSE,2.3,"
        + "downsloping,0,fixed defect,0\n"
        + "304,28,Male,Cleveland,atypical angina,130,132,FALSE,lv hypertrophy,185,FALSE,0,,,,0\n"
    )
    want = SOURCES.joinpath("heart_disease.csv").read_text().splitlines()
    assert _maker().extract(source).splitlines() == [want[0], want[1], want[304]]
    with pytest.raises(KeyError):
        _maker().extract(source.replace("typical angina", "unheard of"))


def test_the_maker_refuses_another_source(tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("id,age\n")
    with pytest.raises(SystemExit, match="sha256"):
        _maker().main(str(other))


def test_a_linear_model_can_learn_from_the_features():
    """The public ranges lose little: pooled logistic regression ranks the held-out patients."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    data = heart_disease()
    fitted = linear_model.LogisticRegression(max_iter=2000).fit(data.x, data.y)
    scores = fitted.decision_function(data.test_x)
    assert metrics.roc_auc_score(data.test_y, scores) > 0.8
