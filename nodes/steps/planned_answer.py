"""Plan first, draw later: an answer whose text is written whole, with places kept for its pictures.

A place is a white picture with meta {"pending": true} and the caption a prompted model gave, of the size the picture
will have: so the language model sees where a picture stands, and later tokens keep their positions when it is drawn.
The answer's turn keeps in its meta {"planned": stop reason} why the text ended. Every stage works on
`before_next_picture(context)`, which is the context itself where nothing is planned; so the same nodes draw an answer
as it is written and an answer that was planned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from duogen_core import pipeline
from duogen_core.document import Picture

if TYPE_CHECKING:
    from duogen_core.document import Document, Turn

PENDING, PLANNED = "pending", "planned"


def place(size: tuple[int, int], caption: str = "") -> Picture:
    """What stands where a picture of (width, height) will be drawn."""
    meta = {PENDING: True} | ({pipeline.CAPTION: caption} if caption else {})
    return Picture(np.full((size[1], size[0], 3), 255, np.uint8), meta)


def is_pending(part: object) -> bool:
    return isinstance(part, Picture) and bool(part.meta.get(PENDING))


def pending_index(context: Document) -> int | None:
    """Which part of the last turn is the first picture still to be drawn."""
    if not context.turns:
        return None
    return next((i for i, part in enumerate(context.last_turn.parts) if is_pending(part)), None)


def before_next_picture(context: Document) -> Document:
    """The context as the next picture is drawn from it: what follows its place is not known to it."""
    index = pending_index(context)
    if index is None:
        return context
    parts = context.last_turn.parts
    before = with_last_turn(context, replace(context.last_turn, parts=parts[:index]))
    return pipeline.with_caption(before, parts[index].meta.get(pipeline.CAPTION, ""))


def filled(context: Document, picture: Picture) -> Document:
    """The context with the picture in the first place that waits for one."""
    parts = list(context.last_turn.parts)
    parts[pending_index(context)] = picture
    return with_last_turn(context, replace(context.last_turn, parts=tuple(parts)))


def planned_stop(context: Document) -> str | None:
    """Why the planned text ended; None where it is to be written on."""
    if not context.turns or context.last_turn.role != "assistant":
        return None
    return context.last_turn.meta.get(PLANNED)


def with_planned_stop(context: Document, stop: str | None) -> Document:
    meta = {key: value for key, value in context.last_turn.meta.items() if key != PLANNED}
    return with_last_turn(context, replace(context.last_turn, meta={**meta, PLANNED: stop} if stop else meta))


def with_last_turn(context: Document, turn: Turn) -> Document:
    return replace(context, turns=(*context.turns[:-1], turn))
