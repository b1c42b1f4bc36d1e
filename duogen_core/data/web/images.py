"""<img>, <picture>, <input type=image>, <object>, <embed>, inline <svg>, posters -> ImageRef with all its addresses.

Pages that load pictures late hold the real address in data-src and the like and a placeholder in src, so addresses come
in this order: late ones, the largest of srcset, src.
"""

from __future__ import annotations

import re
from typing import Any

from duogen_core.data.web.page import ImageRef

LATE_SETS = ("data-srcset", "data-lazy-srcset")
LATE = ("data-src", "data-lazy-src", "data-original", "data-lazy", "data-hi-res-src", "data-full-src", "data-image")
SET_ENTRY = re.compile(r"\s*([^\s,]\S*[^\s,]|[^\s,])(?:\s+([\d.]+)([wxh]))?\s*(?:,|$)")
PICTURE_NAME = re.compile(r"\.(?:png|jpe?g|gif|webp|avif|bmp|svg)(?:$|[?#])", re.IGNORECASE)
PIXELS = re.compile(r"\s*(\d{1,5})(?:\.\d+)?\s*(?:px)?\s*$")
STYLE_SIZE = re.compile(r"(?:^|;)\s*(width|height)\s*:\s*(\d{1,5})(?:\.\d+)?px", re.IGNORECASE)
MOST_SOURCES = 8
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
        sources, kind = [element.get("src") or ""], "input"
    elif tag == "video":
        sources, kind = [element.get("poster") or ""], "poster"
    elif tag in ("object", "embed"):
        address = element.get("data" if tag == "object" else "src") or ""
        if not (element.get("type") or "").lower().startswith("image/") and not PICTURE_NAME.search(address):
            return None
        sources, kind = [address], "object"
    else:
        return None
    kept = tuple(dict.fromkeys(source.strip() for source in sources if source and source.strip()))[:MOST_SOURCES]
    if not kept and kind != "svg":
        return None
    width, height = _stated_size(element)
    alt, title = _short(element.get("alt")), _short(element.get("title"))
    return ImageRef(kept, alt, title, "", width, height, region, link, kind=kind)


def _sources(element: Any) -> list[str]:
    found = [_largest(element.get(name)) for name in LATE_SETS] + [element.get(name) for name in LATE]
    parent = element.getparent()
    if parent is not None and parent.tag == "picture":
        found += [_largest(each.get("srcset") or each.get("data-srcset")) for each in parent if each.tag == "source"]
    found += [_largest(element.get("srcset")), element.get("src"), element.get("href")]
    return [source for source in found if source]


def _largest(srcset: str | None) -> str:
    """The address of the widest entry of a srcset."""
    if not srcset or len(srcset) > 20_000:
        return ""
    entries = [(float(size or 1), address) for address, size, _ in SET_ENTRY.findall(srcset) if _number(size)]
    return max(entries, key=lambda entry: entry[0])[1] if entries else ""


def _number(text: str) -> bool:
    return not text or (text.count(".") <= 1 and text != ".")


def _stated_size(element: Any) -> tuple[int | None, int | None]:
    size = {name: PIXELS.match(element.get(name) or "") for name in ("width", "height")}
    values = {name: int(found.group(1)) for name, found in size.items() if found}
    values |= {name.lower(): int(value) for name, value in STYLE_SIZE.findall(element.get("style") or "")}
    return values.get("width"), values.get("height")


def _short(text: str | None) -> str:
    return " ".join((text or "")[:MOST_CHARACTERS].split())
