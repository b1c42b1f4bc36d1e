"""Tells whether two pictures show the same: a perceptual hash finds candidates, a finer check decides.

A copy may be rescaled, recompressed or framed, so it is looked at as it is and without each frame of one colour. Two
screenshots that differ in one dialog or one menu have nearly the same hash, but some small part of them differs much; a
copy differs a little everywhere. The finer check therefore compares part by part, after moving the edges of one of the
two by a few pixels to where they match best, since compression blurs where a frame ends.

The hash is written here, in four lines: imagehash's phash shrinks by Lanczos, counts the constant term in its median,
and brings scipy and PyWavelets. It gives other bits than those that the presets' thresholds were measured with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageChops

BASE = 256  # pixels along each side of what is kept of a picture
SIDE = 128  # and of what is compared, in
GRID = 16  # parts along each side
PART = SIDE // GRID
COARSE = 64  # pixels along each side for aligning
MOVES = (0, 2, 4, 6, 8, 10)  # of an edge, inwards, in pixels of BASE
FRAME = 24  # what differs from the corner by less, of 255, is of its colour
FRAMES = 3  # one inside the other
LEAST = 16  # rows and columns that must be left inside
HASH_SIDE, HASH_LOW = 32, 8
_COSINES = np.cos(np.pi / HASH_SIDE * np.outer(np.arange(HASH_LOW), np.arange(HASH_SIDE) + 0.5))
Box = tuple[int, int, int, int]
WHOLE = (0, 0, BASE, BASE)
SHIFTED = 2.0  # mean difference, of 255, below which two pictures lie on each other already


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one picture to compare it by."""

    bits: np.ndarray  # 64 truth values
    base: Image.Image  # BASE x BASE
    aspect: float

    def part(self, box: Box, side: int) -> Image.Image:
        return self.base.resize((side, side), Image.Resampling.BOX, box=box)


class _Coarse:
    """Holds parts of one picture at the side COARSE. Each is made once; Pillow, too, does columns first."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.base = fingerprint.base
        self.narrowed: dict[tuple[int, int], Image.Image] = {}
        self.parts: dict[Box, np.ndarray] = {}

    def part(self, box: Box) -> np.ndarray:
        if box not in self.parts:
            left, top, right, bottom = box
            if (left, right) not in self.narrowed:
                columns = (left, 0, right, BASE)
                self.narrowed[left, right] = self.base.resize((COARSE, BASE), Image.Resampling.BOX, box=columns)
            rows = (0, top, COARSE, bottom)
            part = self.narrowed[left, right].resize((COARSE, COARSE), Image.Resampling.BOX, box=rows)
            self.parts[box] = np.asarray(part, np.int16)
        return self.parts[box]


def fingerprints_of(pixels: np.ndarray) -> tuple[Fingerprint, ...]:
    """Returns fingerprints of the picture as it is, and without one frame after the other."""
    return tuple(map(_fingerprint, without_frames(pixels)))


def _fingerprint(pixels: np.ndarray) -> Fingerprint:
    image = Image.fromarray(pixels)
    base = image.resize((BASE, BASE), Image.Resampling.BOX)
    return Fingerprint(_bits(image), base, image.width / image.height)


def picture_hash(pixels: np.ndarray) -> int:
    """Returns the 64 bits of the picture's perceptual hash as a number."""
    return int.from_bytes(np.packbits(_bits(Image.fromarray(pixels))).tobytes(), "big")


def _bits(image: Image.Image) -> np.ndarray:
    tiny = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), np.float64)
    low = _COSINES @ tiny @ _COSINES.T
    return (low > np.median(low.ravel()[1:])).ravel()


def without_frames(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the picture, then without the lines along its sides that are all of one colour, and so on inwards."""
    yield pixels
    for _ in range(FRAMES):
        image = Image.fromarray(pixels)
        apart = ImageChops.difference(image, Image.new("RGB", image.size, image.getpixel((0, 0))))
        red, green, blue = apart.split()
        differs = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) >= FRAME
        rows, columns = np.flatnonzero(differs.mean(1) > 0.01), np.flatnonzero(differs.mean(0) > 0.01)
        if len(rows) < LEAST or len(columns) < LEAST:
            return
        inside = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if inside.shape == pixels.shape:
            return
        pixels = np.ascontiguousarray(inside)
        yield pixels


def hash_distance(one: Fingerprint, other: Fingerprint) -> int:
    """Counts how many of the 64 bits differ."""
    return int((one.bits != other.bits).sum())


def part_differences(one: Image.Image, other: Image.Image) -> tuple[float, float]:
    """Returns the mean difference, of 255, of the part that differs most, and of all parts."""
    # A copy's edges may lie a fraction of a pixel off: each pixel is compared with the range of its neighbourhood.
    a, b = np.asarray(one, np.int16), np.asarray(other, np.int16)
    difference = np.maximum(_beyond(a, b), _beyond(b, a)).max(2)
    parts = difference.reshape(GRID, PART, GRID, PART).mean((1, 3))
    return float(parts.max()), float(parts.mean())


def _beyond(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Returns how far each value is outside of what the other picture has within one pixel of it."""
    padded = np.pad(of, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = [padded[y : y + SIDE] for y in range(3)]
    low, high = np.minimum.reduce(rows), np.maximum.reduce(rows)
    low = np.minimum.reduce([low[:, x : x + SIDE] for x in range(3)])
    high = np.maximum.reduce([high[:, x : x + SIDE] for x in range(3)])
    return np.maximum(np.maximum(low - values, values - high), 0)


def align(one: Fingerprint, other: Fingerprint) -> tuple[Box, Box]:
    """Returns the boxes of the two that match best, each of the edges moved inwards in one of the two."""
    fingerprints, boxes = (_Coarse(one), _Coarse(other)), [WHOLE, WHOLE]
    shown = [fingerprint.part(box) for fingerprint, box in zip(fingerprints, boxes)]
    best = np.abs(shown[0] - shown[1]).sum()
    for _ in range(2):
        before = best
        for which, edge in product(range(2), range(4)):
            box = boxes[which]
            for move in MOVES:
                tried = (*box[:edge], move if edge < 2 else BASE - move, *box[edge + 1 :])
                if tried == boxes[which]:
                    continue
                coarse = fingerprints[which].part(tried)
                if (found := np.abs(coarse - shown[1 - which]).sum()) < best:
                    best, boxes[which], shown[which] = found, tried, coarse
        if best == before:  # a second time would find nothing either
            break
    return boxes[0], boxes[1]


def are_same(one: Sequence[Fingerprint], other: Sequence[Fingerprint], rules: Mapping[str, Any]) -> tuple[bool, float]:
    """Tells whether one is a copy of the other, and the largest part's difference that decided it."""
    pairs = [(a, b) for a, b in product(one, other) if abs(a.aspect / b.aspect - 1) <= rules["max_aspect"]]
    near = sorted((hash_distance(a, b), k) for k, (a, b) in enumerate(pairs))
    chosen = [pairs[k] for distance, k in near if distance <= rules["max_hash_bits"]][: rules["max_fits"]]
    least, shifted = 255.0, []
    for aligned in (False, True):  # most copies need no aligning
        for a, b in list(shifted) if aligned else chosen:
            box, other_box = align(a, b) if aligned else (WHOLE, WHOLE)
            largest, mean = part_differences(a.part(box, SIDE), b.part(other_box, SIDE))
            least = min(least, largest)
            limit = min(rules["max_part"], rules["part_base"] + rules["part_slope"] * mean)
            if mean <= rules["max_mean"] and largest <= limit:
                return True, round(largest, 2)
            if mean >= SHIFTED:
                shifted.append((a, b))
    return False, round(least, 2)
