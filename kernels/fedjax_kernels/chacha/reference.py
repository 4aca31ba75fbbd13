"""ChaCha20 in Python integers, written from the text of RFC 8439, section 2.3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MASK = 0xFFFFFFFF
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)


def _rotate_left(value: int, amount: int) -> int:
    return ((value << amount) | (value >> (32 - amount))) & _MASK


def _quarter_round(state: list[int], a: int, b: int, c: int, d: int) -> None:
    state[a] = (state[a] + state[b]) & _MASK
    state[d] = _rotate_left(state[d] ^ state[a], 16)
    state[c] = (state[c] + state[d]) & _MASK
    state[b] = _rotate_left(state[b] ^ state[c], 12)
    state[a] = (state[a] + state[b]) & _MASK
    state[d] = _rotate_left(state[d] ^ state[a], 8)
    state[c] = (state[c] + state[d]) & _MASK
    state[b] = _rotate_left(state[b] ^ state[c], 7)


def block(key: Sequence[int], counter: int, nonce: Sequence[int]) -> list[int]:
    """One block of 16 words: the block function of RFC 8439, section 2.3.1."""
    initial = [*_CONSTANTS, *key, counter & _MASK, *nonce]
    state = list(initial)
    for _ in range(10):
        _quarter_round(state, 0, 4, 8, 12)
        _quarter_round(state, 1, 5, 9, 13)
        _quarter_round(state, 2, 6, 10, 14)
        _quarter_round(state, 3, 7, 11, 15)
        _quarter_round(state, 0, 5, 10, 15)
        _quarter_round(state, 1, 6, 11, 12)
        _quarter_round(state, 2, 7, 8, 13)
        _quarter_round(state, 3, 4, 9, 14)
    return [(x + y) & _MASK for x, y in zip(state, initial, strict=True)]


def keystream(
    key: np.ndarray, nonce: np.ndarray, num_words: int, *, counter: int = 0
) -> np.ndarray:
    """The first `num_words` words of the keystream, `[num_words] uint32`."""
    words: list[int] = []
    for index in range(-(-num_words // 16)):
        words += block(key.tolist(), counter + index, nonce.tolist())
    return np.array(words[:num_words], dtype=np.uint32)
