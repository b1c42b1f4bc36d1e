"""How well an arm writes: whole answers in which the case's own pictures take the place of drawn ones.

So the words alone are judged, and no DiT is needed. Where the model asks for more pictures than the ideal answer has,
the last one comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from duogen_core.checkpoint import Components
from duogen_core.document import Document, Picture
from duogen_core.mllm.base import Mllm
from duogen_core.pipeline import Settings, generate, with_text
from duogen_core.sketchbook.ablation.pictures import Say, Values, silent
from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.checker import PALETTE_RGB
from duogen_core.sketchbook.evaluation import cases
from duogen_core.sketchbook.scene import COLOURS
from duogen_core.sketchbook.scores import score

GROUPS = ("guide", "continue", "edit", "draft", "undrafted", "describe")
JUDGED = (
    "guide.structure", "continue.structure", "draft.answer", "draft.picture", "undrafted.answer", "describe.right",
    "describe.no_picture",
)  # fmt: skip
TOKENS = 300  # of an answer, at most
Answering = Callable[[Case, int], Document]


def with_ideal_pictures(mllm: Mllm, case: Case) -> Document:
    """The model's answer, greedy, to the case's request."""
    document, left, drawn = case.prompt, TOKENS, 0
    ideals = case.document.last_turn.pictures or (blank(),)
    while True:
        written = mllm.continue_(document, max_new_tokens=left)
        left -= written.tokens
        document = with_text(document, written.text)
        if written.stop != "picture" or drawn > len(ideals):
            return document.replace_generation(stop_reason=written.stop)
        document = document.append(ideals[min(drawn, len(ideals) - 1)])
        drawn += 1


def blank() -> Picture:
    cream = PALETTE_RGB[COLOURS.index("cream")].astype(np.uint8)
    return Picture(np.broadcast_to(cream, (128, 128, 3)))


def with_own_pictures(components: Components, settings: Settings) -> Answering:
    return lambda case, seed: generate(components, case.prompt, replace(settings, seed=seed))


def written(answer: Answering, count: int, seed: int, groups: Sequence[str] = GROUPS, say: Say = silent) -> Values:
    """Per check one value a case; "edit.words": the answer to an edit says in words exactly what is now different."""
    found: Values = {}
    chosen = cases(count * len(groups), seed, groups)
    for number, (_, case) in enumerate(chosen):
        say(number, len(chosen))
        document = answer(case, number * 10)
        checks = {name: value for name, value in score(case, document).checks.items() if name in JUDGED}
        if case.family == "edit":
            turn = document.turns[len(case.prompt.turns)]
            checks["edit.words"] = float(turn.text == case.document.text)
        for name, value in checks.items():
            found.setdefault(name, []).append(value)
    return found
