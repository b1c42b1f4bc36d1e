"""What can be drawn step by step: things made of parts, one part and one text per step.

A part is a few polygons of one colour on the 128x128 canvas (other canvases get the same drawing in their centred
square). Same thing, same colours, same step -> same picture. `parse_step` reads part and colour back from a text.
The things themselves stand in things_catalogue.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from duogen_core.data.sketchbook.draw import Mark, Point, fitted, paint
from duogen_core.data.sketchbook.scene import COLOURS, HELD_OUT

Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class Part:
    """One step. `choices` are the colours it may have; `like` names an earlier part whose colour it takes instead.

    `kind` names the Sketchbook shape it looks like, so that held-out pairs stay out of the things too.
    """

    name: str
    number: str
    where: str
    choices: tuple[str, ...]
    polygons: tuple[Polygon, ...]
    kind: str | None = None
    like: str | None = None

    @property
    def free(self) -> bool:
        """Whether a user may choose its colour."""
        return self.like is None and len(self.choices) > 1

    def allows(self, colour: str) -> bool:
        return colour in self.choices and (colour, self.kind) not in HELD_OUT

    def phrase(self, colour: str) -> str:
        number = "an" if self.number == "a" and colour[0] in "aeiou" else self.number
        return f"{number} {colour} {self.name}".lstrip()


@dataclass(frozen=True)
class Thing:
    name: str
    parts: tuple[Part, ...]

    @property
    def phrase(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def steps(self) -> int:
        return len(self.parts)

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def choose_colours(self, rng: Random, asked: Mapping[str, str] | None = None) -> dict[str, str]:
        """A colour for every part: the asked ones, the rest random; no two parts alike unless one is `like` another."""
        while True:
            colours: dict[str, str] = dict(asked or {})
            for part in sorted(self.parts, key=lambda part: len(part.choices)):  # the fixed ones first
                if part.like is None and part.name not in colours:
                    options = [c for c in part.choices if part.allows(c) and c not in colours.values()]
                    if not options:
                        break
                    colours[part.name] = rng.choice(options)
            else:
                colours |= {part.name: colours[part.like] for part in self.parts if part.like}
                if all((colours[part.name], part.kind) not in HELD_OUT for part in self.parts):
                    return {part.name: colours[part.name] for part in self.parts}

    def marks(self, colours: Mapping[str, str], steps: int, canvas: tuple[int, int]) -> list[Mark]:
        return [
            Mark(colours[part.name], fitted(polygon, canvas))
            for part in self.parts[:steps]
            for polygon in part.polygons
        ]


def ideal_picture(
    thing: Thing | str, colours: Mapping[str, str], step: int, canvas: tuple[int, int] = (128, 128)
) -> np.ndarray:
    """The picture after step `step` (1: the first part only), uint8 [height, width, 3]; a colour for every part."""
    thing = things()[thing] if isinstance(thing, str) else thing
    return paint(thing.marks(colours, step, canvas), canvas)


class ParsedStep(NamedTuple):
    number: int
    part: str
    colour: str


_STEP = re.compile(rf"Step (\d+): \w+(?: with)?(?: (?:an?|two|three))? ({'|'.join(COLOURS)}) ([^.:]+)\.")


def parse_step(text: str, thing: Thing | str | None = None) -> ParsedStep | None:
    """Number, part and colour of the last step in a text, or None where there is none.

    With `thing`, only its parts count; without, any part of any thing.
    """
    found = _STEP.findall(text)
    if not found:
        return None
    number, colour, rest = found[-1]
    thing = things().get(thing) if isinstance(thing, str) else thing
    names = part_names([thing] if thing else things().values())
    part = next((name for name in names if f"{rest} ".startswith(f"{name} ")), None)
    return ParsedStep(int(number), part, colour) if part else None


def part_names(of: Iterable[Thing]) -> list[str]:
    """Names of parts, the longest first."""
    return sorted({part.name for thing in of for part in thing.parts}, key=lambda name: (-len(name), name))


def things() -> dict[str, Thing]:
    """All things by name."""
    from duogen_core.data.sketchbook.things_catalogue import THINGS

    return THINGS
