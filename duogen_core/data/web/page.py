"""The values that flow through the web engine before a Document exists, and the rules for pages.

Input -> Page -> (walker) -> Walk: blocks of text and image references in source order -> (engine) -> Document. An
Input lists its pages by name and gives pages and the pictures they show; a name means the same page at any time, so a
run that was planned by names can be resumed. Verdict is what a rule says: its name, the value it measured, and
whether the page or picture stays.

Each rule says by what value it decides, and whether the page stays. `before_pictures` asks those that need the walk
alone, so that no image of a page of the wrong language is decoded; `after_pictures` counts what was kept. py3langid
tells languages: its model is in the package, nothing is fetched and nothing is random.
"""

from __future__ import annotations

import base64
import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from duogen_core.data.runs.folder import FileDigests
from duogen_core.data.runs.presets import Preset
from duogen_core.errors import MissingPackage

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


# ------------------------------------------------------------ rules for pages

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
LANGUAGE_CHARACTERS = 3000  # of the text, by which its language is told


def before_pictures(page: Page, walk: Walk, garbled: float, preset: Preset, facts: dict[str, Any]) -> Verdict | None:
    """Returns the first rule that refuses the page before its pictures are looked at. Fills `facts` for the log."""
    return next((verdict for verdict in _verdicts(page, walk, garbled, preset, facts) if not verdict.keep), None)


def _verdicts(page: Page, walk: Walk, garbled: float, preset: Preset, facts: dict[str, Any]) -> Iterator[Verdict]:
    rules, blocks = preset.page, content(walk)
    text = "\n".join(block.text for block in blocks)
    facts["words"] = len(WORD.findall(text))
    facts["images"] = len(walk.images)
    yield robots(page, walk, rules)
    yield Verdict("garbled", garbled <= rules["max_garbled"], round(garbled, 4))
    outside = sum(not image.region and image.kind != "svg" for image in walk.images)
    yield Verdict("text_only", outside >= rules["min_pictures"], outside)
    yield Verdict("too_short", facts["words"] >= rules["min_words"], facts["words"])
    yield Verdict("too_long", facts["words"] <= rules["max_words"], facts["words"])
    yield linked(blocks, rules)
    yield repeated(blocks, rules)
    facts["language"], facts["certainty"] = language_of(text)
    yield language(facts["language"], facts["certainty"], rules)


def content(walk: Walk) -> list[Block]:
    """Returns the blocks outside of navigation, adverts and the like."""
    return [block for block in walk.blocks if not block.region]


def robots(page: Page, walk: Walk, rules: Mapping[str, Any]) -> Verdict:
    """Decides by what the page, or its server in X-Robots-Tag, asks of robots."""
    wishes = wishes_of(f"{page.headers.get('x-robots-tag', '')}, {walk.robots}")
    refused = [wish for wish in rules["refuse_robots"] if wish in wishes]
    return Verdict("robots", not refused, ", ".join(refused) or ", ".join(sorted(wishes)))


def wishes_of(text: str) -> set[str]:
    return {wish for part in text.lower().split(",") for wish in part.replace(":", " ").split()}


def linked(blocks: Sequence[Block], rules: Mapping[str, Any]) -> Verdict:
    """Decides by how much of the text is in links: tables of contents are no pages to learn from."""
    share = sum(block.linked for block in blocks) / max(sum(len(block.text) for block in blocks), 1)
    return Verdict("linked", share <= rules["max_linked"], round(share, 3))


def repeated(blocks: Sequence[Block], rules: Mapping[str, Any]) -> Verdict:
    """Decides by how much of the text repeats earlier lines. Short lines, such as "Note", may repeat."""
    lines = [line.strip() for block in blocks for line in block.text.split("\n") if len(line.strip()) >= 20]
    total = sum(map(len, lines))
    share = 1 - sum(map(len, set(lines))) / total if total else 0.0
    return Verdict("repeated", share <= rules["max_repeated"], round(share, 3))


def language(code: str, certainty: float, rules: Mapping[str, Any]) -> Verdict:
    if not rules["languages"]:
        return Verdict("language", True, code)
    keep = code in rules["languages"] and certainty >= rules["min_language"]
    return Verdict("language", keep, f"{code} {certainty:g}")


def after_pictures(kept: int, rules: Mapping[str, Any]) -> Verdict | None:
    if kept < rules["min_pictures"]:
        return Verdict("no_picture_left", False, kept)
    if kept > rules["max_pictures"]:
        return Verdict("too_many_pictures", False, kept)
    return None


def language_of(text: str) -> tuple[str, float]:
    """Returns the ISO 639-1 code and its probability."""
    code, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
    return str(code), round(float(probability), 4)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingPackage("Telling languages", "py3langid", "data") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
