"""Pending pictures: an answer whose text is written at once, and whose pictures are drawn later.

A placeholder is a white picture of the size the real one will have, so that a language model sees where it stands and
later tokens keep their positions when it is drawn. Its meta says so and what is due:

    {"pending": true, "caption": what the painter reads, "looks_at": [1, 3], "size": [1024, 768]}

caption: "" or missing, where the text before it says all. looks_at: which pictures of the conversation the painter is
shown, counted from 1, the user's included; missing: that is left to the painter. size: only where one was asked for.
The answer's turn keeps in its meta {"planned": stop reason}, why the text ended. Every stage works on
`before_next_picture(document)`, which is the document itself where nothing is pending, so the same code draws both
kinds of answers. A picture that is due in an answer that is written as it goes has its caption in the turn's meta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from duogen_core.document.document import Document, Picture, Turn

CAPTION = "caption"  # in the meta of an answer that waits for its picture, then in that of the picture
PENDING, PLANNED, LOOKS_AT, SIZE = "pending", "planned", "looks_at", "size"
SIDES = (16, 16384)  # pixels of a side that may be asked for


def placeholder(size: tuple[int, int], caption: str = "", meta: Mapping[str, Any] | None = None) -> Picture:
    """Returns what stands where an image of (width, height) will be drawn."""
    said = {CAPTION: caption} if caption else {}
    return Picture(np.full((size[1], size[0], 3), 255, np.uint8), {PENDING: True, **said, **(meta or {})})


def is_pending(part: object) -> bool:
    return isinstance(part, Picture) and bool(part.meta.get(PENDING))


def pending_index(document: Document) -> int | None:
    """Returns which part of the last turn is the first picture still to be drawn."""
    if not document.turns:
        return None
    return next((i for i, part in enumerate(document.last_turn.parts) if is_pending(part)), None)


def pending_picture(document: Document) -> Picture | None:
    """Returns the placeholder of the picture that is drawn next."""
    index = pending_index(document)
    return None if index is None else document.last_turn.parts[index]


def planned_size(due: Picture | None) -> tuple[int, int] | None:
    """Returns the (width, height) that a placeholder asks for, if it does; what a file says that is no size counts as
    nothing."""
    size = None if due is None else due.meta.get(SIZE)
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        return None
    return tuple(size) if all(SIDES[0] <= side <= SIDES[1] for side in size) else None


def looks_at(due: Picture | None) -> list[int] | None:
    """Returns which pictures of the conversation, counted from 1, the painter of this one is to see, or was shown.

    None: that is left to it. What a file says that is no number of a picture counts as nothing."""
    wanted = None if due is None else due.meta.get(LOOKS_AT)
    if not isinstance(wanted, list):
        return None
    return [number for number in wanted if type(number) is int and number >= 1]


def looked_at(document: Document, due: Picture | None) -> list[Picture] | None:
    """Returns the pictures of the document that `looks_at` names."""
    wanted = looks_at(due)
    if wanted is None:
        return None
    return [document.pictures[number - 1] for number in wanted if number <= len(document.pictures)]


def before_next_picture(document: Document) -> Document:
    """Returns the document up to the next picture: whatever draws it does not know what follows."""
    index = pending_index(document)
    if index is None:
        return document
    parts = document.last_turn.parts
    before = with_last_turn(document, replace(document.last_turn, parts=parts[:index]))
    return with_caption(before, parts[index].meta.get(CAPTION, ""))


def with_placeholder_filled(document: Document, picture: Picture) -> Document:
    """Returns the document with this picture in the place of its first placeholder."""
    parts = list(document.last_turn.parts)
    parts[pending_index(document)] = picture
    return with_last_turn(document, replace(document.last_turn, parts=tuple(parts)))


def without_pending(document: Document) -> Document:
    """Returns the document without what was not drawn: cut before its first placeholder, and not planned any more."""
    if pending_index(document) is not None:
        document = before_next_picture(document)
    if document.turns and document.last_turn.role == "assistant":
        document = with_caption(with_planned_stop(document, None), "")
    return document


def planned_stop(document: Document) -> str | None:
    """Returns why the planned text ended; None where it is to be written on."""
    if not document.turns or document.last_turn.role != "assistant":
        return None
    return document.last_turn.meta.get(PLANNED)


def with_planned_stop(document: Document, stop: str | None) -> Document:
    meta = {key: value for key, value in document.last_turn.meta.items() if key != PLANNED}
    return with_last_turn(document, replace(document.last_turn, meta={**meta, PLANNED: stop} if stop else meta))


def with_caption(document: Document, caption: str) -> Document:
    """Notes the caption of the picture that is due; "" removes it."""
    turn = document.last_turn
    meta = {key: value for key, value in turn.meta.items() if key != CAPTION}
    return with_last_turn(document, replace(turn, meta={**meta, CAPTION: caption} if caption else meta))


def due_caption(document: Document) -> str:
    """Returns the caption of the picture that is due, where one was given, else ""."""
    return str(document.last_turn.meta.get(CAPTION) or "") if document.turns else ""


def with_last_turn(document: Document, turn: Turn) -> Document:
    return replace(document, turns=(*document.turns[:-1], turn))
