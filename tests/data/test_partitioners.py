"""Partitioners: every record once, nobody empty, the same for a seed, and the skew they promise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.core.errors import DataError
from fedjax_secure.data.description import label_skew
from fedjax_secure.data.partitioners.dealing import apportion, fill_up, random_stream

PARTITIONERS = {
    "iid": fs.data.iid,
    "dirichlet": lambda d, n, seed: fs.data.dirichlet(d, n, alpha=0.3, seed=seed),
    "dirichlet, hard": lambda d, n, seed: fs.data.dirichlet(d, n, alpha=1e-3, seed=seed),
    "dirichlet, equal": lambda d, n, seed: fs.data.dirichlet(
        d, n, alpha=0.3, equal_sizes=True, seed=seed),
    "dirichlet, equal, hard": lambda d, n, seed: fs.data.dirichlet(
        d, n, alpha=1e-3, equal_sizes=True, seed=seed),
    "label_shards": lambda d, n, seed: fs.data.label_shards(
        d, n, shards_per_client=1, seed=seed),
    "quantity, beta": lambda d, n, seed: fs.data.quantity_skew(d, n, beta=0.5, seed=seed),
    "quantity, hard": lambda d, n, seed: fs.data.quantity_skew(d, n, beta=1e-4, seed=seed),
    "quantity, sigma": lambda d, n, seed: fs.data.quantity_skew(d, n, sigma=2.0, seed=seed),
}  # fmt: skip
EVEN = ("iid", "dirichlet, equal", "dirichlet, equal, hard", "label_shards")
labels_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120)


def a_dataset(labels, test_labels=(), clients=1):
    """A record's one feature is its number, so that it can be followed."""
    test = np.array(test_labels, int)
    return fs.data.from_arrays(
        np.arange(len(labels), dtype=np.float32)[:, None],
        labels,
        np.arange(len(labels)) % clients,
        test=((1000 + np.arange(len(test), dtype=np.float32))[:, None], test,
              np.arange(len(test)) % clients),
        classes=7,
    )  # fmt: skip


@pytest.mark.parametrize("name", PARTITIONERS)
@given(labels=labels_lists, data=st.data())
@settings(max_examples=40)
def test_labels_are_dealt_once_to_clients_that_are_not_empty(name, labels, data):
    clients = data.draw(st.integers(1, len(labels)))
    seed = data.draw(st.integers(0, 2**40))
    dealt = PARTITIONERS[name](np.array(labels), clients, seed=seed)
    assert dealt.shape == (len(labels),) and dealt.dtype == np.int32
    sizes = np.bincount(dealt, minlength=clients)
    assert len(sizes) == clients and sizes.min() >= 1
    if name in EVEN:
        assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(dealt, PARTITIONERS[name](np.array(labels), clients, seed=seed))


@pytest.mark.parametrize("name", PARTITIONERS)
@given(labels=st.lists(st.integers(0, 6), min_size=9, max_size=60),
       test_labels=st.lists(st.integers(0, 6), max_size=30))  # fmt: skip
@settings(max_examples=15)
def test_records_keep_their_label_and_their_part(name, labels, test_labels):
    data = a_dataset(labels, test_labels, clients=3)
    dealt = PARTITIONERS[name](data, 5, seed=3)
    assert dealt.clients == tuple("01234") and dealt.counts.min() >= 1
    for part in ("", "test_"):
        x, y = getattr(dealt, f"{part}x")[:, 0], getattr(dealt, f"{part}y")
        source = labels if not part else test_labels
        assert sorted(x.tolist()) == [(1000 if part else 0) + i for i in range(len(source))]
        assert [source[int(i) % 1000] for i in x] == y.tolist()
    assert dealt.population_fingerprint == data.population_fingerprint
    assert "Partition:" in dealt.card()


@pytest.mark.parametrize("name", PARTITIONERS)
def test_the_seed_decides(name):
    labels = np.arange(600) % 10
    dealt = [PARTITIONERS[name](labels, 6, seed=seed).tobytes() for seed in (0, 0, 1, 2**70)]
    assert dealt[0] == dealt[1] and len(set(dealt)) == 3


def test_partitions_are_published_constants():
    """The streams are numpy's for ever; a change here changes everybody's experiments."""
    labels = np.arange(24) % 3
    assert fs.data.iid(labels, 3, seed=0).tolist() == IID
    assert fs.data.dirichlet(labels, 3, alpha=0.5, seed=0).tolist() == DIRICHLET
    assert fs.data.label_shards(labels, 3, seed=0).tolist() == SHARDS
    assert fs.data.quantity_skew(labels, 3, sigma=1.0, seed=0).tolist() == QUANTITY


IID = [1, 2, 0, 1, 0, 2, 0, 2, 1, 2, 0, 0, 1, 2, 2, 2, 1, 2, 0, 1, 1, 0, 0, 1]
DIRICHLET = [1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 2, 0, 1, 0, 0, 1, 1, 0, 1, 0, 2, 1, 0]
SHARDS = [0, 1, 2, 0, 1, 0, 0, 1, 2, 1, 2, 0, 1, 2, 0, 0, 2, 0, 1, 2, 2, 1, 1, 2]
QUANTITY = [2, 2, 1, 1, 0, 0, 2, 2, 2, 2, 2, 1, 1, 1, 2, 1, 2, 2, 1, 2, 1, 2, 2, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 4), st.data())
def test_clients_that_are_short_take_from_the_largest(client, min_records, data):
    clients = data.draw(st.integers(10, 12))
    client = np.array(client * 12 * min_records)  # enough for all
    filled = fill_up(client, clients, min_records, random_stream(1))
    before = np.bincount(client, minlength=clients)
    after = np.bincount(filled, minlength=clients)
    assert after.min() >= min_records and after.sum() == before.sum()
    moved = int((client != filled).sum())
    assert moved == np.maximum(min_records - before, 0).sum()  # no record moves without need
    givers = after < before
    assert not givers.any() or after[givers].min() >= after.max() - 1


@given(st.integers(0, 500), st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_apportion_is_exact_to_one(total, weights):
    weights = np.array(weights) + 1e-9
    dealt = apportion(total, weights, random_stream(0))
    assert dealt.sum() == total and np.all(np.abs(dealt - total * weights / weights.sum()) < 1)


def test_a_small_alpha_means_strong_skew_and_a_large_one_none():
    labels = np.arange(20_000) % 10
    for equal in (False, True):
        skews = []
        for alpha in (0.05, 0.5, 5.0, 1e4):
            client = fs.data.dirichlet(labels, 20, alpha=alpha * (10 if equal else 1),
                                       equal_sizes=equal, seed=1)  # fmt: skip
            counts = np.zeros((20, 10))
            np.add.at(counts, (client, labels), 1)
            skews.append(np.median(label_skew(counts)))
        assert skews == sorted(skews, reverse=True)
        assert skews[0] > 0.6 and skews[-1] < 0.05


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_dirichlet_shares_have_the_moments_of_the_law(alpha):
    """One client's share of a class has mean 1/C and variance (1/C)(1 - 1/C) / (C alpha + 1).

    4,000 classes give 4,000 draws. An error of the mean of 0.05 has probability below
    2 exp(-2 * 4000 * 0.05^2) = 5e-9 (Hoeffding). The variance of 4,000 draws has a relative
    standard deviation of sqrt((kurtosis - 1) / 4000), 2.4% for both laws: 13% is 5.5 of them.
    Eight comparisons of each kind: false alarms below 1e-6 in all.
    """
    clients, classes, each = 4, 4000, 50
    labels = np.repeat(np.arange(classes), each)
    client = fs.data.dirichlet(labels, clients, alpha=alpha, seed=5)
    shares = np.zeros((classes, clients))
    np.add.at(shares, (labels, client), 1 / each)
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.abs(shares.mean(axis=0) - 1 / clients).max() < 0.05
    assert np.abs(shares.var(axis=0) / expected - 1).max() < 0.13


def test_two_shards_mean_two_classes_or_nearly():
    labels = np.arange(6000) % 10
    client = fs.data.label_shards(labels, 100, seed=0)
    assert np.bincount(client).tolist() == [60] * 100
    classes = [len(np.unique(labels[client == c])) for c in range(100)]
    assert max(classes) == 2 and np.mean(classes) > 1.8  # 600 of a class: shards hold one class
    thirds = fs.data.label_shards(labels, 7, shards_per_client=3, seed=0)
    assert np.bincount(thirds).max() - np.bincount(thirds).min() <= 3


def test_quantity_skew_leaves_labels_alone():
    labels = np.arange(50_000) % 10
    client = fs.data.quantity_skew(labels, 50, sigma=1.0, seed=2)
    sizes = np.bincount(client)
    counts = np.zeros((50, 10))
    np.add.at(counts, (client, labels), 1)
    assert sizes.max() > 5 * sizes.min()
    assert np.median(label_skew(counts)) < 0.06
    assert np.bincount(fs.data.quantity_skew(labels, 50, beta=0.5, min_records=200)).min() >= 200


def test_held_out_records_follow_the_training_records():
    labels, test = np.arange(5000) % 10, np.arange(1000) % 10
    dealt = fs.data.dirichlet(a_dataset(labels % 7, test % 7), 10, alpha=0.3, seed=4)
    table = np.zeros((2, 10, 7))
    for part, y, sizes in ((0, dealt.y, dealt.counts), (1, dealt.test_y, dealt.test_counts)):
        np.add.at(table[part], (np.repeat(np.arange(10), sizes), y), 1)
    shares = table / table.sum(axis=1, keepdims=True)
    assert np.abs(shares[0] - shares[1]).max() < 0.01


def test_natural_merges_clients_and_names_records():
    data = fs.data.heart_disease()
    merged = fs.data.natural(data, dict(zip(data.clients, "abba", strict=True)))
    assert merged.clients == ("a", "b")
    assert merged.counts.tolist() == [sum(data.counts[[0, 3]]), sum(data.counts[[1, 2]])]
    ids = [*np.arange(len(data.y)) % 3, *np.arange(len(data.test_y)) % 3]
    assert fs.data.natural(data, ids).counts.tolist() == [245, 245, 245]
    assert Counter(fs.data.natural(data, ids).y.tolist()) == Counter(data.y.tolist())
    for bad, words in (({"Cleveland": 1}, "none for"), (ids[:-1], "920 ids"),
                       ({**dict.fromkeys(data.clients, "a"), "Paris": "b"}, "Paris")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            fs.data.natural(data, bad)
    with pytest.raises(DataError, match="training records at every client"):
        fs.data.natural(data, ["a"] * len(data.y) + ["b"] * len(data.test_y))


class TestFeatureShift:
    def pictures(self):
        x = np.zeros((40, 5, 5, 1), np.uint8)
        x[:, 0, 2] = 255  # a dot in the middle of the top
        return fs.data.from_arrays(x, np.arange(40) % 2, np.repeat(np.arange(4), 10),
                                   test_fraction=0.2)  # fmt: skip

    def test_noise_has_the_variance_of_the_paper(self):
        """Client i of N has variance 0.4 i/N; 10,000 draws each, relative error of a variance
        below 0.1 is 7 standard deviations (1.4%), a false alarm below 1e-6; the seed is fixed."""
        data = fs.data.from_arrays(np.zeros((1000, 50), np.float32), np.arange(1000) % 2,
                                   test_fraction=0)  # fmt: skip
        shifted = fs.data.feature_shift(data, 5, noise=0.4, seed=1)
        assert shifted.counts.tolist() == [200] * 5
        for i in range(5):
            part = shifted.x[shifted.rows(i)]
            assert abs(part.var() / (0.4 * (i + 1) / 5) - 1) < 0.1
            assert abs(part.mean()) < 0.05

    def test_rotation_turns_the_last_client_by_the_whole_angle(self):
        shifted = fs.data.feature_shift(self.pictures(), rotation_degrees=360.0)
        for i, place in enumerate([(2, 0), (4, 2), (2, 4), (0, 2)]):  # quarter turns
            for x in (shifted.x[shifted.rows(i)], shifted.test_x[2 * i : 2 * i + 2]):
                seen = x.reshape(-1, 5, 5)
                where = np.unravel_index(seen[0].argmax(), (5, 5))
                assert where in (place, (place[0], 4 - place[1]) if i in (0, 2) else place)
                assert abs(seen[0].max() - 1) < 1e-3  # value / 255
        ways = [
            np.unravel_index(shifted.x[shifted.rows(i)][0].argmax(), (5, 5)) for i in range(4)
        ]
        assert len(set(ways)) == 4

    def test_scale_grows_with_the_client(self):
        shifted = fs.data.feature_shift(self.pictures(), scale=1.0)
        tops = [shifted.x[shifted.rows(i)].max() for i in range(4)]
        assert np.allclose(tops, [1.25, 1.5, 1.75, 2.0])
        assert shifted.x.dtype == np.float32 and shifted.shape == (5, 5, 1)

    def test_labels_clients_and_budget_stay(self):
        data = self.pictures()
        shifted = fs.data.feature_shift(data, noise=0.1, rotation_degrees=30, scale=0.5, seed=1)
        assert np.array_equal(shifted.y, data.y) and shifted.clients == data.clients
        assert shifted.population_fingerprint == data.population_fingerprint
        again = fs.data.feature_shift(data, noise=0.1, rotation_degrees=30, scale=0.5, seed=1)
        other = fs.data.feature_shift(data, noise=0.1, rotation_degrees=30, scale=0.5, seed=2)
        assert again.fingerprint == shifted.fingerprint != other.fingerprint

    @pytest.mark.parametrize("settings, words", [
        ({}, "needs noise="), ({"noise": -1}, "noise above 0"), ({"noise": "x"}, "noise above 0"),
        ({"scale": float("inf")}, "scale above 0"),
    ])
    def test_bad_settings_are_refused(self, settings, words):
        with pytest.raises(DataError, match=words):
            fs.data.feature_shift(self.pictures(), **settings)

    def test_tables_do_not_turn_and_text_does_not_shift(self):
        with pytest.raises(DataError, match="pictures of shape"):
            fs.data.feature_shift(fs.data.heart_disease(), rotation_degrees=10)
        text = fs.data.from_arrays(np.zeros((9, 4), np.int32), [0] * 9, test_fraction=0)
        with pytest.raises(DataError, match="tokens"):
            fs.data.feature_shift(text, noise=0.1)


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("clients", [0, -1, 1.5, True, None, "3"])
def test_a_bad_number_of_clients_is_refused(name, clients):
    with pytest.raises(DataError, match="num_clients"):
        PARTITIONERS[name]([0, 1, 1], clients, seed=0)


@pytest.mark.parametrize("name", PARTITIONERS)
def test_more_clients_than_records_are_refused(name):
    with pytest.raises(DataError, match="4 training records for 4 clients, got 3. Ask for 3"):
        PARTITIONERS[name]([0, 1, 1], 4, seed=0)


@pytest.mark.parametrize("labels", [[0.5, 1], [-1, 0], [[0, 1]], ["a", "b"]])
def test_labels_that_number_no_class_are_refused(labels):
    with pytest.raises(DataError, match="whole numbers of 0 or more"):
        fs.data.iid(labels, 1)


@pytest.mark.parametrize("call, words", [
    (lambda: fs.data.dirichlet([0, 1], 2, alpha=0), "alpha above 0"),
    (lambda: fs.data.dirichlet([0, 1], 2, alpha=float("nan")), "alpha above 0"),
    (lambda: fs.data.dirichlet([0, 1], 2, alpha=1, min_records=2), "4 training records"),
    (lambda: fs.data.dirichlet([0, 1], 2, alpha=1, min_records=0), "min_records"),
    (lambda: fs.data.quantity_skew([0, 1], 2), "one of beta and sigma, got neither"),
    (lambda: fs.data.quantity_skew([0, 1], 2, beta=1, sigma=1), "got both"),
    (lambda: fs.data.quantity_skew([0, 1], 2, sigma=-1), "sigma above 0"),
    (lambda: fs.data.label_shards([0, 1], 1, shards_per_client=0), "shards_per_client"),
    (lambda: fs.data.label_shards([0, 1], 2, shards_per_client=2), "4 training records"),
    (lambda: fs.data.iid([0, 1], 2, seed=-1), "seed"),
])  # fmt: skip
def test_bad_settings_are_refused(call, words):
    with pytest.raises(DataError) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize("alpha", [1e30, 1e300, 1.7e308])
def test_a_very_large_concentration_is_even_and_not_its_opposite(alpha):
    labels = np.repeat([0, 1], 50)
    for shares in (
        fs.data.dirichlet(labels, 5, alpha=alpha),
        fs.data.dirichlet(labels, 5, alpha=alpha, equal_sizes=True),
        fs.data.quantity_skew(labels, 5, beta=alpha),
    ):
        assert np.bincount(shares).tolist() == [20] * 5
