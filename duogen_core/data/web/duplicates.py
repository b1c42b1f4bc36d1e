"""Whether two pictures show the same: a perceptual hash finds candidates, a finer check decides.

A copy may be rescaled, recompressed or framed, so frames of one colour are cut off first. Two screenshots that differ
in one dialog or one menu have nearly the same hash, but some small part of them differs much; a copy differs a little
everywhere. The finer check therefore compares the two part by part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

GRID = 16  # parts along each side
PART = 8  # pixels of a part along each side
SIDE = GRID * PART
FRAME = 24  # what differs from the corner by less, of 255, is of its colour
FRAMES = 3  # one inside the other
LEAST = 16  # rows and columns that must be left inside
HASH_SIDE, HASH_LOW = 32, 8
_COSINES = np.cos(np.pi / HASH_SIDE * np.outer(np.arange(HASH_LOW), np.arange(HASH_SIDE) + 0.5))


@dataclass(frozen=True)
class Look:
    """What is kept of one picture to compare it by."""

    bits: np.ndarray  # 64 truth values
    small: np.ndarray  # [SIDE, SIDE, 3], float32
    aspect: float


def looks_of(pixels: np.ndarray) -> tuple[Look, ...]:
    """The picture as it is, and without its frame if it has one."""
    inside = without_frame(pixels)
    return (_look(pixels),) if inside.shape == pixels.shape else (_look(pixels), _look(inside))


def _look(pixels: np.ndarray) -> Look:
    image = Image.fromarray(pixels)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    tiny = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), np.float64)
    low = _COSINES @ tiny @ _COSINES.T
    bits = (low > np.median(low.ravel()[1:])).ravel()
    return Look(bits, np.asarray(small, np.float32), image.width / image.height)


def without_frame(pixels: np.ndarray) -> np.ndarray:
    """The picture without the lines along its sides that are all of one colour, and the next such frame inside."""
    for _ in range(FRAMES):
        near = np.abs(pixels.astype(np.int16) - pixels[0, 0].astype(np.int16)).max(2) < FRAME
        rows, columns = np.flatnonzero(near.mean(1) < 0.99), np.flatnonzero(near.mean(0) < 0.99)
        if len(rows) < LEAST or len(columns) < LEAST:
            break
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(pixels)


def hash_distance(one: Look, other: Look) -> int:
    """How many of the 64 bits differ."""
    return int((one.bits != other.bits).sum())


def part_differences(one: Look, other: Look) -> tuple[float, float]:
    """The mean difference, of 255, of the part that differs most, and of all parts."""
    # A copy's edges may lie a fraction of a pixel off: each pixel is compared with the range of its neighbourhood.
    difference = np.maximum(_beyond(one.small, other.small), _beyond(other.small, one.small)).max(2)
    parts = difference.reshape(GRID, PART, GRID, PART).mean((1, 3))
    return float(parts.max()), float(parts.mean())


def _beyond(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How far each value is outside of what the other picture has within one pixel of it."""
    padded = np.pad(of, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = [padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    low, high = np.minimum.reduce(windows), np.maximum.reduce(windows)
    return np.maximum(np.maximum(low - values, values - high), 0)


def are_same(one: Sequence[Look], other: Sequence[Look], rules: Mapping[str, Any]) -> tuple[bool, float]:
    """Whether one is a copy of the other, and the largest part's difference it was decided by."""
    least = 255.0
    for a, b in product(one, other):
        if abs(a.aspect / b.aspect - 1) > rules["max_aspect"] or hash_distance(a, b) > rules["max_hash_bits"]:
            continue
        largest, mean = part_differences(a, b)
        least = min(least, largest)
        if largest <= min(rules["max_part"], rules["part_base"] + rules["part_slope"] * mean):
            return True, round(largest, 2)
    return False, round(least, 2)
