"""Randomised response on Python integers."""

from __future__ import annotations

import numpy as np


def respond(values: np.ndarray, words: np.ndarray, *, num_values: int, lies: int) -> np.ndarray:
    """`[n] uint32`: the first two words say whether to lie, the last two which other value."""
    answers = []
    for value, (a, b, c, d) in zip(values.tolist(), words.T.tolist(), strict=True):
        step = 0
        if a << 32 | b < lies:
            step = 1 + ((c << 32 | d) * (num_values - 1) >> 64)
        answers.append((value % num_values + step) % num_values)
    return np.array(answers, np.uint32)
