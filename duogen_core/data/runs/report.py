"""A run to look at: one HTML file that loads nothing and runs nothing, and the parts that all reports are made of.

    write_report(folder, file, samples)    documents that a run kept (of its shards), entries that each rule refused

Text is escaped here, whoever wrote it, and pictures are thumbnails that are encoded anew. The reports `web.report` and
`pairs.report` show the input too, because they send it through the engine again.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.runs.log import RunLog, open_logs, rule_of, surveys, text
from duogen_core.document import Document, Picture, Text

TEMPLATE = Path(__file__).with_name("report.html")
QUALITY = 75
LONGEST = 200  # characters of a badge


def write_page(file: Path, folder: Path, body: Iterable[str]) -> None:
    """The report of the run in this folder."""
    from duogen_core.files import write_atomically

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


# ------------------------------------------------------------ the report of any engine

SIDE = 260  # longest side of a thumbnail
SHOWN = 1200  # characters of a refused entry
CAPTIONS = ("prompt", "caption", "alt")  # of a picture's meta, the first that it has


def write_report(folder: Path, file: Path, samples: int = 50) -> None:
    found, empty = surveys(open_logs(folder))
    body = []
    for each in found:
        body.append(f"<h2>{escape(each.log.folder.name)}</h2><pre>{escape(text(each))}</pre>")
        body += _documents(each.log, samples)
        body += _entries(each.log, samples)
    for log in empty:
        body.append(f"<h2>{escape(log.folder.name)}</h2><p>begun, and nothing is finished yet</p>")
    write_page(file, folder, body)


def _documents(log: RunLog, samples: int) -> Iterable[str]:
    """Documents of the shards that are whole."""
    from duogen_core.data.sources import Sample, open_source

    if not next((log.folder / "shards").glob("*.tar"), None):
        return
    if all(map(rule_of, log.lines())):  # the shards hold no sample, which a source refuses
        yield "<h3>Documents: none was kept</h3>"
        return
    source = open_source(f"webdataset:{log.folder / 'shards'}")
    chosen = Spread(samples)
    for index in range(len(source)):
        chosen.add(index)
    yield f"<h3>Documents: {min(samples, len(source))} of {len(source):,}</h3>"
    for index, _ in chosen:
        found = source.read(index)
        if isinstance(found, Sample):
            yield _document(found.document)


def _document(document: Document) -> str:
    about = escape(_brief(document.meta))
    first = " ".join(document.turns[0].text.split())
    parts = []
    for turn in document.turns:
        parts.append(f"<h4>{turn.role}</h4>")
        parts += [f"<p>{escape(part.text)}</p>" if isinstance(part, Text) else _picture(part) for part in turn.parts]
    start = escape(first[:160] or "an image")
    return f"<details><summary>{start}</summary><p><small>{about}</small></p>{''.join(parts)}</details>"


def _picture(picture: Picture) -> str:
    caption = escape(next((str(picture.meta[name]) for name in CAPTIONS if picture.meta.get(name)), ""))
    size = f"{picture.size[0]}x{picture.size[1]}"
    below = f"<figcaption><small>{size} {caption}</small></figcaption>"
    return f"<figure>{thumbnail(picture.pixels, SIDE)}{below}</figure>"


def _entries(log: RunLog, samples: int) -> Iterable[str]:
    """Entries by the rule that refused them; of the kept ones, those of a step that makes no documents."""
    groups: dict[str, Spread] = defaultdict(lambda: Spread(samples))
    with_shards = (log.folder / "shards").is_dir()
    for index, entry in enumerate(log.lines()):
        rule = rule_of(entry)
        if rule or not with_shards:
            groups[rule].add(index, entry)
    for rule, found in groups.items():
        yield tiles_of(rule, [_entry(entry, rule) for _, entry in found])


def _entry(entry: Mapping[str, Any], rule: str) -> str:
    rest = {name: item for name, item in entry.items() if name not in ("kept", "rule", "value", "stage")}
    return f"<div class=page>{badge(rule, entry.get('value'))}<p>{escape(_brief(rest))}</p></div>"


def _brief(value: Mapping[str, Any]) -> str:
    """The fields of a JSON object, a line each."""
    lines = [
        f"{name}: {item if isinstance(item, (str, int, float)) else json.dumps(item, ensure_ascii=False)}"
        for name, item in value.items()
        if item not in (None, "", [], {})
    ]
    whole = "\n".join(lines)
    return whole if len(whole) <= SHOWN else f"{whole[:SHOWN]} …"
