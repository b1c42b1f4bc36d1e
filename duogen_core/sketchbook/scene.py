"""What a Sketchbook image is made from: shapes of one colour and one size in nine cells on a plain background.

A `Scene` describes an image completely and exactly: `drawing.draw_scene(scene)` turns it into pixels,
`checker.read_scene(pixels)` turns pixels back into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "orange": (240, 140, 40),
    "yellow": (245, 210, 60),
    "green": (60, 160, 75),
    "blue": (50, 110, 215),
    "purple": (140, 80, 190),
    "pink": (240, 140, 180),
    "brown": (130, 85, 50),
    "black": (40, 40, 40),
    "white": (252, 252, 252),
    "grey": (150, 150, 150),
    "cream": (238, 228, 206),
}
COLOURS = tuple(PALETTE)
PALETTE_RGB = np.array(list(PALETTE.values()), np.float32)
KINDS = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "hexagon")
SIZES = ("small", "large")
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
CANVASES = ((128, 128), (160, 96), (96, 160))  # (width, height) in pixels

# These pairs never occur in a training sample, so that a request for one of them measures generalisation.
HELD_OUT = frozenset(
    {
        ("green", "star"),
        ("blue", "heart"),
        ("orange", "diamond"),
        ("red", "hexagon"),
        ("purple", "cross"),
        ("pink", "triangle"),
    }
)


@dataclass(frozen=True, order=True)
class Shape:
    """One shape; `cell` is one of CELLS. A cell holds at most one shape."""

    cell: str
    kind: str
    colour: str
    size: str = "large"

    @property
    def held_out(self) -> bool:
        return (self.colour, self.kind) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """Shapes ordered by cell (top left first), so that equal pictures are equal scenes; canvas is (width, height)."""

    shapes: tuple[Shape, ...] = ()
    background: str = "cream"
    canvas: tuple[int, int] = (128, 128)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.shapes, key=lambda shape: CELLS.index(shape.cell)))
        cells = [shape.cell for shape in ordered]
        if len(set(cells)) != len(cells):
            raise ValueError(f"A cell holds at most one shape, but the scene has shapes at {', '.join(cells)}.")
        if any(shape.colour == self.background for shape in ordered):
            raise ValueError(f"A shape cannot be seen on a background of its own colour ({self.background}).")
        object.__setattr__(self, "shapes", ordered)

    @property
    def free_cells(self) -> tuple[str, ...]:
        taken = {shape.cell for shape in self.shapes}
        return tuple(cell for cell in CELLS if cell not in taken)

    def at(self, cell: str) -> Shape | None:
        return next((shape for shape in self.shapes if shape.cell == cell), None)

    def add(self, shape: Shape) -> Scene:
        return replace(self, shapes=(*self.shapes, shape))

    def remove(self, shape: Shape) -> Scene:
        return replace(self, shapes=tuple(other for other in self.shapes if other != shape))


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    return {
        "shapes": [asdict(shape) for shape in scene.shapes],
        "background": scene.background,
        "canvas": list(scene.canvas),
    }


def scene_from_dict(data: Mapping[str, Any]) -> Scene:
    shapes = tuple(Shape(**shape) for shape in data["shapes"])
    width, height = data["canvas"]
    return Scene(shapes, data["background"], (width, height))


# ------------------------------------------------------------ common


def nearest(pixels: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest palette colour: [..., 3] -> int [...], an index into COLOURS."""
    # |p - c|^2 is least where p.c - |c|^2 / 2 is greatest: one matrix product instead of a difference per colour.
    return (pixels.astype(np.float32) @ PALETTE_RGB.T - (PALETTE_RGB**2).sum(1) / 2).argmax(-1)
