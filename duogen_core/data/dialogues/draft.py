"""A page's Document -> a Draft: its text as passages, its pictures, and after how many passages each picture stands.

A passage is a paragraph, a list item, a table or a code block, with the headings above it; what belongs to it can be
said to stand before or after. A paragraph beside a picture that is its caption goes with the picture, in its words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duogen_core.document import Document, Part, Picture

HEADING = re.compile(r"#{1,6} \S")
ITEM = re.compile(r"\s*(?:[-*+]|\d{1,6}[.)]) ")
BLANK = re.compile(r"\n{2,}")
WORD = re.compile(r"\w+")
FENCE = "```"
LEADING_WORDS = 6


@dataclass(frozen=True)
class Draft:
    """places[i]: how many passages stand before pictures[i]; equal places keep the pictures' order."""

    title: str
    passages: tuple[str, ...]
    pictures: tuple[Picture, ...]
    places: tuple[int, ...]

    @property
    def text(self) -> str:
        return join(self.passages)


def read_draft(document: Document) -> Draft:
    """The first user turn is the title; all else, in order, is text and pictures."""
    first = document.turns[0] if document.turns and document.turns[0].role == "user" else None
    title = first.text.strip() if first else ""
    parts = [part for turn in document.turns for part in turn.parts if turn is not first or isinstance(part, Picture)]
    passages: list[str] = []
    pictures: list[Picture] = []
    places: list[int] = []
    open_headings: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(part, Picture):
            pictures.append(part)
            places.append(len(passages) + bool(open_headings))  # under a heading: it goes with the text to come
            continue
        before = parts[number - 1] if number else None
        after = parts[number + 1] if number + 1 < len(parts) else None
        for paragraph in _without_captions(paragraphs(part.text), before, after):
            if leads(paragraph):
                open_headings.append(paragraph)
                continue
            passages.append("\n\n".join([*open_headings, paragraph]))
            open_headings = []
    if open_headings:
        passages.append("\n\n".join(open_headings))
    return Draft(title, tuple(passages), tuple(pictures), tuple(min(place, len(passages)) for place in places))


def paragraphs(text: str) -> list[str]:
    """Text of Markdown -> paragraphs; every list item is one, a code block and a table stay whole."""
    found: list[str] = []
    fenced = False
    blank = True
    for line in text.split("\n"):
        if not fenced and not line.strip():
            blank = True
            continue
        if not fenced and (blank or ITEM.match(line) or HEADING.match(line)):
            found.append(line)
        else:
            found[-1] += f"\n{line}"
        blank = False
        fenced ^= line.strip().startswith(FENCE)
    return found


def join(passages: Sequence[str]) -> str:
    """Passages as one text; items of a list stand on lines of their own, without an empty one between."""
    text = ""
    for number, passage in enumerate(passages):
        close = number and ITEM.match(passage) and ITEM.match(passages[number - 1].rsplit("\n", 1)[-1])
        text += ("\n" if close else "\n\n") * bool(number) + passage
    return text


def leads(paragraph: str) -> bool:
    """Whether this is a heading, or a short line like one: a term, "Note", "Step 2"."""
    if HEADING.match(paragraph):
        return True
    words = paragraph.split()
    return len(words) <= LEADING_WORDS and not ITEM.match(paragraph) and paragraph[-1].isalnum()


def _without_captions(found: list[str], before: Part | None, after: Part | None) -> list[str]:
    """Without the paragraphs, next to a picture, that are part of its caption."""
    ahead, behind = (_plain(_caption(part)) for part in (before, after))
    while found and (plain := _plain(found[0])) and plain in ahead:
        found = found[1:]
    while found and (plain := _plain(found[-1])) and plain in behind:
        found = found[:-1]
    return found


def _caption(part: Part | None) -> str:
    return str(part.meta.get("caption", "")) if isinstance(part, Picture) else ""


def _plain(text: str) -> str:
    words = WORD.findall(text.lower())
    return f" {' '.join(words)} " if words else ""
