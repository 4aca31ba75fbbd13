"""The dataset type: what it checks, its fingerprints, its split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core.errors import DataError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.data.splitting import split_clients, split_records

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
    assert list(table.columns) == [
        "client", "train", "test", "share of no", "share of yes", "skew",
    ]  # fmt: skip
    assert table.to_numpy().tolist() == [
        ["a", 3, 1, 0.25, 0.75, 0.25],
        ["b", 1, 1, 1.0, 0.0, 0.5],
    ]


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


# What a dataset of pictures or text adds.

PICTURES = {
    **GOOD,
    "x": np.arange(32, dtype=np.uint8).reshape(4, 8),
    "test_x": np.zeros((2, 8), np.uint8),
    "feature_names": (),
    "shape": (2, 2, 2),
}


def test_the_population_fingerprint_is_a_published_constant():
    assert make().population_fingerprint == (
        "0e5dd005e5259b5609ea2a3026a93dd6cb8be3e7c012f5113dc07557521ef3cc"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_pixels_and_tokens_keep_their_type_and_shape(dtype):
    x, test_x = PICTURES["x"].astype(dtype), PICTURES["test_x"].astype(dtype)
    data = FederatedDataset(**{**PICTURES, "x": x, "test_x": test_x})
    assert data.x.dtype == data.test_x.dtype == dtype and np.array_equal(data.x, x)
    assert data.shape == (2, 2, 2) and data.feature_names[5] == "1,0,1"
    for part in (data.subset(["b"]), data.pooled(), data.derive(name="other")):
        assert part.x.dtype == dtype and part.shape == (2, 2, 2)


def test_fingerprints_know_type_and_shape():
    names = tuple("abcdefgh")
    plain = FederatedDataset(**{**PICTURES, "shape": (), "feature_names": names})
    folded = FederatedDataset(**{**PICTURES, "feature_names": names})
    tokens = FederatedDataset(**{
        **PICTURES, "feature_names": names, "x": PICTURES["x"].astype(np.int32),
        "test_x": PICTURES["test_x"].astype(np.int32),
    })  # fmt: skip
    floats = FederatedDataset(**{
        **PICTURES, "shape": (), "feature_names": names, "x": PICTURES["x"].astype(np.float32),
        "test_x": PICTURES["test_x"].astype(np.float32),
    })  # fmt: skip
    made = (plain, folded, tokens, floats)
    assert len({data.fingerprint for data in made}) == 4
    assert len({data.population_fingerprint for data in made}) == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"shape": (2, 3)}, "a shape of 2 features in all"),
        ({"shape": (2, -1, -1)}, "whole numbers above 0"),
        ({"shape": (2.0,)}, "whole numbers above 0"),
        ({"shape": 2}, "whole numbers above 0"),
        ({"x": np.zeros((4, 2), np.uint8)}, "test_x of x's type, uint8"),
        ({"test_x": np.zeros((2, 2), np.uint8)}, "test_x of x's type, float32"),
        ({"feature_names": ()}, "x of shape"),
    ],
)
def test_a_shape_or_type_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(DataError) as error:
        make(**changes)
    assert words in str(error.value)


def test_held_out_records_may_be_none_whatever_their_type():
    none = {"test_x": np.zeros((0, 8)), "test_y": [], "test_offsets": [0, 0, 0]}
    data = FederatedDataset(**{**PICTURES, **none})
    assert data.test_x.dtype == np.uint8 and data.test_counts.tolist() == [0, 0]
    assert len(data.fingerprint) == len(data.population_fingerprint) == 64


def test_the_card_is_text_and_can_be_called():
    data = make(card="A study.\nLicence: CC0.")
    assert data.card == "A study.\nLicence: CC0." and data.card() is data.card
    assert repr(data.card()) == data.card and "CC0" in data.derive(name="b").card


def clients_of(data):
    """Each client's records, as bytes."""
    found = {}
    for c, client in enumerate(data.clients):
        train = slice(data.offsets[c], data.offsets[c + 1])
        test = slice(data.test_offsets[c], data.test_offsets[c + 1])
        parts = data.x[train], data.y[train], data.test_x[test], data.test_y[test]
        found[client] = tuple(part.tobytes() for part in parts)
    return found


@pytest.mark.parametrize("chosen", [["c"], ["d", "a"], [1, 2], np.array([3, 0, 1]), ["b", "c"],
                                    np.array([True, False, True, True])])
def test_a_subset_holds_the_chosen_clients_and_nothing_else(chosen):
    rng = np.random.default_rng(0)
    data = make(clients=tuple("abcd"), x=rng.normal(size=(20, 2)), y=rng.integers(2, size=20),
                offsets=[0, 3, 4, 11, 20], test_x=rng.normal(size=(6, 2)),
                test_y=rng.integers(2, size=6), test_offsets=[0, 2, 2, 5, 6])
    part = data.subset(chosen)
    numbers = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else chosen
    names = [n if isinstance(n, str) else data.clients[n] for n in numbers]
    assert part.clients == tuple(names)
    assert clients_of(part) == {name: clients_of(data)[name] for name in names}
    assert part.population_fingerprint == data.population_fingerprint != part.fingerprint


def test_neighbours_share_the_arrays_of_the_dataset():
    data = make()
    assert np.shares_memory(data.subset(["b"]).x, data.x)
    assert np.shares_memory(data.pooled().x, data.x)


@pytest.mark.parametrize("chosen, words", [
    ([], "a list of clients"), ("a", "a list of clients"), (["z"], "'z'"), ([2], "[2]"),
    ([-1], "[-1]"), (["a", "a"], "distinct clients"), ([True], "a mask of 2"),
    ([False, False], "true for one at least"),
])
def test_a_subset_of_unknown_clients_is_refused(chosen, words):
    with pytest.raises(DataError) as error:
        make().subset(chosen)
    assert words in str(error.value)


def test_what_is_derived_spends_from_the_same_budget():
    data = make()
    again = data.subset(["a"]).derive(x=data.subset(["a"]).x + 1).pooled()
    assert again.population_fingerprint == data.population_fingerprint
    assert data.derive(population="other").population_fingerprint != data.population_fingerprint


def test_read_only_arrays_are_shared_and_others_copied():
    x = np.ones((4, 2), np.float32)
    view = x[:]
    view.setflags(write=False)
    assert not np.shares_memory(make(x=view).x, x)  # x itself may still change
    x.setflags(write=False)
    assert np.shares_memory(make(x=view).x, x)
    content = np.frombuffer(x.tobytes(), np.float32).reshape(4, 2)
    assert np.shares_memory(make(x=content).x, content)


def test_ten_thousand_clients_and_a_million_records_are_no_burden():
    counts = np.full(10_000, 100)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rng = np.random.default_rng(0)
    labels = rng.integers(62, size=1_000_000)
    held_out = split_clients(labels, offsets, test_fraction=0.2, seed=0)
    alone = split_records(labels[100:200], test_fraction=0.2, seed=0, stream=1)
    assert np.array_equal(held_out[100:200], alone)
    data = FederatedDataset(
        name="many", clients=tuple(map(str, range(10_000))),
        x=rng.integers(256, size=(1_000_000, 2), dtype=np.uint8), y=labels, offsets=offsets,
        test_x=np.zeros((0, 2)), test_y=[], test_offsets=np.zeros(10_001, int),
        feature_names=("p", "q"), classes=tuple(map(str, range(62))))
    table = data.describe()
    assert len(table) == 10_000 and (table["train"] == 100).all()
    assert np.allclose(table.filter(like="share of").sum(axis=1), 1)
    assert len(data.plot().axes) == 4
    assert len(data.subset(np.arange(0, 10_000, 2)).y) == 500_000


def test_the_picture_shows_what_the_table_says():
    data = make(client_unit="village")
    sizes, skew, labels = data.plot().axes
    assert [bar.get_height() for bar in sizes.patches] == [3, 1, 1, 1]  # training, then held out
    assert [bar.get_height() for bar in skew.patches] == [0.25, 0.5]
    assert [bar.get_height() for bar in labels.patches] == [0.25, 1.0, 0.75, 0.0]
    assert [text.get_text() for text in labels.get_legend().get_texts()] == ["yes", "no"]
    assert data.plot().get_suptitle() == "two: 6 records at 2 clients (village), 2 classes"


def test_the_picture_of_many_classes_is_a_map():
    counts = np.random.default_rng(0).integers(1, 9, size=(30, 12))
    y = np.concatenate([np.repeat(np.arange(12), row) for row in counts])
    data = make(clients=tuple(map(str, range(30))), x=np.zeros((len(y), 2)), y=y,
                offsets=np.concatenate([[0], np.cumsum(counts.sum(axis=1))]),
                test_x=np.zeros((0, 2)), test_y=[], test_offsets=[0] * 31,
                classes=tuple("abcdefghijkl"))
    (image,) = data.plot().axes[2].images
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.allclose(image.get_array(), shares.T)
    assert np.array_equal(data.label_counts, counts)


def test_a_copy_or_a_pickle_is_read_only_and_of_the_same_people():
    import copy
    import pickle

    data = make().pooled()
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data), copy.copy(data)):
        assert again.fingerprint == data.fingerprint
        assert again.population_fingerprint == make().population_fingerprint
        with pytest.raises(ValueError, match="read-only"):
            again.x[0, 0] = 7


def test_taking_the_populations_name_away_gives_no_second_budget():
    named = make(population="village")
    nameless = named.derive(population="", name="other").derive(population="")
    assert nameless.population_fingerprint == named.population_fingerprint
    assert named.derive(population="town").population_fingerprint != named.population_fingerprint


@pytest.mark.parametrize("client", [-1, 2, "b", True, 0.0])
def test_rows_of_a_client_that_is_not_there_are_refused(client):
    with pytest.raises(DataError, match="a client's number from 0 to 1"):
        make().rows(client)
    assert make().rows(np.int32(0)).tolist() == [0, 1, 2]


def test_a_notebook_shows_the_picture_without_pyplot():
    figure = make(name="a $long$ name " * 20).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.get_suptitle().startswith("a $long$ name") and "…: 6 records" in (
        figure.get_suptitle())  # fmt: skip
    sizes = figure.axes[0]
    top = max(bar.get_y() + bar.get_height() for bar in sizes.patches)
    assert sizes.get_ylim()[1] > 1.1 * top
