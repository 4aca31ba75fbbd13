"""Accuracy, AUC and loss against scikit-learn, and the baselines."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
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
        p = np.asarray(model.probabilities(model.apply(params, x[part])), np.float64)
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


def test_what_evaluate_refuses():
    data = heart_disease()
    model = logistic_regression(data)
    for params, split, words in (
        (np.zeros(3, np.float32), "test", "flat parameters"),
        (np.zeros((3, model.dim), np.float32), "test", "flat parameters"),
        ({"w": np.zeros(3)}, "test", "its own parameters"),
        (somewhere(model), "validation", "split"),
    ):
        with pytest.raises(SpecError, match=words):
            evaluate(model, params, data, split=split)


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
