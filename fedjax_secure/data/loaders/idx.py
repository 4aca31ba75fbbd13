"""idx files: MNIST, EMNIST and Fashion-MNIST as their authors publish them."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.loaders.arrays import assemble

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
Path_ = str | os.PathLike


def from_idx(
    images: Path_,
    labels: Path_,
    *,
    test_images: Path_ | None = None,
    test_labels: Path_ | None = None,
    transpose: bool = False,
    classes: Sequence[str] | int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    unit: str = "picture",
    name: str = "idx",
    card: str = "",
    population: str = "",
) -> FederatedDataset:
    """Loads pictures and labels from idx files, plain or ``.gz``, as one client.

    idx files name no clients: divide the records by a partitioner, for example
    ``fs.data.dirichlet(fs.data.from_idx(...), 100, alpha=0.3)``.

    Args:
        images: the file of pictures, ``[records, height, width]``, uint8.
        labels: the file of labels, ``[records]``, uint8.
        test_images, test_labels: the held-out part; by default a share of the records.
        transpose: swap height and width. EMNIST's files need it.
        classes: the classes' names, or their number. EMNIST's letters are numbered from 1: give 27.
        test_fraction, seed: the share to hold out where no files are given, and the split's seed.
        unit, name, card, population: as in `FederatedDataset`.

    Returns:
        A `FederatedDataset` of one client, ``"all"``, and shape (height, width, 1), uint8.

    Raises:
        DataError: no such file, a wrong magic number, a truncated file or one with more content
            than it says, or files that do not belong together.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "images").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 1,
        ...                                            0, 0, 0, 2]) + bytes(range(8)))
        >>> _ = (folder / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 0, 1]))
        >>> data = from_idx(folder / "images", folder / "labels", test_fraction=0)
        >>> data.x.tolist(), data.shape
        ([[0, 1], [2, 3], [4, 5], [6, 7]], (1, 2, 1))

    Source:
        LeCun, Cortes and Burges, THE IDX FILE FORMAT, http://yann.lecun.com/exdb/mnist/.
    """
    if (test_images is None) != (test_labels is None):
        raise DataError(
            "from_idx",
            need="both test_images and test_labels, or neither",
            found="one",
            fix="Give the other file too.",
        )
    train = _pictures(images, labels, transpose)
    test = None
    if test_images is not None and test_labels is not None:
        test = _pictures(test_images, test_labels, transpose)
    return assemble(
        f"from_idx({Path(images).name})",
        *train,
        test=test,
        classes=classes,
        test_fraction=test_fraction,
        seed=seed,
        unit=unit,
        name=name,
        card=card,
        population=population,
    )


def read_idx(path: Path_) -> np.ndarray:
    """Reads one idx file, plain or ``.gz``.

    Args:
        path: the file; it is decompressed if its content says so, whatever its name.

    Returns:
        The array, in this machine's byte order.

    Raises:
        DataError: no such file, a wrong magic number, or less or more content than it says.
    """
    where = f"the idx file {Path(path).name}"
    content = read_file(path, where)
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                where, need="a whole gzip file", found=str(error), fix="Download it again."
            ) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES or not content[3]:
        raise DataError(
            where,
            need="the magic number of an idx file: 0, 0, a known type and the dimensions",
            found=content[:4].hex(" ") or "an empty file",
            fix="Check that it is an idx file.",
        )
    head = 4 + 4 * content[3]
    dtype = np.dtype(_DTYPES[content[2]])
    sizes = np.frombuffer(content.ljust(head, b"\0"), ">u4", content[3], offset=4).tolist()
    needed = head + int(np.prod(sizes, dtype=object)) * dtype.itemsize
    if len(content) != needed:
        raise DataError(
            where,
            need=f"{needed:,} bytes for dimensions {sizes}",
            found=f"{len(content):,}",
            fix="Download it again: it is truncated, or something follows.",
        )
    array = np.frombuffer(content, dtype, offset=head).reshape(sizes)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_file(path: Path_, where: str) -> bytes:
    """Reads a file, or says that it cannot be read.

    Raises:
        DataError: no such file, a folder, or one that may not be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            where,
            need="a file that can be read",
            found=f"{error.strerror} ({path})",
            fix="Check the path.",
        ) from None


def _pictures(images: Path_, labels: Path_, transpose: bool) -> tuple[np.ndarray, np.ndarray]:
    pictures, numbers = read_idx(images), read_idx(labels)
    if pictures.ndim != 3 or pictures.dtype != np.uint8:
        raise DataError(
            f"the idx file {Path(images).name}",
            need="uint8 pictures [records, height, width]",
            found=f"{pictures.dtype} {list(pictures.shape)}",
            fix="Give the file of images first and that of labels second.",
        )
    if numbers.shape != (len(pictures),):
        raise DataError(
            f"the idx file {Path(labels).name}",
            need=f"{len(pictures)} labels",
            found=f"{list(numbers.shape)}",
            fix=f"Give the file of labels that belongs to {Path(images).name}.",
        )
    if transpose:
        pictures = pictures.swapaxes(1, 2)
    return pictures[..., None], numbers
