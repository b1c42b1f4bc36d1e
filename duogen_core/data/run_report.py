"""A run of any engine to look at: one HTML file with documents that were kept and entries that each rule refused.

In: the folder of a run, or of its steps (see `run_log`). Documents come from its shards, entries from its logs; which
are shown is decided by a hash, so they are spread over the run and the same every time. (`data web` has a report of its
own, with the pages before and after: `web.report`.) What models and pages wrote is escaped text, pictures are
thumbnails made anew; the file loads nothing and runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from duogen_core.data.run_log import RunLog, open_logs, rule_of
from duogen_core.data.yields import survey, text
from duogen_core.document import Document, Picture, Text

SIDE = 260  # longest side of a thumbnail
SHOWN = 1200  # characters of a refused entry
TEMPLATE = Path(__file__).with_name("web") / "report.html"
CAPTIONS = ("prompt", "caption", "alt")  # of a picture's meta, the first that it has


def write_report(folder: Path, file: Path, samples: int = 50) -> None:
    from duogen_core.store import write_atomically

    body = [f"<h1>{escape(str(folder))}</h1>"]
    for log in open_logs(folder):
        body.append(f"<h2>{escape(log.folder.name)}</h2><pre>{escape(text(survey(log)))}</pre>")
        body += _documents(log, samples)
        body += _entries(log, samples)
    page = Template(TEMPLATE.read_text("utf-8")).substitute(title=escape(folder.name), body="\n".join(body))
    write_atomically(file, page.encode("utf-8", "replace"))


def _documents(log: RunLog, samples: int) -> Iterable[str]:
    """Documents of the shards that are whole."""
    from duogen_core.data.sources import Sample, open_source

    if not next((log.folder / "shards").glob("*.tar"), None):
        return
    source = open_source(f"webdataset:{log.folder / 'shards'}")
    chosen = sorted(heapq.nsmallest(samples, range(len(source)), key=_weight))
    yield f"<h3>Documents: {len(chosen)} of {len(source):,}</h3>"
    for index in chosen:
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
    start = escape(first[:160] or "a picture")
    return f"<details><summary>{start}</summary><p><small>{about}</small></p>{''.join(parts)}</details>"


def _picture(picture: Picture) -> str:
    image, buffer = Image.fromarray(picture.pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=78)
    code = base64.b64encode(buffer.getvalue()).decode()
    caption = escape(next((str(picture.meta[name]) for name in CAPTIONS if picture.meta.get(name)), ""))
    size = f"{picture.size[0]}x{picture.size[1]}"
    below = f"<figcaption><small>{size} {caption}</small></figcaption>"
    return f'<figure><img alt="" src="data:image/jpeg;base64,{code}">{below}</figure>'


def _entries(log: RunLog, samples: int) -> Iterable[str]:
    """Entries by the rule that refused them; of the kept ones, those of a step that makes no documents."""
    groups: dict[str, list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
    with_shards = (log.folder / "shards").is_dir()
    for index, entry in enumerate(log.lines()):
        rule = rule_of(entry)
        if not rule and with_shards:
            continue
        item = (-_weight(index), index, entry)
        if len(groups[rule]) < samples:
            heapq.heappush(groups[rule], item)
        else:
            heapq.heappushpop(groups[rule], item)
    for rule, found in groups.items():
        tiles = "".join(_entry(entry, rule) for _, _, entry in sorted(found, key=lambda item: item[1]))
        title = f"{escape(rule or 'kept')}: {len(found)} shown"
        yield f"<details><summary>{title}</summary><div class=grid>{tiles}</div></details>"


def _entry(entry: Mapping[str, Any], rule: str) -> str:
    value = "" if entry.get("value") is None else f" {entry['value']}"
    said = escape(f"{rule or 'kept'}{value}"[:200])
    badge = f"<span class={'refused' if rule else 'kept'}>{said}</span>"
    rest = {name: item for name, item in entry.items() if name not in ("kept", "rule", "value", "stage")}
    return f"<div class=page>{badge}<p>{escape(_brief(rest))}</p></div>"


def _brief(value: Mapping[str, Any]) -> str:
    """The fields of a JSON object, a line each."""
    lines = [
        f"{name}: {item if isinstance(item, (str, int, float)) else json.dumps(item, ensure_ascii=False)}"
        for name, item in value.items()
        if item not in (None, "", [], {})
    ]
    whole = "\n".join(lines)
    return whole if len(whole) <= SHOWN else f"{whole[:SHOWN]} …"


def _weight(index: int) -> int:
    return int.from_bytes(hashlib.blake2b(str(index).encode(), digest_size=8).digest(), "big")
