"""Which pages and pictures of a run are shown: for every rule the same number of refused ones, and of kept ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from duogen_core.data.runs.log import LATER, RunLog, rule_of
from duogen_core.data.runs.report import Spread

Place = tuple[int, int]  # a page's number in the run, and a picture's among those judged; -1 for the page itself


@dataclass
class Chosen:
    """rule -> places, in the order of the run; "" are the kept ones."""

    pages: dict[str, list[Place]] = field(default_factory=dict)
    pictures: dict[str, list[Place]] = field(default_factory=dict)

    def numbers(self) -> set[int]:
        return {page for group in (self.pages, self.pictures) for places in group.values() for page, _ in places}


def choose(log: RunLog, most: int) -> Chosen:
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
