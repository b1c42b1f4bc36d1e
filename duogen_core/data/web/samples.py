"""Which pages and pictures of a run are shown: for every rule the same number of refused ones, and of kept ones.

The choice is by a hash of where each stands, so it is spread over the run and the same every time.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from dataclasses import dataclass, field

from duogen_core.data.run_log import LATER, RunLog, rule_of

Place = tuple[int, int]  # a page's number in the run, and a picture's among those judged; -1 for the page itself


@dataclass
class Chosen:
    """rule -> places, in the order of the run; "" are the kept ones."""

    pages: dict[str, list[Place]] = field(default_factory=dict)
    pictures: dict[str, list[Place]] = field(default_factory=dict)

    def numbers(self) -> set[int]:
        return {page for group in (self.pages, self.pictures) for places in group.values() for page, _ in places}


def choose(log: RunLog, most: int) -> Chosen:
    pages: dict[str, list[tuple[int, Place]]] = defaultdict(list)
    pictures: dict[str, list[tuple[int, Place]]] = defaultdict(list)
    for entry in log.lines():
        number = entry["number"]
        _keep(pages[rule_of(entry)], (number, -1), most)
        for index, picture in enumerate(entry["pictures"]):
            rule = rule_of(picture) or ("" if entry["kept"] else LATER)
            if rule != LATER:
                _keep(pictures[rule], (number, index), most)
    return Chosen(
        *({rule: sorted(place for _, place in heap) for rule, heap in each.items()} for each in (pages, pictures))
    )


def _keep(heap: list[tuple[int, Place]], place: Place, most: int) -> None:
    weight = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
    if len(heap) < most:
        heapq.heappush(heap, (-weight, place))
    else:
        heapq.heappushpop(heap, (-weight, place))
