"""<BOV> for models that were never taught the token: a system text teaches a marker, and what they write is searched.

    <BOV>              a picture is due
    <BOV: caption>     a picture is due, and this is what the painter is to draw

The marker is ordinary text. It is looked for in the decoded characters, so it is found however it is tokenised, and
nothing of it is streamed: from a "<" on, text waits until it can no longer be a marker. The lessons are prompts/*.txt.
Ours: DuoGen (arXiv 2602.00508) trains a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.mllm.chat import TextStream

OPENING = "<BOV"
MAX_CAPTION = 2000  # characters; what runs on longer was never a marker


@dataclass(frozen=True)
class Prompted:
    """How a model without the <BOV> token is made to say that a picture is due. captions: ask for one each."""

    captions: bool = True

    def taught(self, document: Document) -> Document:
        """The document with the lesson at the end of its system text."""
        text = lesson(self.captions)
        first = document.turns[0] if document.turns else None
        if first is not None and first.role == "system":
            turn = Turn("system", (*first.parts, Text("\n\n" + text)), first.meta)
            turns = (turn, *document.turns[1:])
        else:
            turns = (Turn("system", (Text(text),)), *document.turns)
        return Document(turns, document.generation, document.meta)

    def marker(self, picture: Picture) -> str:
        """What stands before a picture the model drew earlier."""
        caption = clean_caption(str(picture.meta.get("caption") or "")) if self.captions else ""
        return f"{OPENING}: {caption}>" if caption else f"{OPENING}>"


@lru_cache(maxsize=2)
def lesson(captions: bool) -> str:
    file = Path(__file__).parent / "prompts" / ("caption.txt" if captions else "marker.txt")
    return file.read_text("utf-8").strip()


def clean_caption(text: str) -> str:
    """The caption of a marker's inside: `: a red house`, ` caption="a red house"`, … in one line."""
    text = " ".join(text.replace("<", " ").replace(">", " ").split())
    text = text.lstrip(":= ")
    if text.lower().startswith("caption"):
        rest = text[len("caption") :].lstrip()
        if rest[:1] in (":", "="):
            text = rest[1:].strip()
    text = text.rstrip("/ ")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return "" if text.lower() == "caption" else text


class MarkedStream:
    """Like TextStream, for text in which markers may stand. put returns the caption ("" for none) at a marker."""

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self._stream = TextStream(self._see)
        self._on_text = on_text
        self._pieces: list[str] = []
        self._waiting = ""  # from a "<" on
        self._caption: str | None = None

    def put(self, data: bytes) -> str | None:
        self._stream.put(data)
        return self._caption

    def end(self) -> str | None:
        """The turn has ended: a marker left open is one all the same; less than its opening is text."""
        inside = _inside(self._waiting)
        if inside is not None:
            self._caption = clean_caption(inside)
        else:
            self._give(self._waiting)
        self._waiting = ""
        return self._caption

    def finish(self) -> str:
        """The text before the marker. What may have become a marker is not in it, and is written anew later."""
        return "".join(self._pieces)

    def _see(self, text: str) -> None:
        if self._caption is not None:
            return  # the picture comes first
        self._waiting += text
        while self._waiting:
            start = self._waiting.find("<")
            if start < 0:
                start = len(self._waiting)
            self._give(self._waiting[:start])
            self._waiting = self._waiting[start:]
            if not self._waiting or self._undecided():
                return
            inside, close, _ = (_inside(self._waiting) or "").partition(">")
            if close and "<" not in inside:
                self._caption, self._waiting = clean_caption(inside), ""
                return
            self._give(self._waiting[0])
            self._waiting = self._waiting[1:]

    def _undecided(self) -> bool:
        """Whether what waits can still become a marker."""
        if OPENING.startswith(self._waiting.upper()):
            return True
        inside = _inside(self._waiting)
        return inside is not None and len(inside) <= MAX_CAPTION and not any(c in inside for c in "<>")

    def _give(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text:
                self._on_text(text)


def _inside(text: str) -> str | None:
    """What follows the opening of a marker; None where the text opens none."""
    if not text.upper().startswith(OPENING):
        return None
    inside = text[len(OPENING) :]
    return inside if not inside or inside[0] in ":>/ \t\n" else None
