"""Orders that can be entered anywhere: a shuffle without a list, and weighted choices by number.

All are pure functions of their arguments, the same on every machine and with every version of Python and numpy.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

ROUNDS = 6


def mix(*key: object) -> int:
    """64 bits that depend on every part of the key."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def shuffled(position: int, size: int, key: int) -> int:
    """Where `position` of 0 … size - 1 goes in the shuffle named by `key`; no two go to the same place.

    A Feistel network permutes the numbers of an even number of bits; results outside the range go through it again.
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} of {size}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(key, number, right) & mask)
        position = left << bits | right
        if position < size:
            return position


def weighted_choices(weights: np.ndarray, count: int, key: int) -> np.ndarray:
    """`count` numbers of weights, int64, each as often as its weight says."""
    bits = np.random.Philox(key=key).random_raw(count)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    edges = np.cumsum(weights, dtype=np.float64)
    # side="right" and the clip: a weight of zero is never chosen, and rounding never leads past the last one.
    return np.searchsorted(edges / edges[-1], uniform, side="right").clip(max=int(np.flatnonzero(weights)[-1]))
