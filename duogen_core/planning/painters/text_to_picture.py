"""For models that know words alone: every prompt says everything, since nothing of an earlier picture is seen."""

from __future__ import annotations

from collections.abc import Sequence

from duogen_core.planning.painters.words import in_picture, joined, looks_of, sentence
from duogen_core.planning.plan import Plan, Reference


def prompt(plan: Plan, number: int, seen: Sequence[Reference], users: int) -> str:
    """What is seen, then the looks of all of the cast that appear, then the style. seen, users: not looked at."""
    shows = sentence(plan.pictures[number - 1].shows)
    return joined(shows, looks_of(in_picture(plan, number)), sentence(plan.style))
