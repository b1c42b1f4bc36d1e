"""Questions that want words only: nothing is drawn, and the model must know when not to draw.

describe: one question, about an image or without one. truth: {"question": "scene" | "count" | "colour" | "place" |
"cell" | "thing" | "plain" | "unknown", "answer": the ideal text, "key": strings which a right answer contains, "scene":
the scene or null}; for "scene" the key is the words of every shape.

talk: of those questions the ones without an image, "plain" and "unknown" alike often. It is for replay in fine-tuning:
"Draw a whale." is nearest to new documents about another thing, and among the descriptions it comes up too rarely.

quiz: several questions about one image (a scene, a thing that may be half-finished, or a board), turn by turn. It is
for training: one image, much to read. truth: {"question": "quiz", "answer": the last answer, "key": [the last answer]}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.boards import (
    MOVES,
    Board,
    draw_board,
    random_board,
    solve,
)
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import (
    CELLS,
    KINDS,
    Scene,
    Shape,
    scene_to_dict,
)
from duogen_core.sketchbook.tasks.common import (
    BANDS,
    PLACES,
    PLURALS,
    Canvas,
    Case,
    a_shape,
    article,
    assistant_turn,
    cells_of,
    conversation,
    join,
    pick_count,
    random_scene,
    shape_words,
    user_place,
    user_turn,
    with_background,
    with_repeats,
)
from duogen_core.sketchbook.tasks.plan import place_words
from duogen_core.sketchbook.things import THINGS, Part, Thing, ideal_picture

# Wordings of a question -> answer, and the words a right answer contains.
PLAIN: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (
        ("What colour do you get from red and yellow?", "Which colour do red and yellow make?"),
        "Red and yellow make orange.",
        ("orange",),
    ),
    (
        ("What colour do you get from blue and yellow?", "Which colour do blue and yellow make?"),
        "Blue and yellow make green.",
        ("green",),
    ),
    (
        ("What colour do you get from red and blue?", "Which colour do red and blue make?"),
        "Red and blue make purple.",
        ("purple",),
    ),
    (
        ("What colour do you get from red and white?", "Which colour do red and white make?"),
        "Red and white make pink.",
        ("pink",),
    ),
    (
        ("What colour do you get from black and white?", "Which colour do black and white make?"),
        "Black and white make grey.",
        ("grey",),
    ),
    (
        ("What can you draw?", "Which things can you draw?", "What are you able to draw?"),
        "I can draw shapes, and things like a house, a tree, a car or a rocket, step by step.",
        ("house", "tree"),
    ),
    (
        ("Which shapes do you know?", "What shapes can you draw?", "Which shapes can you draw?"),
        "I know the circle, square, triangle, diamond, star, heart, cross and hexagon.",
        ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "hexagon"),
    ),
    (
        ("Which colours do you know?", "What colours can you use?", "Which colours can you draw with?"),
        "I know red, orange, yellow, green, blue, purple, pink, brown, black, white, grey and cream.",
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    ),
    (("Hello!", "Hi!", "Hello.", "Good morning!", "Hi there!"), "Hello! What shall I draw for you?", ("Hello",)),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"), "You are welcome!", ("welcome",)),
    (("Goodbye!", "Bye!", "See you!"), "Goodbye!", ("Goodbye",)),
    (("Who are you?", "What is your name?"), "I am DuoGen. I answer with words and pictures.", ("DuoGen",)),
    (("How are you?", "How are you today?"), "I am fine and ready to draw.", ("fine",)),
    (("What is a hexagon?", "What does hexagon mean?"), "A hexagon is a shape with six sides.", ("six sides",)),
    (("What is a square?",), "A square is a shape with four equal sides.", ("four equal sides",)),
    (("What is a triangle?",), "A triangle is a shape with three sides.", ("three sides",)),
    (("What is a circle?", "What does circle mean?"), "A circle is a round shape without corners.", ("round",)),
    (
        ("How many sides does a hexagon have?", "How many corners does a hexagon have?"),
        "A hexagon has six sides and six corners.",
        ("six",),
    ),
    (
        ("How many sides does a triangle have?", "How many corners does a triangle have?"),
        "A triangle has three sides and three corners.",
        ("three",),
    ),
    (
        ("How many sides does a square have?", "How many corners does a square have?"),
        "A square has four sides and four corners.",
        ("four",),
    ),
    (("How many wheels does a car have?",), "A car has four wheels, and from the side you see two.", ("four", "two")),
    (("What colour is the sky?", "Which colour is the sky?"), "The sky is blue.", ("blue",)),
    (("What colour is grass?", "Which colour is grass?"), "Grass is green.", ("green",)),
    (("What colour is snow?", "Which colour is snow?"), "Snow is white.", ("white",)),
)

UNKNOWN = (
    "horse",
    "dog",
    "person",
    "elephant",
    "dragon",
    "bicycle",
    "guitar",
    "bird",
    "lion",
    "bridge",
    "phone",
    "chair",
    "table",
    "plane",
    "city",
    "monkey",
    "piano",
    "pirate",
    "tiger",
    "watch",
    "camera",
    "spider",
    "whale",
    "bottle",
)
_UNKNOWN_REQUESTS = (
    "How do I draw {}?",
    "Draw {}.",
    "Show me how to draw {}.",
    "Draw {} step by step.",
    "Can you draw {}?",
)


def plain_question(rng: Random) -> tuple[str, str, list[str]]:
    wordings, answer, key = rng.choice(PLAIN)
    return rng.choice(wordings), answer, list(key)


def unknown_thing(rng: Random) -> tuple[str, str, list[str]]:
    """A thing outside the Sketchbook: the honest answer is words."""
    name = rng.choice(UNKNOWN)
    phrase = f"{article(name)} {name}"
    answer = f"I have not learned to draw {phrase}. Ask me for a house, a tree or a car."
    return rng.choice(_UNKNOWN_REQUESTS).format(phrase), answer, ["not learned"]


# ---------------------------------------------------------------- describe

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


def count_words(count: int, colour: str | None, kind: str | None) -> str:
    """ "2 red stars", "1 star", "0 red shapes"."""
    noun = (kind or "shape") if count == 1 else PLURALS[kind] if kind else "shapes"
    return f"{count} {colour} {noun}" if colour else f"{count} {noun}"


def matching(scene: Scene, colour: str | None, kind: str | None) -> list[Shape]:
    return [shape for shape in scene.shapes if colour in (None, shape.colour) and kind in (None, shape.kind)]


def listed(shapes: Sequence[Shape]) -> str:
    """The shapes that are counted, one by one, before their number: to list is easier than to count at a glance."""
    return f"I see {join([f'the {shape_words(shape)}' for shape in shapes])}." if shapes else ""


def sample_count(rng: Random, scene: Scene) -> tuple[str, str, list[str]]:
    shape = rng.choice(scene.shapes)
    what = rng.random()
    colour, kind = shape.colour if what < 0.5 else None, shape.kind if 0.5 <= what < 0.85 else None
    if what >= 0.85 and rng.random() < 0.4:
        kind = rng.choice(KINDS)
    shapes = matching(scene, colour, kind)
    number = len(shapes)
    noun = count_words(2, colour, kind)[2:]
    answer = f"{listed(shapes)} There {'is' if number == 1 else 'are'} {count_words(number, colour, kind)}.".strip()
    return rng.choice(COUNT).format(noun), answer, [count_words(number, colour, kind)]


def sample_one(rng: Random, scene: Scene, question: str) -> tuple[str, str, list[str]]:
    """Question, answer and key about one shape or one cell of the scene."""
    if question == "cell":
        cell = rng.choice(scene.shapes).cell if rng.random() < 0.75 else rng.choice(CELLS)
        shape = scene.at(cell)
        text = rng.choice(("What is {}?", "Which shape is {}?", "What do you see {}?")).format(user_place(rng, cell))
        if shape is None:
            return text, f"Nothing is {PLACES[cell]}.", ["Nothing"]
        return text, f"A {shape_words(shape)}.", [f"{shape.size} {shape.colour} {shape.kind}"]
    unique = [shape for shape in scene.shapes if len(matching(scene, None, shape.kind)) == 1]
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
    thing = rng.choice(list(THINGS.values()))
    colours = thing.choose_colours(rng)
    text = rng.choice(("What is this?", "What is in this picture?", "What do you see?", "Describe the picture."))
    answer = f"This is {thing.phrase} with {join([part.phrase(colours[part.name]) for part in thing.parts])}."
    image = Picture(ideal_picture(thing, colours, thing.steps, canvas))
    document = conversation([user_turn(rng, text, image), assistant_turn(answer)])
    key = [part.phrase(colours[part.name]) for part in thing.parts]
    return Case("describe", document, {"question": "thing", "answer": answer, "key": [thing.name, *key], "scene": None})


def without_image(rng: Random, family: str, question: str) -> Case:
    text, answer, key = plain_question(rng) if question == "plain" else unknown_thing(rng)
    document = conversation([user_turn(rng, text), assistant_turn(answer)])
    return Case(family, document, {"question": question, "answer": answer, "key": key, "scene": None})


def sample_talk(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    return without_image(rng, "talk", rng.choice(("plain", "unknown")))


def sample_description(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    question = rng.choices(
        ("scene", "count", "colour", "place", "cell", "thing", "plain", "unknown"),
        (0.34, 0.14, 0.08, 0.08, 0.1, 0.1, 0.12, 0.04),
    )[0]
    if question in ("plain", "unknown"):
        return without_image(rng, "describe", question)
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


# ---------------------------------------------------------------- quiz

Answered = tuple[str, str]  # a question and its answer
LONGEST = 6  # questions about one image

# Of a scene.


def ask_scene(rng: Random, scene: Scene) -> Answered:
    return rng.choice(DESCRIBE), describe_scene(scene)


def ask_count(rng: Random, scene: Scene) -> Answered:
    return sample_count(rng, scene)[:2]


def ask_shape(rng: Random, scene: Scene) -> Answered:
    return sample_one(rng, scene, rng.choice(("cell", "cell", "colour", "place")))[:2]


def ask_group(rng: Random, scene: Scene) -> Answered:
    """All shapes of a kind or a colour by their words."""
    shape = rng.choice(scene.shapes)
    if rng.random() < 0.5:
        shapes, words = matching(scene, None, shape.kind), PLURALS[shape.kind]
    else:
        shapes, words = matching(scene, shape.colour, None), f"{shape.colour} shapes"
    text = rng.choice(("Where are the {}?", "Which {} do you see?", "Which {} are there?")).format(words)
    return text, listed(shapes)


def ask_band(rng: Random, scene: Scene) -> Answered:
    name = rng.choice(BANDS)
    inside = [shape for shape in scene.shapes if shape.cell in cells_of(name)]
    shapes = "1 shape is" if len(inside) == 1 else f"{len(inside)} shapes are"
    return f"How many shapes are in the {name}?", f"{listed(inside)} {shapes} in the {name}.".strip()


# Of a thing.

Drawn = tuple[Thing, dict[str, str], int]  # its colours, and how many of its parts there are


def ask_thing(rng: Random, drawn: Drawn) -> Answered:
    thing, colours, steps = drawn
    parts = join([part.phrase(colours[part.name]) for part in thing.parts[:steps]])
    return rng.choice(("What is this?", "What do you see?")), f"This is {thing.phrase} with {parts}."


def several(part: Part) -> bool:
    return part.number != "a" and part.name.endswith("s")


def ask_part_colour(rng: Random, drawn: Drawn) -> Answered:
    thing, colours, steps = drawn
    part = rng.choice(thing.parts[:steps])
    is_ = "are" if several(part) else "is"
    return f"What colour {is_} the {part.name}?", f"The {part.name} {is_} {colours[part.name]}."


def ask_next_step(rng: Random, drawn: Drawn) -> Answered:
    thing, _, steps = drawn
    answer = (
        f"Your {thing.name} is finished." if steps == thing.steps else f"Step {steps + 1}: {thing.parts[steps].name}."
    )
    return rng.choice(("What comes next?", "How do I go on?")), answer


# Of a board.


def ask_place(rng: Random, board: Board) -> Answered:
    what = rng.choice(("marker", "goal"))
    colour, place = (board.marker_colour, board.marker) if what == "marker" else (board.goal_colour, board.goal)
    return f"Where is the {what}?", f"The {colour} {what} is in {place_words(place)}."


def ask_cell(rng: Random, board: Board) -> Answered:
    marks = [board.marker, board.goal, *board.walls]
    free = (rng.randrange(board.columns), rng.randrange(board.rows))
    place = rng.choice(marks) if rng.random() < 0.7 else free
    name = (
        "marker" if place == board.marker else "goal" if place == board.goal else "wall" if place in board.walls else ""
    )
    answer = f"The {name} is" if name in ("marker", "goal") else "A wall is" if name else "Nothing is"
    return f"What is in {place_words(place)}?", f"{answer} in {place_words(place)}."


def ask_moves(rng: Random, board: Board) -> Answered:
    names = [name for name in MOVES if board.move(name)]
    return "How can the marker move?", f"The marker can move {join(names)}."


def ask_first_move(rng: Random, board: Board) -> Answered:
    moves = solve(board)
    if not moves:
        return ask_moves(rng, board)
    after = board.move(moves[0])
    return "Which move comes next?", f"Move 1: {moves[0]}, to {place_words(after.marker if after else board.marker)}."


ABOUT_SCENE = {ask_scene: 3, ask_count: 4, ask_shape: 3, ask_group: 4, ask_band: 2}
ABOUT_THING = {ask_thing: 4, ask_part_colour: 3, ask_next_step: 3}
ABOUT_BOARD = {ask_place: 3, ask_cell: 3, ask_moves: 2, ask_first_move: 3}


def questions(rng: Random, ask: dict[Callable[..., Answered], int], about: object, count: int) -> list[Answered]:
    found: dict[str, str] = {}
    for _ in range(count):
        question, answer = rng.choices(list(ask), list(ask.values()))[0](rng, about)
        found.setdefault(question, answer)
    return list(found.items())


def sample_quiz(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    count, kind = rng.randint(3, LONGEST), rng.random()
    if kind < 0.55:
        scene = random_scene(rng, pick_count(rng, (0.1, 0.2, 0.2, 0.2, 0.15, 0.15)), canvas, held_out=held_out)
        scene = with_repeats(rng, scene) if rng.random() < 0.5 else scene
        asked, pixels = questions(rng, ABOUT_SCENE, scene, count), draw_scene(scene)
    elif kind < 0.85:
        thing = rng.choice(list(THINGS.values()))
        colours, steps = thing.choose_colours(rng), rng.randint(1, thing.steps)
        asked = questions(rng, ABOUT_THING, (thing, colours, steps), min(count, 4))
        pixels = ideal_picture(thing, colours, steps, canvas)
    else:
        board = random_board(rng, canvas)
        asked, pixels = questions(rng, ABOUT_BOARD, board, count), draw_board(board)
    turns = []
    for number, (question, answer) in enumerate(asked):
        turns += [user_turn(rng, question, None if number else Picture(pixels)), assistant_turn(answer)]
    answer = asked[-1][1]
    return Case("quiz", conversation(turns), {"question": "quiz", "answer": answer, "key": [answer]})
