"""LEAF's JSON files: FEMNIST, Shakespeare, Sent140, synthetic, and what is written like them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset
from fedjax_secure.data.encoding import ALPHABET, CHARACTER_NAMES, encode_text
from fedjax_secure.data.loaders.arrays import assemble, check_text_length
from fedjax_secure.data.loaders.idx import read_file

_TWEET = 4  # where Sent140's lists of six have the text


def from_leaf(
    path: str | os.PathLike,
    *,
    classes: Sequence[str] | int | None = None,
    shape: tuple[int, ...] | None = None,
    text_length: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    unit: str = "record",
    client_unit: str = "user",
    name: str | None = None,
    card: str = "",
    population: str = "",
) -> FederatedDataset:
    """Loads LEAF's JSON: one client for each user.

    Each file has ``users``, ``num_samples`` and ``user_data``: for each user ``x`` and ``y``.
    Records may be

    - numbers (FEMNIST, synthetic): float32 as they are;
    - text (Shakespeare): tokens of LEAF's alphabet, the label a character or a class number;
    - lists whose fifth entry is text (Sent140): tokens of the same alphabet, cut or filled with
      spaces to ``text_length``.

    Args:
        path: a folder with ``train`` and ``test`` folders of JSON files, a folder of JSON files, or
            one file. Without a ``test`` folder a share of each user's records is held out.
        classes: the classes' names, or their number: 62 for FEMNIST, 2 for Sent140. By default as
            many as the largest label says; for labels that are characters, the alphabet.
        shape: the shape of one record; ``(28, 28, 1)`` for FEMNIST.
        text_length: tokens of a record of text; by default the length of the texts, which must
            then be the same (80 in Shakespeare), and 140 for Sent140.
        test_fraction, seed: the share to hold out where there is no ``test`` folder, and its seed.
        unit, client_unit, name, card, population: as in `FederatedDataset`.

    Returns:
        A `FederatedDataset`; users are in sorted order.

    Raises:
        DataError: no JSON, a file without the three parts, a user in two files of one part, counts
            that do not match, records of different lengths, or users with held-out records alone
            (LEAF's split by user: split by sample instead, ``-t sample``).

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "all_data.json"
        >>> _ = file.write_text(json.dumps({"users": ["u", "v"], "num_samples": [2, 1], "user_data":
        ...     {"u": {"x": ["ab", "bc"], "y": ["c", "d"]}, "v": {"x": ["xy"], "y": ["z"]}}}))
        >>> data = from_leaf(file, test_fraction=0)
        >>> data.clients, data.shape, [data.classes[k] for k in data.y]
        (('u', 'v'), (2,), ['c', 'd', 'z'])

    Source:
        Caldas et al. 2018, LEAF: A Benchmark for Federated Settings, arXiv:1812.01097.
    """
    path = Path(path)
    where = f"from_leaf({path.name})"
    check_text_length(where, text_length)
    train, test = _files(path, where)
    first = _users(train, where)
    parts = [_part(first, text_length, where)]
    if test:
        length = text_length or (parts[0][0].shape[1] if parts[0][3] else None)
        parts.append(_part(_users(test, where), length, where))
    characters = [p[4] for p in parts]
    if len(set(characters)) > 1:
        raise _refuse(
            where, "labels of one kind", "characters and numbers", "Check the test files."
        )
    if classes is None and characters[0]:
        classes = CHARACTER_NAMES
    if shape is None and parts[0][3]:
        shape = (parts[0][0].shape[1],)
    return assemble(
        where,
        *parts[0][:3],
        test=parts[1][:3] if test else None,
        classes=classes,
        shape=shape,
        test_fraction=test_fraction,
        seed=seed,
        unit=unit,
        client_unit=client_unit,
        name=name or path.stem,
        card=card or f"LEAF files {path.name}, read from your disk. Licence: see their source.\n",
        population=population,
    )


def _files(path: Path, where: str) -> tuple[list[Path], list[Path]]:
    if path.is_file():
        return [path], []
    folders = [path / "train", path / "test"] if (path / "train").is_dir() else [path]
    files = [sorted(folder.glob("*.json")) for folder in folders]
    if not files[0]:
        raise _refuse(
            where,
            "a JSON file, or a folder with train and test folders of them",
            "none" if path.exists() else "no such file or folder",
            "Give LEAF's data folder, e.g. leaf/data/femnist/data.",
        )
    return files[0], files[1] if len(files) > 1 else []


def _users(files: list[Path], where: str) -> dict[str, dict[str, Any]]:
    """Each user's records and labels; rows of numbers as an array, which takes a tenth of a list's
    memory."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        of = f"the LEAF file {file.name}"
        try:
            content = json.loads(read_file(file, of))
        except (ValueError, RecursionError) as error:
            raise _refuse(of, "whole JSON", str(error), "Make it again: is it truncated?") from None
        absent = [
            part
            for part in ("users", "num_samples", "user_data")
            if not isinstance(content, dict) or part not in content
        ]
        if absent:
            raise _refuse(of, "users, num_samples and user_data", f"no {absent}", "Is it LEAF's?")
        users, counts, data = (content[k] for k in ("users", "num_samples", "user_data"))
        if not (_listed(users, str | int) and _listed(counts, int | float)) or not isinstance(
            data, dict
        ):
            raise _refuse(
                of, "lists of users and num_samples, and user_data by user",
                f"{type(users).__name__}, {type(counts).__name__} and {type(data).__name__}",
                "Is it LEAF's?",
            )  # fmt: skip
        if len(users) != len(counts) or len(set(users)) != len(users):
            raise _refuse(
                of, "one count for each user, and each once", f"{len(users)} users, of which "
                f"{len(set(users))} differ, and {len(counts)} counts", "Make it again.",
            )  # fmt: skip
        for user, count in zip(users, counts, strict=True):
            if user in found:
                raise _refuse(
                    of, "users who are in no other file", repr(user), "Remove the old file."
                )
            own = data.get(str(user))
            whole = isinstance(own, dict) and all(isinstance(own.get(k), list) for k in "xy")
            lengths = (len(own["x"]), len(own["y"])) if whole else None
            if lengths != (count, count):
                raise _refuse(
                    of, f"{count} records and labels of user {user!r}", f"{lengths}",
                    "Make it again: counts and records do not match.",
                )  # fmt: skip
            if count:
                found[user] = {"x": _compact(own["x"]), "y": own["y"]}
    if not found:
        raise _refuse(where, "one record at least", "none", "Check how the files were made.")
    return found


def _listed(values: Any, kinds: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kinds) for value in values)


def _compact(records: list[Any]) -> Any:
    """Rows of numbers as float32; what is anything else, as it is."""
    try:
        array = np.array(records)
    except ValueError:
        return records
    if array.dtype.kind not in "fiub" or array.ndim != 2:
        return records
    with np.errstate(over="ignore"):  # infinity is refused later
        return array.astype(np.float32)


def _part(
    users: dict[str, dict[str, Any]], text_length: int | None, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool, bool]:
    """Records, labels and clients; are they text, and are the labels characters?"""
    blocks = [own["x"] for own in users.values()]
    if all(isinstance(b, np.ndarray) and b.shape[1] == blocks[0].shape[1] for b in blocks):
        records: Any = np.concatenate(blocks)
    else:
        records = [record for block in blocks for record in block]
    labels = [label for own in users.values() for label in own["y"]]
    clients = np.repeat(list(users), [len(own["y"]) for own in users.values()])
    numbers = isinstance(records, np.ndarray)
    tweets = not numbers and all(
        isinstance(r, list) and len(r) > _TWEET and isinstance(r[_TWEET], str) for r in records
    )
    texts = [r[_TWEET] for r in records] if tweets else records
    text = not numbers and all(isinstance(t, str) for t in texts)
    if text:
        x = _tokens(texts, text_length or (140 if tweets else None), where)
    else:
        x = records if numbers else _numbers(records, where)
    characters = all(isinstance(label, str) and len(label) == 1 for label in labels)
    if characters:
        unknown = sorted({label for label in labels if label not in ALPHABET})
        if unknown:
            raise _refuse(where, "labels of LEAF's alphabet", f"{unknown[:8]}", "Recode them.")
        y: Any = np.array([ALPHABET.index(label) for label in labels])
    else:
        y = _numbers([[label] for label in labels], where, "labels")[:, 0]
    return x, y, clients, text, characters


def _tokens(texts: list[str], length: int | None, where: str) -> np.ndarray:
    lengths = {len(t) for t in texts}
    if length is None:
        if len(lengths) > 1:
            raise _refuse(
                where, "texts of one length, or text_length=",
                f"{min(lengths)} to {max(lengths)} characters", "Write text_length=80.",
            )  # fmt: skip
        (length,) = lengths
    whole = "".join(t[:length].ljust(length) for t in texts)
    return encode_text(whole).reshape(len(texts), length)


def _numbers(rows: list[Any], where: str, what: str = "records") -> np.ndarray:
    try:
        array = np.array(rows)
        if array.dtype.kind not in "fiub" or array.ndim != 2:
            raise ValueError
    except ValueError:
        raise _refuse(
            where, f"{what} of numbers, all of one length, or text",
            f"for example {str(rows[0])[:60]}",
            "Names of files (CelebA) and lists of words (Reddit) are not read.",
        ) from None  # fmt: skip
    return array


def _refuse(where: str, need: str, found: str, fix: str) -> DataError:
    return DataError(where, need=need, found=found, fix=fix)
