"""describe: questions that want words only: about a picture, or plain ones without a picture. Nothing is drawn.

truth: {"question": "scene" | "count" | "colour" | "place" | "cell" | "thing" | "plain" | "unknown",
"answer": the ideal text, "key": strings which a right answer contains, "scene": the scene or null}; for "scene" the key
is the words of every shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.cases import Case, scene_to_dict
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import (
    CELLS,
    KINDS,
    Scene,
    Shape,
)
from duogen_core.sketchbook.tasks.common import (
    PLACES,
    PLURALS,
    Canvas,
    a_shape,
    assistant_turn,
    conversation,
    join,
    pick_count,
    random_scene,
    shape_words,
    user_place,
    user_turn,
    with_background,
)
from duogen_core.sketchbook.tasks.plain import plain_question, unknown_thing
from duogen_core.sketchbook.things import ideal_picture, things

DESCRIBE = (
    "What do you see?",
    "What is in this picture?",
    "Describe the picture.",
    "Describe this picture, please.",
    "Which shapes are in the picture?",
    "Tell me what you see.",
)
COUNT = ("How many {} are there?", "How many {} do you see?", "Count the {}.", "How many {} are in the picture?")


def describe_scene(scene: Scene) -> str:
    """The shapes in cell order, then the background where it is not cream."""
    if not scene.shapes:
        return "I see no shapes."
    return f"I see {with_background(join([a_shape(shape) for shape in scene.shapes]), scene.background)}."


def counted(count: int, colour: str | None, kind: str | None) -> str:
    """ "2 red stars", "1 star", "0 red shapes"."""
    noun = (kind or "shape") if count == 1 else PLURALS[kind] if kind else "shapes"
    return f"{count} {colour} {noun}" if colour else f"{count} {noun}"


def chosen(scene: Scene, colour: str | None, kind: str | None) -> list[Shape]:
    return [shape for shape in scene.shapes if colour in (None, shape.colour) and kind in (None, shape.kind)]


def seen(shapes: Sequence[Shape]) -> str:
    """The shapes that are counted, one by one, before their number: to list is easier than to count at a glance."""
    return f"I see {join([f'the {shape_words(shape)}' for shape in shapes])}." if shapes else ""


def sample_count(rng: Random, scene: Scene) -> tuple[str, str, list[str]]:
    shape = rng.choice(scene.shapes)
    what = rng.random()
    colour, kind = shape.colour if what < 0.5 else None, shape.kind if 0.5 <= what < 0.85 else None
    if what >= 0.85 and rng.random() < 0.4:
        kind = rng.choice(KINDS)
    shapes = chosen(scene, colour, kind)
    number = len(shapes)
    noun = counted(2, colour, kind)[2:]
    answer = f"{seen(shapes)} There {'is' if number == 1 else 'are'} {counted(number, colour, kind)}.".strip()
    return rng.choice(COUNT).format(noun), answer, [counted(number, colour, kind)]


def sample_one(rng: Random, scene: Scene, question: str) -> tuple[str, str, list[str]]:
    """Question, answer and key about one shape or one cell of the scene."""
    if question == "cell":
        cell = rng.choice(scene.shapes).cell if rng.random() < 0.75 else rng.choice(CELLS)
        shape = scene.at(cell)
        text = rng.choice(("What is {}?", "Which shape is {}?", "What do you see {}?")).format(user_place(rng, cell))
        if shape is None:
            return text, f"Nothing is {PLACES[cell]}.", ["Nothing"]
        return text, f"A {shape_words(shape)}.", [f"{shape.size} {shape.colour} {shape.kind}"]
    unique = [shape for shape in scene.shapes if len(chosen(scene, None, shape.kind)) == 1]
    if not unique:
        return sample_count(rng, scene)
    shape = rng.choice(unique)
    if question == "colour":
        text = rng.choice(("What colour is the {}?", "Which colour does the {} have?", "What color is the {}?"))
        return text.format(shape.kind), f"The {shape.kind} is {shape.colour}.", [shape.colour]
    text = rng.choice(("Where is {}?", "In which place is {}?", "Where do you see {}?"))
    name = rng.choice((f"the {shape.kind}", f"the {shape.colour} {shape.kind}"))
    return text.format(name), f"The {shape.colour} {shape.kind} is {PLACES[shape.cell]}.", [PLACES[shape.cell]]


def sample_thing(rng: Random, canvas: Canvas) -> Case:
    """A finished thing: what is it?"""
    thing = rng.choice(list(things().values()))
    colours = thing.choose_colours(rng)
    text = rng.choice(("What is this?", "What is in this picture?", "What do you see?", "Describe the picture."))
    answer = f"This is {thing.phrase} with {join([part.phrase(colours[part.name]) for part in thing.parts])}."
    image = Picture(ideal_picture(thing, colours, thing.steps, canvas))
    document = conversation([user_turn(rng, text, image), assistant_turn(answer)])
    key = [part.phrase(colours[part.name]) for part in thing.parts]
    return Case("describe", document, {"question": "thing", "answer": answer, "key": [thing.name, *key], "scene": None})


def sample_description(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    question = rng.choices(
        ("scene", "count", "colour", "place", "cell", "thing", "plain", "unknown"),
        (0.34, 0.14, 0.08, 0.08, 0.1, 0.1, 0.12, 0.04),
    )[0]
    if question in ("plain", "unknown"):
        text, answer, key = plain_question(rng) if question == "plain" else unknown_thing(rng)
        document = conversation([user_turn(rng, text), assistant_turn(answer)])
        return Case("describe", document, {"question": question, "answer": answer, "key": key, "scene": None})
    if question == "thing":
        return sample_thing(rng, canvas)
    count = pick_count(rng, (0.2, 0.3, 0.3, 0.2)) + (1 if question == "count" else 0)
    scene = random_scene(rng, count, canvas, held_out=held_out)
    if question == "scene":
        text, answer, key = rng.choice(DESCRIBE), describe_scene(scene), [shape_words(shape) for shape in scene.shapes]
    elif question == "count":
        text, answer, key = sample_count(rng, scene)
    else:
        text, answer, key = sample_one(rng, scene, question)
    document = conversation([user_turn(rng, text, Picture(draw_scene(scene))), assistant_turn(answer)])
    truth = {"question": question, "answer": answer, "key": key, "scene": scene_to_dict(scene)}
    return Case("describe", document, truth)
