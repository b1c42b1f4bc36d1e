"""Which pairs of pictures stay, what that is decided by, and the Document of a pair.

    values, verdict = judge(first, last, preset["pair"])     verdict: None, or (rule, value): the first that refuses
    document_of([Step([first, "words"], last)], meta)

Values: how much changed, how sharp the pictures are, whether they show one scene at all. Pictures are uint8 RGB
[H, W, 3]; no value depends on their size. User: the first picture and what is to happen. Assistant: the second picture.
meta.alignment is true: stage 1 leaves such documents out, stage 2 learns from them (arXiv 2602.00508, on training).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.pictures.duplicates import SIDE, part_differences
from duogen_core.data.runs.shards import Encode, as_jpeg, as_png
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)

SHARP_SIDE = 512  # longer side at which sharpness is measured
TILES = 8  # along each side; a sharp subject before a soft background fills few of them
SHARPEST = 0.1  # the share of tiles that is looked at
RELATED = (48, 32)  # pixels at which layouts are compared
SHIFT = 0.25  # of the picture, by which the camera may have moved
BINS = 6  # of each colour channel


def change(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean difference, of 255, of the part that changed most, and of the whole. Noise hardly counts."""
    largest, mean = part_differences(*(_sized(pixels, (SIDE, SIDE)) for pixels in (one, other)))
    return round(largest, 2), round(mean, 2)


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian in the sharpest tenth of the picture: a blurred picture is sharp nowhere."""
    image = Image.fromarray(pixels).convert("L")
    image.thumbnail((SHARP_SIDE, SHARP_SIDE), Image.Resampling.BOX)
    grey = np.asarray(image, np.float32)
    if min(grey.shape) < TILES + 2:
        return 0.0
    inner = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    height, width = (side // TILES for side in edges.shape)
    tiles = edges[: height * TILES, : width * TILES].reshape(TILES, height, TILES, width).var((1, 3))
    return round(float(np.sort(tiles.ravel())[-max(int(SHARPEST * tiles.size), 1) :].mean()), 1)


def contrast(pixels: np.ndarray) -> float:
    """Standard deviation of the brightness: near 0 for black, white and plain pictures."""
    image = Image.fromarray(pixels).convert("L")
    image.thumbnail((SHARP_SIDE, SHARP_SIDE), Image.Resampling.BOX)
    return round(float(np.asarray(image, np.float32).std()), 2)


def relation(one: np.ndarray, other: np.ndarray) -> float:
    """Between 0 and 1: how much the two share in layout (wherever the camera has moved to) and in colours."""
    small = [np.asarray(_sized(pixels, RELATED), np.float32) for pixels in (one, other)]
    return round((_layout(*(each.mean(2) for each in small)) + _colours(*small)) / 2, 3)


def _layout(one: np.ndarray, other: np.ndarray) -> float:
    """The largest correlation of the parts that overlap when one picture is moved over the other."""
    height, width = one.shape
    best = 0.0
    for y in range(-int(height * SHIFT), int(height * SHIFT) + 1, 2):
        for x in range(-int(width * SHIFT), int(width * SHIFT) + 1, 2):
            a = one[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
            b = other[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
            a, b = a - a.mean(), b - b.mean()
            norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
            best = max(best, float((a * b).sum()) / norm if norm > 1e-3 else 0.0)
    return best


def _colours(one: np.ndarray, other: np.ndarray) -> float:
    """What the two histograms of colours have in common."""
    counts = []
    for pixels in (one, other):
        code = (pixels / 256 * BINS).astype(int).reshape(-1, 3) @ (BINS * BINS, BINS, 1)
        counts.append(np.bincount(code, minlength=BINS**3) / len(code))
    return float(np.minimum(*counts).sum())


def _sized(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(pixels).resize(size, Image.Resampling.BOX)


# ------------------------------------------------------------ the rules

ORDER = ("blank", "blurred", "still", "cut")
Verdict = tuple[str, Any]
WHOLE = -1  # the index of an entry itself, in place of one of its parts


def judge(first: np.ndarray, last: np.ndarray, rules: Mapping[str, Any]) -> tuple[dict[str, Any], Verdict | None]:
    """All values of the pair, and the first rule that refuses it."""
    part, mean = change(first, last)
    values = {
        "contrast": min(contrast(first), contrast(last)),
        "sharpness": min(sharpness(first), sharpness(last)),
        "change": part,
        "mean_change": mean,
        "relation": relation(first, last),
    }
    checks = (
        ("blank", "contrast", values["contrast"] < rules["min_contrast"]),
        ("blurred", "sharpness", values["sharpness"] < rules["min_sharpness"]),
        ("still", "change", part < rules["min_change"]),
        ("cut", "relation", values["relation"] < rules["min_relation"]),
    )
    return values, next(((rule, values[name]) for rule, name, refused in checks if refused), None)


# ------------------------------------------------------------ documents


@dataclass(frozen=True)
class Step:
    """One edit: the pictures and words of the user (no picture when it goes on from the last answer), the result."""

    asked: Sequence[np.ndarray | str]
    result: np.ndarray


def document_of(steps: Sequence[Step], meta: Mapping[str, Any], alignment: bool = True) -> Document:
    turns: list[Turn] = []
    for step in steps:
        parts: list[Part] = [Text(part) if isinstance(part, str) else Picture(part) for part in step.asked]
        turns += [Turn("user", tuple(parts)), Turn("assistant", (Picture(step.result),))]
    return Document(tuple(turns), meta={**meta, **({"alignment": True} if alignment else {})})


def encoding(rules: Mapping[str, Any]) -> Encode:
    """How pictures are stored. rules: `store` of a preset (format, quality)."""
    if rules["format"] == "png":
        return lambda picture: as_png(picture.pixels)
    return lambda picture: as_jpeg(picture.pixels, rules["quality"])
