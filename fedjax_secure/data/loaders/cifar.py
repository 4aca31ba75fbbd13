"""CIFAR-10 and CIFAR-100 as their authors publish them: the python and the binary version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.loaders.arrays import assemble
from fedjax_secure.data.loaders.idx import read_file
from fedjax_secure.data.loaders.pickles import load_pickle

_PIXELS = 3 * 32 * 32

CARD = """\
{name}: pictures of 32x32 pixels in three colours, {classes} classes.

Source: Alex Krizhevsky, Vinod Nair and Geoffrey Hinton, https://www.cs.toronto.edu/~kriz/cifar.html
Read from your disk. Licence: the authors state none; check that your use is allowed.

Cleaning rules: none. Pixels are uint8, 0 to 255; a model divides by 255. The held-out part is the
authors'.

Clients: none in the source. Divide the records by a partitioner.

Cite: Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny Images. Technical
report, University of Toronto.
"""


def from_cifar(
    folder: str | os.PathLike, *, labels: str = "fine", name: str | None = None
) -> FederatedDataset:
    """Loads CIFAR-10 or CIFAR-100 from the folder that its archive unpacks to, as one client.

    The folder says which it is: ``cifar-10-batches-py``, ``cifar-10-batches-bin``,
    ``cifar-100-python`` or ``cifar-100-binary``. The python version is pickled; it is read by
    a reader that knows nothing but arrays and containers, so a manipulated file can do no harm.

    CIFAR names no clients: divide the records by a partitioner, for example
    ``fs.data.dirichlet(fs.data.from_cifar(folder), 100, alpha=0.3)``.

    Args:
        folder: where the batches lie.
        labels: of CIFAR-100, ``"fine"`` (100 classes) or ``"coarse"`` (20).
        name: what the dataset is called; by default cifar10 or cifar100.

    Returns:
        A `FederatedDataset` of one client, ``"all"``, and shape (32, 32, 3), uint8.

    Raises:
        DataError: no batches in the folder, a batch missing, a truncated one, labels out of range,
            or a pickle that names anything but arrays and containers.

    Source:
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    if labels not in ("fine", "coarse"):
        raise DataError(
            "from_cifar", need="labels fine or coarse", found=repr(labels), fix="Use labels='fine'."
        )
    path = Path(folder)
    ten = [f"data_batch_{n}" for n in range(1, 6)], ["test_batch"]
    hundred = ["train"], ["test"]
    for parts, suffix in ((ten, ""), (ten, ".bin"), (hundred, ""), (hundred, ".bin")):
        if any((path / f"{batch}{suffix}").is_file() for batch in parts[0]):
            break
    else:
        raise DataError(
            f"from_cifar({path.name})",
            need="batches of CIFAR: data_batch_1, data_batch_1.bin, train or train.bin",
            found="none of them in the folder" if path.is_dir() else "no such folder",
            fix="Give the folder that the archive unpacks to, e.g. cifar-10-batches-py.",
        )
    ten_classes = parts is ten
    kind = "labels" if ten_classes else f"{labels}_labels"
    read = _binary if suffix else _pickled
    both = []
    for batches in parts:
        read_parts = [read(path / f"{batch}{suffix}", kind) for batch in batches]
        pixels, numbers = (np.concatenate(p) for p in zip(*read_parts, strict=True))
        pictures = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # planes to channels last
        both.append((np.ascontiguousarray(pictures), numbers))
    classes = _class_names(path, suffix, kind)
    title = "CIFAR-10" if ten_classes else "CIFAR-100"
    return assemble(
        f"from_cifar({path.name})",
        *both[0],
        test=both[1],
        classes=classes,
        unit="picture",
        name=name or title.lower().replace("-", ""),
        card=CARD.format(name=title, classes=len(classes)),
        population=f"{title}, all pictures",
    )


def _pickled(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    where = f"the CIFAR batch {path.name}"
    batch = load_pickle(read_file(path, where), where)
    try:
        pixels = np.asarray(batch[b"data"])
        numbers = np.asarray(batch[kind.encode()])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            where,
            need=f"a dict with b'data' and b'{kind}'",
            found=f"{sorted(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__,
            fix="Check that it is a batch of CIFAR.",
        ) from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DataError(
            where,
            need=f"uint8 pixels [records, {_PIXELS}]",
            found=f"{pixels.dtype} {list(pixels.shape)}",
            fix="Check that it is a batch of CIFAR.",
        )
    return _checked(where, pixels, numbers, kind)


def _binary(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    where = f"the CIFAR batch {path.name}"
    content = read_file(path, where)
    head = 1 if kind == "labels" else 2
    if not content or len(content) % (_PIXELS + head):
        raise DataError(
            where,
            need=f"a multiple of {_PIXELS + head} bytes",
            found=f"{len(content):,}",
            fix="Download it again: it is truncated, or something follows.",
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + head)
    return _checked(where, rows[:, head:], rows[:, 1 if kind == "fine_labels" else 0], kind)


def _checked(
    where: str, pixels: np.ndarray, numbers: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    most = {"labels": 10, "fine_labels": 100, "coarse_labels": 20}[kind]
    fits = numbers.shape == (len(pixels),) and numbers.dtype.kind in "iu"
    if not fits or (numbers.size and not 0 <= numbers.min() <= numbers.max() < most):
        raise DataError(
            where,
            need=f"{len(pixels)} labels in [0, {most})",
            found=f"{numbers.dtype} {list(numbers.shape)}"
            + (f" up to {numbers.max()}" if fits else ""),
            fix="Check that it is a batch of CIFAR.",
        )
    return pixels, numbers.astype(np.int64)


def _class_names(path: Path, suffix: str, kind: str) -> list[str]:
    """The names that the archive gives; numbers where it gives none."""
    count = {"labels": 10, "fine_labels": 100, "coarse_labels": 20}[kind]
    names: Any = []
    stem = "batches.meta" if kind == "labels" else "meta"
    if suffix:
        file = path / ("batches.meta.txt" if kind == "labels" else f"{kind[:-1]}_names.txt")
        if file.is_file():
            names = file.read_text().split()
    elif (path / stem).is_file():
        where = f"the CIFAR file {stem}"
        meta = load_pickle(read_file(path / stem, where), where)
        key = b"label_names" if kind == "labels" else f"{kind[:-1]}_names".encode()
        names = meta.get(key, []) if isinstance(meta, dict) else []
    names = [n.decode("latin1") if isinstance(n, bytes) else str(n) for n in names]
    return names if len(names) == count else [str(k) for k in range(count)]
