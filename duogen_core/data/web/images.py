"""<img>, <picture>, <input type=image>, <object>, <embed>, inline <svg>, posters -> ImageRef with all its addresses.

Pages that load pictures late hold the real address in data-src and the like and a placeholder in src, so addresses come
in this order: late ones, those of <source> and srcset from the largest to the smallest, src. Where src is missing or a
placeholder, any attribute that holds the address of a picture counts as a late one.
"""

from __future__ import annotations

import re
from typing import Any

from duogen_core.data.web.page import ImageRef
from duogen_core.data.web.srcset import best_first

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
MOST_SOURCES = 24
MOST_CHARACTERS = 1000  # of an alt text or a title


def image_of(element: Any, region: str = "", link: str = "") -> ImageRef | None:
    """The picture that this element shows, or None if it shows none."""
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
    kept = kept if len(kept) <= MOST_SOURCES else (*kept[: MOST_SOURCES - 1], kept[-1])  # src is the last
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
    """What the attributes say in which scripts that load pictures late look."""
    sets = [address for name in LATE_SETS for address in best_first(element.get(name))]
    return sets + [value for value in map(element.get, LATE) if value and ("/" in value or "." in value)]


def _hidden(element: Any) -> list[str]:
    """Addresses of pictures in any other attribute, single or as a srcset."""
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
    return " ".join((text or "")[:MOST_CHARACTERS].split())
