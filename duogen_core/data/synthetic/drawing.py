"""Drawing: a planned answer and a painter -> a Document with its pictures, or the rule that refuses it.

In: an Entry of plans.jsonl. Out: an Outcome. A picture that was painted is kept in DIR/drawn until its shard is whole,
so a run that was killed paints none of them twice, whatever the painter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.runs.presets import digest
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.data.synthetic.planning import Entry
from duogen_core.data.synthetic.requests import KEPT, Preset, Request, Verdict
from duogen_core.data.synthetic.runs import Outcome
from duogen_core.data.web.pictures import Seen
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)
from duogen_core.document.picture_file import decode_picture, encode_png, read_picture_bytes
from duogen_core.document.store import write_atomically
from duogen_core.errors import DuoGenError
from duogen_core.pipeline import picture_seed


class Drawing:
    def __init__(self, painter: Painter, preset: Preset, drawn: Path) -> None:
        self.painter, self.rules, self.drawn = painter, preset.picture, drawn
        self.by = painter.identity()
        self.mark = digest([self.by, dict(self.rules)])

    def document(self, entry: Entry) -> Outcome:
        outcome = Outcome(KEPT, about=logged_request(entry.request))
        pictures: list[Picture] = []
        logged: list[dict[str, Any]] = []
        begun = time.perf_counter()
        for prompt in entry.plan.prompts:
            seed = picture_seed(entry.seed, len(pictures))
            drawn = {"seed": seed, "prompt": prompt}
            try:
                pixels = self._pixels(entry.number, Wanted(entry.request.text, prompt, seed, tuple(pictures)))
            except PainterError as error:
                if error.stop:
                    raise
                outcome.verdict, outcome.failed = Verdict("painter_failed", str(error)[:400]), True
                break
            picture = Picture(pixels, drawn)
            outcome.verdict = judge(picture, pictures, self.rules)
            size = list(picture.size)
            logged.append({**drawn, "class": "drawn", "size": size, "digest": picture.digest[:16],
                           **({} if outcome.verdict.kept else outcome.verdict.log())})  # fmt: skip
            if not outcome.verdict.kept:
                break
            pictures.append(picture)
        outcome.seconds["paint"] = time.perf_counter() - begun
        outcome.pictures = logged
        if outcome.verdict.kept:
            outcome.document = compose(entry, pictures, self.by)
        return outcome

    def forget(self, entries: Sequence[Entry]) -> None:
        """Removes the pictures of entries whose shard is whole."""
        for entry in entries:
            for pattern in (f"{entry.number:08d}-*.png", f".{entry.number:08d}-*"):
                for file in self.drawn.glob(pattern):
                    file.unlink(missing_ok=True)

    def _pixels(self, number: int, wanted: Wanted) -> np.ndarray:
        """From what an interrupted run had painted, else from the painter."""
        wish = [self.mark, wanted.request, wanted.prompt, wanted.seed, *(each.digest for each in wanted.earlier)]
        file = self.drawn / f"{number:08d}-{digest(wish)}.png"
        with contextlib.suppress(DuoGenError):  # not there, or damaged: it is painted anew
            return decode_picture(*read_picture_bytes(file))
        pixels = self.painter.paint(wanted)
        write_atomically(file, encode_png(pixels, {}))
        return pixels


def judge(picture: Picture, earlier: Sequence[Picture], rules: Mapping[str, Any]) -> Verdict:
    """By size, by the share of one colour, and by what was drawn before in the same answer."""
    size = f"{picture.size[0]}x{picture.size[1]}"
    if min(picture.size) < rules["min_side"]:
        return Verdict("small", size)
    if max(picture.size) > rules["max_side"]:
        return Verdict("large", size)
    blank = round(Seen({}, picture.pixels).one_colour, 4)
    if blank >= rules["blank_share"]:
        return Verdict("blank", blank)
    same = [index for index, each in enumerate(earlier) if each.digest == picture.digest]
    return Verdict("same_picture", same[0]) if same else KEPT


def compose(entry: Entry, pictures: Sequence[Picture], painter: Mapping[str, Any]) -> Document:
    """The request as the user's turn; texts and pictures in turn as the answer."""
    parts: list[Part] = []
    due = iter(pictures)
    for step in entry.plan.steps:
        parts.append(Text(step.text))
        if step.picture:
            parts.append(next(due))
    if entry.plan.closing:
        parts.append(Text(entry.plan.closing))
    meta = {
        **about(entry.request),
        "seed": entry.seed,
        "writer": {"model": entry.model, "prompt": entry.prompt},
        "painter": dict(painter),
    }
    return Document((Turn("user", (Text(entry.request.text),)), Turn("assistant", tuple(parts))), meta=meta)


def about(request: Request) -> dict[str, Any]:
    """What a document of this request says of it."""
    return {
        "source": "synthetic",
        "domain": request.domain,
        "subcategory": request.subcategory,
        "request": {"by": request.origin, "digest": request.digest},
    }


def logged_request(request: Request) -> dict[str, Any]:
    return {"request": request.text, "domain": request.domain, "subcategory": request.subcategory}
