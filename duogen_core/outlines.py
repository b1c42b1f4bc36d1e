"""The outlines of any image: white lines, a pixel wide, on black, as ComfyUI's Canny node draws them.

In:  an image, uint8 [H, W, 3]. Out: the same size and kind, 255 on a line, 0 elsewhere.
Canny's way: smooth, take the gradient, keep it where it is greatest across the line. The gradient is that of the
channel that changes most, so that a line between two colours of one brightness is seen too; ComfyUI's node sees only
grey.
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 14.0  # of the gradient, in grey levels a pixel: white beside cream has 18


def outlines(pixels: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    image = np.pad(pixels.astype(np.float32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    image = (image[:-2] + 2 * image[1:-1] + image[2:]) / 4
    image = (image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:]) / 4
    down = (image[2:, 1:-1] - image[:-2, 1:-1]) / 2
    across = (image[1:-1, 2:] - image[1:-1, :-2]) / 2
    channel = (down**2 + across**2).argmax(-1)[..., None]
    down, across = (np.take_along_axis(each, channel, -1)[..., 0] for each in (down, across))
    size = np.hypot(down, across)
    # Of the eight neighbours, the two that lie across the line: the gradient must be greatest in the middle. Where two
    # pixels share the greatest, the first one is taken, so that a line stays one pixel wide.
    around = np.pad(size, 1)
    turn = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    steps = ((0, 1), (1, 1), (1, 0), (1, -1))
    height, width = size.shape
    before, after = np.zeros_like(size), np.zeros_like(size)
    for number, (dy, dx) in enumerate(steps):
        here = turn == number
        before[here] = around[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width][here]
        after[here] = around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width][here]
    line = (size > threshold) & (size > before + 1e-3) & (size >= after - 1e-3)
    return np.repeat((line * np.uint8(255))[..., None], 3, axis=2)
