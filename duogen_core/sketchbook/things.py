"""What can be drawn step by step: things made of parts, one part and one text per step.

The same thing, colours and step give the same image; canvases other than 128x128 get the same drawing in their centred
square. `parse_step` reads part and colour back from a text. `Thing` and `Part`: drawing.py; the data:
things_catalogue.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from duogen_core.errors import DuoGenError, unknown
from duogen_core.sketchbook.drawing import Part, Thing, paint
from duogen_core.sketchbook.scene import COLOURS
from duogen_core.sketchbook.things_catalogue import NOVEL, THINGS

__all__ = ["ParsedStep", "Part", "Thing", "ideal_picture", "parse_step", "part_names", "thing_named", "things"]


def ideal_picture(
    thing: Thing | str, colours: Mapping[str, str], step: int, canvas: tuple[int, int] = (128, 128)
) -> np.ndarray:
    """The picture after step `step` (1: the first part only), uint8 [height, width, 3]; a colour for every part."""
    thing = thing_named(thing) if isinstance(thing, str) else thing
    return paint(thing.marks(colours, step, canvas), canvas)


class ParsedStep(NamedTuple):
    number: int
    part: str
    colour: str


_STEP = re.compile(rf"Step (\d+): \w+(?: with)?(?: (?:an?|two|three))? ({'|'.join(COLOURS)}) ([^.:]+)\.")


def parse_step(text: str, thing: Thing | str | None = None) -> ParsedStep | None:
    """Number, part and colour of the last step in a text, or None where there is none.

    With `thing`, only its parts count; without, any part of any of the twenty things.
    """
    found = _STEP.findall(text)
    if not found:
        return None
    number, colour, rest = found[-1]
    thing = thing_named(thing) if isinstance(thing, str) else thing
    names = part_names([thing] if thing else things().values())
    part = next((name for name in names if f"{rest} ".startswith(f"{name} ")), None)
    return ParsedStep(int(number), part, colour) if part else None


def part_names(of: Iterable[Thing]) -> list[str]:
    """Names of parts, the longest first."""
    return sorted({part.name for thing in of for part in thing.parts}, key=lambda name: (-len(name), name))


def things() -> dict[str, Thing]:
    """The twenty things by name; all that training shows."""
    return THINGS


def thing_named(name: str) -> Thing:
    """One of the twenty, or one that training never shows."""
    known = {**THINGS, **NOVEL}
    if name not in known:
        raise DuoGenError(f"{unknown('The thing', name, known)}")
    return known[name]
