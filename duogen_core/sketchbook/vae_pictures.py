"""Pictures for training the bundled VAE: the Sketchbook's colours and edges in every arrangement, not its tasks.

A VAE must not know what a house is. So it sees scenes crowded with shapes, piles of rectangles, ellipses and
triangles, and some pictures with their colours changed, always as random 64-pixel crops; being convolutional, it
then serves any size.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from duogen_core.sketchbook.drawing import Mark, Point, draw_scene, ellipse, paint, rectangle, star
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    Shape,
)

CROP = 64


def crowded_scene(rng: random.Random, canvas: tuple[int, int]) -> np.ndarray:
    background = "cream" if rng.random() < 0.5 else rng.choice(COLOURS)
    colours = [colour for colour in COLOURS if colour != background]
    cells = rng.sample(CELLS, rng.randint(2, 9))
    shapes = tuple(Shape(cell, rng.choice(KINDS), rng.choice(colours), rng.choice(SIZES)) for cell in cells)
    return draw_scene(Scene(shapes, background, canvas))


def random_outline(rng: random.Random, canvas: tuple[int, int]) -> tuple[Point, ...]:
    x, y = rng.uniform(0, canvas[0]), rng.uniform(0, canvas[1])
    rx, ry = rng.uniform(4, 40), rng.uniform(4, 40)
    kind = rng.choice(("rectangle", "rectangle", "ellipse", "star", "polygon"))
    if kind == "rectangle":
        return rectangle(x - rx, y - ry, x + rx, y + ry)
    if kind == "ellipse":
        return ellipse(x, y, rx, rng.choice((rx, ry)))
    if kind == "star":
        return star(x, y, rx)
    return tuple((x + rng.uniform(-rx, rx), y + rng.uniform(-ry, ry)) for _ in range(rng.choice((3, 4))))


def pile_of_marks(rng: random.Random, canvas: tuple[int, int]) -> np.ndarray:
    marks = [Mark(rng.choice(COLOURS), random_outline(rng, canvas)) for _ in range(rng.randint(3, 14))]
    return paint(marks, canvas, "cream" if rng.random() < 0.5 else rng.choice(COLOURS))


def recoloured(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    """Other colours than the palette's: channels swapped, one random palette shifted towards another."""
    order = rng.sample(range(3), 3)
    low, high = rng.uniform(0, 60), rng.uniform(190, 255)
    return (low + pixels[:, :, order].astype(np.float32) / 255 * (high - low)).astype(np.uint8)


def random_crop(rng: random.Random) -> np.ndarray:
    """uint8 [64, 64, 3], with something in it."""
    canvas = CANVASES[0] if rng.random() < 0.7 else rng.choice(CANVASES[1:])
    pixels = (crowded_scene if rng.random() < 0.6 else pile_of_marks)(rng, canvas)
    if rng.random() < 0.15:
        pixels = recoloured(rng, pixels)
    height, width = pixels.shape[:2]
    for _ in range(4):  # a few tries for a crop that is not all background
        left, top = rng.randint(0, width - CROP), rng.randint(0, height - CROP)
        crop = pixels[top : top + CROP, left : left + CROP]
        if np.ptp(crop) > 20:
            break
    return crop


def whole_picture(seed: int, canvas: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: a crowded scene, uncropped, to look at."""
    return crowded_scene(random.Random(f"vae-whole-{seed}-{canvas}"), canvas)


def crop_batch(seed: int, step: int, size: int) -> Tensor:
    """Float [size, 3, 64, 64] in -1..1; a pure function of seed and step, so that a resumed run sees the same."""
    rng = random.Random(f"vae-{seed}-{step}")
    crops = np.stack([random_crop(rng) for _ in range(size)])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
