"""Loaders for files on disk, tried with files in the true formats, whole and broken."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import pickle
import struct

import numpy as np
import pandas as pd
import pytest

import fedjax_secure as fs
from fedjax_secure.core.errors import DataError
from fedjax_secure.data.encoding import ALPHABET
from fedjax_secure.data.loaders.idx import read_idx
from fedjax_secure.data.loaders.pickles import load_npy, load_pickle


def refused(words, call, *arguments, **settings):
    with pytest.raises(DataError) as error:
        call(*arguments, **settings)
    assert words in str(error.value), error.value
    assert error.value.need and error.value.found and error.value.fix


class TestArrays:
    def test_clients_in_any_order_are_sorted_and_pictures_keep_their_shape(self):
        x = np.arange(60, dtype=np.uint8).reshape(10, 3, 2, 1)
        ids = np.array([10, 9, 2] * 3 + [2])
        data = fs.data.from_arrays(x, np.arange(10) % 3, ids, test_fraction=0)
        assert data.clients == ("2", "9", "10") and data.shape == (3, 2, 1)
        assert data.x.dtype == np.uint8 and data.feature_names[3] == "1,1,0"
        for c, client in enumerate((2, 9, 10)):
            assert np.array_equal(data.x[data.rows(c)], x[ids == client].reshape(-1, 6))

    def test_a_given_held_out_part_is_kept_and_may_leave_clients_without(self):
        data = fs.data.from_arrays(
            np.zeros((3, 2)), [0, 1, 0], ["a", "b", "c"],
            test=(np.ones((2, 2)), [1, 1], ["b", "b"]), feature_names=("p", "q"),
        )  # fmt: skip
        assert data.test_counts.tolist() == [0, 2, 0] and data.test_x.min() == 1

    def test_a_client_with_one_record_keeps_it_for_training(self):
        data = fs.data.from_arrays(np.zeros((5, 1)), [0, 0, 0, 1, 1], list("aaabc"),
                                   test_fraction=0.5)  # fmt: skip
        assert data.counts.tolist() == [1, 1, 1] and data.test_counts.tolist() == [2, 0, 0]

    def test_whole_labels_of_any_type_serve(self):
        for labels in ([0.0, 1.0], [False, True], np.array([0, 1], np.uint8)):
            data = fs.data.from_arrays(np.zeros((2, 1)), labels, test_fraction=0)
            assert data.y.tolist() == [0, 1] and data.clients == ("all",)

    @pytest.mark.parametrize("x, y, settings, words", [
        (np.zeros((3, 1)), [0, 1], {}, "3 labels"),
        (np.zeros(3), [0, 1, 1], {}, "shape [records, ...]"),
        ([["a"], ["b"]], [0, 1], {}, "numbers of shape"),
        (np.zeros((2, 1)), [0.5, 1], {}, "whole numbers of 0 or more"),
        (np.zeros((2, 1)), ["a", "b"], {}, "whole numbers of 0 or more"),
        (np.zeros((2, 1)), [-1, 1], {}, "whole numbers of 0 or more"),
        (np.zeros((2, 1)), [0, 5], {"classes": 3}, "labels in [0, 3)"),
        (np.full((2, 1), np.nan), [0, 1], {}, "finite values"),
        (np.zeros((2, 1)), [0, 1], {"clients": ["a"]}, "2 clients"),
        (np.zeros((0, 1)), [], {}, "one record at least"),
        (np.zeros((2, 4)), [0, 1], {"shape": (3, 1)}, "x of shape [records, 3]"),
        (np.zeros((2, 1)), [0, 1], {"test": (np.zeros((1, 2)), [0])}, "held-out records of shape"),
        (np.zeros((2, 1)), [0, 1], {"test": (np.zeros((1, 1), np.uint8), [0])}, "of dtype float64"),
        (np.zeros((2, 1)), [0, 1], {"clients": ["a", "a"], "test": (np.zeros((1, 1)), [0], ["b"])},
         "held-out records alone at ['b']"),
        (np.zeros((2, 1)), [0, 1], {"clients": ["a", "a"], "test": (np.zeros((1, 1)), [0])},
         "test=(x, y, clients)"),
        (np.zeros((2, 1)), [0, 1], {"test_fraction": 1}, "test_fraction"),
        (np.zeros((2, 1)), [0, 1], {"feature_names": ["a", "b"]}, "x of shape"),
    ])  # fmt: skip
    def test_what_does_not_fit_is_refused(self, x, y, settings, words):
        refused(words, fs.data.from_arrays, x, y, **settings)


def leaf(folder, name, users):
    """Writes a file as LEAF does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({
        "users": list(users),
        "num_samples": [len(own["y"]) for own in users.values()],
        "user_data": users,
    }))  # fmt: skip


class TestLeaf:
    def femnist(self, folder):
        rng = np.random.default_rng(0)
        users = {f"f{n}": {"x": rng.random((4, 784)).round(3).tolist(), "y": [61, n, 2, 3]}
                 for n in range(5)}  # fmt: skip
        leaf(folder / "train", "all_data_0_niid_0_keep_0_train_9.json",
             {u: users[u] for u in ("f3", "f1")})  # fmt: skip
        leaf(folder / "train", "all_data_1_niid_0_keep_0_train_9.json", {"f2": users["f2"]})
        leaf(folder / "test", "all_data_0_niid_0_keep_0_test_9.json",
             {"f1": {"x": users["f4"]["x"][:1], "y": [7]}, "f3": {"x": [], "y": []}})  # fmt: skip
        return users

    def test_femnist(self, tmp_path):
        users = self.femnist(tmp_path)
        data = fs.data.from_leaf(tmp_path, classes=62, shape=(28, 28, 1), client_unit="writer")
        assert data.clients == ("f1", "f2", "f3") and data.x.dtype == np.float32
        assert data.counts.tolist() == [4, 4, 4] and data.test_counts.tolist() == [1, 0, 0]
        assert data.y.tolist()[:4] == [61, 1, 2, 3] and data.test_y.tolist() == [7]
        assert np.allclose(data.x[4:8], users["f2"]["x"]) and len(data.classes) == 62

    def test_shakespeare(self, tmp_path):
        line = "To be, or not to be: that is the question: Whether 'tis nobler in the mind to su"
        assert len(line) == 80
        leaf(tmp_path / "train", "a.json",
             {"HAMLET_ACT_I": {"x": [line, line[1:] + "f"], "y": ["f", "f"]}})  # fmt: skip
        leaf(tmp_path / "test", "a.json", {"HAMLET_ACT_I": {"x": [line], "y": ["z"]}})
        data = fs.data.from_leaf(tmp_path)
        assert data.shape == (80,) and data.x.dtype == np.int32 and len(data.classes) == 80
        assert "".join(ALPHABET[t] for t in data.x[0]) == line
        assert [data.classes[k] for k in (*data.y, *data.test_y)] == ["f", "f", "z"]
        own = fs.data.shakespeare(stride=4000)
        assert own.classes == data.classes and own.shape == data.shape  # one model serves both

    def test_sent140(self, tmp_path):
        def tweet(text):
            return ["1467810369", "Mon Apr 06", "NO_QUERY", "ann", text, "training"]

        leaf(tmp_path, "sent.json", {"ann": {"x": [tweet("so sad"), tweet("x" * 200)], "y": [0, 1]},
                                     "bob": {"x": [tweet("é~ok")], "y": [1]}})  # fmt: skip
        data = fs.data.from_leaf(tmp_path, classes=2, test_fraction=0)
        assert data.shape == (140,) and data.counts.tolist() == [2, 1]
        texts = ["".join(ALPHABET[t] for t in row) for row in data.x]
        assert texts[0] == "so sad".ljust(140) and texts[1] == "x" * 140
        assert texts[2] == "  ok".ljust(140)  # what LEAF's alphabet lacks is a space
        short = fs.data.from_leaf(tmp_path / "sent.json", classes=2, text_length=5)
        assert short.shape == (5,)

    @pytest.mark.parametrize("content, words", [
        ("{", "whole JSON"), ("[]", "users, num_samples and user_data"),
        ('{"users": []}', "no ['num_samples', 'user_data']"),
        ('{"users": [], "num_samples": [], "user_data": {}}', "one record at least"),
        ('{"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": [[1]], "y": [1]}}}',
         "2 records and labels of user 'a'"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {}}', "user 'a'"),
        ('{"users": ["a", "a"], "num_samples": [1, 1], "user_data": {"a": {"x": [1], "y": [1]}}}',
         "each once"),
        ('{"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": [[1], [1, 2]], '
         '"y": [1, 0]}}}', "all of one length"),
        ('{"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": ["ab", "abc"], '
         '"y": [1, 0]}}}', "texts of one length"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": ["ab"], "y": ["~"]}}}',
         "LEAF's alphabet"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [["w", "v"]], "y": [1]}}}',
         "records of numbers"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[1]], "y": ["no"]}}}',
         "labels of numbers"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[NaN]], "y": [1]}}}',
         "finite values"),
    ])  # fmt: skip
    def test_broken_files_are_named(self, tmp_path, content, words):
        (tmp_path / "broken.json").write_text(content)
        refused(words, fs.data.from_leaf, tmp_path / "broken.json", classes=2)

    def test_folders_that_do_not_fit_are_refused(self, tmp_path):
        refused("no such file or folder", fs.data.from_leaf, tmp_path / "none")
        refused("a JSON file", fs.data.from_leaf, tmp_path)
        self.femnist(tmp_path)
        leaf(tmp_path / "train", "again.json", {"f1": {"x": [[0.0] * 784], "y": [1]}})
        refused("in no other file", fs.data.from_leaf, tmp_path)
        (tmp_path / "train" / "again.json").unlink()
        leaf(tmp_path / "test", "more.json", {"new": {"x": [[0.0] * 784], "y": [1]}})
        refused("held-out records alone at ['new']", fs.data.from_leaf, tmp_path)


def idx(path, array, squeeze=False):
    """Writes an idx file by its specification."""
    codes = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    content = struct.pack(">BBBB", 0, 0, codes[array.dtype.name], array.ndim)
    content += struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if squeeze else content)
    return path


class TestIdx:
    @pytest.mark.parametrize("squeeze", [False, True])
    def test_mnist(self, tmp_path, squeeze):
        rng = np.random.default_rng(0)
        x, test_x = (rng.integers(256, size=(n, 28, 28), dtype=np.uint8) for n in (40, 10))
        y, test_y = (rng.integers(10, size=n, dtype=np.uint8) for n in (40, 10))
        files = [
            idx(tmp_path / name, array, squeeze)
            for name, array in (("train-images-idx3-ubyte", x), ("train-labels-idx1-ubyte", y),
                                ("t10k-images-idx3-ubyte", test_x),
                                ("t10k-labels-idx1-ubyte", test_y))
        ]  # fmt: skip
        data = fs.data.from_idx(*files[:2], test_images=files[2], test_labels=files[3], classes=10)
        assert data.clients == ("all",) and data.shape == (28, 28, 1) and data.x.dtype == np.uint8
        assert np.array_equal(data.x.reshape(40, 28, 28), x) and np.array_equal(data.y, y)
        assert np.array_equal(data.test_x.reshape(10, 28, 28), test_x)
        assert fs.data.label_shards(data, 10).counts.tolist() == [4] * 10
        emnist = fs.data.from_idx(*files[:2], transpose=True, test_fraction=0, classes=62)
        assert np.array_equal(emnist.x.reshape(40, 28, 28), x.transpose(0, 2, 1))

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
    def test_every_type_of_the_format_is_read(self, tmp_path, dtype):
        array = np.array([[1, 2, 100], [4, 5, 6]], dtype)
        found = read_idx(idx(tmp_path / "file", array))
        assert np.array_equal(found, array) and found.dtype == np.dtype(dtype)

    def test_every_truncation_is_refused(self, tmp_path):
        whole = idx(tmp_path / "whole", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)).read_bytes()
        broken = tmp_path / "broken.idx"
        for n in range(len(whole)):
            broken.write_bytes(whole[:n])
            refused("broken.idx", read_idx, broken)
        broken.write_bytes(whole + b"\0")
        refused("something follows", read_idx, broken)
        squeezed = gzip.compress(whole)
        for n in range(2, len(squeezed) - 1):
            broken.write_bytes(squeezed[:n])
            refused("whole gzip", read_idx, broken)

    @pytest.mark.parametrize("magic", [b"\0\1\x08\1", b"\0\0\x07\1", b"\0\0\x08\0", b"PK\3\4"])
    def test_a_wrong_magic_number_is_refused(self, tmp_path, magic):
        (tmp_path / "wrong").write_bytes(magic + b"\0\0\0\1a")
        refused("magic number", read_idx, tmp_path / "wrong")

    def test_files_that_do_not_belong_together_are_refused(self, tmp_path):
        x = idx(tmp_path / "x", np.zeros((3, 2, 2), np.uint8))
        y = idx(tmp_path / "y", np.zeros(2, np.uint8))
        refused("3 labels", fs.data.from_idx, x, y)
        refused("pictures [records, height, width]", fs.data.from_idx, y, x)
        refused("both test_images and test_labels", fs.data.from_idx, x, y, test_images=x)
        refused("No such file", fs.data.from_idx, tmp_path / "none", y)
        refused("a file that can be read", fs.data.from_idx, tmp_path, y)


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar(folder, kind, binary):
    """Writes CIFAR's files with few pictures; returns the pictures and labels of both parts."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    ten = kind == "labels"
    train = [f"data_batch_{n}" for n in range(1, 6)] if ten else ["train"]
    parts = []
    for names in (train, ["test_batch"] if ten else ["test"]):
        planes, numbers = [], []
        for name in names:
            data = rng.integers(256, size=(4, 3072), dtype=np.uint8)
            fine = rng.integers(10 if ten else 100, size=4)
            coarse = fine // 5
            planes.append(data)
            numbers.append(coarse if kind == "coarse_labels" else fine)
            if binary:
                heads = [fine] if ten else [coarse, fine]
                rows = np.concatenate([*(h[:, None].astype(np.uint8) for h in heads), data], axis=1)
                (folder / f"{name}.bin").write_bytes(rows.tobytes())
            else:  # as Python 2 wrote them: protocol 2, strings as bytes
                batch = {b"data": data, b"filenames": [b"a.png"] * 4, b"batch_label": b"x"}
                batch |= {b"labels": fine.tolist()} if ten else {
                    b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}  # fmt: skip
                (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        pictures = np.concatenate(planes).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts.append((pictures, np.concatenate(numbers)))
    if ten and binary:
        (folder / "batches.meta.txt").write_text("\n".join([*CIFAR10, ""]))
    elif ten:
        meta = {b"label_names": [n.encode() for n in CIFAR10], b"num_vis": 3072}
        (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return parts


class TestCifar:
    @pytest.mark.parametrize("kind", ["labels", "fine_labels", "coarse_labels"])
    @pytest.mark.parametrize("binary", [False, True])
    def test_both_versions(self, tmp_path, kind, binary):
        (x, y), (test_x, test_y) = cifar(tmp_path / "cifar", kind, binary)
        which = "coarse" if kind == "coarse_labels" else "fine"
        data = fs.data.from_cifar(tmp_path / "cifar", labels=which)
        assert data.shape == (32, 32, 3) and data.x.dtype == np.uint8 and data.clients == ("all",)
        assert np.array_equal(data.x.reshape(-1, 32, 32, 3), x) and data.y.tolist() == y.tolist()
        assert np.array_equal(data.test_x.reshape(-1, 32, 32, 3), test_x)
        assert data.test_y.tolist() == test_y.tolist()
        count = {"labels": 10, "fine_labels": 100, "coarse_labels": 20}[kind]
        assert len(data.classes) == count and "Licence:" in data.card()
        assert kind != "labels" or data.classes == tuple(CIFAR10)

    @pytest.mark.parametrize("binary", [False, True])
    def test_truncated_and_missing_batches_are_named(self, tmp_path, binary):
        cifar(tmp_path / "cifar", "labels", binary)
        file = tmp_path / "cifar" / f"data_batch_3{'.bin' if binary else ''}"
        content = file.read_bytes()
        for n in (0, 1, 100, len(content) - 1):
            file.write_bytes(content[:n])
            refused(f"the CIFAR batch {file.name}", fs.data.from_cifar, tmp_path / "cifar")
        file.unlink()
        refused("No such file", fs.data.from_cifar, tmp_path / "cifar")
        refused("none of them in the folder", fs.data.from_cifar, tmp_path)
        refused("no such folder", fs.data.from_cifar, tmp_path / "nowhere")
        refused("fine or coarse", fs.data.from_cifar, tmp_path / "cifar", labels="both")

    @pytest.mark.parametrize("batch, words", [
        ([1, 2], "a dict with b'data'"), ({b"data": 1}, "a dict with b'data'"),
        ({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}, "uint8 pixels [records, 3072]"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, "uint8 pixels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "2 labels in [0, 10)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "up to 10"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, -1]}, "2 labels in [0, 10)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0.5]}, "2 labels in [0, 10)"),
    ])  # fmt: skip
    def test_batches_of_another_content_are_refused(self, tmp_path, batch, words):
        cifar(tmp_path / "cifar", "labels", binary=False)
        (tmp_path / "cifar" / "data_batch_2").write_bytes(pickle.dumps(batch))
        refused(words, fs.data.from_cifar, tmp_path / "cifar")


class Harmful:
    """What runs a command when a plain unpickler meets it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class TestPickles:
    @pytest.mark.parametrize("protocol", range(6))
    def test_arrays_and_containers_of_every_protocol_are_read(self, protocol):
        content = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "list": [1, (2.5, None)],
                   b"f": np.array([1.5], ">f8"), "fortran": np.asfortranarray([[1, 2], [3, 4]]),
                   "number": np.int64(3), "yes": True}  # fmt: skip
        found = load_pickle(pickle.dumps(content, protocol=protocol), "file")
        assert np.array_equal(found[b"data"], content[b"data"]) and found["number"] == 3
        assert found["list"] == [1, (2.5, None)] and found[b"f"][0] == 1.5
        assert found["fortran"].tolist() == [[1, 2], [3, 4]]

    def test_a_pickle_of_python_2_is_read(self):
        content = b"\x80\x02}q\x00U\x06labelsq\x01]q\x02(K\x06K\x09es."  # {'labels': [6, 9]}
        assert load_pickle(content, "file") == {b"labels": [6, 9]}

    @pytest.mark.parametrize("call", [
        (os.system, "touch {}"), (eval, "open('{}', 'w')"), (exec, "open('{}', 'w')"),
        (__import__, "os"), (getattr, "a", "b"), (np.load, "{}"), (np.fromfile, "{}"),
        (pickle.loads, b"cos\nsystem\n(S'touch {}'\ntR."), (os.mkdir, "{}"),
    ])  # fmt: skip
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_a_harmful_pickle_is_refused_and_does_nothing(self, tmp_path, call, protocol):
        made = tmp_path / "made"
        arguments = [a.replace("{}", str(made)) if isinstance(a, str) else a for a in call[1:]]
        content = pickle.dumps({"data": Harmful(call[0], *arguments)}, protocol=protocol)
        refused("do not load it", load_pickle, content, "batch")
        assert not made.exists()
        batch = tmp_path / "cifar"
        batch.mkdir()
        (batch / "train").write_bytes(content)
        refused("the CIFAR batch train", fs.data.from_cifar, batch)
        assert not made.exists()

    def test_a_harmful_pickle_inside_an_array_is_refused(self, tmp_path):
        made = tmp_path / "made"
        array = np.array([Harmful(os.mkdir, str(made))], object)
        refused("do not load it", load_pickle, pickle.dumps(array), "batch")
        np.save(tmp_path / "a.npy", np.array(Harmful(os.mkdir, str(made)), object))
        refused("do not load it", load_npy, (tmp_path / "a.npy").read_bytes(), "a.npy")
        assert not made.exists()

    @pytest.mark.parametrize("code", [b"zlib", b"rot13", b"hex"])
    def test_other_codecs_are_refused(self, code):
        content = b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX" + struct.pack("<I", len(code)) + code
        refused("arrays and basic containers", load_pickle, content + b"\x86R.", "batch")

    def test_every_truncation_is_refused(self):
        content = pickle.dumps({b"data": np.arange(6, dtype=np.uint8), b"labels": [1, 2]})
        for n in range(len(content)):
            refused("file needs", load_pickle, content[:n], "file")

    def test_npy_of_another_kind_is_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(3))
        refused("one object", load_npy, (tmp_path / "a.npy").read_bytes(), "a.npy")
        refused("one object", load_npy, b"nothing", "a.npy")


TABLE = pd.DataFrame({"site": list("aabb"), "age": [30, 50, 40, None], "ill": [1, 0, 0, 1]})
HOW = {"client": "site", "label": "ill", "ranges": {"age": (20, 80)}, "test_fraction": 0}


class TestTables:
    @pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.xz"])
    def test_csv(self, tmp_path, ending):
        TABLE.to_csv(tmp_path / f"study{ending}", index=False)
        data = fs.data.from_csv(tmp_path / f"study{ending}", **HOW)
        assert data.fingerprint == fs.data.from_dataframe(TABLE, **HOW).fingerprint
        assert data.name == "study" and data.clients == ("a", "b")

    def test_other_separators_are_passed_on(self, tmp_path):
        TABLE.to_csv(tmp_path / "study.csv", index=False, sep=";")
        data = fs.data.from_csv(tmp_path / "study.csv", read={"sep": ";"}, name="mine", **HOW)
        assert data.name == "mine" and len(data.y) == 4

    @pytest.mark.parametrize("name, content, words", [
        ("a.csv", b"", "EmptyDataError"), ("a.csv", b'x,y\n"1,2\n3,4', "ParserError"),
        ("a.csv", b"x,y\n1,2,3\n1\n,,,,,", "ParserError"), ("a.csv", b"\xff\xfe\x81,", "Unicode"),
        ("a.csv.gz", gzip.compress(b"x,y\n1,2", mtime=0)[:-9], "EOFError"),
        ("a.csv.gz", b"no gzip", "BadGzipFile"), ("a.csv", b"x,y\n1,2\n", "a column named 'site'"),
    ])  # fmt: skip
    def test_broken_csv_is_refused(self, tmp_path, name, content, words):
        (tmp_path / name).write_bytes(content)
        refused(words, fs.data.from_csv, tmp_path / name, **HOW)

    def test_no_file_and_bad_arguments_are_refused(self, tmp_path):
        refused("No such file", fs.data.from_csv, tmp_path / "none.csv", **HOW)
        TABLE.to_csv(tmp_path / "a.csv", index=False)
        refused("TypeError", fs.data.from_csv, tmp_path / "a.csv", read={"seperator": 1}, **HOW)

    def test_parquet(self, tmp_path):
        pytest.importorskip("pyarrow")
        TABLE.to_parquet(tmp_path / "study.parquet")
        data = fs.data.from_parquet(tmp_path / "study.parquet", **HOW)
        assert data.fingerprint == fs.data.from_dataframe(TABLE, **HOW).fingerprint
        refused("No such file", fs.data.from_parquet, tmp_path / "none.parquet", **HOW)
        content = (tmp_path / "study.parquet").read_bytes()
        for broken in (b"", b"PAR1", content[:-10], b"x" * 100):
            (tmp_path / "broken.parquet").write_bytes(broken)
            refused("the Parquet file broken.parquet", fs.data.from_parquet,
                    tmp_path / "broken.parquet", **HOW)  # fmt: skip

    def test_a_missing_package_is_named_with_the_command(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
        refused("pip install pyarrow", fs.data.from_parquet, tmp_path / "a.parquet", **HOW)
        refused("pip install datasets", fs.data.from_hugging_face, tmp_path,
                features="x", label="y")  # fmt: skip


class TestHuggingFace:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    def test_pictures_with_writers_and_two_splits(self, datasets, tmp_path):
        pytest.importorskip("PIL")
        rng = np.random.default_rng(0)
        features = datasets.Features({
            "image": datasets.Image(), "character": datasets.ClassLabel(names=["a", "b", "c"]),
            "writer_id": datasets.Value("string"),
        })  # fmt: skip
        parts, pixels = {}, {}
        for split, n in (("train", 8), ("test", 4)):
            pixels[split] = rng.integers(256, size=(n, 6, 5), dtype=np.uint8)
            parts[split] = datasets.Dataset.from_dict(
                {"image": [np.asarray(p) for p in pixels[split]],
                 "character": (np.arange(n) % 3).tolist(),
                 "writer_id": [f"w{i % 2}" for i in range(n)]}, features=features)  # fmt: skip
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "femnist"))
        data = fs.data.from_hugging_face(
            tmp_path / "femnist", features="image", label="character", client="writer_id"
        )
        assert data.clients == ("w0", "w1") and data.classes == ("a", "b", "c")
        assert data.x.dtype == np.uint8 and data.shape == (6, 5, 1) and data.name == "femnist"
        assert np.array_equal(data.x.reshape(-1, 6, 5)[:4], pixels["train"][::2])
        assert data.test_counts.tolist() == [2, 2] and "Licence" in data.card()

    def test_numbers_in_columns_and_a_random_split(self, datasets, tmp_path):
        made = datasets.Dataset.from_dict(
            {"p": [0.5, 1.5, 2.5, 3.5], "q": [1, 2, 3, 4], "label": ["no", "yes", "no", "yes"]}
        )
        made.save_to_disk(str(tmp_path / "table"))
        data = fs.data.from_hugging_face(tmp_path / "table", features=["p", "q"], label="label",
                                         test_fraction=0.5)  # fmt: skip
        assert data.feature_names == ("p", "q") and data.classes == ("no", "yes")
        assert len(data.y) == len(data.test_y) == 2 and data.clients == ("all",)

    def test_tokens_and_text(self, datasets, tmp_path):
        features = datasets.Features({
            "tokens": datasets.Sequence(datasets.Value("int32"), length=3),
            "text": datasets.Value("string"), "label": datasets.Value("int64"),
        })  # fmt: skip
        made = datasets.Dataset.from_dict(
            {"tokens": [[1, 2, 3], [4, 5, 6]], "text": ["To", "be or"], "label": [0, 1]},
            features=features,
        )
        made.save_to_disk(str(tmp_path / "text"))
        folder = tmp_path / "text"
        how = {"label": "label", "test_fraction": 0}
        tokens = fs.data.from_hugging_face(folder, features="tokens", **how)
        assert tokens.x.dtype == np.int32 and tokens.x.tolist() == [[1, 2, 3], [4, 5, 6]]
        text = fs.data.from_hugging_face(folder, features="text", text_length=4, **how)
        assert "".join(ALPHABET[t] for t in text.x[1]) == "be o" and text.shape == (4,)
        refused("text_length", fs.data.from_hugging_face, folder, features="text", **how)
        refused("a column 'x'", fs.data.from_hugging_face, folder, features="x", **how)

    def test_what_is_no_such_folder_is_refused(self, datasets, tmp_path):
        how = {"features": "x", "label": "y"}
        refused("save_to_disk", fs.data.from_hugging_face, tmp_path, **how)
        refused("save_to_disk", fs.data.from_hugging_face, tmp_path / "none", **how)
        made = datasets.Dataset.from_dict({"x": [[1.0], [2.0, 3.0], None], "y": [0, 1, None]})
        datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "d"))
        refused("a label in every record", fs.data.from_hugging_face, tmp_path / "d", **how)
        refused("a split 'dev'", fs.data.from_hugging_face, tmp_path / "d", split="dev", **how)
        made.select([0, 1]).save_to_disk(str(tmp_path / "ragged"))
        refused("of one shape", fs.data.from_hugging_face, tmp_path / "ragged", **how)
        file = next((tmp_path / "ragged").glob("*.arrow"))
        file.write_bytes(file.read_bytes()[:50])
        refused("save_to_disk", fs.data.from_hugging_face, tmp_path / "ragged", **how)


class TestPlausibleSlips:
    @pytest.mark.parametrize(
        ("words", "change"),
        [
            ("labels below 10,000", {"y": [0, 10**12] * 3}),
            ("list of names, or their number", {"classes": "62"}),
            ("list of names, or their number", {"classes": 2.0}),
            ("2 without", {"clients": ["a", None, "b", "a", None, "b"]}),
            ("1 without", {"clients": [1.0, np.nan, 1.0, 2.0, 2.0, 2.0]}),
            ("masked values", {"x": np.ma.masked_greater(np.eye(6), 0)}),
            ("numbers of shape [records, ...]", {"x": [[1], [1, 2], [1], [1], [1], [1]]}),
            ("got int", {"test": 5}),
            ("whole numbers of 0 or more", {"y": [0.0, np.inf] * 3}),
        ],
    )
    def test_arrays(self, words, change):
        given = {"x": np.eye(6), "y": [0, 1] * 3, "clients": list("aabbcc"), **change}
        refused(words, fs.data.from_arrays, **given)

    def test_a_large_label_is_taken_where_the_number_of_classes_is_given(self):
        data = fs.data.from_arrays(np.eye(2), [0, 20_000], classes=20_001, test_fraction=0)
        assert len(data.classes) == 20_001

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.zip", b"not a zip"),
            ("a.tar", b"not a tar"),
            ("a.csv.xz", b"not xz"),
            ("a.csv.gz", gzip.compress(b"site,age,ill\na,1,0\n", mtime=0)[:10] + b"\xff" * 20),
        ],
    )
    def test_broken_compressed_tables(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        refused(
            "needs comma-separated values", fs.data.from_csv, tmp_path / name, "site", "ill",
            ranges={"age": (0, 1)},
        )  # fmt: skip

    @pytest.mark.parametrize(
        "change",
        [
            {"users": 5}, {"users": [["u"]]}, {"num_samples": 2}, {"user_data": [1]},
            {"user_data": {"u": "xy"}}, {"user_data": {"u": ["x", "y"]}},
            {"user_data": {"u": {"x": 1, "y": 2}}}, {"user_data": {"u": {"x": "ab", "y": "cd"}}},
        ],
    )  # fmt: skip
    def test_json_of_another_structure(self, tmp_path, change):
        content = {"users": ["u"], "num_samples": [2],
                   "user_data": {"u": {"x": [[1, 2], [3, 4]], "y": [0, 1]}}}  # fmt: skip
        (tmp_path / "a.json").write_text(json.dumps({**content, **change}))
        refused("the LEAF file a.json needs", fs.data.from_leaf, tmp_path / "a.json")
        (tmp_path / "b.json").write_text("[" * 100_000)
        refused("whole JSON", fs.data.from_leaf, tmp_path / "b.json")

    def test_whole_numbers_in_one_file_and_fractions_in_the_other(self, tmp_path):
        for part, rows in (("train", [[1, 2], [3, 4]]), ("test", [[0.5, 2], [3, 4]])):
            (tmp_path / part).mkdir()
            (tmp_path / part / "a.json").write_text(json.dumps(
                {"users": ["u"], "num_samples": [2], "user_data": {"u": {"x": rows, "y": [0, 1]}}}
            ))  # fmt: skip
        data = fs.data.from_leaf(tmp_path)
        assert data.x.tolist() == [[1, 2], [3, 4]] and data.test_x.tolist() == [[0.5, 2], [3, 4]]

    @pytest.mark.parametrize("length", [0, -1, "8", 1.5])
    def test_a_length_that_no_text_has(self, tmp_path, length):
        (tmp_path / "a.json").write_text(json.dumps(
            {"users": ["u"], "num_samples": [1], "user_data": {"u": {"x": ["ab"], "y": ["c"]}}}
        ))  # fmt: skip
        refused("text_length", fs.data.from_leaf, tmp_path / "a.json", text_length=length)

    def test_characters_outside_the_alphabet_are_spaces(self):
        from fedjax_secure.data.encoding import encode_text

        text = "a\u2014\u00e9\U0001f600\ud800\x7f~b"
        assert "".join(ALPHABET[k] for k in encode_text(text)) == "a      b"


class TestTableSlips:
    TABLE = pd.DataFrame({"site": list("aabb"), "age": [30, 40, 50, 60], "ill": [0, 1, 0, 1]})

    @pytest.mark.parametrize(
        ("words", "change"),
        [
            ("classes as a list", {"classes": 2}),
            ("features as a list", {"features": 1}),
            ("may_be_missing as a list", {"may_be_missing": "age"}),
            ("ranges by column", {"ranges": [("age", 0, 100)]}),
            ("categories by column", {"categories": ["age"]}),
            ("two or more distinct categories", {"ranges": None, "categories": {"age": 3}}),
            ("one column in client=", {"client": ["site"]}),
        ],
    )
    def test_arguments_of_another_kind(self, words, change):
        given = {"client": "site", "label": "ill", "ranges": {"age": (0, 100)}, **change}
        refused(words, fs.data.from_dataframe, self.TABLE, **given)
