"""Figures of classifiers, for many clients at once: AUC, calibration, confusion, gaps of groups.

Everything here is NumPy on columns of one entry a record, records contiguous by client. No loop
goes over clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_secure.core.errors import SpecError

CALIBRATION_BINS = 15


def client_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Adds up each client's records.

    Args:
        values: ``[records]``, contiguous by client.
        offsets: ``[clients + 1] int``, where each client begins.

    Returns:
        ``[clients] float64``; 0 for a client without records. A value that is not finite spoils
        its own client's sum only.

    Example:
        >>> import numpy as np
        >>> client_sums(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2, 3])).tolist()
        [3.0, 0.0, 4.0]
    """
    counts = np.diff(offsets)
    sums = np.zeros(len(counts))
    held = counts > 0
    if held.any():
        sums[held] = np.add.reduceat(values, offsets[:-1][held], dtype=np.float64)
    return sums


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the exact area under the ROC curve: the Mann-Whitney statistic over its largest.

    Args:
        scores: ``[records]``; higher means more likely positive.
        positive: ``[records] bool``.

    Returns:
        A number in [0, 1]; NaN if all records are positive or none is, or a score is NaN.

    Raises:
        SpecError: not one score and one truth value for each record.

    Example:
        >>> import numpy as np
        >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        0.875

    Source:
        Hanley, McNeil 1982, "The Meaning and Use of the Area under a ROC Curve", section III.
    """
    scores = np.asarray(scores)
    return float(areas_under_curve(scores, positive, np.array([0, len(scores)]))[0])


def areas_under_curve(scores: np.ndarray, positive: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the exact area under each client's ROC curve, all of them by one sort.

    A record is one 64-bit number: its client, its score, and whether it is positive. Sorted, each
    positive record has below it the negative ones of its client that score no higher; pairs with
    equal scores are then taken off by half. All counts are integers.

    Args:
        scores: ``[records]`` floats or integers; higher means more likely positive.
        positive: ``[records] bool``.
        offsets: ``[clients + 1] int``, where each client's records begin; below 2^31 clients.

    Returns:
        ``[clients] float64`` in [0, 1]; NaN where a client's records are all positive or all
        negative, or one of its scores is NaN.

    Raises:
        SpecError: not one score and one truth value for each record.

    Example:
        >>> import numpy as np
        >>> scores = np.array([0.1, 0.4, 0.4, 0.9, 0.2, 0.1])
        >>> positive = np.array([0, 0, 1, 1, 0, 1], bool)
        >>> areas_under_curve(scores, positive, np.array([0, 4, 6])).tolist()
        [0.875, 0.0]

    Source:
        Hanley, McNeil 1982, "The Meaning and Use of the Area under a ROC Curve", section III.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if scores.ndim != 1 or positive.shape != scores.shape or offsets[-1] != len(scores):
        raise SpecError(
            "the area under the curve",
            need=f"one score and one truth value for each of {int(offsets[-1])} records",
            found=f"shapes {list(scores.shape)} and {list(positive.shape)}",
            fix="Give two arrays of shape [records].",
        )
    return _areas(_ordered(scores), positive, np.asarray(offsets), np.isnan(scores))


def one_against_rest(scores: np.ndarray, y: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns for each client the mean, over its classes, of each class's AUC against the rest.

    Args:
        scores: ``[records, classes] float32``, usually probabilities.
        y: ``[records] int``, class numbers.
        offsets: ``[clients + 1] int``, where each client's records begin.

    Returns:
        ``[clients] float64``; NaN where a client has fewer than two classes, or one of its scores
        is NaN. Only classes that the client has count, each the same.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]], np.float32)
        >>> one_against_rest(scores, np.array([0, 1, 2]), np.array([0, 3])).tolist()
        [1.0]

    Source:
        Provost, Domingos 2000, "Well-Trained PETs", for one against the rest; here classes have
        equal weights.
    """
    counts, classes = np.diff(offsets), scores.shape[1]
    client = np.repeat(np.arange(len(counts)), counts)
    members = np.bincount(client * classes + y, minlength=len(counts) * classes)
    members = members.reshape(len(counts), classes)
    rated = (members > 0) & (members < counts[:, None])
    columns = np.ascontiguousarray(scores.T)
    total = np.zeros(len(counts))
    for k in np.flatnonzero(rated.any(axis=0)):  # each sort takes all clients that have the class
        taken = rated[:, k]
        rows = slice(None) if taken.all() else taken[client]
        column = columns[k][rows]
        bounds = np.concatenate([[0], np.cumsum(counts[taken])])
        total[taken] += _areas(_ordered(column), y[rows] == k, bounds, np.isnan(column))
    present = rated.sum(axis=1)
    out = np.full(len(counts), np.nan)
    some = present > 0
    out[some] = total[some] / present[some]
    return out


def _ordered(scores: np.ndarray) -> np.ndarray:
    """``[records] uint64`` below 2^32, in the order of the scores, equal where they are equal."""
    if scores.dtype != np.float32:
        return np.unique(scores, return_inverse=True)[1].reshape(-1).astype(np.uint64)
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    sign = bits >> np.uint32(31)
    # of a negative number all bits turn over, of another only the sign
    return (bits ^ (sign * np.uint32(0x7FFFFFFF) | np.uint32(0x80000000))).astype(np.uint64)


def _areas(
    order: np.ndarray, positive: np.ndarray, offsets: np.ndarray, unknown: np.ndarray
) -> np.ndarray:
    counts = np.diff(offsets)
    groups = np.arange(len(counts), dtype=np.uint64)
    key = np.repeat(groups << np.uint64(33), counts)
    key |= order << np.uint64(1)
    key |= positive
    key.sort()
    # Where tied, positive records come last: below each are the negative ones it beats or ties.
    ups = np.flatnonzero(key & np.uint64(1))
    owner = (key[ups] >> np.uint64(33)).astype(np.int64)
    num_ups = np.bincount(owner, minlength=len(counts))
    first_up = np.cumsum(num_ups) - num_ups
    below = (ups - offsets[owner]) - (np.arange(len(ups)) - first_up[owner])
    bounds = np.concatenate([[0], np.cumsum(below)])
    doubled = 2 * (bounds[first_up + num_ups] - bounds[first_up])
    # A negative and a positive neighbour that differ in the last bit only: a tie of both kinds.
    edge = 1 + np.flatnonzero((key[1:] ^ key[:-1]) == 1)
    if len(edge):
        tied_downs = edge - np.searchsorted(key, key[edge - 1], side="left")
        tied_ups = np.searchsorted(key, key[edge], side="right") - edge
        np.subtract.at(
            doubled, (key[edge] >> np.uint64(33)).astype(np.int64), tied_downs * tied_ups
        )
    pairs = num_ups * (counts - num_ups)
    out = np.full(len(counts), np.nan)
    np.divide(doubled, 2 * pairs, out=out, where=pairs > 0)
    if unknown.any():
        out[client_sums(unknown, offsets) > 0] = np.nan
    return out


def reliability_bins(
    confidence: np.ndarray, right: np.ndarray, offsets: np.ndarray, bins: int = CALIBRATION_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts each client's records into equal-width bins of confidence.

    Bin m of M, from 1, holds confidences in ``((m - 1) / M, m / M]``; 0 belongs to the first.

    Args:
        confidence: ``[records]`` in [0, 1], the probability of the predicted class.
        right: ``[records] bool``, whether the prediction is true.
        offsets: ``[clients + 1] int``, where each client's records begin.
        bins: how many bins, M.

    Returns:
        Three arrays ``[clients, bins]``: records (int), summed confidence and right answers
        (float64).

    Raises:
        SpecError: not a whole number of bins of 1 or more.

    Example:
        >>> import numpy as np
        >>> counts, _, right = reliability_bins(
        ...     np.array([0.5, 0.6, 0.9]), np.array([True, False, True]), np.array([0, 3]), bins=2)
        >>> counts.tolist(), right.tolist()
        ([[1, 2]], [[1.0, 1.0]])
    """
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise SpecError(
            "calibration", need="one bin or more", found=repr(bins), fix="Leave bins=15."
        )
    counts = np.diff(offsets)
    confidence = np.nan_to_num(np.asarray(confidence, np.float64))
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    place += bins * np.repeat(np.arange(len(counts)), counts)
    shape, size = (len(counts), bins), len(counts) * bins
    return (
        np.bincount(place, minlength=size).reshape(shape),
        np.bincount(place, weights=confidence, minlength=size).reshape(shape),
        np.bincount(place, weights=right, minlength=size).reshape(shape),
    )


def calibration_errors(
    confidence: np.ndarray, right: np.ndarray, offsets: np.ndarray, bins: int = CALIBRATION_BINS
) -> np.ndarray:
    """Returns each client's expected calibration error.

    Over equal-width bins of confidence, the mean distance between a bin's accuracy and its mean
    confidence, weighted by records: 0 where a model that says 80% is right four times in five. With
    few records in a bin chance alone moves it away from 0: compare clients of like size.

    Args:
        confidence, right, offsets, bins: as in `reliability_bins`.

    Returns:
        ``[clients] float64`` in [0, 1]; NaN without records.

    Raises:
        SpecError: not a whole number of bins of 1 or more.

    Example:
        >>> import numpy as np
        >>> calibration_errors(
        ...     np.array([0.5, 0.6, 0.9]), np.array([True, False, True]), np.array([0, 3]), bins=2
        ... ).round(6).tolist()
        [0.333333]

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    counts, confident, right_answers = reliability_bins(confidence, right, offsets, bins)
    out = np.full(len(counts), np.nan)
    records = counts.sum(axis=1)
    np.divide(np.abs(right_answers - confident).sum(axis=1), records, out=out, where=records > 0)
    return out


def group_rates(
    y: np.ndarray, predicted: np.ndarray, groups: Sequence[Any] | np.ndarray, positive: int
) -> dict[str, np.ndarray]:
    """Counts how a classifier treats each group of records.

    Args:
        y: ``[records] int``, true classes.
        predicted: ``[records] int``, predicted classes.
        groups: ``[records]``, each record's group: names or numbers.
        positive: the class that counts as positive, e.g. that a loan is granted.

    Returns:
        Columns with an entry a group: ``group``; ``records``; ``accuracy``; ``selection_rate``,
        the share predicted positive; ``true_positive_rate`` and ``false_positive_rate``, the same
        among truly positive and negative records. A rate over no records is NaN.

    Raises:
        SpecError: not one group for each record; None and NaN are no groups.

    Example:
        >>> import numpy as np
        >>> y, predicted = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
        >>> group_rates(y, predicted, ["a", "b", "a", "b"], 1)["selection_rate"].tolist()
        [0.5, 0.0]
    """
    labels = np.asarray(groups)
    if labels.shape != y.shape:
        raise SpecError(
            "figures of groups",
            need=f"one group for each of {len(y)} records",
            found=f"shape {list(labels.shape)}",
            fix="Give them in the order of the evaluated records.",
        )
    missing = sum(v is None or str(v) == "<NA>" or v != v for v in groups)
    if missing:
        raise SpecError(
            "figures of groups",
            need="a group for every record",
            found=f"{missing} records without",
            fix='Name theirs too: "unknown", for example.',
        )
    kinds = {type(v) for v in labels.tolist()} if labels.dtype == object else set()
    names, group = np.unique(labels.astype(str) if len(kinds) > 1 else labels, return_inverse=True)
    group = group.reshape(-1)
    truly, said = y == positive, predicted == positive

    def share(of: np.ndarray, among: np.ndarray) -> np.ndarray:
        size = np.bincount(group[among], minlength=len(names))
        found = np.bincount(group[among & of], minlength=len(names))
        return np.divide(found, size, out=np.full(len(names), np.nan), where=size > 0)

    everyone = np.ones(len(y), bool)
    return {
        "group": names,
        "records": np.bincount(group, minlength=len(names)),
        "accuracy": share(predicted == y, everyone),
        "selection_rate": share(said, everyone),
        "true_positive_rate": share(said, truly),
        "false_positive_rate": share(said, ~truly),
    }


def largest_gap(rates: np.ndarray) -> float:
    """Returns the largest difference between two groups' rates; NaN if fewer than two have one.

    Example:
        >>> import numpy as np
        >>> largest_gap(np.array([0.25, np.nan, 0.75]))
        0.5
    """
    known = rates[np.isfinite(rates)]
    return float(known.max() - known.min()) if len(known) > 1 else float("nan")
