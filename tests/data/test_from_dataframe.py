"""Datasets from DataFrames: what is encoded, and every frame that is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedjax_secure.core.errors import DataError
from fedjax_secure.data import from_dataframe, heart_disease


def frame(**changes):
    columns = {
        "hospital": ["b", "a", "b", "a", "b", "a"],
        "age": [30.0, 50.0, np.nan, 80.0, 20.0, 95.0],
        "smoker": [True, False, True, False, True, False],
        "stage": pd.Categorical(["I", "II", "I", None, "I", "II"], categories=["I", "II", "III"]),
        "ill": [0, 1, 1, 0, 0, 1],
    }
    return pd.DataFrame({**columns, **changes})


def load(df, **changes):
    settings = {"client": "hospital", "label": "ill", "ranges": {"age": (20, 80)}}
    return from_dataframe(df, **{**settings, **changes})


def test_encodes_by_the_given_constants():
    data = load(frame(), test_fraction=0)
    assert data.clients == ("a", "b") and data.offsets.tolist() == [0, 3, 6]
    assert data.classes == ("0", "1") and data.y.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.feature_names == (
        "age", "age missing", "smoker=False", "smoker=True",
        "stage=I", "stage=II", "stage=III", "stage missing",
    )  # fmt: skip
    np.testing.assert_allclose(
        data.x,
        [
            [0, 0, 1, 0, 0, 1, 0, 0],
            [1, 0, 1, 0, 0, 0, 0, 1],
            [1, 0, 1, 0, 0, 1, 0, 0],  # 95 is clipped to 80
            [-2 / 3, 0, 0, 1, 1, 0, 0, 0],
            [0, 1, 0, 1, 1, 0, 0, 0],
            [-1, 0, 0, 1, 1, 0, 0, 0],
        ],
        atol=1e-6,
    )
    assert "age: 20 to 80" in data.card and "missing values" in data.card


def test_declared_constants_leave_nothing_to_the_table():
    declared = {"may_be_missing": ["age", "stage"], "classes": [0, 1], "test_fraction": 0}
    data = load(frame(), **declared)
    assert "which classes" not in data.card and "which columns" not in data.card
    whole = frame(age=[30.0, 50.0, 40.0, 80.0, 20.0, 95.0])
    assert load(whole, **declared).feature_names == data.feature_names


def test_strings_with_declared_categories_and_labels():
    df = frame(stage=["I", "II", "I", None, "I", "II"], ill=["no", "yes", "yes", "no", "no", "yes"])
    data = load(df, categories={"stage": ["I", "II"]}, classes=["yes", "no"], test_fraction=0)
    assert data.classes == ("yes", "no") and data.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.feature_names[-3:] == ("stage=I", "stage=II", "stage missing")


def test_nullable_and_integer_dtypes():
    df = frame(
        age=pd.array([30, 50, None, 80, 20, 95], dtype="Int64"),
        smoker=pd.array([True, False, None, False, True, False], dtype="boolean"),
        ill=[0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
    )
    data = load(df, test_fraction=0)
    assert data.classes == ("0", "1") and "smoker missing" in data.feature_names
    np.testing.assert_array_equal(data.x[:, 0], load(frame(), test_fraction=0).x[:, 0])


def test_single_precision_labels_are_classes_too():
    assert load(frame(ill=np.float32([0, 1, 1, 0, 0, 1]))).classes == ("0", "1")


def test_numeric_clients_are_ordered_as_numbers():
    data = load(frame(hospital=[10, 2, 10, 2, 10, 2]), test_fraction=0)
    assert data.clients == ("2", "10")


def test_same_split_as_the_loaders():
    """The hospital data, through a DataFrame, splits the same patients."""
    data = heart_disease(seed=3)
    frames = []
    for c, client in enumerate(heart_disease(test_fraction=0).clients):
        whole = heart_disease(test_fraction=0)
        rows = whole.rows(c)
        part = pd.DataFrame(whole.x[rows], columns=list(whole.feature_names))
        frames.append(part.assign(client=client, label=whole.y[rows]))
    df = pd.concat(frames)
    again = from_dataframe(
        df, client="client", label="label", ranges={f: (-1, 1) for f in data.feature_names}, seed=3
    )
    assert np.array_equal(again.test_x, data.test_x) and np.array_equal(again.y, data.y)


REFUSED = [
    (frame(), {"client": "site"}, "a column named 'site'"),
    (frame(), {"label": "dead"}, "a column named 'dead'"),
    (frame(), {"features": ["age", "weight"]}, "a column named 'weight'"),
    (frame(), {"features": []}, "at least one feature"),
    (frame(), {"features": "age"}, "features as a list"),
    (frame(), {"features": ["age", "age"]}, "distinct features"),
    (frame(), {"features": ["age", "ill"]}, "apart from client and label"),
    (frame(), {"features": ["age", "hospital"]}, "apart from client and label"),
    (frame(), {"label": "hospital"}, "'hospital' for both"),
    (frame().iloc[:0], {}, "at least one row"),
    (frame(hospital=["a", None, "b", "a", "b", "a"]), {}, "a client in every row"),
    (frame(hospital=pd.Categorical(["a"] * 6, categories=["a", "z"])), {}, "rows for every client"),
    (frame(hospital=[1, "1", 1, "1", 1, "1"]), {}, "differ as text"),
    (frame(ill=[0, 1, None, 0, 0, 1]), {}, "a label in every row"),
    (frame(ill=[1] * 6), {}, "two or more classes"),
    (frame(ill=[0.5, 1, 1, 0, 0, 1]), {}, "labels that name a class"),
    (frame(ill=np.float32([0.5, 1, 1, 0, 0, 1])), {}, "that name a class"),
    (frame(), {"classes": [0, 2]}, "labels among the classes"),
    (frame(), {"classes": [0, 0, 1]}, "distinct classes"),
    (frame(age=[30.0, np.inf, 1, 2, 3, 4]), {}, "finite values in column 'age'"),
    (frame(), {"ranges": {}}, "a public range for the numeric column 'age'"),
    (frame(), {"ranges": {"age": (80, 20)}}, "low < high"),
    (frame(), {"ranges": {"age": (20, 20)}}, "low < high"),
    (frame(), {"ranges": {"age": (0, np.inf)}}, "low < high"),
    (frame(), {"ranges": {"age": 80}}, "low < high"),
    (frame(), {"ranges": {"age": (-1e308, 1e308)}}, "low < high for"),
    (frame(), {"ranges": {"age": (0, 5e-324)}}, "with low < high for"),
    (frame(age=[1j] * 6), {}, "which has a range"),
    (frame(), {"ranges": {"age": (20, 80), "agee": (0, 1)}}, "names of features in ranges="),
    (frame(age=list("abcdef")), {}, "numbers in column 'age'"),
    (frame(stage=list("abcdef")), {}, "declared categories, in column 'stage'"),
    (frame(stage=list("abcdef")), {"categories": {"stage": ["a", "b"]}}, "values of 'stage'"),
    (frame(), {"categories": {"stage": ["I"]}}, "two or more distinct categories"),
    (frame(), {"categories": {"age": [1, 2]}}, "ranges= or categories="),
    (frame(), {"categories": {"stagee": [1, 2]}}, "names of features in categories="),
    (frame(), {"may_be_missing": ["stage"]}, "no missing value outside"),
    (frame(), {"test_fraction": 1}, "test_fraction"),
    (frame(), {"test_fraction": "0.2"}, "a test_fraction in [0, 1)"),
    (frame(), {"test_fraction": None}, "test_fraction in [0, 1)"),
    (frame(), {"seed": -1}, "seed"),
    (pd.concat([frame(), frame()[["age"]]], axis=1), {}, "distinct column names"),
    ({"hospital": [1]}, {}, "a pandas DataFrame"),
]


@pytest.mark.parametrize("df, changes, words", REFUSED, ids=[r[2] for r in REFUSED])
def test_bad_frames_are_refused_with_need_found_and_fix(df, changes, words):
    with pytest.raises(DataError) as error:
        load(df, **changes)
    assert words in str(error.value)
    assert error.value.need and error.value.found and error.value.fix


def test_no_message_shows_a_record(recwarn):
    secret = "Jane Q. Patient"
    df = frame(stage=[secret, "II", "I", "I", "I", "II"])
    with pytest.raises(DataError) as error:
        load(df, categories={"stage": ["I", "II"]})
    assert secret not in str(error.value)
