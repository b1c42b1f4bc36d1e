"""draw: one to three shapes with size, colour and place -> one sentence and one picture.

A user may leave out colour, size or place; the assistant's sentence always states all of them.
truth: {"scene": scene as drawn, "asked": [{"kind", "colour", "size", "cell"} with null where left open], "background"}.
"""

from __future__ import annotations

from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import HELD_OUT, Scene, Shape, scene_to_dict
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
    user_place,
    user_size,
    user_turn,
    with_background,
)

REQUESTS = (
    "Draw {}.",
    "Draw {}.",
    "Please draw {}.",
    "Can you draw {}?",
    "Make a picture of {}.",
    "Show me {}.",
    "I would like {}.",
    "Paint {}.",
)
ANSWERS = ("Here is {}.", "Here is {}.", "I draw {}.")


def asked_shape(rng: Random, shape: Shape) -> tuple[str, dict[str, str | None]]:
    """Words of a user for a shape to be drawn, and what they state."""
    held = (shape.colour, shape.kind) in HELD_OUT
    colour = shape.colour if held or rng.random() > 0.1 else None
    size = shape.size if rng.random() > 0.2 else None
    cell = shape.cell if rng.random() > 0.08 else None
    words = [user_size(rng, size)] if size else []
    words += [user_colour(rng, colour)] if colour else []
    words.append(shape.kind)
    text = f"{article(words[0])} {' '.join(words)}" + (f" {user_place(rng, cell)}" if cell else "")
    return text, {"kind": shape.kind, "colour": colour, "size": size, "cell": cell}


def request(rng: Random, scene: Scene) -> tuple[str, list[dict[str, str | None]], str]:
    """A user's request for the scene, what it states of each shape, and the assistant's answer sentence."""
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    phrases = [asked_shape(rng, shape) for shape in shapes]
    wanted = with_background(join([text for text, _ in phrases]), scene.background)
    if scene.background != "cream" and rng.random() < 0.5:
        wanted = wanted.replace(", on ", " on ")
    # The answer keeps the order of the request: repeating is easier to learn than sorting.
    answer = rng.choice(ANSWERS).format(with_background(join([a_shape(shape) for shape in shapes]), scene.background))
    return rng.choice(REQUESTS).format(wanted), [stated for _, stated in phrases], answer


def sample(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    background = random_background(rng, 0.15)
    count = pick_count(rng, (0.4, 0.35, 0.25))
    scene = random_scene(rng, count, canvas, background=background, held_out=held_out)
    text, asked, answer = request(rng, scene)
    document = conversation([user_turn(rng, text), assistant_turn(answer, Picture(draw_scene(scene)))])
    return Case("draw", document, {"scene": scene_to_dict(scene), "asked": asked, "background": scene.background})
