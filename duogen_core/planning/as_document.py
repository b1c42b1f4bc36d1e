"""Plan <-> Document: the answer as it is planned, with pending pictures that the pipeline and the nodes draw.

    planned(request, plan, "edit")   the request, and its answer: texts, and a placeholder for each picture
    plan_of(document)                the plan of an answer, drawn or not; of one that was never planned, its texts and
                                     captions
    with_plan(document, plan, …)     another plan in its place: pictures whose prompt, size and references are as they
                                     were (of a conversation's painter, the texts) keep what was drawn, up to the first
                                     that changed

What a painter reads is the placeholder's caption, composed by the painter's kind (`duogen_core.planning.painters`);
which pictures it sees is `looks_at`, counted from 1 through the whole conversation, the user's pictures first. The
answer's turn keeps the plan in its meta, so that it can be edited and drawn again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from duogen_core.document import Document, Picture, Text, Turn
from duogen_core.document.pending import CAPTION, LOOKS_AT, PLANNED, SIZE, is_pending, placeholder, planned_size
from duogen_core.errors import DuoGenError
from duogen_core.planning.painters import CONVERSATION, EDIT, prompt_for
from duogen_core.planning.plan import MOST_REFERENCES, Part, Plan, PlannedPicture, Reference, references

PLAN, PAINTER = "plan", "painter"  # in the meta of the answer's turn
SQUARE = (1024, 1024)  # of a placeholder, where nobody chose a size: what most image models draw


def planned(
    request: Document, plan: Plan, painter: str = EDIT, *, size: tuple[int, int] = SQUARE, most: int | None = None
) -> Document:
    """Returns the request with its planned answer. It ends with a user turn, or with an answer that the plan replaces.

    size: (width, height) of pictures for which the plan names none. most: how many earlier pictures the painter takes;
    None: nobody knows, so it is MOST_REFERENCES, or as many as a picture of the plan names itself.
    """
    compose = prompt_for(painter)
    if request.turns and request.last_turn.role == "assistant":
        request = replace(request, turns=request.turns[:-1])
    before = len(request.pictures)
    limit = MOST_REFERENCES if most is None else most
    parts: list[Text | Picture] = []
    drawn = 0
    for part in plan.parts:
        if part.text:
            # Texts of a turn are joined without anything between, and a picture parts them by itself.
            apart = "\n\n" if parts and isinstance(parts[-1], Text) else ""
            parts.append(Text(apart + part.text))
        if part.picture is None:
            continue
        drawn += 1
        # The user's pictures come first, but the state before has its place among those that a painter takes.
        given = _given(request, max(0, limit - min(1, len(references(plan, drawn)))))
        own = 0 if most is not None else len(part.picture.looks_at or ())
        seen = _seen(plan, drawn, max(limit - len(given), own))
        looks_at = [*given, *(before + one.picture for one in seen)]
        about: dict[str, Any] = {LOOKS_AT: looks_at}
        if part.picture.size is not None:
            about[SIZE] = list(part.picture.size)
        caption = compose(plan, drawn, seen, len(given))
        parts.append(placeholder(part.picture.size or size, caption, about))
    turn = Turn("assistant", tuple(parts), {PLANNED: "end", PLAN: plan.to_json(), PAINTER: painter})
    return replace(request, turns=(*request.turns, turn), generation={})


def _given(request: Document, most: int) -> list[int]:
    """At most so many of the pictures that a request is about, counted from 1 through the conversation: the first of
    its own turn; where that has none, the latest before it."""
    count, own = len(request.pictures), len(request.last_turn.pictures) if request.turns else 0
    first = max(count - (own or min(most, count)), 0)
    return list(range(first + 1, min(first + most, count) + 1))


def _seen(plan: Plan, number: int, most: int) -> tuple[Reference, ...]:
    """At most so many of a picture's references: those to the state before come first, then the earliest."""
    found = references(plan, number)
    kept = sorted(found, key=lambda one: (one.why != "before", one.picture))[:most]
    return tuple(sorted(kept, key=lambda one: one.picture))


def is_planned(document: Document) -> bool:
    return bool(document.turns) and document.last_turn.role == "assistant" and PLAN in document.last_turn.meta


def plan_of(document: Document) -> Plan:
    """Returns the plan of the document's answer. Raises a DuoGenError where it has none."""
    if not document.turns or document.last_turn.role != "assistant" or not document.last_turn.parts:
        raise DuoGenError("The document has no answer, so there is no plan in it; plan one first.")
    turn = document.last_turn
    if PLAN in turn.meta:
        return Plan.from_json(turn.meta[PLAN])
    parts: list[Part] = []
    for part in turn.parts:
        if isinstance(part, Text):
            parts.append(Part(part.text.strip()))
            continue
        text = parts.pop().text if parts and parts[-1].picture is None else ""
        shows = str(part.meta.get(CAPTION) or "").strip() or text or "The picture that belongs here."
        parts.append(Part(text, PlannedPicture(shows, size=planned_size(part))))
    return Plan("", tuple(part for part in parts if part.text or part.picture))


def with_plan(document: Document, plan: Plan, painter: str | None = None, **how: Any) -> Document:
    """Returns the document with another plan for its answer. What was drawn stays as far as nothing before it changed:
    a later picture looks at the earlier ones. painter: None for the kind it was planned for."""
    if not document.turns or document.last_turn.role != "assistant":
        return planned(document, plan, painter or EDIT, **how)
    old = document.last_turn
    painter = painter or str(old.meta.get(PAINTER) or EDIT)
    new = planned(document, plan, painter, **how)
    was_drawn = _with_texts(old)
    parts, going, text = [], True, ""
    for part in new.last_turn.parts:
        if isinstance(part, Text):
            text += part.text
        else:
            before, said = was_drawn.pop(0) if was_drawn else (None, "")
            going = going and before is not None and not is_pending(before) and _same_wish(before, part)
            going = going and (painter != CONVERSATION or said == text)  # it draws what the text says
            part, text = (before if going else part), ""
        parts.append(part)
    return replace(new, turns=(*new.turns[:-1], replace(new.last_turn, parts=tuple(parts))))


def _with_texts(turn: Turn) -> list[tuple[Picture, str]]:
    """The pictures of an answer, each with the text since the one before."""
    found, text = [], ""
    for part in turn.parts:
        if isinstance(part, Picture):
            found.append((part, text))
        text = "" if isinstance(part, Picture) else text + part.text
    return found


def _same_wish(drawn: Picture, wanted: Picture) -> bool:
    return all(drawn.meta.get(name) == wanted.meta.get(name) for name in (CAPTION, LOOKS_AT, SIZE))
