"""The text of a PDF: a model's Markdown -> the few kinds of blocks that a page shows, and the fonts they take.

Text: read by the same parser as the HTML page. HTML is off, images that the text points at become their words, and only
links to the web and to mailboxes can be clicked. Each block is a list of runs of plain text.
Fonts: the one every reader has for Western text, fonts of this machine for what goes beyond it. In: the characters of
a document. Out: `Fonts`, the files to embed in the order in which they are asked for a glyph, and the characters that
none of them has. No font comes with this package: one that knows Chinese alone is larger than it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.errors import is_out_of_memory
from duogen_core.render.html import markdown_parser
from duogen_core.render.parsing import Stop, link_is_safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

# File names, the one with the widest reach for running text first, then by script. A .ttc stands for its first face.
CANDIDATES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "segoeui.ttf"),
    *("arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf", "SourceHanSansSC-Regular.otf"),
    *("DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("Hiragino Sans GB.ttc", "STHeiti Light.ttc", "msyh.ttc", "simsun.ttc", "msgothic.ttc", "malgun.ttf"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
    *("NotoSansSymbols2-Regular.ttf", "NotoEmoji-Regular.ttf", "Symbola.ttf", "seguisym.ttf", "Apple Symbols.ttf"),
)
BOLD = {"DejaVuSans.ttf": "DejaVuSans-Bold.ttf", "NotoSans-Regular.ttf": "NotoSans-Bold.ttf",
        "LiberationSans-Regular.ttf": "LiberationSans-Bold.ttf", "segoeui.ttf": "segoeuib.ttf",
        "arial.ttf": "arialbd.ttf", "Arial.ttf": "Arial Bold.ttf"}  # fmt: skip
UNKNOWN = "\ufffd"
_SELECTORS = range(0xFE00, 0xFE10)  # "show the character before me as text", or as an emoji


@dataclass(frozen=True)
class Fonts:
    files: tuple[Path, ...]  # none: the PDF's own Helvetica is enough, or is all there is
    missing: frozenset[str]

    @property
    def bold(self) -> Path | None:
        """The bold face of the first file, where it lies beside it."""
        if not self.files:
            return None
        beside = self.files[0].with_name(BOLD.get(self.files[0].name, self.files[0].name))
        return beside if beside.is_file() else self.files[0]


def printable(text: str) -> str:
    """Text without what has no shape of its own: control characters, marks that turn the writing direction, joiners.
    Every kind of space is a plain one."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", UNKNOWN).expandtabs(4)
    return text.translate(_SHAPES)


class _Shapes(dict[int, str]):
    """Code of a character -> what is printed of it; each is looked up once."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character == "\n":
            shape = character
        elif category[0] == "Z":
            shape = " "
        else:
            shape = "" if category in ("Cc", "Cf") or code in _SELECTORS else character
        self[code] = shape
        return shape


_SHAPES = _Shapes()


def choose_fonts(text: str) -> Fonts:
    """The fonts for this (printable) text."""
    wanted = set(no_fonts(text).missing)
    if not wanted:
        return Fonts((), frozenset())
    files: list[Path] = []
    wanted |= {c for c in text if c != "\n"}  # the first font sets the Western letters as well
    for name in CANDIDATES:
        path = installed_fonts().get(name)
        found = wanted & coverage(path) if path else set()
        if path and found and (files or "a" in coverage(path)):
            files.append(path)
            wanted -= found
        if not wanted:
            break
    return Fonts(tuple(files), frozenset(wanted)) if files else no_fonts(text)


def no_fonts(text: str) -> Fonts:
    """Without any font file: what is not Western is missing."""
    return Fonts((), frozenset(c for c in text if c != "\n" and not is_western(c)))


def is_western(character: str) -> bool:
    """Whether the fonts that every PDF reader has can show it."""
    return ord(character) < 0x100 and character.isprintable()


@lru_cache(maxsize=1)
def installed_fonts() -> dict[str, Path]:
    """Name -> file, for those of CANDIDATES that this machine has."""
    names, found = set(CANDIDATES), {}
    for folder in _font_folders():
        for parent, _, files in os.walk(folder):
            for name in names & set(files):
                found.setdefault(name, Path(parent, name))
    return found


def _font_folders() -> Iterable[Path]:
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts")
    plotting = importlib.util.find_spec("matplotlib")  # not imported: it only brings DejaVu along
    if plotting and plotting.origin:
        yield Path(plotting.origin).parent / "mpl-data" / "fonts" / "ttf"


@lru_cache(maxsize=64)
def coverage(path: Path) -> frozenset[str]:
    """The characters a font file has a glyph for; none, when it cannot be read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or ()))
    except Exception as error:  # a damaged font file fails in as many ways as there are tables in it
        if is_out_of_memory(error):  # or the font would be missing for as long as the process runs
            raise
        return frozenset()


# ---------------------------------------------------------------- Markdown

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
