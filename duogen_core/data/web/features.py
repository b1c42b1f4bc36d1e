"""Numbers that tell photographs, GUI screenshots and document pages apart, from the pixels alone.

Screens are drawn: neighbouring pixels are equal, edges lie along rows and columns, lines run far. Photographs have
noise and soft slopes everywhere. Document pages are ink on paper: one light colour, little else, short marks in rows.
How light a picture is says nothing, since themes may be dark. Rows are sampled: a large picture costs no more than a
small one.
"""

from __future__ import annotations

import numpy as np

NAMES = (
    "equal", "soft", "sharp", "paper", "top", "colours", "saturation", "long_lines", "blank_rows", "ink", "upright",
    "noise",
)  # fmt: skip
ROWS = 240  # rows that are looked at
BITS = 4  # of a colour channel, for counting colours


def features(pixels: np.ndarray) -> np.ndarray:
    """One number for each of NAMES, most of them shares between 0 and 1."""
    height, width = pixels.shape[:2]
    rows = np.linspace(0, height - 1, min(ROWS, height)).astype(int)
    sampled = pixels[rows].astype(np.int16)
    step = np.abs(np.diff(sampled, axis=1)).max(2) if width > 1 else np.zeros((len(rows), 1), np.int16)
    below = pixels[np.minimum(rows + 1, height - 1)].astype(np.int16)
    down = np.abs(below - sampled).max(2)
    codes = (sampled >> (8 - BITS)).astype(np.int32)
    counts = np.bincount((codes[..., 0] << 2 * BITS | codes[..., 1] << BITS | codes[..., 2]).ravel())
    shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
    brightest, darkest = sampled.max(2), sampled.min(2)
    saturation = (brightest - darkest) / 255
    grey = sampled.mean(2)
    paper = (darkest >= 225) & (brightest - darkest <= 20)
    blank = paper.mean(1) >= 0.98
    return np.array(
        [
            (step <= 1).mean(),
            ((step > 2) & (step < 24)).mean(),
            (step >= 64).mean(),
            paper.mean(),
            shares[0],
            np.log1p(np.searchsorted(np.cumsum(shares), 0.95)) / 8,
            saturation.mean(),
            _long_runs(down >= 12, width),
            blank.mean(),
            (grey < 128)[~blank].mean() if (~blank).any() else 0.0,
            min(height / width, 3.0) / 3,
            ((step >= 1) & (step <= 4)).mean(),
        ]
    )


def _long_runs(edges: np.ndarray, width: int) -> float:
    """The share of rows in which an edge runs along at least a fifth of the width without a gap."""
    need = max(int(width * 0.2), 8)
    if width <= need:
        return 0.0
    sums = np.cumsum(np.pad(edges, ((0, 0), (1, 0))), axis=1)
    return float(((sums[:, need:] - sums[:, :-need]) >= need).any(1).mean())
