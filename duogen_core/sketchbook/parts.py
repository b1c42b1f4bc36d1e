"""A thing made of parts: what one step of a guide draws, which colours it may have, and its polygons.

In: names, colours and polygons on the 128x128 canvas. Out: phrases for the texts, colours chosen, marks to paint.
The things themselves stand in things_catalogue.py, what reads and draws them in things.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from duogen_core.sketchbook.draw import Mark, Point, fitted
from duogen_core.sketchbook.scene import HELD_OUT

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
