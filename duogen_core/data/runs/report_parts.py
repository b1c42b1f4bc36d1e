"""What the reports of all engines are made of: one HTML file that loads nothing and runs nothing.

Text is escaped here, whoever wrote it, and pictures are thumbnails that are encoded anew.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

TEMPLATE = Path(__file__).with_name("report.html")
QUALITY = 75
LONGEST = 200  # characters of a badge


def write_page(file: Path, folder: Path, body: Iterable[str]) -> None:
    """The report of the run in this folder."""
    from duogen_core.document.store import write_atomically

    inside = "\n".join([f"<h1>{escape(str(folder))}</h1>", *body])
    page = Template(TEMPLATE.read_text("utf-8")).substitute(title=escape(folder.name), body=inside)
    write_atomically(file, page.encode("utf-8", "replace"))


def tiles_of(rule: str, tiles: Iterable[str]) -> str:
    """The tiles of a rule ("": of what was kept), to be opened."""
    tiles = list(tiles)
    title = f"{escape(rule or 'kept')}: {len(tiles)} shown"
    return f"<details><summary>{title}</summary><div class=grid>{''.join(tiles)}</div></details>"


def badge(rule: str, value: Any = None) -> str:
    if not rule:
        return "<span class=kept>kept</span>"
    said = rule if value is None or value == "" else f"{rule} {value}"
    return f"<span class=refused>{escape(said[:LONGEST])}</span>"


def thumbnail(pixels: np.ndarray, side: int) -> str:
    """side: of its longest side, at most."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((side, side))
    image.save(buffer, "JPEG", quality=QUALITY)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"> '


class Spread:
    """Keeps some of what it is given, by a hash of where each stands: spread over the run, and the same every time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.heap: list[tuple[int, Any, Any]] = []

    def add(self, place: Any, thing: Any = None) -> None:
        """No two have the same place."""
        weight = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
        push = heapq.heappush if len(self.heap) < self.most else heapq.heappushpop
        push(self.heap, (-weight, place, thing))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Places and things, in the order of the places."""
        return iter(sorted(((place, thing) for _, place, thing in self.heap), key=lambda each: each[0]))
