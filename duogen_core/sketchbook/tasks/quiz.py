"""quiz: several questions about one picture, answered in words, turn by turn. For training: one picture, much to read.

Scenes, things that may be half-finished, and boards. truth: {"question": "quiz", "answer": the last answer, "key":
[the last answer]}.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.boards import (
    MOVES,
    Board,
    draw_board,
    random_board,
    solve,
)
from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.drawing import Part, Thing, draw_scene
from duogen_core.sketchbook.scene import Scene
from duogen_core.sketchbook.tasks.common import (
    BANDS,
    PLURALS,
    Canvas,
    alike,
    assistant_turn,
    cells_of,
    conversation,
    join,
    pick_count,
    random_scene,
    user_turn,
)
from duogen_core.sketchbook.tasks.describe import (
    DESCRIBE,
    chosen,
    describe_scene,
    sample_count,
    sample_one,
    seen,
)
from duogen_core.sketchbook.tasks.plan import place_words
from duogen_core.sketchbook.things import ideal_picture, things

Answered = tuple[str, str]  # a question and its answer
LONGEST = 6  # questions a picture


# -- scenes -----------------------------------------------------------------------------------------------------------


def whole(rng: Random, scene: Scene) -> Answered:
    return rng.choice(DESCRIBE), describe_scene(scene)


def counting(rng: Random, scene: Scene) -> Answered:
    return sample_count(rng, scene)[:2]


def one(rng: Random, scene: Scene) -> Answered:
    return sample_one(rng, scene, rng.choice(("cell", "cell", "colour", "place")))[:2]


def group(rng: Random, scene: Scene) -> Answered:
    """All shapes of a kind or a colour by their words."""
    shape = rng.choice(scene.shapes)
    if rng.random() < 0.5:
        shapes, words = chosen(scene, None, shape.kind), PLURALS[shape.kind]
    else:
        shapes, words = chosen(scene, shape.colour, None), f"{shape.colour} shapes"
    text = rng.choice(("Where are the {}?", "Which {} do you see?", "Which {} are there?")).format(words)
    return text, seen(shapes)


def band(rng: Random, scene: Scene) -> Answered:
    name = rng.choice(BANDS)
    inside = [shape for shape in scene.shapes if shape.cell in cells_of(name)]
    shapes = "1 shape is" if len(inside) == 1 else f"{len(inside)} shapes are"
    return f"How many shapes are in the {name}?", f"{seen(inside)} {shapes} in the {name}.".strip()


# -- things -----------------------------------------------------------------------------------------------------------

Drawn = tuple[Thing, dict[str, str], int]  # its colours, and how many of its parts there are


def name_of(rng: Random, drawn: Drawn) -> Answered:
    thing, colours, steps = drawn
    parts = join([part.phrase(colours[part.name]) for part in thing.parts[:steps]])
    return rng.choice(("What is this?", "What do you see?")), f"This is {thing.phrase} with {parts}."


def several(part: Part) -> bool:
    return part.number != "a" and part.name.endswith("s")


def colour_of(rng: Random, drawn: Drawn) -> Answered:
    thing, colours, steps = drawn
    part = rng.choice(thing.parts[:steps])
    is_ = "are" if several(part) else "is"
    return f"What colour {is_} the {part.name}?", f"The {part.name} {is_} {colours[part.name]}."


def next_step(rng: Random, drawn: Drawn) -> Answered:
    thing, _, steps = drawn
    answer = (
        f"Your {thing.name} is finished." if steps == thing.steps else f"Step {steps + 1}: {thing.parts[steps].name}."
    )
    return rng.choice(("What comes next?", "How do I go on?")), answer


# -- boards -----------------------------------------------------------------------------------------------------------


def place_of(rng: Random, board: Board) -> Answered:
    what = rng.choice(("marker", "goal"))
    colour, place = (board.marker_colour, board.marker) if what == "marker" else (board.goal_colour, board.goal)
    return f"Where is the {what}?", f"The {colour} {what} is in {place_words(place)}."


def what_at(rng: Random, board: Board) -> Answered:
    marks = [board.marker, board.goal, *board.walls]
    free = (rng.randrange(board.columns), rng.randrange(board.rows))
    place = rng.choice(marks) if rng.random() < 0.7 else free
    name = (
        "marker" if place == board.marker else "goal" if place == board.goal else "wall" if place in board.walls else ""
    )
    answer = f"The {name} is" if name in ("marker", "goal") else "A wall is" if name else "Nothing is"
    return f"What is in {place_words(place)}?", f"{answer} in {place_words(place)}."


def ways(rng: Random, board: Board) -> Answered:
    names = [name for name in MOVES if board.move(name)]
    return "How can the marker move?", f"The marker can move {join(names)}."


def first_move(rng: Random, board: Board) -> Answered:
    moves = solve(board)
    if not moves:
        return ways(rng, board)
    after = board.move(moves[0])
    return "Which move comes next?", f"Move 1: {moves[0]}, to {place_words(after.marker if after else board.marker)}."


# -- the conversation -------------------------------------------------------------------------------------------------

ASK_SCENE = {whole: 3, counting: 4, one: 3, group: 4, band: 2}
ASK_THING = {name_of: 4, colour_of: 3, next_step: 3}
ASK_BOARD = {place_of: 3, what_at: 3, ways: 2, first_move: 3}


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
        scene = alike(rng, scene) if rng.random() < 0.5 else scene
        asked, pixels = questions(rng, ASK_SCENE, scene, count), draw_scene(scene)
    elif kind < 0.85:
        thing = rng.choice(list(things().values()))
        colours, steps = thing.choose_colours(rng), rng.randint(1, thing.steps)
        asked = questions(rng, ASK_THING, (thing, colours, steps), min(count, 4))
        pixels = ideal_picture(thing, colours, steps, canvas)
    else:
        board = random_board(rng, canvas)
        asked, pixels = questions(rng, ASK_BOARD, board, count), draw_board(board)
    turns = []
    for number, (question, answer) in enumerate(asked):
        turns += [user_turn(rng, question, None if number else Picture(pixels)), assistant_turn(answer)]
    answer = asked[-1][1]
    return Case("quiz", conversation(turns), {"question": "quiz", "answer": answer, "key": [answer]})
