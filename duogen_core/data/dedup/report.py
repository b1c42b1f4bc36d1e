"""A pass to look at: pairs of what went and what it is a duplicate of, and the lines and images that repeat.

Both documents of a pair are read from the runs, which must still be there. Whatever stands in them is escaped, and
images are thumbnails that are encoded anew; one that cannot be read is named as such.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from duogen_core.data.dedup.engine import DedupEngine
from duogen_core.data.dedup.samples import Sample
from duogen_core.data.runs.log import open_logs, rule_of, survey, text
from duogen_core.data.runs.report import Spread, badge, thumbnail, tiles_of, write_page
from duogen_core.data.runs.run import Run, engine_of
from duogen_core.document.picture_file import decode_picture
from duogen_core.errors import DuoGenError

SIDE = 130  # longest side of a thumbnail
IMAGES = 4  # of a document that are shown
SHOWN = 1200  # characters of a document
MOST = 200  # repeated lines and addresses that are listed
RULES = ("same_address", "near_duplicate", "same_images", "too_short", "no_picture_left")


def write_report(run: Run, file: Path, samples: int = 50, step: Callable[[int, int], None] = lambda *_: None) -> None:
    """Writes the report; step(done, total) is called for every document that is read."""
    (log,) = open_logs(run.folder)
    chosen: dict[str, Spread] = defaultdict(lambda: Spread(samples))
    lines: Counter[tuple[str, int]] = Counter()
    addresses: Counter[tuple[str, int]] = Counter()
    for entry in log.lines():
        chosen[rule_of(entry)].add(entry["number"], entry)
        for line, pages in entry.get("removed_lines", ()):
            _count(lines, (line, pages))
        for image in entry.get("pictures", ()):
            if "rule" in image:
                _count(addresses, (image["url"], image["value"]))
    body = [f"<pre>{escape(text(survey(log)))}</pre>", "<h2>Documents by rule</h2>"]
    total, done = sum(len(list(each)) for each in chosen.values()), 0
    with engine_of(DedupEngine, run) as engine:
        for rule in sorted(chosen, key=lambda rule: (*RULES, rule).index(rule) if rule else -1):
            tiles = []
            for _, entry in chosen[rule]:
                tiles.append(_tile(engine, entry, rule))
                done += 1
                step(done, total)
            body.append(tiles_of(rule, tiles))
    body += [_table("Lines that repeat", lines), _table("Images whose address repeats", addresses)]
    write_page(file, run.folder, body)


def _count(found: Counter[tuple[str, int]], what: tuple[str, int]) -> None:
    """The first ones are enough: the table shows those on most pages, and a log may hold millions."""
    if what in found or len(found) < 100 * MOST:
        found[what] += 1


def _tile(engine: DedupEngine, entry: dict[str, Any], rule: str) -> str:
    head = f"{badge(rule, entry.get('value'))} {escape(entry['title'][:160])}"
    if "partner" not in entry:
        return f"<div class=page>{head}{_document(engine, entry)}</div>"
    partner = entry["partner"]
    return (
        f"<details><summary>{head}</summary><div class=two><div><h3>Went</h3>{_document(engine, entry)}</div>"
        f"<div><h3>Its partner</h3>{_document(engine, partner)}</div></div></details>"
    )


def _document(engine: DedupEngine, entry: dict[str, Any]) -> str:
    about = f"<p><small>{escape(entry['url'][:200])} {escape(entry['tar'])} {escape(entry['key'])}</small></p>"
    try:
        sample = engine.sample(entry["document"])
    except DuoGenError as error:
        return f"{about}<p><i>{escape(str(error))}</i></p>"
    said = "\n".join(part["text"] for _, part in sample.parts("text"))
    images = [_image(sample, part["file"]) for _, part in list(sample.parts("image"))[:IMAGES]]
    return f"{about}{''.join(images)}<p>{escape(said[:SHOWN])}</p>"


def _image(sample: Sample, name: str) -> str:
    try:
        return thumbnail(decode_picture(sample.read(name), name), SIDE)
    except DuoGenError:
        return "<i>not decoded</i> "


def _table(title: str, found: Counter[tuple[str, int]]) -> str:
    most = sorted(found, key=lambda what: (-what[1], what[0]))[:MOST]
    rows = "".join(f"<p><small>{pages:,} pages</small> {escape(what)}</p>" for what, pages in most)
    return f"<details><summary>{title}: {len(most)} shown</summary>{rows}</details>"
