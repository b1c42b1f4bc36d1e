"""For DuoGen's own models: they read the whole conversation, and the text before a picture is what it shows.

So nothing is composed, unless a part has no text: then what the picture shows is all there is to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from duogen_core.planning.plan import Plan, Reference


def prompt(plan: Plan, number: int, seen: Sequence[Reference], users: int) -> str:
    part = [part for part in plan.parts if part.picture is not None][number - 1]
    return "" if part.text.strip() else part.picture.shows
