"""draw, edit and edit_chain: scenes drawn from a description, and changed one thing at a time.

draw: one to three shapes with size, colour and place -> one sentence and one image. A user may leave out colour, size
or place; the assistant's sentence always states all of them. truth: {"scene": as drawn, "asked": [{"kind", "colour",
"size", "cell"} with null where left open], "background"}.

edit: change one thing of an image -> one sentence that says what is now different, and the image. The image comes from
the user, or is the assistant's own of the turn before.
edit_chain: two to four edits in one conversation, each of the image that the one before it left. The first image comes
from the user, or is drawn by the assistant. The last edit is judged.
truth: {"operation": "recolour" | "remove" | "add" | "move" | "background", "before": scene, "after": scene} of the last
edit; of a chain also "edits": how many there are.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import COLOURS, HELD_OUT, Scene, Shape, scene_to_dict
from duogen_core.sketchbook.tasks.common import (
    PLACES,
    Canvas,
    Case,
    a_shape,
    allowed,
    article,
    assistant_turn,
    conversation,
    join,
    pick_count,
    random_background,
    random_scene,
    random_shape,
    reference,
    shape_words,
    user_cell,
    user_colour,
    user_place,
    user_size,
    user_turn,
    with_background,
)

DRAW_REQUESTS = (
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


def draw_request(rng: Random, scene: Scene) -> tuple[str, list[dict[str, str | None]], str]:
    """A user's request for the scene, what it states of each shape, and the assistant's answer sentence."""
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    phrases = [asked_shape(rng, shape) for shape in shapes]
    wanted = with_background(join([text for text, _ in phrases]), scene.background)
    if scene.background != "cream" and rng.random() < 0.5:
        wanted = wanted.replace(", on ", " on ")
    # The answer keeps the order of the request: repeating is easier to learn than sorting.
    answer = rng.choice(ANSWERS).format(with_background(join([a_shape(shape) for shape in shapes]), scene.background))
    return rng.choice(DRAW_REQUESTS).format(wanted), [stated for _, stated in phrases], answer


def sample_draw(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    background = random_background(rng, 0.15)
    count = pick_count(rng, (0.4, 0.35, 0.25))
    scene = random_scene(rng, count, canvas, background=background, held_out=held_out)
    text, asked, answer = draw_request(rng, scene)
    document = conversation([user_turn(rng, text), assistant_turn(answer, Picture(draw_scene(scene)))])
    return Case("draw", document, {"scene": scene_to_dict(scene), "asked": asked, "background": scene.background})


# ---------------------------------------------------------------- edit

OPERATIONS = {"recolour": 0.26, "remove": 0.18, "add": 0.24, "move": 0.18, "background": 0.14}
EDIT_REQUESTS = {
    "recolour": ("Make {} {}.", "Change the colour of {} to {}.", "Paint {} {}.", "Can you make {} {}?"),
    "remove": ("Remove {}.", "Take {} away.", "Delete {}.", "Please erase {}.", "Can you remove {}?"),
    "add": ("Add {}.", "Please add {}.", "Draw {} as well.", "Can you add {}?", "Put {} into the picture."),
    "move": ("Move {} {}.", "Please move {} {}.", "Shift {} {}.", "Can you move {} {}?"),
    "background": ("Make the background {}.", "Change the background to {}.", "Paint the background {}."),
}
DONE = {  # the assistant's answer: the shape in its words (as it was, but for "add"), then what it has become
    "recolour": "Done: the {} is now {}.",
    "remove": "Done: the {} is gone.",
    "add": "Done: there is now a {}.",
    "move": "Done: the {} is now {}.",
    "background": "Done: the background is now {}.",
}
Edit = tuple[Scene, str, str]  # the scene after it, the request, the answer


def recolour(rng: Random, scene: Scene) -> Edit:
    shape = rng.choice(scene.shapes)
    taken = (shape.colour, scene.background)
    colour = rng.choice([c for c in COLOURS if c not in taken and allowed(c, shape.kind)])
    after = scene.remove(shape).add(replace(shape, colour=colour))
    text = rng.choice(EDIT_REQUESTS["recolour"]).format(reference(rng, scene, shape), user_colour(rng, colour))
    return after, text, DONE["recolour"].format(shape_words(shape), colour)


def remove(rng: Random, scene: Scene) -> Edit:
    shape = rng.choice(scene.shapes)
    text = rng.choice(EDIT_REQUESTS["remove"]).format(reference(rng, scene, shape))
    return scene.remove(shape), text, DONE["remove"].format(shape_words(shape))


def add(rng: Random, scene: Scene) -> Edit:
    shape = random_shape(rng, scene)
    words = [user_size(rng, shape.size), user_colour(rng, shape.colour), shape.kind]
    if rng.random() < 0.15:
        words = words[1:]
    wanted = f"{article(words[0])} {' '.join(words)} {user_place(rng, shape.cell)}"
    text = rng.choice(EDIT_REQUESTS["add"]).format(wanted)
    return scene.add(shape), text, DONE["add"].format(shape_words(shape))


def move(rng: Random, scene: Scene) -> Edit:
    shape = rng.choice(scene.shapes)
    moved = replace(shape, cell=rng.choice(scene.free_cells))
    text = rng.choice(EDIT_REQUESTS["move"]).format(reference(rng, scene, shape), user_cell(rng, moved.cell))
    return scene.remove(shape).add(moved), text, DONE["move"].format(shape_words(shape), PLACES[moved.cell])


def background(rng: Random, scene: Scene) -> Edit:
    taken = {scene.background, *(shape.colour for shape in scene.shapes)}
    colour = rng.choice([c for c in COLOURS if c not in taken])
    text = rng.choice(EDIT_REQUESTS["background"]).format(user_colour(rng, colour))
    return replace(scene, background=colour), text, DONE["background"].format(colour)


EDITS = {"recolour": recolour, "remove": remove, "add": add, "move": move, "background": background}


def sample_edit(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    """With `held_out`, the picture has a shape of a held-out pair before or after."""
    operation = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
    before = random_scene(rng, pick_count(rng, (0.25, 0.3, 0.25, 0.2)), canvas, held_out=held_out)
    after, text, answer = EDITS[operation](rng, before)
    if rng.random() < 0.12 and len(before.shapes) <= 3:  # a second turn of a conversation
        first, _, sentence = draw_request(rng, before)
        turns = [user_turn(rng, first), assistant_turn(sentence, Picture(draw_scene(before))), user_turn(rng, text)]
    else:
        turns = [user_turn(rng, text, Picture(draw_scene(before)))]
    document = conversation([*turns, assistant_turn(answer, Picture(draw_scene(after)))])
    truth = {"operation": operation, "before": scene_to_dict(before), "after": scene_to_dict(after)}
    return Case("edit", document, truth)


# ---------------------------------------------------------------- chains

LENGTHS = (0.0, 0.5, 0.35, 0.15)  # of chains of one edit, two, three, four
MOST_SHAPES = 5
NEXT = ("", "", "", "", "Now ", "Then ", "And now ")


def sample_chain(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    """With `held_out`, the first picture has a shape of a held-out pair."""
    count = pick_count(rng, LENGTHS)
    after = random_scene(rng, pick_count(rng, (0.35, 0.35, 0.3)), canvas, held_out=held_out)
    image: Picture | None = Picture(draw_scene(after))
    turns = []
    if rng.random() < 0.3:
        request, _, sentence = draw_request(rng, after)
        turns, image = [user_turn(rng, request), assistant_turn(sentence, image)], None
    for _ in range(count):
        before, operation = after, pick_operation(rng, after)
        after, request, answer = EDITS[operation](rng, before)
        turns.append(user_turn(rng, following(rng, request) if turns else request, image))
        turns.append(assistant_turn(answer, Picture(draw_scene(after))))
        image = None  # every later edit is of what the assistant has just drawn
    truth = {"operation": operation, "before": scene_to_dict(before), "after": scene_to_dict(after), "edits": count}
    return Case("edit_chain", conversation(turns), truth)


def pick_operation(rng: Random, scene: Scene) -> str:
    """One that the scene leaves room for: nothing can be done to shapes that are not there."""
    names = [name for name in OPERATIONS if name in ("add", "background") or scene.shapes]
    if len(scene.shapes) >= MOST_SHAPES:
        names.remove("add")
    return rng.choices(names, [OPERATIONS[name] for name in names])[0]


def following(rng: Random, request: str) -> str:
    """The request as one says it after another one."""
    word = rng.choice(NEXT)
    return word + request[0].lower() + request[1:] if word else request
