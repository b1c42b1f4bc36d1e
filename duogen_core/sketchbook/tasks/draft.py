"""draft: a question that is easier after drawing -> what is seen and done, the image of it, the answer read from it.

Listing all that is there, in the order of its places, is easier than finding all members of a group at a glance: so
both images are described first, and what is changed or counted is chosen from those words, with the request said again
just before the choice.

undrafted: the same questions with the request not to draw, answered in the same words without the image; what the
image is worth is the difference between the two.

truth: {"operation": "remove" | "recolour" | "move", "before": scene, "after": scene, "answer": the number as a string,
"question": the counted words, such as "red shapes"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import COLOURS, Scene, Shape, scene_to_dict
from duogen_core.sketchbook.tasks.common import (
    BANDS,
    PLURALS,
    Canvas,
    Case,
    allowed,
    assistant_turn,
    cells_of,
    conversation,
    join,
    random_scene,
    reference,
    shape_words,
    user_cell,
    user_turn,
    with_repeats,
)
from duogen_core.sketchbook.tasks.questions import count_words, describe_scene, matching

Draft = tuple[Scene, str, str]  # the scene after it, the request's first sentence, the sentence of what is done


def group(rng: Random, scene: Scene) -> tuple[tuple[Shape, ...], str]:
    """Some shapes of the scene, all of one kind or one colour, and their words."""
    shape = rng.choice(scene.shapes)
    if rng.random() < 0.6:
        return tuple(other for other in scene.shapes if other.kind == shape.kind), PLURALS[shape.kind]
    return tuple(other for other in scene.shapes if other.colour == shape.colour), f"{shape.colour} shapes"


def named(shapes: Sequence[Shape]) -> str:
    """Every shape by its own words, so that the picture needs no counting: "the small red star at the top and …"."""
    return join([f"the {shape_words(shape)}" for shape in shapes])


def remove(rng: Random, scene: Scene) -> Draft:
    shapes, words = group(rng, scene)
    after = replace(scene, shapes=tuple(shape for shape in scene.shapes if shape not in shapes))
    request = rng.choice(("Remove the {}.", "Take the {} away.", "Delete all {}.")).format(words)
    return after, request, f"I remove the {words}: {named(shapes)}."


def recolour(rng: Random, scene: Scene) -> Draft:
    shapes, words = group(rng, scene)
    present = [shape.colour for shape in scene.shapes if shape not in shapes]
    colour = rng.choice(present if present and rng.random() < 0.7 else COLOURS)
    unchanged = any(shape.colour == colour for shape in shapes)
    if unchanged or colour == scene.background or not all(allowed(colour, shape.kind) for shape in shapes):
        return recolour(rng, scene)  # nothing would change, or a shape would vanish or be held out: choose again
    after = replace(scene, shapes=tuple(replace(s, colour=colour) if s in shapes else s for s in scene.shapes))
    request = rng.choice(("Paint the {} {}.", "Make the {} {}.", "Paint all {} {}."))
    return after, request.format(words, colour), f"I paint the {words} {colour}: {named(shapes)}."


def move(rng: Random, scene: Scene) -> Draft:
    shape = rng.choice(scene.shapes)
    cell = rng.choice(scene.free_cells)
    after = scene.remove(shape).add(replace(shape, cell=cell))
    request = f"{rng.choice(('Move', 'Shift'))} {reference(rng, scene, shape)} {user_cell(rng, cell)}."
    return after, request, f"I move {named([shape])} to the {cell}."


DRAFTS = {"remove": remove, "recolour": recolour, "move": move}


def ask(rng: Random, scene: Scene, operation: str) -> tuple[str, str, list[Shape]]:
    """A question about the new scene, its counted words, and the shapes that count."""
    if operation == "move":
        band = rng.choice(BANDS)
        shapes = [shape for shape in scene.shapes if shape.cell in cells_of(band)]
        return f"How many shapes are in the {band}{rng.choice((' now', '', ' then'))}?", f"shapes in the {band}", shapes
    choice = rng.random() * (0.7 if operation == "recolour" else 1)  # after painting, colours are what has changed
    shape = rng.choice(scene.shapes) if scene.shapes else None
    colour = shape.colour if shape and choice < 0.5 else None
    kind = shape.kind if shape and colour is None and choice < 0.75 else None
    words = count_words(2, colour, kind)[2:]
    ends = ("are left", "remain") if operation == "remove" else ("are there now", "are there then", "do you see then")
    return f"How many {words} {rng.choice(ends)}?", words, matching(scene, colour, kind)


def answer_text(operation: str, after: Scene, words: str, shapes: Sequence[Shape]) -> str:
    number = len(shapes)
    count = f"I count the {words}: {named(shapes) if shapes else 'none'}."
    if number == 1:
        words = (
            words.replace("shapes", "shape") if "shapes" in words else next(k for k, p in PLURALS.items() if p == words)
        )
    verb = "is" if number == 1 else "are"
    sentence = {
        "move": f"{number} {words.replace(' in the', f' {verb} in the')}",
        "remove": f"{number} {words} {verb} left",
        "recolour": f"There {verb} {number} {words}",
    }[operation]
    return f"{describe_scene(after)} {count} {sentence}. Answer: {number}."


NO_DRAWING = ("Do not draw.", "Answer without a drawing.", "Answer in words only.")


def sample(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False, drawn: bool = True) -> Case:
    """Without `drawn`, the same case as an undrafted one."""
    operation = rng.choices(list(DRAFTS), (0.45, 0.35, 0.2))[0]
    before = random_scene(rng, rng.randint(3, 6), canvas, held_out=held_out)
    # A small choice of kinds and colours, so that groups have more than one member.
    before = with_repeats(rng, before)
    after, request, done = DRAFTS[operation](rng, before)
    question, words, counting = ask(rng, after, operation)
    asked, answer = f"{request} {question}", answer_text(operation, after, words, counting)
    announcement = f"{describe_scene(before)} {done}"
    if drawn:
        answers = announcement, Picture(draw_scene(after)), answer
    else:
        asked, answers = f"{asked} {rng.choice(NO_DRAWING)}", (f"{announcement} {answer}",)
    turns = [user_turn(rng, asked, Picture(draw_scene(before))), assistant_turn(*answers)]
    truth = {
        "operation": operation,
        "before": scene_to_dict(before),
        "after": scene_to_dict(after),
        "answer": str(len(counting)),
        "question": words,
    }
    return Case("draft" if drawn else "undrafted", conversation(turns), truth)
