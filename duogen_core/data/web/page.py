"""The values that flow through the web engine before a Document exists.

Input -> Page -> (walker) -> Walk: blocks of text and image references in source order -> (engine) -> Document. An Input
lists its pages by name and gives pages and the pictures they show; a name means the same page at any time, so a run
that was planned by names can be resumed. Verdict is what a rule says: its name, the value it measured, and whether the
page or picture stays.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from duogen_core.data.runs.input_files import FileDigests

HTML = ("text/html", "application/xhtml+xml")  # the types of pages
PAGES = (".html", ".htm", ".xhtml", ".mhtml", ".mht")
BlockKind = Literal["text", "heading", "item", "row", "code", "caption"]


@dataclass(frozen=True)
class Page:
    """One page as it came in. name: where it stands in its input. url: its address, or the name where none is known."""

    input: str
    name: str
    url: str
    body: bytes = field(repr=False)
    content_type: str = ""
    time: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A stretch of text. region: the part of the page that is no content ("nav", "ad", …), or nothing."""

    text: str
    kind: BlockKind = "text"
    region: str = ""
    linked: int = 0  # characters of it that stand in links
    cut: bool = False  # whether a picture in the middle of a paragraph ends it,
    continues: bool = False  # and whether it goes on after one


@dataclass
class ImageRef:
    """A picture that the page shows. sources: addresses to try, best first; width and height as the page states."""

    sources: tuple[str, ...]
    alt: str = ""
    title: str = ""
    caption: str = ""
    width: int | None = None
    height: int | None = None
    region: str = ""
    link: str = ""  # where a click on it leads
    paid: bool = False  # whether the page says that it is paid for that (rel=sponsored)
    kind: Literal["img", "svg", "input", "poster", "object"] = "img"


@dataclass(frozen=True)
class Walk:
    """What the walker saw of a page."""

    items: tuple[Block | ImageRef, ...]
    title: str = ""
    language: str = ""
    licence: str = ""
    robots: str = ""
    base: str = ""
    canonical: str = ""
    nodes: int = 0
    depth: int = 0

    @property
    def images(self) -> list[ImageRef]:
        return [item for item in self.items if isinstance(item, ImageRef)]

    @property
    def blocks(self) -> list[Block]:
        return [item for item in self.items if isinstance(item, Block)]


@dataclass(frozen=True)
class Verdict:
    """What a rule found. value: the number or word it decided by."""

    rule: str
    keep: bool
    value: float | int | str | None = None


@dataclass(frozen=True)
class Found:
    """The bytes of a picture, or the rule that kept it from being read. url: where it came from."""

    data: bytes = field(default=b"", repr=False)
    url: str = ""
    rule: str = ""
    value: str | int = ""


class Input(ABC):
    """One source of pages. The caller sets the `max_bytes` caps."""

    path: Path

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yields every page's name, in an order that never changes."""

    @abstractmethod
    def page(self, name: str, max_bytes: int) -> Page:
        """Reads a page; its body may be one byte longer than max_bytes, which says that it is too long."""

    @abstractmethod
    def picture(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        """Reads the bytes behind one address of a picture of a page."""

    @abstractmethod
    def identity(self, digests: FileDigests) -> dict[str, Any]:
        """Returns small JSON that changes when anything in the input does."""


def embedded(address: str, max_bytes: int) -> Found:
    """Reads a picture out of an address that holds it, data:image/…;base64,…"""
    head, comma, text = address[5:].partition(",")
    kind = head.partition(";")[0].strip().lower()
    if not comma or not (kind.startswith("image/") or not kind):
        return Found(rule="refused_link", value=f"data:{kind[:40]}")
    if kind == "image/svg+xml":
        return Found(rule="svg", value="data:")
    if len(text) > max_bytes * 4 // 3 + 100:
        return Found(rule="too_many_bytes", value=len(text) * 3 // 4)
    data = unquote_to_bytes(text)
    if "base64" in head.lower():
        try:
            data = base64.b64decode(b"".join(data.split()) + b"==")
        except (binascii.Error, ValueError):
            return Found(rule="broken", value="base64")
    return Found(data, f"data:{kind}")
