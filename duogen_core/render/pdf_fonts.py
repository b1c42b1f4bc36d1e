"""Which fonts a PDF takes: the one every reader has for Western text, fonts of this machine for what goes beyond it.

In: the characters of a document. Out: `Fonts`, the files to embed in the order in which they are asked for a glyph, and
the characters that none of them has. No font comes with this package: one that knows Chinese alone is larger than it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from duogen_core.errors import is_out_of_memory

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
