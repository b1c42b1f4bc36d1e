"""Whether two pictures show the same: a perceptual hash finds candidates, a finer check decides.

A copy may be rescaled, recompressed or framed, so frames of one colour are cut off first. Two screenshots that differ
in one dialog or one menu have nearly the same hash, but some small part of them differs much; a copy differs a little
everywhere. The finer check therefore compares the two part by part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

GRID = 16  # parts along each side
PART = 8  # pixels of a part along each side
SIDE = GRID * PART
FRAME = 12  # a line is frame when it differs from the corner by less, of 255
MOST_FRAME = 0.25  # of a side that can be frame
ASPECT = 0.12  # by which two copies' shapes may differ, as a share
HASH_SIDE, HASH_LOW = 32, 8
_COSINES = np.cos(np.pi / HASH_SIDE * np.outer(np.arange(HASH_LOW), np.arange(HASH_SIDE) + 0.5))


@dataclass(frozen=True)
class Look:
    """What is kept of a picture to compare it by."""

    bits: np.ndarray  # 64 truth values
    small: np.ndarray  # [SIDE, SIDE, 3], float32
    aspect: float


def look_at(pixels: np.ndarray) -> Look:
    image = Image.fromarray(without_frame(pixels))
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    tiny = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), np.float64)
    low = _COSINES @ tiny @ _COSINES.T
    bits = (low > np.median(low.ravel()[1:])).ravel()
    return Look(bits, np.asarray(small, np.float32), image.width / image.height)


def without_frame(pixels: np.ndarray) -> np.ndarray:
    """The picture without lines along its sides that are all of the corner's colour."""
    height, width = pixels.shape[:2]
    near = np.abs(pixels.astype(np.int16) - pixels[0, 0].astype(np.int16)).max(2) < FRAME
    rows, columns = near.mean(1) >= 0.995, near.mean(0) >= 0.995
    top, bottom = _run(rows, height), _run(rows[::-1], height)
    left, right = _run(columns, width), _run(columns[::-1], width)
    return np.ascontiguousarray(pixels[top : height - bottom, left : width - right])


def _run(lines: np.ndarray, length: int) -> int:
    most = int(length * MOST_FRAME)
    inner = np.flatnonzero(~lines[: most + 1])
    return int(inner[0]) if inner.size else 0


def hash_distance(one: Look, other: Look) -> int:
    """How many of the 64 bits differ."""
    return int((one.bits != other.bits).sum())


def block_difference(one: Look, other: Look) -> float:
    """The mean difference, of 255, of the part of the two pictures that differs most."""
    # A copy's edges may lie a fraction of a pixel off: each pixel is compared with the range of its neighbourhood.
    difference = np.maximum(_beyond(one.small, other.small), _beyond(other.small, one.small)).max(2)
    return float(difference.reshape(GRID, PART, GRID, PART).mean((1, 3)).max())


def _beyond(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How far each value is outside of what the other picture has within one pixel of it."""
    padded = np.pad(of, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = [padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    low, high = np.minimum.reduce(windows), np.maximum.reduce(windows)
    return np.maximum(np.maximum(low - values, values - high), 0)


def are_same(one: Look, other: Look, max_hash_bits: int, max_block: float) -> tuple[bool, float]:
    """Whether one is a copy of the other, and the difference it was decided by."""
    if abs(one.aspect / other.aspect - 1) > ASPECT or hash_distance(one, other) > max_hash_bits:
        return False, 255.0
    difference = round(block_difference(one, other), 2)
    return difference <= max_block, difference
