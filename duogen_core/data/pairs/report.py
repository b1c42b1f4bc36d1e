"""A run of pairs to look at: one HTML file with pairs that were kept and pairs that each rule refused.

    write_report(folder, file, samples)

What is shown goes through the engine again (nothing of a refused pair is stored), so the inputs must still be there.
What comes from inputs and models is escaped text and re-encoded thumbnails; the file loads nothing and runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.pairs.again import WHOLE
from duogen_core.data.pairs.sharded import Run, Shard, open_run
from duogen_core.data.run_log import RunLog, open_logs, parts_of, rule_of
from duogen_core.data.yields import survey, text
from duogen_core.store import write_atomically

SIDE = 170  # longest side of a thumbnail: two stand side by side
TEMPLATE = Path(__file__).parents[1] / "web" / "report.html"
HIDDEN = ("kept", "rule", "value", "stage", "number", "clips")
Place = tuple[int, int]
Shown = tuple[Sequence[np.ndarray], str]  # pictures and words of a pair
# (run, shard, {number: {indices}}) -> (place, pictures, words) of what could be read again
Show = Callable[[Run, Shard, Mapping[int, set[int]]], Iterator[tuple[Place, Sequence[np.ndarray], str]]]


def write_report(
    folder: Path, file: Path, samples: int = 50, step: Callable[[int, int], None] = lambda *_: None
) -> None:
    """step(done, total) is called for every shard that is looked at again."""
    (log,) = open_logs(folder)
    if log.kind == "video":
        from duogen_core.data.video.showing import show
    else:
        from duogen_core.data.editing.showing import show
    run, chosen = open_run(folder, log.kind), _choose(log, samples)
    shown = _look_again(run, chosen, show, step)
    body = [f"<h1>{escape(str(folder))}</h1><pre>{escape(text(survey(log)))}</pre>"]
    for stage, rules in chosen.items():
        body.append(f"<h2>{escape(stage)} by rule</h2>")
        for rule, places in rules.items():
            tiles = "".join(_tile(facts, *shown.get(place, ((), ""))) for place, facts in places)
            body.append(f"<details><summary>{escape(rule or 'kept')}: {len(places)} shown</summary>")
            body.append(f"<div class=grid>{tiles}</div></details>")
    page = Template(TEMPLATE.read_text("utf-8")).substitute(title=escape(folder.name), body="\n".join(body))
    write_atomically(file, page.encode("utf-8", "replace"))


def _choose(log: RunLog, most: int) -> dict[str, dict[str, list[tuple[Place, dict[str, Any]]]]]:
    """stage -> rule -> places, the kept ones first: by a hash of where each stands, so the same every time."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for entry in log.lines():
        number, parts = entry["number"], parts_of(entry)
        if rule_of(entry) or not parts:
            _keep(found[str(entry.get("stage") or log.stage)][rule_of(entry)], (number, WHOLE), entry, most)
        for stage, each in parts.items():
            for index, part in enumerate(each):
                _keep(found[stage][rule_of(part)], (number, index), part, most)
    return {
        stage: {
            rule: [(place, facts) for _, place, facts in sorted(rules[rule], key=_by_place)] for rule in sorted(rules)
        }
        for stage, rules in found.items()
    }


def _by_place(kept: tuple[str, Place, Any]) -> Place:
    return kept[1]


def _keep(places: list[tuple[str, Place, dict[str, Any]]], place: Place, facts: dict[str, Any], most: int) -> None:
    places.append((hashlib.sha256(repr(place).encode()).hexdigest(), place, facts))
    if len(places) > most:
        places.remove(max(places, key=lambda each: each[:2]))


def _look_again(
    run: Run, chosen: Mapping[str, Mapping[str, Any]], show: Show, step: Callable[[int, int], None]
) -> dict[Place, Shown]:
    wanted: dict[int, set[int]] = defaultdict(set)
    for rules in chosen.values():
        for places in rules.values():
            for (number, index), _ in places:
                wanted[number].add(index)
    shards = [shard for shard in run.plan() if any(shard.first + k in wanted for k in range(len(shard.items)))]
    shown: dict[Place, Shown] = {}
    for done, shard in enumerate(shards, 1):
        here = {shard.first + k: wanted[shard.first + k] for k in range(len(shard.items)) if shard.first + k in wanted}
        for place, pictures, words in show(run, shard, here):
            shown[place] = [_small(pixels) for pixels in pictures], words
        step(done, len(shards))
    return shown


def _small(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def _tile(facts: Mapping[str, Any], pictures: Sequence[np.ndarray], words: str) -> str:
    rule = rule_of(dict(facts))
    value = facts.get("value", "")
    badge = f"<span class=refused>{escape(f'{rule} {value}')}</span>" if rule else "<span class=kept>kept</span>"
    about = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in HIDDEN)
    inside = "".join(_picture(pixels) for pixels in pictures) or "<i>no picture</i>"
    return f"<div class=page>{inside}<br>{badge} {escape(words)}<br><small>{escape(about)}</small></div>"


def _picture(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"> '
