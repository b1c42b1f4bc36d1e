"""continue: the user brings a half-finished thing -> the remaining steps, a text and a picture each.

truth: as of guide, with "done": how many steps the user's picture shows.
"""

from __future__ import annotations

from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.tasks.common import (
    Canvas,
    assistant_turn,
    conversation,
    join,
    user_colour,
    user_turn,
)
from duogen_core.sketchbook.tasks.guide import guide_parts, thing_truth
from duogen_core.sketchbook.things import Thing, ideal_picture, things

NAMED = (
    "Here is my {}. How do I go on?",
    "I started to draw {}. What comes next?",
    "This will be {}. Please finish it.",
    "Help me finish {}.",
    "Continue this drawing of {}.",
)
UNNAMED = (
    "How do I go on?",
    "What comes next?",
    "Please finish this drawing.",
    "Continue this drawing.",
    "Go on, please.",
)
CONTINUATIONS = ("Let us finish the {}.", "This is {}. Here is how to go on.")


def sample_continuation(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False, thing: Thing | None = None) -> Case:
    """`thing`, or a random one. `held_out` changes nothing: a thing's colours never make a held-out pair."""
    thing = thing or rng.choice(list(things().values()))
    done = rng.randint(1, thing.steps - 1)
    colours = thing.choose_colours(rng)
    open_parts = [part.name for part in thing.parts[done:] if part.free]
    asked = {name: colours[name] for name in open_parts[:2] if rng.random() < 0.3}
    if done >= 2 and rng.random() < 0.4:
        text = rng.choice(UNNAMED)
    else:
        wording = rng.choice(NAMED)
        text = wording.format(thing.name if "my {}" in wording else thing.phrase)
    if asked:
        text += (
            f" I want {join([thing.part(name).phrase(user_colour(rng, colour)) for name, colour in asked.items()])}."
        )
    intro = rng.choice(CONTINUATIONS)
    intro = intro.format(thing.name if "the {}" in intro else thing.phrase)
    answer = guide_parts(rng, thing, colours, canvas, intro, first=done + 1)
    turns = [user_turn(rng, text, Picture(ideal_picture(thing, colours, done, canvas))), assistant_turn(*answer)]
    return Case("continue", conversation(turns), {**thing_truth(thing, asked, colours, canvas), "done": done})
