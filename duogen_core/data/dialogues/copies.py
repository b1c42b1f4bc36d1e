"""Copies that placement brought together: of two side by side that show the same, the one that fits better stays.

    copies(draft, scores, rules) -> {index of a picture to drop: the difference it was decided by}

`data web` drops a copy right after its picture; one that stood elsewhere on the page only now stands beside it. What a
copy is, is decided as there (data/web/duplicates); with text between them, two may be screens that differ in a number,
one for each step, and both stay. draft.places are the new ones; scores say how well each picture fits where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from duogen_core.data.dialogues.draft import Draft
from duogen_core.data.pictures.duplicates import Look, are_same, looks_of

RULE = "duplicate"


def copies(draft: Draft, scores: Sequence[float], rules: Mapping[str, Any]) -> dict[int, float]:
    """Of equal fits the first stays."""
    dropped: dict[int, float] = {}
    if not rules["drop"]:
        return dropped

    @cache
    def looks(index: int) -> tuple[Look, ...]:
        return looks_of(draft.pictures[index].pixels)

    last: int | None = None
    for index in sorted(range(len(draft.pictures)), key=lambda index: draft.places[index]):
        if last is not None and draft.places[last] == draft.places[index]:
            same, difference = are_same(looks(last), looks(index), rules)
            if same:
                worse = last if scores[index] > scores[last] else index
                dropped[worse] = difference
                last = index if worse == last else last
                continue
        last = index
    return dropped
