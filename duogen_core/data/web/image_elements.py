"""<img>, <picture>, <input type=image>, <object>, <embed>, inline <svg>, posters -> ImageRef with all its addresses.

Pages that load pictures late hold the real address in data-src and the like and a placeholder in src, so addresses come
in this order: late ones, those of <source> and srcset from the largest to the smallest, src. Where src is missing or a
placeholder, any attribute that holds the address of a picture counts as a late one.

`srcset` follows "parse a srcset attribute" of https://html.spec.whatwg.org/multipage/images.html step by step, because
no pattern reads addresses that hold commas and descriptors that hold parentheses as browsers do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from duogen_core.data.web.page import ImageRef

LATE_SETS = ("data-srcset", "data-lazy-srcset")
LATE = ("data-src", "data-lazy-src", "data-original", "data-lazy", "data-hi-res-src", "data-full-src", "data-image")
PICTURE_NAME = re.compile(r"\.(?:png|jpe?g|jfif|gif|webp|avif|bmp|svg)(?:$|[?#])", re.IGNORECASE)
PICTURE_ATTRIBUTE = re.compile(r"src|img|image|picture|photo|thumb", re.IGNORECASE)
ADDRESS = re.compile(r"(?:https?:)?//[^\s\"'<>]+|\.{0,2}/[^\s\"'<>]+", re.IGNORECASE)
NO_ADDRESS = frozenset({"src", "srcset", "href", "alt", "title", "class", "id", "style", "sizes", "name", "usemap"})
PLACEHOLDER = re.compile(
    r"^data:|^about:|^#|(?:^|[/_.-])(?:placeholder|spacer|blank|pixel|transparent|loading|loader|lazy(?:load)?|empty|"
    r"grey|gray|dummy|1x1|clear)(?:[_.-][^/]*)?\.(?:gif|png|svg|jpe?g|webp)(?:$|[?#])",
    re.IGNORECASE,
)
PIXELS = re.compile(r"\s*(\d{1,5})(?:\.\d+)?\s*(?:px)?\s*$")
STYLE_SIZE = re.compile(r"(?:^|;)\s*(width|height)\s*:\s*(\d{1,5})(?:\.\d+)?px", re.IGNORECASE)
MAX_SOURCES = 24
MAX_CHARACTERS = 1000  # of an alt text or a title


def image_of(element: Any, region: str = "", link: str = "") -> ImageRef | None:
    """Returns the picture that this element shows, or None."""
    tag = element.tag
    sources: list[str] = []
    kind = "img"
    if tag == "svg":
        kind = "svg"
    elif tag in ("img", "image"):
        sources = _sources(element)
    elif tag == "input":
        if (element.get("type") or "").strip().lower() != "image":
            return None
        sources, kind = _sources(element), "input"
    elif tag == "video":
        sources, kind = [element.get("poster") or ""], "poster"
    elif tag in ("object", "embed"):
        address = element.get("data" if tag == "object" else "src") or ""
        if not (element.get("type") or "").lower().startswith("image/") and not PICTURE_NAME.search(address):
            return None
        sources, kind = [address], "object"
    else:
        return None
    kept = tuple(dict.fromkeys(source.strip() for source in sources if source and source.strip()))
    # Addresses come from attributes of any name: without a cap one element could cost thousands of look-ups.
    kept = kept if len(kept) <= MAX_SOURCES else (*kept[: MAX_SOURCES - 1], kept[-1])  # src is the last
    if not kept and kind != "svg":
        return None
    width, height = _stated_size(element)
    alt, title = _short(element.get("alt")), _short(element.get("title"))
    return ImageRef(kept, alt, title, "", width, height, region, link, kind=kind)


def _sources(element: Any) -> list[str]:
    found = _late(element)
    source = (element.get("src") or element.get("href") or "").strip()
    is_late = not source or PLACEHOLDER.search(source[:1000])
    if is_late:
        found += _hidden(element)
    parent = element.getparent()
    if parent is not None and parent.tag == "picture":
        for each in parent:
            if each.tag == "source":
                found += _late(each) + (_hidden(each) if is_late else []) + best_first(each.get("srcset"))
    return [*found, *best_first(element.get("srcset")), element.get("src"), element.get("href")]


def _late(element: Any) -> list[str]:
    """Returns addresses from the attributes that scripts for late loading read."""
    sets = [address for name in LATE_SETS for address in best_first(element.get(name))]
    return sets + [value for value in map(element.get, LATE) if value and ("/" in value or "." in value)]


def _hidden(element: Any) -> list[str]:
    """Returns addresses of pictures in any other attribute, single or as a srcset."""
    found: list[str] = []
    for name, value in element.attrib.items():
        value = value.strip()
        if name in (*NO_ADDRESS, *LATE_SETS, *LATE) or not value or value.startswith(("{", "[")):
            continue
        if not re.search(r"\s", value):
            if len(value) > 4000:
                continue
            is_picture = PICTURE_NAME.search(value) or (PICTURE_ATTRIBUTE.search(name) and ADDRESS.fullmatch(value))
            found += [value] if is_picture else []
        else:
            addresses = best_first(value)
            found += addresses if addresses and all(map(PICTURE_NAME.search, addresses)) else []
    return found


def _stated_size(element: Any) -> tuple[int | None, int | None]:
    size = {name: PIXELS.match(element.get(name) or "") for name in ("width", "height")}
    values = {name: int(found.group(1)) for name, found in size.items() if found}
    values |= {name.lower(): int(value) for name, value in STYLE_SIZE.findall(element.get("style") or "")}
    return values.get("width"), values.get("height")


def _short(text: str | None) -> str:
    return " ".join((text or "")[:MAX_CHARACTERS].split())


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
    """Returns the candidates a browser would choose from, in their order, without those with a wrong descriptor.

    srcset("a.jpg 1024w 768h, b.jpg 2048w 1536h")     [Candidate("a.jpg", 1.024), Candidate("b.jpg", 2.048)]
    """
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
    """Returns the addresses of a srcset, the largest picture first."""
    return [each.address for each in sorted(srcset(text or ""), key=lambda each: -each.density)]


def _descriptors(text: str, place: int) -> tuple[list[str], int]:
    """Splits what follows an address, up to its comma, at white space outside of parentheses."""
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
    """Returns pixels for each pixel of the page; None where a descriptor is wrong or contradicts another."""
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
