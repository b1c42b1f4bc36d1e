"""Reads a scene from pixels without knowing what was asked for, and compares images region by region.

In:  an image, uint8 [height, width, 3], drawn by a model or by `drawing.draw_scene`.
Out: a `Reading`: the Scene that is seen, whether the image is nothing but that scene (`clean`), and what spoilt it.

How it reads. The background is the colour between the cells, where no shape reaches. In each cell the pixels unlike
the background are laid over the renderer's own masks of eight kinds in two sizes, moved to where the pixels are (in
quarter pixels); the mask with the greatest intersection over union is the shape, the median of its interior is the
colour. Whatever does not fit (a poor overlap, two colours in one shape, marks beside the shapes, a colour between two)
makes the image unclean, so that a smear never counts as right.

Masks are bool [height, width]. Distances are Euclidean in RGB, 0 to 255 a channel: the nearest two colours of the
palette, white and cream, are 54 apart; an edge pixel lies between its two sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from duogen_core.sketchbook.drawing import RADIUS, Mark, cell_centre, outline, paint, unit
from duogen_core.sketchbook.scene import (
    CELLS,
    COLOURS,
    KINDS,
    PALETTE_RGB,
    SIZES,
    Scene,
    Shape,
    nearest,
)

# ---------------------------------------------------------------- comparing images

SAME = 36.0  # RGB distance below which two pixels show one colour: two thirds of the way from white to cream


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


def share_kept(
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


# ---------------------------------------------------------------- reading a scene

PHASES = 4  # positions per pixel at which the masks are kept
MIN_OVERLAP = 0.80  # intersection over union of a shape with its mask; three quarters of a shape reach 0.75
MIN_LEAD = 0.03  # by which the best mask must surpass those of other kinds; what lies between two kinds is neither
MAX_OFFSET = 4.0  # pixels (of the 128 canvas) between a shape's centre and its cell's
MAX_COLOUR_ERROR = 50.0  # RGB distance of a shape's colour from the palette; cream and white are 54 apart
MAX_STRAY = 14  # pixels (of the 128 canvas) that belong to nothing
MAX_SOFTNESS = 0.33  # how far colour has run over the edge; 0 when sharp, 0.15 after a blur of sigma 1.3, 0.37 of 3
HALO = 3  # pixels around a shape where a codec's ringing is forgiven, but not the shape's own full colour
CONTRAST = 34.0  # RGB distance from the background at which a smoothed pixel counts as drawn
NAMES = tuple((kind, size) for size in SIZES for kind in KINDS)


@dataclass(frozen=True)
class Reading:
    """What was seen. `confidence` is the poorest overlap of a shape with its mask, `lead` its least
    advantage over another kind; `stray` counts pixels left over."""

    scene: Scene
    problems: tuple[str, ...] = ()
    confidence: float = 1.0
    lead: float = 1.0
    stray: int = 0

    @property
    def clean(self) -> bool:
        return not self.problems

    def shows(self, scene: Scene) -> bool:
        """True when the picture is exactly this scene."""
        return self.clean and self.scene == scene


def read_scene(pixels: np.ndarray) -> Scene:
    """The scene in a picture, as well as it can be told; use `read` to learn whether the picture is clean."""
    return read(pixels).scene


def read(pixels: np.ndarray) -> Reading:
    """Reads a picture, uint8 [height, width, 3]."""
    pixels = np.asarray(pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 48:
        raise ValueError(f"A Sketchbook image is [height, width, 3], 48 pixels or more each way, not {pixels.shape}.")
    canvas = (pixels.shape[1], pixels.shape[0])
    scale = unit(canvas)
    colours = pixels.astype(np.float32)
    problems: list[str] = []

    empty = between_cells(canvas)
    votes = np.bincount(nearest(colours[empty]), minlength=len(COLOURS))
    background = int(votes.argmax())
    if votes[background] < 0.8 * votes.sum():
        problems.append("the background is not of one colour")
    ground = np.median(colours[empty][nearest(colours[empty]) == background], axis=0)
    if np.linalg.norm(ground - PALETTE_RGB[background]) > MAX_COLOUR_ERROR / 2:
        problems.append("the background is not a colour of the palette")

    drawn = np.linalg.norm(smooth(colours) - ground, axis=-1) > CONTRAST
    contrast = np.linalg.norm(colours - ground, axis=-1)
    leftover, spilt, bodies = drawn.copy(), np.zeros_like(drawn), np.zeros_like(drawn)
    shapes: list[Shape] = []
    overlaps, leads = [1.0], [1.0]
    for cell in CELLS:
        window = _window(cell, canvas)
        if drawn[window].sum() < 40 * scale**2:
            continue
        found = _read_cell(colours, drawn, ground, cell, canvas)
        if found is None:
            continue  # too little or too pale to be a shape: it stays in `leftover`
        overlaps.append(found.overlap)
        leads.append(found.lead)
        problems += found.problems
        around = grow(found.mask, HALO)
        leftover &= ~around
        bodies |= grow(found.mask)
        spilt |= around & (contrast > 0.6 * np.linalg.norm(PALETTE_RGB[found.colour] - ground))
        if found.colour == background:
            problems.append(f"the mark at {cell} can hardly be told from the background")
        else:
            kind, size = NAMES[found.name]
            shapes.append(Shape(cell, kind, COLOURS[found.colour], size))

    leftover &= grow(shrink(leftover))  # flecks less than three pixels wide (smoothed) are noise
    stray = int((leftover | (spilt & ~bodies)).sum())
    if stray > MAX_STRAY * scale**2:
        problems.append(f"{stray} pixels belong to no shape")
    scene = Scene(tuple(shapes), COLOURS[background], canvas)
    return Reading(scene, tuple(problems), min(overlaps), min(leads), stray)


@dataclass(frozen=True)
class _Found:
    name: int  # index into NAMES
    colour: int  # index into COLOURS
    overlap: float
    lead: float
    mask: np.ndarray  # bool [height, width], the renderer's shape moved to where it was seen
    problems: tuple[str, ...]


def _read_cell(
    colours: np.ndarray, drawn: np.ndarray, ground: np.ndarray, cell: str, canvas: tuple[int, int]
) -> _Found | None:
    rows, columns = window = _window(cell, canvas)
    inside = shrink(drawn[window], 2)
    sample = colours[window][inside if inside.sum() >= 9 else drawn[window]]
    ink = np.median(sample, axis=0)
    axis = ink - ground
    if (length := float(axis @ axis)) < (CONTRAST / 2) ** 2:
        return None
    cover = ((colours[window] - ground) @ axis / length) > 0.5
    cover = _own(cover)
    area = int(cover.sum())
    if area < 80 * unit(canvas) ** 2:  # the smallest, a small star, has 240
        return None
    ys, xs = np.nonzero(cover)
    seen = np.array([ys.mean() + 0.5 + rows.start, xs.mean() + 0.5 + columns.start])

    # Lay every mask with its centre of mass over the pixels' centre of mass.
    bank, masses, half = _masks(unit(canvas))
    centres = seen - masses  # [names, 2], row and column of the shape's centre
    whole = np.floor(centres).astype(int)
    phase = np.floor((centres - whole) * PHASES).astype(int)
    patches = bank[phase[:, 0], phase[:, 1], np.arange(len(NAMES))]  # [names, side, side]
    board = np.zeros((canvas[1] + 2 * half, canvas[0] + 2 * half), bool)
    within = np.zeros_like(board)
    here = slice(rows.start + half, rows.stop + half), slice(columns.start + half, columns.stop + half)
    board[here], within[here] = cover, True  # what lies in the next cell is that cell's
    side = 2 * half + 1
    corners = np.clip(whole, 0, np.array([canvas[1], canvas[0]]) - 1)
    pictures = np.stack([board[y : y + side, x : x + side] for y, x in corners])
    both = (patches & pictures).sum((1, 2))
    visible = patches & np.stack([within[y : y + side, x : x + side] for y, x in corners])
    overlap = both / np.maximum(visible.sum((1, 2)) + area - both, 1)
    name = int(overlap.argmax())
    lead = float(overlap[name] - max(overlap[i] for i, (kind, _) in enumerate(NAMES) if kind != NAMES[name][0]))

    mask = np.zeros_like(board)
    y, x = corners[name]
    mask[y : y + side, x : x + side] = patches[name]
    mask = mask[half : half + canvas[1], half : half + canvas[0]]
    core = shrink(mask, 2)
    body = colours[core if core.sum() >= 20 else shrink(mask)]
    ink = np.median(body, axis=0)
    distances = np.linalg.norm(PALETTE_RGB - ink, axis=1)
    nearest_two = np.sort(distances)[:2]
    problems = []
    if overlap[name] < MIN_OVERLAP:
        problems.append(f"the mark at {cell} has no clean outline")
    elif lead < MIN_LEAD:
        problems.append(f"the mark at {cell} lies between two kinds of shape")
    offset = centres[name] - np.array(cell_centre(cell, canvas)[::-1])
    if np.abs(offset).max() > MAX_OFFSET * unit(canvas):
        problems.append(f"the shape at {cell} is not in the middle of its cell")
    if nearest_two[0] > min(MAX_COLOUR_ERROR, 0.8 * nearest_two[1]):
        problems.append(f"the colour at {cell} is not clearly one of the palette")
    uneven = np.linalg.norm(body - ink, axis=1) > MAX_COLOUR_ERROR
    if uneven.mean() > 0.08:
        problems.append(f"the shape at {cell} is not of one colour")
    colour = int(distances.argmin())
    axis = PALETTE_RGB[colour] - ground
    if _softness((colours[window] - ground) @ axis / max(axis @ axis, 1.0), mask[window]) > MAX_SOFTNESS:
        problems.append(f"the edge at {cell} is smeared")
    return _Found(name, colour, float(overlap[name]), lead, mask, tuple(problems))


def _softness(cover: np.ndarray, mask: np.ndarray) -> float:
    """Colour in a rim around the shape, and colour that lacks in the rim inside it; cover is 1 for full colour."""
    outside, inside = grow(mask, HALO) & ~grow(mask), shrink(mask) & ~shrink(mask, HALO)
    if not outside.any() or not inside.any():
        return 0.0
    return float(np.median(cover[outside].clip(0, 1)) + 1 - np.median(cover[inside].clip(0, 1)))


def _own(cover: np.ndarray) -> np.ndarray:
    """The part that hangs together with what is inside the cell: a neighbour's rim peeping in over the edge is not."""
    own = np.zeros_like(cover)
    own[3:-3, 3:-3] = cover[3:-3, 3:-3]
    for _ in range(4):
        own = grow(own) & cover
    return own


def _window(cell: str, canvas: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a cell."""
    row, column = divmod(CELLS.index(cell), 3)
    width, height = canvas
    return (
        slice(round(height * row / 3), round(height * (row + 1) / 3)),
        slice(round(width * column / 3), round(width * (column + 1) / 3)),
    )


@lru_cache(maxsize=8)
def _masks(scale: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The renderer's shapes for a canvas whose unit is `scale`.

    Returns bool [PHASES, PHASES, names, side, side] (phase of the centre down and across; the centre lies in the
    middle pixel), the centre of mass relative to the shape's centre [names, 2] (down, across), and side // 2.
    """
    half = math.ceil(max(RADIUS.values()) * scale * 1.12) + 2
    side = 2 * half + 1
    bank = np.zeros((PHASES, PHASES, len(NAMES), side, side), bool)
    masses = np.zeros((len(NAMES), 2))
    for index, (kind, size) in enumerate(NAMES):
        for down in range(PHASES):
            for across in range(PHASES):
                cx, cy = half + (across + 0.5) / PHASES, half + (down + 0.5) / PHASES
                mark = Mark("black", outline(kind, cx, cy, RADIUS[size] * scale))
                mask = paint([mark], (side, side), "white")[..., 0] < 146
                bank[down, across, index] = mask
                ys, xs = np.nonzero(mask)
                masses[index] += np.array([ys.mean() + 0.5 - cy, xs.mean() + 0.5 - cx]) / PHASES**2
    return bank, masses, half


@lru_cache(maxsize=8)
def between_cells(canvas: tuple[int, int]) -> np.ndarray:
    """Where no shape of a scene reaches, bool [height, width]: these pixels show the background."""
    marks = []
    for cell in CELLS:
        cx, cy = cell_centre(cell, canvas)
        marks += [Mark("black", outline(kind, cx, cy, RADIUS["large"] * unit(canvas))) for kind in KINDS]
    free = (paint(marks, canvas, "white") > 240).all(-1)
    inner = shrink(free)
    return inner if inner.sum() >= 0.04 * free.size else free
