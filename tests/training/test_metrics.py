"""Figures of many clients at once: against counting pairs, scikit-learn and hand computations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.evaluation import metrics


def ragged(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(int)


def parts(offsets):
    return [slice(a, b) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def by_pairs(scores, positive):
    ups, downs = scores[positive].astype(float), scores[~positive].astype(float)
    if not len(ups) or not len(downs):
        return np.nan
    above, tied = ups[:, None] > downs, ups[:, None] == downs
    return (above.sum() + 0.5 * tied.sum()) / above.size


SCORES = st.sampled_from([-np.inf, -2.5, -1e-40, -0.0, 0.0, 1e-40, 0.1, 0.25, 3.0, np.inf])


@given(
    st.lists(st.lists(st.tuples(SCORES, st.booleans()), max_size=12), min_size=1, max_size=8),
    st.sampled_from([np.float32, np.float64]),
)
def test_areas_of_all_clients_equal_counting_pairs(clients, dtype):
    offsets = ragged([len(records) for records in clients])
    flat = [record for records in clients for record in records]
    scores = np.array([score for score, _ in flat], dtype)
    positive = np.array([up for _, up in flat], bool)
    found = metrics.areas_under_curve(scores, positive, offsets)
    want = [by_pairs(scores[part], positive[part]) for part in parts(offsets)]
    np.testing.assert_array_equal(found, want)


def test_areas_of_a_client_with_a_missing_score_are_missing_and_of_others_not():
    scores = np.array([0.1, np.nan, 0.1, 0.9, 0.2, 0.3], np.float32)
    found = metrics.areas_under_curve(scores, np.array([0, 1, 0, 1, 1, 0], bool), ragged([2, 2, 2]))
    np.testing.assert_array_equal(found, [np.nan, 1.0, 0.0])
    assert np.isnan(metrics.area_under_curve(scores, np.array([0, 1, 0, 1, 1, 0], bool)))


def test_areas_against_scikit_learn_on_many_records():
    rng = np.random.default_rng(1)
    offsets = ragged(rng.integers(20, 400, 60))
    scores = np.round(rng.normal(size=offsets[-1]), 1).astype(np.float32)  # many ties
    positive = rng.random(len(scores)) < 0.3
    found = metrics.areas_under_curve(scores, positive, offsets)
    want = [reference.roc_auc_score(positive[p], scores[p]) for p in parts(offsets)]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [3, 7])
def test_one_against_rest_against_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    counts = [0, 1, 40, 90, 200, 3]
    offsets = ragged(counts)
    y = rng.integers(0, classes, offsets[-1])
    y[offsets[2] : offsets[3]] %= 2  # a client with two of the classes
    scores = rng.dirichlet(np.ones(classes), len(y)).astype(np.float32)
    found = metrics.one_against_rest(scores, y, offsets)
    assert np.isnan(found[:2]).all()
    for c, part in enumerate(parts(offsets)):
        if len(np.unique(y[part])) > 1:
            each = [reference.roc_auc_score(y[part] == k, scores[part, k]) for k in set(y[part])]
            np.testing.assert_allclose(found[c], np.mean(each), atol=1e-12)
    whole = scores[parts(offsets)[4]].astype(float)
    want = reference.roc_auc_score(
        y[parts(offsets)[4]], whole / whole.sum(axis=1, keepdims=True), multi_class="ovr"
    )
    np.testing.assert_allclose(found[4], want, atol=1e-6)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((3, 1), (3,)), ((2,), (2,))])
def test_areas_refuse_what_is_not_one_score_a_record(shapes):
    scores, positive = (np.zeros(shape) for shape in shapes)
    with pytest.raises(SpecError, match="one score and one truth value for each of 3 records"):
        metrics.areas_under_curve(scores, positive, np.array([0, 3]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_client_sums_with_clients_without_records(counts):
    offsets = ragged(counts)
    values = np.arange(1, offsets[-1] + 1, dtype=float)
    assert metrics.client_sums(values, offsets).tolist() == [
        values[p].sum() for p in parts(offsets)
    ]


def test_a_value_that_is_not_finite_spoils_its_own_client_only():
    sums = metrics.client_sums(np.array([1.0, np.nan, 2.0, np.inf, 3.0]), ragged([1, 1, 1, 1, 1]))
    np.testing.assert_array_equal(sums, [1, np.nan, 2, np.inf, 3])


def test_calibration_by_hand():
    # Bins of a fifth: (0.4, 0.6] has 0.5 wrong, 0.6 right; (0.8, 1] has 0.9 right, 1.0 wrong, 0.82.
    confidence = np.array([0.5, 0.6, 0.9, 1.0, 0.82])
    right = np.array([0, 1, 1, 0, 1], bool)
    want = (abs(1 - 1.1) + abs(2 - 2.72)) / 5
    found = metrics.calibration_errors(confidence, right, ragged([5, 0]), bins=5)
    np.testing.assert_allclose(found, [want, np.nan], atol=1e-12)
    counts, confident, hits = metrics.reliability_bins(confidence, right, ragged([5]), bins=5)
    assert counts.tolist() == [[0, 0, 2, 0, 3]] and hits.tolist() == [[0, 0, 1, 0, 2]]
    np.testing.assert_allclose(confident, [[0, 0, 1.1, 0, 2.72]])


def test_a_bins_upper_bound_belongs_to_it():
    counts, _, _ = metrics.reliability_bins(
        np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.ones(5, bool), ragged([5]), bins=4
    )
    assert counts.tolist() == [[2, 1, 1, 1]]


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_excess():
    # 12 bins of at least 16,000 records: one of them is 0.025 off with a chance below
    # 12 * 2 * exp(-2 * 16,000 * 0.025^2) = 5e-8 (Hoeffding).
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    right = rng.random(len(confidence)) < confidence
    whole = ragged([len(confidence)])
    counts = metrics.reliability_bins(confidence, right, whole)[0]
    assert counts[counts > 0].min() >= 16_000 and (counts > 0).sum() == 12
    assert metrics.calibration_errors(confidence, right, whole)[0] < 0.025
    sure = metrics.calibration_errors(np.ones(len(right)), right, whole)[0]
    assert sure == pytest.approx(1 - right.mean(), abs=1e-9)


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_bins_are_a_whole_number(bins):
    with pytest.raises(SpecError, match="one bin or more"):
        metrics.reliability_bins(np.zeros(1), np.zeros(1, bool), ragged([1]), bins)


def test_rates_of_groups_against_scikit_learn():
    rng = np.random.default_rng(2)
    y, predicted = rng.integers(0, 2, 500), rng.integers(0, 2, 500)
    groups = rng.choice(["left", "right", "none"], 500)
    rates = metrics.group_rates(y, predicted, groups, positive=1)
    assert rates["group"].tolist() == ["left", "none", "right"] and rates["records"].sum() == 500
    for g, name in enumerate(rates["group"]):
        true, said = y[groups == name], predicted[groups == name]
        assert rates["accuracy"][g] == reference.accuracy_score(true, said)
        assert rates["selection_rate"][g] == said.mean()
        assert rates["true_positive_rate"][g] == reference.recall_score(true, said)
        quiet = reference.recall_score(true, said, pos_label=0)
        assert rates["false_positive_rate"][g] == pytest.approx(1 - quiet)


def test_a_rate_over_no_records_is_missing_and_makes_no_gap():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = metrics.group_rates(np.array([1, 0]), np.array([1, 0]), ["a", "b"], 1)
    np.testing.assert_array_equal(rates["true_positive_rate"], [1, np.nan])
    assert np.isnan(metrics.largest_gap(rates["true_positive_rate"]))
    assert metrics.largest_gap(np.array([0.2, np.nan, 0.9])) == pytest.approx(0.7)


def test_groups_are_one_for_each_record():
    with pytest.raises(SpecError, match="one group for each of 2 records"):
        metrics.group_rates(np.array([1, 0]), np.array([1, 0]), ["a"], 1)
