"""Colour classes and comparison of pictures, region by region.

Pictures are uint8 or float32 [height, width, 3], 0..255; masks are bool [height, width]. Distances are Euclidean in
RGB: the nearest two colours of the palette, white and cream, are 54 apart; an edge pixel lies between its two sides.
"""

from __future__ import annotations

import numpy as np

from duogen_core.sketchbook.scene import PALETTE

PALETTE_RGB = np.array(list(PALETTE.values()), np.float32)
SAME = 36.0  # RGB distance below which two pixels show one colour: two thirds of the way from white to cream


def nearest(pixels: np.ndarray) -> np.ndarray:
    """Index of the nearest palette colour: [..., 3] -> int [...]."""
    return (pixels.astype(np.float32) @ PALETTE_RGB.T - (PALETTE_RGB**2).sum(1) / 2).argmax(-1)


def smooth(pixels: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels; the border is repeated."""
    padded = np.pad(pixels.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def grow(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The mask and everything within `pixels` of it (a square neighbourhood)."""
    for _ in range(pixels):
        tall = mask.copy()
        tall[1:] |= mask[:-1]
        tall[:-1] |= mask[1:]
        mask = tall.copy()
        mask[:, 1:] |= tall[:, :-1]
        mask[:, :-1] |= tall[:, 1:]
    return mask


def shrink(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """What is left of the mask after taking `pixels` off its edge; the border of the picture is no edge."""
    return ~grow(~mask, pixels)


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """RGB distance pixel by pixel, float32 [height, width]."""
    return np.linalg.norm(first.astype(np.float32) - second.astype(np.float32), axis=-1)


def changed(before: np.ndarray, after: np.ndarray, threshold: float = 12.0) -> np.ndarray:
    """Where two ideal pictures differ, bool [height, width]."""
    return distance(before, after) > threshold


def alike(picture: np.ndarray, ideal: np.ndarray, tolerance: float = SAME) -> np.ndarray:
    """Where a picture shows the ideal's colour, bool [height, width].

    At an edge any mixture of the colours within one pixel will do, so an edge may be soft or lie one pixel off. That
    alone would let a thin line vanish: ask the other way round as well, alike(ideal, picture).
    """
    picture, ideal = picture.astype(np.float32), ideal.astype(np.float32)
    off = picture - np.clip(picture, _around(ideal, np.minimum), _around(ideal, np.maximum))
    near = np.einsum("hwc,hwc->hw", off, off) <= tolerance**2
    # A flat area in a somewhat wrong shade is still the colour that was meant.
    return near | ((nearest(picture) == nearest(ideal)) & (distance(picture, ideal) <= 1.6 * tolerance))


def _around(pixels: np.ndarray, pick: np.ufunc) -> np.ndarray:
    """The least or the greatest value of each channel over 3x3 pixels."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = pick(pick(padded[:-2], padded[1:-1]), padded[2:])
    return pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def kept(
    before: np.ndarray, after: np.ndarray, region_mask_of_change: np.ndarray, tolerance: float = SAME, margin: int = 2
) -> float:
    """Share of the pixels outside the region of change (grown by `margin`) that `after` shows as `before` did.

    What is drawn counts as much as the ground it stands on: the share is taken on the majority colour and on everything
    else apart, and the poorer of the two is the result. Otherwise an emptied picture would look well kept.
    """
    if before.shape != after.shape or region_mask_of_change.shape != after.shape[:2]:
        return 0.0
    outside = ~grow(region_mask_of_change, margin)
    same = alike(after, before, tolerance) & alike(before, after, tolerance)
    classes = nearest(before)
    counts = np.bincount(classes[outside], minlength=len(PALETTE_RGB))
    ground = classes == counts.argmax()
    shares = [float(same[part].mean()) for part in (outside & ground, outside & ~ground) if part.sum() >= 24]
    return min(shares, default=1.0)
