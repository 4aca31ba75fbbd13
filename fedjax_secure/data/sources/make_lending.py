"""Writes lending.csv.xz from the data set lending_club of the R package modeldata 1.1.0.

    python make_lending.py SITE_LIBRARY/modeldata/data

The folder is that of Debian's r-cran-modeldata 1.1.0-1 (``dpkg -x``). Needs ``pip install rdata``.
Every row and every value is kept, in the order of the source; see lending.md.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import struct
import sys
import warnings
from pathlib import Path

DATABASE_SHA256 = "2ecef5e8da0f782ae4e3f65d928fe769702accffd8981cc358a3097f6736f58f"
_RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def frame(folder: Path):
    """The table, from R's lazy-load database: an index of places, and compressed values."""
    database = (folder / "Rdata.rdb").read_bytes()
    found = hashlib.sha256(database).hexdigest()
    if found != DATABASE_SHA256:
        raise SystemExit(f"Rdata.rdb has sha256 {found}, not {DATABASE_SHA256}")
    index = _value(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
    start, size = (int(n) for n in index["variables"]["lending_club"])
    stored = database[start : start + size]
    (plain_size,) = struct.unpack(">I", stored[:4])
    if stored[4:5] != b"Z":
        raise SystemExit(f"a value compressed by {stored[4:5]!r}, not by xz")
    content = lzma.decompress(stored[5:], format=lzma.FORMAT_RAW, filters=_RAW_LZMA)
    return _value(content[:plain_size])


def _value(content: bytes):
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of R classes that become plain tables
        return rdata.conversion.convert(rdata.parser.parse_data(content))


def main(folder: Path, out: Path) -> None:
    """Writes the table as comma-separated values, compressed."""
    table = frame(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.astype(object).itertuples(index=False):
        writer.writerow([f"{v:.12g}" if isinstance(v, float) else v for v in row])
    content = text.getvalue().encode("ascii")
    out.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(len(table), "rows,", hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("lending.csv.xz"))
