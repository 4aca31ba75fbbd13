"""What a federated dataset looks like: counts, label shares and skew, as a table and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from fedjax_secure.data.dataset import FederatedDataset

_COLUMNS = 100  # up to so many clients are drawn as a bar each
_PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6d6a00", "#5a4fcf",
    "#8a5a2b", "#4d5b66",
)  # fmt: skip
_INK, _SOFT = "#16191d", "#5b626b"


def label_counts(data: FederatedDataset) -> np.ndarray:
    """Returns ``[clients, classes] int64``: records of each class, both parts together."""
    clients, classes = data.num_clients, len(data.classes)
    counts = np.zeros(clients * classes, np.int64)
    for y, sizes in ((data.y, data.counts), (data.test_y, data.test_counts)):
        client = np.repeat(np.arange(clients, dtype=np.int64), sizes)
        counts += np.bincount(client * classes + y, minlength=clients * classes)
    return counts.reshape(clients, classes)


def label_skew(counts: np.ndarray) -> np.ndarray:
    """How far each client's labels are from those of all clients pooled.

    Args:
        counts: ``[clients, classes]``, records of each class; every client has one record at least.

    Returns:
        ``[clients] float64``: the total variation distance, half the sum over classes of the
        difference between the client's share and the pooled share; 0 where they agree, below 1.

    Example:
        >>> label_skew(np.array([[10, 0], [0, 10]]))
        array([0.5, 0.5])
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    pooled = counts.sum(axis=0) / counts.sum()
    return np.abs(shares - pooled).sum(axis=1) / 2


def describe(data: FederatedDataset) -> pd.DataFrame:
    """The table of `FederatedDataset.describe`."""
    import pandas as pd

    counts = data.label_counts
    shares = counts / counts.sum(axis=1, keepdims=True)
    columns = {"client": list(data.clients), "train": data.counts, "test": data.test_counts}
    columns |= {f"share of {name}": shares[:, k] for k, name in enumerate(data.classes)}
    return pd.DataFrame(columns | {"skew": label_skew(counts)})


def draw(data: FederatedDataset) -> Figure:
    """The figure of `FederatedDataset.plot`: sizes, label shares and skew, client by client."""
    from fedjax_secure.data.picture import Picture  # matplotlib takes a second to import

    counts = data.label_counts
    shares, skew = counts / counts.sum(axis=1, keepdims=True), label_skew(counts)
    few = data.num_clients <= _COLUMNS
    figure = Picture(figsize=(10.5, 7.2), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.35))
    unit = "" if data.unit == "record" else f" ({data.unit})"
    client_unit = "" if data.client_unit == "client" else f" ({data.client_unit})"
    figure.suptitle(
        f"{_plain(data.name, 60, dollars=True)}: {counts.sum():,} records{unit} at "
        f"{data.num_clients:,} clients{client_unit}, {len(data.classes)} classes",
        color=_INK, fontsize=13, x=0.01, ha="left", parse_math=False,
    )  # fmt: skip
    order = np.arange(data.num_clients)
    if not few:
        order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    _sizes(figure.add_subplot(grid[0, 0]), data, few)
    _skews(figure.add_subplot(grid[0, 1]), data, skew, few)
    labels = figure.add_subplot(grid[1, :])
    if few and len(data.classes) <= len(_PALETTE):
        _stack(labels, data, shares)
    else:
        _heat(figure, labels, data, shares[order])
    for axes in figure.axes:
        axes.tick_params(colors=_SOFT, labelsize=8)
        axes.title.set_color(_INK)
        for side in axes.spines.values():
            side.set_visible(False)
    return figure


def _sizes(axes, data: FederatedDataset, few: bool) -> None:
    both = data.counts + data.test_counts
    axes.set_title(
        f"Records of a client: {both.min():,} to {both.max():,}, median {np.median(both):,.0f}",
        loc="left", fontsize=10,
    )  # fmt: skip
    if few:
        at = np.arange(data.num_clients)
        axes.bar(at, data.counts, color=_PALETTE[0], label="training")
        axes.bar(at, data.test_counts, bottom=data.counts, color=_PALETTE[5], label="held out")
        axes.set_ylim(0, 1.15 * both.max())  # room for the legend
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
        _name_clients(axes, data)
    else:
        low, high = both.min(), both.max()
        bins = np.geomspace(low, high + 1, 40) if high > 20 * low else 40
        axes.hist(both, bins=bins, color=_PALETTE[0])
        if high > 20 * low:
            axes.set_xscale("log")
        axes.set_xlabel("records", fontsize=9, color=_SOFT)
        axes.set_ylabel("clients", fontsize=9, color=_SOFT)


def _skews(axes, data: FederatedDataset, skew: np.ndarray, few: bool) -> None:
    axes.set_title(
        f"Label skew (total variation from the pooled shares): median {np.median(skew):.2f}",
        loc="left", fontsize=10,
    )  # fmt: skip
    if few:
        axes.bar(np.arange(data.num_clients), skew, color=_PALETTE[4])
        axes.set_ylim(0, 1)
        _name_clients(axes, data)
    else:
        axes.hist(skew, bins=np.linspace(0, 1, 41), color=_PALETTE[4])
        axes.set_xlabel("distance", fontsize=9, color=_SOFT)
        axes.set_ylabel("clients", fontsize=9, color=_SOFT)


def _stack(axes, data: FederatedDataset, shares: np.ndarray) -> None:
    axes.set_title("Share of each class", loc="left", fontsize=10)
    at, bottom = np.arange(data.num_clients), np.zeros(data.num_clients)
    for k, name in enumerate(data.classes):
        axes.bar(at, shares[:, k], bottom=bottom, color=_PALETTE[k], label=_plain(name))
        bottom = bottom + shares[:, k]
    axes.set_ylim(0, 1)
    axes.legend(
        loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False, reverse=True
    )  # as they are stacked
    _name_clients(axes, data)


def _heat(figure: Figure, axes, data: FederatedDataset, shares: np.ndarray) -> None:
    few = data.num_clients <= _COLUMNS
    sorted_by = "" if few else ", clients sorted by their most frequent class"
    axes.set_title(f"Share of each class{sorted_by}", loc="left", fontsize=10)
    image = axes.imshow(
        shares.T, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest" if few else "auto"
    )
    figure.colorbar(image, ax=axes, pad=0.01).outline.set_visible(False)
    step = -(-len(data.classes) // 26)
    ticks = range(0, len(data.classes), step)
    axes.set_yticks(ticks, [_plain(data.classes[k]) for k in ticks])
    if few:
        _name_clients(axes, data)
    else:
        axes.set_xlabel("clients", fontsize=9, color=_SOFT)


def _name_clients(axes, data: FederatedDataset) -> None:
    step = -(-data.num_clients // 25)
    at = list(range(0, data.num_clients, step))
    names = [_plain(data.clients[c]) for c in at]
    longest = max(map(len, names)) * len(names)
    axes.set_xticks(at, names)
    if longest > 48:
        axes.set_xticks(at, names, rotation=60, ha="right", rotation_mode="anchor")


def _plain(name: str, length: int = 18, *, dollars: bool = False) -> str:
    """A name that fits, on one line; with ``dollars`` as they are, for a text without formulas."""
    name = " ".join(name.split()) if name.strip() else repr(name)
    shown = name if len(name) <= length else f"{name[: length - 1]}…"
    return shown if dollars else shown.replace("$", r"\$")
