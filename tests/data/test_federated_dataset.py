"""The dataset type: what it checks, its fingerprints, its split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core.errors import DataError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.data.dataset import split_records

GOOD = {
    "name": "two",
    "clients": ("a", "b"),
    "x": np.arange(8.0).reshape(4, 2),
    "y": np.array([0, 1, 1, 0]),
    "offsets": np.array([0, 3, 4]),
    "test_x": np.array([[9.0, 9.0], [8.0, 8.0]]),
    "test_y": np.array([1, 0]),
    "test_offsets": np.array([0, 1, 2]),
    "feature_names": ("p", "q"),
    "classes": ("no", "yes"),
}


def make(**changes):
    return FederatedDataset(**{**GOOD, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"clients": ()}, "at least one client"),
        ({"clients": ("a", "a")}, "distinct clients"),
        ({"feature_names": ("p", "p")}, "distinct feature_names"),
        ({"feature_names": ("p",)}, "x of shape"),
        ({"classes": ("no",)}, "two or more classes"),
        ({"y": [0, 1, 1]}, "y of shape"),
        ({"y": [0, 1, 1, 2]}, "y in"),
        ({"y": [0, 1, 1, -1]}, "y in"),
        ({"y": [0.5, 1, 1, 0]}, "y as an array of int32"),
        ({"offsets": [0, 3]}, "offsets of shape"),
        ({"offsets": [0, 3, 5]}, "offsets of shape"),
        ({"offsets": [1, 3, 4]}, "offsets of shape"),
        ({"offsets": [0, 5, 4]}, "offsets of shape"),
        ({"offsets": [0, 4, 4]}, "training records at every client"),
        ({"offsets": 4}, "offsets of shape"),
        ({"x": np.full((4, 2), np.nan)}, "finite values in x"),
        ({"test_x": np.full((2, 2), np.inf)}, "finite values in test_x"),
        ({"test_offsets": [0, 1, 1]}, "test_offsets of shape"),
        ({"x": [["a", "b"]] * 4}, "x as an array of float32"),
    ],
)
def test_a_dataset_that_does_not_fit_together_is_refused(changes, words):
    with pytest.raises(DataError) as error:
        make(**changes)
    assert words in str(error.value)
    assert error.value.need and error.value.found and error.value.fix


def test_types_are_fixed_and_arrays_cannot_be_changed():
    data = make()
    assert data.x.dtype == data.test_x.dtype == np.float32
    assert data.y.dtype == data.offsets.dtype == data.test_offsets.dtype == np.int32
    with pytest.raises(ValueError):
        data.x[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_the_given_arrays_are_copied():
    x = GOOD["x"].copy()
    data = make(x=x)
    before = data.fingerprint
    x[0, 0] = 77
    assert data.x[0, 0] == 0 and make().fingerprint == before


@pytest.mark.parametrize(
    "changes",
    [
        {"x": GOOD["x"] + 1},
        {"y": [1, 1, 1, 0]},
        {"offsets": [0, 2, 4]},
        {"test_y": [0, 0]},
        {"clients": ("a", "c")},
        {"feature_names": ("p", "r")},
        {"classes": ("no", "maybe")},
        {"unit": "patient"},
    ],
)
def test_fingerprints_change_with_the_content(changes):
    assert make().fingerprint == make().fingerprint
    assert make(**changes).fingerprint != make().fingerprint
    assert make(**changes).population_fingerprint != make().population_fingerprint


def test_the_fingerprint_is_a_published_constant():
    assert make().fingerprint == (
        "d3823732d14a3f58ee5058bd64479f44c3dbf6c0fdd041e64b1e52bfda021092"
    )


def test_another_split_of_the_same_records_is_the_same_population():
    data = make()
    swapped = make(
        x=np.concatenate([data.x[1:3], data.test_x[:1], data.test_x[1:]]),
        y=np.concatenate([data.y[1:3], data.test_y[:1], data.test_y[1:]]),
        test_x=np.concatenate([data.x[:1], data.x[3:]]),
        test_y=np.concatenate([data.y[:1], data.y[3:]]),
    )
    assert swapped.fingerprint != data.fingerprint
    assert swapped.population_fingerprint == data.population_fingerprint


def test_one_name_is_one_population_however_it_is_encoded():
    named = make(population="a study")
    assert named.population_fingerprint != make().population_fingerprint
    other = make(population="a study", unit="person", x=make().x * 2)
    assert other.fingerprint != named.fingerprint
    assert other.population_fingerprint == named.population_fingerprint
    assert named.pooled().population_fingerprint == named.population_fingerprint


def test_describe_counts_both_parts():
    table = make().describe()
    assert list(table.columns) == ["client", "train", "test", "share of no", "share of yes"]
    assert table.to_numpy().tolist() == [["a", 3, 1, 0.25, 0.75], ["b", 1, 1, 1.0, 0.0]]


def test_pooled_is_one_client_with_the_same_records():
    pooled = make().pooled()
    assert pooled.clients == ("pooled",) and pooled.offsets.tolist() == [0, 4]
    assert np.array_equal(pooled.x, make().x) and np.array_equal(pooled.test_y, make().test_y)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.floats(0, 0.99),
    st.integers(0, 2**70),
    st.integers(0, 50),
)
def test_the_split_holds_out_the_same_share_of_every_class(labels, fraction, seed, stream):
    labels = np.array(labels)
    held_out = split_records(labels, test_fraction=fraction, seed=seed, stream=stream)
    again = split_records(labels, test_fraction=fraction, seed=seed, stream=stream)
    assert np.array_equal(held_out, again)
    for label in np.unique(labels):
        size, chosen = np.sum(labels == label), np.sum(held_out[labels == label])
        assert chosen <= size - 1
        assert abs(chosen - fraction * size) <= 1
        if size > 1 and fraction > 0:
            assert chosen >= 1


def test_the_split_depends_on_seed_and_client():
    labels = np.zeros(100, int)
    splits = [
        split_records(labels, test_fraction=0.5, seed=s, stream=c).tobytes()
        for s in range(3)
        for c in range(3)
    ]
    assert len(set(splits)) == 9


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), True])
def test_a_bad_fraction_is_refused(fraction):
    with pytest.raises(DataError, match="test_fraction"):
        split_records([0, 1], test_fraction=fraction, seed=0, stream=0)


@pytest.mark.parametrize("seed", [-1, 0.5, "x", None, True])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(DataError, match="seed"):
        split_records([0, 1], test_fraction=0.5, seed=seed, stream=0)
