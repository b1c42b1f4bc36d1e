"""A srcset attribute -> its candidates, by the HTML standard's parsing rules.

    srcset("a.jpg 1024w 768h, b.jpg 2048w 1536h")     [Candidate("a.jpg", 1.024), Candidate("b.jpg", 2.048)]

Follows "parse a srcset attribute" of https://html.spec.whatwg.org/multipage/images.html step by step, because no
pattern reads addresses that hold commas and descriptors that hold parentheses as browsers do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SPACE = " \t\n\f\r"
NOT_SPACE = re.compile(r"[^ \t\n\f\r]+")
BETWEEN = re.compile(r"[ \t\n\f\r,]*")
INTEGER = re.compile(r"[0-9]+")
FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LARGEST = 2.0**31  # of widths and heights
LAID_OUT = 1000  # pixels: how wide the picture is taken to be laid out, which weighs 2048w against 2x


@dataclass(frozen=True)
class Candidate:
    """One picture of a set. density: its pixels for each pixel of the page."""

    address: str
    density: float


def srcset(text: str) -> list[Candidate]:
    """The candidates that a browser would choose from, in their order. What has a wrong descriptor is left out."""
    found: dict[float, Candidate] = {}
    place = BETWEEN.match(text).end()
    while place < len(text):
        address = NOT_SPACE.match(text, place).group()
        place += len(address)
        descriptors: list[str] = []
        if address.endswith(","):  # the candidate ends here and has no descriptors
            address = address.rstrip(",")
        else:
            descriptors, place = _descriptors(text, place)
        density = _density(descriptors)
        if density is not None:
            found.setdefault(density, Candidate(address, density))  # of equal ones browsers know only the first
        place = BETWEEN.match(text, place).end()
    return list(found.values())


def best_first(text: str | None) -> list[str]:
    """The addresses of a srcset, the largest picture first."""
    return [each.address for each in sorted(srcset(text or ""), key=lambda each: -each.density)]


def _descriptors(text: str, place: int) -> tuple[list[str], int]:
    """What stands between an address and the comma behind it, cut at white space that is in no parentheses."""
    start, inside = place, False
    ends = [place]  # of every descriptor, and of the white space around them
    while place < len(text):
        letter = text[place]
        if inside:
            inside = letter != ")"
        elif letter in SPACE:
            ends.append(place)
        elif letter == ",":
            break
        else:
            inside = letter == "("
        place += 1
    ends.append(place)
    found = [text[begin:end].strip(SPACE) for begin, end in zip([start, *ends], ends)]
    return [each for each in found if each], min(place + 1, len(text))


def _density(descriptors: list[str]) -> float | None:
    """Pixels for each pixel of the page; None where a descriptor is wrong or contradicts another one."""
    width = density = height = None
    for each in descriptors:
        number, kind = each[:-1], each[-1]
        size = float(number) if INTEGER.fullmatch(number) else 0.0
        if kind == "w" and 0 < size < LARGEST and width is None and density is None:
            width = size
        elif kind == "x" and FLOAT.fullmatch(number) and 0 <= float(number) < LARGEST and width == density == height:
            density = float(number)  # all three are None: no other descriptor may stand beside a density
        elif kind == "h" and 0 < size < LARGEST and height is None and density is None:
            height = size
        else:
            return None
    if height is not None and width is None:
        return None
    return width / LAID_OUT if width is not None else 1.0 if density is None else density
