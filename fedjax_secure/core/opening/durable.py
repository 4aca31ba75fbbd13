"""Files that are whole or absent after a crash, and a round's stored result."""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import numpy as np

from ..errors import OpeningError
from .submissions import Opened


def write_durably(path: Path, content: bytes, *, private: bool = True) -> None:
    """Write a file so that it is whole or absent after a crash: temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb", opener=lambda p, f: os.open(p, f, 0o600 if private else 0o644)) as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def opened_to_bytes(opened: Opened) -> bytes:
    """A round's result as it is stored."""
    content = msgpack.packb({
        "round": opened.round, "dtype": opened.total.dtype.str, "total": opened.total.tobytes(),
        "clients": list(opened.clients), "submissions_digest": opened.submissions_digest,
    })
    assert content is not None
    return content


def opened_from_bytes(content: bytes, round: int) -> Opened:
    """A round's stored result.

    Raises:
        OpeningError: the bytes are not those of this round's result.
    """
    try:
        fields = msgpack.unpackb(content)
        if fields["dtype"] not in ("<u4", "<f4") or fields["round"] != round:
            raise ValueError
        clients, digest = tuple(fields["clients"]), fields["submissions_digest"]
        if not all(isinstance(name, str) for name in clients) or not isinstance(digest, bytes):
            raise TypeError
        stored = Opened(round, np.frombuffer(fields["total"], fields["dtype"]), clients, digest)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise OpeningError(f"the stored result of round {round}", need="a whole file",
                           found="one that cannot be read", fix="Restore it from a backup; "
                           "the round is not opened a second time.") from error
    return stored
