"""guide: how to draw a thing, step by step -> a text and an image per step, the drawing growing.
continue: the user brings a half-finished thing -> the remaining steps, a text and an image each.

truth: {"thing", "steps": how many, "asked": {part: colour} as requested, "colours": {part: colour} of the ideal answer,
"parts": part names in order, "canvas"}; of continue also "done": how many steps the user's image shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.tasks.common import Canvas, Case, assistant_turn, conversation, join, user_colour, user_turn
from duogen_core.sketchbook.things import THINGS, Thing, ideal_picture

REQUESTS = (
    "How do I draw {}?",
    "How do I draw {}?",
    "How can I draw {}?",
    "How do you draw {}?",
    "Show me how to draw {}.",
    "Show me how to draw {} step by step.",
    "Teach me to draw {}.",
    "Draw {} step by step.",
    "I want to learn how to draw {}.",
    "Please explain how to draw {}.",
    "Please make a guide for drawing {}.",
)
INTROS = ("Here is how to draw {} in {} steps.", "You can draw {} in {} steps.")
STEPS = ("Add {} {}.", "Add {} {}.", "Draw {} {}.")
CLOSINGS = ("Your {} is finished.", "The {} is done.")


def ask_colours(rng: Random, thing: Thing) -> dict[str, str]:
    """None to three colours that a user names, one a part; all may stand together in one picture."""
    free = [part.name for part in thing.parts if part.free]
    count = min(rng.choices((0, 1, 2, 3), (0.3, 0.4, 0.2, 0.1))[0], len(free))
    chosen = thing.choose_colours(rng)  # all parts at once, so that those asked for never exclude each other
    return {name: chosen[name] for name in rng.sample(free, count)}


def with_colours(rng: Random | None, thing: Thing, asked: Mapping[str, str]) -> str:
    """ "a house with a red roof and blue walls"; with `rng` in a user's words."""
    if not asked:
        return thing.phrase
    words = [
        thing.part(name).phrase(colour if rng is None else user_colour(rng, colour)) for name, colour in asked.items()
    ]
    return f"{thing.phrase} with {join(words)}"


def step_text(rng: Random, thing: Thing, colours: Mapping[str, str], step: int) -> str:
    part = thing.parts[step - 1]
    wording = "Start with {} {}." if step == 1 and rng.random() < 0.4 else rng.choice(STEPS)
    return f"Step {step}: " + wording.format(part.phrase(colours[part.name]), part.where)


def guide_parts(
    rng: Random, thing: Thing, colours: Mapping[str, str], canvas: Canvas, intro: str, first: int = 1
) -> list[str | Picture]:
    """Intro, then text and picture of each step from `first` on, then the closing sentence."""
    parts: list[str | Picture] = []
    for step in range(first, thing.steps + 1):
        text = step_text(rng, thing, colours, step)
        # The introduction has no image of its own: it stands before the first step's text.
        parts += [f"{intro}\n\n{text}" if step == first else text, Picture(ideal_picture(thing, colours, step, canvas))]
    return [*parts, rng.choice(CLOSINGS).format(thing.name)]


def thing_truth(thing: Thing, asked: Mapping[str, str], colours: Mapping[str, str], canvas: Canvas) -> dict:
    return {
        "thing": thing.name,
        "steps": thing.steps,
        "parts": [part.name for part in thing.parts],
        "asked": dict(asked),
        "colours": dict(colours),
        "canvas": list(canvas),
    }


def sample_guide(
    rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False, thing: Thing | None = None
) -> Case:
    """A guide for `thing`, or for a random one. `held_out` changes nothing: its colours never make a held-out pair."""
    thing = thing or rng.choice(list(THINGS.values()))
    asked = ask_colours(rng, thing)
    colours = thing.choose_colours(rng, asked)
    intro = rng.choice(INTROS).format(with_colours(None, thing, asked), thing.steps)
    request = rng.choice(REQUESTS).format(with_colours(rng, thing, asked))
    turns = [user_turn(rng, request), assistant_turn(*guide_parts(rng, thing, colours, canvas, intro))]
    return Case("guide", conversation(turns), thing_truth(thing, asked, colours, canvas))


# ---------------------------------------------------------------- continue

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


def sample_continuation(
    rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False, thing: Thing | None = None
) -> Case:
    """`thing`, or a random one. `held_out` changes nothing: a thing's colours never make a held-out pair."""
    thing = thing or rng.choice(list(THINGS.values()))
    done = rng.randint(1, thing.steps - 1)
    colours = thing.choose_colours(rng)
    open_parts = [part.name for part in thing.parts[done:] if part.free]
    asked = {name: colours[name] for name in open_parts[:2] if rng.random() < 0.3}
    # After a single step the thing is often not recognisable yet, so then its name is always given.
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
