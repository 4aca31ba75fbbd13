"""The rounds in which one client may take part, and what is the most it can move under each plan.

A *participation schema* (separation b, most m) allows a client every set of rounds in which
neighbouring ones are at least b apart and which has at most m members. Sensitivities are squared,
exact integers: the largest value over all sets that the schema allows, found by dynamic programs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_IMPOSSIBLE = -(1 << 29)  # far below every sum, and two of them fit 32 bits
#: The longest run: sums of squared counts stay below 2 * rounds^2, far from 32 bits.
MOST_ROUNDS = 8192


class Schema(NamedTuple):
    """In which rounds of a run one client may take part.

    Attributes:
        rounds: how many rounds the run has.
        separation: rounds of one client are at least this far apart; 1 allows every round.
        most: it takes part in at most so many.

    Example:
        >>> Schema.of(10, 4, None)
        Schema(rounds=10, separation=4, most=3)
    """

    rounds: int
    separation: int
    most: int

    @classmethod
    def of(cls, rounds: int, separation: int, most: int | None) -> Schema:
        """The schema with ``most`` lowered to what the separation leaves room for."""
        room = -(-rounds // separation)
        return cls(rounds, separation, room if most is None else min(most, room))


def tree_sensitivity(schema: Schema, restart_every: int) -> np.ndarray:
    r"""Squared sensitivity of the nodes of binary trees that are closed after each round.

    A tree stands over each ``restart_every`` rounds. Its nodes of height h are the sums over rounds
    :math:`j 2^h + 1` to :math:`(j+1) 2^h`, closed by the last of them; only nodes that close within
    their period exist. A client that sends vectors :math:`g_t`, none longer than 1, moves node v by
    :math:`\sum_{t \in v} g_t`, so the squared distance is :math:`\sum_v |\sum_{t\in v} g_t|^2 \le
    \sum_v n_v^2`, where :math:`n_v` is in how many of v's rounds it takes part, with equality for
    equal vectors. The largest :math:`\sum_v n_v^2` over the schema's sets is what is returned. For
    one participation it is the number of nodes on its path, at most
    :math:`\lfloor\log_2 n\rfloor + 1`.

    The program: for a whole subtree of height h, ``best[c, f, l]`` is the largest sum over sets of
    c rounds that leave its first f and its last l rounds free. Two neighbours are joined over every
    way to share the b - 1 free rounds between them, and their parent adds c^2. The nodes that are
    closed after t rounds are the whole subtrees of t's binary digits, joined in the same way.

    Args:
        schema: which sets of rounds are allowed.
        restart_every: rounds of a tree.

    Returns:
        int64 [rounds]: entry t - 1 counts what is released by round t; never falls.

    Example:
        >>> tree_sensitivity(Schema.of(4, 4, 1), 4).tolist()
        [1, 2, 2, 3]
        >>> tree_sensitivity(Schema.of(4, 1, None), 4).tolist()[-1]  # 4 * 1 + 2 * 4 + 16
        28
    """
    if schema.most == 1:
        schema = schema._replace(separation=1)  # of one round alone nothing is apart
    free = schema.separation - 1
    height = min(restart_every, schema.rounds).bit_length()
    subtrees: list[np.ndarray] = []
    for level in range(height):
        size = 1 << level
        subtrees.append(_path(level, free, schema.most) if size <= schema.separation else
                        _parent(subtrees[-1], size, schema))
    nobody = np.zeros((1, 1, free + 1), np.int32)
    found = np.zeros(schema.rounds, np.int64)
    joined = {0: nobody}  # of periods that are over, and then of the whole subtrees before a round
    for period in range(0, schema.rounds, restart_every):
        joined = {period: joined[period]}
        length = min(restart_every, schema.rounds - period)
        for time in range(1, length + 1):
            low = time & -time
            # Only what later rounds are joined to needs to know how many of the last are free.
            needed = free if (time == length or low > 1) and period + time < schema.rounds else 0
            whole = _joined(joined[period + time - low], subtrees[low.bit_length() - 1],
                            period + time - low, low, schema, needed)
            joined[period + time] = whole
            found[period + time - 1] = whole[:, 0, 0].max()
    return np.maximum.accumulate(found)


def _path(level: int, free: int, most: int) -> np.ndarray:
    """A subtree no wider than the separation: one participation at most, counted at each height."""
    best = np.full((2, free + 1, free + 1), _IMPOSSIBLE, np.int32)
    best[0] = 0
    ends = np.arange(free + 1)
    best[1][ends[:, None] + ends < 1 << level] = level + 1
    return best[: most + 1]


def _parent(child: np.ndarray, size: int, schema: Schema) -> np.ndarray:
    whole = _joined(child, child, size // 2, size // 2, schema, schema.separation - 1)
    return whole + (np.arange(len(whole), dtype=np.int32) ** 2)[:, None, None]


def _joined(left: np.ndarray, right: np.ndarray, left_size: int, right_size: int, schema: Schema,
            last_needed: int) -> np.ndarray:
    """The best of two neighbours: ``[counts, first free, last free]``."""
    free = schema.separation - 1
    firsts, lasts = np.arange(left.shape[1]), np.arange(last_needed + 1)
    room = -(-(left_size + right_size) // schema.separation)
    counts = min(len(left) + len(right) - 2, schema.most, room) + 1
    best = np.full((counts, len(firsts), len(lasts)), _IMPOSSIBLE, np.int32)
    for shared in range(free + 1):  # rounds that the left one leaves free at its end, or more
        near = left[:, :, np.maximum(lasts - right_size, shared)]
        far = right[:, np.maximum(firsts - left_size, free - shared), : last_needed + 1]
        one, other = (near, far) if len(near) < len(far) else (far, near)
        for count, few in enumerate(one[:counts]):
            reach = min(len(other), counts - count)
            place = best[count:count + reach]
            np.maximum(place, few + other[:reach], out=place)
    return np.maximum(best, _IMPOSSIBLE)


def band_sensitivity(schema: Schema, band: np.ndarray) -> np.ndarray:
    r"""Squared sensitivity of the rows of a banded matrix that are released after each round.

    Round t contributes column t, which is zero outside of rows t to t + b - 1. Where rounds of one
    client are at least b apart, its columns share no row, so the squared distance is
    :math:`\sum_{t} |C_{:,t}|^2 |g_t|^2`, at most the sum of the squared norms of its columns, each
    as far as it is released. The largest such sum over the schema's sets is what is returned
    (Choquette-Choo et al. 2023, arXiv 2306.08153).

    Args:
        schema: which sets of rounds are allowed; its separation is at least the number of bands.
        band: int64 [rounds, bands]; entry (t, j) is what row t takes of round t - j.

    Returns:
        int64 [rounds]: entry t - 1 counts what is released by round t; never falls.

    Example:
        >>> band_sensitivity(Schema.of(3, 2, None), np.array([[2, 0], [2, 1], [2, 1]])).tolist()
        [4, 5, 9]
    """
    rounds, bands = band.shape
    # reached[t, j]: squared norm of round t's column as far as row t + j
    squares = np.zeros((rounds, bands), np.int64)
    for j in range(bands):
        squares[: rounds - j, j] = band[j:, j].astype(np.int64) ** 2
    reached = np.cumsum(squares, axis=1)
    whole = reached[:, -1]
    best = np.zeros((rounds + 1, schema.most + 1), np.int64)  # of the first t columns, c of them
    found = np.zeros(rounds, np.int64)
    for t in range(rounds):
        before = best[max(t + 1 - schema.separation, 0)]
        best[t + 1] = best[t]
        best[t + 1, 1:] = np.maximum(best[t + 1, 1:], before[:-1] + whole[t])
        done = max(t + 1 - bands, -1)  # columns up to here are released in full
        # Of the others at most one, as they are that close, and before it one participation less.
        last = np.arange(done + 1, t + 1)
        earlier = best[np.maximum(last + 1 - schema.separation, 0), schema.most - 1]
        found[t] = np.max(earlier + reached[last, t - last], initial=best[done + 1, schema.most])
    return np.maximum.accumulate(found)
