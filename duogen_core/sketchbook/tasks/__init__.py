"""The task families: each has a function (rng, *, canvas, held_out) -> Case, a random case with its ideal answer.

`training_case` mixes them and never shows a held-out pair; `evaluation_case` gives a case of one family. Both are pure
functions of the random generator, so a seed is a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.scene import CANVASES
from duogen_core.sketchbook.tasks import draft, guides, plan, questions, scenes
from duogen_core.sketchbook.tasks.common import Case
from duogen_core.sketchbook.things import thing_named

FAMILIES: dict[str, Callable[..., Case]] = {
    "guide": guides.sample_guide,
    "draw": scenes.sample_draw,
    "edit": scenes.sample_edit,
    "edit_chain": scenes.sample_chain,
    "continue": guides.sample_continuation,
    "plan": plan.sample,
    "draft": draft.sample,
    "undrafted": partial(draft.sample, drawn=False),  # from the same seed the same case as "draft"
    "describe": questions.sample_description,
    "quiz": questions.sample_quiz,
    "talk": questions.sample_talk,
}
WEIGHTS: dict[str, float] = {
    "guide": 0.24,
    "draw": 0.2,
    "edit": 0.12,
    "edit_chain": 0.06,
    "continue": 0.08,
    "plan": 0.12,
    "draft": 0.08,
    "undrafted": 0.03,
    "describe": 0.12,
    "quiz": 0.1,
}
CANVAS_WEIGHTS = (0.8, 0.1, 0.1)  # of CANVASES: square, wide, tall
# Requests without a picture say no size, and the picture then gets the default one; the others follow their picture.
WITHOUT_PICTURE = ("guide", "draw")
WITH_HELD_OUT = ("draw", "edit", "draft", "undrafted")
OF_THINGS = ("guide", "continue")


def training_case(rng: Random, weights: Mapping[str, float] | None = None) -> Case:
    """A random case of a random family, of any canvas; without any held-out pair."""
    weights = WEIGHTS if weights is None else weights
    family = rng.choices(list(weights), list(weights.values()))[0]
    return FAMILIES[family](rng, canvas=rng.choices(CANVASES, CANVAS_WEIGHTS)[0])


def evaluation_case(family: str, rng: Random, *, held_out: bool = False, thing: str | None = None) -> Case:
    """A random case of one family; with `held_out` its scene has a pair that training never shows, with `thing` it is
    about that one, which may be one of things.NOVEL."""
    if family not in FAMILIES:
        raise DuoGenError(f"Sketchbook has no task family '{family}'; it has {', '.join(FAMILIES)}.")
    if held_out and family not in WITH_HELD_OUT:
        raise DuoGenError(
            f"The family '{family}' has no held-out cases; ask for {' or '.join(WITH_HELD_OUT)}, or leave held_out out."
        )
    if thing is not None and family not in OF_THINGS:
        raise DuoGenError(f"The family '{family}' is not about one thing; {' and '.join(OF_THINGS)} are.")
    about = {} if thing is None else {"thing": thing_named(thing)}
    canvas = CANVASES[0] if family in WITHOUT_PICTURE else rng.choices(CANVASES, CANVAS_WEIGHTS)[0]
    return FAMILIES[family](rng, canvas=canvas, held_out=held_out, **about)
