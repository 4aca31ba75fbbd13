"""140 recordings of ten people's smart watches in seven shoulder exercises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.loaders.pickles import load_npy
from fedjax_secure.data.sets.files import package_file
from fedjax_secure.data.splitting import check_split, from_parts

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")

# Full scales that inertial sensors commonly offer: 4 g, and 500 degrees a second.
FULL_SCALE = np.array([4.0] * 3 + [np.deg2rad(500)] * 3)

CARD = """\
Watch: 140 recordings of the smart watches of ten people in seven shoulder exercises, 50 Hz.

Source: David Burns and others, University of Toronto; the data set "watch" of the package seglearn
1.2.5. Licence: BSD 3-Clause (Copyright 2018 David M. Burns). Read from that package, which ships
it; its sha256 is checked, and nothing of it is in this package.

Task: which exercise is it (pendulum PEN, abduction ABD, forward elevation FEL, internal rotation
IR, external rotation ER, trapezius extension TRAP, upright row ROW)? A record is a window of
{window} samples of six channels (acceleration in g, angular velocity in rad/s), {seconds:g}
seconds; a new one starts every {stride} samples. Unit of privacy: the window. A person has many,
and they may overlap: for privacy of a person choose privacy for the client.

Clients: the ten people, 14 recordings each: seven exercises, right and left arm.

Cleaning rules, each a function of one recording: a value beyond the full scale is moved to the
nearer end; what is left at the end of a recording and fills no window is dropped.

Public constants (they become 1): 4 g for acceleration and 500 degrees a second for angular
velocity, full scales that inertial sensors commonly offer; not computed from the records.

The split: the last part of each recording is held out, {percent:g}% of it. No window is cut from
both parts.

Outside any privacy guarantee: the lengths of the recordings.

Cite: Burns, D. M., Leung, N., Hardisty, M., Whyne, C. M., Henry, P., & McLachlin, S. (2018).
Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch. Physiol. Meas. 39(7):075007. Burns, D. M., & Whyne, C. M. (2018). Seglearn: A Python
Package for Learning Sequences and Time Series. J. Mach. Learn. Res. 19(83):1-7.
"""


def watch(
    *, window: int = 100, stride: int = 50, test_fraction: float = 0.2
) -> FederatedDataset:
    """Loads windows of the inertial sensors of ten people's watches, one client each.

    Natural shift in the features: people move differently, and all have the same labels. Needs
    the package seglearn: ``pip install "fedjax-secure[datasets]"``.

    Guarantees:
        Every value lies in [-1, 1]. Held-out windows share no sample with training windows.

    Args:
        window: samples of a record; 100 are two seconds.
        stride: samples from one record's start to the next one's.
        test_fraction: the share of each recording to hold out, its last part, in [0, 1).

    Returns:
        A `FederatedDataset` of shape (window, 6) and seven classes, float32.

    Raises:
        DataError: a bad argument, no seglearn, or one with another file.

    Source:
        Burns et al. 2018, Physiol. Meas. 39(7):075007; seglearn 1.2.5, BSD 3-Clause.
    """
    check_split(test_fraction, 0)
    check_windows("watch", window, stride)
    content = package_file("watch", "seglearn", "seglearn", "data/watch_dataset.npy", SHA256)
    source: Mapping[str, Any] = load_npy(content, "watch_dataset.npy")
    people = np.unique(source["subject"])
    parts: list[list[np.ndarray]] = [[], []]
    whose: list[list[int]] = [[], []]
    labels: list[list[int]] = [[], []]
    for series, label, person in zip(source["X"], source["y"], source["subject"], strict=True):
        scaled = np.clip(series / FULL_SCALE, -1, 1).astype(np.float32)
        cut = len(scaled) - int(test_fraction * len(scaled))
        for part, samples in enumerate((scaled[:cut], scaled[cut:])):
            windows = windows_of(samples, window, stride)
            parts[part].append(windows.reshape(len(windows), window * len(CHANNELS)))
            whose[part] += [int(np.searchsorted(people, person))] * len(windows)
            labels[part] += [int(label)] * len(windows)
    if len(set(whose[0])) < len(people):
        raise DataError(
            "watch",
            need="a window that fits into each person's recordings",
            found=f"window={window}",
            fix="Ask for 700 samples or fewer.",
        )
    client = np.array(whose[0] + whose[1])
    order = np.argsort(client, kind="stable")
    held_out = order >= len(whose[0])
    return from_parts(
        order[~held_out],
        order[held_out],
        name="watch",
        client_names=[f"person {person}" for person in people],
        client=client,
        x=np.concatenate(parts[0] + parts[1]),
        y=np.array(labels[0] + labels[1], np.int32),
        feature_names=tuple(f"{channel} {t}" for t in range(window) for channel in CHANNELS),
        classes=CLASSES,
        unit="window",
        client_unit="person",
        population="seglearn watch, ten people",
        card=CARD.format(
            window=window, stride=stride, seconds=window / 50, percent=100 * test_fraction
        ),
        shape=(window, len(CHANNELS)),
    )


def windows_of(samples: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Cuts whole windows out of a series.

    Args:
        samples: ``[time, ...]``.
        window, stride: in samples.

    Returns:
        ``[windows, window, ...]``; none where the series is shorter than a window.

    Example:
        >>> windows_of(np.arange(7), 3, 2).tolist()
        [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    """
    starts = np.arange(0, len(samples) - window + 1, stride)
    return samples[starts[:, None] + np.arange(window)]


def check_windows(where: str, window: int, stride: int) -> None:
    """Refuses windows that cannot be cut.

    Raises:
        DataError: a length or stride that is not a whole number of 1 or more.
    """
    for name, value in (("window", window), ("stride", stride)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < 1:
            raise DataError(
                where,
                need=f"{name} as a whole number of 1 or more",
                found=repr(value),
                fix=f"Write for example {name}=50.",
            )
