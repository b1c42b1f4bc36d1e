"""An overview of answers as one PNG: a row each, the request and what the model wrote above its pictures.

Pictures of the prompt have a grey frame, drawn ones a green (all checks right), orange or red (all wrong) one.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from duogen_core.document import Document
from duogen_core.document.store import write_atomically

TILE, EDGE, LINE = 128, 4, 12
FRAMES = {"given": "#999999", "right": "#2e9e4f", "partly": "#e08a1e", "wrong": "#d23a32"}


def contact_sheet(
    rows: Sequence[tuple[str, Document, int, Mapping[str, float]]], path: Path, columns: int = 7, most: int = 60
) -> None:
    """rows: (label, answered document, number of turns of its prompt, checks). At most `most` rows are shown."""
    strips = [strip(*row, columns=columns) for row in rows[:most]]
    if not strips:
        return
    sheet = Image.new("RGB", (strips[0].width, sum(one.height for one in strips)), "white")
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_atomically(path, file.getvalue())


def strip(label: str, document: Document, given: int, checks: Mapping[str, float], *, columns: int) -> Image.Image:
    width = columns * (TILE + 2 * EDGE)
    asked = " / ".join(turn.text for turn in document.turns[:given] if turn.text)
    wrote = " ".join("".join(turn.text for turn in document.turns[given:]).split())
    marks = "  ".join(f"{name.partition('.')[2]} {value:.2g}" for name, value in checks.items())
    lines = [f"{label}   {marks}", *textwrap.wrap(f"> {asked}", 150)[:2], *textwrap.wrap(wrote, 150)[:4]]
    before = sum(len(turn.pictures) for turn in document.turns[:given])
    pictures = document.pictures[:columns]
    image = Image.new("RGB", (width, LINE * len(lines) + 2 * EDGE + (TILE + 2 * EDGE if pictures else 0)), "white")
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((EDGE, EDGE + number * LINE), line.encode("latin-1", "replace").decode("latin-1"), fill="black")
    values = list(checks.values())
    state = "right" if values and min(values) >= 0.95 else "wrong" if not any(values) else "partly"
    top = LINE * len(lines) + EDGE
    for index, picture in enumerate(pictures):
        tile = Image.fromarray(picture.pixels)
        tile.thumbnail((TILE, TILE))
        left = index * (TILE + 2 * EDGE)
        frame = FRAMES["given" if index < before else state]
        pen.rectangle((left, top, left + tile.width + 2 * EDGE - 1, top + tile.height + 2 * EDGE - 1), fill=frame)
        image.paste(tile, (left + EDGE, top + EDGE))
    return image
