"""For models that edit with several pictures in view (Qwen-Image-Edit, FLUX.2, OmniGen2).

They call the pictures they are given "image 1", "image 2", … in order, and draw what an instruction relative to them
asks for. Those here are the user's own pictures first, then those of the answer that `seen` names. Of the cast, looks
are told only where no picture in view shows them yet: words beside a picture of the same thing pull it away from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from duogen_core.planning.painters.words import in_picture, joined, looks_of, sentence
from duogen_core.planning.plan import Plan, Reference, appears


def prompt(plan: Plan, number: int, seen: Sequence[Reference], users: int) -> str:
    """seen: the earlier pictures of the answer that go along, ascending. users: how many pictures of the user do."""
    shows = sentence(plan.pictures[number - 1].shows)
    if not seen:
        given = f"Use {_images(range(1, users + 1))} as given by the user." if users else ""
        return joined(given, shows, looks_of(in_picture(plan, number)), sentence(plan.style))
    names = {reference.picture: f"image {users + place}" for place, reference in enumerate(seen, 1)}
    new, keep = [], []
    for member in in_picture(plan, number):
        where = [one.picture for one in seen if appears(member, plan.pictures[one.picture - 1].shows)]
        if where:
            keep.append(f"{member.name} as in {names[where[0]]}")
        else:
            new.append(member)
    before = next((names[one.picture] for one in reversed(seen) if one.why == "before"), None)
    start = f"Continue from {before}:" if before else "New scene:"
    same = f"Keep {_list(keep)}." if keep else f"Keep what else is in {before} the same." if before else ""
    return joined(start, shows, same, looks_of(new), sentence(plan.style))


def _images(numbers: Sequence[int]) -> str:
    return _list([f"image {number}" for number in numbers])


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
