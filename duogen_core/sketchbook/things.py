"""What can be drawn step by step: things made of parts, one part and one text per step.

A part is a few polygons of one colour on the 128x128 canvas; other canvases get the same drawing in their centred
square. The same thing, colours and step give the same image. `parse_step` reads part and colour back from a text.

The data follow at the end, parts in drawing order. THINGS are the twenty of the guides. Every part is at least about 16
pixels each way in sum, so that a small model can draw it. NOVEL are things that no training of the bundled model shows:
what a fine-tuning is tried and measured on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from duogen_core.errors import DuoGenError, unknown
from duogen_core.sketchbook.drawing import Mark, Point, fitted, paint
from duogen_core.sketchbook.drawing import ellipse as e
from duogen_core.sketchbook.drawing import rectangle as r
from duogen_core.sketchbook.scene import COLOURS, HELD_OUT

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
    """Returns the image after `step` steps, uint8 [height, width, 3]; `colours` has one for every part."""
    thing = thing_named(thing) if isinstance(thing, str) else thing
    return paint(thing.marks(colours, step, canvas), canvas)


class ParsedStep(NamedTuple):
    number: int
    part: str
    colour: str


_STEP = re.compile(rf"Step (\d+): \w+(?: with)?(?: (?:an?|two|three))? ({'|'.join(COLOURS)}) ([^.:]+)\.")


def parse_step(text: str, thing: Thing | str | None = None) -> ParsedStep | None:
    """Returns number, part and colour of the last step in a text, or None where there is none.

    With `thing`, only its parts count; without, any part of any of the twenty things.
    """
    found = _STEP.findall(text)
    if not found:
        return None
    number, colour, rest = found[-1]
    thing = thing_named(thing) if isinstance(thing, str) else thing
    names = part_names([thing] if thing else THINGS.values())
    part = next((name for name in names if f"{rest} ".startswith(f"{name} ")), None)
    return ParsedStep(int(number), part, colour) if part else None


def part_names(of: Iterable[Thing]) -> list[str]:
    """Returns the names of parts, the longest first."""
    return sorted({part.name for thing in of for part in thing.parts}, key=lambda name: (-len(name), name))


def thing_named(name: str) -> Thing:
    """Returns one of the twenty, or one that training never shows."""
    known = {**THINGS, **NOVEL}
    if name not in known:
        raise DuoGenError(unknown("The thing", name, known))
    return known[name]


# ---------------------------------------------------------------- the twenty that training shows

BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
ANY = (*BRIGHT, "black", "grey")
INSIDE = (*ANY, "white")  # white shows on other parts, hardly on the cream background
BLACK, BROWN, GREEN, WHITE = ("black",), ("brown",), ("green",), ("white",)


def p(*points: tuple[float, float]) -> Polygon:
    return points


def dome(cx: float, base: float, rx: float, ry: float) -> Polygon:
    """Upper half of an ellipse."""
    return tuple(point for point in e(cx, base, rx, ry) if point[1] <= base + 1e-6)


_TWENTY = (
    Thing(
        "house",
        (
            Part("walls", "", "in the middle", ANY, (r(26, 56, 102, 116),), "square"),
            Part("roof", "a", "on top of the walls", BRIGHT, (p((14, 56), (64, 14), (114, 56)),), "triangle"),
            Part("door", "a", "at the bottom of the walls", INSIDE, (r(55, 82, 73, 116),)),
            Part(
                "windows", "two", "left and right of the door", INSIDE, (r(32, 66, 50, 84), r(78, 66, 96, 84)), "square"
            ),
        ),
    ),
    Thing(
        "tree",
        (
            Part("trunk", "a", "at the bottom", ("brown", "black", "grey"), (r(54, 70, 74, 120),)),
            Part("crown", "a", "on top of the trunk", BRIGHT, (e(64, 46, 38, 34),), "circle"),
            Part("apples", "three", "in the crown", INSIDE, (e(46, 50, 9), e(66, 30, 9), e(82, 54, 9)), "circle"),
        ),
    ),
    Thing(
        "car",
        (
            Part("body", "a", "in the middle", BRIGHT, (r(10, 64, 118, 94),)),
            Part("cabin", "a", "on top of the body", ANY, (p((30, 64), (44, 34), (88, 34), (102, 64)),)),
            Part("windows", "two", "in the cabin", INSIDE, (r(45, 42, 62, 60), r(69, 42, 86, 60)), "square"),
            Part("wheels", "two", "under the body", BLACK, (e(36, 95, 15), e(92, 95, 15)), "circle"),
        ),
    ),
    Thing(
        "boat",
        (
            Part("hull", "a", "at the bottom", BRIGHT, (p((12, 84), (116, 84), (96, 112), (32, 112)),)),
            Part("mast", "a", "on top of the hull", ("brown", "black", "grey"), (r(56, 12, 68, 84),)),
            Part("sail", "a", "right of the mast", BRIGHT, (p((68, 16), (114, 76), (68, 76)),), "triangle"),
            Part("flag", "a", "left of the mast", ANY, (p((56, 14), (56, 42), (24, 28)),), "triangle"),
        ),
    ),
    Thing(
        "flower",
        (
            Part("stem", "a", "at the bottom", GREEN, (r(58, 64, 70, 122),)),
            Part(
                "leaves", "two", "left and right of the stem", GREEN, (e(41, 98, 18, 9), e(87, 98, 18, 9)), like="stem"
            ),
            Part(
                "petals",
                "",
                "on top of the stem",
                BRIGHT,
                (e(64, 18, 14), e(43, 31, 14), e(85, 31, 14), e(43, 55, 14), e(85, 55, 14), e(64, 67, 14)),
                "circle",
            ),
            Part("centre", "a", "in the middle of the petals", INSIDE, (e(64, 43, 18),), "circle"),
        ),
    ),
    Thing(
        "snowman",
        (
            Part("body", "a", "at the bottom", ("white", "grey", "blue", "pink"), (e(64, 92, 34, 30),), "circle"),
            Part("head", "a", "on top of the body", INSIDE, (e(64, 48, 24),), "circle", "body"),
            Part("scarf", "a", "under the head", BRIGHT, (r(42, 62, 86, 76),)),
            Part("hat", "a", "on top of the head", ANY, (r(46, 4, 82, 26), r(34, 24, 94, 34))),
            Part("nose", "a", "in the middle of the head", ("orange",), (p((62, 40), (62, 56), (94, 50)),), "triangle"),
        ),
    ),
    Thing(
        "rocket",
        (
            Part("body", "a", "in the middle", ANY, (r(44, 40, 84, 98),)),
            Part("tip", "a", "on top of the body", BRIGHT, (p((44, 40), (64, 6), (84, 40)),), "triangle"),
            Part(
                "fins",
                "two",
                "left and right of the body",
                ANY,
                (p((44, 68), (44, 98), (18, 108)), p((84, 68), (84, 98), (110, 108))),
                "triangle",
            ),
            Part("window", "a", "in the body", INSIDE, (e(64, 60, 12),), "circle"),
            Part(
                "flame",
                "a",
                "under the body",
                ("orange", "yellow", "red"),
                (p((50, 98), (78, 98), (64, 124)),),
                "triangle",
            ),
        ),
    ),
    Thing(
        "landscape",
        (
            Part("left hill", "a", "at the bottom left", BRIGHT, (dome(44, 118, 40, 54),)),
            Part("right hill", "a", "at the bottom right", BRIGHT, (dome(88, 118, 36, 36),)),
            Part("sun", "a", "in the top right", ("yellow", "orange", "red"), (e(94, 36, 22),), "circle"),
            Part("cloud", "a", "in the top left", ("grey", "blue", "pink"), (e(26, 34, 16, 12), e(46, 28, 16, 16))),
        ),
    ),
    Thing(
        "fish",
        (
            Part("body", "a", "in the middle", BRIGHT, (e(54, 66, 42, 30),), "circle"),
            Part("tail", "a", "right of the body", BRIGHT, (p((88, 66), (120, 38), (120, 94)),), "triangle"),
            Part("fin", "a", "on top of the body", ANY, (p((34, 42), (76, 42), (64, 14)),), "triangle"),
            Part("eye", "a", "on the left of the body", ("white", "black"), (e(34, 60, 9),), "circle"),
        ),
    ),
    Thing(
        "cat",
        (
            Part("head", "a", "in the middle", ANY, (e(64, 72, 44, 40),), "circle"),
            Part(
                "ears",
                "two",
                "on top of the head",
                ANY,
                (p((24, 58), (28, 10), (58, 40)), p((104, 58), (100, 10), (70, 40))),
                "triangle",
            ),
            Part("eyes", "two", "in the head", INSIDE, (e(46, 64, 9, 11), e(82, 64, 9, 11)), "circle"),
            Part("nose", "a", "under the eyes", INSIDE, (e(64, 86, 12, 9),), "circle"),
        ),
    ),
    Thing(
        "robot",
        (
            Part("body", "a", "in the middle", ANY, (r(38, 56, 90, 102),), "square"),
            Part("head", "a", "on top of the body", ANY, (r(42, 14, 86, 54),), "square"),
            Part("eyes", "two", "in the head", INSIDE, (e(54, 34, 9), e(74, 34, 9)), "circle"),
            Part("arms", "two", "left and right of the body", ANY, (r(16, 58, 36, 96), r(92, 58, 112, 96))),
            Part("legs", "two", "under the body", ANY, (r(42, 104, 60, 124), r(68, 104, 86, 124))),
        ),
    ),
    Thing(
        "ice cream",
        (
            Part(
                "cone",
                "a",
                "at the bottom",
                ("brown", "orange", "yellow"),
                (p((36, 68), (92, 68), (64, 124)),),
                "triangle",
            ),
            Part("large scoop", "a", "on top of the cone", BRIGHT, (e(64, 58, 30, 22),), "circle"),
            Part("small scoop", "a", "on top of the large scoop", BRIGHT, (e(64, 34, 22, 18),), "circle"),
            Part("cherry", "a", "on top of the small scoop", ("red", "purple", "black"), (e(64, 13, 10),), "circle"),
        ),
    ),
    Thing(
        "castle",
        (
            Part("wall", "a", "in the middle", ANY, (r(34, 62, 94, 118),), "square"),
            Part("towers", "two", "left and right of the wall", ANY, (r(12, 42, 36, 118), r(92, 42, 116, 118))),
            Part(
                "roofs",
                "two",
                "on top of the towers",
                BRIGHT,
                (p((6, 42), (24, 10), (42, 42)), p((86, 42), (104, 10), (122, 42))),
                "triangle",
            ),
            Part("gate", "a", "at the bottom of the wall", INSIDE, (r(52, 90, 76, 118), dome(64, 91, 12, 13))),
        ),
    ),
    Thing(
        "umbrella",
        (
            Part(
                "handle",
                "a",
                "at the bottom",
                ("brown", "black", "grey"),
                (r(59, 60, 69, 118), r(69, 108, 90, 118), r(80, 98, 90, 118)),
            ),
            Part("canopy", "a", "on top of the handle", BRIGHT, (dome(64, 70, 54, 56),)),
            Part("stripe", "a", "in the middle of the canopy", INSIDE, (dome(64, 70, 20, 56),)),
        ),
    ),
    Thing(
        "train",
        (
            Part("engine", "a", "on the left", BRIGHT, (r(12, 56, 76, 94),)),
            Part("cabin", "a", "right of the engine", BRIGHT, (r(76, 26, 116, 94),)),
            Part("window", "a", "in the cabin", INSIDE, (r(86, 36, 106, 58),), "square"),
            Part("chimney", "a", "on top of the engine", ANY, (r(22, 24, 42, 56),)),
            Part("wheels", "three", "at the bottom", BLACK, (e(30, 98, 14), e(63, 98, 14), e(96, 98, 14)), "circle"),
        ),
    ),
    Thing(
        "kite",
        (
            Part("sheet", "a", "in the middle", BRIGHT, (p((64, 6), (102, 46), (64, 92), (26, 46)),), "diamond"),
            Part(
                "lower half", "a", "at the bottom of the sheet", INSIDE, (p((26, 46), (102, 46), (64, 92)),), "triangle"
            ),
            Part("tail", "a", "under the sheet", ANY, (p((58, 86), (70, 86), (86, 124), (72, 124)),)),
            Part("bows", "two", "left and right of the tail", ANY, (e(56, 110, 12, 9), e(98, 106, 12, 9))),
        ),
    ),
    Thing(
        "butterfly",
        (
            Part("upper wings", "two", "at the top", BRIGHT, (e(35, 44, 27, 28), e(93, 44, 27, 28)), "circle"),
            Part(
                "lower wings", "two", "under the upper wings", BRIGHT, (e(40, 92, 22, 22), e(88, 92, 22, 22)), "circle"
            ),
            Part("body", "a", "between the wings", ("black", "brown", "grey"), (e(64, 66, 10, 50),)),
            Part("dots", "two", "in the upper wings", INSIDE, (e(35, 44, 11), e(93, 44, 11)), "circle"),
        ),
    ),
    Thing(
        "lamp",
        (
            Part("foot", "a", "at the bottom", ANY, (r(34, 104, 94, 120),)),
            Part("pole", "a", "on top of the foot", ("black", "brown", "grey"), (r(58, 60, 70, 104),)),
            Part("shade", "a", "on top of the pole", BRIGHT, (p((44, 12), (84, 12), (110, 66), (18, 66)),)),
            Part("stripe", "a", "at the bottom of the shade", INSIDE, (p((27, 48), (101, 48), (110, 66), (18, 66)),)),
        ),
    ),
    Thing(
        "mushroom",
        (
            Part("stem", "a", "at the bottom", ANY, (p((50, 62), (78, 62), (86, 112), (42, 112)),)),
            Part("cap", "a", "on top of the stem", BRIGHT, (dome(64, 70, 54, 56),)),
            Part("dots", "three", "in the cap", INSIDE, (e(36, 54, 9), e(64, 34, 10), e(92, 54, 9)), "circle"),
            Part("meadow", "a", "under the stem", GREEN, (r(16, 106, 112, 122),)),
        ),
    ),
    Thing(
        "cupcake",
        (
            Part("cup", "a", "at the bottom", ANY, (p((26, 74), (102, 74), (90, 120), (38, 120)),)),
            Part("icing", "", "on top of the cup", BRIGHT, (e(64, 64, 44, 20), e(64, 44, 28, 18))),
            Part("cherry", "a", "on top of the icing", ("red", "purple", "black"), (e(64, 18, 13),), "circle"),
        ),
    ),
)
THINGS = {thing.name: thing for thing in _TWENTY}


# ---------------------------------------------------------------- what training never shows

GLASS = e(64, 60, 46)

_NOVEL = (
    Thing(
        "snow globe",
        (
            Part("base", "a", "at the bottom", ANY, (p((36, 98), (92, 98), (104, 122), (24, 122)),)),
            Part("glass", "a", "on top of the base", ("blue", "grey", "purple", "green"), (GLASS,), "circle"),
            Part(
                "snow",
                "",
                "at the bottom of the glass",
                ("white", "pink", "grey"),
                (tuple(point for point in GLASS if point[1] >= 76),),
            ),
            Part("tree", "a", "in the glass", BRIGHT, (p((42, 84), (86, 84), (64, 24)),), "triangle"),
        ),
    ),
)
NOVEL = {thing.name: thing for thing in _NOVEL}
