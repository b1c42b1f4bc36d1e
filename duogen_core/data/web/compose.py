"""Turns a page into a Document: the title as the user's turn, text and pictures in source order as the answer.

Takes personal data out of everything that is written. Joins text that a dropped picture had cut in two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from duogen_core.data.pictures.duplicates import picture_hash
from duogen_core.data.runs.presets import Preset
from duogen_core.data.text import remove_personal
from duogen_core.data.web.page import Block, Page, Walk
from duogen_core.data.web.pictures import Judged
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)

CLOSE = ("item", "row")  # kinds whose blocks stand on lines of their own, without an empty one between


def compose(
    page: Page, walk: Walk, kept: Mapping[int, Judged], facts: Mapping[str, Any], preset: Preset
) -> tuple[Document, Counter[str]]:
    """Returns the Document and how much personal data was taken out. kept: item's index in the walk -> its picture."""
    removed: Counter[str] = Counter()

    def clean(text: str) -> str:
        text, found = remove_personal(text, preset.personal["remove"])
        removed.update(found)
        return text

    parts: list[Part] = []
    run: list[Block] = []
    for index, item in enumerate(walk.items):
        if isinstance(item, Block):
            if not item.region:
                run.append(item)
        elif index in kept:
            parts += _texts(run, clean)
            run = []
            parts.append(_picture(kept[index], clean))
    parts += _texts(run, clean)
    title = (
        clean(walk.title) or next((b.text.lstrip("# ") for b in walk.blocks if b.kind == "heading"), "") or page.name
    )
    meta = {
        "source": "web",
        "url": clean(page.url),
        "input": page.input,
        "page": page.name,
        "time": page.time,
        "licence": clean(walk.licence),
        "robots": _robots(page, walk),
        "language": facts["language"],
        "preset": f"{preset.name} {preset.digest}",
        "removed": dict(sorted(removed.items())),
    }
    return Document((Turn("user", (Text(title),)), Turn("assistant", tuple(parts))), meta=meta), removed


def _robots(page: Page, walk: Walk) -> dict[str, str]:
    """Returns what robots were asked: by the page, its server and, where it was fetched here, robots.txt (and when)."""
    said = {"page": walk.robots, "header": page.headers.get("x-robots-tag", "")}
    if "robots-txt" in page.headers:
        said["robots_txt"], _, said["robots_time"] = page.headers["robots-txt"].partition(" ")
    return said


def _texts(blocks: Sequence[Block], clean: Any) -> list[Text]:
    text, before = "", None
    for block in blocks:
        piece = clean(block.text)
        if before is None:
            text = piece
        elif before.cut and block.continues:  # the picture between the two halves of a paragraph was dropped
            text += f" {piece.lstrip()}"
        else:
            close = block.kind == before.kind and block.kind in CLOSE
            text += ("\n" if close else "\n\n") + piece
        before = block
    return [Text(text)] if text.strip() else []


def _picture(judged: Judged, clean: Any) -> Picture:
    kind, certainty = judged.seen.kind
    meta = {
        "url": clean(judged.url),
        "sha256": judged.sha256,
        "phash": f"{picture_hash(judged.seen.pixels):016x}",  # for `data dedup`, which then decodes no image
        "class": kind,
        "certainty": certainty,
        "size": list(judged.seen.size),
    }
    texts = {"alt": judged.ref.alt, "title": judged.ref.title, "caption": judged.ref.caption}
    return Picture(judged.seen.pixels, {**meta, **{name: clean(text) for name, text in texts.items() if text}})
