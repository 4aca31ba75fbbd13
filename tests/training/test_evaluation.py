"""Figures against scikit-learn, evaluation in batches and chunks, and the baselines."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core.errors import SpecError, UpdateError
from fedjax_secure.data import FederatedDataset, heart_disease
from fedjax_secure.models import logistic_regression, mlp
from fedjax_secure.training import (
    area_under_curve,
    epoch_orders,
    evaluate,
    train_alone,
    train_pooled,
)
from fedjax_secure.training.evaluation import forward, per_client, result


def three_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 2)) + np.array([[0, 0], [1, 0], [0, 1]])[y]
    test_y = np.concatenate([y[:40], [0] * 6])  # the second client has one class only
    return FederatedDataset(
        name="three", clients=("a", "b", "c"), x=x, y=y, offsets=[0, 30, 60, 90],
        test_x=np.concatenate([x[:40], np.zeros((6, 2))]), test_y=test_y,
        test_offsets=[0, 40, 46, 46], feature_names=("p", "q"), classes=("0", "1", "2"),
    )  # fmt: skip


def somewhere(model, rows=None, seed=0):
    shape = model.dim if rows is None else (rows, model.dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60))
def test_area_under_curve_equals_counting_pairs(records):
    scores, positive = (np.array(v) for v in zip(*records, strict=True))
    ups, downs = scores[positive], scores[~positive]
    found = area_under_curve(scores, positive)
    if not len(ups) or not len(downs):
        assert np.isnan(found)
    else:
        pairs = ups[:, None] - downs
        want = ((pairs > 0).sum() + 0.5 * (pairs == 0).sum()) / pairs.size
        assert abs(found - want) < 1e-12


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("split", ["test", "train"])
def test_two_classes_against_scikit_learn(own, split):
    metrics = pytest.importorskip("sklearn.metrics")
    data = heart_disease()
    model = mlp(data, hidden=(4,))
    flat = somewhere(model, 4 if own else None)
    found = evaluate(model, flat, data, split=split)
    x, y, offsets = (
        (data.test_x, data.test_y, data.test_offsets)
        if split == "test"
        else (data.x, data.y, data.offsets)
    )
    assert found.clients == data.clients and found.counts.tolist() == np.diff(offsets).tolist()
    for c in range(4):
        part = slice(offsets[c], offsets[c + 1])
        params = model.unravel(flat[c] if own else flat)
        p = np.asarray(model.probabilities(model.apply(params, x))[part], np.float64)
        assert found.accuracy[c] == metrics.accuracy_score(y[part], p[:, 1] > 0.5)
        np.testing.assert_allclose(found.auc[c], metrics.roc_auc_score(y[part], p[:, 1]), atol=2e-3)
        np.testing.assert_allclose(
            found.loss[c], metrics.log_loss(y[part], p / p.sum(axis=1, keepdims=True)), rtol=1e-4
        )


def test_three_classes_against_scikit_learn_and_clients_without_an_answer():
    metrics = pytest.importorskip("sklearn.metrics")
    data = three_classes()
    model = logistic_regression(data)
    params = model.unravel(somewhere(model))
    found = evaluate(model, params, data)
    p = np.asarray(model.probabilities(model.apply(params, data.test_x[:40])), np.float64)
    p /= p.sum(axis=1, keepdims=True)
    want = metrics.roc_auc_score(data.test_y[:40], p, multi_class="ovr")
    np.testing.assert_allclose(found.auc[0], want, atol=1e-9)
    assert np.isnan(found.auc[1:]).all() and np.isfinite(found.accuracy[1])
    assert np.isnan([found.accuracy[2], found.loss[2]]).all() and found.counts.tolist() == [
        40,
        6,
        0,
    ]


def test_the_same_parameters_in_every_form_evaluate_the_same():
    data = heart_disease()
    model = mlp(data, hidden=(4,))
    flat = somewhere(model)
    forms = [flat, model.unravel(flat), np.stack([flat] * 4)]
    accuracies = [evaluate(model, form, data).accuracy.tolist() for form in forms]
    assert accuracies[0] == accuracies[1] == accuracies[2]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The least that `evaluate` needs of a dataset."""

    clients: tuple[str, ...]
    classes: tuple[str, ...]
    test_x: np.ndarray
    test_y: np.ndarray
    test_offsets: np.ndarray


def many_clients(counts, classes=4, features=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    records = int(np.sum(counts))
    y = rng.integers(0, classes, records).astype(np.int32)
    x = (rng.normal(size=(records, features)) if dtype == np.float32
         else rng.integers(0, 9, (records, features))).astype(dtype)  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    for array in (x, y, offsets):
        array.setflags(write=False)
    names = tuple(f"c{c}" for c in range(len(counts)))
    return Records(names, tuple("abcdefgh"[:classes]), x, y, offsets)


def counted(model):
    """The same model, and how often it was traced."""
    traces = []

    def apply(params, x):
        traces.append((x.shape, x.dtype))
        return model.apply(params, x)

    return dataclasses.replace(model, apply=apply), traces


COUNTS = [7, 0, 1, 150, 64, 33, 0, 90, 2]
FORMS = ["one", "own", "function"]


def in_form(form, model, clients, seed=0):
    """Parameters in one of three forms, and each client's own."""
    flat = somewhere(model, None if form == "one" else clients, seed)
    rows = np.stack([flat] * clients) if form == "one" else flat
    return (lambda numbers: flat[numbers]) if form == "function" else flat, rows


def sames(found, other, atol=0.0):
    for name in ("accuracy", "auc", "loss", "brier", "calibration_error", "confidence"):
        np.testing.assert_allclose(getattr(found, name), getattr(other, name), rtol=0, atol=atol)
    assert np.array_equal(found.predicted, other.predicted)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_every_figure_against_scikit_learn(form, classes):
    metrics = pytest.importorskip("sklearn.metrics")
    data = many_clients(COUNTS, classes)
    model = mlp(3, classes, hidden=(5,))
    params, rows = in_form(form, model, len(COUNTS))
    found = evaluate(model, params, data, batch_size=16)
    labels = range(classes)
    for c, count in enumerate(COUNTS):
        part = slice(data.test_offsets[c], data.test_offsets[c + 1])
        y = data.test_y[part]
        if not count:
            assert all(np.isnan(getattr(found, name)[c]) for name in found.figures)
            continue
        p = np.asarray(model.probabilities(model.apply(model.unravel(rows[c]), data.test_x)))[part]
        p = p.astype(float) / p.sum(axis=1, keepdims=True, dtype=float)
        said = p.argmax(axis=1)
        assert found.accuracy[c] == pytest.approx(metrics.accuracy_score(y, said))
        assert np.array_equal(found.confusion[c], metrics.confusion_matrix(y, said, labels=labels))
        np.testing.assert_allclose(
            found.loss[c], metrics.log_loss(y, p, labels=labels), rtol=1e-4
        )  # fmt: skip
        brier = metrics.brier_score_loss(
            y, p[:, 1] if classes == 2 else p, labels=labels, scale_by_half=False
        )
        np.testing.assert_allclose(found.brier[c], brier, rtol=1e-4)
        present = np.unique(y)
        if len(present) > 1:
            each = [metrics.roc_auc_score(y == k, p[:, k]) for k in present]
            np.testing.assert_allclose(found.auc[c], np.mean(each), atol=2e-3)
        else:
            assert np.isnan(found.auc[c])
        recall = metrics.recall_score(y, said, labels=present, average=None)
        np.testing.assert_allclose(found.recall()[c, present], recall)
        assert np.isnan(np.delete(found.recall()[c], present)).all()
    counts = np.array(COUNTS)
    whole = metrics.confusion_matrix(data.test_y, found.predicted, labels=labels)
    assert np.array_equal(found.confusion_matrix().to_numpy(), whole)
    assert found.mean("accuracy") == pytest.approx(np.trace(whole) / counts.sum())
    table = found.class_table()
    precision = metrics.precision_score(
        data.test_y, found.predicted, labels=labels, average=None, zero_division=np.nan
    )
    np.testing.assert_allclose(table["precision"], precision)
    assert table["records"].tolist() == whole.sum(axis=1).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_two_devices_evaluate_as_one_does(form):
    assert len(jax.devices()) > 1
    data = many_clients(COUNTS)
    model = mlp(3, 4, hidden=(5,))
    params, _ = in_form(form, model, len(COUNTS))
    alone = evaluate(model, params, data, batch_size=16, devices=jax.devices()[:1])
    sames(evaluate(model, params, data, batch_size=16), alone, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_chunks_and_batches_of_any_size_evaluate_the_same(form, monkeypatch):
    data = many_clients(COUNTS)
    model = mlp(3, 4, hidden=(5,))
    params, _ = in_form(form, model, len(COUNTS))
    whole = evaluate(model, params, data)
    asked = []

    def noted(numbers):
        asked.append(numbers)
        return params(numbers)

    told = noted if callable(params) else params
    monkeypatch.setattr(per_client, "_AREA_ROWS", 10)
    # 40 records, or 1 client of 44 parameters, at a time: a client of 150 records takes several
    monkeypatch.setattr(forward, "CHUNK_BYTES", 40 * 3 * 4)
    sames(evaluate(model, told, data, batch_size=8), whole, atol=1e-6)
    if form == "function":
        numbers = np.concatenate(asked)
        assert all(len(part) <= 2 for part in asked) and np.all(np.diff(numbers) >= 0)
        assert set(numbers) == set(np.flatnonzero(COUNTS)), "asked for clients without records"


@pytest.mark.parametrize("form", FORMS)
def test_one_compile_whatever_the_parameters(form):
    data = many_clients(COUNTS)
    model, traces = counted(mlp(3, 4, hidden=(5,)))
    figures = []
    for seed in range(3):
        params, _ = in_form(form, model, len(COUNTS), seed)
        figures.append(evaluate(model, params, data).accuracy)
        if not seed:
            first = len(traces)
    assert len(traces) == first and not np.array_equal(figures[0], figures[2], equal_nan=True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_features_reach_the_model_in_their_own_dtype(dtype, own):
    data = many_clients([5, 6], dtype=dtype)
    model, traces = counted(logistic_regression(3, 4))
    evaluate(model, somewhere(model, 2 if own else None), data)
    assert {found for _, found in traces} == {np.dtype(dtype)}


def test_records_stay_on_the_devices_as_long_as_their_dataset_lives(monkeypatch):
    model = logistic_regression(3, 4)
    data = many_clients([5, 6])
    sent = []
    dealt = forward._dealt
    monkeypatch.setattr(forward, "_dealt", lambda part, *to: sent.append(part) or dealt(part, *to))
    for seed in range(3):
        evaluate(model, somewhere(model, seed=seed), data)
    assert len(sent) == 2  # x and y
    assert data in forward._on_devices
    gone = weakref.ref(data)
    del data
    sent.clear()
    gc.collect()
    assert gone() is None, "the records on the devices keep their dataset alive"


def test_records_that_can_be_written_to_are_read_anew():
    model = logistic_regression(3, 4)
    data = many_clients([5, 6])
    data = dataclasses.replace(data, test_x=data.test_x.copy(), test_y=data.test_y.copy())
    flat = somewhere(model)
    before = evaluate(model, flat, data)
    data.test_y[:] = before.predicted
    assert evaluate(model, flat, data).mean("accuracy") == 1
    data.test_x[:] = 0
    assert len(set(evaluate(model, flat, data).predicted)) == 1


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(0, 2**32))
def test_figures_of_clients_come_to_those_of_all_records(counts, seed):
    counts = [*counts, max(1, 360 - sum(counts))]  # most of one size: few programs
    data = many_clients(counts, seed=seed)
    found = evaluate(SMALL, somewhere(SMALL, seed=seed), data)
    right = found.predicted == data.test_y
    assert found.mean("accuracy") == pytest.approx(right.mean())
    assert found.confusion.sum(axis=(1, 2)).tolist() == counts
    assert np.trace(found.confusion.sum(axis=0)) == right.sum()
    together = dataclasses.replace(data, clients=("all",), test_offsets=np.array([0, sum(counts)]))
    pooled = evaluate(SMALL, somewhere(SMALL, seed=seed), together)
    for name in ("accuracy", "loss", "brier"):
        assert getattr(pooled, name)[0] == pytest.approx(found.mean(name), rel=1e-9)
    assert found.pooled_calibration_error == pytest.approx(pooled.calibration_error[0])
    for name in found.figures:
        values = getattr(found, name)
        values = values[~np.isnan(values)]
        if len(values):
            low, high = sorted([found.worst(name), found.best(name)])
            assert low <= found.mean(name, over="clients") + 1e-12 and high >= values.mean() - 1e-12
            assert {values.min(), values.max()} == {low, high}  # a tenth of below 20 is one
            assert found.worst(name, 1.0) == pytest.approx(values.mean())
            assert found.variance(name) == pytest.approx(np.var(values))


SMALL = mlp(3, 4, hidden=(5,))


def test_spread_by_hand():
    data = many_clients([10, 0, 20, 10, 10])
    found = evaluate(SMALL, somewhere(SMALL), data)
    found = dataclasses.replace(
        found, accuracy=np.array([0.5, np.nan, 0.25, 1.0, 0.75]),
        loss=np.array([2.0, np.nan, 4.0, 1.0, 3.0]),
    )  # fmt: skip
    assert found.mean("accuracy") == pytest.approx(0.55)
    assert found.mean("accuracy", over="clients") == pytest.approx(0.625)
    assert (found.worst("accuracy"), found.best("accuracy")) == (0.25, 1.0)
    assert (found.worst("loss"), found.best("loss")) == (4.0, 1.0)
    assert found.worst("accuracy", 0.5) == pytest.approx(0.375)
    assert found.worst("loss", 0.74) == pytest.approx(3.5)  # 2.96 clients: rounded down
    assert found.variance("accuracy") == pytest.approx(0.078125)
    assert found.std("accuracy") == pytest.approx(0.078125**0.5)
    fair = found.fairness("loss", fraction=0.25)
    assert fair == {
        "mean": pytest.approx(2.8), "average": 2.5, "worst": 4.0, "best": 1.0, "variance": 1.25,
        "std": pytest.approx(1.25**0.5), "clients": 4, "worst_client": "c2",
    }  # fmt: skip
    summary = found.summary().set_index("figure")
    assert summary.loc["accuracy", "worst 10%"] == 0.25 and summary.loc["loss", "best 10%"] == 1
    assert summary.loc["accuracy", "worst client"] == "c2" and len(summary) == len(found.figures)
    table = found.table()
    assert table["records"].tolist() == [10, 0, 20, 10, 10] and len(table) == 5
    assert list(table)[2:] == ["accuracy", "AUC", "loss", "Brier score", "calibration error"]


def test_figures_that_exist_at_no_client_are_missing_and_warn_of_nothing():
    data = many_clients([0, 0])
    found = evaluate(SMALL, somewhere(SMALL), data)
    for name in found.figures:
        assert np.isnan(getattr(found, name)).all() and np.isnan(found.mean(name))
        assert np.isnan([found.worst(name), found.best(name), found.std(name)]).all()
    assert found.fairness()["worst_client"] is None and found.fairness()["clients"] == 0
    assert np.isnan(found.pooled_calibration_error) and found.confusion.sum() == 0
    assert len(found.summary()) == 5 and found.reliability()["records"].sum() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_give_wrong_answers_and_no_other_figures(value):
    data = many_clients([30, 0, 40])
    flat = somewhere(SMALL, 3)
    good = evaluate(SMALL, flat, data)
    flat[2] = value
    found = evaluate(SMALL, flat, data)
    assert found.nonfinite.tolist() == [0, 0, 40] and found.accuracy[2] == 0
    assert found.loss[2] == np.inf and found.mean("loss") == np.inf
    assert found.mean("accuracy") == pytest.approx(good.accuracy[0] * 3 / 7)
    assert found.worst("accuracy") == 0 and found.worst("loss") == np.inf
    assert found.fairness("brier")["worst_client"] == "c2"
    for name in ("auc", "brier", "calibration_error"):
        assert np.isnan(getattr(found, name)[2]) and np.isnan(found.mean(name))
        assert np.isnan(found.worst(name)) and np.isnan(found.variance(name))
        assert getattr(found, name)[0] == getattr(good, name)[0], "another client was spoilt"
    assert np.isnan(found.pooled_calibration_error) and np.isnan(found.variance("loss"))
    assert found.confusion[2].sum() == 0 and found.confusion[0].sum() == 30
    assert (found.predicted[30:] == -1).all() and len(found.summary()) == 5
    assert found.reliability()["records"].sum() == 30


def test_without_auc_the_figure_is_refused_and_not_missing():
    data = many_clients([10, 20])
    found = evaluate(SMALL, somewhere(SMALL), data, auc=False)
    assert "auc" not in found.figures and "AUC" not in found.table()
    for use in (lambda: found.auc, lambda: found.mean("auc"), lambda: found.worst("auc")):
        with pytest.raises(SpecError, match="auc=True"):
            use()
    whole = evaluate(SMALL, somewhere(SMALL), data)
    assert np.array_equal(found.loss, whole.loss) and np.array_equal(found.brier, whole.brier)


def test_groups_of_records_and_their_gaps():
    data = many_clients([100, 60], classes=2)
    model = logistic_regression(3, 2)
    found = evaluate(model, somewhere(model), data)
    groups = np.where(np.arange(160) % 3 == 0, "x", "z")
    table = found.group_table(groups).set_index("group")
    y, said = data.test_y, found.predicted
    rate = {g: said[groups == g].mean() for g in "xz"}
    hits = {g: said[(groups == g) & (y == 1)].mean() for g in "xz"}
    alarms = {g: said[(groups == g) & (y == 0)].mean() for g in "xz"}
    assert table["selection_rate"].to_dict() == pytest.approx(rate)
    gaps = found.group_gaps(groups)
    assert gaps["demographic_parity"] == pytest.approx(abs(rate["x"] - rate["z"]))
    assert gaps["equal_opportunity"] == pytest.approx(abs(hits["x"] - hits["z"]))
    both = max(abs(hits["x"] - hits["z"]), abs(alarms["x"] - alarms["z"]))
    assert gaps["equalised_odds"] == pytest.approx(both)
    assert found.group_gaps(groups, positive="b") == gaps
    other = found.group_table(groups, positive=0).set_index("group")["true_positive_rate"]
    assert other.to_dict() == pytest.approx({g: 1 - alarms[g] for g in "xz"})
    four = evaluate(SMALL, somewhere(SMALL), many_clients([10]))
    for positive in (None, "z", 4, -1, True):
        with pytest.raises(SpecError, match="the positive class"):
            four.group_gaps(["g"] * 10, positive=positive)


def test_reliability_and_confusion_of_one_client():
    data = many_clients([100, 60])
    found = evaluate(SMALL, somewhere(SMALL), data)
    table = found.reliability("c1", bins=10)
    assert table["records"].sum() == 60 and table["up_to"].iloc[-1] == 1
    gap = (table["records"] * (table["accuracy"] - table["confidence"]).abs()).sum() / 60
    fifteen = found.reliability(1)
    error = (fifteen["records"] * (fifteen["accuracy"] - fifteen["confidence"]).abs()).sum() / 60
    assert 0 < gap < 1 and error == pytest.approx(found.calibration_error[1])
    assert np.array_equal(found.confusion_matrix("c1").to_numpy(), found.confusion[1])
    assert np.array_equal(found.confusion_matrix(0).to_numpy(), found.confusion[0])


def test_what_an_evaluation_refuses(monkeypatch):
    found = evaluate(SMALL, somewhere(SMALL), many_clients([10, 20]))
    for use, words in (
        (lambda: found.mean("f1"), "one of"),
        (lambda: found.worst("f1"), "one of"),
        (lambda: found.mean("loss", over="all"), "over="),
        (lambda: found.worst("loss", 0), "a fraction"),
        (lambda: found.best("loss", 1.1), "a fraction"),
        (lambda: found.confusion_matrix("nobody"), "a client's id"),
        (lambda: found.reliability(2), "a client's id"),
        (lambda: found.reliability(True), "a client's id"),
        (lambda: found.reliability(bins=0), "one bin or more"),
    ):
        with pytest.raises(SpecError, match=words):
            use()
    monkeypatch.setattr(result, "CONFUSION_LIMIT", 31)
    with pytest.raises(SpecError, match="2 x 4 x 4"):
        _ = found.confusion


def test_what_evaluate_refuses():
    data = heart_disease()
    model = logistic_regression(data)
    flat = somewhere(model)
    for params, settings, words in (
        (np.zeros(3, np.float32), {}, "flat parameters"),
        (np.zeros((3, model.dim), np.float32), {}, "flat parameters"),
        ({"w": np.zeros(3)}, {}, "its own parameters"),
        (lambda numbers: np.zeros((len(numbers), 3)), {}, "rows of shape"),
        (lambda numbers: np.zeros((1, model.dim)), {}, "rows of shape"),
        (flat, {"split": "validation"}, "split"),
        (flat, {"batch_size": 0}, "a batch_size of 1 or more"),
        (flat, {"batch_size": 1.5}, "an integer batch_size"),
        (flat, {"devices": []}, "at least one device"),
    ):
        with pytest.raises(SpecError, match=words):
            evaluate(model, params, data, **settings)
    other = logistic_regression(3, 2)
    with pytest.raises(SpecError, match="a dataset of 3 features and 2 classes"):
        evaluate(other, somewhere(other), data)


def test_orders_are_permutations_that_differ_by_epoch_client_and_seed():
    data = heart_disease()
    orders = epoch_orders(data, epochs=3, seed=0)
    for c, order in enumerate(orders):
        assert order.dtype == np.int32 and order.shape == (3, data.counts[c])
        assert np.array_equal(np.sort(order, axis=1), np.stack([data.rows(c)] * 3))
        assert not np.array_equal(order[0], order[1])
    again, other = (epoch_orders(data, epochs=3, seed=s) for s in (0, 1))
    assert np.array_equal(again[2], orders[2]) and not np.array_equal(other[2], orders[2])


@pytest.mark.parametrize("epochs, seed", [(0, 0), (1.5, 0), (True, 0), (1, -1), (1, None)])
def test_bad_epochs_and_seeds_are_refused(epochs, seed):
    with pytest.raises(SpecError):
        epoch_orders(heart_disease(), epochs=epochs, seed=seed)


def test_alone_means_that_other_clients_do_not_matter():
    data = heart_disease()
    model = logistic_regression(data)
    start = model.init(jax.random.key(0))
    settings = {"epochs": 3, "learning_rate": 0.1}
    own = train_alone(model, data, start, **settings)
    y = data.y.copy()
    y[data.rows(2)] = 0
    other = train_alone(model, dataclasses.replace(data, y=y), start, **settings)
    assert own.shape == (4, model.dim)
    assert np.array_equal(own[[0, 1, 3]], other[[0, 1, 3]]) and not np.allclose(own[2], other[2])


def test_baselines_learn_and_pooling_helps_the_hospital_with_few_healthy_patients():
    data = heart_disease()
    model = logistic_regression(data)
    start = model.init(jax.random.key(0))
    pooled = evaluate(model, train_pooled(model, data, start, epochs=40, learning_rate=0.1), data)
    own = evaluate(model, train_alone(model, data, start, epochs=40, learning_rate=0.1), data)
    weighted = lambda e: (e.auc * e.counts).sum() / e.counts.sum()  # noqa: E731
    assert weighted(pooled) > 0.8 and weighted(own) > 0.75


def test_a_baseline_that_diverges_says_where():
    data = heart_disease()
    model = mlp(data)
    with pytest.raises(UpdateError, match="Cleveland"):
        train_alone(model, data, model.init(jax.random.key(0)), epochs=30, learning_rate=1e30)


class TestPlausibleSlips:
    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
    def test_records_without_a_group_are_refused(self, missing):
        data = heart_disease()
        model = logistic_regression(data)
        found = evaluate(model, np.zeros(model.dim, np.float32), data)
        groups = ["a"] * (len(found.y) - 2) + [missing] * 2
        for ask in (found.group_table, found.group_gaps):
            with pytest.raises(SpecError, match="2 records without"):
                ask(groups)
        mixed = found.group_table(np.array([1, "a"] + ["a"] * (len(found.y) - 2), object))
        assert mixed["group"].tolist() == ["1", "a"]
        with pytest.raises(SpecError, match="fraction"):
            found.worst("accuracy", "a")

    def test_other_things_than_datasets_and_devices_are_refused(self):
        data = heart_disease()
        model = logistic_regression(data)
        flat = np.zeros(model.dim, np.float32)
        for thing in ("hearts", pd.DataFrame({"x": [1]})):
            with pytest.raises(SpecError, match="needs a dataset"):
                evaluate(model, flat, thing)
        with pytest.raises(SpecError, match="at least one device"):
            evaluate(model, flat, data, devices=["cpu"])
        one = evaluate(model, flat, data, devices=jax.devices()[0])
        assert one.accuracy.tolist() == evaluate(model, flat, data).accuracy.tolist()
