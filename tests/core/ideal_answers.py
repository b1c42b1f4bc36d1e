"""Cases of Sketchbook with their ideal answers, and the figures that an evaluation has to give."""

from __future__ import annotations

import random

from duogen_core.document import Document
from duogen_core.sketchbook.tasks import evaluation_case
from duogen_core.sketchbook.tasks.common import Case

PROMISED = {
    "guide.structure", "guide.step_right", "guide.kept", "draw.right", "draw.right_heldout", "edit.right", "edit.kept",
    "plan.reached", "draft.answer", "draft.gain", "describe.right", "describe.no_picture",
}  # fmt: skip


def case_of(family: str, seed: int = 0, held_out: bool = False) -> Case:
    return evaluation_case(family, random.Random(f"test-{family}-{seed}"), held_out=held_out)


def answered(case: Case, change=lambda parts: parts, stop_reason: str = "end") -> Document:
    """The ideal answer with its list of parts changed."""
    parts = change(list(case.document.last_turn.parts))
    return case.prompt.begin_turn("assistant", parts).replace_generation(stop_reason=stop_reason)
