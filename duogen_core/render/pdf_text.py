"""A model's Markdown -> the few kinds of blocks that a PDF page shows, each a list of runs of plain text.

Read by the same parser as the HTML page: HTML is off, images that the text points at become their words, and only
links to the web and to mailboxes can be clicked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duogen_core.render.html import markdown_parser
from duogen_core.render.parsing import Stop, link_is_safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

BULLET = "\u00b7"  # one that is in Latin-1, which every PDF reader has
CELL_GAP = "   "
MAX_DEPTH = 6  # lists and quotations in one another that are still set further to the right


@dataclass(frozen=True)
class Run:
    text: str
    bold: bool = False
    italic: bool = False
    code: bool = False
    link: str = ""
    colour: tuple[int, int, int] | None = None  # None: that of text, or of links


@dataclass
class TextBlock:
    runs: list[Run] = field(default_factory=list)
    heading: int = 0  # 1 to 6; 0: a paragraph
    depth: int = 0
    marker: str = ""  # of a list item: "1." or a bullet
    rule: bool = False

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)


def typed_block(text: str) -> TextBlock:
    """Words shown as they were typed."""
    return TextBlock([Run(text)])


def markdown_blocks(text: str, cancelled: Stop = None) -> list[TextBlock]:
    reader = _Reader()
    for token in markdown_parser(text).parse(text, {"cancelled": cancelled}):
        reader.read(token)
    return reader.blocks


class _Reader:
    """Goes through the parser's tokens and keeps what the next block has to know."""

    def __init__(self) -> None:
        self.blocks: list[TextBlock] = []
        self.numbers: list[int | None] = []  # of the next item of each open list; None: bullets
        self.depth = self.heading = 0
        self.marker = ""
        self.row: list[Run] | None = None

    def read(self, token: Token) -> None:
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open"):
            self.numbers.append(int(token.attrGet("start") or 1) if kind.startswith("ordered") else None)
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self.numbers.pop()
        elif kind == "list_item_open":
            number = self.numbers[-1]
            self.marker = BULLET if number is None else f"{number}."
            self.numbers[-1] = None if number is None else number + 1
        elif kind in ("heading_open", "heading_close"):
            self.heading = int(token.tag[1:]) if token.nesting > 0 else 0
        elif kind == "tr_open":
            self.row = []
        elif kind == "tr_close":
            self.add(self.row or [])
            self.row = None
        elif kind == "hr":
            self.blocks.append(TextBlock(rule=True))
        elif kind in ("fence", "code_block"):
            self.add([Run(token.content.rstrip("\n"), code=True)])
        elif kind == "inline" and self.row is None:
            self.add(list(_runs(token.children or ())))
        elif kind == "inline":
            self.row += [Run(CELL_GAP)] if self.row else []
            self.row += _runs(token.children or ())
        if kind.startswith(("bullet_list", "ordered_list", "blockquote")):
            self.depth += token.nesting

    def add(self, runs: list[Run]) -> None:
        self.blocks.append(TextBlock(runs, self.heading, min(self.depth, MAX_DEPTH), self.marker))
        self.marker = ""


def _runs(tokens: Sequence[Token]) -> Iterator[Run]:
    bold = italic = 0
    links: list[str] = []
    for token in tokens:
        kind = token.type
        if kind.startswith("strong"):
            bold += token.nesting
        elif kind.startswith("em_"):
            italic += token.nesting
        elif kind == "link_open":
            href = str(token.attrGet("href") or "")
            links.append(href if link_is_safe(href) else "")
        elif kind == "link_close":
            links.pop()
        elif kind in ("softbreak", "hardbreak"):
            yield Run("\n")
        elif kind == "image":
            yield from _runs(token.children or ())
        elif token.content:
            yield Run(token.content, bold > 0, italic > 0, kind == "code_inline", links[-1] if links else "")
