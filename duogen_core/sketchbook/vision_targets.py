"""What the vision tower learns to see (vision.py): Sketchbook pictures, and for every picture token the words it is.

A shape, a part of a thing and a marker are told by exactly one token each, so that counting them is counting tokens:
a shape by the token at the middle of its cell, a part by the one that shows most of it, what lies on a board by its
cell. All other tokens are "background".

Out: pixels uint8 [n, H, W, 3], words int [n, tokens, attributes of WORDS], as indices, or NONE: no word of this
attribute, or ANY: not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np

from duogen_core.sketchbook.boards import Board, draw_board, random_board
from duogen_core.sketchbook.drawing import Thing, cell_centre, draw_scene, paint
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    HELD_OUT,
    KINDS,
    PALETTE,
    SIZES,
    Scene,
    Shape,
)
from duogen_core.sketchbook.things import part_names, things

TOKEN = 32  # pixels of a picture token's side
NONE, ANY = -1, -2
PARTS = tuple(sorted({*part_names(things().values())} - {*KINDS}))
DIGITS = ("1", "2", "3", "4", "5")
WORDS: Mapping[str, tuple[str, ...]] = {
    "what": (*KINDS, *PARTS, "marker", "goal", "wall", "background"),
    "colour": COLOURS,
    "size": SIZES,
    "row": ("top", "centre", "bottom"),
    "column": ("left", "centre", "right"),
    "thing": tuple(things()),
    "board column": DIGITS,
    "board row": DIGITS,
}
BACKGROUND = len(WORDS["what"]) - 1
KINDS_OF_PICTURE = ("scene", "thing", "board")


def ground(canvas: tuple[int, int], colour: str) -> np.ndarray:
    """int [rows, columns, attributes]: nothing but background."""
    words = np.full((canvas[1] // TOKEN, canvas[0] // TOKEN, len(WORDS)), NONE)
    words[..., :2] = BACKGROUND, COLOURS.index(colour)
    return words


def random_scene(rng: Random, canvas: tuple[int, int]) -> Scene:
    """Any number of shapes, mostly on cream; never a held-out pair."""
    background = "cream" if rng.random() < 0.7 else rng.choice(COLOURS)
    shapes = []
    for cell in rng.sample(CELLS, rng.choice((1, 2, 3, 4, 5, 6, 9))):
        colour, kind = background, ""
        while colour == background or (colour, kind) in HELD_OUT:
            colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        shapes.append(Shape(cell, kind, colour, rng.choice(SIZES)))
    return Scene(tuple(shapes), background, canvas)


def scene_words(scene: Scene) -> np.ndarray:
    """int [tokens, attributes]; an empty cell is a "background" in its place."""
    words = ground(scene.canvas, scene.background)
    for number, cell in enumerate(CELLS):
        x, y = (int(middle) // TOKEN for middle in cell_centre(cell, scene.canvas))
        shape = scene.at(cell)
        if shape:
            words[y, x, :3] = KINDS.index(shape.kind), COLOURS.index(shape.colour), SIZES.index(shape.size)
        words[y, x, 3:5] = divmod(number, 3)
    return words.reshape(-1, len(WORDS))


def thing_words(thing: Thing, colours: Mapping[str, str], steps: int, canvas: tuple[int, int]) -> np.ndarray:
    """int [tokens, attributes]; every token says which thing it is, one token a part says part and colour."""
    words = ground(canvas, "cream")
    words[..., 2:5] = ANY
    words[..., 5] = WORDS["thing"].index(thing.name)
    free = np.ones(words.shape[:2], dtype=bool)
    shown = visible_parts(thing, steps, canvas)
    for number in sorted(range(steps), key=lambda k: shown[k].sum()):  # the smallest chooses first
        part = thing.parts[number]
        y, x = np.unravel_index(np.where(free, shown[number], -1).argmax(), free.shape)
        free[y, x] = False
        words[y, x, :2] = WORDS["what"].index(part.name), COLOURS.index(colours[part.name])
    return words.reshape(-1, len(WORDS))


def visible_parts(thing: Thing, steps: int, canvas: tuple[int, int]) -> np.ndarray:
    """How much of a part every token shows, [steps, rows, columns]; parts painted in a colour each, to tell them."""
    colours = {part.name: COLOURS[number] for number, part in enumerate(thing.parts)}
    pixels = paint(thing.marks(colours, steps, canvas), canvas)
    parts = palette_index(pixels)
    rows, columns = canvas[1] // TOKEN, canvas[0] // TOKEN
    tokens = parts.reshape(rows, TOKEN, columns, TOKEN)
    return np.stack([(tokens == number).sum((1, 3)) for number in range(steps)])


def board_words(board: Board) -> np.ndarray:
    """int [tokens, attributes]; a cell of the board is a token. A marker at the goal hides it."""
    words = ground(board.canvas, "cream")
    for row in range(board.rows):
        for column in range(board.columns):
            words[row, column, 6:] = column, row
    marks = [("goal", board.goal, board.goal_colour), ("marker", board.marker, board.marker_colour)]
    for what, (column, row), colour in [*(("wall", place, board.wall_colour) for place in board.walls), *marks]:
        words[row, column, :2] = WORDS["what"].index(what), COLOURS.index(colour)
    words[..., 3:5] = ANY
    return words.reshape(-1, len(WORDS))


def palette_index(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> int [...]: the nearest palette colour."""
    palette = np.array(list(PALETTE.values()), dtype=np.int32)
    return ((pixels[..., None, :].astype(np.int32) - palette) ** 2).sum(-1).argmin(-1)


def random_picture(rng: Random, canvas: tuple[int, int]) -> tuple[str, np.ndarray, np.ndarray]:
    """What kind of picture it is, its pixels and its words."""
    kind = rng.choices(KINDS_OF_PICTURE, (5, 3, 2))[0]
    if kind == "scene":
        scene = random_scene(rng, canvas)
        return kind, draw_scene(scene), scene_words(scene)
    if kind == "thing":
        thing = rng.choice(list(things().values()))
        colours, steps = thing.choose_colours(rng), rng.randint(1, thing.steps)
        return kind, paint(thing.marks(colours, steps, canvas), canvas), thing_words(thing, colours, steps, canvas)
    board = random_board(rng, canvas)
    for _ in range(rng.choice((0, 0, 1, 2, 4))):  # some on the way or at the goal
        board = rng.choice(
            [moved for name in ("right", "down", "left", "up") if (moved := board.move(name))] or [board]
        )
    return kind, draw_board(board), board_words(board)


def smudged(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """As a model may have drawn it: half of the pictures a little blurred, and with noise."""
    if rng.random() < 0.5:
        return pixels
    soft = pixels.astype(np.float32)
    if rng.random() < 0.5:
        edge = np.pad(soft, ((1, 1), (1, 1), (0, 0)), "edge")
        soft = (edge[:-2, 1:-1] + edge[2:, 1:-1] + edge[1:-1, :-2] + edge[1:-1, 2:] + soft) / 5
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(soft.shape, dtype=np.float32)
    return (soft + rng.uniform(0, 8) * noise).clip(0, 255).round().astype(np.uint8)


def random_pictures(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pixels, words and kinds int [n] (of KINDS_OF_PICTURE) of `count` pictures of one size."""
    canvas = rng.choices(CANVASES, (8, 1, 1))[0]
    kinds, pixels, words = zip(*(random_picture(rng, canvas) for _ in range(count)), strict=True)
    smudges = [smudged(picture, rng) for picture in pixels]
    return np.stack(smudges), np.stack(words), np.array([KINDS_OF_PICTURE.index(kind) for kind in kinds])
