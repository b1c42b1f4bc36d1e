"""The values that flow through the web engine before a Document exists.

Page -> (walker) -> Walk: blocks of text and image references in source order -> (engine) -> Document. Verdict is what a
rule says: its name, the value it measured, and whether the page or picture stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
