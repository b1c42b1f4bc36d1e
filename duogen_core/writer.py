"""Any writer: a model known only by the text it gives back for a prompt, in the place of our own MLLM.

    ask(document)          -> the prompt: the lesson about the marker, the conversation, the answer as far as it goes
    read(document, text)   -> the document with what was written before the first marker, and whether a picture is due

Pictures travel beside the prompt, in its order: `shown` says which of the document's they are. Two ways to put it:

    PLAIN       one text, for any model and any chat template of its own; pictures are called [picture 1], [picture 2]
    QWEN        Qwen's chat markup with each picture at its place, and the answer left open to be written on

Nothing is kept between two calls. The lesson and the marker are those of prompted models (`duogen_core.mllm.prompted`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duogen_core import pipeline
from duogen_core.document import Document, Text, pending
from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import IM_END, IM_START, IMAGE_PAD, VISION_END, VISION_START
from duogen_core.mllm.prompted import MarkedStream, Prompted

PLAIN, QWEN = "plain text", "Qwen chat"
FORMATS = (PLAIN, QWEN)
NOT_SHOWN = "[a picture that is not attached]"
BEGIN = "Write the assistant's answer. Write nothing but the answer."
GO_ON = (
    "The assistant's answer is not finished. Write what comes next, from exactly where it stops. Repeat nothing of it, "
    "and write nothing but the answer."
)
NAMES = {"system": "Instructions", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Written:
    document: Document
    text: str
    stop: str  # "picture" or "end"


def ask(document: Document, form: str = PLAIN, *, shown: Sequence[int] | None = None, captions: bool = True) -> str:
    """The prompt that has this document answered, or its answer written on.

    shown: indexes of the pictures that go along, in ascending order (None: all). captions: see Prompted.
    """
    pipeline.check_request(document)
    if form not in FORMATS:
        raise DuoGenError(f"There is no prompt format {form!r}; choose one of: {', '.join(FORMATS)}.")
    pictures = range(len(document.pictures))
    numbers = {index: number for number, index in enumerate(pictures if shown is None else shown, 1)}
    prompted = Prompted(captions)
    return (_plain if form == PLAIN else _qwen)(prompted.taught(document), prompted, numbers)


def read(document: Document, written: str) -> Written:
    """The document after a writer gave back `written` for its prompt. What follows the first marker is dropped: it was
    written without the picture in view. A model's thoughts (<think> … </think>) are no part of its answer."""
    stream = MarkedStream()
    caption = stream.put(_without_thoughts(written).encode("utf-8"))
    if caption is None:
        caption = stream.end()
    text = stream.finish()
    document = pending.with_caption(pipeline.with_text(document, text), caption or "")
    return Written(document, text, "end" if caption is None else "picture")


def _without_thoughts(text: str) -> str:
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _plain(document: Document, prompted: Prompted, numbers: dict[int, int]) -> str:
    lines, index = [], 0
    for turn in document.turns:
        pieces = []
        for part in turn.parts:
            if isinstance(part, Text):
                pieces.append(part.text)
                continue
            marker = prompted.marker(part) + "\n" if turn.role == "assistant" else ""
            pieces.append(marker + (f"[picture {numbers[index]}]" if index in numbers else NOT_SHOWN) + "\n")
            index += 1
        lines.append(f"{NAMES[turn.role]}:\n{''.join(pieces).strip()}")
    if numbers:
        lines.insert(1, f"[picture 1] and so on are the attached pictures, in this order: {len(numbers)} in all.")
    return "\n\n".join([*lines, GO_ON if document.last_turn.role == "assistant" else BEGIN])


def _qwen(document: Document, prompted: Prompted, numbers: dict[int, int]) -> str:
    pieces, index = [], 0
    for turn in document.turns:
        pieces.append(f"{IM_START}{turn.role}\n")
        for part in turn.parts:
            if isinstance(part, Text):
                pieces.append(_harmless(part.text))
                continue
            pieces.append(_harmless(prompted.marker(part)) if turn.role == "assistant" else "")
            pieces.append(VISION_START + IMAGE_PAD + VISION_END if index in numbers else NOT_SHOWN)
            index += 1
        pieces.append(f"{IM_END}\n")
    if document.last_turn.role == "assistant":
        pieces.pop()  # left open
    else:
        pieces.append(f"{IM_START}assistant\n")
    return "".join(pieces)


def _harmless(text: str) -> str:
    """What spells a control token is broken up, so that no text can end its turn or take a picture's place."""
    return re.sub(r"<\|(?=\w+\|>)", "< |", text)
