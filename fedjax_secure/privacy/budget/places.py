"""Where budgets lie, and what their files are called."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path


def folder_of_budgets(folder: str | os.PathLike[str] | None) -> Path:
    """The folder that was asked for, or this user's; see ``Budget.open``."""
    if folder is not None:
        return Path(folder)
    home = os.environ.get("FEDJAX_SECURE_HOME")
    if home:
        return Path(home) / "budgets"
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG rules: a relative path there is to be ignored.
    base = Path(data) if data and os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / "fedjax_secure" / "budgets"


def file_name(fingerprint: str, unit: str, label: str | None) -> str:
    """Readable, and different for each (fingerprint, unit, label)."""
    identity = hashlib.sha256(json.dumps([fingerprint, unit, label]).encode()).hexdigest()[:16]
    words = [re.sub(r"[^A-Za-z0-9]+", "-", word)[:24].strip("-") for word in
             (unit, label or "real")]
    return "-".join([*words, identity]) + ".jsonl"


def settled_groups_path(folder: Path, fingerprint: str, unit: str, label: str | None) -> Path:
    """Where an individual budget writes, once it is spent from, that people have groups."""
    return (folder / file_name(fingerprint, unit, label)).with_suffix(".groups")
