"""A run to look at: one HTML file with pages before and after, and pages and pictures that each rule kept and refused.

Of every rule the same number of refused pages and pictures is shown, and of kept ones. The pages shown go through the
engine again (nothing of a refused one is stored), so the inputs must still be there. What comes from pages is escaped
text and re-encoded thumbnails; the file loads nothing and runs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from duogen_core.data.runs.log import LATER, ORDERS, RunLog, open_logs, rule_of, survey, text
from duogen_core.data.runs.report import Spread, badge, thumbnail, tiles_of, write_page
from duogen_core.data.runs.run import Run, engine_of
from duogen_core.data.web.engine import PageResult, WebEngine
from duogen_core.data.web.page import Block
from duogen_core.data.web.pictures import Judged
from duogen_core.document import Text

Place = tuple[int, int]  # a page's number in the run, and a picture's among those judged; -1 for the page itself
SMALL, LARGE = 160, 320  # longest side of a thumbnail beside a rule, and in a page
START = 300  # characters of a page beside a rule


@dataclass
class Chosen:
    """What is shown: rule -> places, in the order of the run; "" are the kept ones."""

    pages: dict[str, list[Place]] = field(default_factory=dict)
    pictures: dict[str, list[Place]] = field(default_factory=dict)

    def numbers(self) -> set[int]:
        return {page for group in (self.pages, self.pictures) for places in group.values() for page, _ in places}


def choose(log: RunLog, most: int) -> Chosen:
    """Chooses at most `most` pages and pictures of every rule, spread over the run."""
    pages: dict[str, Spread] = defaultdict(lambda: Spread(most))
    pictures: dict[str, Spread] = defaultdict(lambda: Spread(most))
    for entry in log.lines():
        number = entry["number"]
        pages[rule_of(entry)].add((number, -1))
        for index, picture in enumerate(entry["pictures"]):
            rule = rule_of(picture) or ("" if entry["kept"] else LATER)
            if rule != LATER:
                pictures[rule].add((number, index))
    return Chosen(*({rule: [place for place, _ in kept] for rule, kept in each.items()} for each in (pages, pictures)))


def write_report(
    run: Run, file: Path, samples: int = 50, pages: int = 10, step: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Writes the report; step(done, total) is called for every page that is looked at again."""
    (log,) = open_logs(run.folder)
    found, chosen = survey(log), choose(log, samples)
    whole = [number for number, _ in chosen.pages.get("", [])[:pages]]
    tiles = _tiles(run, chosen, whole, step)
    body = [f"<pre>{escape(text(found))}</pre>"]
    body.append("<h2>Pages before and after</h2>" + "".join(tiles[number, "whole"] for number in whole))
    for stage, group in (("pages", chosen.pages), ("pictures", chosen.pictures)):
        order = ORDERS[stage]
        body.append(f"<h2>{stage.capitalize()} by rule</h2>")
        for rule in ["", *(rule for rule in order if rule in group), *sorted(set(group) - {""} - set(order))]:
            body.append(tiles_of(rule, [tiles.get(place, "") for place in group.get(rule, [])]))
    write_page(file, run.folder, body)


def _tiles(run: Run, chosen: Chosen, whole: list[int], step: Callable[[int, int], None]) -> dict:
    """Place -> HTML; (number, "whole") -> a page before and after."""
    wanted, tiles, done = chosen.numbers(), {}, 0
    places = {place for group in (chosen.pages, chosen.pictures) for each in group.values() for place in each}
    with engine_of(WebEngine, run) as engine:
        for shard in run.plan():
            for number, (place, name) in enumerate(shard.items, shard.first):
                if number not in wanted:
                    continue
                outcome = engine.page(engine.inputs[place], name)
                if (number, -1) in places:
                    tiles[number, -1] = _page_tile(outcome)
                for index, judged in enumerate(outcome.judged.values()):
                    if (number, index) in places:
                        tiles[number, index] = _picture(judged, SMALL)
                if number in whole:
                    tiles[number, "whole"] = _before_and_after(outcome)
                done += 1
                step(done, len(wanted))
    return tiles


def _page_tile(outcome: PageResult) -> str:
    start = " ".join(block.text for block in outcome.walk.blocks if not block.region)[:START]
    return (
        f"<div class=page><b>{escape(outcome.walk.title or outcome.page.name)}</b> {_badge(outcome)}"
        f"<br><small>{escape(outcome.page.url)}</small><br>{escape(start)}</div>"
    )


def _badge(result: PageResult | Judged) -> str:
    return badge(result.verdict.rule, result.verdict.value) if result.verdict else badge("")


def _picture(judged: Judged, side: int) -> str:
    inside = thumbnail(judged.seen.pixels, side) if judged.seen else "<i>not decoded</i>"
    about = judged.url[:80] or (judged.ref.sources[0][:80] if judged.ref.sources else judged.ref.kind)
    size = f"{judged.facts['width']}x{judged.facts['height']} " if judged.facts and "width" in judged.facts else ""
    return f"<figure>{inside}<figcaption>{_badge(judged)} {size}<small>{escape(about)}</small></figcaption></figure>"


def _before_and_after(outcome: PageResult) -> str:
    before = []
    for index, item in enumerate(outcome.walk.items):
        if isinstance(item, Block):
            mark = f"<span class=refused>{escape(item.region)}</span> " if item.region else ""
            before.append(f"<p>{mark}{escape(item.text)}</p>")
        elif index in outcome.judged:
            before.append(_picture(outcome.judged[index], LARGE))
    after = []
    for turn in outcome.document.turns if outcome.document else ():
        after.append(f"<h4>{turn.role}</h4>")
        for part in turn.parts:
            after.append(f"<p>{escape(part.text)}</p>" if isinstance(part, Text) else thumbnail(part.pixels, LARGE))
    title = escape(outcome.walk.title or outcome.page.name)
    return (
        f"<details><summary>{title} <small>{escape(outcome.page.url)}</small></summary><div class=two>"
        f"<div><h3>Before</h3>{''.join(before)}</div><div><h3>After</h3>{''.join(after)}</div></div></details>"
    )
