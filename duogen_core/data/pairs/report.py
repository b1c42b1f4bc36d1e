"""A run of pairs to look at: one HTML file with pairs that were kept and pairs that each rule refused.

    write_report(folder, file, samples)

What is shown goes through the engine again (nothing of a refused pair is stored), so the inputs must still be there.
"""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from duogen_core.data.pairs.editing.engine import EditingEngine
from duogen_core.data.pairs.rules import WHOLE
from duogen_core.data.pairs.video.engine import VideoEngine
from duogen_core.data.runs.log import RunLog, open_logs, parts_of, rule_of, survey, text
from duogen_core.data.runs.report import Spread, badge, thumbnail, tiles_of, write_page
from duogen_core.data.runs.run import Run, engine_of, open_run

SIDE = 170  # longest side of a thumbnail: two stand side by side
HIDDEN = ("kept", "rule", "value", "stage", "number", "clips")
Place = tuple[int, int]
Shown = tuple[Sequence[str], str]  # thumbnails and words of a pair


def write_report(
    folder: Path, file: Path, samples: int = 50, step: Callable[[int, int], None] = lambda *_: None
) -> None:
    """step(done, total) is called for every shard that is looked at again."""
    (log,) = open_logs(folder)
    run, chosen = open_run(folder, log.kind), _choose(log, samples)
    with engine_of(VideoEngine if log.kind == "video" else EditingEngine, run) as engine:
        shown = _look_again(run, engine, chosen, step)
    body = [f"<pre>{escape(text(survey(log)))}</pre>"]
    for stage, rules in chosen.items():
        body.append(f"<h2>{escape(stage)} by rule</h2>")
        for rule, places in rules.items():
            body.append(tiles_of(rule, [_tile(facts, *shown.get(place, ((), ""))) for place, facts in places]))
    write_page(file, folder, body)


def _choose(log: RunLog, most: int) -> dict[str, dict[str, Spread]]:
    """stage -> rule -> places with what the log says of each, the kept ones first."""
    found: dict[str, dict[str, Spread]] = defaultdict(lambda: defaultdict(lambda: Spread(most)))
    for entry in log.lines():
        number, parts = entry["number"], parts_of(entry)
        if rule_of(entry) or not parts:
            found[str(entry.get("stage") or log.stage)][rule_of(entry)].add((number, WHOLE), entry)
        for stage, each in parts.items():
            for index, part in enumerate(each):
                found[stage][rule_of(part)].add((number, index), part)
    return {stage: dict(sorted(rules.items())) for stage, rules in found.items()}


def _look_again(
    run: Run,
    engine: VideoEngine | EditingEngine,
    chosen: Mapping[str, Mapping[str, Spread]],
    step: Callable[[int, int], None],
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
        for place, pictures, key in engine.look_again(shard, here):
            shown[place] = [thumbnail(pixels, SIDE) for pixels in pictures], words_of(run, shard.number, key)
        step(done, len(shards))
    return shown


def _tile(facts: Mapping[str, Any], thumbnails: Sequence[str], words: str) -> str:
    about = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in HIDDEN)
    inside = "".join(thumbnails) or "<i>no image</i>"
    verdict = badge(rule_of(dict(facts)), facts.get("value"))
    return f"<div class=page>{inside}<br>{verdict} {escape(words)}<br><small>{escape(about)}</small></div>"


def words_of(run: Run, shard: int, key: str) -> str:
    """What the user says in a stored Document; "" if it is not there."""
    try:
        with tarfile.open(run.tar(shard)) as archive:
            turns = json.loads(archive.extractfile(f"{key}.json").read())["turns"]
        users = (turn["parts"] for turn in turns if turn["role"] == "user")
        return " / ".join(" ".join(part["text"] for part in parts if part["type"] == "text") for parts in users)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError):
        return ""
