"""edit_chain: two to four edits in one conversation, each of the picture that the one before it left.

The first picture comes from the user, or is drawn by the assistant. Judged is the last edit.
truth: {"operation", "before": scene, "after": scene} of the last edit, as of edit.py, and "edits": how many there are.
"""

from __future__ import annotations

from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.cases import Case, scene_to_dict
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import Scene
from duogen_core.sketchbook.tasks import draw
from duogen_core.sketchbook.tasks.common import (
    Canvas,
    assistant_turn,
    conversation,
    pick_count,
    random_scene,
    user_turn,
)
from duogen_core.sketchbook.tasks.edit import EDITS, OPERATIONS

LENGTHS = (0.0, 0.5, 0.35, 0.15)  # of chains of one edit, two, three, four
MOST_SHAPES = 5
NEXT = ("", "", "", "", "Now ", "Then ", "And now ")


def sample_chain(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    """With `held_out`, the first picture has a shape of a held-out pair."""
    count = pick_count(rng, LENGTHS)
    after = random_scene(rng, pick_count(rng, (0.35, 0.35, 0.3)), canvas, held_out=held_out)
    given: Picture | None = Picture(draw_scene(after))
    turns = []
    if rng.random() < 0.3:
        request, _, sentence = draw.request(rng, after)
        turns, given = [user_turn(rng, request), assistant_turn(sentence, given)], None
    for _ in range(count):
        before, operation = after, pick_operation(rng, after)
        after, request, answer = EDITS[operation](rng, before)
        turns.append(user_turn(rng, following(rng, request) if turns else request, given))
        turns.append(assistant_turn(answer, Picture(draw_scene(after))))
        given = None
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
