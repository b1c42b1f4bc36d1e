"""Turns marks into pixels. A mark is a filled polygon of one palette colour; an image is marks painted in order.

Coordinates are pixels of the canvas, x to the right, y down. Painted four times larger and averaged down, so edges are
smooth and the same everywhere. Pixels are uint8 [height, width, 3].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from duogen_core.sketchbook.scene import (
    CELLS,
    PALETTE,
    Scene,
    Shape,
)

OVERSAMPLE = 4  # Pillow does not smooth polygons; drawing larger and averaging does, the same on every machine
RADIUS = {"small": 12.5, "large": 20.0}  # of a shape on a canvas whose shorter side is 128
Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    colour: str
    points: tuple[Point, ...]


def paint(marks: Iterable[Mark], canvas: tuple[int, int], background: str = "cream") -> np.ndarray:
    """Paint marks in order; returns uint8 [height, width, 3]."""
    width, height = canvas
    image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE), PALETTE[background])
    pen = ImageDraw.Draw(image)
    for mark in marks:
        pen.polygon([(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in mark.points], fill=PALETTE[mark.colour])
    return np.asarray(image.reduce(OVERSAMPLE))


def unit(canvas: tuple[int, int]) -> float:
    """The length on this canvas of one pixel of the 128x128 canvas."""
    return min(canvas) / 128


def cell_centre(cell: str, canvas: tuple[int, int]) -> Point:
    row, column = divmod(CELLS.index(cell), 3)
    return canvas[0] * (2 * column + 1) / 6, canvas[1] * (2 * row + 1) / 6


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, corners: int = 72) -> tuple[Point, ...]:
    ry = rx if ry is None else ry
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def rectangle(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def star(cx: float, cy: float, radius: float, inner: float = 0.45) -> tuple[Point, ...]:
    corners = []
    for k in range(10):
        reach = radius if k % 2 == 0 else radius * inner
        angle = math.pi * k / 5 - math.pi / 2
        corners.append((cx + reach * math.cos(angle), cy + reach * math.sin(angle)))
    return tuple(corners)


def heart(cx: float, cy: float, radius: float) -> tuple[Point, ...]:
    corners = []
    for k in range(72):
        t = 2 * math.pi * k / 72
        x = math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
        corners.append((cx + radius * x, cy + radius * (0.97 * y - 0.06)))
    return tuple(corners)


def outline(kind: str, cx: float, cy: float, radius: float) -> tuple[Point, ...]:
    """Corners of one of the eight shapes, centred, reaching about `radius` each way."""
    if kind == "circle":
        return ellipse(cx, cy, radius)
    # The factors give the eight kinds about the same visual size.
    if kind == "square":
        half = 0.86 * radius
        return rectangle(cx - half, cy - half, cx + half, cy + half)
    if kind == "triangle":
        return (cx, cy - radius), (cx + radius, cy + 0.85 * radius), (cx - radius, cy + 0.85 * radius)
    if kind == "diamond":
        return (cx, cy - radius), (cx + 0.75 * radius, cy), (cx, cy + radius), (cx - 0.75 * radius, cy)
    if kind == "star":
        return star(cx, cy + 0.05 * radius, 1.08 * radius)
    if kind == "heart":
        return heart(cx, cy, radius)
    if kind == "cross":
        arm = 0.33 * radius
        near, far = (-arm, arm), (-radius, radius)
        right = [(far[1], near[0]), (far[1], near[1]), (near[1], near[1])]
        corners = [(near[1], near[0]), *right]
        for _ in range(3):  # a quarter turn of the last three corners gives the next arm
            corners += [(-y, x) for x, y in corners[-3:]]
        return tuple((cx + x, cy + y) for x, y in corners[:-1])
    if kind == "hexagon":
        return tuple(
            (cx + radius * math.cos(math.pi * k / 3), cy + radius * math.sin(math.pi * k / 3)) for k in range(6)
        )
    raise ValueError(f"Sketchbook has no shape called '{kind}'.")


def shape_mark(shape: Shape, canvas: tuple[int, int]) -> Mark:
    cx, cy = cell_centre(shape.cell, canvas)
    return Mark(shape.colour, outline(shape.kind, cx, cy, RADIUS[shape.size] * unit(canvas)))


def draw_scene(scene: Scene) -> np.ndarray:
    """The one picture of a scene: uint8 [height, width, 3]."""
    return paint((shape_mark(shape, scene.canvas) for shape in scene.shapes), scene.canvas, scene.background)


def fitted(points: Sequence[Point], canvas: tuple[int, int]) -> tuple[Point, ...]:
    """Points drawn for the 128x128 canvas, moved to the centred square of another canvas."""
    scale = unit(canvas)
    left, top = (canvas[0] - 128 * scale) / 2, (canvas[1] - 128 * scale) / 2
    return tuple((left + x * scale, top + y * scale) for x, y in points)
