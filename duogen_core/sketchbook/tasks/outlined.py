"""outlined: draw in given outlines, which a ControlNet sees and the language model does not.

The request names kinds and colours, but no sizes and no places; so the writer states some by chance, and only the
outlines tell the right ones. Part of no training of the language model. truth: {"scene": as drawn}.
`mirrored` turns any other case into one whose images contradict its words: left for right, as the outlines have it.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from duogen_core.document import Document, Picture
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import CELLS, SIZES, Scene, scene_to_dict
from duogen_core.sketchbook.tasks.common import (
    Canvas,
    Case,
    a_shape,
    article,
    assistant_turn,
    conversation,
    join,
    pick_count,
    random_background,
    random_scene,
    user_colour,
    user_turn,
    with_background,
)
from duogen_core.sketchbook.tasks.scenes import ANSWERS, DRAW_REQUESTS

TOLD_RIGHT = 0.35  # how often the assistant's words state the sizes and places of the outlines


def scene_with_unlike_kinds(rng: Random, count: int, canvas: Canvas, background: str, held_out: bool) -> Scene:
    """Two stars of two colours could change places: the request would not tell which is which."""
    while True:
        scene = random_scene(rng, count, canvas, background=background, held_out=held_out)
        if len({shape.kind for shape in scene.shapes}) == count:
            return scene


def sample(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    background = random_background(rng, 0.15)
    scene = scene_with_unlike_kinds(rng, pick_count(rng, (0.3, 0.4, 0.3)), canvas, background, held_out)
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    colours = [user_colour(rng, shape.colour) for shape in shapes]
    wanted = join([f"{article(colour)} {colour} {shape.kind}" for colour, shape in zip(colours, shapes, strict=True)])
    request = rng.choice(DRAW_REQUESTS).format(with_background(wanted, background))
    if rng.random() >= TOLD_RIGHT:
        shapes = [replace(shape, cell=rng.choice(CELLS), size=rng.choice(SIZES)) for shape in shapes]
    answer = rng.choice(ANSWERS).format(with_background(join([a_shape(shape) for shape in shapes]), background))
    document = conversation([user_turn(rng, request), assistant_turn(answer, Picture(draw_scene(scene)))])
    return Case("outlined", document, {"scene": scene_to_dict(scene)})


def mirrored(document: Document) -> Document:
    """The same conversation with every image turned left for right."""
    turns = []
    for turn in document.turns:
        parts = [
            Picture(np.ascontiguousarray(part.pixels[:, ::-1])) if isinstance(part, Picture) else part
            for part in turn.parts
        ]
        turns.append(replace(turn, parts=tuple(parts)))
    return replace(document, turns=tuple(turns))
